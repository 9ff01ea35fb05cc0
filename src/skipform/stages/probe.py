"""Measure the nets of one claim about learning: their gradients, lesions, the loss around them, or what they cost."""

from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from skipform.arguments import Count
from skipform.errors import SkipformError
from skipform.files import write_json
from skipform.measure.gradients import gradient_correlation, gradient_norms, gradient_spread
from skipform.measure.landscape import filter_normalised, loss_surface, nonconvexity
from skipform.measure.lesions import classification_error, disorder, exchanged, without
from skipform.measure.rank import finite
from skipform.nets.blocks import Skip
from skipform.runs import Run
from skipform.training import launch

Row = dict[str, Any]
DRAWS = 4  # random choices of blocks, or orders of blocks, over which an error is averaged
REACH, STEPS = 1.0, 7  # the surface of the loss: weights from -REACH to REACH times a filter's norm, STEPS squared


def main(
    folder: str,
    *,
    out: str,
    of: Literal["gradients", "lesions", "landscape", "cost"],
    images: Count = 64,
    executor: Literal["local", "submitit"] = "local",
    workers: Count | None = None,
    slurm: dict[str, Any] | None = None,
) -> None:
    """Measure every run of FOLDER (written by `skipform fit`) and write one JSON file; equal nets give equal bytes.

    Per variant and seed, of one kind:

    gradients, at both moments (initial, final), over the first training images: the norm of the gradient of the loss
    in every layer (gradient_norms), log10 of the largest over the smallest (gradient_spread; null if one is zero), and
    the mean cosine between the gradients at two images (gradient_correlation).
    lesions, of the trained net, errors in percent on the test images: without one of its blocks that keep the shape
    (deletion_errors, one by one; deletion_rise is their mean rise over the net's own error), without a quarter, a half,
    three quarters and all of them (deleted and errors_without; half_deleted_error), with the blocks of equal shape in
    another order (reordered_error) and the share of pairs of blocks that are reversed there (disorder); means over
    random draws.
    landscape, of the trained net: the loss of the first training images on a square in two random filter-normalised
    directions (surface), the share of its points where it is not convex (nonconvexity, %) and its mean rise over its
    centre (loss_rise).
    cost, of the trained net: operations and bytes of a training step on that number of images, counted, not timed.

    Results are stored in OUT.partial as they come, so that a killed measurement continues from there.

    Args:
        folder: The folder of the runs, for example runs/claims/gradient_flow.
        out: The JSON file to write.
        of: What is measured.
        images: The number of training images.
        executor: local processes, or submitit for a SLURM cluster.
        workers: Local processes; one per core when not given.
        slurm: Parameters of submitit's executor, for example {slurm_partition: cpu}.
    """
    options = {"of": of, "images": images}
    with launch.over_runs(measure_run, folder, out, options, executor, workers, slurm, Path(__file__)) as rows:
        write_json(out, {"claim": Path(out).stem, **options, "rows": rows})


def measure_run(run: str, when: Literal["initial", "final"], of: str, images: int) -> list[Row]:
    """The row of one run at one moment, or none where nothing is measured at that moment; see `main`."""
    torch.set_num_threads(1)
    if when == "initial" and of != "gradients":
        return []
    trained = Run(Path(run)).of_task("classify")
    seed = trained.config["seed"]
    row = {"variant": trained.config["variant"], "seed": seed, "when": when, "copy": None}
    net, splits = trained.net(when), trained.data().splits
    x, labels = (part[:images] for part in splits["train"])
    generator = torch.Generator().manual_seed(seed)
    if of == "gradients":
        return [row | gradients(net, x, labels)]
    if of == "lesions":
        pixels, targets = splits["test"]
        return [row | lesions(net, pixels, targets, generator)]
    if of == "cost":
        return [row | cost(trained.config, x)]
    return [row | landscape(net, x, labels, generator)]


