"""Train what an experiment file describes: every variant with every seed.

    skipform fit --config experiments/survey/resnet.yaml
    skipform fit --config experiments/survey/resnet.yaml --scale smoke --seeds 0 1 --trainer.max_epochs 2

These runs know nothing of each other: on a CPU they go side by side, one process each (--workers), to the same bytes.
Leaves DIR/<variant>/seed<k>/ (see run.py) and DIR/summary.json, with the middle and the range over the seeds. All is
made in DIR.partial, where a killed training goes on when the same command is given again; DIR appears complete.
"""

import fcntl
import os
import shlex
import shutil
import statistics
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml
from jsonargparse import ArgumentError, ArgumentParser
from tqdm import tqdm

from skipform import data as sets
from skipform import nets
from skipform.errors import SkipformError
from skipform.files import write_json
from skipform.stages.cli import not_understood
from skipform.training import launch, run, tracking
from skipform.training.experiment import Experiment, accepted, read
from skipform.training.journal import spoken


def main(argv: list[str]) -> int:
    options, said = _options(argv)
    path = Path(options["config"])
    if root := os.environ.get("SKIPFORM_DATA"):
        said["data"] = {"root": root} | said.get("data", {})
    experiment = read(path, options["scale"], said)
    seeds = options["seeds"]
    runs = [(label, seed) for label in experiment.variants for seed in seeds]
    workers = launch.workers(options["workers"], experiment, len(runs))
    if experiment.trainer["devices"] * experiment.trainer["num_nodes"] > 1 and not launch.launched():
        return launch.several(main, argv, experiment.trainer["devices"], experiment.trainer["num_nodes"])
    launch.settle(1 if workers > 1 else experiment.threads)  # forked while it has threads of its own, torch would hang
    data = sets.build(0, **experiment.data)
    data.prepare_data()
    data.setup()
    with torch.device("meta"):  # every net can be built, before the first is trained
        for label, block in experiment.variants.items():
            try:
                nets.build(**block)
            except (ValueError, RuntimeError) as failure:
                raise SkipformError(f"{path} ({experiment.scale}): variants.{label}: {failure}") from failure
    out = Path(options["out"] or Path("runs", path.parent.name, path.stem))
    work = out.with_name(f"{out.name}.partial")
    steps = len(runs) * experiment.trainer["max_epochs"] * len(data.train_dataloader())
    summary = {}
    leads = launch.rank() == 0  # of several processes the first one writes and speaks
    train = partial(_run, work, experiment, shlex.join(["skipform", "fit", *argv]))
    with (
        _alone(work) if leads else nullcontext(),
        _bar(steps, leads) as bar,
        launch.spread(train, runs, workers, experiment.threads, bar) if workers > 1 else nullcontext(train) as trained,
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
                f"{path.stem:18} {label:18} test {spoken(name)} {score['middle']:6.2f} {unit}"
                f"   ({score['low']:.2f} to {score['high']:.2f}, {len(seeds)} seeds)"
            )
        if leads:
            _keep_only(work, experiment.variants, seeds)
            write_json(work / "summary.json", summary)
            shutil.rmtree(out, ignore_errors=True)
            work.rename(out)
    return 0


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
    logger = partial(tracking.logger, experiment.wandb)
    return run.train(work / label / f"seed{seed}", config, command=command, bar=bar, open_logger=logger)


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
