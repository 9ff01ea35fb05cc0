"""Tensors along a segment, known where they bend, and the local maps that make one of others.

Along a segment a tensor (c, h, w) of the net is piecewise affine. A ReLU bends one entry, and a convolution the entries
around it; to all others a break point is no bend, and their value there is the mean of those at their own points. So
a curve stores, at every break point, the window of pixels that may bend there, and the result of a convolution is
computed in the windows that its kernel makes of those. Early in a net they are small: 3 x 3, 5 x 5, ... of 32 x 32.

n points, c channels, h x w pixels. A box is (first row, end row, first column, end column).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from skipform.measure.windows import Kernel, Pieces, Sweep, Target, View, find_slopes, gather

Shape = tuple[int, int, int]  # (c, h, w)
_BUFFER = 1 << 18  # numbers under the taps of a kernel that are multiplied at once: 2 MiB
_ONE = Kernel(1, 1, 1, 1)


@dataclass(frozen=True, eq=False)
class Curve:
    """A tensor at its own points; the first and the last point own all of it."""

    shape: Shape
    box: np.ndarray  # (n, 4) int64, the window of each point
    start: np.ndarray  # (n,) int64, where its values begin: row by row, the channels innermost
    values: np.ndarray

    def pieces(self, t: np.ndarray) -> Pieces:
        c, h, w = self.shape
        return Pieces(t, self.box, self.start, self.values, h, w, c)

    def index(self, entry: np.ndarray, point: np.ndarray) -> np.ndarray:
        """Where the values of entries (y w + x) c + channel at own points lie."""
        c, _, w = self.shape
        y0, _, x0, x1 = self.box[point].T
        pixel, channel = np.divmod(entry, c)
        y, x = np.divmod(pixel, w)
        index: np.ndarray = self.start[point] + ((y - y0) * (x1 - x0) + x - x0) * c + channel
        return index


def pixels(box: np.ndarray) -> np.ndarray:
    """In each box (n, 4), (n,)."""
    size: np.ndarray = (box[:, 1] - box[:, 0]) * (box[:, 3] - box[:, 2])
    return size


def union(boxes: Sequence[np.ndarray]) -> np.ndarray:
    """The smallest box around the boxes of each point, (n, 4); an empty one is 0, 0, 0, 0."""
    low, high = np.stack(boxes), np.stack(boxes)
    empty = np.stack([pixels(box) for box in boxes]) == 0
    low[empty], high[empty] = np.iinfo(np.int64).max, 0
    box = np.where(np.arange(4) % 2, high.max(0), low.min(0))
    box[empty.all(0)] = 0
    return box


def full(shape: Shape) -> tuple[int, int, int, int]:
    return 0, shape[1], 0, shape[2]


def _clipped(first: np.ndarray, last: np.ndarray, shape: Shape) -> np.ndarray:
    """Boxes from the first and last rows and columns (n, 2), as far as they lie in the shape."""
    low, end = np.maximum(first, 0), np.minimum(last + 1, shape[1:])
    box = np.stack([low[:, 0], end[:, 0], low[:, 1], end[:, 1]], 1)
    box[(low >= end).any(1)] = 0
    return box


@dataclass(frozen=True)
class Leaf:
    """A curve that is there, by its place in the list of curves, seen through a view of the given shape."""

    index: int
    shape: Shape
    view: View

    def box(self, curves: Sequence[Curve]) -> np.ndarray:
        box, view = curves[self.index].box, self.view
        steps, offsets = np.array([view.row_step, view.column_step]), np.array([view.row, view.column])
        inside = _clipped(-((offsets - box[:, [0, 2]]) // steps), (box[:, [1, 3]] - 1 - offsets) // steps, self.shape)
        inside[pixels(box) == 0] = 0
        return inside


def identity(index: int, shape: Shape) -> Leaf:
    return Leaf(index, shape, View(1, 0, 1, 0, 0, shape[0]))


@dataclass(frozen=True, eq=False)
class Convolution:
    """A convolution of a curve that is there."""

    index: int
    shape: Shape
    weight: Tensor  # (taps, c of a group, o)
    bias: Tensor | None
    groups: int
    view: View
    taps: Kernel

    def box(self, curves: Sequence[Curve]) -> np.ndarray:
        box, view, taps = curves[self.index].box, self.view, self.taps
        steps, offsets = np.array([view.row_step, view.column_step]), np.array([view.row, view.column])
        reach = np.array([(taps.rows - 1) * taps.row_gap, (taps.columns - 1) * taps.column_gap])
        first = -((offsets + reach - box[:, [0, 2]]) // steps)
        inside = _clipped(first, (box[:, [1, 3]] - 1 - offsets) // steps, self.shape)
        inside[pixels(box) == 0] = 0
        return inside


@dataclass(frozen=True, eq=False)
class Sum:
    """The sum of factors times terms, each of which fills the channels from a first one on."""

    shape: Shape
    terms: tuple[tuple["Leaf | Convolution", float, int], ...]

    def box(self, curves: Sequence[Curve]) -> np.ndarray:
        return union([term.box(curves) for term, _, _ in self.terms])


Expression = Leaf | Convolution | Sum


def evaluate(expression: Expression, curves: Sequence[Curve], t: np.ndarray) -> Curve:
    """The curve that the expression makes of curves."""
    box = expression.box(curves)
    box[[0, -1]] = full(expression.shape)  # pixels that only see the padding are constant and bend nowhere
    return evaluate_in(expression, curves, t, box)


def evaluate_in(expression: Expression, curves: Sequence[Curve], t: np.ndarray, box: np.ndarray) -> Curve:
    """The values of the expression in the given windows (n, 4)."""
    c = expression.shape[0]
    rows = np.concatenate([[0], np.cumsum(pixels(box))])
    out = torch.empty(int(rows[-1]), c, dtype=torch.float64)
    terms = expression.terms if isinstance(expression, Sum) else ((expression, 1.0, 0),)
    # What is written first fills the row; a term of fewer channels than that begins with zeros.
    covered = terms[0][0].shape[0] == c
    if not covered:
        out.zero_()
    writers = [_Writer(term, curves[term.index], t, box, factor, column) for term, factor, column in terms]
    at_once = max(1, _BUFFER // max(writer.width for writer in writers))
    low = 0
    while low < len(t):
        high = max(low + 1, int(np.searchsorted(rows, rows[low] + at_once, "right")) - 1)
        for i, writer in enumerate(writers):
            writer.write(low, high, out[rows[low] : rows[high]], add=i > 0 or not covered)
        low = high
    return Curve(expression.shape, box, rows[:-1] * c, out.view(-1).numpy())


class _Writer:
    """Writes a term, a few points at a time, from the left to the right."""

    def __init__(
        self, term: Leaf | Convolution, curve: Curve, t: np.ndarray, box: np.ndarray, factor: float, column: int
    ) -> None:
        self.term, self.box, self.factor, self.column = term, box, factor, column
        self.pieces, c = curve.pieces(t), curve.shape[0]
        value, slope, at = np.zeros((3, math.prod(curve.shape)))
        self.sweep = Sweep(value, slope, at, np.empty(len(curve.values)))
        find_slopes(self.pieces, self.sweep.slopes, self.sweep.value, self.sweep.t)
        self.taps = term.taps if isinstance(term, Convolution) else _ONE
        self.width = c * self.taps.rows * self.taps.columns  # numbers in a row
        self.scratch = np.empty(self._largest_part() * c)
        self.buffer = torch.empty(0, dtype=torch.float64)

    def _largest_part(self) -> int:
        """Pixels under the taps of a kernel, over a window as large as any."""
        view, taps = self.term.view, self.taps
        size = np.array([self.box[:, 1] - self.box[:, 0], self.box[:, 3] - self.box[:, 2]]).max(1)
        rows = max(0, int(size[0]) - 1) * view.row_step + (taps.rows - 1) * taps.row_gap + 1
        columns = max(0, int(size[1]) - 1) * view.column_step + (taps.columns - 1) * taps.column_gap + 1
        return rows * columns

    def write(self, low: int, high: int, out: Tensor, *, add: bool) -> None:
        """Points low, ..., high - 1, to the rows of `out`."""
        term = self.term
        if isinstance(term, Leaf):
            self._gather(low, high, out, Target(self.column, self.factor, add))
            return
        under = self._under(len(out))
        self._gather(low, high, under, Target(0, 1.0, False))
        own = out[:, self.column : self.column + term.shape[0]]
        if term.groups == 1:
            weight = term.weight.flatten(0, 1)
            if add:
                own.addmm_(under, weight, alpha=self.factor)
            elif self.factor == 1.0:
                torch.mm(under, weight, out=own)
            else:
                own.copy_(under @ weight).mul_(self.factor)
        else:
            product = _grouped(under, term.weight, term.groups)
            own.add_(product, alpha=self.factor) if add else torch.mul(product, self.factor, out=own)
        if term.bias is not None:
            own.add_(term.bias, alpha=self.factor)

    def _under(self, rows: int) -> Tensor:
        """Room for the numbers under the taps for these rows, the same at every call."""
        if self.buffer.numel() < rows * self.width:
            self.buffer = torch.empty(rows * self.width, dtype=torch.float64)
        return self.buffer[: rows * self.width].view(rows, self.width)

    def _gather(self, low: int, high: int, out: Tensor, target: Target) -> None:
        rows, view = out.numpy(), self.term.view
        gather(self.pieces, self.sweep, low, high, self.box, view, self.taps, self.scratch, rows, target)


def _grouped(under: Tensor, weight: Tensor, groups: int) -> Tensor:
    """Rows under the taps (rows, taps, channels) times the weight (taps, channels of a group, o): (rows, o)."""
    taps, inner, outer = weight.shape
    if taps == inner == 1 and outer == groups:
        return under * weight[0, 0]
    parts = under.view(-1, taps, groups, inner).permute(2, 0, 1, 3).reshape(groups, -1, taps * inner)
    weights = weight.view(taps, inner, groups, outer // groups).permute(2, 0, 1, 3).reshape(groups, taps * inner, -1)
    return torch.bmm(parts, weights).transpose(0, 1).reshape(len(under), outer)
