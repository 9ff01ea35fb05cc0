"""`skipform sources`: which sources decide what each command of the pipeline writes, and a digest of each of them.

DVC runs a stage again when a file changes that it depends on. A stage depends on one file, which this command writes:
the list of its sources with their digests. So dvc.yaml names no source, dvc.lock stays short, and a change of a comment
or a docstring runs nothing.

    OUT/COMMAND.txt                of a command
    OUT/COMMAND/FOLDER/NAME.txt    of a command for the experiment experiments/FOLDER/NAME.yaml
"""

from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

from skipform import outputs
from skipform.errors import SkipformError
from skipform.files import read_yaml, write_text
from skipform.sources import PACKAGE, closure, digest, imports_of, nets_in

# Command -> folders of experiments whose nets and data decide what it writes: those of one experiment, or of all.
ONE = {"fit": ("survey", "claims"), "measure": ("survey",), "claims": ("claims",), "probe": ("claims",)}
ONE |= dict.fromkeys(("explore", "radii", "pieces"), ("explorer",))
ALL = {"data": ("survey", "claims"), "examples": ("survey",)}
TRAINED = ("fit", "examples", "explore", "radii", "pieces")  # those in which the task of an experiment runs, too
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
    """The modules of the nets and data, and of the task if it is `trained`, that an experiment names at any scale.

    Only names are read, for a check of all arguments would import Lightning; `skipform data`, which is next in the
    pipeline, reports what is wrong with a file.
    """
    from skipform import data

    sets = {name: reader.__module__ for name, reader in data.sets().items()}
    for layers in _layers(file):
        yield from [sets[name] for name in _last(layers, "data") if name in sets]
        if trained:
            yield from _modules("tasks", _last(layers, "task") or ["classify"])
        for layer in layers:
            if isinstance(variants := layer.get("variants"), dict):
                yield from (module for block in variants.values() for module in _modules("nets", nets_in(block)))


@cache  # of one process, for many commands name the same experiment
def _layers(file: Path) -> list[list[dict[str, Any]]]:
    """For every scale what is written in its own file, in the experiment file, and there for this scale alone."""
    own = read_yaml(file)
    scales = [(path.stem, read_yaml(path)) for path in sorted((file.parent.parent / "scale").glob("*.yaml"))]
    layers = [[values, own, own.get(scale) if isinstance(own, dict) else None] for scale, values in scales]
    return [[layer for layer in each if isinstance(layer, dict)] for each in layers]


def _last(layers: list[dict[str, Any]], section: str) -> list[str]:
    """The name in the last layer in which the section has one; [] if none has."""
    blocks = (layer.get(section) for layer in layers)
    return [block["name"] for block in blocks if isinstance(block, dict) and "name" in block][-1:]


def _modules(package: str, names: Iterable[str]) -> Iterator[str]:
    known = {path.stem for path in (PACKAGE / package).glob("*.py")}
    yield from (f"skipform.{package}.{name}" for name in names if name in known)
