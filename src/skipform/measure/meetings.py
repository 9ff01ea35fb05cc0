"""Where the chords of a cell meet, and from that the number of faces; faces.py has a drawing and builds the faces.

The meetings along a chord are ordered by the values of the units that they cut it with. Meetings that are closer to
each other on a chord than their own uncertainty are one node; m chords through one node count as m - 1 meetings.

places, chords (n), meetings (m) and nodes are those of one cell. The records are allocated for the largest cell, and
every cell overwrites them. Half-edges and places are those of mesh.py and chords.py.
"""

from typing import NamedTuple

import numpy as np

from skipform.measure.chords import UNIT, Chords, P, Q, sort
from skipform.measure.cuts import KAPPA_LIMIT, SLOPE
from skipform.measure.kernel import kernel


def _integers(*shape: int) -> np.ndarray:
    return np.empty(shape, np.int64)


class Cell(NamedTuple):
    """The boundary of one cell and its distinct chords."""

    vertex: np.ndarray  # (places,) the vertex at each place
    half: np.ndarray  # (places,) the half-edge of the finer mesh from each place to the next
    chord: np.ndarray  # (n, 4) one chord for all units that share both ends
    unit_start: np.ndarray  # (n + 1,) the units on chord i are those of the layer's chords unit_start[i], ...

    @staticmethod
    def empty(chords: Chords) -> "Cell":
        places, n = chords.most_places, chords.most_chords
        return Cell(_integers(places), _integers(places), _integers(n, 4), _integers(n + 1))


class Meetings(NamedTuple):
    """Where the chords of one cell meet. Meeting x has the entry 2 x on its first chord, 2 x + 1 on its second."""

    pair: np.ndarray  # (m, 2) the two chords of each meeting
    start: np.ndarray  # (n + 1,) chord i meets others at entry[start[i] : start[i + 1]], in order from P to Q
    entry: np.ndarray  # (2 m,)
    share: np.ndarray  # (2 m,) where on its chord entry[k] lies, from 0 at P to 1 at Q
    blur: np.ndarray  # (2 m,) how uncertain the share of an entry is; indexed by the entry, not by its position
    node: np.ndarray  # (m,) the node of each meeting: one for all meetings in one point

    @staticmethod
    def empty(chords: Chords) -> "Meetings":
        n, m = chords.most_chords, chords.most_pairs
        return Meetings(
            _integers(m, 2), _integers(n + 1), _integers(2 * m), np.empty(2 * m), np.empty(2 * m), _integers(m)
        )


class Nodes(NamedTuple):
    """The chords through each node of one cell."""

    start: np.ndarray  # (nodes + 1,) those through node x are chord[start[x] : start[x + 1]]
    chord: np.ndarray  # (entries,)
    rank: np.ndarray  # (entries,) how many nodes that chord has between P and this one

    @staticmethod
    def empty(chords: Chords) -> "Nodes":
        m = chords.most_pairs
        return Nodes(_integers(m + 1), _integers(2 * m), _integers(2 * m))


@kernel
def _root(parent, i):
    """The representative of the class of i (union-find with path halving)."""
    while parent[i] != i:
        parent[i] = parent[parent[i]]
        i = parent[i]
    return i


@kernel
def list_places(cells, c, first, vertices, vertex, half):
    """The places of cell c in order; returns their number. vertices: how many there were before edges were cut."""
    ends, refs = cells.ends, cells.refs
    place = 0
    for i in range(cells.starts[c], cells.starts[c + 1]):
        e, d = refs[i] >> 1, refs[i] & 1
        k = first[e + 1] - first[e]
        vertex[place] = ends[e, d]
        half[place] = 2 * (e + first[e] + (k if d else 0)) + d
        place += 1
        for step in range(k):
            g = first[e] + (k - 1 - step if d else step)
            vertex[place] = vertices + g
            half[place] = 2 * (e + g + (0 if d else 1)) + d
            place += 1
    return place


@kernel
def merge_chords(layer_chord, begin, end, chord, unit_start):
    """One chord for all of the chords begin, ..., end - 1 of the layer that share both ends; returns their number."""
    chords = 0
    for i in range(begin, end):
        if i == begin or layer_chord[i, P] != layer_chord[i - 1, P] or layer_chord[i, Q] != layer_chord[i - 1, Q]:
            for column in range(4):
                chord[chords, column] = layer_chord[i, column]
            unit_start[chords] = i
            chords += 1
    unit_start[chords] = end
    return chords


