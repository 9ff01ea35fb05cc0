"""What a model is rewritten into. Each file of this folder is a target and has one function

rewritten(module, inputs, settings) -> fx.GraphModule        float64; `inputs` a tuple of tensors, batch first

grammar      affine maps, ReLU, concatenation and reshapes, strictly
keep_add     the same, with additions left as they are (Proposition 1)
fast         torch's own operations where they are fastest, batch norms folded: no grammar, but speed
verifier     Conv, Gemm, Relu, Add, Concat along channels, Flatten, Reshape, for tools that read few operations
perceptron   a chain Gemm, Relu, Gemm, ... without a skip (Definition 1); several inputs are concatenated before it
"""

from dataclasses import dataclass
from difflib import get_close_matches
from importlib import import_module
from pkgutil import iter_modules
from typing import Any

import numpy as np

from skipform.errors import SkipformError, shown

MEMORY = 4 * 2**30  # bytes


@dataclass(frozen=True)
class Settings:
    """What a target may need to know.

    check   compare the result with the original before it is returned
    box     (lower, upper), numbers or arrays: the inputs are known to lie between them
    memory  bytes: what would need more for its matrices is refused
    """

    check: bool = True
    box: tuple[Any, Any] | None = None
    memory: int = MEMORY


def bounds_of(box: tuple[Any, Any], shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """The lower and upper bounds of a box as arrays of this shape. Raises SkipformError unless they are finite, in
    order, and of this shape or one that spreads to it."""
    try:
        lower, upper = (np.broadcast_to(np.asarray(bound, dtype=np.float64), shape) for bound in box)
    except (TypeError, ValueError):
        raise SkipformError(
            f"box: accepted are (lower, upper), each a number or an array of shape {tuple(shape)}"
        ) from None
    if not (np.isfinite(lower).all() and np.isfinite(upper).all()):
        raise SkipformError("box: a bound is NaN or infinite; finite numbers are accepted")
    if (lower > upper).any():
        where = tuple(map(int, np.argwhere(lower > upper)[0]))
        raise SkipformError(
            f"box: lower {lower[where]:g} > upper {upper[where]:g} at {where}; lower <= upper is accepted"
        )
    return lower, upper


def names() -> list[str]:
    """The targets there are."""
    return sorted(file.name for file in iter_modules(__path__))


def find(name: str) -> Any:
    """The file of a target. Raises SkipformError for an unknown name."""
    if name not in names():
        close = get_close_matches(str(name), names(), n=1)
        hint = f" (did you mean {close[0]}?)" if close else ""
        raise SkipformError(f"unknown target {shown(name)}{hint}; accepted: {', '.join(names())}")
    return import_module(f"{__name__}.{name}")
