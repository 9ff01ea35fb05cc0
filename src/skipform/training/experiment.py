"""Reading an experiment file: what it may say, and that it says nothing else. Nothing is built here.

An experiment file holds, under its introduction in comments,

    variants:   {label: {net: NAME, argument: value, ...}, ...}    one net each; an argument may be such a block itself
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
from difflib import get_close_matches
from importlib import import_module
from inspect import Parameter, formatannotation, signature
from pathlib import Path
from typing import Any, Literal, Union, get_type_hints

import yaml
from jsonargparse import ArgumentError, ArgumentParser

from skipform import data, nets, tasks
from skipform.errors import SkipformError
from skipform.training.run import trainer

Block = dict[str, Any]
NOT_SAID = {  # section -> the arguments that an experiment file cannot give
    "data": {"seed", "root", "download"},  # `root` and `download` say where a machine keeps its data
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
            _known(layer, [*_TOP, *NOT_SAID, "variants", *scales * (source == path)], str(source))
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
        raise SkipformError(f"{where}: variants: accepted is one or more `label: {{net: NAME, ...}}`, got {variants!r}")
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
        threads=_typed(said.get("threads", 0), int, f"{where}: threads"),
        wandb=_typed(said.get("wandb", "auto"), _TOP["wandb"], f"{where}: wandb"),
    )
    epochs, threads = experiment.trainer["max_epochs"], experiment.threads
    for key, value, least in (("trainer.max_epochs", epochs, 1), ("threads", threads, 0)):
        if value < least:
            raise SkipformError(f"{where}: {key}: {value}; accepted: {least} or more")
    return experiment


def _named(section: str, block: Any, accepted: Iterable[str], where: str) -> tuple[str, Block]:
    """What a {name: NAME, ...} block names, and the rest of it."""
    _known(block, block, f"{where}: {section}")
    if "name" not in block:
        raise SkipformError(f"{where}: {section}.name: missing; accepted: {', '.join(accepted)}")
    if block["name"] not in accepted:
        raise SkipformError(f"{where}: {section}.name: unknown {block['name']!r}; accepted: {', '.join(accepted)}")
    return block["name"], {key: value for key, value in block.items() if key != "name"}


def _net(block: Any, stated: Block, where: str) -> Block:
    """{net: NAME, **arguments} with every argument."""
    if not isinstance(block, dict) or not isinstance(block.get("net"), str):
        raise SkipformError(f"{where}: accepted is {{net: NAME, argument: value, ...}}, got {block!r}")
    name = block["net"]
    if name not in nets.names():
        raise SkipformError(f"{where}.net: unknown net {name!r}; accepted: {', '.join(nets.names())}")
    build = import_module(f"skipform.nets.{name}").build
    return {"net": name, **_told(build, {k: v for k, v in block.items() if k != "net"}, stated, where)}


def _told(function: Callable[..., Any], said: Block, stated: Block, where: str, skip: Iterable[str] = ()) -> Block:
    """The arguments of `function`: those that the data set states, and those said, nets among them."""
    accepted = arguments(function, skip)
    taken = {key: value for key, value in stated.items() if key in accepted}
    if clash := sorted(taken.keys() & said.keys()):
        raise SkipformError(f"{where}.{clash[0]}: the data set states it ({taken[clash[0]]}); leave it out")
    _known(said, [key for key in accepted if key not in taken], where)
    inner = {key: _net(value, stated, f"{where}.{key}") for key, value in said.items() if _is_net(value)}
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
    found["task"]["name"] = Literal[tuple(tasks.names())]
    for section, functions in classes.items():
        for function in functions:
            for key, (_, hint) in arguments(function, NOT_SAID[section]).items():
                found[section][key] = Union[found[section].get(key, hint), hint]  # noqa: UP007 (X | Y takes no Literal)
    return found


def _is_net(value: Any) -> bool:
    return isinstance(value, dict) and "net" in value


def complete(function: Callable[..., Any], said: Any, where: str, skip: Iterable[str] = ()) -> Block:
    """The keyword arguments of `function`: those said, of the annotated type, and the defaults; not those of `skip`."""
    accepted = arguments(function, skip)
    _known(said, accepted, where)
    result = {}
    for key, (default, hint) in accepted.items():
        if key not in said and default is Parameter.empty:
            raise SkipformError(f"{where}.{key}: missing; accepted: {_say(hint)}")
        result[key] = _typed(said[key], hint, f"{where}.{key}") if key in said else default
    return result


def arguments(function: Callable[..., Any], skip: Iterable[str] = ()) -> dict[str, tuple[Any, Any]]:
    """What `function` takes: name -> (default or Parameter.empty, type)."""
    parameters = signature(function).parameters.items()
    hints = get_type_hints(function.__init__ if isinstance(function, type) else function)  # type: ignore[misc]
    return {key: (parameter.default, hints[key]) for key, parameter in parameters if key not in set(skip)}


def _known(said: Any, accepted: Iterable[str], where: str) -> None:
    if not isinstance(said, Mapping):
        raise SkipformError(f"{where}: accepted is `key: value` lines, got {said!r}")
    accepted = list(accepted)
    for key in said:
        if key not in accepted:
            close = get_close_matches(str(key), accepted, n=1)
            hint = f" (did you mean {close[0]}?)" if close else ""
            raise SkipformError(f"{where}: unknown key {str(key)!r}{hint}; accepted: {', '.join(accepted)}")


def _typed(value: Any, hint: Any, where: str) -> Any:
    """The value as the annotation has it (a list for a tuple, 1e-4 for a float ...), by jsonargparse's reading."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--value", type=hint)
    try:
        return parser.parse_object({"value": value}).value
    except ArgumentError:
        raise SkipformError(f"{where}: {value!r} is not accepted; accepted: {_say(hint)}") from None


def _say(hint: Any) -> str:
    return re.sub(r"typing\.|Literal\[(.*)\]", r"\1", formatannotation(hint))


class Once(yaml.SafeLoader):
    """YAML in which a key that stands twice is an error, not the last one's silent victory."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        for key, _ in node.value:
            if keys.count(key.value) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} twice", key.start_mark)
        return super().construct_mapping(node, deep)


def _load(path: Path) -> Block:
    try:
        loaded = yaml.load(path.read_text(encoding="utf-8"), Once) or {}
    except yaml.YAMLError as error:
        raise SkipformError(f"{path}: not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(loaded, dict):
        raise SkipformError(f"{path}: accepted is `key: value` lines, got {loaded!r}")
    return loaded


def _merged(layers: Iterable[Block]) -> Block:
    """Later layers over earlier ones, blocks key by key; a block that takes other arguments replaces."""
    result: Block = {}
    for layer in layers:
        for key, value in layer.items():
            old = result.get(key)
            if isinstance(old, dict) and isinstance(value, dict) and not _takes_others(key, old, value):
                value = _merged([old, value])
            result[key] = value
    return result


def _takes_others(section: str, old: Block, new: Block) -> bool:
    """Whether a block names another net, task or kind of data than the one it is said over."""
    if section == "data":
        known = data.sets()
        return known.get(old.get("name", "")) is not known.get((old | new).get("name", ""))
    return any((old | new).get(key) != old.get(key) for key in ("net", *["name"] * (section == "task")))
