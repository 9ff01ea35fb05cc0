"""Maxima and minima: of two tensors, over dimensions, and over the windows of a max pooling (Theorem 1).

The index of a maximum is not continuous in the input, so that part of a result is `Unavailable`.
"""

import math
from collections.abc import Sequence

from torch import fx

from skipform.compiler.emit import Emitter
from skipform.compiler.rules.values import (
    Dims,
    Operand,
    PaddedWithMinusInfinity,
    Unavailable,
    Value,
    activation_first,
    adaptive_windows,
    dims_of,
    one_per_dim,
    pooled_dims,
    real,
    result_sizes,
    size_of,
)
from skipform.theory.trees import Window


def maximum(e: Emitter, x: Value, y: Value) -> fx.Node:
    """max(x, y) = relu(x - y) + y."""
    sizes = result_sizes(e)
    x, y = activation_first(x, y)
    x = e.expand(x, sizes)
    if isinstance(y, fx.Node):
        return e.maximum(x, e.expand(y, sizes))
    return e.scale(e.relu(e.scale(x, 1.0, -real(e, y))), 1.0, real(e, y))


def minimum(e: Emitter, x: Value, y: Value) -> fx.Node:
    """min(x, y) = x - relu(x - y)."""
    sizes = result_sizes(e)
    x, y = activation_first(x, y)
    x = e.expand(x, sizes)
    if isinstance(y, fx.Node):
        gap = e.combine([x, e.expand(y, sizes)], [1, -1], merge=False)
    else:
        gap = e.scale(x, 1.0, -real(e, y))
    return e.combine([x, e.relu(gap)], [1, -1], merge=False)


def amax(e: Emitter, x: fx.Node, dim: Dims = (), keepdim: bool = False) -> fx.Node:
    """The maximum over all entries along dims: a tree over one window."""
    dims = dims_of(x, dim)
    e.not_batch(x, *dims)
    sizes = e.sizes(x)
    others = [d for d in range(len(sizes)) if d not in dims]
    flat = e.permute(x, [*others, *dims])
    flat = e.reshape(flat, [*(sizes[d] for d in others), math.prod(sizes[d] for d in dims)])
    top = e.window_max(flat, len(others), [tuple(range(size_of(flat, len(others))))])
    return e.reshape(top, result_sizes(e))


def amin(e: Emitter, x: fx.Node, dim: Dims = (), keepdim: bool = False) -> fx.Node:
    return e.scale(amax(e, e.scale(x, -1.0, 0.0), dim, keepdim), -1.0, 0.0)


def max_of(
    e: Emitter, x: Value, dim: Operand | int | None = None, keepdim: bool = False
) -> fx.Node | tuple[fx.Node, Unavailable]:
    """max(x, y), or max(x, dim) = (values, indices)."""
    return maximum(e, x, dim) if isinstance(dim, Operand) else _extreme(e, x, dim, sign=1.0)


def min_of(
    e: Emitter, x: Value, dim: Operand | int | None = None, keepdim: bool = False
) -> fx.Node | tuple[fx.Node, Unavailable]:
    """min(x, y), or min(x, dim) = (values, indices)."""
    return minimum(e, x, dim) if isinstance(dim, Operand) else _extreme(e, x, dim, sign=-1.0)


def _extreme(e: Emitter, x: Value, dim: int | None, sign: float) -> tuple[fx.Node, Unavailable]:
    """sign * max(sign * x) along one dimension."""
    if dim is None:
        raise e.unsupported("acts along the batch dimension", "amax over the other dimensions")
    assert isinstance(x, fx.Node), "the only operand must be an activation"
    sizes = result_sizes(e)
    (dim,) = dims_of(x, dim)
    e.not_batch(x, dim)
    top = e.window_max(e.scale(x, sign, 0.0), dim, [tuple(range(size_of(x, dim)))])
    return e.reshape(e.scale(top, sign, 0.0), sizes), Unavailable("the index of an extreme value")


def top(
    e: Emitter, x: fx.Node, k: int, dim: int = -1, largest: bool = True, is_sorted: bool = True
) -> tuple[fx.Node, Unavailable]:
    """topk for k = 1, a maximum; the k-th largest entry has no rule."""
    if k != 1:
        raise e.unsupported(f"takes the {k} largest entries", "the largest one (amax)")
    return _extreme(e, x, dim, sign=1.0 if largest else -1.0)


