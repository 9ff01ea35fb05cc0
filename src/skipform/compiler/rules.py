"""One table {operation: rewriting rule}: what each ATen operation is in affine maps, ReLU and concatenation.

A rule takes the emitter and the operation's own arguments, where a tensor that depends on the input is an `fx.Node` of
the rewritten graph and every other tensor is a constant; it returns the node (or tuple of nodes) of the result. The
name of an operation is its ATen name; an in-place form has the rule of the plain one, an operation on constants alone
is simply computed. What is in neither table, RULES nor NOT_PIECEWISE_LINEAR, is an error.

b batch, c channels, n inputs of a maximum.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from skipform.compiler.emit import Emitter

Value = Any  # fx.Node, Tensor or number
PRODUCT = "a product of two activations is not piecewise linear"


@dataclass(frozen=True)
class Unavailable:
    """A result that no network of affine maps and ReLU has, such as the place of a maximum; an error once used."""

    what: str


@dataclass(frozen=True)
class PaddedWithMinusInfinity:
    """x amid -inf, as 'same' max pooling pads: the maximum leaves these entries out, nothing else takes them."""

    x: fx.Node
    pads: dict[int, tuple[int, int]]  # dim -> (before, after)


# Nothing below is piecewise linear (or continuous). The nearest operation that is.
NOT_PIECEWISE_LINEAR = {
    "gelu": "relu",
    "silu": "relu or hardtanh",
    "mish": "relu",
    "hardswish": "relu6 or hardtanh",
    "elu": "leaky_relu",
    "selu": "leaky_relu",
    "celu": "leaky_relu",
    "softplus": "relu",
    "log_sigmoid": "hardtanh",
    "sigmoid": "hardsigmoid",
    "tanh": "hardtanh",
    "softmax": "relu (an attention without softmax is still a product of two activations)",
    "log_softmax": "no activation: return the logits",
    "scaled_dot_product_attention": "a linear map with constant weights",
    "layer_norm": "batch_norm in eval mode",
    "native_layer_norm": "batch_norm in eval mode",
    "group_norm": "batch_norm in eval mode",
    "native_group_norm": "batch_norm in eval mode",
    "rms_norm": "batch_norm in eval mode",
    "local_response_norm": "batch_norm in eval mode",
    "glu": "maximum of the two halves",
    "hardshrink": "softshrink",
    "sign": "hardtanh",
    "pow": "abs",
    "square": "abs",
    "sqrt": None,
    "rsqrt": None,
    "exp": None,
    "log": None,
    "sin": None,
    "cos": None,
    "reciprocal": None,
    "floor": None,
    "ceil": None,
    "round": None,
    "argmax": "amax",
    "argmin": "amin",
    "cond": "both branches, combined by constants",
    "norm": "abs and sum",
    "var": "mean of abs",
    "std": "mean of abs",
    **dict.fromkeys(("gt", "lt", "ge", "le", "eq", "ne"), "maximum, minimum or clamp"),
    **dict.fromkeys(
        ("erf", "expm1", "log1p", "atan", "logsumexp", "_softmax", "_log_softmax", "lstm", "gru", "rnn_tanh")
    ),
}


def is_activation(value: Value) -> bool:
    """Whether the value depends on the input."""
    return isinstance(value, (fx.Node, PaddedWithMinusInfinity, Unavailable))


def size_of(x: Value, dim: int) -> int:
    return (x.meta["val"] if isinstance(x, fx.Node) else x).shape[dim]


def dims_of(x: fx.Node, dims: Any = None) -> list[int]:
    """Dimensions as non-negative numbers, in order; all of them for None or ()."""
    ndim = x.meta["val"].ndim
    if dims is None or (isinstance(dims, (list, tuple)) and not dims):
        return [*range(ndim)]
    return sorted({d % ndim for d in (dims if isinstance(dims, (list, tuple)) else [dims])})


def result_sizes(e: Emitter, value: Any = None) -> list[int]:
    """The sizes of the original result, -1 for the batch."""
    sizes = [d if isinstance(d, int) else -1 for d in (e.source.meta["val"] if value is None else value).shape]
    if sizes.count(-1) != 1:
        raise e.unsupported("mixes the samples of the batch")
    return sizes


def number(e: Emitter, value: Any) -> Any:
    """A scalar argument; one that depends on the batch size is refused."""
    if isinstance(value, torch.SymInt | torch.SymFloat):
        raise e.unsupported("computes with the batch size")
    return value


# -- sums and products -------------------------------------------------------------------------------------------


def add(e: Emitter, x: Value, y: Value, alpha: float = 1, *, minus: bool = False) -> fx.Node:
    """x + alpha y."""
    return linear_sum(e, [(x, 1.0), (y, -alpha if minus else alpha)])


def linear_sum(e: Emitter, terms: Sequence[tuple[Value, float]]) -> fx.Node:
    """sum of c * x over terms (x, c), activations, constants and numbers broadcast to the result."""
    sizes = result_sizes(e)
    active = [(e.expand(x, sizes), c) for x, c in terms if isinstance(x, fx.Node)]
    total = e.combine([x for x, _ in active], [c for _, c in active])
    for x, c in terms:
        if not isinstance(x, fx.Node):
            total = e.scale(total, 1.0, real(e, x) * c)
    return total


def real(e: Emitter, x: Value) -> Tensor:
    """A constant or number as a float64 tensor."""
    return torch.as_tensor(number(e, x), dtype=torch.float64, device=e.device)


def mul(e: Emitter, x: Value, y: Value) -> fx.Node:
    if is_activation(x) and is_activation(y):
        raise e.unsupported(PRODUCT, "addition, maximum or concatenation")
    x, factor = (x, y) if is_activation(x) else (y, x)
    return e.scale(e.expand(x, result_sizes(e)), real(e, factor), 0.0)


def div(e: Emitter, x: Value, y: Value, rounding_mode: str | None = None) -> fx.Node:
    if is_activation(y) or rounding_mode is not None:
        raise e.unsupported("a division by an activation, or rounded, is not piecewise linear", "a constant divisor")
    return e.scale(e.expand(x, result_sizes(e)), 1 / real(e, y), 0.0)


def multiply_matrices(e: Emitter, x: Value, y: Value) -> fx.Node:
    """x @ y with one of them constant."""
    if is_activation(x) and is_activation(y):
        raise e.unsupported(PRODUCT, "a constant matrix")
    if isinstance(x, fx.Node):
        e.not_batch(x, x.meta["val"].ndim - 1)
        return e.linear(x, y.T) if y.ndim == 2 else e.emit(torch.matmul, x, y)
    e.not_batch(y, max(y.meta["val"].ndim - 2, 0))
    return e.emit(torch.matmul, x, y)


def addmm(e: Emitter, bias: Value, x: Value, y: Value, *, beta: float = 1, alpha: float = 1) -> fx.Node:
    """beta bias + alpha x @ y."""
    if not (is_activation(x) or is_activation(y)):
        return linear_sum(e, [(bias, beta), (torch.matmul(x, y), alpha)])
    product = multiply_matrices(e, x, y)
    return linear_sum(e, [(product, alpha), (bias, beta)])


def linear(e: Emitter, x: Value, weight: Value, bias: Value = None) -> fx.Node:
    if is_activation(weight) or is_activation(bias):
        raise e.unsupported(PRODUCT, "constant weights")
    return e.linear(x, weight, bias)


def einsum(e: Emitter, equation: str, operands: Sequence[Value], path: Any = None) -> fx.Node:
    if sum(map(is_activation, operands)) != 1:
        raise e.unsupported(PRODUCT, "constant factors")
    inputs, _, output = equation.replace(" ", "").partition("->")
    for labels, operand in zip(inputs.split(","), operands, strict=True):
        if isinstance(operand, fx.Node):
            if "." in labels:
                continue  # the batch stays an outer dimension: the emitter checks the shape
            batch = labels[operand.meta["batch_dim"]]
            if "->" in equation and batch not in output:
                raise e.unsupported("sums over the batch")
    return e.emit(torch.einsum, equation, *operands)


def convolution(e: Emitter, x: Value, weight: Value, bias: Value, transposed: bool = False, **how: Any) -> fx.Node:
    if is_activation(weight) or is_activation(bias):
        raise e.unsupported(PRODUCT, "constant weights")
    how = {k: v if isinstance(v, (int, str)) else tuple(v) for k, v in how.items()}
    return e.convolution(x, weight, bias, transposed, **how)


def conv(
    e: Emitter,
    x: Value,
    weight: Value,
    bias: Value = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> fx.Node:
    return convolution(e, x, weight, bias, stride=stride, padding=padding, dilation=dilation, groups=groups)


def conv_transpose(
    e: Emitter,
    x: Value,
    weight: Value,
    bias: Value = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
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
    x: Value,
    weight: Value,
    bias: Value,
    stride: Any,
    padding: Any,
    dilation: Any,
    transposed: bool,
    output_padding: Any,
    groups: int,
) -> fx.Node:
    """aten.convolution, what the others decompose to."""
    if transposed:
        return conv_transpose(e, x, weight, bias, stride, padding, output_padding, groups, dilation)
    return conv(e, x, weight, bias, stride, padding, dilation, groups)


def batch_norm(
    e: Emitter,
    x: Value,
    weight: Value,
    bias: Value,
    mean: Value,
    var: Value,
    training: bool,
    momentum: float,
    eps: float,
    cudnn: bool = False,
) -> fx.Node:
    """(x - mean) / sqrt(var + eps) * weight + bias with the running statistics: an affine map of each channel."""
    if training or mean is None:
        raise e.unsupported("statistics of the batch are not piecewise linear", "batch_norm in eval mode")
    s = (var.double() + eps).rsqrt()
    s = s if weight is None else s * weight.double()
    t = -mean.double() * s + (0 if bias is None else bias.double())
    channels = (-1, *(1,) * (x.meta["val"].ndim - 2))
    return e.scale(x, s.reshape(channels), t.reshape(channels))


def batch_norm_inference(
    e: Emitter, x: Value, weight: Value, bias: Value, mean: Value, var: Value, momentum: float, eps: float
) -> tuple[fx.Node, Unavailable, Unavailable]:
    y = batch_norm(e, x, weight, bias, mean, var, False, momentum, eps)
    return y, Unavailable("the saved mean of batch_norm"), Unavailable("the saved deviation of batch_norm")


def reduction(e: Emitter, x: Value, dims: Any, keepdim: bool, average: bool) -> fx.Node:
    """Sum or mean over dims: the fixed map (1 ... 1), divided by the number of entries for the mean."""
    dims = dims_of(x, dims)
    e.not_batch(x, *dims)
    batch = x.meta["batch_dim"]
    y = e.batch_first(x)
    dims = [d if d > batch else d + 1 for d in dims]  # as in y
    while dims:
        last = dims.pop()
        first = last
        while dims and dims[-1] == first - 1:  # neighbours are one dimension to sum over
            first = dims.pop()
        now = e.sizes(y)
        n = math.prod(now[first : last + 1])
        if average and n == 0:
            raise e.unsupported("averages no entries")
        ones = torch.full((1, n), 1 / n if average else 1.0, dtype=torch.float64)
        y = e.along(e.reshape(y, [*now[:first], n, *now[last + 1 :]]), first, ones)
        y = e.reshape(y, [*now[:first], *[1] * (last + 1 - first), *now[last + 1 :]])
    return e.reshape(e.batch_to(y, batch), result_sizes(e))


def mean(e: Emitter, x: Value, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> fx.Node:
    return reduction(e, x, dim, keepdim, average=True)


def total(e: Emitter, x: Value, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> fx.Node:
    return reduction(e, x, dim, keepdim, average=False)


def cumsum(e: Emitter, x: Value, dim: int, *, dtype: Any = None) -> fx.Node:
    """The lower triangle of ones along dim."""
    (dim,) = dims_of(x, dim)
    return e.along(x, dim, torch.ones(size_of(x, dim), size_of(x, dim)).tril())


def vector_norm(
    e: Emitter, x: Value, p: float = 2, dim: Any = None, keepdim: bool = False, *, dtype: Any = None
) -> Any:
    """The norms that are piecewise linear: the sum (p = 1) and the largest (p = inf) of |x|."""
    if p == 1:
        return reduction(e, absolute(e, x), dim, keepdim, average=False)
    if p == math.inf:
        return amax(e, absolute(e, x), dim, keepdim)
    raise e.unsupported(f"is not piecewise linear for order {p}", "order 1 or inf")


def fold(e: Emitter, x: Value, output_size: Any, kernel: Any, dilation: Any, padding: Any, stride: Any) -> fx.Node:
    """The sum of overlapping windows (col2im): one matrix for every channel, read off from the unit vectors."""
    *_, rows, places = e.sizes(x)
    window = math.prod(kernel)
    unit = torch.eye(window * places, dtype=torch.float64).reshape(-1, window, places)
    images = F.fold(unit, output_size, kernel, dilation, padding, stride)
    y = e.linear(e.reshape(x, [-1, rows // window, window * places]), images.reshape(len(unit), -1).T)
    return e.reshape(y, result_sizes(e))


def sample_grid(e: Emitter, x: Value, grid: Value, mode: int, padding: int, align_corners: bool) -> fx.Node:
    """Interpolation at constant places (grid_sample): one matrix for every channel, read off from the unit vectors."""
    if is_activation(grid) or len(grid) != 1:
        raise e.unsupported("samples at places that differ from input to input", "a constant grid")
    *_, channels, height, width = e.sizes(x)
    unit = torch.eye(height * width, dtype=grid.dtype).reshape(-1, 1, height, width)
    images = torch.ops.aten.grid_sampler_2d(unit, grid.expand(len(unit), -1, -1, -1), mode, padding, align_corners)
    y = e.linear(e.reshape(x, [-1, channels, height * width]), images.reshape(len(unit), -1).T)
    return e.reshape(y, result_sizes(e))


def select_by(e: Emitter, mask: Value, x: Value, y: Value) -> fx.Node:
    """where(mask, x, y) for a constant mask: m x + (1 - m) y."""
    if is_activation(mask):
        raise e.unsupported("a choice by the values of an activation is not continuous", "maximum, minimum or clamp")
    chosen = real(e, mask)
    sizes = result_sizes(e)
    active = [
        (e.scale(e.expand(v, sizes), m, 0.0), 1.0) for v, m in ((x, chosen), (y, 1 - chosen)) if isinstance(v, fx.Node)
    ]
    fixed = [
        torch.where(m != 0, real(e, v), 0.0) for v, m in ((x, chosen), (y, 1 - chosen)) if not isinstance(v, fx.Node)
    ]
    return linear_sum(e, [*active, *((t, 1.0) for t in fixed)])


def masked_fill(e: Emitter, x: Value, mask: Value, value: Value) -> fx.Node:
    return select_by(e, mask, value, x)


# -- piecewise linear functions of one entry ---------------------------------------------------------------------


def leaky(e: Emitter, x: Value, slope: Value) -> fx.Node:
    """x for x > 0, slope * x else:  (1 - slope) relu(x) + slope x."""
    slope = real(e, slope)
    r = e.relu(x)
    if slope.numel() == 1:
        return e.combine([r, x], [1 - slope.item(), slope.item()])
    return e.combine([e.scale(r, 1 - slope, 0.0), e.scale(x, slope, 0.0)], [1, 1])


def prelu(e: Emitter, x: Value, weight: Value) -> fx.Node:
    ndim = x.meta["val"].ndim
    slope = real(e, weight)
    return leaky(e, x, slope.reshape(-1, *(1,) * (ndim - 2)) if slope.numel() > 1 else slope)


def rrelu(
    e: Emitter, x: Value, lower: float = 1 / 8, upper: float = 1 / 3, training: bool = False, g: Any = None
) -> fx.Node:
    if training:
        raise e.unsupported("is random", "leaky_relu")
    return leaky(e, x, (lower + upper) / 2)


def absolute(e: Emitter, x: Value) -> fx.Node:
    """|x| = 2 relu(x) - x."""
    return e.combine([e.relu(x), x], [2, -1], merge=False)


def clamp(e: Emitter, x: Value, low: Value = None, high: Value = None) -> fx.Node:
    """min(max(x, low), high) = low + relu(x - low) - relu(x - high), in one layer, for constants low <= high.

    max(x, low) = low + relu(x - low);  min(x, high) = x - relu(x - high). Bounds that are activations: two maxima.
    """
    if is_activation(low) or is_activation(high):
        x = x if low is None else maximum(e, x, low)
        return x if high is None else minimum(e, x, high)
    x = e.expand(x, result_sizes(e))
    low, high = (None if v is None else real(e, v) for v in (low, high))
    if low is not None and high is not None:
        low = torch.minimum(low, high)  # torch lets the upper bound win
    below = x if low is None else e.relu(e.scale(x, 1.0, -low))
    if high is not None:
        below = e.combine([below, e.relu(e.scale(x, 1.0, -high))], [1, -1], merge=False)
    return below if low is None else e.scale(below, 1.0, low)


def threshold(e: Emitter, x: Value, bound: float, value: float) -> fx.Node:
    """x where x > bound, value else: continuous, and then max(x, bound), only for value = bound."""
    if bound != value:
        raise e.unsupported(f"jumps from {value} to {bound}", "threshold with value = threshold")
    return clamp(e, x, bound)


def softshrink(e: Emitter, x: Value, bound: float = 0.5) -> fx.Node:
    """relu(x - bound) - relu(-x - bound)."""
    return e.combine([e.relu(e.scale(x, 1.0, -bound)), e.relu(e.scale(x, -1.0, -bound))], [1, -1], merge=False)


def hardsigmoid(e: Emitter, x: Value) -> fx.Node:
    """min(max(x / 6 + 1/2, 0), 1)."""
    return clamp(e, e.scale(x, 1 / 6, 0.5), 0.0, 1.0)


def dropout(e: Emitter, x: Value, p: float, train: bool) -> fx.Node:
    if train and p > 0:
        raise e.unsupported("is random", "dropout with training=self.training")
    return x


# -- maxima ------------------------------------------------------------------------------------------------------


def maximum(e: Emitter, x: Value, y: Value) -> fx.Node:
    """max(x, y) = relu(x - y) + y."""
    sizes = result_sizes(e)
    if isinstance(x, fx.Node) and isinstance(y, fx.Node):
        return e.maximum(e.expand(x, sizes), e.expand(y, sizes))
    x, y = (x, y) if isinstance(x, fx.Node) else (y, x)
    return e.scale(e.relu(e.scale(e.expand(x, sizes), 1.0, -real(e, y))), 1.0, real(e, y))


def minimum(e: Emitter, x: Value, y: Value) -> fx.Node:
    """min(x, y) = x - relu(x - y)."""
    sizes = result_sizes(e)
    x, y = (x, y) if isinstance(x, fx.Node) else (y, x)
    x = e.expand(x, sizes)
    gap = (
        e.combine([x, e.expand(y, sizes)], [1, -1], merge=False)
        if isinstance(y, fx.Node)
        else e.scale(x, 1.0, -real(e, y))
    )
    return e.combine([x, e.relu(gap)], [1, -1], merge=False)


def amax(e: Emitter, x: Value, dim: Any = (), keepdim: bool = False) -> fx.Node:
    """The maximum over all entries along dims: a tree over one window."""
    dims = dims_of(x, dim)
    e.not_batch(x, *dims)
    sizes = e.sizes(x)
    kept = [d for d in range(len(sizes)) if d not in dims]
    flat = e.permute(x, [*kept, *dims])
    flat = e.reshape(flat, [*(sizes[d] for d in kept), math.prod(sizes[d] for d in dims)])
    top = e.window_max(flat, len(kept), [tuple(range(size_of(flat, len(kept))))])
    return e.reshape(top, result_sizes(e))


def amin(e: Emitter, x: Value, dim: Any = (), keepdim: bool = False) -> fx.Node:
    return e.scale(amax(e, e.scale(x, -1.0, 0.0), dim, keepdim), -1.0, 0.0)


def max_of(e: Emitter, x: Value, dim: Any = None, keepdim: bool = False) -> Any:
    """max(x, y), or max(x, dim) = (values, indices)."""
    return _extreme(e, x, dim, keepdim, maximum, amax)


def min_of(e: Emitter, x: Value, dim: Any = None, keepdim: bool = False) -> Any:
    return _extreme(e, x, dim, keepdim, minimum, amin)


def _extreme(
    e: Emitter, x: Value, dim: Any, keepdim: bool, pair: Callable[..., fx.Node], over: Callable[..., fx.Node]
) -> Any:
    if is_activation(dim) or isinstance(dim, Tensor):
        return pair(e, x, dim)
    if dim is None:
        raise e.unsupported("acts along the batch dimension", "amax over the other dimensions")
    val = e.source.meta["val"][0]
    reduced = result_sizes(e, val)
    (d,) = dims_of(x, dim)
    e.not_batch(x, d)
    y = e.scale(x, -1.0, 0.0) if over is amin else x
    y = e.window_max(y, d, [tuple(range(size_of(x, d)))])
    y = e.scale(y, -1.0, 0.0) if over is amin else y
    return e.reshape(y, reduced), Unavailable("the index of an extreme value")


def running_max(e: Emitter, x: Value, dim: int) -> tuple[fx.Node, Unavailable]:
    """cummax: entry i is the maximum of the entries 0..i."""
    (dim,) = dims_of(x, dim)
    n = size_of(x, dim)
    windows = [tuple(min(j, i) for j in range(n)) for i in range(n)]
    return e.window_max(x, dim, windows), Unavailable("the index of a maximum")


def running_min(e: Emitter, x: Value, dim: int) -> tuple[fx.Node, Unavailable]:
    top, index = running_max(e, e.scale(x, -1.0, 0.0), dim)
    return e.scale(top, -1.0, 0.0), index


def max_pool(
    e: Emitter,
    x: Value,
    kernel_size: Any,
    stride: Any = (),
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
) -> fx.Node:
    """The maximum over windows, a tree of depth ceil(log2 n) with n entries in a window (Theorem 1).

    Padded places are left out of the maximum: an index outside is replaced by the nearest one of the same window that
    is inside, and max(x, x) = relu(0) + x = x exactly.
    """
    value = e.source.meta["val"]
    value = value[0] if isinstance(value, (tuple, list)) else value
    outside: dict[int, tuple[int, int]] = {}
    if isinstance(x, PaddedWithMinusInfinity):
        x, outside = x.x, x.pads
    ndim = x.meta["val"].ndim
    rank = int(str(e.source.target).split("pool")[1][0])
    kernel, padding, dilation = (_each(v, rank) for v in (kernel_size, padding, dilation))
    stride = _each(stride, rank) if stride not in ((), [], None) else kernel
    windows = {}
    for axis in range(rank):
        dim = ndim - rank + axis
        n, count = size_of(x, dim), result_sizes(e, value)[dim]
        start = -padding[axis] - outside.get(dim, (0, 0))[0]
        reach = range(0, kernel[axis] * dilation[axis], dilation[axis])
        starts = [start + i * stride[axis] for i in range(count)]
        if any(all(not 0 <= s + j < n for j in reach) for s in starts):
            raise e.unsupported("has a window that lies in the padding; its maximum is -inf")
        along = [tuple(_inside(s + j, n, dilation[axis]) for j in reach) for s in starts]
        windows[dim] = _shortened(along, n)
    e.not_batch(x, *windows)
    return e.box_max(x, windows)


def _each(value: Any, rank: int) -> list[int]:
    values = [value] if isinstance(value, int) else [*value]
    return values * rank if len(values) == 1 else values


def _inside(index: int, n: int, step: int) -> int:
    """The index of 0..n-1 nearest to `index` and a multiple of `step` away from it; -1 where there is none."""
    if index < 0:
        index %= step
    if index >= n:
        index = n - 1 - (n - 1 - index) % step if n >= 1 else -1
    return index if 0 <= index < n else -1


def _shortened(windows: list[tuple[int, ...]], n: int) -> list[tuple[int, ...]]:
    """The windows with what all of them repeat dropped: a kernel larger than its input has fewer different indices."""
    distinct = [tuple(dict.fromkeys(i for i in w if i >= 0)) for w in windows]
    longest = max(map(len, distinct))
    if longest == len(windows[0]):
        return windows
    return [w + w[-1:] * (longest - len(w)) for w in distinct]


def max_pool_with_indices(e: Emitter, *args: Any, **kwargs: Any) -> tuple[fx.Node, Unavailable]:
    return max_pool(e, *args, **kwargs), Unavailable("the index of a maximum")


def _adaptive_windows(n: int, count: int) -> list[range]:
    """Window i of adaptive pooling: floor(i n / count) .. ceil((i + 1) n / count) - 1."""
    return [range(i * n // count, -(-(i + 1) * n // count)) for i in range(count)]


def adaptive_max_pool(e: Emitter, x: Value, output_size: Any) -> tuple[fx.Node, Unavailable]:
    value = e.source.meta["val"]
    value = value[0] if isinstance(value, (tuple, list)) else value
    rank = int(str(e.source.target).split("pool")[1][0])
    ndim = x.meta["val"].ndim
    windows = {}
    for dim in range(ndim - rank, ndim):
        along = [tuple(w) for w in _adaptive_windows(size_of(x, dim), result_sizes(e, value)[dim])]
        longest = max(map(len, along))
        windows[dim] = [w + w[-1:] * (longest - len(w)) for w in along]
    e.not_batch(x, *windows)
    return e.box_max(x, windows), Unavailable("the index of a maximum")


# -- averages and interpolation: a fixed matrix along each axis --------------------------------------------------


def avg_pool(
    e: Emitter,
    x: Value,
    kernel_size: Any,
    stride: Any = (),
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> fx.Node:
    """The average over windows: a depthwise convolution, or one matrix along each axis where windows are cut short."""
    ndim = x.meta["val"].ndim
    rank = int(str(e.source.target).split("pool")[1][0])
    kernel, padding = _each(kernel_size, rank), _each(padding, rank)
    stride = _each(stride, rank) if stride not in ((), [], None) else kernel
    axes = [*range(ndim - rank, ndim)]
    e.not_batch(x, *axes)
    sizes, counts = e.sizes(x), result_sizes(e)
    whole = all((counts[d] - 1) * stride[i] + kernel[i] <= sizes[d] + 2 * padding[i] for i, d in enumerate(axes)) and (
        count_include_pad or divisor_override or not any(padding)
    )
    if whole and x.meta["batch_dim"] == 0 and ndim == rank + 2:
        channels = sizes[1]
        weight = torch.full((channels, 1, *kernel), 1 / (divisor_override or math.prod(kernel)), dtype=torch.float64)
        return e.convolution(x, weight, None, stride=tuple(stride), padding=tuple(padding), groups=channels)
    for i, d in enumerate(axes):
        matrix = torch.zeros(counts[d], sizes[d], dtype=torch.float64)
        for row in range(counts[d]):
            start = row * stride[i] - padding[i]
            stop = min(start + kernel[i], sizes[d] + padding[i])
            first, last = max(start, 0), min(stop, sizes[d])
            divisor = stop - start if count_include_pad else last - first
            matrix[row, first:last] = 1.0 if divisor_override else 1 / divisor
        if divisor_override and i == 0:
            matrix /= divisor_override
        x = e.along(x, d, matrix)
    return x


def adaptive_avg_pool(e: Emitter, x: Value, output_size: Any) -> fx.Node:
    counts = result_sizes(e)
    ndim = len(counts)
    rank = int(str(e.source.target).split("pool")[1][0])
    axes = [*range(ndim - rank, ndim)]
    if all(counts[d] == 1 for d in axes):
        return reduction(e, x, axes, True, average=True)
    for d in axes:
        matrix = torch.zeros(counts[d], size_of(x, d), dtype=torch.float64)
        for row, window in enumerate(_adaptive_windows(size_of(x, d), counts[d])):
            matrix[row, window.start : window.stop] = 1 / len(window)
        x = x if matrix.shape[0] == matrix.shape[1] else e.along(x, d, matrix)
    return x


def interpolate(e: Emitter, x: Value, *args: Any, **kwargs: Any) -> fx.Node:
    """Any aten.upsample_*: a choice of entries (nearest) or a fixed matrix (linear, bilinear, bicubic, ...) along each
    axis, read off from the operation itself acting on the unit vectors of that axis."""
    target, value = e.source.target, e.source.meta["val"]
    counts = result_sizes(e)
    nearest = "nearest" in str(target)
    schema = target._schema
    given = dict(zip((a.name for a in schema.arguments), (x, *args), strict=False)) | kwargs
    rank = value.ndim - 2
    for axis in range(rank):
        d = axis + 2
        n = size_of(x, d)
        one = dict(given)
        for name, v in given.items():  # the same axis alone: every other one has size 1 before and after
            if isinstance(v, (list, tuple)):
                fill = 1.0 if name in ("scale_factors", "scales") else 1 if nearest else 2
                one[name] = [v[i] if i == axis else fill for i in range(rank)]
            elif name.startswith("scales_"):
                one[name] = v if name[-1] == "dhw"[3 - rank + axis] else None
        image, alone = schema.arguments[0].name, [n if i == axis else 1 for i in range(rank)]
        if nearest:
            one[image] = torch.arange(n, dtype=torch.float64).reshape(1, 1, *alone)
            x = e.take(x, d, target(**one).flatten().long().tolist())
        else:
            unit = torch.eye(n, dtype=torch.float64).reshape(1, n, *alone)
            # Two equal columns: torch 2.11 interpolates wrongly with antialias where the last size is 1.
            one[image] = unit.expand(1, n, *(n if i == axis else 2 for i in range(rank))).contiguous()
            matrix = target(**one).movedim(d, 2).reshape(n, counts[d], -1)[:, :, 0].T
            x = x if torch.equal(matrix, torch.eye(n, dtype=torch.float64)) else e.along(x, d, matrix)
    return x


# -- moving entries ----------------------------------------------------------------------------------------------


def same(e: Emitter, x: Value, *args: Any, **kwargs: Any) -> fx.Node:
    """The identity: copies, contiguity, casts to the same kind of number."""
    before, after = e.source.args[0].meta["val"].dtype, e.source.meta["val"].dtype
    if after != before:
        raise e.unsupported(f"casts {before} to {after}", "one dtype throughout")
    return x


def view(e: Emitter, x: Value, *args: Any, **kwargs: Any) -> fx.Node:
    """Any operation that keeps the entries in their order."""
    return e.reshape(x, result_sizes(e))


def squeeze(e: Emitter, x: Value, dim: Any = None) -> fx.Node:
    """Drop dimensions of size 1; of the batch too, which a batch of 1 would lose, unless they are named."""
    if dim is None:
        raise e.unsupported("drops the batch dimension of a batch of 1", "squeeze of a named dimension")
    e.not_batch(x, *(d % x.meta["val"].ndim for d in (dim if isinstance(dim, (list, tuple)) else [dim])))
    return e.reshape(x, result_sizes(e))


def permute(e: Emitter, x: Value, dims: Sequence[int]) -> fx.Node:
    return e.permute(x, [d % x.meta["val"].ndim for d in dims])


def transpose(e: Emitter, x: Value, a: int = 0, b: int = 1) -> fx.Node:
    order = [*range(x.meta["val"].ndim)]
    if len(order) > 1:
        order[a], order[b] = order[b], order[a]
    return e.permute(x, order)


def movedim(e: Emitter, x: Value, source: Any, destination: Any) -> fx.Node:
    axes = torch.empty([*range(x.meta["val"].ndim)], device="meta").movedim(source, destination).shape
    return e.permute(x, list(axes))


def expand(e: Emitter, x: Value, sizes: Any, *, implicit: bool = False) -> fx.Node:
    return e.expand(x, result_sizes(e))


def cat(e: Emitter, tensors: Sequence[Value], dim: int = 0) -> fx.Node:
    ndim = len(result_sizes(e))
    dim %= ndim
    like = next(t for t in tensors if isinstance(t, fx.Node))
    parts = []
    for t in tensors:
        if isinstance(t, fx.Node):
            parts.append(t)
        elif tuple(t.shape) != (0,):  # torch passes over these
            sizes = result_sizes(e)
            sizes[dim] = t.shape[dim]
            parts.append(e.spread(t, sizes, like))
    e.not_batch(like, dim)
    return e.cat(parts, dim)


def stack(e: Emitter, tensors: Sequence[Value], dim: int = 0) -> fx.Node:
    sizes = result_sizes(e)
    dim %= len(sizes)
    sizes[dim] = 1
    like = next(t for t in tensors if isinstance(t, fx.Node))
    parts = [
        e.reshape(t, sizes) if isinstance(t, fx.Node) else e.spread(t.unsqueeze(dim), sizes, like) for t in tensors
    ]
    return e.cat(parts, dim)


def slice_(e: Emitter, x: Value, dim: int = 0, start: Any = None, end: Any = None, step: int = 1) -> fx.Node:
    (dim,) = dims_of(x, dim)
    if dim == x.meta["batch_dim"]:
        if (start in (None, 0)) and step == 1 and result_sizes(e)[dim] == -1:
            return x
        raise e.unsupported("takes some samples of the batch", "slices of the other dimensions")
    return e.slice(x, dim, *slice(start, end, step).indices(size_of(x, dim)))


def narrow(e: Emitter, x: Value, dim: int, start: int, length: int) -> fx.Node:
    (dim,) = dims_of(x, dim)
    start %= size_of(x, dim) or 1
    return e.slice(x, dim, start, start + length)


def select(e: Emitter, x: Value, dim: int, index: int) -> fx.Node:
    (dim,) = dims_of(x, dim)
    e.not_batch(x, dim)
    index %= size_of(x, dim)
    return e.reshape(e.slice(x, dim, index, index + 1), result_sizes(e))


def split(e: Emitter, x: Value, size: Any, dim: int = 0) -> list[fx.Node]:
    """split, split_with_sizes, chunk, unbind, tensor_split: slices as long as the original's."""
    (dim,) = dims_of(x, dim)
    e.not_batch(x, dim)
    parts, start = [], 0
    for part in e.source.meta["val"]:
        length = part.shape[dim]
        parts.append(e.slice(x, dim, start, start + length))
        start += length
    return parts


