"""Everything that starts processes: runs side by side, one run on several devices, a grid of measurements.

Lightning is imported where it is needed: what measures goes without it.

Of the grid: a cell is a function's keyword arguments. Its result is written, whole or not at all, into a folder beside
the output, under a name made from the arguments; a killed grid that is started again finds what is there and measures
the rest, each cell once.
"""

import hashlib
import json
import logging
import multiprocessing
import os
import shutil
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_EXCEPTION, ProcessPoolExecutor, as_completed, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.connection import wait as wait_for
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch.multiprocessing import ProcessExitedException, ProcessRaisedException
from tqdm import tqdm

from skipform.errors import SkipformError
from skipform.files import fingerprint, write_json
from skipform.runs import finished

if TYPE_CHECKING:
    from skipform.training.experiment import Experiment


def launched() -> bool:
    """Whether torchrun or srun has started this process, with others."""
    from lightning.fabric.plugins.environments import SLURMEnvironment, TorchElasticEnvironment

    return TorchElasticEnvironment.detect() or SLURMEnvironment.detect()


def rank() -> int:
    """This process's number among those that torchrun or srun started; 0 for one alone."""
    from lightning.fabric.plugins.environments import SLURMEnvironment, TorchElasticEnvironment

    for environment in (TorchElasticEnvironment, SLURMEnvironment):
        if environment.detect():
            return environment().global_rank()
    return 0


def settle(threads: int) -> None:
    """What every process that trains needs; 0 leaves the threads to torch."""
    if threads:
        torch.set_num_threads(threads)
    for library in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(library).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning.*")


