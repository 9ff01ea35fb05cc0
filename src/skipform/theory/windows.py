"""The windows of a pooling layer: which input coordinates each output coordinate reads.

c channels, shapes without the batch: (c, w), (c, h, w) or (c, d, h, w), channels first. `name` is the layer's, for the
error messages.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from math import ceil, prod

import numpy as np

from skipform.errors import SkipformError

Size = int | Sequence[int]


@dataclass(frozen=True)
class Grid:
    """The windows of a pooling layer as products of intervals, one per spatial dimension."""

    name: str
    input_shape: tuple[int, ...]
    cells: list[list[list[int]]]  # cells[i][j]: the cells inside the input that output position j reads in dimension i
    counts: list[list[int]]  # counts[i][j]: the number of cells of that position, the padding's included

    @property
    def output_shape(self) -> tuple[int, ...]:
        """(c, *spatial)."""
        return (self.input_shape[0], *(len(positions) for positions in self.cells))

    @staticmethod
    def of(
        name: str,
        input_shape: Sequence[int],
        window: Size,
        stride: Size | None,
        padding: Size | str,
        dilation: Size,
        ceil_mode: bool,
        *,
        repeat_edge: bool = False,
    ) -> "Grid":
        """The windows of `pooling.max_pool` and `pooling.average_pool`, whose arguments these are.

        repeat_edge: if the padding is uneven in some dimension, a cell outside stands for the nearest one inside, in
        all dimensions; otherwise cells outside are left out. Raises SkipformError for sizes that do not fit.
        """
        shape = _input_shape(name, input_shape)
        rank = len(shape) - 1
        windows = _sizes(f"{name}: window", window, rank, least=1)
        strides = windows if stride is None else _sizes(f"{name}: stride", stride, rank, least=1)
        dilations = _sizes(f"{name}: dilation", dilation, rank, least=1)
        if isinstance(padding, str) and padding not in ("valid", "same"):
            raise SkipformError(f"{name}: padding {padding!r}; 'valid', 'same' or integers are accepted")
        paddings = (0,) * rank if isinstance(padding, str) else _sizes(f"{name}: padding", padding, rank, least=0)
        reads: list[list[range]] = []  # the cells of each position, those outside the input included
        counts, uneven = [], False
        for size, k, s, p, d in zip(shape[1:], windows, strides, paddings, dilations, strict=True):
            reach = d * (k - 1) + 1
            before = after = p
            if padding == "same":
                total = max((ceil(size / s) - 1) * s + reach - size, 0)
                before, after = total // 2, total - total // 2
                uneven = uneven or before != after
            elif 2 * p > reach:
                raise SkipformError(f"{name}: padding {p} for a window of {reach}; at most half of it is accepted")
            room = size + before + after - reach
            if room < 0:
                raise SkipformError(f"{name}: window of {reach} on {size} cells with padding; at most the input's size")
            positions = (room + (s - 1 if ceil_mode else 0)) // s + 1
            if ceil_mode and (positions - 1) * s >= size + before:
                positions -= 1  # a window must start inside the input or the padding before it
            starts = [i * s - before for i in range(positions)]
            reads.append([range(start, start + reach, d) for start in starts])
            counts.append([min(start + k, size + after) - start for start in starts])
        if repeat_edge and uneven:
            cells = [
                [[min(max(cell, 0), size - 1) for cell in window] for window in positions]
                for positions, size in zip(reads, shape[1:], strict=True)
            ]
        else:
            cells = [
                [[cell for cell in window if 0 <= cell < size] for window in positions]
                for positions, size in zip(reads, shape[1:], strict=True)
            ]
        return Grid(name, shape, cells, counts)

    @staticmethod
    def adaptive(name: str, input_shape: Sequence[int], output_size: Size) -> "Grid":
        """The windows of adaptive pooling: position i of m reads cells c of s with i s / m - 1 < c < (i + 1) s / m."""
        shape = _input_shape(name, input_shape)
        outputs = _sizes(f"{name}: output_size", output_size, len(shape) - 1, least=1)
        cells = [
            [[*range(i * size // m, -(-(i + 1) * size // m))] for i in range(m)]
            for size, m in zip(shape[1:], outputs, strict=True)
        ]
        return Grid(name, shape, cells, [[len(window) for window in positions] for positions in cells])

    def windows(self) -> list[np.ndarray]:
        """For each output coordinate, in order, the input coordinates it reads."""
        spatial = self.input_shape[1:]
        one_channel = []
        for where in product(*self.cells):
            flat = np.zeros(1, dtype=np.int64)
            for cells, size in zip(where, spatial, strict=True):
                flat = (flat[:, None] * size + np.asarray(cells, dtype=np.int64)).reshape(-1)
            if not len(flat):
                raise SkipformError(f"{self.name}: a window lies wholly outside the input {self.input_shape}")
            one_channel.append(flat)
        return [flat + c * prod(spatial) for c in range(self.input_shape[0]) for flat in one_channel]

    def padded_counts(self) -> list[int]:
        """For each output coordinate, in order, the number of cells of its window, the padding's included."""
        return [prod(counts) for counts in product(*self.counts)] * self.input_shape[0]


def _input_shape(name: str, input_shape: Sequence[int]) -> tuple[int, ...]:
    shape = tuple(input_shape)
    if not 2 <= len(shape) <= 4 or min(shape) < 1:
        raise SkipformError(
            f"{name}: input_shape {shape}; (c, w), (c, h, w) or (c, d, h, w), all positive, is accepted"
        )
    return shape


def _sizes(name: str, value: Size, rank: int, *, least: int) -> tuple[int, ...]:
    sizes = (value,) * rank if isinstance(value, int) else tuple(value)
    if len(sizes) != rank or min(sizes) < least:
        raise SkipformError(f"{name} {value}; an integer or {rank} of them, at least {least}, is accepted")
    return sizes
