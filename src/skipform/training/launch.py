"""What is given to an executor: the runs of an experiment, a grid of measurements; and one run on several devices.

Lightning is imported only in the functions that need it, because measuring does not.

A cell of a grid is the keyword arguments of a function. Its result is written, whole or not at all, into a folder next
to the output, under a name made from the arguments; a killed grid that is started again reads these results and
computes only the missing ones.
"""

import hashlib
import json
import multiprocessing
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from multiprocessing.connection import wait as wait_for
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from tqdm import tqdm

from skipform import outputs
from skipform.cores import cores
from skipform.errors import SkipformError, one_line
from skipform.files import defined, digest_of, fields, read_json, write_json
from skipform.runs import finished
from skipform.sources import fingerprint
from skipform.training.executor import KILLED, Executor, Kind, leave_signals_to_the_parent, signals_blocked

if TYPE_CHECKING:
    from skipform.training.experiment import Experiment


def launched() -> bool:
    """Whether torchrun or srun has started this process, as one of several."""
    from lightning.fabric.plugins.environments import SLURMEnvironment, TorchElasticEnvironment

    return TorchElasticEnvironment.detect() or SLURMEnvironment.detect()


def rank() -> int:
    """The number of this process among those that torchrun or srun started; 0 if it is the only one."""
    from lightning.fabric.plugins.environments import SLURMEnvironment, TorchElasticEnvironment

    for environment in (TorchElasticEnvironment, SLURMEnvironment):
        if environment.detect():
            return environment().global_rank()
    return 0


