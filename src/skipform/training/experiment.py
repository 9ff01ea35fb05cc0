"""Reading an experiment file: what it may say, and that it says nothing else. Nothing is built here.

An experiment file holds, under its introduction in comments,

    variants:   {label: {name: NAME, argument: value, ...}, ...}    one net each; an argument may be such a block itself
    data:       {name: SET, argument: value, ...}                  of the set's class, see `skipform.data`
    task:       {name: NAME, argument: value, ...}                 classify when not said, see `skipform.tasks`
    optimizer:  arguments of `Optimizer`         trainer:    arguments of `run.trainer`
    threads:    CPU threads, 0 for torch's own   wandb:      auto, online, offline, disabled
    smoke:, embedded:, paper:   any of the above, for one scale

and ../scale/<scale>.yaml says what all experiments share at a scale. What is said last counts, key by key, in the order
scale file, experiment file, the experiment's own section for the scale, command line. Another net, task or kind of data
takes other arguments: its block replaces the one it is said over. What the data states (in_channels, num_classes, ...)
is handed to the nets and tasks that take it.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import yaml

from skipform import data, nets, tasks
from skipform.arguments import arguments, check_keys, complete, typed
from skipform.errors import SkipformError
from skipform.training.run import trainer

Block = dict[str, Any]
NOT_SAID = {  # section -> the arguments that an experiment file cannot give
    "data": {"seed"} | data.LOCAL,
    "task": {"net", "optimizer"},
    "optimizer": set[str](),
    "trainer": {"callback"},
}


@dataclass(frozen=True)
class Experiment:
    """One experiment at one scale, complete: every argument of everything is there, defaults too."""

    name: str
    scale: str
    variants: dict[str, Block]
    data: Block
    task: Block
    optimizer: Block
    trainer: Block
    threads: int
    wandb: Literal["auto", "online", "offline", "disabled"]


def read(path: Path, scale: str, said: Mapping[str, Any] | None = None) -> Experiment:
    """The experiment of the file at `scale`, with `said` (the command line's part) on top.

    Raises:
        SkipformError: one line, naming file, key and what is accepted. The file is checked at every scale there is.
    """
    folder = path.parent.parent / "scale"
    scales = sorted(file.stem for file in folder.glob("*.yaml"))
    if scale not in scales:
        raise SkipformError(f"unknown scale {scale!r}; accepted: {', '.join(scales) or f'none, for want of {folder}'}")
    found = {}
    for each in scales:
        own = _load(path)
        for_scale = {name: own.pop(name, None) or {} for name in scales}
        layers = [(folder / f"{each}.yaml", _load(folder / f"{each}.yaml")), (path, own), (path, for_scale[each])]
        if each == scale:
            layers.append((Path("command line"), dict(said or {})))
        for source, layer in layers:
            check_keys(layer, [*_TOP, *NOT_SAID, "variants", *scales * (source == path)], str(source))
        where = f"{path} ({each})"
        found[each] = _complete(where, path.stem, each, _merged(layer for _, layer in layers))
    return found[scale]


_TOP = {"threads": int, "wandb": Literal["auto", "online", "offline", "disabled"]}


def _complete(where: str, name: str, scale: str, said: Block) -> Experiment:
    kind, data_said = _named("data", said.get("data", {}), data.sets(), where)
    task, task_said = _named("task", {"name": "classify"} | said.get("task", {}), tasks.names(), where)
    data_class, task_class = data.kind(kind), tasks.kind(task)
    if task_class.TARGETS != data_class.TARGETS:
        fit = [known for known in tasks.names() if tasks.kind(known).TARGETS == data_class.TARGETS]
        raise SkipformError(
            f"{where}: task.name: {task!r} takes {task_class.TARGETS}, data set {kind!r} has {data_class.TARGETS};"
            f" accepted: {', '.join(fit) or 'none'}"
        )
    data_block = complete(data_class, {"name": kind} | data_said, f"{where}: data", skip=NOT_SAID["data"])
    stated = data_class.states(**data_block)
    variants = said.get("variants")
    if not isinstance(variants, dict) or not variants:
        raise SkipformError(
            f"{where}: variants: accepted is one or more `label: {{name: NAME, ...}}`, got {variants!r}"
        )
    for label in variants:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.+-]*", str(label)):
            raise SkipformError(
                f"{where}: variants: label {label!r}; accepted: letters, digits and _ . + - (it names a folder)"
            )
    experiment = Experiment(
        name=name,
        scale=scale,
        variants={str(label): _net(block, stated, f"{where}: variants.{label}") for label, block in variants.items()},
        data=data_block,
        task={"name": task, **_told(task_class, task_said, stated, f"{where}: task", NOT_SAID["task"])},
        optimizer=complete(tasks.Optimizer, said.get("optimizer", {}), f"{where}: optimizer"),
        trainer=complete(trainer, said.get("trainer", {}), f"{where}: trainer", skip=NOT_SAID["trainer"]),
        threads=typed(said.get("threads", 0), int, f"{where}: threads"),
        wandb=typed(said.get("wandb", "auto"), _TOP["wandb"], f"{where}: wandb"),
    )
    epochs, threads = experiment.trainer["max_epochs"], experiment.threads
    for key, value, least in (("trainer.max_epochs", epochs, 1), ("threads", threads, 0)):
        if value < least:
            raise SkipformError(f"{where}: {key}: {value}; accepted: {least} or more")
    return experiment


def _named(section: str, block: Any, accepted: Iterable[str], where: str) -> tuple[str, Block]:
    """What a {name: NAME, ...} block names, and the rest of it."""
    check_keys(block, block, f"{where}: {section}")
    if "name" not in block:
        raise SkipformError(f"{where}: {section}.name: missing; accepted: {', '.join(accepted)}")
    if block["name"] not in accepted:
        raise SkipformError(f"{where}: {section}.name: unknown {block['name']!r}; accepted: {', '.join(accepted)}")
    return block["name"], {key: value for key, value in block.items() if key != "name"}


def _net(block: Any, stated: Block, where: str) -> Block:
    """{name: NAME, **arguments} with every argument."""
    if not nets.is_block(block):
        raise SkipformError(f"{where}: accepted is {{name: NAME, argument: value, ...}}, got {block!r}")
    name = block["name"]
    if name not in nets.names():
        raise SkipformError(f"{where}.name: unknown net {name!r}; accepted: {', '.join(nets.names())}")
    build = import_module(f"skipform.nets.{name}").build
    return {"name": name, **_told(build, {k: v for k, v in block.items() if k != "name"}, stated, where)}


def _told(function: Callable[..., Any], said: Block, stated: Block, where: str, skip: Iterable[str] = ()) -> Block:
    """The arguments of `function`: those that the data set states, and those said, nets among them."""
    accepted = arguments(function, skip)
    taken = {key: value for key, value in stated.items() if key in accepted}
    if clash := sorted(taken.keys() & said.keys()):
        raise SkipformError(f"{where}.{clash[0]}: the data set states it ({taken[clash[0]]}); leave it out")
    check_keys(said, [key for key in accepted if key not in taken], where)
    inner = {key: _net(value, stated, f"{where}.{key}") for key, value in said.items() if nets.is_block(value)}
    own = {key: value for key, value in said.items() if key not in inner}
    return {**taken, **inner, **complete(function, own, where, skip={*skip, *taken, *inner})}


def accepted() -> dict[str, dict[str, Any]]:
    """What the command line may say over an experiment file: section -> argument -> type, of any set's or task's."""
    classes: dict[str, list[Callable[..., Any]]] = {
        "data": list(data.kinds()),
        "task": [tasks.kind(name) for name in tasks.names()],
        "optimizer": [tasks.Optimizer],
        "trainer": [trainer],
    }
    found: dict[str, dict[str, Any]] = {section: {} for section in classes}
    for section, functions in classes.items():
        for function in functions:
            for key, (_, hint) in arguments(function, NOT_SAID[section]).items():
                # where the kinds differ in the type, `complete` checks the value by the kind in use
                found[section][key] = hint if found[section].get(key, hint) == hint else Any
    found["data"]["name"], found["task"]["name"] = Literal[tuple(data.sets())], Literal[tuple(tasks.names())]
    return found


class Once(yaml.SafeLoader):
    """YAML in which 1e-4 is a number, as in YAML 1.2, and a key that stands twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        for key, _ in node.value:
            if keys.count(key.value) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} twice", key.start_mark)
        return super().construct_mapping(node, deep)


_EXPONENT = re.compile(r"[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$")
Once.add_implicit_resolver("tag:yaml.org,2002:float", _EXPONENT, list("-+0123456789"))


def _load(path: Path) -> Block:
    try:
        loaded = yaml.load(path.read_text(encoding="utf-8"), Once) or {}
    except yaml.YAMLError as error:
        raise SkipformError(f"{path}: not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(loaded, dict):
        raise SkipformError(f"{path}: accepted is `key: value` lines, got {loaded!r}")
    return loaded


def _merged(layers: Iterable[Block], path: tuple[str, ...] = ()) -> Block:
    """Later layers over earlier ones, blocks key by key; a block that takes other arguments replaces.

    path: the keys under which the layers stand in the file.
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
    """Whether a block names another net, task or kind of data than the block it is laid over."""
    if path == ("data",):
        known = data.sets()
        return known.get(old.get("name", "")) is not known.get((old | new).get("name", ""))
    named = path == ("task",) or (path[0] == "variants" and len(path) > 1)
    return named and (old | new).get("name") != old.get("name")