def unbind(e: Emitter, x: Value, dim: int = 0) -> list[fx.Node]:
    (dim,) = dims_of(x, dim)
    e.not_batch(x, dim)
    sizes = [result_sizes(e, part) for part in e.source.meta["val"]]
    return [e.reshape(e.slice(x, dim, i, i + 1), size) for i, size in enumerate(sizes)]


def repeat(e: Emitter, x: Value, repeats: Sequence[int]) -> fx.Node:
    sizes = e.sizes(x)
    new = len(repeats) - len(sizes)
    x = e.reshape(x, [*[1] * new, *sizes])
    for d, times in enumerate(repeats):
        if times != 1:
            e.not_batch(x, d)
            x = e.cat([x] * times, d)
    return x


def index_select(e: Emitter, x: Value, dim: int, index: Tensor) -> fx.Node:
    if is_activation(index):
        raise e.unsupported("an index that depends on the input is not continuous", "constant indices")
    (dim,) = dims_of(x, dim)
    n = size_of(x, dim)
    return e.take(x, dim, [int(i) % n for i in index.flatten().tolist()])


def pad(e: Emitter, x: Value, pads: Sequence[int], mode: str = "constant", value: float | None = None) -> Any:
    """Constant padding is an affine map with rows of zeros; the others repeat entries. -inf is kept for max pooling."""
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
        if mode == "constant":
            cut = e.slice(x, d, max(-before, 0), n - max(-after, 0))
            sizes = e.sizes(cut)
            ends = []
            for extra in (before, after):
                sizes[d] = extra
                one = (
                    torch.full([1 if s == -1 else s for s in sizes], float(value or 0), dtype=torch.float64)
                    if extra > 0
                    else None
                )
                ends.append(None if one is None else e.spread(one, sizes, cut))
            x = e.cat([t for t in (ends[0], cut, ends[1]) if t is not None], d)
        else:
            places = range(-before, n + after)
            if mode == "reflect":
                x = e.take(x, d, [abs(i) if i < n else 2 * (n - 1) - i for i in places])
            elif mode == "replicate":
                x = e.take(x, d, [min(max(i, 0), n - 1) for i in places])
            else:
                x = e.take(x, d, [i % n for i in places])
    return x


