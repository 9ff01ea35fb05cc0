"""Train what an experiment file describes: every variant with every seed.

    skipform fit --config experiments/survey/resnet.yaml
    skipform fit --config survey/resnet --scale smoke --seeds 0 1 --trainer.max_epochs 2

The runs are independent, and trained in parallel with the same result: in local processes (--workers), one on each of
several GPUs (--devices), or as jobs of a SLURM cluster (--executor submitit). `fit:` in params.yaml may hold these
options for all experiments: they change no result.
Writes DIR/<variant>/seed<k>/ (see run.py) and DIR/summary.json, with median and range over the seeds. Everything is
written to DIR.partial, where the same command resumes a killed training, and renamed to DIR when it is complete, in
place of an older one. A DIR that holds anything that this command did not write is refused. The file of --records gets
one line of JSON per run: its config, metrics and history.
"""

import argparse
import ast
import shlex
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from skipform import outputs
from skipform.arguments import Seed, check_keys, described, typed
from skipform.errors import SkipformError, shown
from skipform.files import check_scale, fields, read_text, read_yaml, write_json, write_json_lines, yaml_value
from skipform.shipped import experiment_file
from skipform.stages.cli import new_parser, not_understood, option_help

# torch and Lightning take seconds to import, so functions import them when there is something to train.
if TYPE_CHECKING:
    from tqdm import tqdm

    from skipform.training.experiment import Experiment

SECTIONS = ("data", "task", "optimizer", "trainer")  # of an experiment file; --SECTION.ARGUMENT replaces a value
_OF_A_SECTION = tuple(f"--{section}." for section in SECTIONS)

Seeds = list[int]
WHERE = {  # the runs are trained, by default in local processes
    "executor": Literal["local", "submitit"],
    "workers": int,
    "devices": tuple[int, ...],
    "slurm": dict[str, Any],
}


def main(argv: list[str]) -> int:
    path = _experiment_file(argv)
    from skipform.training import launch, plan, tracking
    from skipform.training.executor import configure_process
    from skipform.training.experiment import read

    options, given, storage = _options(argv)
    experiment, seeds = read(path, options["scale"], given), options["seeds"]
    out = f"runs/{path.parent.name}/{path.stem}" if options["out"] is None else options["out"]
    leads = launch.rank() == 0  # of several processes only the first one writes and reports
    if leads:
        _check_out(out)
        if options["records"] is not None:
            outputs.check_file(options["records"], "--records", suffixes=[".jsonl"])
    out, work = Path(out), Path(f"{out}{outputs.UNFINISHED}")
    runs = [(label, seed) for label in experiment.variants for seed in seeds]
    executor = launch.executor_for(experiment, len(runs), **options["where"])
    if experiment.trainer["devices"] * experiment.trainer["num_nodes"] > 1 and not launch.launched():
        return launch.on_devices(main, argv, experiment.trainer["devices"], experiment.trainer["num_nodes"])
    # torch would hang in the forked workers if it had used more than one thread before
    configure_process(1 if executor.forked and executor.workers > 1 else experiment.threads)
    steps = len(runs) * experiment.trainer["max_epochs"] * plan.check(path, experiment, storage)
    if leads:
        tracking.prepare(experiment.wandb)
    train = partial(plan.train, work, experiment, shlex.join(["skipform", "fit", *argv]), storage)
    from skipform.runs import FILES, Run
    from skipform.training.run import UNFINISHED_FILES

    files = ["summary.json", *(f"{label}/seed{seed}/{name}" for label, seed in runs for name in FILES)]
    unfinished = [f"{label}/seed{seed}/{name}" for label, seed in runs for name in UNFINISHED_FILES]
    jobs = {f"{label}/seed{seed}": {"label": label, "seed": seed} for label, seed in runs}
    with (
        _begun(out, work, [*files, *unfinished, "submitit/"]) if leads else nullcontext(),
        plan.progress_bar(steps, shown=leads) as bar,
        closing(executor.results(train, jobs, work / "submitit", bar)) as trained,
    ):
        summary = _summarise(experiment, seeds, trained, bar, leads)
        if leads:
            write_json(work / "summary.json", summary)
            if options["records"] is not None:
                finished = [Run(work / label / f"seed{seed}") for label, seed in runs]
                write_json_lines(options["records"], [run.record() for run in finished])
            outputs.clear(work, keep=files)  # of what a killed or different training left
            outputs.replace(work, out)
    return 0


