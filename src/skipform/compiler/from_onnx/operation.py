"""One operation of an ONNX file as a function of torch tensors, for one example and for a batch of them.

The shapes of a file are literal: its operations are defined on tensors of exactly these sizes. A torch module that the
compiler takes has a free batch size b, which comes first. So every tensor is held for a batch in a form that depends
on its shape in the file alone:

    (1, s, t, ...)  ->  (b, s, t, ...)       the size 1 is the batch of the file
    (r, s, t, ...)  ->  (b, r, s, t, ...)    r != 1: every example has a tensor of its own

An operator's function(lead, *tensors) is the definition of ONNX with `lead` more dimensions in front: it gives the
tensor of the file for lead = 0, and that of a batch for lead = 1. An Operation calls it in one of these forms:

    DIRECT   as it is on (b, s, t, ...): nothing happens along the first dimension of the file
    LEAD     with lead = 1 on (b, r, s, t, ...)
    ROWS     on (b r, s, t, ...): the operation treats all entries of the first dimension alike, as convolutions do
    SHAPE    only the shape changes
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from skipform.compiler.from_onnx.file import NUMBERS, Node
from skipform.errors import SkipformError, shown

DIRECT, LEAD, ROWS, SHAPE = "direct", "lead", "rows", "shape"
Shape = tuple[int, ...]
Function = Callable[..., Any]  # (lead, *tensors) -> a tensor, or a tuple of them


@dataclass(eq=False)
class Value:
    """A tensor of the file. constant: its numbers, or None if it depends on the input."""

    name: str
    shape: Shape
    dtype: torch.dtype
    constant: Tensor | None = None

    @property
    def active(self) -> bool:
        return self.constant is None

    @property
    def rank(self) -> int:
        return len(self.shape)

    def meta(self) -> Tensor:
        return torch.empty(self.shape, dtype=self.dtype, device="meta")


def constant(tensor: Tensor) -> Value:
    """An operand that is no tensor of the file but was made from its attributes."""
    return Value("", tuple(tensor.shape), tensor.dtype, tensor)


@dataclass
class Call:
    """A node with its operands, as an operator's rule sees it. place: what an error begins with."""

    node: Node
    operands: list[Value | None]
    place: str

    @property
    def version(self) -> int:
        return self.node.version

    @property
    def x(self) -> Value:
        return self[0]

    def __getitem__(self, position: int) -> Value:
        value = self.get(position)
        if value is None:
            raise self.refusal(f"input {position} is missing")
        return value

    def get(self, position: int) -> Value | None:
        return self.operands[position] if position < len(self.operands) else None

    def attribute(self, name: str, default: Any = None) -> Any:
        return self.node.attributes.get(name, default)

    def refusal(self, reason: str, accepted: str | None = None) -> SkipformError:
        return SkipformError(f"{self.place}: {reason}" + (f"; accepted: {accepted}" if accepted else ""))

    def literal(self, position: int, name: str) -> Tensor | None:
        """The numbers of an input that the shapes depend on, None if it is left out."""
        value = self.get(position)
        if value is None:
            return None
        if value.constant is None:
            raise self.refusal(f"its {name} depends on the input of the network", "a constant")
        return value.constant

    def numbers(self, name: str, position: int | None = None) -> list[Any] | None:
        """A list that older versions have as an attribute and newer ones as an input; None if it is left out."""
        given = self.attribute(name)
        if given is None and position is not None:
            tensor = self.literal(position, name)
            given = None if tensor is None else tensor.flatten().tolist()
        return given if given is None else [*given]

    def whole(self, name: str, position: int | None = None) -> list[int] | None:
        given = self.numbers(name, position)
        return given if given is None else [int(n) for n in given]

    def axis(self, axis: int, rank: int | None = None) -> int:
        """The axis, counted from the front."""
        rank = self.x.rank if rank is None else rank
        if not -rank <= axis < max(rank, 1):
            raise self.refusal(f"axis {axis} of a tensor with {rank} dimensions")
        return axis % max(rank, 1)

    def bounded(self, shape: Sequence[int]) -> Shape:
        """The shape, unless a tensor of that shape is too large to be made."""
        count = 1
        for size in shape:
            count *= size
        if count > NUMBERS or any(size < 0 for size in shape):
            raise self.refusal(f"makes a tensor of shape {shown(tuple(shape))}", f"at most {NUMBERS:,} numbers")
        return tuple(shape)


@dataclass
class Rule:
    """What an operator's rule returns: a function on these operands, and the form in which it is called."""

    function: Function
    operands: list[Value]
    form: str
    shapes: tuple[Shape, ...] = field(default=())  # of the results, in the file


def along(call: Call, function: Function, operands: Sequence[Value], axes: Sequence[int]) -> Rule:
    """A function that acts along some axes of tensors of one rank: DIRECT if the first axis is not one of them and is
    the batch of the file."""
    first = [value.shape[:1] == (1,) for value in operands if value.active]
    return Rule(function, [*operands], DIRECT if 0 not in axes and all(first) else LEAD)


def in_front(x: Tensor, shape: Shape) -> Tensor:
    """(b, *shape) of the form in which the module holds a tensor of that shape."""
    return x.unsqueeze(1) if shape[:1] == (1,) else x


def held(x: Tensor, shape: Shape) -> Tensor:
    """The inverse of in_front."""
    return x.squeeze(1) if shape[:1] == (1,) else x


def held_shape(shape: Shape) -> Shape:
    """The sizes after the batch of the form in which the module holds a tensor of that shape."""
    return shape[1:] if shape[:1] == (1,) else shape


class Operation(nn.Module):
    """A node of the file as a module; `title` is what the compiler calls it in an error."""

    def __init__(self, title: str, rule: Rule):
        super().__init__()
        self.title, self.function, self.form, self.shapes = title, rule.function, rule.form, rule.shapes
        self.active = [value.active for value in rule.operands]
        self.sources = [value.shape for value in rule.operands]

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        if self.form == SHAPE:
            return (tensors[0].reshape(-1, *held_shape(self.shapes[0])),)
        if self.form == DIRECT:
            return self._results(0, tensors)
        lifted = [
            in_front(x, shape) if active else x
            for x, shape, active in zip(tensors, self.sources, self.active, strict=True)
        ]
        if self.form == LEAD:
            return tuple(held(y, shape) for y, shape in zip(self._results(1, lifted), self.shapes, strict=False))
        if self.sources[0][0] == 1:
            return self._results(0, tensors)
        rows = [x.flatten(0, 1) if active else x for x, active in zip(lifted, self.active, strict=True)]
        return tuple(y.unflatten(0, (-1, self.sources[0][0])) for y in self._results(0, rows))

    def on_the_file(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """ONNX's definition, on tensors of the file's shapes."""
        return self._results(0, tensors)

    def _results(self, lead: int, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        results = self.function(lead, *tensors)
        return results if isinstance(results, tuple) else (results,)
