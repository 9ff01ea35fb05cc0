"""Steps of a program as expressions in curves (curves.py), where they are local: convolutions, sums, slices, padding
and concatenation of images."""

import operator
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from skipform.measure.convolution import pair
from skipform.measure.curves import Convolution, Curve, Expression, Leaf, Shape, Sum, evaluate, identity, pixels
from skipform.measure.program import Program, Segment, Step
from skipform.measure.windows import Kernel, View

if TYPE_CHECKING:
    from torch import fx


@dataclass(frozen=True, eq=False)
class LocalStep:
    """A step that makes curves of curves: those of the state, in order, then one of each expression."""

    expressions: tuple[Expression, ...]
    leaving: tuple[int, ...]  # which of them all make up the new state; the first is rectified next

    def __call__(self, curves: Sequence[Curve], t: np.ndarray) -> list[Curve]:
        made = list(curves)
        for expression in self.expressions:
            made.append(evaluate(expression, made, t))
        return [made[i] for i in self.leaving]

    def sizes(self, curves: Sequence[Curve]) -> np.ndarray:
        """Numbers at each point in the curves that are read and made, (n,)."""
        made, none = list(curves), np.zeros(0)
        for expression in self.expressions:
            made.append(Curve(expression.shape, expression.box(made), none, none))
        sizes: np.ndarray = np.sum([pixels(curve.box) * curve.shape[0] for curve in made], 0)
        return sizes


def local_steps(program: Program) -> list[LocalStep]:
    """The first steps of a program, up to the first one that is not local; the last step of all is left out."""
    steps: list[LocalStep] = []
    for step in program.steps[:-1]:
        local = _local(step)
        if local is None:
            break
        steps.append(local)
    return steps


def _local(step: Step) -> LocalStep | None:
    segment = step.apply
    if not isinstance(segment, Segment) or not all(_is_image(node) for node in (*segment.live, *segment.body)):
        return None
    reader = _Reader(segment)
    if not all(reader.read(node) for node in segment.body):
        return None
    leaving = tuple(reader.place(node) for node in segment.leaving)
    return LocalStep(tuple(reader.expressions), leaving)


def _is_image(node: "fx.Node") -> bool:
    return node.meta.get("batch_dim") == 0 and node.meta["val"].ndim == 4


def _shape(node: "fx.Node") -> Shape:
    c, h, w = node.meta["val"].shape[1:]
    return c, h, w


class _Reader:
    """Reads the nodes of a segment in order. What several others read is a curve, and so is what a kernel slides on."""

    def __init__(self, segment: Segment) -> None:
        self.constants = segment.constants
        self.expressions: list[Expression] = []
        self.live = len(segment.live)
        self.known: dict[fx.Node, Expression] = {node: identity(i, _shape(node)) for i, node in enumerate(segment.live)}
        reads = [argument for node in segment.body for argument in node.all_input_nodes]
        self.uses = Counter([*reads, *segment.leaving])

    def read(self, node: "fx.Node") -> bool:
        """Whether the node is local; then it is known."""
        rule = _RULES.get(node.target)
        if node.op != "call_function" or rule is None:
            return False
        expression = rule(self, node, *node.args, **node.kwargs)
        if expression is None:
            return False
        self.known[node] = expression
        if self.uses[node] > 1:
            self.known[node] = identity(self.place(node), _shape(node))
        return True

    def place(self, node: "fx.Node") -> int:
        """The index of the curve of a node, which becomes one if it is not."""
        expression = self.known[node]
        if isinstance(expression, Leaf) and expression == identity(expression.index, expression.shape):
            return expression.index
        self.expressions.append(expression)
        return self.live + len(self.expressions) - 1

    def leaf(self, node: "fx.Node") -> Leaf:
        """The node as a view of a curve."""
        expression = self.known[node]
        if not isinstance(expression, Leaf):
            expression = self.known[node] = identity(self.place(node), _shape(node))
        return expression

    def terms(self, node: "fx.Node", factor: float, channel: int) -> tuple[Any, ...]:
        """The terms of a node times a factor, its channels moved up."""
        expression = self.known[node]
        terms = expression.terms if isinstance(expression, Sum) else ((expression, 1.0, 0),)
        return tuple((term, factor * own, channel + first) for term, own, first in terms)

    def moving(self, *arguments: Any) -> bool:
        return all(argument in self.known for argument in arguments)

    def constant(self, argument: Any) -> Any:
        return self.constants.get(argument) if argument is not None else None


