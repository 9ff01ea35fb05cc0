"""Train what an experiment file describes: every variant with every seed.

    skipform fit --config experiments/survey/resnet.yaml
    skipform fit --config experiments/survey/resnet.yaml --scale smoke --seeds 0 1 --trainer.max_epochs 2

The runs are independent: on a CPU they are trained in parallel, one process each (--workers), with the same result.
Writes DIR/<variant>/seed<k>/ (see run.py) and DIR/summary.json, with median and range over the seeds. All is made in
DIR.partial, where a killed training is resumed when the same command is given again; DIR appears when it is complete.
"""

import argparse
import fcntl
import math
import os
import shlex
import shutil
import statistics
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from skipform.arguments import Seed, typed
from skipform.errors import SkipformError, shown
from skipform.files import write_json
from skipform.stages.cli import not_understood

# torch and Lightning take seconds to import: the functions below do it, once there is something to train.
if TYPE_CHECKING:
    from tqdm import tqdm

    from skipform.training.experiment import Experiment

SECTIONS = ("data", "task", "optimizer", "trainer")  # of an experiment file; --SECTION.ARGUMENT replaces a value
_OF_A_SECTION = tuple(f"--{section}." for section in SECTIONS)

Seeds = list[int]
Trained = Callable[[str, int, Any], dict[str, Any]]  # variant, seed, progress bar -> metrics


def main(argv: list[str]) -> int:
    path = _experiment_file(argv)
    from skipform.training import launch
    from skipform.training.experiment import read

    options, given, storage = _options(argv)
    experiment, seeds = read(path, options["scale"], given), options["seeds"]
    runs = [(label, seed) for label in experiment.variants for seed in seeds]
    workers = launch.worker_count(options["workers"], experiment, len(runs))
    if experiment.trainer["devices"] * experiment.trainer["num_nodes"] > 1 and not launch.launched():
        return launch.on_devices(main, argv, experiment.trainer["devices"], experiment.trainer["num_nodes"])
    # with more threads than one before it forks, torch would hang in the workers
    launch.configure_process(1 if workers > 1 else experiment.threads)
    steps = len(runs) * experiment.trainer["max_epochs"] * _check(path, experiment, storage)
    out = Path(options["out"] or Path("runs", path.parent.name, path.stem))
    work = out.with_name(f"{out.name}.partial")
    train = partial(_run, work, experiment, shlex.join(["skipform", "fit", *argv]), storage)
    leads = launch.rank() == 0  # of several processes only the first one writes and reports
    with (
        _alone(work) if leads else nullcontext(),
        _bar(steps, leads) as bar,
        launch.in_workers(train, runs, workers, experiment.threads, bar) if workers > 1 else nullcontext(train) as run,
    ):
        summary = _train_all(experiment, seeds, run, bar, leads)
        if leads:
            _keep_only(work, experiment.variants, seeds)
            write_json(work / "summary.json", summary)
            shutil.rmtree(out, ignore_errors=True)
            work.rename(out)
    return 0


