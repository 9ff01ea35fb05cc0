"""Compiled loops over curves that are known in windows (curves.py): slopes, values in other windows, changes of sign.

A curve is a tensor (c, h, w) that depends on t; each of its entries is affine in t between its own points. At point j
the entries in the window box[j] = (first row, end row, first column, end column) have their own values; these lie at
values[start[j]], with the channels innermost: entry u = (y w + x) c + channel. At the first and the last point all
entries do.

n points, U = h w c entries of the curve.
"""

from typing import NamedTuple

import numpy as np

from skipform.measure.kernel import kernel


class Pieces(NamedTuple):
    """Points along the segment and what a curve is there."""

    t: np.ndarray  # (n,)
    box: np.ndarray  # (n, 4) int64
    start: np.ndarray  # (n,) int64
    values: np.ndarray
    height: int  # h
    width: int  # w
    channels: int  # c


class Sweep(NamedTuple):
    """Every entry at its last own point so far: value, slope to its next one, and t; and the slopes of all values."""

    value: np.ndarray  # (U,)
    slope: np.ndarray  # (U,)
    t: np.ndarray  # (U,)
    slopes: np.ndarray  # (len(values),)


class View(NamedTuple):
    """out[y, x, channel] = curve[row + y * row_step, column + x * column_step, first + channel], zero outside."""

    row_step: int
    row: int
    column_step: int
    column: int
    first: int
    channels: int


class Target(NamedTuple):
    """Where in a row numbers are written, times what factor, and whether they are added to what is there."""

    column: int
    factor: float
    add: bool


class Kernel(NamedTuple):
    """The taps of a convolution: how many, and how far apart."""

    rows: int
    columns: int
    row_gap: int
    column_gap: int


@kernel
def find_slopes(pieces, slopes, value, t):
    """Write the slope of every own value to the next own value of its entry; 0 where there is none, or no room. value
    and t (U,) are scratch."""
    t[:] = pieces.t[-1]
    for j in range(len(pieces.t) - 1, -1, -1):
        y0, y1, x0, x1 = pieces.box[j]
        here, e, run = pieces.t[j], pieces.start[j], (x1 - x0) * pieces.channels
        for y in range(y0, y1):
            u = (y * pieces.width + x0) * pieces.channels
            for i in range(run):
                gap = t[u + i] - here
                own = pieces.values[e + i]
                slopes[e + i] = (value[u + i] - own) / gap if gap > 0.0 else 0.0
                value[u + i], t[u + i] = own, here
            e += run