def _experiment_file(argv: list[str]) -> Path:
    """The experiment file that the command line names. The file and the options of this stage are checked before torch
    is imported; the options of a section (--trainer.max_epochs) are checked by `_options`."""
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
        _check_trainer_options(others)
    except argparse.ArgumentError as error:
        raise not_understood(error, parser) from None
    if options.help:
        return Path()
    if options.config is None:
        raise SkipformError(
            "--config FILE is missing; accepted: an experiment file, or its name, such as survey/resnet"
        )
    path = experiment_file(options.config)
    check_scale(_shared(Path("params.yaml"))["scale"] if options.scale is None else options.scale, path)
    return path


def _check_trainer_options(words: list[str]) -> None:
    """SkipformError for an option --trainer.NAME that `build_trainer` does not take. Its file is read, not imported."""
    source = Path(__file__).parents[1] / "training" / "run.py"
    functions = (node for node in ast.parse(read_text(source)).body if isinstance(node, ast.FunctionDef))
    (build_trainer,) = (function for function in functions if function.name == "build_trainer")
    accepted = [f"--trainer.{argument.arg}" for argument in build_trainer.args.kwonlyargs if argument.arg != "callback"]
    for option in (word.partition("=")[0] for word in words):
        if option.startswith("--trainer.") and option not in accepted:
            raise SkipformError(f"unrecognized arguments: {shown(option)}; accepted: {', '.join(accepted)}")


def _options(argv: list[str]) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """The options of this stage, the values given for keys of the experiment file, and `root` and `download` of the
    data."""
    from jsonargparse import ArgumentError

    from skipform.runs import data_root
    from skipform.training.experiment import accepted

    usage = "skipform fit --config FILE [options]"
    parser = new_parser(prog="skipform fit", usage=usage, description=__doc__, allow_abbrev=False)
    _add_own_options(parser)
    group = parser.add_argument_group("the data of this machine, which is no part of a run")
    group.add_argument("--data.root", type=str, metavar="DIR", help="by default SKIPFORM_DATA, or ./data")
    group.add_argument("--data.download", type=bool, help="fetch files that are missing or altered")
    for section, keys in accepted().items():
        group = parser.add_argument_group(f"{section}, in place of the values in the experiment file")
        for key, hint in keys.items():
            text = f"depends on the {section} that is named" if hint is Any else described(hint)
            group.add_argument(f"--{section}.{key}", type=str, metavar="VALUE", help=option_help(text, hint))
    try:
        given = parser.parse_args(argv, defaults=False).as_dict()
    except ArgumentError as error:
        raise not_understood(error, parser) from None
    shared = _shared(Path("params.yaml"))
    default = {"scale": shared["scale"], "seeds": shared["seeds"], "out": None, "records": None}
    options = default | {key: given.pop(key) for key in ("config", *default) if key in given}
    options["where"] = _where({key: given.pop(key) for key in WHERE if key in given}, shared["fit"])
    seeds = options["seeds"] = typed(options["seeds"], list[Seed], "seeds")
    if not seeds or len(set(seeds)) < len(seeds):
        raise SkipformError(f"seeds: {shown(seeds)}; accepted: one or more different whole numbers from 0 on")
    data = given.get("data", {})
    storage = {"root": data.pop("root", None) or data_root(), "download": data.pop("download", False)}
    for section in given.keys() & {*SECTIONS}:  # the values are checked by `read`, as those of the file are
        given[section] = {key: yaml_value(text) for key, text in given[section].items()}
    return options, given, storage


def _where(given: dict[str, Any], shared: dict[str, Any]) -> dict[str, Any]:
    """Where the runs are trained: the options of the command line and, for the others, those of params.yaml."""
    check_keys(shared, WHERE, "params.yaml: fit")
    stated = {key: typed(value, WHERE[key], f"params.yaml: fit.{key}") for key, value in shared.items()}
    for key, text in given.items():
        value = text
        if key in ("devices", "slurm"):
            value = yaml_value(f"[{text}]" if key == "devices" else text)
        stated[key] = typed(value, WHERE[key], f"--{key}")
    return stated


