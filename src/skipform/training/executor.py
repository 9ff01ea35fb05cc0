"""Runs jobs: calls of one function, in this process, in local processes, or on a SLURM cluster.

A job is a name and the keyword arguments of the function. Its outcome is what the function returns or raises. Nothing
is stored here: a job that was interrupted is given again, and what it has written itself decides where it continues.
"""

import fcntl
import hashlib
import logging
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from importlib import import_module
from multiprocessing import forkserver
from multiprocessing.connection import wait as wait_for
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, TextIO

import torch
from tqdm import tqdm

from skipform.errors import SkipformError, one_line, shown
from skipform.files import read_json, write_json

Kind = Literal["local", "submitit"]
KILLED = "a worker was killed, perhaps because memory ran out; the same command resumes"
Jobs = Mapping[str, dict[str, Any]]  # name -> the keyword arguments of the function
CLUSTER = {"timeout_min": 60, "stderr_to_stdout": True}  # submitit's parameters, unless others are given


@dataclass(frozen=True)
class Outcome:
    """What a job returns, or the error that it raises."""

    value: Any = None
    error: Exception | None = None


@dataclass(frozen=True)
class Executor:
    """Where jobs run.

    kind: local, or submitit for a SLURM cluster.
    workers: local processes; 1 is this process, unless `fresh` or `devices` are given.
    devices: the GPUs by the names that CUDA_VISIBLE_DEVICES has for them; a job sees one of them only.
    fresh: every job in a new process, so that the memory of a GPU is free again afterwards.
    forked: local processes repeat no imports, which is safe only where no device and no thread has been used.
    threads: of every process on the CPU; 0 leaves the number to torch.
    slurm: parameters of submitit's AutoExecutor, such as slurm_partition; {cluster: local} tries it without a cluster.
    """

    kind: Kind = "local"
    workers: int = 1
    devices: tuple[str, ...] = ()
    fresh: bool = False
    forked: bool = False
    threads: int = 0
    slurm: dict[str, Any] = field(default_factory=dict)

    def results(
        self, function: Callable[..., Any], jobs: Jobs, folder: Path, bar: tqdm | None = None
    ) -> Generator[tuple[str, Any], None, None]:
        """Yield (name, value) of the jobs as they end. The first error is raised here, and the other jobs are ended.

        function: importable by its name, or a `partial` of such a one. Given `bar`, which counts the steps of all jobs,
        it is called with a `bar` of its own. folder: for what a cluster leaves, logs above all.
        """
        if self.kind == "local" and self.workers <= 1 and not self.fresh and not self.devices:
            own = {} if bar is None else {"bar": bar}
            yield from ((name, function(**arguments, **own)) for name, arguments in jobs.items())
            return
        with closing(self.outcomes(function, jobs, folder, bar)) as outcomes:
            for name, outcome in outcomes:
                if outcome.error:
                    raise outcome.error
                yield name, outcome.value

    def outcomes(
        self,
        function: Callable[..., Any],
        jobs: Jobs,
        folder: Path,
        bar: tqdm | None = None,
        until: float | None = None,
    ) -> Generator[tuple[str, Outcome], None, None]:
        """As `results`, in processes of their own, where a failed job does not stop the others. Jobs that still run
        when time.monotonic() is `until` are ended, without an outcome."""
        counts: dict[str, list[int]] = {}  # job -> the change of its total number of steps, and the steps done
        steps = bar.total if bar is not None else 0
        start = self._local if self.kind == "local" else self._cluster
        with closing(start(function, jobs, folder, bar is not None, until)) as messages:
            for name, message in messages:
                if isinstance(message, Outcome):
                    yield name, message
                elif bar is not None:
                    counts[name] = message
                    bar.total = steps + sum(total for total, _ in counts.values())
                    bar.update(sum(done for _, done in counts.values()) - bar.n)

    def _local(
        self, function: Callable[..., Any], jobs: Jobs, folder: Path, counted: bool, until: float | None
    ) -> Generator[tuple[str, Any], None, None]:
        """Yield (name, message): the two counts of a job, and at its end the outcome."""
        context: Any = multiprocessing.get_context("fork" if self.forked and sys.platform == "linux" else "forkserver")
        if not self.forked:  # the server imports once for all, before a thread exists or a device is in use
            context.set_forkserver_preload([getattr(function, "func", function).__module__])
            with signals_blocked():  # Ctrl-C during the imports is for this process alone
                forkserver.ensure_running()
        waiting, free = deque(jobs.items()), list(reversed(range(self.workers)))
        idle, running = dict[int, _Worker](), dict[Any, tuple[int, str, _Worker]]()
        try:
            while (waiting or running) and (left := _left(until)) != 0:
                while waiting and free:
                    (name, arguments), slot = waiting.popleft(), free.pop()
                    device = self.devices[slot % len(self.devices)] if self.devices else None
                    worker = idle.pop(slot, None) or _Worker(context, function, self.threads, device, counted)
                    worker.pipe.send(arguments)
                    running[worker.pipe] = slot, name, worker
                for pipe in wait_for(list(running), timeout=left):
                    slot, name, worker = running[pipe]
                    message = worker.receive(name)
                    if isinstance(message, Outcome):
                        del running[pipe]
                        free.append(slot)
                        if self.fresh or not worker.process.is_alive():
                            worker.end()
                        else:
                            idle[slot] = worker
                    yield name, message
        finally:
            for _, _, worker in running.values():
                worker.process.kill()
            for worker in [*idle.values(), *(worker for _, _, worker in running.values())]:
                worker.end()

    def _cluster(
        self, function: Callable[..., Any], jobs: Jobs, folder: Path, counted: bool, until: float | None
    ) -> Generator[tuple[str, Any], None, None]:
        """As `_local`, for jobs that submitit hands to a cluster. They are cancelled when this process stops."""
        if not jobs:
            return
        cluster = _submitit(self.slurm, folder)
        for name in jobs:
            _counts_file(_place(folder, name)).unlink(missing_ok=True)  # of a killed job
        with cluster.batch():
            submitted = [
                cluster.submit(_ClusterJob(function, _place(folder, name), self.threads, counted), **arguments)
                for name, arguments in jobs.items()
            ]
        left = dict(zip(submitted, jobs, strict=True))
        try:
            while left and _left(until) != 0:
                ended = [job for job in left if job.done()]  # asked first, so that the last counts are read below
                for name in jobs if counted else ():
                    if (file := _counts_file(_place(folder, name))).is_file():
                        yield name, read_json(file)
                for job in ended:
                    name = left.pop(job)
                    yield name, _outcome_of(job, name)
                time.sleep(0.5)
        finally:
            for job in left:
                job.cancel(check=False)


