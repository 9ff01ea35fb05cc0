"""The same function in the operations that run fastest, for people who train or run the net.

What torch has an operation for stays that operation (average pooling, interpolation, padding, leaky ReLU, clamping,
sums and means), a batch norm is folded into the layer before it or is one pass s x + t, and additions stay additions. A
maximum over windows is a tree of `torch.maximum` on slices, one axis after the other: in eager mode on a CPU it is
faster than torch's own max pooling, which goes entry by entry where torch.maximum uses vector instructions. So this
target is not in the paper's grammar; `grammar` is.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from skipform.compiler.emit import Emitter
from skipform.compiler.rewrite import rewrite_in_float64
from skipform.compiler.rules import RULES, PaddedWithMinusInfinity, Unavailable, maxima
from skipform.compiler.rules.values import dims_of, number, one_per_dim, pooled_dims, result_sizes
from skipform.compiler.targets import Settings
from skipform.compiler.targets.keep_add import AddingEmitter

LARGEST_TREE = 9  # entries of the largest window whose maximum is a tree of slices; a larger one stays torch's pooling
Rule = Callable[..., Any]


def rewritten(module: nn.Module, inputs: tuple[Tensor, ...], settings: Settings) -> fx.GraphModule:
    """The net in torch's own operations, with batch norms folded."""
    return rewrite_in_float64(module, inputs, FastEmitter, check=settings.check)


def operation_of(e: Emitter) -> Any:
    """The operation that is being rewritten, not in place."""
    operation = e.source.target
    if not any(argument.is_write for argument in operation._schema.arguments):
        return operation
    packet = operation._schema.name.removeprefix("aten::").removesuffix("_")
    return getattr(getattr(torch.ops.aten, packet), operation._schema.overload_name or "default")


def entrywise(name: str) -> Rule:
    """The operation itself on one activation, if all else is numbers and tensors that spread to its shape."""

    def rule(e: Emitter, x: Any, *args: Any, **kwargs: Any) -> Any:
        alone = not any(isinstance(a, fx.Node | Tensor) for a in (*args, *kwargs.values()))
        return e.emit(operation_of(e), x, *args, **kwargs) if alone else RULES[name](e, x, *args, **kwargs)

    return rule


def windowed(name: str) -> Rule:
    """The operation itself where the batch comes first and is none of the dimensions that it acts on."""

    def rule(e: Emitter, x: Any, *args: Any, **kwargs: Any) -> Any:
        rank = int(next(filter(str.isdigit, name)))
        plain = isinstance(x, fx.Node) and x.meta["batch_dim"] == 0 and x.meta["val"].ndim == rank + 2
        return e.emit(operation_of(e), x, *args, **kwargs) if plain else RULES[name](e, x, *args, **kwargs)

    return rule


def reduced(name: str) -> Rule:
    """A sum or mean over dimensions other than the batch."""

    def rule(e: Emitter, x: fx.Node, dim: Any = None, *args: Any, **kwargs: Any) -> fx.Node:
        e.not_batch(x, *dims_of(x, dim))
        return e.emit(operation_of(e), x, dim, *args, **kwargs)

    return rule


def pad(
    e: Emitter, x: fx.Node, pads: Sequence[int], mode: str = "constant", value: float | None = None
) -> fx.Node | PaddedWithMinusInfinity:
    """Padding that repeats entries stays what it is, where it leaves the batch and the channels alone."""
    if mode == "constant" or x.meta["batch_dim"] != 0 or len(pads) != 2 * (x.meta["val"].ndim - 2):
        return RULES["pad"](e, x, pads, mode, value)
    return e.emit(F.pad, x, tuple(number(e, p) for p in pads), mode)


def amax(e: Emitter, x: fx.Node, dim: Any = (), keepdim: bool = False) -> fx.Node:
    dims = dims_of(x, dim)
    e.not_batch(x, *dims)
    return e.emit(torch.amax, x, tuple(dims), keepdim)


