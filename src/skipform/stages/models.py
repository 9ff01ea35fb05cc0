"""Models named on the command line: MODULE:FACTORY and shapes."""

import json
from importlib import import_module

from torch import nn

from skipform.errors import SkipformError


def from_factory(factory: str, arguments: str = "{}") -> nn.Module:
    """The model that MODULE:FACTORY returns for JSON arguments. Raises SkipformError if it is no torch module."""
    module, _, name = factory.partition(":")
    try:
        build = getattr(import_module(module), name)
        model = build(**json.loads(arguments))
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        raise SkipformError(
            f"{factory}: {' '.join(str(error).split())}; MODULE:FACTORY that returns a model is accepted"
        ) from error
    if not isinstance(model, nn.Module):
        raise SkipformError(f"{factory} returns a {type(model).__name__}; a torch.nn.Module is accepted")
    return model


def shape_of(text: str) -> tuple[int, ...]:
    """The shape that a text such as "3,32,32" names. Raises SkipformError if it names none."""
    try:
        shape = tuple(int(size) for size in text.split(","))
    except ValueError:
        raise SkipformError(f"--input {text}: whole numbers separated by commas are accepted, e.g. 1,3,64,64") from None
    if min(shape) < 1:
        raise SkipformError(f"--input {text}: sizes of at least 1 are accepted")
    return shape
