"""Measure the nets of one claim before and after training: regions on a plane, ranks, exact copies; compare them."""

from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from skipform import comparisons, measure, nets
from skipform.arguments import Count, NotNegative
from skipform.errors import SkipformError
from skipform.files import fields, read_yaml, write_json
from skipform.measure.rank import finite, ranks
from skipform.nets.activation_blocks import ConcatenationSkip
from skipform.runs import Run, finished
from skipform.theory.blocks import BlockNet, to_addition, to_concatenation
from skipform.training import launch


def main(
    folder: str,
    *,
    out: str,
    config: str | None = None,
    batch: Count = 128,
    margin: NotNegative = 0.0,
    copies: bool = False,
    executor: Literal["local", "submitit"] = "local",
    workers: Count | None = None,
    slurm: dict[str, Any] | None = None,
) -> None:
    """Measure every run of FOLDER (written by `skipform fit`) and write one JSON file; equal nets give equal bytes.

    Per variant, seed and moment (initial, final): activation regions and affine pieces on the plane through the first
    three test images x, y, z, that is x + s (y - x) + t (z - x) with s and t from -MARGIN to 1 + MARGIN; the rank of
    the Jacobian at x, of the scores and of the last hidden layer (of a convolutional net its last maps, before the
    global average: hidden_rank, hidden_dim); the functional dimension over the first `batch` test images. Then the
    comparisons that the experiment file announces are decided, see `skipform.comparisons`. Results are stored in
    OUT.partial as they come, so that a killed measurement continues from there.

    Args:
        folder: The folder of the runs, for example runs/claims/pooling.
        out: The JSON file to write.
        config: The experiment file of the runs, which announces the comparisons; none are made when not given.
        batch: The number of images for the functional dimension, each with ten scores.
        margin: How far the plane reaches beyond the parallelogram of the images.
        copies: Also measure the exact copy of each net with the other skip (Theorem 3); for activation_blocks only.
        executor: local processes, or submitit for a SLURM cluster.
        workers: Local processes; one per core when not given.
        slurm: Parameters of submitit's executor, for example {slurm_partition: cpu}.
    """
    options = {"batch": batch, "margin": margin, "copies": copies}
    announced = announcement(config, finished(folder), copies) if config is not None else []
    with launch.over_runs(measure_run, folder, out, options, executor, workers, slurm, Path(__file__)) as rows:
        decided = comparisons.decide(announced, rows)
        write_json(out, {"claim": Path(folder).name, **options, "comparisons": decided, "rows": rows})


def announcement(config: str, runs: list[Run], copies: bool) -> list[comparisons.Comparison]:
    """The comparisons that an experiment file announces, after a check that the runs have what they compare."""
    file = fields(read_yaml(config), {"comparisons": list}, config)
    variants = sorted({run.config["variant"] for run in runs})
    announced = comparisons.read(file["comparisons"], variants, f"{config}: comparisons")
    if not copies and any(comparison.of_copies() for comparison in announced):
        raise SkipformError(f"{config}: comparisons: some are about copies; accepted: with --copies")
    return announced


def measure_run(
    run: str, when: Literal["initial", "final"], batch: int, margin: float, copies: bool
) -> list[dict[str, Any]]:
    """One row for the net of one run at one moment, and one for its copy; see `main`."""
    torch.set_num_threads(1)
    trained = Run(Path(run)).of_task("classify")
    name = trained.config["net"]["name"]
    if copies and name != "activation_blocks":
        raise SkipformError(f"--copies: {run}: the net {name}; accepted: activation_blocks")
    images = trained.test_images()
    if len(images) < 3:
        raise SkipformError(f"{run}: {len(images)} test images; accepted: 3 or more, which span a plane")
    net = trained.net(when).double()
    common = {
        "variant": trained.config["variant"],
        "seed": trained.config["seed"],
        "when": when,
        "test_error": trained.metrics["test_error"] if when == "final" else None,
    }
    dimension = measure.functional_dimension(net, images[:batch])
    row = common | {
        "copy": None,
        **counts(net, images, margin),
        "functional_dimension": dimension.rank,
        "functional_dimension_gap": finite(dimension.gap),
        "functional_dimension_most": min(dimension.shape),
    }
    if not copies:
        return [row]
    other, copy = exact_copy(net, trained.config["net"])
    return [row, common | {"copy": other, **counts(copy, images, margin)}]


