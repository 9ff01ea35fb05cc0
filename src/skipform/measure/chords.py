"""Where the zeros of a layer's units run through a mesh: points on the edges, and one chord per cell and crossing unit.

A unit crosses an edge if its strict signs at the two ends are opposite; it crosses a cell if it takes both strict signs
at the cell's vertices, and then it is zero along a chord between two places of the boundary. The places of a cell are
its vertices and the new points on its edges, counted counterclockwise from 0 at the tail of its first half-edge. A
chord ends at a point on an edge, or at a vertex where the unit is zero.

V vertices, E edges, C cells, K chords, words = ceil(units / 64).
"""

from typing import NamedTuple

import numpy as np

from skipform.measure.cuts import KAPPA_LIMIT, SLOPE
from skipform.measure.kernel import kernel
from skipform.measure.mesh import NOT_CONVEX, OK, EdgePoints

P, Q, UNIT, SIGN = (
    0,
    1,
    2,
    3,
)  # columns of a chord: the places P < Q where it ends, its unit, the unit's sign from P to Q

_ONE = np.uint64(1)
_NONE = np.uint64(0)


class Crossings(NamedTuple):
    """Where the units cross the edges. Crossings that cannot be told apart are one new point."""

    start: np.ndarray  # (E + 1,) the crossings of edge e are start[e], ..., start[e + 1] - 1, in order along it
    unit: np.ndarray  # the unit of each crossing
    point: np.ndarray  # the new point of each crossing
    first: np.ndarray  # (E + 1,) the new points on edge e are first[e], ..., first[e + 1] - 1


class Chords(NamedTuple):
    """The chords of all cells, and bounds on what a single cell holds, by which faces.py allocates."""

    crossing: np.ndarray  # (C, words) bit j % 64 of word j // 64: unit j crosses the cell
    start: np.ndarray  # (C + 1,) the chords of cell c are chord[start[c] : start[c + 1]]
    chord: np.ndarray  # (K, 4) columns P, Q, UNIT, SIGN; within a cell in the order of (P, Q)
    pairs: np.ndarray  # (C,) how many pairs of chords with interleaved ends each cell has
    most_places: int
    most_chords: int
    most_pairs: int


@kernel
def sort(key, order, begin, end):
    """Sort key[begin:end] in ascending order, and order with it (Shell's method with Ciura's gaps)."""
    for gap in (8929, 3905, 1750, 701, 301, 132, 57, 23, 10, 4, 1):
        for i in range(begin + gap, end):
            k, o, place = key[i], order[i], i
            while place >= begin + gap and key[place - gap] > k:
                key[place], order[place] = key[place - gap], order[place - gap]
                place -= gap
            key[place], order[place] = k, o