def _experiment_file(argv: list[str]) -> Path:
    """The experiment file that the command line names. It and the options of this stage are checked before anything
    heavy is imported; those of a section are checked by `_options`."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("-h", "--help", action="store_true")
    _add_own_options(parser)
    for section in SECTIONS:
        parser.add_argument(f"--{section}.ARGUMENT")  # for the list of what is accepted
    try:
        options, others = parser.parse_known_args(argv)
        unknown = [word for word in others if word.startswith("--") and not word.startswith(_OF_A_SECTION)]
        if unknown and not options.help:
            raise argparse.ArgumentError(None, f"unrecognized arguments: {' '.join(unknown)}")
    except argparse.ArgumentError as error:
        raise not_understood(error, parser) from None
    path = options.config
    if path is None and not options.help:
        raise SkipformError(
            "--config FILE is missing; accepted: an experiment file, such as experiments/survey/resnet.yaml"
        )
    if path is not None and not (file := Path(path)).is_file():
        present = sorted(other.name for other in file.parent.glob("*.yaml")) if file.parent.is_dir() else []
        raise SkipformError(f"{file}: no such experiment file; {file.parent} has {', '.join(present) or 'none'}")
    return Path(path or "")


def _options(argv: list[str]) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """The options of this stage; what the command line puts over the experiment file; where this machine keeps data."""
    import yaml
    from jsonargparse import ArgumentError, ArgumentParser

    from skipform.runs import data_root
    from skipform.training.experiment import accepted

    parser = ArgumentParser(prog="skipform fit", description=__doc__, exit_on_error=False, allow_abbrev=False)
    _add_own_options(parser)
    group = parser.add_argument_group("the data of this machine, which is no part of a run")
    group.add_argument("--data.root", type=str, metavar="DIR", help="by default SKIPFORM_DATA, or ./data")
    group.add_argument("--data.download", type=bool, help="fetch files that are missing or altered")
    for section, keys in accepted().items():
        group = parser.add_argument_group(f"{section}, in place of the values in the experiment file")
        for key, hint in keys.items():
            group.add_argument(f"--{section}.{key}", type=hint)
    try:
        given = parser.parse_args(argv, defaults=False).as_dict()
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
    options = default | {key: given.pop(key) for key in ("config", *default) if key in given}
    seeds = options["seeds"] = typed(options["seeds"], list[Seed], "seeds")
    if not seeds or len(set(seeds)) < len(seeds):
        raise SkipformError(f"seeds: {shown(seeds)}; accepted: one or more different whole numbers from 0 on")
    data = given.get("data", {})
    storage = {"root": data.pop("root", None) or data_root(), "download": data.pop("download", False)}
    return options, given, storage


def _add_own_options(parser: argparse.ArgumentParser) -> None:
    """Let `parser` read the options of this stage."""
    parser.add_argument("--config", type=str, nargs="?", metavar="FILE", help="the experiment file")
    parser.add_argument(
        "--scale", type=str, help="a file of experiments/scale; by default that of params.yaml, or embedded"
    )
    parser.add_argument("--seeds", type=int, nargs="+", help="one run each; by default those of params.yaml, or 0")
    parser.add_argument("--out", type=str, metavar="DIR", help="by default runs/<folder of FILE>/<name of FILE>")
    parser.add_argument("--threads", type=int, help="CPU threads; 0 leaves the number to torch")
    parser.add_argument(
        "--workers", type=int, help="runs at once, one process each; by default cores / threads on a CPU, otherwise 1"
    )
    parser.add_argument("--wandb", type=str, help="auto (online with a key, else offline), online, offline or disabled")


def _check(path: Path, experiment: "Experiment", storage: dict[str, Any]) -> int:
    """The number of steps of an epoch, after the data have been read and every net has been built without memory."""
    import torch

    from skipform import data, nets

    module = data.build(0, **experiment.data | storage)
    module.prepare_data()
    module.setup()
    with torch.device("meta"):
        for label, block in experiment.variants.items():
            try:
                nets.build(**block)
            except (ValueError, RuntimeError) as failure:
                raise SkipformError(f"{path} ({experiment.scale}): variants.{label}: {failure}") from failure
    return len(module.train_dataloader())


def _train_all(experiment: "Experiment", seeds: Seeds, run: Trained, bar: "tqdm", leads: bool) -> dict[str, Any]:
    """Train every variant with every seed, report its score and return the summary."""
    from skipform.training.journal import label_of

    summary = {}
    for i, label in enumerate(experiment.variants, 1):
        done = []
        for seed in seeds:
            bar.set_description(f"{label} ({i} of {len(experiment.variants)}), seed {seed}")
            done.append(run(label, seed, bar))
        summary[label] = _summary(seeds, done)
        name, unit = done[0]["shown"]
        score = summary[label][f"test_{name}"]
        if leads:
            bar.write(
                f"{experiment.name:18} {label:18} test {label_of(name)} "
                + (
                    "{middle:6.2f} {0}   ({low:.2f} to {high:.2f}, ".format(unit, **score)
                    if score["middle"] is not None
                    else "undefined   ("
                )
                + f"{len(seeds)} seeds)"
            )
    return summary


def _run(
    work: Path, experiment: "Experiment", command: str, storage: dict[str, Any], label: str, seed: int, bar: Any
) -> dict[str, Any]:
    from skipform.training import run, tracking

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
    logger = partial(tracking.logger, experiment.wandb)
    folder = work / label / f"seed{seed}"
    return run.train(folder, config, command=command, bar=bar, storage=storage, open_logger=logger)


def _summary(seeds: Seeds, runs: list[dict[str, Any]]) -> dict[str, Any]:
    """The middle (median), the lowest and the highest of every number in the metrics of the runs, one run per seed."""
    keys = [key for key in runs[0] if key.startswith(("train_", "validation_", "test_"))]
    values = {key: [metrics[key] for metrics in runs] for key in keys}
    return {
        "seeds": seeds,
        "parameters": runs[0]["parameters"],
        **{key: runs[0][key] for key in ("epochs", "shown", "higher")},
        **{key: _spread(numbers) for key, numbers in values.items()},
    }


def _spread(numbers: list[float | None]) -> dict[str, float | None]:
    """Median, least and greatest; null where one of the numbers is undefined."""
    if not all(number is not None and math.isfinite(number) for number in numbers):
        return dict.fromkeys(("middle", "low", "high"))
    return {"middle": statistics.median(numbers), "low": min(numbers), "high": max(numbers)}  # type: ignore[type-var]


def _bar(steps: int, leads: bool) -> "tqdm":
    from tqdm import tqdm

    return tqdm(
        total=steps,
        disable=None if leads else True,
        leave=False,
        bar_format="{desc}  {percentage:3.0f} % |{bar}| {remaining} left{postfix}",
    )


@contextmanager
def _alone(work: Path) -> Iterator[None]:
    """Lock the work folder: two processes that write to it would spoil the results of both. A kill unlocks it."""
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


def _keep_only(work: Path, labels: Iterable[str], seeds: Seeds) -> None:
    """Remove what a killed or different training left: checkpoints, half-written files, other variants and seeds."""
    from skipform.training import run

    wanted = {work / label / f"seed{seed}" / name for label in labels for seed in seeds for name in run.FILES}
    for path in sorted(work.rglob("*"), reverse=True):  # the content of a folder comes before the folder
        if path.is_file() and path not in wanted:
            path.unlink()
        elif path.is_dir() and not any(path.iterdir()):
            path.rmdir()