def workers(said: int | None, experiment: "Experiment", runs: int) -> int:
    """How many runs go at once: not more than there are, and if nothing is said, one a core where each keeps to its
    threads on the CPU."""
    processes = experiment.trainer["devices"] * experiment.trainer["num_nodes"]
    if said is not None and (said < 1 or (said > 1 and processes > 1)):
        raise SkipformError(f"--workers: {said}; accepted: 1 or more, and 1 where each run has {processes} processes")
    apart = experiment.trainer["accelerator"] == "cpu" and processes == 1 and experiment.threads
    return min(said or ((os.cpu_count() or 1) // experiment.threads if apart else 1) or 1, runs)


Train = Callable[[str, int, Any], dict[str, Any]]  # variant, seed, progress bar -> metrics


@contextmanager
def spread(train: Train, runs: list[tuple[str, int]], workers: int, threads: int, bar: tqdm) -> Iterator[Train]:
    """`train` in so many processes, for all `runs` from now on; what it yields waits for one of them, and the bar shows
    the steps of all. The first failure, or Ctrl-C, ends them all as a kill would."""
    # Forked, they need not import for 5 s what this process has imported; other systems than Linux do not bear that.
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "forkserver")
    told = context.RawArray("q", 2 * len(runs))
    pool = ProcessPoolExecutor(workers, context, _begin, (threads, told))
    steps = bar.total

    def waited(label: str, seed: int, bar: tqdm) -> dict[str, Any]:
        done = False
        while not done:
            ended, _ = wait(jobs.values(), timeout=0.1, return_when=FIRST_EXCEPTION)
            for job in ended:
                job.result()  # raises what its run raised
            done = jobs[label, seed].done()
            bar.total = steps + sum(told[::2])
            bar.update(sum(told[1::2]) - bar.n)
        return jobs[label, seed].result()

    try:
        jobs = {one: pool.submit(_in_worker, train, *one, i) for i, one in enumerate(runs)}
        yield waited
    except BaseException as failure:
        for process in multiprocessing.active_children():
            process.kill()
        if isinstance(failure, BrokenProcessPool):
            raise SkipformError(
                "a worker was killed, perhaps for want of memory; the same command goes on, also with fewer --workers"
            ) from None
        raise
    finally:
        pool.shutdown(cancel_futures=True)


class WorkerProgress:
    """A worker's progress bar: two numbers of its run, which `spread` adds up."""

    numbers: ClassVar[Any]  # [what the total shrank by, steps done] of every run

    def __init__(self, run: int) -> None:
        self.run = run

    @property
    def total(self) -> int:
        return self.numbers[2 * self.run]

    @total.setter
    def total(self, value: int) -> None:
        self.numbers[2 * self.run] = value

    def update(self) -> None:
        self.numbers[2 * self.run + 1] += 1

    def set_postfix_str(self, text: str, refresh: bool = True) -> None:
        pass


def _in_worker(train: Train, label: str, seed: int, run: int) -> dict[str, Any]:
    return train(label, seed, WorkerProgress(run))


def _begin(threads: int, told: Any) -> None:
    """Of a worker: Ctrl-C is for the process that started it, without which it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    settle(threads)
    WorkerProgress.numbers = told

    def outlived() -> None:
        wait_for([multiprocessing.parent_process().sentinel])  # type: ignore[union-attr]
        os._exit(1)

    threading.Thread(target=outlived, daemon=True).start()


def several(main: Callable[[list[str]], int], argv: list[str], devices: int, nodes: int) -> int:
    """main(argv) in one process a device, as torchrun starts them, but forked: nothing is imported again, and nothing
    has touched a device yet."""
    if nodes > 1:
        raise SkipformError(
            f"trainer.num_nodes: {nodes}; start the same command on every node with srun, or with torchrun --no-python"
        )
    from lightning.fabric.plugins.environments.lightning import find_free_network_port

    failures = torch.multiprocessing.get_context("fork").SimpleQueue()
    arguments = (main, argv, devices, find_free_network_port(), failures)
    try:
        torch.multiprocessing.start_processes(_one, arguments, nprocs=devices, start_method="fork")
    except (ProcessRaisedException, ProcessExitedException):
        if failures.empty():
            raise
        raise SkipformError(failures.get()) from None
    return 0


def _one(
    rank: int, main: Callable[[list[str]], int], argv: list[str], processes: int, port: int, failures: Any
) -> None:
    ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes, "GROUP_RANK": 0}
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "skipform"}
    os.environ |= {key: str(value) for key, value in (ranks | where).items()}
    try:
        main(argv)
    except SkipformError as error:
        failures.put(str(error))
        raise


Executor = Literal["local", "submitit"]
Cell = dict[str, Any]


def measured(
    function: Callable[..., Any],
    cells: list[Cell],
    folder: Path,
    *,
    mark: str,
    title: str,
    executor: Executor = "local",
    workers: int | None = None,
    slurm: dict[str, Any] | None = None,
) -> list[Any]:
    """[function(**cell) for cell in cells], in order; results are JSON values and are kept in `folder` as they come.

    The function must be importable (a module's own), its arguments JSON values. `mark`: digest of what else decides a
    result (sources, weights): what was kept under another mark is not found. `workers`: local processes, one per core
    when not given, 1 for this process alone. `slurm`: parameters of the submitit executor (slurm_partition, ...).
    """
    paths = [folder / f"{_key(cell, mark)}.json" for cell in cells]
    missing = {path: cell for path, cell in zip(paths, cells, strict=True) if not path.is_file()}
    done = len(cells) - len(missing)
    with tqdm(total=len(cells), initial=done, desc=title, unit="cell", disable=None) as bar:
        for path, result in _run(function, missing, folder, executor, workers, slurm or {}):
            write_json(path, result)
            bar.update()
    return [json.loads(path.read_text()) for path in paths]


def _run(
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
        with ProcessPoolExecutor(workers, mp_context=context) as pool:
            submitted = {pool.submit(function, **cell): path for path, cell in missing.items()}
            yield from ((submitted[job], job.result()) for job in as_completed(submitted))
    else:
        import submitit

        cluster = submitit.AutoExecutor(folder / "submitit")
        cluster.update_parameters(timeout_min=60, **slurm)
        with cluster.batch():
            jobs = [cluster.submit(function, **cell) for cell in missing.values()]
        where = dict(zip(jobs, missing, strict=True))
        yield from ((where[job], job.result()) for job in submitit.helpers.as_completed(jobs))


def _key(cell: Cell, mark: str) -> str:
    return hashlib.sha256(json.dumps([mark, cell], sort_keys=True).encode()).hexdigest()[:24]


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

    Each call's rows are kept in OUT.partial, under a mark made from the runs, the measuring sources and `source`, until
    the block that writes `out` has ended.
    """
    runs = [run.of_task("classify") for run in finished(folder)]
    if not runs:
        raise SkipformError(f"{folder}: no finished run (VARIANT/seedK) in it; `skipform fit` leaves them")
    package = Path(__file__).parent.parent
    trained = [run.provenance["fingerprint"] for run in runs]
    sources = {
        *package.glob("compiler/*.py"),
        *package.glob("measure/*.py"),
        *package.glob("theory/*.py"),
        package / "runs.py",
        Path(__file__),
        source,
    }
    partial = Path(f"{out}.partial")
    found = measured(
        function,
        [{"run": str(run.folder), "when": when, **options} for run in runs for when in ("initial", "final")],
        partial,
        mark=fingerprint(trained, sources),
        title=f"measure {Path(folder).name}",
        executor=executor,
        workers=workers,
        slurm=slurm,
    )
    yield [row for cell in found for row in cell]
    shutil.rmtree(partial)
