"""Operations that move, drop or repeat entries or put constants among them, and constants shaped like a tensor."""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from skipform.compiler.emit import Emitter
from skipform.compiler.rules.affine import masked_fill, put
from skipform.compiler.rules.values import (
    BatchInside,
    Operand,
    PaddedWithMinusInfinity,
    Value,
    dims_of,
    number,
    result_sizes,
    size_of,
)


def same(e: Emitter, x: fx.Node, *args: Any, **kwargs: Any) -> fx.Node:
    """The identity: copies, contiguity, casts to the same dtype."""
    before, after = e.source.args[0].meta["val"].dtype, e.source.meta["val"].dtype
    if after != before:
        raise e.unsupported(f"casts {before} to {after}", "one dtype throughout")
    return x


def dropout(e: Emitter, x: fx.Node, p: float, train: bool) -> fx.Node:
    if train and p > 0:
        raise e.unsupported("is random", "dropout with training=self.training")
    return x


# -- entries in the same order -----------------------------------------------------------------------------------


def view(e: Emitter, x: fx.Node | BatchInside, *args: Any, **kwargs: Any) -> fx.Node | BatchInside:
    """Any operation that leaves the entries in their order."""
    sizes = result_sizes(e)
    if isinstance(x, BatchInside):
        return e.reshape(x.x, sizes)
    before = e.sizes(x)[: x.meta["batch_dim"]]
    if sizes[0] == -1 and math.prod(before) > 1:
        return BatchInside(e.reshape(x, [*before, *sizes]))
    return e.reshape(x, sizes)


def squeeze(e: Emitter, x: fx.Node, dim: int | Sequence[int] | None = None) -> fx.Node:
    """Drop named dimensions of size 1. Without names, a batch of one sample would lose its batch dimension too."""
    if dim is None:
        raise e.unsupported("drops the batch dimension of a batch of 1", "squeeze of a named dimension")
    e.not_batch(x, *(d % x.meta["val"].ndim for d in ([dim] if isinstance(dim, int) else dim)))
    return e.reshape(x, result_sizes(e))


# -- dimensions in another order ---------------------------------------------------------------------------------


def permute(e: Emitter, x: fx.Node, dims: Sequence[int]) -> fx.Node:
    return e.permute(x, [d % x.meta["val"].ndim for d in dims])


def transpose(e: Emitter, x: fx.Node, a: int = 0, b: int = 1) -> fx.Node:
    order = [*range(x.meta["val"].ndim)]
    if len(order) > 1:
        order[a], order[b] = order[b], order[a]
    return e.permute(x, order)


def movedim(e: Emitter, x: fx.Node, source: Any, destination: Any) -> fx.Node:
    axes = torch.empty([*range(x.meta["val"].ndim)], device="meta").movedim(source, destination).shape
    return e.permute(x, list(axes))


# -- repetition and concatenation --------------------------------------------------------------------------------


def expand(e: Emitter, x: fx.Node, sizes: Any, *, implicit: bool = False) -> fx.Node:
    return e.expand(x, result_sizes(e))


def copy(e: Emitter, x: Value, source: Operand, non_blocking: bool = False) -> Operand:
    """source in the shape of x."""
    sizes = result_sizes(e)
    if isinstance(source, fx.Node):
        return e.expand(source, sizes)
    return source.expand([1 if s == -1 else s for s in sizes])


def repeat(e: Emitter, x: fx.Node, repeats: Sequence[int]) -> fx.Node:
    sizes = e.sizes(x)
    new = len(repeats) - len(sizes)
    x = e.reshape(x, [*[1] * new, *sizes])
    for d, times in enumerate(repeats):
        if times != 1:
            e.not_batch(x, d)
            x = e.cat([x] * times, d)
    return x


def cat(e: Emitter, tensors: Sequence[Operand], dim: int = 0) -> fx.Node:
    ndim = len(result_sizes(e))
    dim %= ndim
    like = next(t for t in tensors if isinstance(t, fx.Node))
    parts = []
    for t in tensors:
        if isinstance(t, fx.Node):
            parts.append(t)
        elif tuple(t.shape) != (0,):  # torch ignores a vector without entries
            sizes = result_sizes(e)
            sizes[dim] = t.shape[dim]
            parts.append(e.spread(t, sizes, like))
    e.not_batch(like, dim)
    return e.cat(parts, dim)


def stack(e: Emitter, tensors: Sequence[Operand], dim: int = 0) -> fx.Node:
    sizes = result_sizes(e)
    dim %= len(sizes)
    sizes[dim] = 1
    like = next(t for t in tensors if isinstance(t, fx.Node))
    parts = [
        e.reshape(t, sizes) if isinstance(t, fx.Node) else e.spread(t.unsqueeze(dim), sizes, like) for t in tensors
    ]
    return e.cat(parts, dim)


# -- slices ------------------------------------------------------------------------------------------------------