def _left(until: float | None) -> float | None:
    """The seconds until then, 0 if it has passed, None for ever."""
    return None if until is None else max(0.0, until - time.monotonic())


class Progress:
    """The progress bar of a job in another process. `report` is called with the change of its total number of steps and
    the steps done, at most once in `every` seconds and at the end."""

    def __init__(self, report: Callable[[list[int]], None], every: float) -> None:
        self.report, self.every, self.next = report, every, 0.0
        self.total, self.done = 0, 0

    def update(self) -> None:
        self.done += 1
        if time.monotonic() >= self.next:
            self.flush()

    def flush(self) -> None:
        self.report([self.total, self.done])
        self.next = time.monotonic() + self.every

    def set_postfix_str(self, text: str, refresh: bool = True) -> None:
        pass

    def write(self, text: str, file: TextIO) -> None:
        print(text, file=file, flush=True)


def _outcome(function: Callable[..., Any], arguments: dict[str, Any], progress: Progress | None) -> Outcome:
    """Do a job in this process, which is not the one that waits for it."""
    try:
        value = function(**arguments, **({} if progress is None else {"bar": progress}))
    except Exception as error:  # raised again where the outcome is waited for
        if not isinstance(error, SkipformError):
            error.add_note(traceback.format_exc())  # which does not cross from one process to another
        return Outcome(error=error)
    if progress is not None:
        progress.flush()
    return Outcome(value)


class _Worker:
    """A local process that does the jobs that it receives, one after another."""

    def __init__(
        self, context: Any, function: Callable[..., Any], threads: int, device: str | None, counted: bool
    ) -> None:
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, function, threads, device, counted))
        with signals_blocked():
            self.process.start()
        theirs.close()  # so that the end of the process is the end of the pipe

    def receive(self, name: str) -> Any:
        """The next message about the job `name`."""
        try:
            return self.pipe.recv()
        except EOFError:
            self.process.join()
            text = KILLED.replace("killed", f"killed in {name}", 1)
            return Outcome(error=SkipformError(f"{text}, also with fewer --workers"))

    def end(self) -> None:
        """End the process, which has nothing to do."""
        with suppress(OSError):  # it was killed
            self.pipe.send(None)
        self.process.join()
        self.pipe.close()


