"""The arguments of a function, as a file, a command line or a program gives them: names, types, defaults.

Experiment files and `nets.build` are checked here, by the same rules and with the same messages.
"""

from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
from inspect import Parameter, signature
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from skipform.errors import SkipformError


def complete(function: Callable[..., Any], given: Any, where: str, skip: Iterable[str] = ()) -> dict[str, Any]:
    """The keyword arguments of `function`: those given, as the annotations have them, and the defaults of the others.

    The arguments named in `skip` belong to the caller: they are neither accepted nor filled in.

    Raises:
        SkipformError: an unknown or missing argument, or one of the wrong type; one line that begins with `where`.
    """
    accepted = arguments(function, skip)
    check_keys(given, accepted, where)
    result = {}
    for key, (default, hint) in accepted.items():
        if key not in given and default is Parameter.empty:
            raise SkipformError(f"{where}.{key}: missing; accepted: {described(hint)}")
        result[key] = typed(given[key], hint, f"{where}.{key}") if key in given else default
    return result


def arguments(function: Callable[..., Any], skip: Iterable[str] = ()) -> dict[str, tuple[Any, Any]]:
    """What `function` takes: name -> (default or Parameter.empty, type)."""
    parameters = signature(function).parameters.items()
    hints = get_type_hints(function.__init__ if isinstance(function, type) else function)  # type: ignore[misc]
    return {key: (parameter.default, hints[key]) for key, parameter in parameters if key not in set(skip)}


def check_keys(given: Any, accepted: Iterable[str], where: str) -> None:
    """SkipformError unless `given` is a mapping whose keys are all accepted."""
    if not isinstance(given, Mapping):
        raise SkipformError(f"{where}: accepted is `key: value` lines, got {given!r}")
    accepted = list(accepted)
    for key in given:
        if key not in accepted:
            close = get_close_matches(str(key), accepted, n=1)
            hint = f" (did you mean {close[0]}?)" if close else ""
            raise SkipformError(f"{where}: unknown key {str(key)!r}{hint}; accepted: {', '.join(accepted)}")


def typed(value: Any, hint: Any, where: str) -> Any:
    """The value as the annotation has it: a list becomes a tuple and 1 a float where these are asked for.

    Nothing else is converted: "20" and True are no int. Raises SkipformError for a value that does not fit.
    """
    try:
        return _converted(value, hint)
    except TypeError:
        shown = type(value).__name__ if "\n" in repr(value) else repr(value)  # a module's takes many lines
        raise SkipformError(f"{where}: {shown} is not accepted; accepted: {described(hint)}") from None


def _converted(value: Any, hint: Any) -> Any:
    """As `typed`, but a TypeError for a value that does not fit."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        for choice in inner:
            try:
                return _converted(value, choice)
            except TypeError:
                continue
    elif origin is Literal:
        if any(type(value) is type(choice) and value == choice for choice in inner):
            return value
    elif origin is tuple:
        if isinstance(value, list | tuple):
            kinds = inner[:1] * len(value) if inner[-1] is Ellipsis else inner
            if len(kinds) == len(value):
                return tuple(map(_converted, value, kinds))
    elif origin is dict:
        if isinstance(value, Mapping):
            return {_converted(key, inner[0]): _converted(entry, inner[1]) for key, entry in value.items()}
    elif hint is Any or (isinstance(value, hint) and (hint is bool or not isinstance(value, bool))):
        return value
    elif hint is float and type(value) is int:
        return float(value)
    raise TypeError


def described(hint: Any) -> str:
    """The annotation in words: 'add' | 'none', int | None, tuple[int, ...]."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Literal:
        return " | ".join(map(repr, inner))
    if origin in (Union, UnionType):
        return " | ".join(map(described, inner))
    if inner:
        return f"{origin.__name__}[{', '.join('...' if kind is Ellipsis else described(kind) for kind in inner)}]"
    return "None" if hint is NoneType else getattr(hint, "__name__", str(hint))
