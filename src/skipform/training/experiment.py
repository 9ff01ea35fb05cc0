"""Reads an experiment file, checks every key and value in it, and fills in the defaults. No net or data set is built.

After an introduction in comments, an experiment file holds

    variants:   {label: {name: NAME, argument: value, ...}, ...}    one net per label; an argument may be another block
    data:       {name: SET, argument: value, ...}                  arguments of the set's class, see `skipform.data`
    task:       {name: NAME, argument: value, ...}                 classify by default, see `skipform.tasks`
    optimizer:  arguments of `Optimizer`         trainer:    arguments of `run.build_trainer`
    threads:    CPU threads, 0 for torch's own   wandb:      auto, online, offline, disabled
    backbone_weights:   of the backbones before training: random, or imagenet, see `training.weights`
    comparisons:        of the trained nets, announced before they are measured, see `comparisons`
    smoke:, embedded:, paper:   any of these keys, for one scale only

and ../scale/<scale>.yaml holds the values that all experiments share at a scale. Of several values for one key the last
one is used, in the order scale file, experiment file, the experiment's own section for the scale, command line. Another
net, task or kind of data takes other arguments: its block replaces the earlier block as a whole. Values that the data
set determines (in_channels, num_classes, ...) are passed to the nets and tasks that take them.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

from skipform import comparisons, data, nets, tasks
from skipform.arguments import Threads, arguments, check_keys, complete, typed
from skipform.comparisons import Comparison
from skipform.errors import SkipformError, shown
from skipform.files import check_scale, read_yaml
from skipform.runs import LABEL
from skipform.training.run import build_trainer

Block = dict[str, Any]
RESERVED = (".json", ".yaml", ".csv", ".ckpt", ".safetensors", ".partial")  # the ends of the files in a run's folder
NOT_IN_FILES = {  # section -> the arguments that an experiment file cannot give
    "data": {"seed"} | data.LOCAL,
    "task": {"net", "optimizer"},
    "optimizer": set[str](),
    "trainer": {"callback"},
}


@dataclass(frozen=True)
class Experiment:
    """One experiment at one scale, with every argument of its nets, data, task, ..., defaults included."""

    file: Path
    name: str
    scale: str
    variants: dict[str, Block]
    data: Block
    task: Block
    optimizer: Block
    trainer: Block
    threads: int
    wandb: Literal["auto", "online", "offline", "disabled"]
    backbone_weights: Literal["random", "imagenet"]
    comparisons: list[Comparison]


def read(path: Path, scale: str, overrides: Mapping[str, Any] | None = None) -> Experiment:
    """The experiment of the file at `scale`; `overrides`, from the command line, replace the values of the file.

    Raises:
        SkipformError: one line, naming file, key and what is accepted. The file is checked at every scale there is.
    """
    check_scale(scale, path)
    folder = path.parent.parent / "scale"
    scales = sorted(file.stem for file in folder.glob("*.yaml"))
    own = _load(path)
    for_scale = {name: own.pop(name, None) or {} for name in scales}
    experiments = {}
    for checked in scales:
        layers = [
            (folder / f"{checked}.yaml", _load(folder / f"{checked}.yaml")),
            (path, own),
            (path, for_scale[checked]),
            (Path("command line"), dict((overrides or {}) if checked == scale else {})),
        ]
        for source, layer in layers:
            check_keys(layer, [*_TOP, *NOT_IN_FILES, "variants", *scales * (source == path)], str(source))
        where = f"{path} ({checked})"
        try:
            experiments[checked] = _complete(where, path, checked, _merged(layer for _, layer in layers))
        except RecursionError:
            raise SkipformError(f"{where}: a block contains itself; accepted: blocks in blocks that end") from None
    return experiments[scale]


_TOP = {
    "threads": Threads,
    "wandb": Literal["auto", "online", "offline", "disabled"],
    "backbone_weights": Literal["random", "imagenet"],
    "comparisons": list,
}


def _complete(where: str, file: Path, scale: str, given: Block) -> Experiment:
    kind, data_given = _named("data", given.get("data", {}), data.sets(), where)
    task, task_given = _named("task", given.get("task", {}), tasks.names(), where)
    data_class, task_class = data.kind(kind), tasks.kind(task)
    if task_class.TARGETS != data_class.TARGETS:
        fit = [known for known in tasks.names() if tasks.kind(known).TARGETS == data_class.TARGETS]
        raise SkipformError(
            f"{where}: task.name: {task!r} takes {task_class.TARGETS}, data set {kind!r} has {data_class.TARGETS};"
            f" accepted: {', '.join(fit) or 'none'}"
        )
    data_block = complete(data_class, {"name": kind} | data_given, f"{where}: data", skip=NOT_IN_FILES["data"])
    stated = data_class.states(**data_block)
    variants = given.get("variants")
    if not isinstance(variants, dict) or not variants:
        raise SkipformError(
            f"{where}: variants: accepted is one or more `label: {{name: NAME, ...}}`, got {shown(variants)}"
        )
    for label in variants:
        if not re.fullmatch(LABEL, str(label)) or str(label).endswith(RESERVED):
            raise SkipformError(
                f"{where}: variants: label {shown(label)}; accepted: letters, digits and _ . + - (it names a folder),"
                f" at most 100, and at the end none of {', '.join(RESERVED)}"
            )
    return Experiment(
        file=file,
        name=file.stem,
        scale=scale,
        variants={str(label): _net(block, stated, f"{where}: variants.{label}") for label, block in variants.items()},
        data=data_block,
        task={"name": task, **_arguments(task_class, task_given, stated, f"{where}: task", NOT_IN_FILES["task"])},
        optimizer=complete(tasks.Optimizer, given.get("optimizer", {}), f"{where}: optimizer"),
        trainer=complete(build_trainer, given.get("trainer", {}), f"{where}: trainer", skip=NOT_IN_FILES["trainer"]),
        threads=typed(given.get("threads", 0), _TOP["threads"], f"{where}: threads"),
        wandb=typed(given.get("wandb", "auto"), _TOP["wandb"], f"{where}: wandb"),
        backbone_weights=typed(
            given.get("backbone_weights", "random"), _TOP["backbone_weights"], f"{where}: backbone_weights"
        ),
        comparisons=comparisons.read(given.get("comparisons", []), list(map(str, variants)), f"{where}: comparisons"),
    )


def _named(section: str, block: Any, accepted: Iterable[str], where: str) -> tuple[str, Block]:
    """The name in a {name: NAME, ...} block, and its other entries."""
    check_keys(block, block, f"{where}: {section}")
    if section == "task":
        block = {"name": "classify"} | block
    if "name" not in block:
        raise SkipformError(f"{where}: {section}.name: missing; accepted: {', '.join(accepted)}")
    if block["name"] not in list(accepted):
        raise SkipformError(f"{where}: {section}.name: unknown {shown(block['name'])}; accepted: {', '.join(accepted)}")
    return block["name"], {key: value for key, value in block.items() if key != "name"}


def _net(block: Any, stated: Block, where: str) -> Block:
    """{name: NAME, **arguments} with every argument."""
    if not nets.is_block(block):
        raise SkipformError(f"{where}: accepted is {{name: NAME, argument: value, ...}}, got {shown(block)}")
    name = block["name"]
    if name not in nets.names():
        raise SkipformError(f"{where}.name: unknown net {shown(name)}; accepted: {', '.join(nets.names())}")
    build = import_module(f"skipform.nets.{name}").build
    return {"name": name, **_arguments(build, {k: v for k, v in block.items() if k != "name"}, stated, where)}


def _arguments(
    function: Callable[..., Any], given: Block, stated: Block, where: str, skip: Iterable[str] = ()
) -> Block:
    """All arguments of `function`: those that the data set states, those given (a net is a block), and the defaults."""
    accepted = arguments(function, skip)
    taken = {key: value for key, value in stated.items() if key in accepted}
    if clash := sorted(taken.keys() & given.keys()):
        raise SkipformError(f"{where}.{clash[0]}: the data set states it ({taken[clash[0]]}); leave it out")
    check_keys(given, [key for key in accepted if key not in taken], where)
    inner = {key: _net(value, stated, f"{where}.{key}") for key, value in given.items() if nets.is_block(value)}
    own = {key: value for key, value in given.items() if key not in inner}
    return {**taken, **inner, **complete(function, own, where, skip={*skip, *taken, *inner})}


def accepted() -> dict[str, dict[str, Any]]:
    """The values that the command line may replace, for all data sets and tasks: section -> argument -> type."""
    classes: dict[str, list[Callable[..., Any]]] = {
        "data": list(data.kinds()),
        "task": [tasks.kind(name) for name in tasks.names()],
        "optimizer": [tasks.Optimizer],
        "trainer": [build_trainer],
    }
    types: dict[str, dict[str, Any]] = {section: {} for section in classes}
    for section, functions in classes.items():
        for function in functions:
            for key, (_, hint) in arguments(function, NOT_IN_FILES[section]).items():
                # if kinds differ in the type, the value is checked later, by `complete`, for the kind in use
                types[section][key] = hint if types[section].get(key, hint) == hint else Any
    types["data"]["name"], types["task"]["name"] = Literal[tuple(data.sets())], Literal[tuple(tasks.names())]
    return types


def _load(path: Path) -> Block:
    loaded = read_yaml(path) or {}
    if not isinstance(loaded, dict):
        raise SkipformError(f"{path}: accepted is `key: value` lines, got {shown(loaded)}")
    return loaded


def _merged(layers: Iterable[Block], path: tuple[str, ...] = ()) -> Block:
    """The layers merged into one block. Of several values for a key the last one is used, in inner blocks too; a block
    that takes other arguments replaces the earlier one as a whole.

    path: the keys that lead to the layers in the file.
    """
    result: Block = {}
    for layer in layers:
        for key, value in layer.items():
            old, here = result.get(key), (*path, str(key))
            if isinstance(old, dict) and isinstance(value, dict) and not _takes_others(here, old, value):
                value = _merged([old, value], here)
            result[key] = value
    return result


def _takes_others(path: tuple[str, ...], old: Block, new: Block) -> bool:
    """Whether the block `new` names another net, task or kind of data than the block `old` that it changes."""
    if path == ("data",):
        known = data.sets()
        return known.get(str(old.get("name"))) is not known.get(str((old | new).get("name")))
    named = path == ("task",) or (path[0] == "variants" and len(path) > 1)
    return named and (old | new).get("name") != old.get("name")