def _shared(params: Path) -> dict[str, Any]:
    """The scale, the seeds and the options that a params.yaml states for all experiments; without one, embedded, [0]
    and none."""
    shared = fields(read_yaml(params), {}, params) if params.is_file() else {}
    hints = {"scale": str, "seeds": list, "fit": dict}
    return fields({"scale": "embedded", "seeds": [0], "fit": {}} | shared, hints, params)


def _add_own_options(parser: argparse.ArgumentParser) -> None:
    """Let `parser` read the options of this stage."""
    parser.add_argument(
        "--config", type=str, nargs="?", metavar="FILE", help="the experiment file, or its name: survey/resnet"
    )
    parser.add_argument(
        "--scale", type=str, help="a file of experiments/scale; by default that of params.yaml, or embedded"
    )
    parser.add_argument("--seeds", type=int, nargs="+", help="one run each; by default those of params.yaml, or 0")
    parser.add_argument("--out", type=str, metavar="DIR", help="by default runs/<folder of FILE>/<name of FILE>")
    parser.add_argument("--records", type=str, metavar="FILE", help="a .jsonl file, by default none")
    parser.add_argument("--threads", type=int, help="CPU threads; 0 leaves the number to torch")
    parser.add_argument(
        "--workers", type=int, help="runs at once, one process each; by default cores / threads on a CPU, or one a GPU"
    )
    parser.add_argument("--devices", type=str, metavar="0,1,...", help="the GPUs of the workers; by default all")
    parser.add_argument("--executor", choices=("local", "submitit"), help="local processes, or a SLURM cluster")
    parser.add_argument(
        "--slurm", type=str, metavar="{KEY: VALUE, ...}", help="parameters of submitit, such as slurm_partition"
    )
    parser.add_argument("--backbone_weights", type=str, help="random or imagenet, which --data.download true fetches")
    parser.add_argument("--wandb", type=str, help="auto (online with a key, else offline), online, offline or disabled")


def _summarise(
    experiment: "Experiment", seeds: Seeds, trained: Iterator[tuple[str, dict[str, Any]]], bar: "tqdm", leads: bool
) -> dict[str, Any]:
    """Wait for the metrics of all runs, VARIANT/seedK, report the score of every variant and return the summary."""
    from skipform.runs import further, summary_of
    from skipform.training.journal import label_of

    summary, metrics, runs = {}, dict[str, dict[str, Any]](), len(experiment.variants) * len(seeds)
    bar.set_description(f"{experiment.name}, 0 of {runs} runs")
    for label in experiment.variants:
        names = [f"{label}/seed{seed}" for seed in seeds]
        while not metrics.keys() >= set(names):
            metrics |= [next(trained)]
            bar.set_description(f"{experiment.name}, {len(metrics)} of {runs} runs")
        done = [metrics[name] for name in names]
        summary[label] = summary_of(seeds, done)
        name, unit = done[0]["shown"]
        score = summary[label][f"test_{name}"]
        backbone = (
            f", {experiment.backbone_weights} backbone weights" if "backbone" in experiment.variants[label] else ""
        )
        if leads:
            count = "1 seed" if len(seeds) == 1 else f"{len(seeds)} seeds"
            bar.write(
                f"{experiment.name:18} {label:18} test {label_of(name)} "
                + (
                    "{middle:6.2f} {0}   ({low:.2f} to {high:.2f}, ".format(unit, **score)
                    if score["middle"] is not None
                    else "undefined   ("
                )
                + ", ".join([f"{count}{backbone})", *(label_of(text) for text in further(summary[label]))])
            )
    return summary


def _check_out(out: str | Path) -> None:
    """Refuse a folder that cannot be made, or that holds what `skipform fit` did not write."""
    if Path(out).suffix in outputs.WORKING:
        raise SkipformError(
            f"--out {out}: a name for unfinished work; accepted: another ending than {Path(out).suffix}"
        )
    for ending in ("", *outputs.WORKING):
        outputs.check_folder(f"{out}{ending}", command="fit")


@contextmanager
def _begun(out: Path, work: Path, files: Iterable[str]) -> Iterator[None]:
    """Lock the work folder and list there the files that are going to be written."""
    with outputs.alone(work, "fit"):
        outputs.recover(out)
        _check_out(out)
        outputs.mark(work, files, "fit")
        yield