@kernel
def find_meetings(chord, chords, pair, count):
    """List the pairs of chords whose ends interleave, and count those of each chord.

    Returns how many pairs there are, and the largest count.
    """
    meetings, most = 0, 0
    for i in range(chords):
        count[i] = 0
    for i in range(chords):
        for j in range(i + 1, chords):
            if chord[j, P] >= chord[i, Q]:
                break
            if chord[j, P] > chord[i, P] and chord[j, Q] > chord[i, Q]:
                pair[meetings, 0], pair[meetings, 1] = i, j
                meetings += 1
                count[i] += 1
                count[j] += 1
    for i in range(chords):
        most = max(most, count[i])
    return meetings, most


@kernel
def _value(h, a, b, share, v, j):
    """Unit j at vertex v, which is old or the edge point v - V of a, b, share."""
    if v < len(h):
        return h[v, j]
    i = v - len(h)
    low = h[a[i], j]
    return low + share[i] * (h[b[i], j] - low)


@kernel
def order_meetings(cell, chords, meetings, count, layer, edge_points, kappa):
    """Sort the meetings along each chord, `count` of them in all.

    On entry meetings.start[i] is the number of meetings of chord i. Returns whether two of them coincide on a chord.
    """
    vertex, chord = cell.vertex, cell.chord
    pair, start, entry, share, blur = meetings.pair, meetings.start, meetings.entry, meetings.share, meetings.blur
    h, tau = layer.h, layer.tau
    a, b, part = edge_points.a, edge_points.b, edge_points.share
    total = 0
    for i in range(chords):
        total += start[i]
        start[i] = total - start[i]  # where the next entry of chord i goes
    for x in range(count):
        for turn in range(2):
            i, j = pair[x, turn], chord[pair[x, 1 - turn], UNIT]
            p, q = vertex[chord[i, P]], vertex[chord[i, Q]]
            g0 = _value(h, a, b, part, p, j)
            g1 = _value(h, a, b, part, q, j)
            s, uncertain = 0.5, 1.0
            if g0 != g1:
                s = min(max(g0 / (g0 - g1), 0.0), 1.0)
                uncertain = max(kappa[p], kappa[q]) * tau[j] / abs(g0 - g1)
            k = start[i]
            start[i] += 1
            share[k], blur[2 * x + turn], entry[k] = s, uncertain, 2 * x + turn
    for i in range(chords, 0, -1):
        start[i] = start[i - 1]
    start[0] = 0
    tied = False
    for i in range(chords):
        sort(share, entry, start[i], start[i + 1])
        for k in range(start[i] + 1, start[i + 1]):
            tied |= share[k] - share[k - 1] <= blur[entry[k]] + blur[entry[k - 1]]
    return tied


@kernel
def unite_meetings(chords, meetings, count):
    """Make one node of the meetings that coincide, and one entry of it on each chord; returns the number of nodes."""
    pair, start, entry, share = meetings.pair, meetings.start, meetings.entry, meetings.share
    blur, node = meetings.blur, meetings.node
    parent, size, slot = np.empty(count, np.int64), np.empty(count, np.int64), np.empty(count, np.int64)
    for x in range(count):
        parent[x], size[x] = x, 0
    for i in range(chords):
        for k in range(start[i] + 1, start[i + 1]):
            if share[k] - share[k - 1] <= blur[entry[k]] + blur[entry[k - 1]]:
                parent[_root(parent, entry[k] >> 1)] = _root(parent, entry[k - 1] >> 1)
    # All chords through one point meet there and nowhere else: close the classes under that.
    crowded = 0
    for x in range(count):
        size[_root(parent, x)] += 1
    for x in range(count):
        if size[x] > 1:
            slot[x] = crowded
            crowded += 1
    centre, through = np.empty(crowded, np.int64), np.empty((crowded, chords), np.bool_)
    for k in range(crowded):
        for i in range(chords):
            through[k, i] = False
    for x in range(count):
        r = _root(parent, x)
        if size[r] > 1:
            centre[slot[r]] = r
            through[slot[r], pair[x, 0]], through[slot[r], pair[x, 1]] = True, True
    changed = True
    while changed:
        changed = False
        for k in range(crowded):
            if parent[centre[k]] != centre[k]:
                continue
            for x in range(count):
                if through[k, pair[x, 0]] and through[k, pair[x, 1]]:
                    r = _root(parent, x)
                    if r != centre[k]:
                        parent[r] = centre[k]
                        changed = True
                        if size[r] > 1:
                            for i in range(chords):
                                through[k, i] |= through[slot[r], i]
    nodes = 0
    for x in range(count):
        if _root(parent, x) == x:
            node[x] = nodes
            nodes += 1
    for x in range(count):
        node[x] = node[_root(parent, x)]
    total = 0
    for i in range(chords):
        begin, end = start[i], start[i + 1]
        start[i] = total
        for k in range(begin, end):
            last = total - 1
            if total > start[i] and node[entry[last] >> 1] == node[entry[k] >> 1]:
                if blur[entry[k]] < blur[entry[last]]:
                    share[last], entry[last] = share[k], entry[k]
                continue
            share[total], entry[total] = share[k], entry[k]
            total += 1
    start[chords] = total
    return nodes


