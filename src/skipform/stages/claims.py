"""Decide one claim from its runs: their scores, and, before and after training, regions, ranks and exact copies."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from skipform import comparisons, measure, nets, records, verdicts
from skipform.arguments import Count, NotNegative, typed
from skipform.comparisons import EXPRESSIVE, Comparison
from skipform.errors import SkipformError
from skipform.files import fields, read_json, read_yaml, write_json
from skipform.measure.rank import finite, ranks
from skipform.nets.activation_blocks import ConcatenationSkip
from skipform.outputs import check_file
from skipform.runs import Run, finished
from skipform.theory.blocks import BlockNet, to_addition, to_concatenation
from skipform.training import launch

Row = dict[str, Any]


def main(
    folder: str,
    *,
    out: str,
    config: str | None = None,
    measured: list[str] | None = None,
    batch: Count = 128,
    margin: NotNegative = 0.0,
    copies: bool = False,
    executor: Literal["local", "submitit"] = "local",
    workers: Count | None = None,
    slurm: dict[str, Any] | None = None,
) -> None:
    """Decide the comparisons that an experiment file announces, and write them with the numbers they rest on into one
    JSON file; equal runs give equal bytes. The rule is stated in `skipform.verdicts`.

    The numbers are those of the records of the runs in FOLDER (written by `skipform fit`): every score, the number of
    parameters, the epochs or steps to a training loss. A file without trainings of its own names records instead,
    `runs: survey/unet` for FOLDER/survey/unet.jsonl, or a list of such names; its variants are then called unet/concat.

    Where a comparison, or no experiment file, asks for them, the nets are measured, before and after training
    (initial, final): activation regions and affine pieces on the plane through the first three test images x, y, z,
    that is x + s (y - x) + t (z - x) with s and t from -MARGIN to 1 + MARGIN; the rank of the Jacobian at x, of the
    scores and of the last hidden layer (of a convolutional net its last maps, before the global average: hidden_rank,
    hidden_dim); the functional dimension over the first `batch` test images. These results are stored in OUT.partial as
    they come, so that a killed measurement continues from there.

    Args:
        folder: The folder of the runs, for example runs/claims/pooling; for a file with `runs:`, that of the records.
        out: The JSON file to write.
        config: The experiment file, which announces the comparisons; none are made when not given.
        measured: JSON files {"rows": [{"variant", "seed", "when", NAME: number, ...}, ...]} of further measurements of
            these nets, one row per net and moment (initial, final).
        batch: The number of images for the functional dimension, each with ten scores.
        margin: How far the plane reaches beyond the parallelogram of the images.
        copies: Also measure the exact copy of each net with the other skip (Theorem 3); for activation_blocks only.
        executor: local processes, or submitit for a SLURM cluster.
        workers: Local processes; one per core when not given.
        slurm: Parameters of submitit's executor, for example {slurm_partition: cpu}.
    """
    check_file(out, suffixes=[".json"])
    options = {"batch": batch, "margin": margin, "copies": copies}
    trained = list(trained_in(folder, config))
    announced = announcement(config, trained, copies) if config is not None else []
    asked = [*dict.fromkeys(name for comparison in announced for name in comparison.measures)]
    scores = [records.numbers(record, asked) for record in trained]
    rows = [row for path in measured or () for row in fields(read_json(path), {"rows": list}, path)["rows"]]
    name = Path(config or folder).stem

    def decided(rows: list[Row]) -> dict[str, Any]:
        return {"claim": name, "comparisons": verdicts.decide(announced, [*scores, *rows]), "rows": rows}

    if announced and not {*asked} & {*EXPRESSIVE}:
        write_json(out, decided([*scores, *rows]))
        return
    with launch.over_runs(measure_run, folder, out, options, executor, workers, slurm, Path(__file__)) as found:
        write_json(out, decided([*found, *rows]) | options)


def trained_in(folder: str, config: str | None) -> Iterator[records.Record]:
    """The records of the runs in a folder, or of those that the experiment file names.

    Raises:
        SkipformError: no runs, or a name without records.
    """
    file = read_yaml(config) if config is not None else {}
    named = file.get("runs") if isinstance(file, dict) else None
    if named is None:
        if not (runs := finished(folder)):
            raise SkipformError(f"{folder}: no finished runs (with summary.json) in it; `skipform fit` writes them")
        yield from (run.record() for run in runs)
        return
    for name in [named] if isinstance(named, str) else typed(named, list[str], f"{config}: runs"):
        path = Path(folder, f"{name}.jsonl")
        if not path.is_file():
            there = [str(known.relative_to(folder).with_suffix("")) for known in sorted(Path(folder).rglob("*.jsonl"))]
            raise SkipformError(f"{config}: runs: no {path}; there are: {', '.join(there) or 'none'}")
        for record in records.read(path):
            if not isinstance(named, str):
                record["config"]["variant"] = f"{path.stem}/{record['config']['variant']}"
            yield record


def announcement(config: str, trained: list[records.Record], copies: bool) -> list[Comparison]:
    """The comparisons that an experiment file announces, after a check that the runs have what they compare."""
    file = fields(read_yaml(config), {"comparisons": list}, config)
    variants = sorted({record["config"]["variant"] for record in trained})
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
