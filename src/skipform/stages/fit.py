"""Train what an experiment file describes: every variant with every seed.

    skipform fit --config experiments/survey/resnet.yaml
    skipform fit --config experiments/survey/resnet.yaml --scale smoke --seeds 0 1 --trainer.max_epochs 2

These runs know nothing of each other: on a CPU they go side by side, one process each (--workers), to the same bytes.
Leaves DIR/<variant>/seed<k>/ (see run.py) and DIR/summary.json, with the middle and the range over the seeds. All is
made in DIR.partial, where a killed training goes on when the same command is given again; DIR appears complete.
"""

import fcntl
import logging
import multiprocessing
import netrc
import os
import shlex
import shutil
import signal
import statistics
import sys
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_EXCEPTION, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, nullcontext
from functools import partial
from multiprocessing.connection import wait as wait_for
from pathlib import Path
from typing import Any, ClassVar

import torch
import yaml
from jsonargparse import ArgumentError, ArgumentParser
from lightning.fabric.plugins.environments.lightning import find_free_network_port
from lightning.pytorch.loggers import WandbLogger
from torch.multiprocessing import ProcessExitedException, ProcessRaisedException
from tqdm import tqdm

from skipform import data as sets
from skipform.errors import SkipformError
from skipform.stages import run
from skipform.stages.cli import not_understood
from skipform.stages.experiment import Experiment, accepted, read
from skipform.stages.files import write_json


def main(argv: list[str]) -> int:
    options, said = _options(argv)
    path = Path(options["config"])
    if root := os.environ.get("SKIPFORM_DATA"):
        said["data"] = {"root": root} | said.get("data", {})
    experiment = read(path, options["scale"], said)
    seeds = options["seeds"]
    runs = [(label, seed) for label in experiment.variants for seed in seeds]
    workers = _workers(options["workers"], experiment, len(runs))
    if experiment.trainer["devices"] * experiment.trainer["num_nodes"] > 1 and not run.launched():
        return _several(argv, experiment.trainer["devices"], experiment.trainer["num_nodes"])
    _settle(1 if workers > 1 else experiment.threads)  # forked while it has threads of its own, torch would hang
    data = sets.build(0, **experiment.data)
    data.prepare_data()
    data.setup()
    with torch.device("meta"):  # every net can be built, before the first is trained
        for label, block in experiment.variants.items():
            try:
                run.build(block)
            except (ValueError, RuntimeError) as failure:
                raise SkipformError(f"{path} ({experiment.scale}): variants.{label}: {failure}") from failure
    out = Path(options["out"] or Path("runs", path.parent.name, path.stem))
    work = out.with_name(f"{out.name}.partial")
    steps = len(runs) * experiment.trainer["max_epochs"] * len(data.train_dataloader())
    summary = {}
    leads = run.rank() == 0  # of several processes the first one writes and speaks
    train = partial(_run, work, experiment, shlex.join(["skipform", "fit", *argv]))
    with (
        _alone(work) if leads else nullcontext(),
        _bar(steps, leads) as bar,
        _spread(train, runs, workers, experiment.threads, bar) if workers > 1 else nullcontext(train) as trained,
    ):
        for i, label in enumerate(experiment.variants, 1):
            done = []
            for seed in seeds:
                bar.set_description(f"{label} ({i} of {len(experiment.variants)}), seed {seed}")
                done.append(trained(label, seed, bar))
            if not leads:
                continue
            summary[label] = _summary(seeds, done)
            name, unit = done[0]["shown"]
            score = summary[label][f"test_{name}"]
            bar.write(
                f"{path.stem:18} {label:18} test {run.spoken(name)} {score['middle']:6.2f} {unit}"
                f"   ({score['low']:.2f} to {score['high']:.2f}, {len(seeds)} seeds)"
            )
        if leads:
            _keep_only(work, experiment.variants, seeds)
            write_json(work / "summary.json", summary)
            shutil.rmtree(out, ignore_errors=True)
            work.rename(out)
    return 0


def _settle(threads: int) -> None:
    """What every process of this stage needs; 0 leaves the threads to torch."""
    if threads:
        torch.set_num_threads(threads)
    for library in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(library).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning.*")