@kernel
def gather(pieces, sweep, low, high, boxes, view, taps, scratch, out, target):
    """For points low, ..., high - 1: write the view of the curve, in the windows `boxes` of the view, to rows of `out`.

    One row for each pixel of a window; in it the view's channels at the pixel, or those under every tap of a kernel one
    after another (without factor or addition). The sweep is at point low and is moved on. scratch: room for the part of
    the curve under a window.
    """
    row, c, (column, factor, add) = 0, view.channels, target
    height, width = pieces.height, pieces.width
    single = taps.rows == 1 and taps.columns == 1
    for j in range(low, high):
        y0, y1, x0, x1 = pieces.box[j]
        here, e, run = pieces.t[j], pieces.start[j], (x1 - x0) * pieces.channels
        for y in range(y0, y1):
            u = (y * width + x0) * pieces.channels
            for i in range(run):
                sweep.value[u + i] = pieces.values[e + i]
                sweep.slope[u + i] = sweep.slopes[e + i]
                sweep.t[u + i] = here
            e += run
        y0, y1, x0, x1 = boxes[j]
        if y0 == y1:
            continue
        if single:
            for y in range(y0, y1):
                source_y = view.row + y * view.row_step
                for x in range(x0, x1):
                    source_x = view.column + x * view.column_step
                    inside = 0 <= source_y < height and 0 <= source_x < width
                    u = (source_y * width + source_x) * pieces.channels + view.first
                    if inside and add:
                        for i in range(c):
                            now = sweep.value[u + i] + (here - sweep.t[u + i]) * sweep.slope[u + i]
                            out[row, column + i] += factor * now
                    elif inside:
                        for i in range(c):
                            now = sweep.value[u + i] + (here - sweep.t[u + i]) * sweep.slope[u + i]
                            out[row, column + i] = factor * now
                    elif not add:
                        out[row, column : column + c] = 0.0
                    row += 1
            continue
        # The part under the window, evaluated once; the view of a convolution has all channels.
        top, left = view.row + y0 * view.row_step, view.column + x0 * view.column_step
        rows = (y1 - y0 - 1) * view.row_step + (taps.rows - 1) * taps.row_gap + 1
        columns = (x1 - x0 - 1) * view.column_step + (taps.columns - 1) * taps.column_gap + 1
        before, after = max(0, -left), min(columns, width - left)
        for y in range(rows):
            line = y * columns * c
            if top + y < 0 or top + y >= height or after <= before:
                scratch[line : line + columns * c] = 0.0
                continue
            scratch[line : line + before * c] = 0.0
            scratch[line + after * c : line + columns * c] = 0.0
            u = ((top + y) * width + left) * c
            for i in range(before * c, after * c):
                now = sweep.value[u + i] + (here - sweep.t[u + i]) * sweep.slope[u + i]
                scratch[line + i] = now
        runs, run = (1, taps.columns * c) if taps.column_gap == 1 else (taps.columns, c)
        for y in range(y1 - y0):
            for x in range(x1 - x0):
                to = column
                for tap_y in range(taps.rows):
                    line = (y * view.row_step + tap_y * taps.row_gap) * columns + x * view.column_step
                    for tap_x in range(runs):
                        source = (line + tap_x * taps.column_gap) * c
                        for i in range(run):
                            out[row, to + i] = scratch[source + i]
                        to += run
                row += 1


@kernel
def find_largest(pieces, largest):
    """Raise largest (U,) to the largest absolute value of each entry."""
    for j in range(len(pieces.t)):
        y0, y1, x0, x1 = pieces.box[j]
        e, run = pieces.start[j], (x1 - x0) * pieces.channels
        for y in range(y0, y1):
            u = (y * pieces.width + x0) * pieces.channels
            for i in range(run):
                largest[u + i] = max(largest[u + i], abs(pieces.values[e + i]))
            e += run


@kernel
def find_changes(pieces, kappa, tau, on, last, last_j, entry, before, after):
    """Find the intervals between two neighbouring own points of an entry at which it has opposite signs.

    Returns how many, and writes the first ones, as many as there is room for, to entry, before and after: the entry and
    the two points. on (U,) becomes true where an entry is not negative, beyond its error, at all its points. last (U,)
    is 0 and last_j (U,) is scratch.
    """
    found = 0
    for j in range(len(pieces.t)):
        y0, y1, x0, x1 = pieces.box[j]
        e, run = pieces.start[j], (x1 - x0) * pieces.channels
        for y in range(y0, y1):
            u = (y * pieces.width + x0) * pieces.channels
            changes = 0
            for i in range(run):
                v, p = pieces.values[e + i], last[u + i]
                changes += ((v > 0.0) & (p < 0.0)) | ((v < 0.0) & (p > 0.0))
                on[u + i] |= v >= -kappa[j] * tau[u + i]
            if changes:
                for i in range(run):
                    v, p = pieces.values[e + i], last[u + i]
                    if ((v > 0.0) & (p < 0.0)) | ((v < 0.0) & (p > 0.0)):
                        if found < len(entry):
                            entry[found], before[found], after[found] = u + i, last_j[u + i], j
                        found += 1
            for i in range(run):
                last[u + i], last_j[u + i] = pieces.values[e + i], j
            e += run
    return found