def pad_by(mode: str) -> Callable[..., Any]:
    return lambda e, x, pads: pad(e, x, pads, mode)


def constant_pad(e: Emitter, x: Value, pads: Sequence[int], value: float = 0) -> Any:
    return pad(e, x, pads, "constant", value)


def move(e: Emitter, *args: Any, **kwargs: Any) -> fx.Node:
    """Any operation that only moves entries, drops or repeats them, or fills in zeros: done once on the numbers of the
    entries, which gives the index of each entry of the result. Several activations are laid end to end."""
    value = e.source.meta["val"]
    sources: list[fx.Node] = []
    entries = 0  # of one sample, over all sources so far; the entries are numbered from 1, 0 is a filled-in zero

    def numbered(argument: Any) -> Any:
        nonlocal entries
        if isinstance(argument, torch.SymInt):
            return 2 if str(argument.node.expr).isidentifier() else number(e, argument)
        if not isinstance(argument, fx.Node):
            return argument
        sources.append(argument)
        sizes = [d for d in e.sizes(argument) if d != -1]
        one = torch.arange(entries + 1, entries + 1 + math.prod(sizes), dtype=torch.float64).reshape(sizes)
        entries += one.numel()
        return torch.stack((one, one + 2**40)).movedim(0, argument.meta["batch_dim"])  # two samples, told apart

    args = tuple(_written(e, a, original) for a, original in zip(args, e.source.args, strict=True))
    args, kwargs = fx.node.map_aggregate((args, kwargs), numbered)
    moved = e.source.target(*args, **kwargs)
    sizes = result_sizes(e, value)
    place = sizes.index(-1)
    first, second = moved.movedim(place, 0)
    if not torch.equal(torch.where(first > 0, first + 2**40, 0), second):
        raise e.unsupported("mixes the samples of the batch")
    flat = [e.batch_first(s) for s in sources]
    flat = [e.reshape(s, [-1, math.prod(e.sizes(s)[1:])]) for s in flat]
    state = e.cat(flat, 1)
    index = first.flatten().long() - 1
    if bool((index < 0).any()):
        index = torch.where(index < 0, size_of(state, 1), index)
        state = e.emit(F.pad, state, (0, 1))
    y = e.take(state, 1, index.tolist())
    return e.batch_to(e.reshape(y, [-1, *first.shape]), place)


