"""Measure the nets of one experiment, before and after training: regions between test inputs, bounds, ranks."""

import copy
import math
from pathlib import Path
from typing import Any, Literal

import psutil
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from skipform import outputs
from skipform.arguments import Count, Factor
from skipform.compiler.emit import UnsupportedOperation
from skipform.cores import cores
from skipform.errors import SkipformError, first_line
from skipform.files import write_json
from skipform.measure import bounds, functional_dimension, trajectory_length
from skipform.measure.layers import OUTPUT, layer_ranks
from skipform.measure.line import line_of
from skipform.measure.program import Program
from skipform.measure.projection import gaussian
from skipform.measure.rank import finite, ranks
from skipform.nets import features
from skipform.runs import Run, finished
from skipform.sources import fingerprint
from skipform.stages.poolings import poolings
from skipform.stages.subjects import Subject, subject
from skipform.training import launch

# Of nets that are not classifiers: the number of segments and of inputs for the functional dimension, and the number of
# coordinates to which their outputs are projected.
SLICES, BATCH, PROJECTED = 1, 4, 10
WORK = 1e10  # operations that a segment of such a net may take, and the representations of any net: 1 to 4 s of a core
DIRECTIONS = (64, 256)  # of the input, at least and at most, along which representations are differentiated
PATH = 65  # points of a trajectory


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
    test input 2k to test input 2k + 1, with an upper bound of them (its decimal logarithm); how much the net lengthens
    the segment; the rank of the Jacobian at test input 2k, of the scores and of the features, the input of the last
    linear layer (of other nets than classifiers the last representation), and of the representations layer by layer,
    along at most 256 directions of the input. Per variant, seed and moment: the functional dimension over the first
    `batch` test inputs. What cannot be measured is null, with a reason: `line_reason`, `functional_dimension_reason`.
    Nets of other tasks than classify are measured on one segment, or on a stated share of it (line_share), and on four
    inputs; their many outputs are projected to ten numbers for regions and functional dimension, and their Jacobians
    are taken along at most 256 directions too. Per experiment: a proof for each of its max poolings
    (stages/poolings.py). Results are stored in OUT.partial as they come, so that a killed measurement continues.

    Args:
        folder: The folder of the runs, for example runs/survey/resnet.
        out: The JSON file to write.
        slices: The number of segments.
        batch: The number of inputs for the functional dimension.
        memory: GiB for the Jacobian of the functional dimension and its decomposition. A larger one is computed by
            rows, each of which is projected; the row of the record then says so (functional_dimension_by).
        executor: local processes, or submitit for a SLURM cluster.
        workers: Local processes; when not given one per core, or fewer if the memory of the machine is not enough.
        slurm: Parameters of submitit's executor, for example {slurm_partition: cpu}.
    """
    outputs.check_file(out, suffixes=[".json"])
    runs = finished(folder)
    if not runs:
        raise SkipformError(f"{folder}: no finished runs (with summary.json) in it; `skipform fit` writes them")
    if executor == "local" and workers is None:
        workers = processes(runs, batch, memory)
    package = Path(__file__).parents[1]
    rooms = ("compiler", "measure", "theory")
    sources = {*(path for room in rooms for path in package.glob(f"{room}/*.py")), *Path(__file__).parent.glob("*.py")}
    options = {"slices": slices, "batch": batch, "memory": memory}
    with outputs.work_folder(out, command="measure") as partial:
        rows = launch.run_grid(
            measure_run,
            [{"run": str(run.folder), "when": when, **options} for run in runs for when in ("initial", "final")],
            partial,
            digest=fingerprint([run.checksums for run in runs], {*sources, package / "runs.py"}),
            title=f"measure {Path(folder).name}",
            executor=executor,
            workers=workers,
            slurm=slurm,
        )
        found = {"net": Path(folder).name, "batch": batch, "rows": [row for part in rows for row in part]}
        write_json(out, found | {"poolings": poolings(runs)})


def processes(runs: list[Run], batch: int, memory: float) -> int:
    """The number of processes that measure these runs at once: one per core, as long as the machine's memory is enough
    for each of them. A process needs a GiB for itself, at most `memory` GiB for a Jacobian with its decomposition, and
    as much again to derive it."""
    rows = batch * max((run.config["net"].get("num_classes", 1) for run in runs), default=1)
    jacobian = 2 * 8 * rows * max((run.metrics["parameters"] for run in runs), default=0)
    needed = 2**30 + 2 * min(memory * 2**30, jacobian)
    return max(1, min(cores(), int(psutil.virtual_memory().total // needed)))


def measure_run(
    run: str, when: Literal["initial", "final"], slices: int, batch: int, memory: float
) -> list[dict[str, Any]]:
    """One row per slice for the net of one run at one moment; see `main`."""
    # Nets of this size are slower on several threads, and their sums must not depend on the number of cores.
    torch.set_num_threads(1)
    trained = Run(Path(run))
    measured = subject(trained, when, max(2 * SLICES, BATCH))
    if not measured.classifier:
        slices, batch = min(slices, SLICES), min(batch, BATCH)
    common = {"variant": trained.config["variant"], "seed": trained.config["seed"], "when": when}
    common |= dimension_over(measured, batch, memory)
    return [common | row for row in measure_slices(measured, slices)]


def dimension_over(measured: Subject, batch: int, memory: float) -> dict[str, Any]:
    """The functional dimension over the first `batch` inputs; see `main`."""
    net, inputs = measured.net, measured.inputs[:batch]
    notes: dict[str, Any] = {}
    if not measured.classifier:
        net, notes = projected(net, inputs[:1], PROJECTED), {"functional_dimension_images": len(inputs)}
    try:
        dimension = functional_dimension(net, inputs, memory=int(memory * 2**30))
    except SkipformError as error:
        return dict.fromkeys(DIMENSION) | notes | {"functional_dimension_reason": first_line(error)}
    values = (dimension.rank, finite(dimension.gap), min(dimension.shape))
    if dimension.by != "rows":
        notes |= {"functional_dimension_by": dimension.by}
    return dict(zip(DIMENSION, values, strict=True)) | notes


DIMENSION = ("functional_dimension", "functional_dimension_gap", "functional_dimension_most")


def projected(net: nn.Module, inputs: Tensor, numbers: int) -> nn.Module:
    """The net followed by a fixed random linear map of its outputs to a few numbers, unless it has no more."""
    with torch.no_grad():
        outputs = net(inputs[:1].to(next(net.parameters()))).numel()
    if outputs <= numbers:
        return net
    last = nn.Linear(outputs, numbers, bias=False).requires_grad_(False)
    last.weight.copy_(gaussian(numbers, outputs))
    return nn.Sequential(net, nn.Flatten(), last).eval()


def measure_slices(measured: Subject, slices: int) -> list[dict[str, Any]]:
    """The regions, lengths and ranks of each slice; see `main`."""
    net, inputs = measured.net, measured.inputs
    if 2 * slices > len(inputs):
        raise SkipformError(f"--slices: {slices}; accepted: at most {len(inputs) // 2}, for {len(inputs)} test images")
    narrow = net if measured.classifier else projected(net, inputs, PROJECTED)
    try:
        program, reason = Program.of(narrow, inputs[0]), None  # rewritten once for all slices
    except UnsupportedOperation as unsupported:
        program, reason = None, first_line(unsupported)
    cost = operations(net, inputs[:1])
    share = 1.0 if measured.classifier or not program else share_within(WORK / cost, program)
    inner = features(net) if measured.classifier else None
    rows = []
    for k in range(slices):
        start, end = inputs[2 * k], torch.lerp(inputs[2 * k], inputs[2 * k + 1], share)
        regions = line_of(program, torch.stack([start, end]).flatten(1)) if program else None
        path = torch.stack([torch.lerp(start, end, i / (PATH - 1)) for i in range(PATH)])
        row = {
            "slice": k,
            "line_regions": regions.count if regions else None,
            "line_pieces": regions.pieces if regions else None,
            "line_bound": bound(program) if program else None,
            "line_reason": reason,
            "line_share": share,
            "growth": finite(trajectory_length(net, path).growth),
        }
        rows.append(row | (ranks(net, inner, start) if inner else {}) | by_layer(measured, start, WORK / cost))
    return rows


def operations(net: nn.Module, example: Tensor) -> int:
    """The number of operations of a forward pass, at least 1."""
    frozen = copy.deepcopy(net).requires_grad_(False)  # the counter fails at a part whose input is a parameter
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        frozen(example.to(next(net.parameters())))
    return max(1, counter.get_total_flops())


def share_within(passes: float, program: Program) -> float:
    """The share of a segment, a power of 1/2, that is cut at most `passes` times if every ReLU cuts the whole once."""
    units = sum(step.units for step in program.steps)
    return 0.5 ** max(0, math.ceil(math.log2(max(units, 1) / passes)))


def bound(program: Program) -> float:
    """The decimal logarithm of the smallest upper bound of the regions on a segment (`measure.bounds`)."""
    *hidden, _ = program.steps
    skips = any(step.width != step.units for step in hidden)
    return math.log10(bounds([step.units for step in hidden], 1, skips=skips).upper)


def by_layer(measured: Subject, x: Tensor, passes: float) -> dict[str, Any]:
    """The ranks of the representations, along as many directions as `passes` allow for; one of them stands for the
    features of a net that is not a classifier."""
    names = measured.layers()
    least, most = DIRECTIONS
    found = layer_ranks(measured.net, x, names, directions=int(min(max(passes, least), most)))
    scores = found[OUTPUT]
    row: dict[str, Any] = {"layers": [{"name": n, "rank": found[n].rank, "dim": found[n].shape[0]} for n in names]}
    row["directions"] = scores.shape[1]
    if measured.classifier:
        return row
    inner = found[measured.features()]
    return row | {
        "jacobian_rank": scores.rank,
        "rank_gap": finite(scores.gap),
        "output_dim": scores.shape[0],
        "feature_rank": inner.rank,
        "feature_rank_gap": finite(inner.gap),
        "feature_dim": inner.shape[0],
        "feature_most": min(inner.shape),
    }
