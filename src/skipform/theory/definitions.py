"""The definitions that the constructions are compared with: naive, and independent of how the constructions work.

They act on arrays of floats, of Fractions, or of symbols of a solver. A merge's argument x holds its tensors flattened
and concatenated in the last axis, as in `skips`; before it there may be a batch. Solver terms cannot be compared by
NumPy, so a maximum or minimum of them is `proofs.greatest` or `proofs.least`.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from math import prod
from typing import Any

import numpy as np

from skipform.theory import proofs

Shape = tuple[int, ...]


def maximum(x: np.ndarray) -> np.ndarray:
    """max(x_1, ..., x_n) of numbers: (..., n) -> (...)."""
    return x.max(-1)


def symbolic_maximum(x: np.ndarray) -> np.ndarray:
    """max(x_1, ..., x_n) of solver terms: (n,) -> (1,)."""
    return single(proofs.greatest(x))


def mean(values: Any) -> Any:
    """(x_1 + ... + x_n) / n over the first axis."""
    return sum(values) / len(values)


def mean_of_last_axis(x: np.ndarray) -> np.ndarray:
    """(x_1 + ... + x_n) / n: (..., n) -> (..., 1)."""
    return x.sum(-1, keepdims=True) / x.shape[-1]


def difference(values: Any) -> Any:
    """x_1 - x_2 over the first axis."""
    return values[0] - values[1]


def single(term: Any) -> np.ndarray:
    """One solver term as an array (1,)."""
    return np.array([term], dtype=object)


def merge(x: np.ndarray, n: int, of: Callable[[Any], Any]) -> Any:
    """`of` applied to n tensors of one size, which it gets as its first axis: (batch, n * size) -> (batch, size)."""
    return of(np.moveaxis(x.reshape(len(x), n, -1), 1, 0))


def product(x: np.ndarray, n: int) -> np.ndarray:
    """x_1 x_2 ... x_n entry by entry: (n * size,) -> (size,)."""
    return x.reshape(n, -1).prod(0)


def matrix_product(x: np.ndarray) -> np.ndarray:
    """A B for x = (A; B), A (2, 3) and B (3, 4): (..., 18) -> (batch, 2, 4)."""
    pairs = zip(x[..., :6].reshape(-1, 2, 3), x[..., 6:].reshape(-1, 3, 4), strict=True)
    return np.stack([a @ b for a, b in pairs])


def concatenation(x: np.ndarray, shapes: Sequence[Shape], axis: int) -> np.ndarray:
    """The tensors of x concatenated along an axis that is counted without the batch."""
    ends = np.cumsum([0, *map(prod, shapes)])
    parts = [x[..., a:b].reshape(-1, *shape) for (a, b), shape in zip(pairwise(ends), shapes, strict=True)]
    return np.concatenate(parts, axis=axis + 1 if axis >= 0 else axis)


def global_pooling(x: np.ndarray, channels: int, of: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """`of` over all positions of each channel: (batch, channels, ...) -> (batch, channels) or (batch, channels, 1)."""
    return of(x.reshape(len(x), channels, -1))


def pooling(
    x: np.ndarray,
    shape: Shape,
    window: int,
    stride: int,
    padding: int,
    pick: Callable[[list[Any]], Any],
    *,
    ceil_mode: bool = False,
    dilation: int = 1,
) -> np.ndarray:
    """Pooling as it is defined: visit every position, look at every cell of its window, leave out those outside.

    x: one input of `shape` (c, *spatial), or a batch of them; `pick` maps the list of a window's cells to one entry.
    """
    outs = []
    for size in shape[1:]:
        room = size + 2 * padding - dilation * (window - 1) - 1
        positions = -(-room // stride) + 1 if ceil_mode else room // stride + 1
        outs.append(positions - (ceil_mode and (positions - 1) * stride >= size + padding))
    images = x.reshape(-1, *shape)
    result = np.empty((len(images), shape[0], *outs), dtype=object)
    for where in np.ndindex(*outs):
        cells = []
        for offset in np.ndindex(*(window,) * len(outs)):
            cell = tuple(i * stride - padding + j * dilation for i, j in zip(where, offset, strict=True))
            if all(0 <= i < size for i, size in zip(cell, shape[1:], strict=True)):
                cells.append(cell)
        for n, c in np.ndindex(len(images), shape[0]):
            result[(n, c, *where)] = pick([images[(n, c, *cell)] for cell in cells])
    return result