def _written(e: Emitter, argument: Value, original: Any) -> Value:
    """A constant with one row for every sample: as an activation if it is written into one, repeated if it indexes."""
    if not isinstance(argument, Tensor):
        return argument
    if not argument.is_floating_point():
        return argument.expand([d if isinstance(d, int) else 2 for d in original.meta["val"].shape])
    return e.spread(argument, result_sizes(e, original.meta["val"]), e.first_input)


def copy(e: Emitter, x: Value, source: Value, non_blocking: bool = False) -> Value:
    """source in the shape of x."""
    sizes = result_sizes(e)
    if isinstance(source, fx.Node):
        return e.expand(source, sizes)
    return source.expand([1 if s == -1 else s for s in sizes])


def constant_like(e: Emitter, x: Value, *args: Any, **kwargs: Any) -> Tensor:
    """zeros_like(x), x.new_full(...): a constant, one row that stands for every sample."""
    sizes = [d if isinstance(d, int) else 1 for d in e.source.meta["val"].shape]
    name = e.source.target._schema.name
    fill = float(args[-1]) if "fill" in name or "full" in name else 1.0 if "ones" in name else 0.0
    return torch.full(sizes, fill, dtype=e.source.meta["val"].dtype, device=e.device)


# -- the table ---------------------------------------------------------------------------------------------------