def max_pool(
    e: Emitter,
    x: fx.Node | PaddedWithMinusInfinity,
    kernel_size: int | Sequence[int],
    stride: int | Sequence[int] = (),
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    ceil_mode: bool = False,
) -> fx.Node:
    """A tree of maxima of slices along each axis of the input padded with -inf; a large window stays what it is. With
    steps, rows go first, which are left out whole; without, columns, so that compiled code needs one pass."""
    if isinstance(x, PaddedWithMinusInfinity) or x.meta["batch_dim"] != 0:
        return maxima.max_pool(e, x, kernel_size, stride, padding, dilation, ceil_mode)
    dims, counts = pooled_dims(e, x), result_sizes(e)
    how = zip(
        *(one_per_dim(v, len(dims)) for v in (kernel_size, stride or kernel_size, padding, dilation)), strict=True
    )
    axes = [(d, *numbers) for d, numbers in zip(dims, how, strict=True)]
    if math.prod(kernel for _, kernel, *_ in axes) > LARGEST_TREE:
        how_often = (kernel_size, stride or kernel_size, padding, dilation, ceil_mode)
        return e.emit(getattr(F, f"max_pool{len(dims)}d"), x, *how_often)
    reach = [(counts[d] - 1) * step + (kernel - 1) * apart + 1 for d, kernel, step, _, apart in axes]
    sides = [
        side
        for (d, _, _, before, _), last in reversed([*zip(axes, reach, strict=True)])
        for side in (before, max(0, last - before - e.sizes(x)[d]))
    ]
    x = e.emit(F.pad, x, tuple(sides), "constant", -math.inf) if any(sides) else x
    stepping = any(step > 1 for _, _, step, _, _ in axes)
    for d, kernel, step, _, apart in axes if stepping else reversed(axes):
        parts = [e.slice(x, d, i, i + (counts[d] - 1) * step + 1, step) for i in range(0, kernel * apart, apart)]
        while len(parts) > 1:
            pairs = [e.maximum(a, b) for a, b in zip(parts[::2], parts[1::2], strict=False)]
            parts = [*pairs, *parts[2 * len(pairs) :]]
        (x,) = parts
    return x


def max_pool_with_indices(e: Emitter, *args: Any, **kwargs: Any) -> tuple[fx.Node, Unavailable]:
    return max_pool(e, *args, **kwargs), Unavailable("the index of a maximum")


def adaptive_max_pool(e: Emitter, x: fx.Node, output_size: Any) -> tuple[fx.Node, Unavailable]:
    """One window that is the whole image is a maximum over dimensions."""
    counts, dims = result_sizes(e), pooled_dims(e, x)
    if any(counts[d] != 1 for d in dims):
        return maxima.adaptive_max_pool(e, x, output_size)
    return amax(e, x, dims, True), Unavailable("the index of a maximum")


class FastEmitter(AddingEmitter):
    """Writes maxima, scales and what torch has an operation for as one operation each."""

    rules: ClassVar[dict[str, Rule]] = {
        **{
            name: entrywise(name)
            for name in ("relu6", "hardtanh", "clamp", "clamp_min", "clamp_max", "leaky_relu", "abs", "hardsigmoid")
        },
        **{
            name: windowed(name)
            for rank in (1, 2, 3)
            for name in (f"avg_pool{rank}d", f"adaptive_avg_pool{rank}d", f"upsample_nearest{rank}d")
        },
        **{name: windowed(name) for name in ("upsample_linear1d", "upsample_bilinear2d", "upsample_trilinear3d")},
        **{name: reduced(name) for name in ("mean", "sum")},
        "amax": amax,
        "pad": pad,
        **{f"max_pool{rank}d": max_pool for rank in (1, 2, 3)},
        **{f"max_pool{rank}d_with_indices": max_pool_with_indices for rank in (1, 2, 3)},
        **{f"adaptive_max_pool{rank}d": adaptive_max_pool for rank in (1, 2, 3)},
    }

    def maximum(self, x: fx.Node, y: fx.Node) -> fx.Node:
        return self.emit(torch.maximum, x, y)

    def _scaled(self, x: fx.Node, s: Tensor, t: Tensor) -> fx.Node:
        """s * x + t in one pass."""
        if not bool(t.any()):
            return self.emit(torch.mul, x, s)
        return self.emit(torch.add, x, t) if bool((s == 1).all()) else self.emit(torch.addcmul, t, x, s)