@kernel
def _bits(word):
    """The number of bits set."""
    word = word - ((word >> np.uint64(1)) & np.uint64(0x5555555555555555))
    word = (word & np.uint64(0x3333333333333333)) + ((word >> np.uint64(2)) & np.uint64(0x3333333333333333))
    word = (word + (word >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
    return np.int64((word * np.uint64(0x0101010101010101)) >> np.uint64(56))


@kernel
def _lowest(word):
    """The index of the lowest bit set."""
    return _bits((word & (~word + _ONE)) - _ONE)


@kernel
def _sign(positive, negative, v, j):
    """The sign of unit j at vertex v: 1, 0 or -1."""
    bit = np.uint64(j & 63)
    p, n = (positive[v, j >> 6] >> bit) & _ONE, (negative[v, j >> 6] >> bit) & _ONE
    return np.int64(p) - np.int64(n)


@kernel
def cut_edges(ends, vertices, layer, extent):
    """Put a point on each edge wherever units cross it.

    Returns the crossings, the new points with their kappa, and the ends of the subdivided edges: edge e becomes the
    edges e + first[e], ..., e + first[e + 1]. extent: the length of the box, the unit of length in kappa.
    """
    xy, kappa = vertices.xy, vertices.kappa
    h, positive, negative, tau, reach = layer.h, layer.positive, layer.negative, layer.tau, layer.reach
    edges, words = len(ends), positive.shape[1]
    start = np.zeros(edges + 1, np.int64)
    for e in range(edges):
        u, v = ends[e, 0], ends[e, 1]
        count = 0
        for w in range(words):
            x = (positive[u, w] & negative[v, w]) | (negative[u, w] & positive[v, w])
            if x != _NONE:
                count += _bits(x)
        start[e + 1] = start[e] + count
    total = start[edges]
    unit = np.empty(total, np.int64)
    share = np.empty(total, np.float64)
    point = np.empty(total, np.int64)
    first = np.zeros(edges + 1, np.int64)
    at_a, at_b = np.empty(total, np.int64), np.empty(total, np.int64)
    at_share, at_kappa = np.empty(total, np.float64), np.empty(total, np.float64)
    points = 0
    for e in range(edges):
        low, high = start[e], start[e + 1]
        if low < high:
            u, v = ends[e, 0], ends[e, 1]
            k = max(kappa[u], kappa[v])
            i = low
            for w in range(words):
                x = (positive[u, w] & negative[v, w]) | (negative[u, w] & positive[v, w])
                while x != _NONE:
                    j = 64 * w + _lowest(x)
                    x &= x - _ONE
                    rise = h[v, j] - h[u, j]
                    s = -h[u, j] / rise
                    share[i], unit[i] = s, j
                    i += 1
            sort(share, unit, low, high)
            length = np.hypot(xy[v, 0] - xy[u, 0], xy[v, 1] - xy[u, 1]) / extent
            i = low
            while i < high:
                # Crossings whose intervals of uncertainty overlap are one point, placed by the least uncertain of them.
                j, s = unit[i], share[i]
                last = least = k * tau[j] / abs(h[v, j] - h[u, j])
                point[i] = points
                i += 1
                while i < high:
                    blur = k * tau[unit[i]] / abs(h[v, unit[i]] - h[u, unit[i]])
                    if share[i] - share[i - 1] > last + blur:
                        break
                    if blur < least:
                        least, j, s = blur, unit[i], share[i]
                    last = blur
                    point[i] = points
                    i += 1
                at_a[points], at_b[points], at_share[points] = u, v, s
                spread = SLOPE * reach[j] * length / abs(h[v, j] - h[u, j])
                at_kappa[points] = min(KAPPA_LIMIT, kappa[u] + s * (kappa[v] - kappa[u]) + spread)
                points += 1
        first[e + 1] = points
    finer = np.empty((edges + points, 2), np.int64)
    for e in range(edges):
        tail = ends[e, 0]
        for i in range(first[e], first[e + 1]):
            finer[e + i, 0], finer[e + i, 1] = tail, len(xy) + i
            tail = len(xy) + i
        finer[e + first[e + 1], 0], finer[e + first[e + 1], 1] = tail, ends[e, 1]
    new = EdgePoints(at_a[:points], at_b[:points], at_share[:points])
    return Crossings(start, unit, point, first), new, at_kappa[:points], finer


@kernel
def _find_crossing_units(cells, layer, first):
    """The units that take both strict signs in each cell: Chords.crossing, Chords.start and Chords.most_places."""
    ends, starts, refs = cells.ends, cells.starts, cells.refs
    positive, negative = layer.positive, layer.negative
    words = positive.shape[1]
    crossing, start = np.empty((len(starts) - 1, words), np.uint64), np.zeros(len(starts), np.int64)
    any_positive, any_negative = np.empty(words, np.uint64), np.empty(words, np.uint64)
    most_places = 0
    for c in range(len(starts) - 1):
        for w in range(words):
            any_positive[w], any_negative[w] = _NONE, _NONE
        places, units = 0, 0
        for i in range(starts[c], starts[c + 1]):
            e = refs[i] >> 1
            v = ends[e, refs[i] & 1]
            for w in range(words):
                any_positive[w] |= positive[v, w]
                any_negative[w] |= negative[v, w]
            places += 1 + first[e + 1] - first[e]
        for w in range(words):
            crossing[c, w] = any_positive[w] & any_negative[w]
            if crossing[c, w] != _NONE:
                units += _bits(crossing[c, w])
        start[c + 1] = start[c] + units
        most_places = max(most_places, places)
    return crossing, start, most_places


@kernel
def _sign_after_zero(cells, layer, c, i, j):
    """For unit j, which is zero at the tail of half-edge i of cell c: its sign after that, if it changes sign there.

    Of consecutive vertices with zeros only the first counts, and only if the signs before and after them differ; the
    result is 0 otherwise.
    """
    ends, refs, low, high = cells.ends, cells.refs, cells.starts[c], cells.starts[c + 1]
    r = refs[i - 1 if i > low else high - 1]
    before = _sign(layer.positive, layer.negative, ends[r >> 1, r & 1], j)
    if before == 0:
        return 0
    for ahead in range(1, high - low):
        r = refs[low + (i - low + ahead) % (high - low)]
        after = _sign(layer.positive, layer.negative, ends[r >> 1, r & 1], j)
        if after != 0:
            return after if after != before else 0
    return 0


@kernel
def _end_chord(j, place, sign, open_chord, raw, limit, opened):
    """At a place unit j changes to `sign`: open its chord, or close the open one.

    open_chord[j] is the row of raw with the open chord of unit j, or -1; raw has room for `limit` chords, of which
    `opened` are in use. Returns how many chords have now been opened.
    """
    if open_chord[j] < 0:
        if opened < limit:
            raw[opened, P], raw[opened, Q], raw[opened, UNIT], raw[opened, SIGN] = place, -1, j, sign
            open_chord[j] = opened
        return opened + 1
    raw[open_chord[j], Q] = place
    open_chord[j] = -1
    return opened


@kernel
def find_chords(cells, layer, crossings):
    """The chord of every unit in every cell that it crosses.

    Returns OK or NOT_CONVEX, the cell to which the latter applies, and the chords.
    """
    ends, starts, refs = cells.ends, cells.starts, cells.refs
    positive, negative = layer.positive, layer.negative
    cross_start, cross_unit, cross_point, first = crossings.start, crossings.unit, crossings.point, crossings.first
    crossing, start, most_places = _find_crossing_units(cells, layer, first)
    most_chords = 0
    for c in range(len(starts) - 1):
        most_chords = max(most_chords, start[c + 1] - start[c])
    chord, pairs = np.empty((start[-1], 4), np.int64), np.zeros(len(starts) - 1, np.int64)
    most_pairs = 0
    open_chord = np.full(len(layer.tau), -1, np.int64)
    key, order = np.empty(most_chords, np.int64), np.empty(most_chords, np.int64)
    raw = np.empty((most_chords, 4), np.int64)
    for c in range(len(starts) - 1):
        begin = start[c]
        n = start[c + 1] - begin
        if n == 0:
            continue
        place, opened = np.int64(0), np.int64(0)
        for i in range(starts[c], starts[c + 1]):
            e, d = refs[i] >> 1, refs[i] & 1
            v, head = ends[e, d], ends[e, 1 - d]
            k = first[e + 1] - first[e]
            for w in range(crossing.shape[1]):
                zero = crossing[c, w] & ~(positive[v, w] | negative[v, w])
                while zero != _NONE:
                    j = 64 * w + _lowest(zero)
                    zero &= zero - _ONE
                    sign = _sign_after_zero(cells, layer, c, i, j)
                    if sign != 0:
                        opened = _end_chord(j, place, sign, open_chord, raw, n, opened)
            for x in range(cross_start[e], cross_start[e + 1]):
                g = cross_point[x] - first[e]
                j = cross_unit[x]
                sign = _sign(positive, negative, head, j)
                opened = _end_chord(j, place + (k - g if d else 1 + g), sign, open_chord, raw, n, opened)
            place += 1 + k
        if opened != n:
            return NOT_CONVEX, c, Chords(crossing, start, chord, pairs, most_places, most_chords, most_pairs)
        for i in range(n):
            if raw[i, Q] < 0:
                return NOT_CONVEX, c, Chords(crossing, start, chord, pairs, most_places, most_chords, most_pairs)
            key[i], order[i] = raw[i, P] * place + raw[i, Q], i
        sort(key, order, 0, n)
        for i in range(n):
            for column in range(4):
                chord[begin + i, column] = raw[order[i], column]
        for i in range(begin, begin + n):
            for j in range(i + 1, begin + n):
                if chord[j, P] >= chord[i, Q]:
                    break
                if chord[j, P] > chord[i, P] and chord[j, Q] > chord[i, Q]:
                    pairs[c] += 1
        most_pairs = max(most_pairs, pairs[c])
    return OK, 0, Chords(crossing, start, chord, pairs, most_places, most_chords, most_pairs)