@kernel
def list_nodes(chords, meetings, count, nodes):
    """The chords through each of `count` nodes, with the node's rank on them."""
    start = nodes.start
    for x in range(count + 1):
        start[x] = 0
    for k in range(meetings.start[chords]):
        start[meetings.node[meetings.entry[k] >> 1] + 1] += 1
    for x in range(count):
        start[x + 1] += start[x]
    for i in range(chords):
        for k in range(meetings.start[i], meetings.start[i + 1]):
            x = meetings.node[meetings.entry[k] >> 1]
            nodes.chord[start[x]], nodes.rank[start[x]] = i, k - meetings.start[i]
            start[x] += 1
    for x in range(count, 0, -1):
        start[x] = start[x - 1]
    start[0] = 0


@kernel
def place_nodes(cell, chords, meetings, layer, edge_points, vertices, extent, inner, best, offset):
    """Write the nodes as the inner points offset, ..., each placed by the chord on which it is least uncertain.

    Writes their kappa to best, which comes as infinity.
    """
    vertex, chord = cell.vertex, cell.chord
    a, b, part = edge_points.a, edge_points.b, edge_points.share
    four, weight = inner.four, inner.weight
    xy, kappa, tau, reach, old = vertices.xy, vertices.kappa, layer.tau, layer.reach, len(layer.h)
    for i in range(chords):
        p, q = vertex[chord[i, P]], vertex[chord[i, Q]]
        length = np.hypot(xy[q, 0] - xy[p, 0], xy[q, 1] - xy[p, 1]) / extent
        for k in range(meetings.start[i], meetings.start[i + 1]):
            y, s = meetings.entry[k], meetings.share[k]
            at = offset + meetings.node[y >> 1]
            j = chord[meetings.pair[y >> 1, 1 - (y & 1)], UNIT]
            # reach / tau * blur is kappa times the reach over the rise.
            spread = SLOPE * length * reach[j] / tau[j] * meetings.blur[y] if tau[j] > 0.0 else 0.0
            spread = min(KAPPA_LIMIT, spread + kappa[p] + s * (kappa[q] - kappa[p]))
            if spread < best[at]:
                best[at] = spread
                for turn in range(2):
                    v, side = (p, 1.0 - s) if turn == 0 else (q, s)
                    t = 0.0 if v < old else part[v - old]
                    four[at, 2 * turn] = v if v < old else a[v - old]
                    four[at, 2 * turn + 1] = v if v < old else b[v - old]
                    weight[at, 2 * turn] = side * (1.0 - t)
                    weight[at, 2 * turn + 1] = side * t


@kernel
def count_cells(cells, layer, first, edge_points, kappa, chords, cell, meetings):
    """How many cells there are when every cell is cut along its chords. cell, meetings: scratch.

    kappa (V + edge points,): that of the old vertices and of the points that cut_edges put on the edges.
    """
    total = len(cells.starts) - 1
    for c in range(len(cells.starts) - 1):
        n = chords.start[c + 1] - chords.start[c]
        if n == 1:
            total += 1
        if n <= 1:
            continue
        n = merge_chords(chords.chord, chords.start[c], chords.start[c + 1], cell.chord, cell.unit_start)
        total += n
        if chords.pairs[c] == 0:
            continue
        met, most = find_meetings(cell.chord, n, meetings.pair, meetings.start)
        total += met
        if most < 2:
            continue
        # Where a chord meets several others, some may meet in one point: m chords through it add only m - 1.
        list_places(cells, c, first, len(layer.h), cell.vertex, cell.half)
        if order_meetings(cell, n, meetings, met, layer, edge_points, kappa):
            nodes = unite_meetings(n, meetings, met)
            total += meetings.start[n] - nodes - met
    return total