def _convolution(
    reader: _Reader,
    node: "fx.Node",
    x: "fx.Node",
    weight: "fx.Node",
    bias: "fx.Node | None" = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Expression | None:
    entries, shift = reader.constant(weight), reader.constant(bias)
    if not reader.moving(x) or not isinstance(entries, Tensor) or isinstance(padding, str):
        return None
    if bias is not None and shift is None:
        return None
    (sy, sx), (py, px) = pair(stride), pair(padding)
    _, inner, rows, columns = entries.shape
    whole = reader.known[x]
    index = reader.place(x)
    if not isinstance(whole, Leaf):
        reader.known[x] = identity(index, _shape(x))
    flat = entries.permute(2, 3, 1, 0).reshape(rows * columns, inner, -1).contiguous()
    view = View(sy, -py, sx, -px, 0, _shape(x)[0])
    return Convolution(index, _shape(node), flat, shift, groups, view, Kernel(rows, columns, *pair(dilation)))


def _sum(reader: _Reader, node: "fx.Node", a: Any, b: Any, *, alpha: float = 1.0) -> Expression | None:
    if not reader.moving(a, b) or _shape(a) != _shape(b):
        return None
    return _in_order(_shape(node), (*reader.terms(a, 1.0, 0), *reader.terms(b, float(alpha), 0)))


def _in_order(shape: Shape, terms: tuple[Any, ...]) -> Sum:
    """The sum that begins with a term of all channels, if there is one."""
    return Sum(shape, tuple(sorted(terms, key=lambda term: term[0].shape[0] != shape[0])))


def _concatenation(reader: _Reader, node: "fx.Node", parts: Sequence[Any], dim: int = 0) -> Expression | None:
    if dim != 1 or not reader.moving(*parts):
        return None
    first = np.cumsum([0, *(_shape(part)[0] for part in parts)]).tolist()
    terms = [reader.terms(part, 1.0, channel) for part, channel in zip(parts, first, strict=False)]
    return _in_order(_shape(node), sum(terms, ()))


def _slice(reader: _Reader, node: "fx.Node", x: Any, key: Any) -> Expression | None:
    key = (*key, *[slice(None)] * (4 - len(key))) if isinstance(key, tuple) else ()
    if not reader.moving(x) or len(key) != 4 or not all(isinstance(part, slice) for part in key):
        return None
    spans = [part.indices(size) for part, size in zip(key[1:], _shape(x), strict=True)]
    if key[0] != slice(None) or spans[0][2] != 1:
        return None
    leaf = reader.leaf(x)
    old = leaf.view
    view = View(
        old.row_step * spans[1][2],
        old.row + old.row_step * spans[1][0],
        old.column_step * spans[2][2],
        old.column + old.column_step * spans[2][0],
        old.first + spans[0][0],
        _shape(node)[0],
    )
    return replace(leaf, shape=_shape(node), view=view)


def _padding(
    reader: _Reader, node: "fx.Node", x: Any, pad: Sequence[int], mode: str = "constant", value: float | None = None
) -> Expression | None:
    pad = [*pad, *[0] * (8 - len(pad))]
    if not reader.moving(x) or mode != "constant" or value or min(pad) < 0 or any(pad[6:]):
        return None
    if any(pad[:4]):  # the view reaches beyond the curve, which must be whole
        index, (c, h, w) = reader.place(x), _shape(x)
        reader.known[x] = identity(index, (c, h, w))
        view = View(1, -pad[2], 1, -pad[0], 0, c)
        terms: tuple[Any, ...] = ((Leaf(index, (c, h + pad[2] + pad[3], w + pad[0] + pad[1]), view), 1.0, 0),)
    else:
        terms = reader.terms(x, 1.0, 0)
    return Sum(_shape(node), tuple((term, factor, first + pad[4]) for term, factor, first in terms))


_RULES: dict[Any, Any] = {
    F.conv2d: _convolution,
    torch.add: _sum,
    torch.cat: _concatenation,
    operator.getitem: _slice,
    F.pad: _padding,
}