def _workers(said: int | None, experiment: Experiment, runs: int) -> int:
    """How many runs go at once: not more than there are, and if nothing is said, one a core where each keeps to its
    threads on the CPU."""
    processes = experiment.trainer["devices"] * experiment.trainer["num_nodes"]
    if said is not None and (said < 1 or (said > 1 and processes > 1)):
        raise SkipformError(f"--workers: {said}; accepted: 1 or more, and 1 where each run has {processes} processes")
    apart = experiment.trainer["accelerator"] == "cpu" and processes == 1 and experiment.threads
    return min(said or ((os.cpu_count() or 1) // experiment.threads if apart else 1) or 1, runs)


Train = Callable[[str, int, Any], dict[str, Any]]  # variant, seed, progress bar -> metrics


@contextmanager
def _spread(train: Train, runs: list[tuple[str, int]], workers: int, threads: int, bar: tqdm) -> Iterator[Train]:
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


class Told:
    """A worker's progress bar: two numbers of its run, which `_spread` adds up."""

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
    return train(label, seed, Told(run))


def _begin(threads: int, told: Any) -> None:
    """Of a worker: Ctrl-C is for the process that started it, without which it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _settle(threads)
    Told.numbers = told

    def outlived() -> None:
        wait_for([multiprocessing.parent_process().sentinel])  # type: ignore[union-attr]
        os._exit(1)

    threading.Thread(target=outlived, daemon=True).start()


def _several(argv: list[str], devices: int, nodes: int) -> int:
    """This stage in one process a device, as torchrun starts them, but forked: nothing is imported again, and nothing
    has touched a device yet."""
    if nodes > 1:
        raise SkipformError(
            f"trainer.num_nodes: {nodes}; start the same command on every node with srun, or with torchrun --no-python"
        )
    failures = torch.multiprocessing.get_context("fork").SimpleQueue()
    arguments = (argv, devices, find_free_network_port(), failures)
    try:
        torch.multiprocessing.start_processes(_one, arguments, nprocs=devices, start_method="fork")
    except (ProcessRaisedException, ProcessExitedException):
        if failures.empty():
            raise
        raise SkipformError(failures.get()) from None
    return 0


def _one(rank: int, argv: list[str], processes: int, port: int, failures: Any) -> None:
    ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes, "GROUP_RANK": 0}
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "skipform"}
    os.environ |= {key: str(value) for key, value in (ranks | where).items()}
    try:
        main(argv)
    except SkipformError as error:
        failures.put(str(error))
        raise


def _options(argv: list[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The options of the stage, and what the command line says over the experiment file."""
    parser = ArgumentParser(prog="skipform fit", description=__doc__, exit_on_error=False, allow_abbrev=False)
    parser.add_argument("--config", type=str, metavar="FILE", help="the experiment file")
    parser.add_argument(
        "--scale", type=str, help="a file of experiments/scale; by default what params.yaml says, or embedded"
    )
    parser.add_argument("--seeds", type=int, nargs="+", help="one run each; by default what params.yaml says, or 0")
    parser.add_argument("--out", type=str, metavar="DIR", help="by default runs/<folder of FILE>/<name of FILE>")
    parser.add_argument("--threads", type=int, help="CPU threads; 0 leaves the number to torch")
    parser.add_argument(
        "--workers", type=int, help="runs at once, one process each; by default cores / threads on a CPU, otherwise 1"
    )
    parser.add_argument("--wandb", type=str, help="auto (online with a key, else offline), online, offline or disabled")
    for section, keys in accepted().items():
        group = parser.add_argument_group(f"{section}, over what the experiment file says")
        for key, hint in keys.items():
            group.add_argument(f"--{section}.{key}", type=hint)
    try:
        said = parser.parse_args(argv, defaults=False).as_dict()
    except ArgumentError as error:
        raise not_understood(error, parser) from None
    params = Path("params.yaml")
    shared = yaml.safe_load(params.read_text(encoding="utf-8")) if params.is_file() else {}
    default = {
        "scale": shared.get("scale", "embedded"),
        "seeds": shared.get("seeds", [0]),
        "out": None,
        "workers": None,
    }
    options = default | {key: said.pop(key) for key in ("config", *default) if key in said}
    if "config" not in options:
        raise SkipformError(
            "--config FILE is missing; accepted: an experiment file, say experiments/survey/resnet.yaml"
        )
    seeds = options["seeds"]
    if not seeds or len(set(seeds)) < len(seeds) or not all(isinstance(seed, int) and seed >= 0 for seed in seeds):
        raise SkipformError(f"seeds: {seeds!r}; accepted: one or more different whole numbers from 0 on")
    return options, said


def _run(work: Path, experiment: Experiment, command: str, label: str, seed: int, bar: Any) -> dict[str, Any]:
    config = {
        "experiment": experiment.name,
        "scale": experiment.scale,
        "variant": label,
        "seed": seed,
        "threads": experiment.threads,
        "net": experiment.variants[label],
        "data": experiment.data,
        "task": experiment.task,
        "optimizer": experiment.optimizer,
        "trainer": experiment.trainer,
    }
    logger = partial(_logger, experiment.wandb)
    return run.train(work / label / f"seed{seed}", config, command=command, bar=bar, open_logger=logger)


def _logger(said: str, config: dict[str, Any]) -> WandbLogger | None:
    """A W&B run in ./wandb (or WANDB_DIR): online only with a key, and never a question."""
    mode = os.environ.get("WANDB_MODE", "auto") if said == "auto" else said
    if mode == "auto":
        mode = "online" if _has_key() else "offline"
    if mode == "disabled":
        return None
    import wandb

    if mode not in ("online", "offline", "shared"):
        raise SkipformError(f"WANDB_MODE: {mode!r}; accepted: online, offline, shared, disabled")
    started = wandb.init(
        project="skipform",
        group="{experiment} {scale}".format(**config),
        name="{experiment} {variant} seed{seed}".format(**config),
        dir=os.environ.get("WANDB_DIR", "."),
        mode=mode,  # type: ignore[arg-type]
        config=config,
        reinit="create_new",  # a run that failed in this process may still be open
        # what W&B would gather about machine and packages is in provenance.json, and takes half a second a run
        settings=wandb.Settings(
            silent=True, console="off", x_disable_meta=True, x_disable_stats=True, disable_git=True
        ),
    )
    return WandbLogger(experiment=started)


def _has_key() -> bool:
    """Whether W&B can log in without asking: by environment or by netrc, where `wandb login` leaves the key."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai").partition("://")[2].partition("/")[0]
    try:
        return netrc.netrc(os.environ.get("NETRC", Path.home() / ".netrc")).authenticators(host) is not None
    except (FileNotFoundError, netrc.NetrcParseError):
        return False


def _summary(seeds: list[int], runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Of every number that the seeds' metrics share: the middle (median), the lowest and the highest."""
    keys = [key for key in runs[0] if key.startswith(("train_", "validation_", "test_"))]
    values = {key: [metrics[key] for metrics in runs] for key in keys}
    return {
        "seeds": seeds,
        "parameters": runs[0]["parameters"],
        **{key: runs[0][key] for key in ("epochs", "shown", "higher")},
        **{key: {"middle": statistics.median(v), "low": min(v), "high": max(v)} for key, v in values.items()},
    }


def _bar(steps: int, leads: bool) -> tqdm:
    return tqdm(
        total=steps,
        disable=None if leads else True,
        leave=False,
        bar_format="{desc}  {percentage:3.0f} % |{bar}| {remaining} left{postfix}",
    )


@contextmanager
def _alone(work: Path) -> Iterator[None]:
    """Hold the work folder: a second process writing the same one would spoil both. Killing the holder lets go."""
    work.mkdir(parents=True, exist_ok=True)
    handle = os.open(work, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise SkipformError(
            f"{work}: another `skipform fit` is writing there; give one of them another --out"
        ) from None
    else:
        yield
    finally:
        os.close(handle)


def _keep_only(work: Path, labels: Iterable[str], seeds: list[int]) -> None:
    """Remove what a killed or different training left: checkpoints, half-written files, other variants and seeds."""
    wanted = {work / label / f"seed{seed}" / name for label in labels for seed in seeds for name in run.FILES}
    for path in sorted(work.rglob("*"), reverse=True):  # what a folder holds comes before it
        if path.is_file() and path not in wanted:
            path.unlink()
        elif path.is_dir() and not any(path.iterdir()):
            path.rmdir()
