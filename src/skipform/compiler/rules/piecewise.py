"""Piecewise linear functions of one entry, and the norms that are piecewise linear: ReLUs between affine maps."""

import math
from typing import Any

import torch
from torch import fx

from skipform.compiler.emit import Emitter
from skipform.compiler.rules.affine import reduction
from skipform.compiler.rules.maxima import amax, maximum, minimum
from skipform.compiler.rules.values import Dims, Value, real, result_sizes


def leaky(e: Emitter, x: fx.Node, slope: Value) -> fx.Node:
    """x for x > 0, else slope * x:  (1 - slope) relu(x) + slope x."""
    slope = real(e, slope)
    r = e.relu(x)
    if slope.numel() == 1:
        return e.combine([r, x], [1 - slope.item(), slope.item()])
    return e.combine([e.scale(r, 1 - slope, 0.0), e.scale(x, slope, 0.0)], [1, 1])


def prelu(e: Emitter, x: fx.Node, weight: Value) -> fx.Node:
    ndim = x.meta["val"].ndim
    slope = real(e, weight)
    return leaky(e, x, slope.reshape(-1, *(1,) * (ndim - 2)) if slope.numel() > 1 else slope)


def rrelu(
    e: Emitter,
    x: fx.Node,
    lower: float = 1 / 8,
    upper: float = 1 / 3,
    training: bool = False,
    generator: torch.Generator | None = None,
) -> fx.Node:
    if training:
        raise e.unsupported("is random", "leaky_relu")
    return leaky(e, x, (lower + upper) / 2)


def absolute(e: Emitter, x: fx.Node) -> fx.Node:
    """|x| = 2 relu(x) - x."""
    return e.combine([e.relu(x), x], [2, -1], merge=False)


def clamp(e: Emitter, x: fx.Node, low: Value | None = None, high: Value | None = None) -> fx.Node:
    """min(max(x, low), high) = low + relu(x - low) - relu(x - high), in one layer, for constants low <= high.

    max(x, low) = low + relu(x - low);  min(x, high) = x - relu(x - high). Bounds that are activations: two maxima.
    """
    if isinstance(low, fx.Node) or isinstance(high, fx.Node):
        x = x if low is None else maximum(e, x, low)
        return x if high is None else minimum(e, x, high)
    x = e.expand(x, result_sizes(e))
    low, high = (None if bound is None else real(e, bound) for bound in (low, high))
    if low is not None and high is not None:
        low = torch.minimum(low, high)  # the upper bound wins, as in torch
    clamped = x if low is None else e.relu(e.scale(x, 1.0, -low))
    if high is not None:
        clamped = e.combine([clamped, e.relu(e.scale(x, 1.0, -high))], [1, -1], merge=False)
    return clamped if low is None else e.scale(clamped, 1.0, low)


def threshold(e: Emitter, x: fx.Node, bound: float, value: float) -> fx.Node:
    """x where x > bound, else value: continuous only for value = bound, and then max(x, bound)."""
    if bound != value:
        raise e.unsupported(f"jumps from {value} to {bound}", "threshold with value = threshold")
    return clamp(e, x, bound)


def softshrink(e: Emitter, x: fx.Node, bound: float = 0.5) -> fx.Node:
    """relu(x - bound) - relu(-x - bound)."""
    return e.combine([e.relu(e.scale(x, 1.0, -bound)), e.relu(e.scale(x, -1.0, -bound))], [1, -1], merge=False)


def hardsigmoid(e: Emitter, x: fx.Node) -> fx.Node:
    """min(max(x / 6 + 1/2, 0), 1)."""
    return clamp(e, e.scale(x, 1 / 6, 0.5), 0.0, 1.0)


def vector_norm(
    e: Emitter, x: fx.Node, p: float = 2, dim: Dims = None, keepdim: bool = False, *, dtype: Any = None
) -> fx.Node:
    """The norms that are piecewise linear: the sum (p = 1) and the maximum (p = inf) of |x|."""
    if p == 1:
        return reduction(e, absolute(e, x), dim, average=False)
    if p == math.inf:
        return amax(e, absolute(e, x), dim, keepdim)
    raise e.unsupported(f"is not piecewise linear for order {p}", "order 1 or inf")


def norm(e: Emitter, x: fx.Node, p: float | None = 2, dim: Dims = None, keepdim: bool = False, **how: Any) -> fx.Node:
    return vector_norm(e, x, 2 if p is None else p, dim, keepdim, **how)


def power(e: Emitter, x: Value, exponent: Value) -> fx.Node:
    if isinstance(x, fx.Node) and not isinstance(exponent, fx.Node) and bool((real(e, exponent) == 1).all()):
        return e.expand(x, result_sizes(e))
    raise e.unsupported("is not piecewise linear", "abs")