def executor_for(
    experiment: "Experiment",
    runs: int,
    *,
    executor: Kind = "local",
    workers: int | None = None,
    devices: tuple[int, ...] | None = None,
    slurm: dict[str, Any] | None = None,
) -> Executor:
    """Where the runs of an experiment are trained, by default in local processes, at most `runs` of them at once:
    cores / threads on a CPU with a fixed number of threads, or one for each of several GPUs.

    devices: the numbers of the GPUs, among those that CUDA_VISIBLE_DEVICES lets this process see.

    Raises:
        SkipformError: one line, about an option that the experiment or this machine does not take.
    """
    trainer, available = experiment.trainer, cores()
    processes = trainer["devices"] * trainer["num_nodes"]
    if workers is not None and (workers < 1 or (workers > 1 and processes > 1)):
        raise SkipformError(
            f"--workers: {workers}; accepted: 1 or more, and 1 where each run has {processes} processes"
        )
    if executor == "submitit":
        if processes > 1 or workers or devices:
            option = f"trainer.devices: {processes}" if processes > 1 else "--workers" if workers else "--devices"
            raise SkipformError(f"{option}: not with --executor submitit, whose jobs are one process and one GPU each")
        gpus = {} if trainer["accelerator"] == "cpu" else {"gpus_per_node": 1}
        return Executor("submitit", threads=experiment.threads, slurm=gpus | (slurm or {}))
    if slurm:
        raise SkipformError("--slurm: for --executor submitit; accepted: both, or neither")
    visible = visible_devices() if trainer["accelerator"] in ("auto", "gpu") and processes == 1 else ()
    if devices is not None:
        names = _names(devices, visible, trainer["accelerator"], processes)
    else:
        names = visible if min(len(visible), runs) > 1 and workers != 1 else ()
    if names:
        workers = min(workers or len(names), runs)
        return Executor(
            workers=workers, devices=names, fresh=True, threads=experiment.threads or max(1, available // workers)
        )
    on_cpu = trainer["accelerator"] == "cpu" and processes == 1 and experiment.threads
    workers = min(workers or (available // experiment.threads if on_cpu else 1) or 1, runs)
    return Executor(workers=workers, forked=trainer["accelerator"] == "cpu", threads=experiment.threads)


def visible_devices() -> tuple[str, ...]:
    """The GPUs that torch sees, by the names that CUDA_VISIBLE_DEVICES has for them. CUDA stays unused in this process,
    because device_count asks the driver."""
    count = torch.cuda.device_count()
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    return tuple(given.split(",") if given else map(str, range(count)))[:count]


def _names(devices: tuple[int, ...], visible: tuple[str, ...], accelerator: str, processes: int) -> tuple[str, ...]:
    """The names of the GPUs with these numbers."""
    given = f"--devices {','.join(map(str, devices))}"
    if accelerator not in ("auto", "gpu") or processes > 1:
        runs = f"{processes} processes a run" if processes > 1 else f"trainer.accelerator {accelerator}"
        raise SkipformError(f"{given}: {runs}; accepted: runs of one process on a GPU")
    if not visible:
        raise SkipformError(f"{given}: no GPU is visible to torch; accepted: a machine with GPUs, or no --devices")
    if not devices or len(set(devices)) < len(devices) or not set(devices) <= set(range(len(visible))):
        accepted = ", ".join(map(str, range(len(visible))))
        raise SkipformError(f"{given}; accepted: one or more different numbers of GPUs, of {accepted}")
    return tuple(visible[number] for number in devices)


Job = TypeVar("Job")


def side_by_side(
    function: Callable[[Job], Any], jobs: list[Job], workers: int, end: float
) -> Iterator[tuple[Job, bool]]:
    """Do function(job=job) for the jobs, in order, `workers` of them at once, each in a process of its own, so that a
    GPU's memory is free again afterwards. Yields a job when it has ended, and whether it has succeeded; a line about a
    failed one is written to standard error. When time.monotonic() is `end`, the jobs that still run are killed.

    function: importable by its name. The cores are divided among the workers.
    """
    executor = Executor(workers=workers, fresh=True, threads=max(1, cores() // workers))
    named = {str(number): {"job": job} for number, job in enumerate(jobs)}
    for name, outcome in executor.outcomes(function, named, Path(), until=end):
        if outcome.error:
            print(one_line(outcome.error), file=sys.stderr, flush=True)
        yield jobs[int(name)], outcome.error is None


def on_devices(main: Callable[[list[str]], int], argv: list[str], devices: int, nodes: int) -> int:
    """Run main(argv) in one process per device, like torchrun, but forked, so that nothing is imported again. This is
    safe as long as no device has been used."""
    if nodes > 1:
        raise SkipformError(
            f"trainer.num_nodes: {nodes}; start the same command on every node with srun, or with torchrun --no-python"
        )
    from lightning.fabric.plugins.environments.lightning import find_free_network_port

    context = multiprocessing.get_context("fork")
    failures = context.SimpleQueue()
    arguments = (main, argv, devices, find_free_network_port(), failures)
    ranks = [context.Process(target=_start_rank, args=(rank, *arguments)) for rank in range(devices)]
    try:
        with signals_blocked():
            for process in ranks:
                process.start()
        running: dict[Any, Any] = {process.sentinel: process for process in ranks}
        while running:
            ended = [running.pop(sentinel) for sentinel in wait_for(list(running))]
            for process in ended:
                process.join()
            # The others fail after a process that was killed, or that failed, because they wait for it.
            if any(process.exitcode < 0 for process in ended):
                raise SkipformError(KILLED)
            if failed := [process.exitcode for process in ended if process.exitcode]:
                raise RuntimeError(f"a process ended with status {failed[0]}") if failures.empty() else failures.get()
    finally:
        for process in ranks:
            if process.is_alive():
                process.kill()
                process.join()
    return 0


def _start_rank(
    rank: int, main: Callable[[list[str]], int], argv: list[str], processes: int, port: int, failures: Any
) -> None:
    leave_signals_to_the_parent()
    ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes, "GROUP_RANK": 0}
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "skipform"}
    os.environ |= {key: str(value) for key, value in (ranks | where).items()}
    try:
        main(argv)
    except BaseException as error:
        error.add_note(traceback.format_exc()[-20_000:])  # which does not go through the queue otherwise
        failures.put(error)
        sys.exit(1)


Cell = dict[str, Any]


def run_grid(
    function: Callable[..., Any],
    cells: list[Cell],
    folder: Path,
    *,
    digest: str,
    title: str,
    executor: Kind = "local",
    workers: int | None = None,
    slurm: dict[str, Any] | None = None,
) -> list[Any]:
    """[function(**cell) for cell in cells], in order; results are JSON values and are written to `folder` as they come.

    The function must be importable by its name, its arguments JSON values. `digest`: a digest of everything else that
    decides a result (sources, weights); results with another digest are not used. `workers`: local processes, by
    default one per core; 1 means this process. `slurm`: parameters of the submitit executor (slurm_partition, ...).
    """
    paths = [folder / f"{_key(cell, digest)}.json" for cell in cells]
    outputs.mark(folder, [*(path.name for path in paths), "submitit/"])
    results = {path: result for path in paths if (result := _stored(path)) is not None}
    missing = {_name(cell): (path, cell) for path, cell in zip(paths, cells, strict=True) if path not in results}
    jobs = {name: cell for name, (_, cell) in missing.items()}
    workers = min(workers or cores(), len(missing))
    where = Executor(executor, workers=workers, slurm=slurm or {})
    with (
        tqdm(total=len(cells), initial=len(results), desc=title, unit="cell", leave=False, disable=None) as bar,
        closing(where.results(function, jobs, folder / "submitit")) as ended,
    ):
        for name, result in ended:
            path, _ = missing[name]
            results[path] = defined(result)
            write_json(path, {"result": results[path], "sha256": digest_of(results[path])})
            bar.update()
    return [results[path] for path in paths]


def _stored(path: Path) -> Any:
    """The result of a cell that an earlier process has written; None if there is none, or it is damaged."""
    try:
        stored = fields(read_json(path), {"result": Any, "sha256": str}, path)
    except SkipformError:
        return None
    return stored["result"] if stored["sha256"] == digest_of(stored["result"]) else None


def _name(cell: Cell) -> str:
    """What an error calls a cell: run=runs/survey/resnet/plain/seed0, when=final, slices=3."""
    return ", ".join(f"{key}={value}" for key, value in cell.items())


def _key(cell: Cell, digest: str) -> str:
    return hashlib.sha256(json.dumps([digest, cell], sort_keys=True).encode()).hexdigest()[:24]


@contextmanager
def over_runs(
    function: Callable[..., list[dict[str, Any]]],
    folder: str,
    out: str,
    options: dict[str, Any],
    executor: Kind,
    workers: int | None,
    slurm: dict[str, Any] | None,
    source: Path,
) -> Iterator[list[dict[str, Any]]]:
    """Yield the rows of function(run=..., when=..., **options) over the runs of `folder` and both moments, in order.

    The rows of every call are stored in OUT.partial, under a digest of the runs, the measuring sources and `source`,
    until the block that writes `out` has ended.
    """
    outputs.check_file(out, suffixes=[".json"])
    runs = [run.of_task("classify") for run in finished(folder)]
    if not runs:
        raise SkipformError(f"{folder}: no finished runs (with summary.json) in it; `skipform fit` writes them")
    package = Path(__file__).parent.parent
    trained = [run.checksums for run in runs]
    sources = {
        *package.glob("compiler/*.py"),
        *package.glob("measure/*.py"),
        *package.glob("theory/*.py"),
        package / "runs.py",
        Path(__file__),
        source,
    }
    with outputs.work_folder(out, command=source.stem) as partial:
        results = run_grid(
            function,
            [{"run": str(run.folder), "when": when, **options} for run in runs for when in ("initial", "final")],
            partial,
            digest=fingerprint(trained, sources),
            title=f"measure {Path(folder).name}",
            executor=executor,
            workers=workers,
            slurm=slurm,
        )
        yield [row for rows in results for row in rows]
