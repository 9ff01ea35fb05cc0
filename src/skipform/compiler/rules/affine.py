"""Sums and products with constants, convolutions, normalisation with fixed statistics: affine maps.

What no layer of torch computes is one matrix, read off from the operation's values on the unit vectors.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from skipform.compiler.emit import Emitter
from skipform.compiler.rules.values import (
    PRODUCT,
    BatchInside,
    Dims,
    Operand,
    Unavailable,
    Value,
    activation_first,
    dims_of,
    real,
    result_sizes,
    size_of,
)


def add(e: Emitter, x: Value, y: Value, alpha: float = 1, *, minus: bool = False) -> fx.Node:
    """x + alpha y."""
    return linear_sum(e, [(x, 1.0), (y, -alpha if minus else alpha)])


def linear_sum(e: Emitter, terms: Sequence[tuple[Value, float]]) -> fx.Node:
    """sum of c * x over terms (x, c), with activations, constants and numbers broadcast to the result."""
    sizes = result_sizes(e)
    active = [(e.expand(x, sizes), c) for x, c in terms if isinstance(x, fx.Node)]
    total = e.combine([x for x, _ in active], [c for _, c in active])
    for x, c in terms:
        if not isinstance(x, fx.Node):
            total = e.scale(total, 1.0, real(e, x) * c)
    return total


def mul(e: Emitter, x: Value, y: Value) -> fx.Node:
    x, factor = activation_first(x, y)
    if isinstance(factor, fx.Node):
        raise e.unsupported(PRODUCT, "addition, maximum or concatenation")
    return e.scale(e.expand(x, result_sizes(e)), real(e, factor), 0.0)


def div(e: Emitter, x: fx.Node, y: Value, rounding_mode: str | None = None) -> fx.Node:
    if isinstance(y, fx.Node) or rounding_mode is not None:
        raise e.unsupported("a division by an activation, or rounded, is not piecewise linear", "a constant divisor")
    return e.scale(e.expand(x, result_sizes(e)), 1 / real(e, y), 0.0)


def multiply_matrices(e: Emitter, x: Operand, y: Operand) -> fx.Node:
    """x @ y with one of them constant, which may have k matrices for each sample, as attention with k heads has."""
    constant, active = (y, x) if isinstance(x, fx.Node) else (x, y)
    if isinstance(active, fx.Node) and isinstance(constant, Tensor) and _has_several_rows(constant, active):
        active = e.reshape(active, [-1, len(constant), *e.sizes(active)[1:]])
        product = e.emit(torch.matmul, *((active, constant) if isinstance(x, fx.Node) else (constant, active)))
        return e.reshape(product, result_sizes(e))
    if isinstance(x, fx.Node):
        if isinstance(y, fx.Node):
            raise e.unsupported(PRODUCT, "a constant matrix")
        e.not_batch(x, x.meta["val"].ndim - 1)
        return e.linear(x, y.T) if y.ndim == 2 else e.emit(torch.matmul, x, y)
    assert isinstance(y, fx.Node), "one operand must be an activation"
    e.not_batch(y, max(y.meta["val"].ndim - 2, 0))
    return e.emit(torch.matmul, x, y)


def _has_several_rows(constant: Tensor, active: fx.Node) -> bool:
    return constant.ndim == active.meta["val"].ndim == 3 and active.meta["batch_dim"] == 0 and len(constant) > 1


def addmm(e: Emitter, bias: Operand, x: Operand, y: Operand, *, beta: float = 1, alpha: float = 1) -> fx.Node:
    """beta bias + alpha x @ y."""
    if isinstance(x, Tensor) and isinstance(y, Tensor):
        return linear_sum(e, [(bias, beta), (torch.matmul(x, y), alpha)])
    product = multiply_matrices(e, x, y)
    return linear_sum(e, [(product, alpha), (bias, beta)])


def linear(e: Emitter, x: fx.Node | BatchInside, weight: Operand, bias: Operand | None = None) -> fx.Node | BatchInside:
    if isinstance(weight, fx.Node) or isinstance(bias, fx.Node):
        raise e.unsupported(PRODUCT, "constant weights")
    return BatchInside(e.linear(x.x, weight, bias)) if isinstance(x, BatchInside) else e.linear(x, weight, bias)


def einsum(e: Emitter, equation: str, operands: Sequence[Operand], path: Sequence[int] | None = None) -> fx.Node:
    if sum(isinstance(operand, fx.Node) for operand in operands) != 1:
        raise e.unsupported(PRODUCT, "constant factors")
    inputs, _, output = equation.replace(" ", "").partition("->")
    for labels, operand in zip(inputs.split(","), operands, strict=True):
        if isinstance(operand, fx.Node):
            if "." in labels:
                continue  # the batch stays an outer dimension, and `emit` checks the shape
            batch = labels[operand.meta["batch_dim"]]
            if "->" in equation and batch not in output:
                raise e.unsupported("sums over the batch")
    return e.emit(torch.einsum, equation, *operands)


# -- convolutions ------------------------------------------------------------------------------------------------


def convolution(
    e: Emitter, x: fx.Node, weight: Operand, bias: Operand | None, transposed: bool = False, **how: Any
) -> fx.Node:
    if isinstance(weight, fx.Node) or isinstance(bias, fx.Node):
        raise e.unsupported(PRODUCT, "constant weights")
    how = {k: v if isinstance(v, (int, str)) else tuple(v) for k, v in how.items()}
    return e.convolution(x, weight, bias, transposed, **how)


def conv(
    e: Emitter,
    x: fx.Node,
    weight: Operand,
    bias: Operand | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] | str = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> fx.Node:
    return convolution(e, x, weight, bias, stride=stride, padding=padding, dilation=dilation, groups=groups)


def conv_transpose(
    e: Emitter,
    x: fx.Node,
    weight: Operand,
    bias: Operand | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    output_padding: int | Sequence[int] = 0,
    groups: int = 1,
    dilation: int | Sequence[int] = 1,
) -> fx.Node:
    how = {
        "stride": stride,
        "padding": padding,
        "output_padding": output_padding,
        "groups": groups,
        "dilation": dilation,
    }
    return convolution(e, x, weight, bias, transposed=True, **how)


def any_convolution(
    e: Emitter,
    x: fx.Node,
    weight: Operand,
    bias: Operand | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
) -> fx.Node:
    """aten.convolution, which torch decomposes all other convolutions to."""
    if transposed:
        return conv_transpose(e, x, weight, bias, stride, padding, output_padding, groups, dilation)
    return conv(e, x, weight, bias, stride, padding, dilation, groups)


# -- normalisation -----------------------------------------------------------------------------------------------


def batch_norm(
    e: Emitter,
    x: fx.Node,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor | None,
    var: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
    cudnn: bool = False,
) -> fx.Node:
    """(x - mean) / sqrt(var + eps) * weight + bias with the running statistics: an affine map of each channel."""
    if training or mean is None or var is None:
        raise e.unsupported("statistics of the batch are not piecewise linear", "batch_norm in eval mode")
    s = (var.double() + eps).rsqrt()
    s = s if weight is None else s * weight.double()
    t = -mean.double() * s + (0 if bias is None else bias.double())
    channels = (-1, *(1,) * (x.meta["val"].ndim - 2))
    return e.scale(x, s.reshape(channels), t.reshape(channels))


def batch_norm_inference(
    e: Emitter,
    x: fx.Node,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    var: Tensor,
    momentum: float,
    eps: float,
) -> tuple[fx.Node, Unavailable, Unavailable]:
    y = batch_norm(e, x, weight, bias, mean, var, False, momentum, eps)
    return y, Unavailable("the saved mean of batch_norm"), Unavailable("the saved deviation of batch_norm")


# -- sums along dimensions ---------------------------------------------------------------------------------------


def reduction(e: Emitter, x: fx.Node, dim: Dims, *, average: bool) -> fx.Node:
    """Sum or mean over dims: the fixed map (1 ... 1), divided by the number of entries for the mean."""
    dims = dims_of(x, dim)
    e.not_batch(x, *dims)
    batch = x.meta["batch_dim"]
    y = e.batch_first(x)
    dims = [d if d > batch else d + 1 for d in dims]  # as in y
    while dims:
        last = dims.pop()
        first = last
        while dims and dims[-1] == first - 1:  # adjacent dimensions are summed over as one
            first = dims.pop()
        sizes = e.sizes(y)
        n = math.prod(sizes[first : last + 1])
        if average and n == 0:
            raise e.unsupported("averages no entries")
        ones = torch.full((1, n), 1 / n if average else 1.0, dtype=torch.float64)
        y = e.along(e.reshape(y, [*sizes[:first], n, *sizes[last + 1 :]]), first, ones)
        y = e.reshape(y, [*sizes[:first], *[1] * (last + 1 - first), *sizes[last + 1 :]])
    return e.reshape(e.batch_to(y, batch), result_sizes(e))


def mean(e: Emitter, x: fx.Node, dim: Dims = None, keepdim: bool = False, *, dtype: Any = None) -> fx.Node:
    return reduction(e, x, dim, average=True)


def total(e: Emitter, x: fx.Node, dim: Dims = None, keepdim: bool = False, *, dtype: Any = None) -> fx.Node:
    return reduction(e, x, dim, average=False)


def cumsum(e: Emitter, x: fx.Node, dim: int, *, dtype: Any = None) -> fx.Node:
    """The lower triangle of ones along dim."""
    (dim,) = dims_of(x, dim)
    return e.along(x, dim, torch.ones(size_of(x, dim), size_of(x, dim)).tril())


def scatter_add(e: Emitter, x: Value, dim: int, index: Operand, source: Value) -> fx.Node:
    """x plus the entries of the source, each at its constant place along dim: one 0/1 matrix of the source."""
    if isinstance(index, fx.Node):
        raise e.unsupported("an index that depends on the input is not continuous", "constant indices")
    sizes = result_sizes(e)
    if not isinstance(source, fx.Node):
        ones = [1 if d == -1 else d for d in sizes]
        added = torch.zeros(ones, dtype=torch.float64).scatter_add(dim, index, real(e, source))
        return linear_sum(e, [(x, 1.0), (added, 1.0)])
    batch = source.meta["batch_dim"]
    e.not_batch(source, dim % len(sizes))
    flat = e.batch_first(source)
    _, *entries = e.sizes(flat)
    unit = torch.eye(math.prod(entries), dtype=torch.float64)
    unit = unit.reshape(-1, *entries).movedim(0, batch)  # one sample for every entry of the source
    count = unit.shape[batch]
    image = torch.zeros([count if d == -1 else d for d in sizes], dtype=torch.float64)
    places = index.expand([count if d == batch else n for d, n in enumerate(index.shape)])
    image = image.scatter_add(dim, places, unit).movedim(batch, 0)  # (entries of the source, those of the result)
    y = e.linear(e.reshape(flat, [-1, math.prod(entries)]), image.reshape(len(image), -1).T)
    y = e.batch_to(e.reshape(y, [-1, *image.shape[1:]]), batch)
    return linear_sum(e, [(x, 1.0), (y, 1.0)])


def index_add(e: Emitter, x: Value, dim: int, index: Operand, source: Value, *, alpha: float = 1) -> fx.Node:
    """x plus alpha times the slices of the source along dim, each at its constant place: a 0/1 matrix along dim."""
    if isinstance(index, fx.Node):
        raise e.unsupported("an index that depends on the input is not continuous", "constant indices")
    dim %= len(result_sizes(e))
    n = size_of(x, dim) if isinstance(x, (fx.Node, Tensor)) else 1
    matrix = torch.zeros(n, index.numel(), dtype=torch.float64)
    matrix[index.flatten().long(), torch.arange(index.numel())] = 1.0
    if isinstance(source, fx.Node):
        added: Value = e.along(source, dim, matrix)
    else:
        added = torch.tensordot(matrix, real(e, source), ([1], [dim])).movedim(0, dim)
    return linear_sum(e, [(x, 1.0), (added, alpha)])


# -- one matrix for every channel --------------------------------------------------------------------------------


def fold(
    e: Emitter,
    x: fx.Node,
    output_size: Sequence[int],
    kernel: Sequence[int],
    dilation: Sequence[int],
    padding: Sequence[int],
    stride: Sequence[int],
) -> fx.Node:
    """The sum of overlapping windows (col2im)."""
    *_, rows, places = e.sizes(x)
    window = math.prod(kernel)
    unit = torch.eye(window * places, dtype=torch.float64).reshape(-1, window, places)
    images = F.fold(unit, *map(tuple, (output_size, kernel, dilation, padding, stride)))
    y = e.linear(e.reshape(x, [-1, rows // window, window * places]), images.reshape(len(unit), -1).T)
    return e.reshape(y, result_sizes(e))


def sample_grid(e: Emitter, x: fx.Node, grid: Operand, mode: int, padding: int, align_corners: bool) -> fx.Node:
    """Interpolation at constant places (grid_sample)."""
    if isinstance(grid, fx.Node) or len(grid) != 1:
        raise e.unsupported("samples at places that differ from input to input", "a constant grid")
    *_, channels, height, width = e.sizes(x)
    unit = torch.eye(height * width, dtype=grid.dtype).reshape(-1, 1, height, width)
    images = torch.ops.aten.grid_sampler_2d(unit, grid.expand(len(unit), -1, -1, -1), mode, padding, align_corners)
    y = e.linear(e.reshape(x, [-1, channels, height * width]), images.reshape(len(unit), -1).T)
    return e.reshape(y, result_sizes(e))


def of_one_factor(e: Emitter, *args: Any, **kwargs: Any) -> fx.Node:
    """Any operation that is affine in each of its tensors, with all of them constant but one: the matrix and the
    constant that its values on zero and on the unit vectors, passed as a batch, give."""
    active = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, fx.Node)]
    if len(active) != 1:
        raise e.unsupported(PRODUCT, "constant factors")
    x, sizes = active[0], result_sizes(e)
    entries = [size for size in e.sizes(x) if size != -1]
    count, batch = math.prod(entries), sizes.index(-1)
    unit = torch.eye(count, dtype=torch.float64, device=e.device).reshape(count, *entries)

    def images(units: Tensor) -> Tensor:
        """(units, entries of the result)."""
        units = units.movedim(0, x.meta["batch_dim"])

        def given(argument: Any, original: Any) -> Any:
            if isinstance(argument, fx.Node) or not isinstance(argument, Tensor):
                return units if argument is x else argument
            rows = [
                units.shape[x.meta["batch_dim"]] if isinstance(d, torch.SymInt) else d
                for d in original.meta["val"].shape
            ]
            return argument.expand(rows)

        values = [given(a, o) for a, o in zip(args, e.source.args, strict=True)]
        return e.source.target(*values, **kwargs).movedim(batch, 0)

    image, constant = images(unit), images(torch.zeros_like(unit[:1]))
    if not torch.equal(images(unit.flip(0)), image.flip(0)):
        raise e.unsupported("mixes the samples of the batch")
    flat = e.reshape(e.batch_first(x), [-1, count])
    y = e.linear(flat, (image - constant).reshape(count, -1).T, constant.flatten() if bool(constant.any()) else None)
    return e.batch_to(e.reshape(y, [-1, *image.shape[1:]]), batch)


# -- a constant choice of entries --------------------------------------------------------------------------------


def select_by(e: Emitter, mask: Operand, x: Value, y: Value) -> fx.Node:
    """where(mask, x, y) for a constant mask m: m x + (1 - m) y."""
    if isinstance(mask, fx.Node):
        raise e.unsupported("a choice by the values of an activation is not continuous", "maximum, minimum or clamp")
    chosen = real(e, mask)
    sizes = result_sizes(e)
    terms: list[tuple[Value, float]] = []
    for value, factor in ((x, chosen), (y, 1 - chosen)):
        if isinstance(value, fx.Node):
            terms.append((e.scale(e.expand(value, sizes), factor, 0.0), 1.0))
        else:
            terms.append((torch.where(factor != 0, real(e, value), 0.0), 1.0))
    return linear_sum(e, terms)


def put(e: Emitter, x: Value, indices: Sequence[Any], values: Tensor, accumulate: bool = False) -> fx.Node:
    """x with constant numbers written, or added, at constant places (x[indices] = values)."""
    if any(isinstance(index, fx.Node) for index in indices):
        raise e.unsupported("an index that depends on the input is not continuous", "constant indices")
    sizes = [1 if d == -1 else d for d in result_sizes(e)]
    zeros = torch.zeros(sizes, dtype=torch.float64, device=e.device)
    index_put = torch.ops.aten.index_put.default
    written = index_put(zeros, indices, real(e, values), accumulate)
    if accumulate:
        return add(e, x, written)
    return select_by(e, index_put(zeros, indices, zeros.new_ones(())), written, x)


def masked_fill(e: Emitter, x: Value, mask: Operand, value: Value) -> fx.Node:
    return select_by(e, mask, value, x)
