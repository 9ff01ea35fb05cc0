"""The architectures: one file each, the file name is the registry.

A net's file holds `build` (keyword-only, annotated) and its claims as plain data, read by one test and by `survey`:

    SURVEY    paper, year, skip (how branch and shortcut meet), activations_per_block (under one shortcut),
              levels (nested skips; 0: none)
    VARIANTS  label -> (arguments of build, depth as the paper counts it, exact parameters)

Published errors are told in the docstrings and kept, as data, outside the package, where a correction retrains nothing.
"""

from collections.abc import Mapping, Sequence
from importlib import import_module
from inspect import Parameter, signature
from pkgutil import iter_modules
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from torch import nn

from skipform.errors import SkipformError

WORDS = {"blocks", "attention"}  # shared by the sentences, not nets themselves


def names() -> list[str]:
    """The nets that `build` accepts, in alphabetical order."""
    return sorted(module.name for module in iter_modules(__path__) if module.name not in WORDS)


def build(name: str, **arguments: Any) -> nn.Module:
    """The net of file `name`; an argument that is itself a {"net": ..., ...} block is built first.

    Raises:
        SkipformError: unknown net, unknown or missing argument, an argument of the wrong type, or (from the net) a
            value outside what its paper defines; one line that names what is accepted.
    """
    if name not in names():
        raise SkipformError(f"unknown net {name!r}; accepted: {', '.join(names())}")
    function = import_module(f"{__name__}.{name}").build
    parameters, hints = signature(function).parameters, get_type_hints(function)
    given = {key: description(value) if isinstance(value, nn.Module) else value for key, value in arguments.items()}
    for key, value in arguments.items():
        if key not in parameters:
            raise SkipformError(f"net {name!r}: unknown argument {key!r}; accepted: {', '.join(parameters)}")
        if isinstance(value, Mapping) and isinstance(value.get("net"), str):
            arguments[key] = value = from_block(value)
        if not _fits(value, hints[key]):
            raise SkipformError(f"net {name!r}: argument {key}={value!r} is not accepted; it takes {_say(hints[key])}")
    missing = [key for key, p in parameters.items() if p.default is Parameter.empty and key not in arguments]
    if missing:
        raise SkipformError(f"net {name!r}: missing argument {', '.join(missing)}; accepted: {', '.join(parameters)}")
    net = function(**arguments)
    if all(given[key] is not None or value is None for key, value in arguments.items()):
        net.__dict__["built_from"] = {"net": name, **given}
    return net


def description(net: nn.Module) -> dict[str, Any] | None:
    """The {"net": NAME, argument: value, ...} block from which `build` made the net; None for any other net."""
    return net.__dict__.get("built_from")


def from_block(block: Mapping[str, Any]) -> nn.Module:
    """The net of a {"net": NAME, argument: value, ...} block, as experiment files and a run's config have it."""
    return build(block["net"], **{key: value for key, value in block.items() if key != "net"})


def survey() -> list[dict[str, Any]]:
    """One row a variant of every net, claims only (nothing is built): the rows of the survey table."""
    keys = ("arguments", "depth", "parameters")
    modules = {name: import_module(f"{__name__}.{name}") for name in names()}
    return [
        {"net": name, "variant": label} | module.SURVEY | dict(zip(keys, claim, strict=True))
        for name, module in modules.items()
        for label, claim in module.VARIANTS.items()
    ]


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value, as YAML or Python gives it, fits the annotation: 1 is a float too, a list a tuple."""
    origin, inner = get_origin(hint), get_args(hint)
    if hint is Any:
        return True
    if origin is Literal:
        return any(value == choice and type(value) is type(choice) for choice in inner)
    if origin in (Union, UnionType):
        return any(_fits(value, choice) for choice in inner)
    if isinstance(origin, type) and issubclass(origin, Sequence):
        if not isinstance(value, list | tuple):
            return False
        kinds = [inner[0]] * len(value) if len(inner) == 1 or inner[-1] is Ellipsis else list(inner)
        return len(kinds) == len(value) and all(map(_fits, value, kinds))
    if hint in (int, float):
        return isinstance(value, (int, hint)) and not isinstance(value, bool)
    return isinstance(value, origin or hint)


def _say(hint: Any) -> str:
    if get_origin(hint) is Literal:
        return " | ".join(map(repr, get_args(hint)))
    if get_origin(hint) in (Union, UnionType):
        return " | ".join(map(_say, get_args(hint)))
    if hint is NoneType:
        return "None"
    return hint.__name__ if isinstance(hint, type) and not get_args(hint) else str(hint)