def counts(net: nn.Module, images: torch.Tensor, margin: float) -> dict[str, Any]:
    """The part of a row that is measured for a net and for its copy: sizes, regions, pieces, ranks."""
    x, y, z = images[:3]
    side = (-margin, 1 + margin)
    regions = measure.plane(net, x, y - x, z - x, (*side, *side))
    return {
        "parameters": sum(p.numel() for p in net.parameters()),
        "regions": regions.count,
        "pieces": regions.pieces,
        **ranks(net, last_hidden(net), x, "hidden"),
        "input_dim": x.numel(),
    }


def last_hidden(net: nn.Module) -> nn.Module:
    """The net up to its last hidden layer: before the global average where there is one, else before the last layer.

    Unlike `nets.features` it has the maps that pooling produces, before the average reduces each to one number.
    """
    assert isinstance(net, nn.Sequential)
    layers = list(net)
    average = [k for k, layer in enumerate(layers) if isinstance(layer, nn.AdaptiveAvgPool2d)]
    return nn.Sequential(*layers[: average[-1] if average else -1]).eval()


def exact_copy(net: nn.Module, block: dict[str, Any]) -> tuple[str, nn.Module]:
    """The other skip, and an `activation_blocks` net with that skip that computes the same function (Theorem 3).

    net: in float64, built from `block`. The copy has the same number of ReLUs in the same number of layers.
    """
    original = blocks_of(net)
    if original.blocks[0].shortcut is None:
        # The state is as wide as the default of nets.activation_blocks: the input and the last layer of every block.
        other, copied = "add", to_addition(original)
        maps = [copied.stem, *[w for b in copied.blocks for w in b.layers], copied.readout]
    else:
        # With concatenation the net reads its input directly: the stem is composed with every map that reads it.
        other, copied = "concat", to_concatenation(original)
        maps = [w for b in copied.blocks for w in (_compose_stem(copied.stem, b.layers[0]), *b.layers[1:-1])]
        maps.append(_compose_stem(copied.stem, copied.readout))
    copy = nets.build(**(block | {"skip": other, "state": None})).double().eval()
    linear = [layer for layer in copy.modules() if isinstance(layer, nn.Linear)]
    with torch.no_grad():
        for layer, (weight, bias) in zip(linear, maps, strict=True):
            layer.weight.copy_(torch.from_numpy(np.asarray(weight, dtype=np.float64)))
            layer.bias.copy_(torch.from_numpy(np.asarray(bias, dtype=np.float64)))
    return other, copy


def blocks_of(net: nn.Module) -> BlockNet:
    """The weights of an `activation_blocks` net in the form of Theorem 3. A concatenated block ends with its ReLUs."""
    layers = list(net.children())
    concatenated = isinstance(layers[1], ConcatenationSkip)
    stem = None if concatenated else layers[1]
    blocks: list[list[Any]] = []
    for layer in layers[1 if concatenated else 2 : -1]:
        branch = [part for part in layer.get_submodule("branch").modules() if isinstance(part, nn.Linear)]
        width = branch[-1].out_features
        blocks.append([*branch, (np.eye(width), np.zeros(width))] if concatenated else branch)
    return BlockNet.of(blocks, layers[-1], merge="concat" if concatenated else "add", stem=stem)


def _compose_stem(
    stem: tuple[np.ndarray, np.ndarray], layer: tuple[np.ndarray, np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """The affine map (h; x) -> layer(h; stem(x))."""
    fresh, read = np.split(layer[0], [layer[0].shape[1] - len(stem[1])], axis=1)
    return np.hstack([fresh, read @ stem[0]]), layer[1] + read @ stem[1]
