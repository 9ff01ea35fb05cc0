"""`skipform derive`: write into dvc.yaml which sources each stage depends on, from what it imports."""

import re
from collections.abc import Iterator
from functools import cache
from io import StringIO
from pathlib import Path
from typing import Any

from skipform.errors import SkipformError
from skipform.files import fields, read_text, read_yaml, write_text

SOURCES = "src/skipform/"
NOTHING_MORE = "nets/blocks"  # `uses` of an item that needs no further source; all nets depend on this one anyway
# Paths that contain the name of an item of a foreach.
OWN = ("nets/${key}.py", "data/${item.data}.py", "tasks/${item.task}.py", "${item.uses}.py")


def main(*, file: Path = Path("dvc.yaml"), check: bool = False) -> int:
    """Renew the dependencies of every stage of the pipeline on sources; all else in the file stays as it is.

    A stage depends on the sources that its command imports, on those of the nets, data and tasks that its experiments
    name, and on the sources that these import. In a foreach, a source that only one item needs is written as a path
    with the item's name in it; `uses` is the one source that cannot be written so, such as the backbone of an FPN.

    Args:
        file: The pipeline.
        check: Write nothing; exit 1 if the file is not up to date.
    """
    if not file.is_file():
        raise SkipformError(f"{file}: no such file; accepted: the dvc.yaml of a checkout of the project")
    _check(file)
    text = read_text(file)
    renewed = derived(text, file.parent)
    if check or renewed == text:
        return int(renewed != text)
    write_text(file, renewed)
    return 0


def _check(file: Path) -> None:
    """Raise SkipformError unless the file has the keys that are read here."""
    pipeline = fields(read_yaml(file), {"vars": list, "stages": dict}, file)
    for name, stage in pipeline["stages"].items():
        where = f"{file}: stages.{name}"
        body = fields(stage, {"do": dict}, where)["do"] if "foreach" in fields(stage, {}, where) else stage
        fields(body, {"cmd": str, "deps": list}, where)


def derived(text: str, root: Path) -> str:
    """The text of a pipeline with its dependencies on sources renewed. root: the folder of the project."""
    from ruamel.yaml import YAML  # keeps the comments and the order of a file; dvc brings it

    yaml = YAML()
    yaml.preserve_quotes, yaml.width = True, 120
    yaml.indent(mapping=2, sequence=4, offset=2)
    pipeline = yaml.load(text)
    groups = {name: items for block in pipeline["vars"] for name, items in block.items()}
    for item in (item for items in groups.values() for item in items.values() if "uses" in item):
        item["uses"] = NOTHING_MORE
    for stage in pipeline["stages"].values():
        items = stage.get("foreach", {"": None})
        items = groups[items[2:-1]] if isinstance(items, str) else items
        items = dict.fromkeys(items) if isinstance(items, list) else items
        body = stage["do"] if "foreach" in stage else stage
        needed = {key: needs(_filled(body["cmd"], key, item), root) for key, item in items.items()}
        paths = _common(needed, items) if "foreach" in stage else sorted(needed[""])
        others = [path for path in body["deps"] if not path.startswith(SOURCES)]
        body["deps"] = [*others, *(SOURCES + path for path in paths)]
    out = StringIO()
    yaml.dump(pipeline, out)
    return out.getvalue()


def needs(command: str, root: Path) -> set[str]:
    """The sources, relative to the package, that decide what a stage's command writes."""
    from skipform import nets
    from skipform.sources import PACKAGE, closure, imports_of

    name = command.split()[1]
    modules = {f"skipform.stages.{name}"}
    for folder, experiment in re.findall(r"(?:experiments|runs)/(survey|claims|explorer)(?:/(\w+))?", command):
        for file in sorted((root / "experiments" / folder).glob(f"{experiment or '*'}.yaml")):
            modules |= set(_chosen(file, trained=name in ("fit", "examples", "explore")))
    if name == "grammar":
        modules |= {f"skipform.nets.{net}" for net in nets.names()}
    files = set(closure(modules))
    if name == "notebooks":
        files |= {path for notebook in (root / "analysis").glob("*.py") for path in imports_of(notebook)}
        files |= set(closure(f"skipform.nets.{net}" for net in nets.names()))  # the survey is read from the nets
    return {str(path.relative_to(PACKAGE)) for path in files}


def _chosen(file: Path, trained: bool) -> Iterator[str]:
    """The modules of the nets and data, and of the task if it is `trained`, that an experiment names at any scale."""
    from skipform import data, tasks
    from skipform.sources import nets_in

    for experiment in _experiments(file):
        yield data.kind(experiment.data["name"]).__module__
        if trained:
            yield tasks.kind(experiment.task["name"]).__module__
        for block in experiment.variants.values():
            yield from (f"skipform.nets.{net}" for net in nets_in(block))


@cache  # of one process, for many stages name the same experiment
def _experiments(file: Path) -> list[Any]:
    from skipform.training.experiment import read_all

    return [*read_all(file).values()]


def _filled(template: str, key: str, item: Any) -> str:
    """A template of dvc's with the key and the values of one item in place of their names."""
    values = {"key": key, "item": key} | {f"item.{name}": value for name, value in (item or {}).items()}
    return re.sub(r"\$\{([\w.]+)\}", lambda match: str(values.get(match[1], match[0])), template)


def _common(needed: dict[str, set[str]], items: dict[str, Any]) -> list[str]:
    """The paths of a foreach: those of OWN that apply to all of its items, and every other path that some item needs.
    Sets the items' `uses`: another architecture, or a part of the theory, that only this item needs."""
    from skipform import nets

    architectures = {f"nets/{net}.py" for net in nets.names()}
    common = set.intersection(*needed.values())
    own = [path for path in OWN[:-1] if all(_filled(path, k, item) in needed[k] for k, item in items.items())]
    rest = {key: needed[key] - common - {_filled(path, key, item) for path in own} for key, item in items.items()}
    if all(item and "uses" in item for item in items.values()):
        for key, item in items.items():
            special = sorted(path for path in rest[key] if path in architectures or path.startswith("theory/"))
            if special:
                item["uses"] = special[0].removesuffix(".py")
            rest[key] -= set(special[:1])
        own.append(OWN[-1])
    return sorted({*own, *common, *set().union(*rest.values())})
