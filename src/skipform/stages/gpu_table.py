"""Train the rows of experiments/gpu/table.yaml on one GPU, in their order, as long as the time lasts.

    skipform gpu_table --minutes 30 --download

Runs that are not finished in time continue after their last epoch when the same command is given again.
"""

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from skipform import outputs, results
from skipform.arguments import Count, Factor, Seed
from skipform.errors import SkipformError
from skipform.files import fields, read_yaml
from skipform.runs import FILES, Run, data_root, summary_of
from skipform.training import launch, plan
from skipform.training.experiment import Experiment, read
from skipform.training.run import UNFINISHED_FILES

# For --trial: one step on the CPU with a batch of two images, in place of the papers' recipes.
TRIAL = {
    "data": {"batch_size": 2, "limit": 2},
    "optimizer": {"lr": 1e-6},  # of so few images a full step diverges
    "trainer": {"max_epochs": 1, "accelerator": "cpu", "precision": "32-true", "fast": False},
}


@dataclass(frozen=True)
class Job:
    """One run: `variant` of `experiment` with `seed`, in FOLDER/<variant>/seed<seed>."""

    experiment: Experiment
    variant: str
    seed: int
    folder: Path
    command: str
    storage: dict[str, Any]


def main(
    *,
    minutes: Factor,
    table: Path = Path("experiments/gpu/table.yaml"),
    runs: str | None = None,
    out: str = "results/gpu.csv",
    at_once: Count | None = None,
    download: bool = False,
    trial: bool = False,
) -> int:
    """Train the rows of the table at scale paper, in their order, until the minutes are over; exit 1 if a run fails.

    A row is written as soon as all its seeds are finished, in place of an earlier row of the same variant. Runs that
    the end interrupts are resumed after their last epoch when the command is given again.

    Args:
        minutes: The time after which it stops.
        table: The rows (experiments and their variants), the seeds, and the number of runs at once.
        runs: The folder of the runs; by default runs/gpu, or runs/gpu_trial.
        out: The CSV file that gains the finished rows.
        at_once: Runs that share the GPU; by default as many as the table says.
        download: Fetch the data if they are missing.
        trial: Try every row on the CPU, with one step a run; nothing is written to the CSV file.
    """
    end = time.monotonic() + 60 * minutes
    outputs.check_file(out, suffixes=[".csv"])
    folder = Path(runs or ("runs/gpu_trial" if trial else "runs/gpu"))
    outputs.check_folder(folder, "--runs", "gpu_table")
    if not table.is_file():
        raise SkipformError(f"{table}: no such file; a checkout of the project has experiments/gpu/table.yaml")
    if not trial and not has_gpu():
        raise SkipformError("no GPU is visible to torch; accepted: a machine with one, or --trial")
    read_table = fields(read_yaml(table), {"rows": list, "seeds": list[Seed], "at_once": Count}, table)
    storage = {"root": data_root(), "download": download}
    command = f"skipform gpu_table --minutes {minutes:g}" + " --trial" * trial
    jobs = [
        Job(experiment, variant, seed, folder / experiment.name, command, storage)
        for experiment in _experiments(table, read_table["rows"], trial, storage)
        for variant in experiment.variants
        for seed in read_table["seeds"]
    ]
    if not jobs or len({(job.folder, job.variant, job.seed) for job in jobs}) < len(jobs):
        raise SkipformError(f"{table}: accepted: one or more rows, variants and seeds, and no run twice")
    with outputs.alone(folder, "gpu_table"):
        places = [f"{job.experiment.name}/{job.variant}/seed{job.seed}" for job in jobs]
        files = [f"{place}/{name}" for place in places for name in (*FILES, *UNFINISHED_FILES)]
        outputs.mark(folder, files, "gpu_table")
        finished, failed = _train(jobs, at_once or read_table["at_once"], end, None if trial else out)
    print(
        f"{finished} of {len(jobs)} runs are finished, {failed} failed"
        + "; run it again to go on" * (finished < len(jobs))
    )
    return int(failed > 0)


def has_gpu() -> bool:
    """Whether torch sees a GPU. CUDA stays unused in this process, because device_count asks the driver."""
    return torch.cuda.device_count() > 0


def _experiments(table: Path, rows: list[Any], trial: bool, storage: dict[str, Any]) -> list[Experiment]:
    """The experiments of the rows, each with the variants of its row only, after all checks that need no training."""
    experiments = []
    for row in rows:
        fields(row, {"experiment": str, "variants": list[str]}, f"{table}: rows")
        path = table.parent.parent / f"{row['experiment']}.yaml"
        experiment = read(path, "paper", {"wandb": "disabled"} | (TRIAL if trial else {}))
        if unknown := [name for name in row["variants"] if name not in experiment.variants]:
            accepted = ", ".join(experiment.variants)
            raise SkipformError(f"{table}: {row['experiment']}: unknown variant {unknown[0]!r}; accepted: {accepted}")
        experiments.append(replace(experiment, variants={name: experiment.variants[name] for name in row["variants"]}))
        plan.check(path, experiments[-1], storage)
    return experiments


def _train(jobs: list[Job], workers: int, end: float, out: str | None) -> tuple[int, int]:
    """Train, write each finished row to `out`, and return the numbers of finished and of failed runs."""
    seeds: dict[Path, dict[int, Run]] = {}  # folder of a variant -> seed -> finished run
    failed = 0
    for job, success in launch.side_by_side(train, jobs, workers, end):
        if not success:
            failed += 1
            print(f"{job.experiment.name} {job.variant} seed {job.seed}: failed", flush=True)
            continue
        folder = job.folder / job.variant
        run = seeds.setdefault(folder, {})[job.seed] = Run(folder / f"seed{job.seed}")
        name, unit = run.metrics["shown"]
        score = run.metrics[f"test_{name}"]
        seconds = run.provenance["training_seconds"]
        print(
            f"{job.experiment.name} {job.variant} seed {job.seed}: test {name} {score:.2f} {unit}, {seconds:.0f} s",
            flush=True,
        )
        of_row = [other.seed for other in jobs if other.folder == job.folder and other.variant == job.variant]
        if out and seeds[folder].keys() == set(of_row):
            finished = [seeds[folder][seed] for seed in of_row]
            trained = summary_of(of_row, [run.metrics for run in finished])
            results.add(out, results.row_of(job.experiment.name, job.variant, trained, finished))
    return sum(map(len, seeds.values())), failed


def train(job: Job) -> None:
    """Train one run, in a process of its own."""
    bar = plan.progress_bar(0, shown=False)
    plan.train(job.folder, job.experiment, job.command, job.storage, job.variant, job.seed, bar)