def gradients(net: nn.Module, images: Tensor, labels: Tensor) -> Row:
    """The part of a row about gradients."""
    norms = gradient_norms(net, images, labels)
    return {
        "gradient_norms": list(norms.values()),
        "gradient_spread": finite(gradient_spread(norms)),
        "gradient_correlation": gradient_correlation(net, images),
    }


def lesions(net: nn.Module, images: Tensor, labels: Tensor, generator: torch.Generator) -> Row:
    """The part of a row about deleted and reordered blocks."""
    groups = blocks_of_equal_shape(net, images[:1])
    blocks = [name for group in groups for name in group]
    if not blocks:
        raise SkipformError("probe --of lesions: a net with no block that keeps the shape; accepted: one that has some")

    def error(other: nn.Module) -> float:
        return classification_error(other, images, labels)

    def shuffled(names: list[str]) -> list[str]:
        return [names[i] for i in torch.randperm(len(names), generator=generator)]

    own = error(net)
    deletions = [error(without(net, [name])) for name in blocks]
    counts = sorted({-(-len(blocks) * quarter // 4) for quarter in range(1, 5)})
    fewer = {k: _mean(error(without(net, shuffled(blocks)[:k])) for _ in range(DRAWS)) for k in counts}
    orders = [
        {place: name for group in groups for place, name in zip(group, shuffled(group), strict=True)}
        for _ in range(DRAWS)
    ]
    return {
        "blocks": len(blocks),
        "own_error": own,
        "deletion_errors": deletions,
        "deletion_rise": _mean(deletions) - own,
        "deleted": counts,
        "errors_without": [*fewer.values()],
        "half_deleted_error": fewer[-(-len(blocks) // 2)],
        "reordered_error": _mean(error(exchanged(net, order)) for order in orders),
        "disorder": _mean(map(disorder, orders)),
    }


def blocks_of_equal_shape(net: nn.Module, image: Tensor) -> list[list[str]]:
    """The innermost `Skip` modules of a net that keep the shape of their input, in groups of one shape, in order."""
    names = [name for name, module in net.named_modules() if isinstance(module, Skip)]
    inner = [a for a, b in pairwise([*names, ""]) if not b.startswith(f"{a}.")]
    groups: dict[torch.Size, list[str]] = {}
    for name in inner:
        x, y = _seen(net, name, image)
        if x.shape == y.shape:
            groups.setdefault(x.shape, []).append(name)
    return list(groups.values())


def landscape(net: nn.Module, images: Tensor, labels: Tensor, generator: torch.Generator) -> Row:
    """The part of a row about the loss around the net."""
    u, v = filter_normalised(net, generator), filter_normalised(net, generator)
    surface = loss_surface(net, images, labels, u, v, torch.linspace(-REACH, REACH, STEPS, dtype=torch.float64))
    centre = float(surface[STEPS // 2, STEPS // 2])
    return {
        "surface": surface.tolist(),
        "nonconvexity": nonconvexity(surface),
        "loss_rise": float(surface.mean()) - centre,
    }


def cost(config: dict[str, Any], batch: Tensor) -> Row:
    """The part of a row about what a training step on the batch takes, see `training.cost.step`."""
    from skipform.training.cost import step

    settings = config["optimizer"]["name"], config["trainer"]["precision"]
    operations, memory, _ = step(config["net"], [batch.to("meta", torch.float32)], *settings)
    return {"operations": operations, "memory": memory}


def _seen(net: nn.Module, name: str, image: Tensor) -> tuple[Tensor, Tensor]:
    """What goes into the module of this name and what comes out of it."""
    seen: list[tuple[Tensor, Tensor]] = []
    hook = net.get_submodule(name).register_forward_hook(lambda module, inputs, y: seen.append((inputs[0], y)))
    with torch.no_grad():
        net(image)
    hook.remove()
    return seen[0]


def _mean(values: Iterable[float]) -> float:
    values = list(values)
    return sum(values) / len(values)