RULES: dict[str, Callable[..., Any]] = {
    # affine
    "add": add,
    "sub": lambda e, x, y, alpha=1: add(e, x, y, alpha, minus=True),
    "rsub": lambda e, x, y, alpha=1: linear_sum(e, [(y, 1.0), (x, -alpha)]),
    "neg": lambda e, x: e.scale(x, -1.0, 0.0),
    "mul": mul,
    "div": div,
    "true_divide": div,
    "matmul": multiply_matrices,
    "mm": multiply_matrices,
    "bmm": multiply_matrices,
    "mv": multiply_matrices,
    "addmm": addmm,
    "baddbmm": addmm,
    "linear": linear,
    "einsum": einsum,
    "conv1d": conv,
    "conv2d": conv,
    "conv3d": conv,
    "conv_transpose1d": conv_transpose,
    "conv_transpose2d": conv_transpose,
    "conv_transpose3d": conv_transpose,
    "convolution": any_convolution,
    "batch_norm": batch_norm,
    "instance_norm": batch_norm,  # the same one with running statistics, unsupported with those of the image
    "_native_batch_norm_legit_no_training": batch_norm_inference,
    "mean": mean,
    "sum": total,
    "cumsum": cumsum,
    "linalg_vector_norm": vector_norm,
    "col2im": fold,
    "grid_sampler_2d": sample_grid,
    "where": select_by,
    "masked_fill": masked_fill,
    "avg_pool1d": avg_pool,
    "avg_pool2d": avg_pool,
    "avg_pool3d": avg_pool,
    "adaptive_avg_pool1d": adaptive_avg_pool,
    "adaptive_avg_pool2d": adaptive_avg_pool,
    "adaptive_avg_pool3d": adaptive_avg_pool,
    "_adaptive_avg_pool2d": adaptive_avg_pool,
    "_adaptive_avg_pool3d": adaptive_avg_pool,
    "upsample_nearest1d": interpolate,
    "upsample_nearest2d": interpolate,
    "upsample_nearest3d": interpolate,
    "_upsample_nearest_exact1d": interpolate,
    "_upsample_nearest_exact2d": interpolate,
    "_upsample_nearest_exact3d": interpolate,
    "upsample_linear1d": interpolate,
    "upsample_bilinear2d": interpolate,
    "upsample_trilinear3d": interpolate,
    "upsample_bicubic2d": interpolate,
    "_upsample_bilinear2d_aa": interpolate,
    "_upsample_bicubic2d_aa": interpolate,
    # piecewise linear
    "relu": lambda e, x: e.relu(x),
    "relu6": lambda e, x: clamp(e, x, 0.0, 6.0),
    "hardtanh": lambda e, x, low=-1.0, high=1.0: clamp(e, x, low, high),
    "clamp": clamp,
    "clip": clamp,
    "clamp_min": lambda e, x, low: clamp(e, x, low),
    "clamp_max": lambda e, x, high: clamp(e, x, None, high),
    "leaky_relu": lambda e, x, slope=0.01: leaky(e, x, slope),
    "prelu": prelu,
    "_prelu_kernel": leaky,
    "rrelu": rrelu,
    "abs": absolute,
    "absolute": absolute,
    "threshold": threshold,
    "softshrink": softshrink,
    "hardsigmoid": hardsigmoid,
    "maximum": maximum,
    "minimum": minimum,
    "fmax": maximum,
    "fmin": minimum,
    "max": max_of,
    "min": min_of,
    "amax": amax,
    "amin": amin,
    "cummax": running_max,
    "cummin": running_min,
    "max_pool1d": max_pool,
    "max_pool2d": max_pool,
    "max_pool3d": max_pool,
    "max_pool1d_with_indices": max_pool_with_indices,
    "max_pool2d_with_indices": max_pool_with_indices,
    "max_pool3d_with_indices": max_pool_with_indices,
    "adaptive_max_pool1d": adaptive_max_pool,
    "adaptive_max_pool2d": adaptive_max_pool,
    "adaptive_max_pool3d": adaptive_max_pool,
    # nothing happens
    **dict.fromkeys(("clone", "contiguous", "to", "_to_copy", "detach", "alias", "lift_fresh_copy", "type_as"), same),
    **dict.fromkeys(("dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout"), dropout),
    # entries in the same order
    **dict.fromkeys(("view", "_unsafe_view", "reshape", "flatten", "unflatten", "unsqueeze"), view),
    "squeeze": squeeze,
    **dict.fromkeys(("view_as", "reshape_as"), lambda e, x, other: view(e, x)),
    # entries moved, dropped, repeated
    "permute": permute,
    "transpose": transpose,
    "swapaxes": transpose,
    "swapdims": transpose,
    "t": transpose,
    **dict.fromkeys(("mT", "adjoint", "mH"), lambda e, x: transpose(e, x, -2, -1)),
    "movedim": movedim,
    "moveaxis": movedim,
    "expand": expand,
    "copy": copy,
    "expand_as": lambda e, x, other: e.expand(x, result_sizes(e)),
    "broadcast_to": expand,
    "cat": cat,
    "concat": cat,
    "concatenate": cat,
    "stack": stack,
    "slice": slice_,
    "narrow": narrow,
    "select": select,
    **dict.fromkeys(("split", "split_with_sizes", "chunk", "tensor_split"), split),
    "unbind": unbind,
    "repeat": repeat,
    "index_select": index_select,
    "pad": pad,
    "constant_pad_nd": constant_pad,
    **dict.fromkeys(("reflection_pad1d", "reflection_pad2d", "reflection_pad3d"), pad_by("reflect")),
    **dict.fromkeys(("replication_pad1d", "replication_pad2d", "replication_pad3d"), pad_by("replicate")),
    **dict.fromkeys(
        (
            *("flip", "fliplr", "flipud", "roll", "rot90", "tile", "repeat_interleave", "index", "_unsafe_index"),
            *("gather", "take", "take_along_dim", "unfold", "im2col", "pixel_shuffle", "pixel_unshuffle"),
            *("channel_shuffle", "diagonal", "tril", "triu", "diag_embed", "select_scatter", "slice_scatter"),
            *("diagonal_scatter", "index_put", "index_copy", "slice_copy", "block_diag", "hstack", "vstack", "dstack"),
        ),
        move,
    ),
    # constants shaped like an activation
    **dict.fromkeys(
        (
            "zeros_like",
            "ones_like",
            "full_like",
            "empty_like",
            "new_zeros",
            "new_ones",
            "new_full",
            "new_empty",
            "fill",
        ),
        constant_like,
    ),
}
