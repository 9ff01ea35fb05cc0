"""Measure the nets of one experiment, before and after training: regions between test images, ranks."""

import os
from pathlib import Path
from typing import Any, Literal

import psutil
import torch
from torch import nn

from skipform.arguments import Count, Factor
from skipform.compiler.emit import UnsupportedOperation
from skipform.errors import SkipformError
from skipform.files import write_json
from skipform.measure import functional_dimension
from skipform.measure.line import line_of
from skipform.measure.program import Program
from skipform.measure.rank import finite, points_within, ranks
from skipform.nets import features
from skipform.runs import Run, finished
from skipform.training import launch


def main(
    folder: str,
    *,
    out: str,
    slices: Count = 3,
    batch: Count = 16,
    memory: Factor = 8.0,
    executor: Literal["local", "submitit"] = "local",
    workers: Count | None = None,
    slurm: dict[str, Any] | None = None,
) -> None:
    """Measure every run of FOLDER (written by `skipform fit`) and write one JSON file; equal nets give equal bytes.

    Per variant, seed, moment (initial, final) and slice k: activation regions and affine pieces on the segment from
    test image 2k to test image 2k + 1; the rank of the Jacobian at test image 2k, of the scores and of the features,
    the input of the last linear layer. Per variant, seed and moment: the functional dimension over the first `batch`
    test images, or over as many of them as `memory` has room for; the row then has their number as
    functional_dimension_images, and no dimension (null) if there is room for none. A net that is not piecewise linear
    (a gate multiplies) has no regions: null, with its ranks. Results are stored in OUT.partial as they come, so that a
    killed measurement continues from there.

    Args:
        folder: The folder of the runs, for example runs/survey/resnet.
        out: The JSON file to write.
        slices: The number of segments.
        batch: The number of images for the functional dimension.
        memory: GiB for the Jacobian of the functional dimension and its decomposition. It is this number, and not the
            free memory of the machine, that decides how many images there are.
        executor: local processes, or submitit for a SLURM cluster.
        workers: Local processes; when not given one per core, or fewer if the memory of the machine is not enough.
        slurm: Parameters of submitit's executor, for example {slurm_partition: cpu}.
    """
    options = {"slices": slices, "batch": batch, "memory": memory}
    if executor == "local" and workers is None:
        workers = processes(finished(folder), batch, memory)
    with launch.over_runs(measure_run, folder, out, options, executor, workers, slurm, Path(__file__)) as rows:
        write_json(out, {"net": Path(folder).name, "batch": batch, "rows": rows})


def processes(runs: list[Run], batch: int, memory: float) -> int:
    """The number of processes that measure these runs at once: one per core, as long as the machine's memory is enough
    for each of them. A process needs a GiB for itself, at most `memory` GiB for a Jacobian with its decomposition, and
    as much again to derive it."""
    rows = batch * max((run.config["net"].get("num_classes", 1) for run in runs), default=1)
    jacobian = 2 * 8 * rows * max((run.metrics["parameters"] for run in runs), default=0)
    needed = 2**30 + 2 * min(memory * 2**30, jacobian)
    return max(1, min(os.cpu_count() or 1, int(psutil.virtual_memory().total // needed)))


def measure_run(
    run: str, when: Literal["initial", "final"], slices: int, batch: int, memory: float
) -> list[dict[str, Any]]:
    """One row per slice for the net of one run at one moment; see `main`."""
    # Nets of this size are slower on several threads, and their sums must not depend on the number of cores.
    torch.set_num_threads(1)
    trained = Run(Path(run)).of_task("classify")
    images = trained.test_images()
    net = trained.net(when)
    common = {"variant": trained.config["variant"], "seed": trained.config["seed"], "when": when}
    common |= dimension_over(net, images[:batch], memory)
    return [common | row for row in measure_slices(net, images, slices)]


def dimension_over(net: nn.Module, images: torch.Tensor, memory: float) -> dict[str, Any]:
    """The functional dimension over the first images, as many as `memory` GiB have room for; see `main`."""
    with torch.no_grad():
        scores = net(images[:1].to(next(net.parameters()))).shape[1]
    number = min(len(images), points_within(int(memory * 2**30), net, scores))
    dimension = functional_dimension(net, images[:number], memory=int(memory * 2**30)) if number else None
    return {
        "functional_dimension": dimension.rank if dimension else None,
        "functional_dimension_gap": finite(dimension.gap) if dimension else None,
        "functional_dimension_most": min(dimension.shape) if dimension else None,
        **({"functional_dimension_images": number} if number < len(images) else {}),
    }


def measure_slices(net: nn.Module, images: torch.Tensor, slices: int) -> list[dict[str, Any]]:
    """The regions and ranks of each slice; see `main`."""
    if 2 * slices > len(images):
        raise SkipformError(f"--slices: {slices}; accepted: at most {len(images) // 2}, for {len(images)} test images")
    inner, rows = features(net), []
    try:
        program = Program.of(net, images[0])  # rewritten once for all slices
    except UnsupportedOperation:
        program = None
    for k in range(slices):
        start, end = images[2 * k], images[2 * k + 1]
        regions = line_of(program, torch.stack([start, end]).flatten(1)) if program else None
        rows.append(
            {
                "slice": k,
                "line_regions": regions.count if regions else None,
                "line_pieces": regions.pieces if regions else None,
                **ranks(net, inner, start),
            }
        )
    return rows