def _serve(pipe: Any, function: Callable[..., Any], threads: int, device: str | None, counted: bool) -> None:
    leave_signals_to_the_parent()
    if device is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = device  # read when CUDA is first used
    configure_process(threads)
    while (arguments := pipe.recv()) is not None:
        pipe.send(_outcome(function, arguments, Progress(pipe.send, 0.2) if counted else None))


def configure_process(threads: int) -> None:
    """Set what every process that trains needs: its number of threads (0: torch's own), no messages of Lightning."""
    if threads:
        torch.set_num_threads(threads)
    for library in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(library).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning.*")


@contextmanager
def signals_blocked() -> Iterator[None]:
    """Let Ctrl-C and SIGTERM wait until the end. A process that is started meanwhile begins with them blocked."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def leave_signals_to_the_parent() -> None:
    """Let a worker ignore Ctrl-C, which is for the process that started it, and end when that process ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGINT, signal.SIGTERM))

    def exit_with_parent() -> None:
        wait_for([multiprocessing.parent_process().sentinel])  # type: ignore[union-attr]
        os._exit(1)

    threading.Thread(target=exit_with_parent, daemon=True).start()


@dataclass(frozen=True)
class _ClusterJob:
    """What a cluster runs. place: where its lock and its counts stand, in the folder of all jobs."""

    function: Callable[..., Any]
    place: Path
    threads: int
    counted: bool

    def __call__(self, **arguments: Any) -> Outcome:
        configure_process(self.threads)
        progress = Progress(lambda counts: write_json(_counts_file(self.place), counts), 2.0) if self.counted else None
        with self.place.with_name(f"{self.place.name}.lock").open("w") as lock:
            with suppress(OSError):  # a file system without locks
                # The command may have been killed and given again while its job went on: the second job waits for it,
                # and finds its results.
                fcntl.flock(lock, fcntl.LOCK_EX)
            outcome = _outcome(self.function, arguments, progress)
        if outcome.error:
            traceback.print_exception(outcome.error)  # into the job's log
        return outcome

    def checkpoint(self, **arguments: Any) -> Any:
        """What is queued when the time limit of the job is reached: the same again."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, **arguments)


def _place(folder: Path, name: str) -> Path:
    """Where the lock and the counts of a job stand; a name may be no file's."""
    return folder / hashlib.sha256(name.encode()).hexdigest()[:16]


def _counts_file(place: Path) -> Path:
    return place.with_name(f"{place.name}.counts.json")


def _submitit(parameters: dict[str, Any], folder: Path) -> Any:
    """submitit's executor; its files and the logs of the jobs are written to `folder`."""
    submitit = _import_submitit()
    given = CLUSTER | parameters
    kind = given.pop("cluster", None)
    try:
        # A job that reaches its time limit has made progress: it may be queued again as often as it takes.
        cluster = submitit.AutoExecutor(folder, cluster=kind, slurm_max_num_timeout=1000)
        cluster.update_parameters(**given)
    except (NameError, TypeError, ValueError, AssertionError, RuntimeError) as error:
        raise SkipformError(f"--slurm {shown(parameters)}: {one_line(error, 1000)}") from error
    if cluster.cluster == "local" and kind is None:
        raise SkipformError(
            "--executor submitit: no SLURM on this machine (there is no srun); accepted: a machine that has it, or"
            " --slurm '{cluster: local}', which tries it with local processes, all at once"
        )
    return cluster


def _import_submitit() -> ModuleType:
    """The module, imported without its settings for logging: making them closes the handlers of all other libraries,
    and a handler may close a stream that is not its own."""
    level = os.environ.get("SUBMITIT_LOG_LEVEL")
    os.environ["SUBMITIT_LOG_LEVEL"] = "NOCONFIG"
    try:
        return import_module("submitit")
    finally:  # the jobs read it, too
        del os.environ["SUBMITIT_LOG_LEVEL"]
        if level is not None:
            os.environ["SUBMITIT_LOG_LEVEL"] = level


def _outcome_of(job: Any, name: str) -> Outcome:
    """The outcome of a submitted job that has ended. An error names the job and its log."""
    from submitit.core.utils import UncompletedJobError

    where = f"its log: {job.paths.stdout}"
    try:
        outcome = job.result()
    except UncompletedJobError:
        text = (
            f"{name}: job {job.job_id} ended without a result, perhaps because it was killed; {where};"
            " the same command resumes"
        )
        return Outcome(error=SkipformError(text))
    if outcome.error:
        return Outcome(error=SkipformError(f"{name}: job {job.job_id}: {one_line(outcome.error)}; {where}"))
    return outcome