def running_max(e: Emitter, x: fx.Node, dim: int) -> tuple[fx.Node, Unavailable]:
    """cummax: entry i is the maximum of the entries 0..i."""
    (dim,) = dims_of(x, dim)
    n = size_of(x, dim)
    windows = [tuple(min(j, i) for j in range(n)) for i in range(n)]
    return e.window_max(x, dim, windows), Unavailable("the index of a maximum")


def running_min(e: Emitter, x: fx.Node, dim: int) -> tuple[fx.Node, Unavailable]:
    top, index = running_max(e, e.scale(x, -1.0, 0.0), dim)
    return e.scale(top, -1.0, 0.0), index


# -- max pooling -------------------------------------------------------------------------------------------------


def max_pool(
    e: Emitter,
    x: fx.Node | PaddedWithMinusInfinity,
    kernel_size: int | Sequence[int],
    stride: int | Sequence[int] = (),
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    ceil_mode: bool = False,
) -> fx.Node:
    """The maximum over windows, a tree of depth ceil(log2 n) with n entries in a window (Theorem 1).

    The maximum leaves padding out: an index outside the input is replaced by the nearest one of the same window that is
    inside, and max(x, x) = relu(0) + x = x exactly.
    """
    pads: dict[int, tuple[int, int]] = {}
    if isinstance(x, PaddedWithMinusInfinity):
        pads, x = x.pads, x.x
    dims, counts = pooled_dims(e, x), result_sizes(e)
    kernels, strides, paddings, dilations = (
        one_per_dim(v, len(dims)) for v in (kernel_size, stride or kernel_size, padding, dilation)
    )
    windows = {}
    for dim, kernel, step, before, dilated in zip(dims, kernels, strides, paddings, dilations, strict=True):
        n = size_of(x, dim)
        first = -before - pads.get(dim, (0, 0))[0]
        starts = [first + i * step for i in range(counts[dim])]
        offsets = range(0, kernel * dilated, dilated)
        if any(all(not 0 <= start + j < n for j in offsets) for start in starts):
            raise e.unsupported("has a window that lies in the padding; its maximum is -inf")
        windows[dim] = _shortened([tuple(_nearest_inside(start + j, n, dilated) for j in offsets) for start in starts])
    e.not_batch(x, *windows)
    return e.box_max(x, windows)


def _nearest_inside(index: int, n: int, step: int) -> int:
    """The index of 0..n-1 nearest to `index` among those that are a multiple of `step` away from it; there is one."""
    if index < 0:
        return index % step
    if index >= n:
        return n - 1 - (n - 1 - index) % step
    return index


def _shortened(windows: list[Window]) -> list[Window]:
    """The windows with fewer indices where all of them repeat some, as under a kernel larger than its input."""
    distinct = [tuple(dict.fromkeys(window)) for window in windows]
    return windows if max(map(len, distinct)) == len(windows[0]) else _of_equal_length(distinct)


def _of_equal_length(windows: list[Window]) -> list[Window]:
    """The windows, all as long as the longest one: the last index is repeated, which leaves the maximum the same."""
    longest = max(map(len, windows))
    return [window + window[-1:] * (longest - len(window)) for window in windows]


def max_pool_with_indices(
    e: Emitter,
    x: fx.Node | PaddedWithMinusInfinity,
    kernel_size: int | Sequence[int],
    stride: int | Sequence[int] = (),
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    ceil_mode: bool = False,
) -> tuple[fx.Node, Unavailable]:
    largest = max_pool(e, x, kernel_size, stride, padding, dilation, ceil_mode)
    return largest, Unavailable("the index of a maximum")


def adaptive_max_pool(e: Emitter, x: fx.Node, output_size: int | Sequence[int]) -> tuple[fx.Node, Unavailable]:
    dims, counts = pooled_dims(e, x), result_sizes(e)
    e.not_batch(x, *dims)
    windows = {d: _of_equal_length([*map(tuple, adaptive_windows(size_of(x, d), counts[d]))]) for d in dims}
    return e.box_max(x, windows), Unavailable("the index of a maximum")
