"""What the rules are called with, and what all of them ask about it: sizes, dimensions, numbers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from skipform.compiler.emit import Emitter

# An argument that may depend on the input: then it is a node of the rewritten graph, an activation; else a constant.
Value = fx.Node | Tensor | float
Operand = fx.Node | Tensor
Dims = int | Sequence[int] | None

PRODUCT = "a product of two activations is not piecewise linear"


@dataclass(frozen=True)
class Unavailable:
    """A result that no network of affine maps and ReLU has, such as the index of a maximum. Using it is an error."""

    what: str


@dataclass(frozen=True)
class PaddedWithMinusInfinity:
    """x padded with -inf, as 'same' max pooling pads it. Only a max pooling, which leaves the padding out, takes it."""

    x: fx.Node
    pads: dict[int, tuple[int, int]]  # dim -> (before, after)


@dataclass(frozen=True)
class BatchInside:
    """x (t, b, ...) as the (t * b, ...) of multi-head attention, in which samples alternate: no tensor of the rewritten
    graph is like that. Linear layers, and the reshape that takes the first dimension apart again, read x instead."""

    x: fx.Node


def is_activation(value: Any) -> bool:
    """Whether the value depends on the input."""
    return isinstance(value, (fx.Node, PaddedWithMinusInfinity, BatchInside, Unavailable))


def activation_first(x: Value, y: Value) -> tuple[fx.Node, Value]:
    """(x, y), or (y, x) if only y is an activation; one of them is, for operations on constants have no rule."""
    if isinstance(x, fx.Node):
        return x, y
    assert isinstance(y, fx.Node), "one operand must be an activation"
    return y, x


def size_of(x: Operand, dim: int) -> int:
    return (x.meta["val"] if isinstance(x, fx.Node) else x).shape[dim]


def dims_of(x: fx.Node, dims: Dims = None) -> list[int]:
    """Dimensions as non-negative numbers in ascending order; all of them for None or ()."""
    ndim = x.meta["val"].ndim
    listed = [dims] if isinstance(dims, int) else [*(dims or range(ndim))]
    return sorted({d % ndim for d in listed})


def result_sizes(e: Emitter, value: Tensor | None = None) -> list[int]:
    """The sizes of the original result, -1 for the batch. value: one of several results, the first one by default."""
    if value is None:
        value = e.source.meta["val"]
        value = value[0] if isinstance(value, (tuple, list)) else value
    sizes = [d if isinstance(d, int) else -1 for d in value.shape]
    if sizes.count(-1) != 1:
        raise e.unsupported("mixes the samples of the batch")
    return sizes


def number(e: Emitter, value: Any) -> Any:
    """A scalar argument. One that depends on the batch size is refused."""
    if isinstance(value, torch.SymInt | torch.SymFloat):
        raise e.unsupported("computes with the batch size")
    return value


def real(e: Emitter, x: Value) -> Tensor:
    """A constant tensor or a number as a float64 tensor."""
    value = number(e, x)
    if isinstance(value, Tensor) and value.is_complex():
        raise e.unsupported(f"computes with {value.dtype}", "one dtype throughout")
    return torch.as_tensor(value, dtype=torch.float64, device=e.device)


def pooled_dims(e: Emitter, x: fx.Node) -> list[int]:
    """The dimensions that a pooling acts on: the last two if its schema has lists of two, as in int[2] kernel_size."""
    rank = next(argument.N for argument in e.source.target._schema.arguments if argument.N is not None)
    ndim = x.meta["val"].ndim
    return [*range(ndim - rank, ndim)]


def one_per_dim(value: int | Sequence[int], rank: int) -> list[int]:
    """A kernel size, stride, padding or dilation as a list of `rank` numbers."""
    values = [value] if isinstance(value, int) else [*value]
    return values * rank if len(values) == 1 else values


def adaptive_windows(n: int, count: int) -> list[range]:
    """Window i of adaptive pooling: floor(i n / count) .. ceil((i + 1) n / count) - 1."""
    return [range(i * n // count, -(-(i + 1) * n // count)) for i in range(count)]