def slice_(
    e: Emitter, x: fx.Node, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1
) -> fx.Node:
    (dim,) = dims_of(x, dim)
    if dim == x.meta["batch_dim"]:
        if (start in (None, 0)) and step == 1 and result_sizes(e)[dim] == -1:
            return x
        raise e.unsupported("takes some samples of the batch", "slices of the other dimensions")
    return e.slice(x, dim, *slice(start, end, step).indices(size_of(x, dim)))


def narrow(e: Emitter, x: fx.Node, dim: int, start: int, length: int) -> fx.Node:
    (dim,) = dims_of(x, dim)
    start %= size_of(x, dim) or 1
    return e.slice(x, dim, start, start + length)


def select(e: Emitter, x: fx.Node, dim: int, index: int) -> fx.Node:
    (dim,) = dims_of(x, dim)
    e.not_batch(x, dim)
    index %= size_of(x, dim)
    return e.reshape(e.slice(x, dim, index, index + 1), result_sizes(e))


def split(e: Emitter, x: fx.Node, size: Any, dim: int = 0) -> list[fx.Node]:
    """split, split_with_sizes, chunk, tensor_split: slices as long as the original's."""
    (dim,) = dims_of(x, dim)
    e.not_batch(x, dim)
    parts, start = [], 0
    for part in e.source.meta["val"]:
        length = part.shape[dim]
        parts.append(e.slice(x, dim, start, start + length))
        start += length
    return parts


def split_in_axis(axis: int) -> Callable[..., list[fx.Node]]:
    """hsplit, vsplit, dsplit: tensor_split along the axis."""
    return lambda e, x, size: split(e, x, size, axis)


def unbind(e: Emitter, x: fx.Node, dim: int = 0) -> list[fx.Node]:
    (dim,) = dims_of(x, dim)
    e.not_batch(x, dim)
    sizes = [result_sizes(e, part) for part in e.source.meta["val"]]
    return [e.reshape(e.slice(x, dim, i, i + 1), size) for i, size in enumerate(sizes)]


def index_select(e: Emitter, x: fx.Node, dim: int, index: Operand) -> fx.Node:
    if isinstance(index, fx.Node):
        raise e.unsupported("an index that depends on the input is not continuous", "constant indices")
    (dim,) = dims_of(x, dim)
    n = size_of(x, dim)
    return e.take(x, dim, [int(i) % n for i in index.flatten().tolist()])


# -- padding -----------------------------------------------------------------------------------------------------


def pad(
    e: Emitter, x: fx.Node, pads: Sequence[int], mode: str = "constant", value: float | None = None
) -> fx.Node | PaddedWithMinusInfinity:
    """Constant padding is an affine map with rows of zeros; the other modes repeat entries. Padding with -inf is left
    to the max pooling that follows."""
    ndim = x.meta["val"].ndim
    pads = [number(e, p) for p in pads]
    sides = {ndim - 1 - i // 2: (pads[i], pads[i + 1]) for i in range(0, len(pads), 2) if pads[i] or pads[i + 1]}
    e.not_batch(x, *sides)
    if mode == "constant" and value == -math.inf and all(p >= 0 for p in pads):
        return PaddedWithMinusInfinity(x, sides)
    if mode != "constant" and min(pads, default=0) < 0:
        raise e.unsupported(f"pads by a negative number in mode {mode!r}", "a slice, and then the padding")
    if mode == "constant" and not value:
        return e.emit(F.pad, x, tuple(pads)) if sides else x
    for d, (before, after) in sides.items():
        n = size_of(x, d)
        places = range(-before, n + after)
        if mode == "constant":
            x = _pad_with(e, x, d, (before, after), float(value or 0))
        elif mode == "reflect":
            x = e.take(x, d, [abs(i) if i < n else 2 * (n - 1) - i for i in places])
        elif mode == "replicate":
            x = e.take(x, d, [min(max(i, 0), n - 1) for i in places])
        else:
            x = e.take(x, d, [i % n for i in places])
    return x


def _pad_with(e: Emitter, x: fx.Node, dim: int, sides: tuple[int, int], value: float) -> fx.Node:
    """x between constant entries along one dimension; a negative side drops entries of x."""
    before, after = sides
    inner = e.slice(x, dim, max(-before, 0), size_of(x, dim) - max(-after, 0))
    parts: list[fx.Node | None] = [None, inner, None]
    for position, length in ((0, before), (2, after)):
        if length > 0:
            sizes = e.sizes(inner)
            sizes[dim] = length
            parts[position] = e.spread(torch.tensor(value, dtype=torch.float64), sizes, inner)
    return e.cat([part for part in parts if part is not None], dim)


def constant_pad(e: Emitter, x: fx.Node, pads: Sequence[int], value: float = 0) -> fx.Node | PaddedWithMinusInfinity:
    return pad(e, x, pads, "constant", value)


def reflection_pad(e: Emitter, x: fx.Node, pads: Sequence[int]) -> fx.Node | PaddedWithMinusInfinity:
    return pad(e, x, pads, "reflect")


def replication_pad(e: Emitter, x: fx.Node, pads: Sequence[int]) -> fx.Node | PaddedWithMinusInfinity:
    return pad(e, x, pads, "replicate")


# -- everything else that moves entries --------------------------------------------------------------------------


def move(e: Emitter, *args: Any, **kwargs: Any) -> fx.Node:
    """Any operation that only moves, drops or repeats entries, or fills in zeros. It is applied once to numbered
    entries, which gives the index of each entry of the result. Several activations are concatenated.

    Two samples of N entries are numbered 1..N and N+1..2N, 0 is an entry that was filled in. The operation treats all
    samples alike if the second sample of its result is the first one plus N, but for those zeros.
    """
    args = tuple(_as_in_batch(e, a, original) for a, original in zip(args, e.source.args, strict=True))
    sources = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, fx.Node)]
    flat = [e.batch_first(source) for source in sources]
    flat = [e.reshape(x, [-1, math.prod(e.sizes(x)[1:])]) for x in flat]
    ends = [*itertools.accumulate(size_of(x, 1) for x in flat)]
    starts, entries = iter([0, *ends]), ends[-1]

    def numbered(argument: Any) -> Any:
        if isinstance(argument, torch.SymInt):
            return 2 if str(argument.node.expr).isidentifier() else number(e, argument)
        if not isinstance(argument, fx.Node):
            return argument
        sizes = [d for d in e.sizes(argument) if d != -1]
        first = torch.arange(math.prod(sizes), dtype=torch.float64).reshape(sizes) + next(starts) + 1
        return torch.stack((first, first + entries)).movedim(0, argument.meta["batch_dim"])

    args, kwargs = fx.node.map_aggregate((args, kwargs), numbered)
    sizes = result_sizes(e)
    batch = sizes.index(-1)
    first, second = e.source.target(*args, **kwargs).movedim(batch, 0)
    if not torch.equal(torch.where(first > 0, first + entries, 0), second):
        raise e.unsupported("mixes the samples of the batch")
    state = e.cat(flat, 1)
    index = first.flatten().long() - 1
    if bool((index < 0).any()):
        index = torch.where(index < 0, entries, index)
        state = e.emit(F.pad, state, (0, 1))
    y = e.take(state, 1, index.tolist())
    return e.batch_to(e.reshape(y, [-1, *first.shape]), batch)


