"""`skipform sources`: which sources decide what each command of the pipeline writes, and a digest of each of them.

DVC runs a stage again when a file changes that it depends on. A stage depends on one file, which this command writes:
the list of its sources with their digests. So dvc.yaml names no source, dvc.lock stays short, and a change of a comment
or a docstring runs nothing.

    OUT/COMMAND.txt                of a command
    OUT/COMMAND/FOLDER/NAME.txt    of a command for the experiment experiments/FOLDER/NAME.yaml
"""

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from skipform import outputs
from skipform.errors import SkipformError
from skipform.files import write_text
from skipform.sources import PACKAGE, closure, digest, imports_of, nets_in

# Command -> folders of experiments whose nets and data decide what it writes: those of one experiment, or of all.
ONE = {"fit": ("survey", "claims"), "measure": ("survey",), "claims": ("claims",), "probe": ("claims",)}
ALL = {"data": ("survey", "claims"), "examples": ("survey",), "explore": ("explorer",), "radii": ("explorer",)}
TRAINED = ("fit", "examples", "explore", "radii")  # those in which the task of an experiment runs, too
WITH_ALL_NETS = ("grammar", "notebooks")  # the survey is read from the nets
DRAWN = ("notebooks",)  # what analysis/ imports


def main(*, root: Path = Path(), out: Path = Path("build/sources")) -> None:
    """Write, for every command and experiment, the digests of the sources that decide what the command writes.

    These are the sources that the command imports, those of the nets, data and task that the experiment names at any
    scale, and the sources that these import: one line for each, as sha256sum prints it.

    Args:
        root: The folder of the project.
        out: The folder of the lists.
    """
    outputs.check_folder(out, command="sources")
    if not (root / "experiments" / "survey").is_dir():
        raise SkipformError(f"{root}: no experiments/survey in it; accepted: a checkout of the project")
    lists = dict(_lists(root))
    outputs.mark(out, lists, "sources")
    for name, paths in lists.items():
        lines = [f"{digest(path)}  {path.relative_to(PACKAGE)}\n" for path in sorted(paths)]
        write_text(out / name, "".join(lines))


def _lists(root: Path) -> Iterator[tuple[str, set[Path]]]:
    """The name of every list, and its sources."""
    from skipform import nets
    from skipform.stages.cli import STAGES

    for command in STAGES:
        modules = {f"skipform.stages.{command}"}
        if command in WITH_ALL_NETS:
            modules |= {f"skipform.nets.{net}" for net in nets.names()}
        for file in _experiments(root, ALL.get(command, ())):
            modules |= set(_chosen(file, command in TRAINED))
        drawn = (root / "analysis").glob("*.py") if command in DRAWN else ()
        yield f"{command}.txt", {*closure(modules), *(path for file in drawn for path in imports_of(file))}
        for file in _experiments(root, ONE.get(command, ())):
            name = f"{command}/{file.parent.name}/{file.stem}.txt"
            yield name, {*closure(modules | set(_chosen(file, command in TRAINED)))}


def _experiments(root: Path, folders: tuple[str, ...]) -> Iterator[Path]:
    for folder in folders:
        yield from sorted((root / "experiments" / folder).glob("*.yaml"))


def _chosen(file: Path, trained: bool) -> Iterator[str]:
    """The modules of the nets and data, and of the task if it is `trained`, that an experiment names at any scale."""
    from skipform import data, tasks

    for experiment in _at_all_scales(file):
        yield data.kind(experiment.data["name"]).__module__
        if trained:
            yield tasks.kind(experiment.task["name"]).__module__
        for block in experiment.variants.values():
            yield from (f"skipform.nets.{net}" for net in nets_in(block))


@cache  # of one process, for many commands name the same experiment
def _at_all_scales(file: Path) -> list[Any]:
    from skipform.training.experiment import read_all

    return [*read_all(file).values()]
