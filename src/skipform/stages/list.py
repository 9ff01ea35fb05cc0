"""`skipform list`: the names of everything that can be built, trained and run, and what training takes."""

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from skipform import nets, shipped, tasks
from skipform.data import sets
from skipform.errors import SkipformError
from skipform.files import read_text, read_yaml


def main(*, root: Path | None = None, scale: str | None = None) -> None:
    """Print the networks, the data sets, the tasks and the experiment files; or what the experiments take at a scale.

    Per experiment: runs (variants x seeds), hours of a GPU or of a CPU, the memory of its largest run, and what its
    runs leave on the disk, as its file states them. A dash stands for what a file does not state.

    Args:
        root: The folder that holds experiments/; by default the working directory, or where skipform is installed.
        scale: A file of experiments/scale, such as paper.
    """
    if root is not None and not root.is_dir():
        raise SkipformError(f"--root {root}: no such folder; accepted: the folder that holds experiments/")
    root = shipped.root() if root is None else root
    if scale is not None:
        print("\n".join(table(root, scale)))
        return
    experiments = [f"{folder}/{file.stem}" for folder, file in experiment_files(root)]
    kinds = {"networks": nets.names(), "data sets": sorted(sets()), "tasks": tasks.names(), "experiments": experiments}
    for title, names in kinds.items():
        print(f"{title}:")
        for name in names or [f"none in {root}; a checkout of the project has some"]:
            print(f"  {name}")


def experiment_files(root: Path) -> Iterator[tuple[str, Path]]:
    """The experiment files in the folders of root/experiments, each with the name of its folder."""
    for folder in ("survey", "claims", "gpu", "cpu"):
        for file in sorted((root / "experiments" / folder).glob("*.yaml")):
            if file.stem != "table":  # rows of the other experiments
                yield folder, file


class Row(NamedTuple):
    """What the runs of one or more experiments take; NaN for what no file states. memory: of one run, in bytes."""

    name: str
    runs: int
    gpu_hours: float
    cpu_hours: float
    memory: float
    disk: float


def table(root: Path, scale: str) -> list[str]:
    """The lines of the table: a row per experiment, and the sums of the pipeline's and of all."""
    from skipform.training.cost import duration, size_of

    rows = rows_of(root, scale)
    pipeline = [row for row in rows if row.name.startswith(("survey/", "claims/"))]
    rows += [_sum("survey and claims, the pipeline", pipeline), _sum("all", rows)]
    lines = [f"{'':32} {'runs':>5} {'of a GPU':>10} {'of a CPU':>10} {'memory':>10} {'disk':>10}"]
    for row in rows:
        amounts = (duration(row.gpu_hours), duration(row.cpu_hours), size_of(row.memory), size_of(row.disk))
        shown = (f"{'-' if 'nan' in amount else amount:>10}" for amount in amounts)
        lines.append(" ".join([f"{row.name:32} {row.runs:5}", *shown]))
    return [*lines, "As the experiment files state it under # Cost; memory is that of the largest run."]


def rows_of(root: Path, scale: str) -> list[Row]:
    """One row per experiment file, for the seeds of its own command, or else those of params.yaml."""
    from skipform.training.cost import Cost, stated
    from skipform.training.experiment import read

    params = root / "params.yaml"
    shared = read_yaml(params).get("seeds", [0]) if params.is_file() else [0]
    unknown, rows = Cost(math.nan, True, math.nan, math.nan), []
    for folder, file in experiment_files(root):
        own = re.search(r"^# Run .*--seeds((?: \d+)+)", read_text(file), re.MULTILINE)
        seeds = len(own[1].split()) if own else len(shared)
        cost = stated(file).get(scale, unknown)
        hours = seeds * cost.hours
        gpu, cpu = (hours, math.nan) if cost.on_gpu else (math.nan, hours)
        runs = seeds * len(read(file, scale).variants)
        rows.append(Row(f"{folder}/{file.stem}", runs, gpu, cpu, cost.memory, seeds * cost.disk))
    return rows


def _sum(name: str, rows: list[Row]) -> Row:
    """The sums of what is stated, and the largest memory."""

    def stated(key: str) -> list[float]:
        return [x for row in rows if not math.isnan(x := getattr(row, key))] or [math.nan]

    gpu, cpu, disk = (sum(stated(key)) for key in ("gpu_hours", "cpu_hours", "disk"))
    return Row(name, sum(row.runs for row in rows), gpu, cpu, max(stated("memory")), disk)