def scatter(e: Emitter, x: Value, dim: int, index: Operand, source: Value, *, reduce: str | None = None) -> fx.Node:
    """x with the entries at constant places along dim replaced by a number, or by entries of the source."""
    if isinstance(index, fx.Node):
        raise e.unsupported("an index that depends on the input is not continuous", "constant indices")
    if reduce is not None:
        raise e.unsupported(f"reduces by {reduce!r}", "scatter_add")
    sizes = [1 if d == -1 else d for d in result_sizes(e)]
    times = torch.zeros(sizes).scatter_add(dim, index, torch.ones(index.shape))
    if not isinstance(source, (fx.Node, Tensor)):
        return masked_fill(e, x, times > 0, source)
    if bool((times > 1).any()):
        raise e.unsupported("writes an entry more than once, in no fixed order", "scatter_add")
    return move(e, x, dim, index, source)


def index_put(e: Emitter, x: Value, indices: Sequence[Any], values: Operand, accumulate: bool = False) -> fx.Node:
    """x[indices] = values for constant indices."""
    if not isinstance(values, fx.Node):
        return put(e, x, indices, values, accumulate)
    if accumulate:
        raise e.unsupported("adds at indices", "index_add or scatter_add")
    return move(e, x, indices, values)


def _as_in_batch(e: Emitter, argument: Any, original: Any) -> Any:
    """A constant with one row for every sample: an activation if entries are taken from it, two rows if it indexes."""
    if not isinstance(argument, Tensor):
        return argument
    if not argument.is_floating_point():
        return argument.expand([d if isinstance(d, int) else 2 for d in original.meta["val"].shape])
    return e.spread(argument, result_sizes(e, original.meta["val"]), e.first_input)


# -- constants shaped like an activation: one row that stands for every sample -----------------------------------


def zeros(e: Emitter, x: fx.Node, *args: Any, **kwargs: Any) -> Tensor:
    """zeros_like(x), x.new_zeros(size), and the same for empty."""
    return _filled(e, 0.0)


def ones(e: Emitter, x: fx.Node, *args: Any, **kwargs: Any) -> Tensor:
    """ones_like(x), x.new_ones(size)."""
    return _filled(e, 1.0)


def full(e: Emitter, x: fx.Node, *args: Any, **kwargs: Any) -> Tensor:
    """full_like(x, value), x.new_full(size, value), x.fill(value)."""
    return _filled(e, float(args[-1]))


def _filled(e: Emitter, value: float) -> Tensor:
    result = e.source.meta["val"]
    sizes = [d if isinstance(d, int) else 1 for d in result.shape]
    dtype = torch.float64 if result.is_floating_point() else result.dtype  # the value is not rounded
    return torch.full(sizes, value, dtype=dtype, device=e.device)
