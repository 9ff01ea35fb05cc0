"""The arguments of a function, as a file, a command line or a program gives them: names, types, ranges, defaults.

Experiment files, command lines, `skipform.build`, `task` and `data` are checked here, by the same rules and with the
same messages. What a number may be stands in the annotation, Annotated[float, Range(0, 1)]. No float may be NaN or
infinite.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from inspect import Parameter, signature
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from skipform.errors import SkipformError, shown


@dataclass(frozen=True, repr=False)
class Range:
    """The numbers that an argument takes: `least` and `most` belong to them, `above` and `below` do not."""

    least: float | None = None
    most: float | None = None
    above: float | None = None
    below: float | None = None

    def __contains__(self, value: float) -> bool:
        return (
            (self.least is None or value >= self.least)
            and (self.most is None or value <= self.most)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
        )

    def __repr__(self) -> str:  # as --help shows it
        if self.least is not None and self.most is not None:
            return f"{self.least} to {self.most}"
        ends = {"above {}": self.above, "{} or more": self.least, "below {}": self.below, "at most {}": self.most}
        return ", ".join(words.format(end) for words, end in ends.items() if end is not None)


# The upper ends are beyond all that makes sense: without them a slip of the pen takes the machine's memory, or the
# libraries' kernels end the process.
Count = Annotated[int, Range(1)]
Natural = Annotated[int, Range(0)]
Size = Annotated[int, Range(1, 2**20)]  # of a tensor in one direction: channels, classes, pixels, tokens
Depth = Annotated[int, Range(0, 10_000)]  # layers
Few = Annotated[int, Range(1, 100)]  # parts of a net, each of several layers
Doublings = Annotated[int, Range(1, 16)]  # each of them makes a net twice as wide or deep
Share = Annotated[float, Range(0, 1)]  # a probability, or a part of a whole
PartialShare = Annotated[float, Range(0, below=1)]
PositiveShare = Annotated[float, Range(above=0, most=1)]
Factor = Annotated[float, Range(above=0, most=10**6)]
NotNegative = Annotated[float, Range(0, 10**6)]
Seed = Annotated[int, Range(0, 2**63 - 1)]  # as torch takes it
Threads = Annotated[int, Range(0, 256)]  # 0 leaves the number to torch


def complete(function: Callable[..., Any], given: Any, where: str, skip: Iterable[str] = ()) -> dict[str, Any]:
    """The keyword arguments of `function`: those given, as the annotations have them, and the defaults of the others.

    The arguments named in `skip` belong to the caller: they are neither accepted nor filled in.

    Raises:
        SkipformError: an unknown or missing argument, or one of the wrong type or beyond its range; one line that
            begins with `where`.
    """
    accepted = arguments(function, skip)
    check_keys(given, accepted, where)
    result = {}
    for key, (default, hint) in accepted.items():
        if key not in given and default is Parameter.empty:
            raise SkipformError(f"{where}.{key}: missing; accepted: {described(hint)}")
        result[key] = typed(given[key], hint, f"{where}.{key}") if key in given else default
    return result


def checked(function: Callable[..., Any], given: Mapping[str, Any], where: str) -> dict[str, Any]:
    """What is given, as the annotations of `function` have it; SkipformError as from `complete`, except that arguments
    may be missing."""
    accepted = arguments(function)
    check_keys(given, accepted, where)
    return {key: typed(value, accepted[key][1], f"{where}.{key}") for key, value in given.items()}


def arguments(function: Callable[..., Any], skip: Iterable[str] = ()) -> dict[str, tuple[Any, Any]]:
    """What `function` takes: name -> (default or Parameter.empty, type)."""
    parameters = signature(function).parameters.items()
    annotated = function.__init__ if isinstance(function, type) else function  # type: ignore[misc]
    hints = get_type_hints(annotated, include_extras=True)
    return {key: (parameter.default, hints[key]) for key, parameter in parameters if key not in set(skip)}


def check_keys(given: Any, accepted: Iterable[str], where: str) -> None:
    """SkipformError unless `given` is a mapping whose keys are all accepted."""
    if not isinstance(given, Mapping):
        raise SkipformError(f"{where}: accepted is `key: value` lines, got {shown(given)}")
    accepted = list(accepted)
    for key in given:
        if key not in accepted:
            close = get_close_matches(str(key), accepted, n=1)
            hint = f" (did you mean {close[0]}?)" if close else ""
            raise SkipformError(f"{where}: unknown key {shown(str(key))}{hint}; accepted: {', '.join(accepted)}")


class _OutOfRange(Exception):
    """A number beyond the range of its annotation: (number, range)."""


def typed(value: Any, hint: Any, where: str) -> Any:
    """The value as the annotation has it: a list becomes a tuple and 1 a float where these are asked for.

    Nothing else is converted: "20" and True are no int. Raises SkipformError for a value that does not fit.
    """
    try:
        return _converted(value, hint)
    except _OutOfRange as error:
        number, accepted = error.args
        raise SkipformError(f"{where}: {shown(number)}; accepted: {accepted}") from None
    except TypeError:
        text = type(value).__name__ if "\n" in repr(value) else shown(value)  # a module's takes many lines
        raise SkipformError(f"{where}: {text} is not accepted; accepted: {described(hint)}") from None


def _converted(value: Any, hint: Any) -> Any:
    """As `typed`, but a TypeError for a value of another type, and _OutOfRange for a number beyond its range."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Annotated:
        number = _converted(value, inner[0])
        for accepted in inner[1:]:
            if number not in accepted:
                raise _OutOfRange(value, accepted)
        return number
    if origin in (Union, UnionType):
        beyond = None
        for choice in inner:
            try:
                return _converted(value, choice)
            except TypeError:
                continue
            except _OutOfRange as error:
                beyond = error
        if beyond:
            raise beyond
    elif origin is Literal:
        if any(type(value) is type(choice) and value == choice for choice in inner):
            return value
    elif origin in (tuple, list):
        if isinstance(value, list | tuple):
            kinds = inner[:1] * len(value) if origin is list or inner[-1] is Ellipsis else inner
            if len(kinds) == len(value):
                return origin(map(_converted, value, kinds))
    elif origin is dict:
        if isinstance(value, Mapping):
            return {_converted(key, inner[0]): _converted(entry, inner[1]) for key, entry in value.items()}
    elif hint is Any or (isinstance(value, hint) and (hint is bool or not isinstance(value, bool))):
        if isinstance(value, float) and not math.isfinite(value):
            raise _OutOfRange(value, "a finite number")
        return value
    elif hint is float and type(value) is int:
        try:
            return float(value)
        except OverflowError:
            raise _OutOfRange(value, "a finite number") from None
    raise TypeError


def described(hint: Any) -> str:
    """The annotation in words: 'add' | 'none', int | None, tuple[int, ...]."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return described(inner[0])
    if origin is Literal:
        return " | ".join(map(repr, inner))
    if origin in (Union, UnionType):
        return " | ".join(map(described, inner))
    if inner:
        return f"{origin.__name__}[{', '.join('...' if kind is Ellipsis else described(kind) for kind in inner)}]"
    return "None" if hint is NoneType else getattr(hint, "__name__", str(hint))
