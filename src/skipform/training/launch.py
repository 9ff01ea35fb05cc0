"""Everything that starts processes: runs in parallel, one run on several devices, a grid of measurements.

Lightning is imported only in the functions that need it, because measuring does not.

A cell of a grid is the keyword arguments of a function. Its result is written, whole or not at all, into a folder next
to the output, under a name made from the arguments; a killed grid that is started again reads these results and
computes only the missing ones.
"""

import hashlib
import json
import logging
import multiprocessing
import os
import signal
import sys
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_EXCEPTION, ProcessPoolExecutor, as_completed, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.connection import wait as wait_for
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TextIO, TypeVar

import torch
from torch.multiprocessing import ProcessExitedException, ProcessRaisedException
from tqdm import tqdm

from skipform import outputs
from skipform.errors import SkipformError, one_line, shown
from skipform.files import defined, fields, fingerprint, read_json, write_json
from skipform.runs import finished

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


def configure_process(threads: int) -> None:
    """Set what every process that trains needs: its number of threads (0: torch's own), no messages of Lightning."""
    if threads:
        torch.set_num_threads(threads)
    for library in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(library).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning.*")


def worker_count(given: int | None, experiment: "Experiment", runs: int) -> int:
    """The number of runs to train in parallel: `given`, or by default cores / threads if the runs are on a CPU with a
    fixed number of threads, otherwise one; at most `runs`."""
    processes = experiment.trainer["devices"] * experiment.trainer["num_nodes"]
    if given is not None and (given < 1 or (given > 1 and processes > 1)):
        raise SkipformError(f"--workers: {given}; accepted: 1 or more, and 1 where each run has {processes} processes")
    on_cpu = experiment.trainer["accelerator"] == "cpu" and processes == 1 and experiment.threads
    return min(given or ((os.cpu_count() or 1) // experiment.threads if on_cpu else 1) or 1, runs)


Train = Callable[[str, int, Any], dict[str, Any]]  # variant, seed, progress bar -> metrics


@contextmanager
def in_workers(train: Train, runs: list[tuple[str, int]], workers: int, threads: int, bar: tqdm) -> Iterator[Train]:
    """Start `train` for all `runs` in `workers` processes. Yields a function that waits for one run and returns its
    metrics; meanwhile the bar shows the steps of all runs. The first failure, or Ctrl-C, kills all workers."""
    # A forked worker does not repeat the imports of this process, which take seconds; only on Linux is forking
    # reliable.
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "forkserver")
    counters = context.RawArray("q", 2 * len(runs))
    pool = ProcessPoolExecutor(workers, context, _start_worker, (threads, counters))
    steps = bar.total

    def wait_for_run(label: str, seed: int, bar: tqdm) -> dict[str, Any]:
        done = False
        while not done:
            ended, _ = wait(jobs.values(), timeout=0.1, return_when=FIRST_EXCEPTION)
            for job in ended:
                job.result()  # raises what the run raised
            done = jobs[label, seed].done()
            bar.total = steps + sum(counters[::2])
            bar.update(sum(counters[1::2]) - bar.n)
        return jobs[label, seed].result()

    try:
        jobs = {run: pool.submit(_train_in_worker, train, *run, i) for i, run in enumerate(runs)}
        yield wait_for_run
    except BaseException as failure:
        _kill_workers()
        if isinstance(failure, BrokenProcessPool):
            raise SkipformError(
                "a worker was killed, perhaps because memory ran out; the same command resumes, also with fewer"
                " --workers"
            ) from None
        raise
    finally:
        pool.shutdown(cancel_futures=True)


Job = TypeVar("Job")


def side_by_side(
    function: Callable[[Job], Any], jobs: list[Job], workers: int, end: float
) -> Iterator[tuple[Job, bool]]:
    """Do function(job) for the jobs, in order, `workers` of them at once, each in a process of its own, so that a GPU's
    memory is free again afterwards. Yields a job when it has ended, and whether it has succeeded; a failed one has
    written a line to standard error. When time.monotonic() is `end`, the jobs that still run are killed.

    function: importable by its name. The cores are divided among the workers.
    """
    context = multiprocessing.get_context("forkserver")  # it imports once for all, and no device is in use in it
    context.set_forkserver_preload([function.__module__])
    threads = max(1, (os.cpu_count() or 1) // workers)
    waiting, running = deque(jobs), dict[Any, tuple[Job, Any]]()
    try:
        while (waiting or running) and (left := end - time.monotonic()) > 0:
            while waiting and len(running) < workers:
                job = waiting.popleft()
                process = context.Process(target=_alone, args=(function, job, threads))
                process.start()
                running[process.sentinel] = job, process
            for sentinel in wait_for(list(running), timeout=left):
                job, process = running.pop(sentinel)
                process.join()
                yield job, process.exitcode == 0
    finally:
        for _, process in running.values():
            process.kill()
            process.join()


def _alone(function: Callable[[Job], Any], job: Job, threads: int) -> None:
    _leave_signals_to_the_parent()
    configure_process(threads)
    try:
        function(job)
    except (SkipformError, torch.OutOfMemoryError) as failure:
        sys.exit(one_line(failure))


class WorkerProgress:
    """A worker's progress bar: two counters of its run, which `in_workers` adds up."""

    counters: ClassVar[Any]  # of every run: the change of its total number of steps, and the steps done

    def __init__(self, run: int) -> None:
        self.run = run

    @property
    def total(self) -> int:
        return self.counters[2 * self.run]

    @total.setter
    def total(self, value: int) -> None:
        self.counters[2 * self.run] = value

    def update(self) -> None:
        self.counters[2 * self.run + 1] += 1

    def set_postfix_str(self, text: str, refresh: bool = True) -> None:
        pass

    def write(self, text: str, file: TextIO) -> None:
        print(text, file=file, flush=True)


def _kill_workers() -> None:
    for process in multiprocessing.active_children():
        process.kill()


def _train_in_worker(train: Train, label: str, seed: int, run: int) -> dict[str, Any]:
    return train(label, seed, WorkerProgress(run))


def _start_worker(threads: int, counters: Any) -> None:
    _leave_signals_to_the_parent()
    configure_process(threads)
    WorkerProgress.counters = counters


def _leave_signals_to_the_parent() -> None:
    """Let a worker ignore Ctrl-C, which is for the process that started it, and end when that process ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def exit_with_parent() -> None:
        wait_for([multiprocessing.parent_process().sentinel])  # type: ignore[union-attr]
        os._exit(1)

    threading.Thread(target=exit_with_parent, daemon=True).start()


def on_devices(main: Callable[[list[str]], int], argv: list[str], devices: int, nodes: int) -> int:
    """Run main(argv) in one process per device, like torchrun, but forked, so that nothing is imported again. This is
    safe as long as no device has been used."""
    if nodes > 1:
        raise SkipformError(
            f"trainer.num_nodes: {nodes}; start the same command on every node with srun, or with torchrun --no-python"
        )
    from lightning.fabric.plugins.environments.lightning import find_free_network_port

    failures = torch.multiprocessing.get_context("fork").SimpleQueue()
    arguments = (main, argv, devices, find_free_network_port(), failures)
    try:
        torch.multiprocessing.start_processes(_start_rank, arguments, nprocs=devices, start_method="fork")
    except (ProcessRaisedException, ProcessExitedException):
        if failures.empty():
            raise
        raise SkipformError(failures.get()) from None
    except BaseException:
        _kill_workers()
        raise
    return 0


def _start_rank(
    rank: int, main: Callable[[list[str]], int], argv: list[str], processes: int, port: int, failures: Any
) -> None:
    ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes, "GROUP_RANK": 0}
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "skipform"}
    os.environ |= {key: str(value) for key, value in (ranks | where).items()}
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        main(argv)
    except SkipformError as error:
        failures.put(str(error))
        raise


Executor = Literal["local", "submitit"]
Cell = dict[str, Any]


def run_grid(
    function: Callable[..., Any],
    cells: list[Cell],
    folder: Path,
    *,
    digest: str,
    title: str,
    executor: Executor = "local",
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
    missing = {path: cell for path, cell in zip(paths, cells, strict=True) if path not in results}
    with tqdm(total=len(cells), initial=len(results), desc=title, unit="cell", leave=False, disable=None) as bar:
        for path, result in _run_cells(function, missing, folder, executor, workers, slurm or {}):
            results[path] = defined(result)
            write_json(path, {"result": results[path], "sha256": _digest(results[path])})
            bar.update()
    return [results[path] for path in paths]


def _stored(path: Path) -> Any:
    """The result of a cell that an earlier process has written; None if there is none, or it is damaged."""
    try:
        stored = fields(read_json(path), {"result": Any, "sha256": str}, path)
    except SkipformError:
        return None
    return stored["result"] if stored["sha256"] == _digest(stored["result"]) else None


def _digest(result: Any) -> str:
    return hashlib.sha256(json.dumps(result).encode()).hexdigest()


def _run_cells(
    function: Callable[..., Any],
    missing: dict[Path, Cell],
    folder: Path,
    executor: Executor,
    workers: int | None,
    slurm: dict[str, Any],
) -> Iterator[tuple[Path, Any]]:
    workers = min(workers or os.cpu_count() or 1, len(missing))
    if executor == "local" and workers <= 1:
        yield from ((path, function(**cell)) for path, cell in missing.items())
    elif executor == "local":
        # A fork server imports the measuring code once for all workers, and forks before any thread exists.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([function.__module__])
        with ProcessPoolExecutor(workers, context, _leave_signals_to_the_parent) as pool:
            try:
                submitted = {pool.submit(function, **cell): path for path, cell in missing.items()}
                yield from ((submitted[job], job.result()) for job in as_completed(submitted))
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                _kill_workers()
                raise
    else:
        import submitit

        try:
            cluster = submitit.AutoExecutor(folder / "submitit")
            cluster.update_parameters(**({"timeout_min": 60} | slurm))
        except (NameError, TypeError, ValueError, AssertionError, RuntimeError) as error:
            raise SkipformError(f"--slurm {shown(slurm)}: {one_line(error, 1000)}") from error
        with cluster.batch():
            jobs = [cluster.submit(function, **cell) for cell in missing.values()]
        where = dict(zip(jobs, missing, strict=True))
        yield from ((where[job], job.result()) for job in submitit.helpers.as_completed(jobs))


def _key(cell: Cell, digest: str) -> str:
    return hashlib.sha256(json.dumps([digest, cell], sort_keys=True).encode()).hexdigest()[:24]


@contextmanager
def over_runs(
    function: Callable[..., list[dict[str, Any]]],
    folder: str,
    out: str,
    options: dict[str, Any],
    executor: Executor,
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
        raise SkipformError(f"{folder}: no finished run (VARIANT/seedK) in it; `skipform fit` writes them")
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
