"""The paper's grammar, strictly: an addition is a concatenation and the fixed map (I I) (Theorem 2)."""

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, fx, nn

from skipform.compiler.emit import Emitter
from skipform.compiler.rewrite import rewrite_in_float64
from skipform.compiler.rules import averages
from skipform.compiler.rules.values import one_per_dim, pooled_dims
from skipform.compiler.targets import Settings

BAND = 256  # entries of a band of rows above which its matrix takes longer than a convolution


def rewritten(module: nn.Module, inputs: tuple[Tensor, ...], settings: Settings) -> fx.GraphModule:
    """Affine maps, `torch.relu`, `torch.cat` and what moves entries; nothing else."""
    return rewrite_in_float64(module, inputs, StrictEmitter, check=settings.check)


def avg_pool2d(
    e: Emitter,
    x: fx.Node,
    kernel_size: int | Sequence[int],
    stride: int | Sequence[int] = (),
    padding: int | Sequence[int] = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> fx.Node:
    """Where windows tile the image, each band of rows under them is a vector, of which one matrix takes all averages: a
    convolution channel by channel takes three times as long, in eager mode and compiled."""
    dims, sizes = pooled_dims(e, x), e.sizes(x)
    (kh, kw), strides, pads = (one_per_dim(v, 2) for v in (kernel_size, stride or kernel_size, padding))
    *others, h, w = sizes
    tiles = [*strides] == [kh, kw] and not any(pads) and h % kh == w % kw == 0
    if x.meta["batch_dim"] in dims or not tiles or kh * w > BAND:
        return averages.avg_pool(e, x, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override)
    columns = torch.eye(w // kw, dtype=torch.float64).repeat_interleave(kw, 1)  # (windows, w)
    matrix = columns.repeat(1, kh) / (divisor_override or math.prod((kh, kw)))
    return e.linear(e.reshape(x, [*others, h // kh, kh * w]), matrix)


class StrictEmitter(Emitter):
    """Writes averages over bands of rows, and sums of a tensor's slices without a concatenation."""

    rules: ClassVar[dict[str, Callable[..., Any]]] = {"avg_pool2d": avg_pool2d}

    def _stacked(self, xs: Sequence[fx.Node]) -> fx.Node:
        """Slices that make up a tensor are that tensor, reshaped and permuted; others are concatenated."""
        tiled = _tiled(xs)
        if tiled is None:
            return super()._stacked(xs)
        whole, which = tiled
        sizes = self.sizes(xs[0])
        parts = self.reshape(whole, [*sizes[:which], len(xs), *sizes[which:]])
        order = [d for d in range(len(sizes) + 1) if d != which]
        order.insert(order.index(parts.meta["batch_dim"]) + 1, which)
        return self.permute(parts, order)


def _tiled(xs: Sequence[fx.Node]) -> tuple[fx.Node, int] | None:
    """(tensor, which) if xs are slices along a dimension that make up a tensor, in order: it is them once reshaped
    to have their number as dimension `which`. That stands behind their own dimension for entries in turn (0, 2, ... and
    1, 3, ...), before it for blocks. None for anything else."""
    if any(x.target is not operator.getitem or x.args[0] is not xs[0].args[0] for x in xs):
        return None
    whole: Any = xs[0].args[0]
    slices: list[tuple[slice, ...]] = [x.args[1] for x in xs]  # type: ignore[misc]
    dim, count = len(slices[0]) - 1, len(xs)
    size = whole.meta["val"].shape[dim]
    if size % count or any(len(s) != dim + 1 for s in slices):
        return None
    length = size // count
    entries = [range(size)[s[dim]] for s in slices]
    if entries == [range(k, size, count) for k in range(count)]:
        return whole, dim + 1
    return (whole, dim) if entries == [range(k * length, (k + 1) * length) for k in range(count)] else None
