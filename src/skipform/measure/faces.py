"""The faces into which its chords cut a cell.

A cell with two chords that meet:

    6 <---h5--- 5 <---h4--- 4        0, ..., 7 are the places of its boundary: its vertices and the new points on
    |           |           ^        its edges. Chord A ends at the places P = 1 and Q = 5, chord B at P = 3 and
    h6  face 3  A   face 2  h3       Q = 7. Their ends interleave (1 < 3 < 5 < 7), so they meet, in node x.
    v           |           |        Half-edge p (hp in the drawing) leads from place p to the next. The nodes cut
    7 ----B---- x --------- 3        the chords into segments, numbered from P to Q, chord after chord: A has the
    |           |           ^        segments 0 (1 to x) and 1 (x to 5), B has 2 (3 to x) and 3 (x to 7). Segment s
    h7  face 0  |   face 1  h2       has the half-edges places + 2 s from P to Q and places + 2 s + 1 from Q to P.
    v           |           |        A face is a cycle of half-edges, counterclockwise: after a half-edge comes, at
    0 ---h0---> 1 ---h1---> 2        its end, the next one clockwise from where it came. Face 0 is 0, 8, 14, 7.

K chords that meet I times, no three of them in one point, make 1 + K + I faces; a node in which m chords meet counts as
m - 1 meetings. So meetings.py counts the faces of the last layer without building them.

places, chords (n), meetings (m), nodes and faces below are those of one cell; words = ceil(units / 64).
"""

from typing import NamedTuple

import numpy as np

from skipform.measure.chords import SIGN, UNIT, Chords, P, Q, sort
from skipform.measure.kernel import kernel
from skipform.measure.meetings import (
    Cell,
    Meetings,
    Nodes,
    find_meetings,
    list_nodes,
    list_places,
    merge_chords,
    order_meetings,
    place_nodes,
    unite_meetings,
)
from skipform.measure.mesh import NOT_PLANAR, NOT_UNIQUE, OK, Cells, EdgePoints, InnerPoints

CELLS, HALVES, SEGMENTS, INNER = 0, 1, 2, 3  # how much of each has been written: the entries of `size`

_ONE = np.uint64(1)
_NONE = np.uint64(0)


class _Graph(NamedTuple):
    """The planar graph of one cell: its boundary, and its chords cut into segments."""

    segment_start: np.ndarray  # (n + 1,) the segments of chord i are segment_start[i], ...
    segment_chord: np.ndarray  # (segments,) the chord of each segment
    place_start: np.ndarray  # (places + 1,) the chords at place p are place_chord[place_start[p] : place_start[p + 1]],
    place_chord: np.ndarray  # (2 n,) the one whose other end is farthest ahead first
    after: np.ndarray  # (half-edges,) the next half-edge around the same face


class _Faces(NamedTuple):
    """The faces of one cell."""

    of: np.ndarray  # (half-edges,) the face on the left of each half-edge
    walk: np.ndarray  # (half-edges,) face f is the cycle walk[start[f] : start[f + 1]]
    start: np.ndarray  # (faces + 1,)
    key: np.ndarray  # (faces,) a hash of which units are positive, relative to face 0
    order: np.ndarray  # (faces,) the face itself, or -1 before it has a key
    stack: np.ndarray  # (faces,) faces whose neighbours have yet to get a key
    mask: np.ndarray  # (faces, words) bit j: unit j is positive; no columns if the masks are not wanted


class Scratch(NamedTuple):
    """Room for any one cell; every cell overwrites it."""

    cell: Cell
    meetings: Meetings
    nodes: Nodes
    graph: _Graph
    faces: _Faces

    @staticmethod
    def empty(chords: Chords, words: int) -> "Scratch":
        """Room for the largest of the cells with these chords. words: the columns of the faces' masks."""
        places, n, m = chords.most_places, chords.most_chords, chords.most_pairs
        segments, faces = n + 2 * m, 2 + n + m
        halves = places + 2 * segments
        of, walk, after = (np.empty(halves, np.int64) for _ in range(3))
        at_places = np.empty(places + 1, np.int64), np.empty(2 * n, np.int64)
        start, key, order, stack = (np.empty(faces, np.int64) for _ in range(4))
        return Scratch(
            Cell.empty(chords),
            Meetings.empty(chords),
            Nodes.empty(chords),
            _Graph(np.empty(n + 1, np.int64), np.empty(segments, np.int64), *at_places, after),
            _Faces(of, walk, start, key, order, stack, np.empty((faces, words), np.uint64)),
        )


class FinerCells(NamedTuple):
    """What cutting every cell makes. Edges are numbered: the subdivided old ones, then the segments."""

    starts: np.ndarray  # (C' + 1,) with refs: the new cells, as in mesh.Cells
    refs: np.ndarray
    parent: np.ndarray  # (C',) the cell that each new cell lies in
    segments: np.ndarray  # (segments, 2) the two vertices of each
    inner: InnerPoints  # the new vertices where chords meet, numbered after those on the edges
    kappa: np.ndarray  # (inner points,)
    masks: np.ndarray  # (C', words) bit j: unit j is positive in the new cell; no columns if not wanted

    @staticmethod
    def empty(cells: Cells, edge_points: EdgePoints, chords: Chords, words: int) -> "FinerCells":
        """Room for all that can be made; it is less where chords or crossings coincide."""
        inner = int(chords.pairs.sum())
        segments = len(chords.chord) + 2 * inner
        made = len(chords.pairs) + len(chords.chord) + inner
        return FinerCells(
            np.zeros(made + 1, np.int64),
            np.empty(len(cells.refs) + 2 * (len(edge_points.a) + segments), np.int64),
            np.empty(made, np.int64),
            np.empty((segments, 2), np.int64),
            InnerPoints(np.empty((inner, 4), np.int64), np.empty((inner, 4))),
            np.full(inner, np.inf),
            np.empty((made, words), np.uint64),
        )

    def trim(self, size: np.ndarray) -> "FinerCells":
        """What was written: size as cut_cells returns it."""
        made, used, segments, inner = size
        return FinerCells(
            self.starts[: made + 1], self.refs[:used], self.parent[:made], self.segments[:segments],
            InnerPoints(self.inner.four[:inner], self.inner.weight[:inner]), self.kappa[:inner], self.masks[:made],
        )  # fmt: skip


@kernel
def _key(unit):
    """64 well-mixed bits for a unit (splitmix64)."""
    z = np.uint64(unit + 1) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.int64(z ^ (z >> np.uint64(31)))


@kernel
def _list_chords_at_places(chord, chords, places, start, at):
    """The chords at place p are at[start[p] : start[p + 1]], the one whose other end is farthest ahead first."""
    for p in range(places + 1):
        start[p] = 0
    for i in range(chords):
        start[chord[i, P] + 1] += 1
        start[chord[i, Q] + 1] += 1
    for p in range(places):
        start[p + 1] += start[p]
    for i in range(chords):
        for turn in range(2):
            p = chord[i, turn]
            at[start[p]] = i
            start[p] += 1
    for p in range(places, 0, -1):
        start[p] = start[p - 1]
    start[0] = 0
    for p in range(places):
        for k in range(start[p] + 1, start[p + 1]):
            i = at[k]
            ahead = (chord[i, P] + chord[i, Q] - 2 * p + places) % places
            while k > start[p]:
                o = at[k - 1]
                if (chord[o, P] + chord[o, Q] - 2 * p + places) % places >= ahead:
                    break
                at[k] = o
                k -= 1
            at[k] = i


@kernel
def _draw_segments(cell, chords, meetings, graph, segments, drawn, inner):
    """Cut each chord into segments at its nodes; returns their number. inner: the vertex that node 0 becomes.

    Writes the two vertices of each to segments, from row `drawn` on.
    """
    segment = 0
    for i in range(chords):
        graph.segment_start[i] = segment
        last = cell.vertex[cell.chord[i, P]]
        for k in range(meetings.start[i], meetings.start[i + 1] + 1):
            segments[drawn + segment, 0] = last
            last = cell.vertex[cell.chord[i, Q]]
            if k < meetings.start[i + 1]:
                last = inner + meetings.node[meetings.entry[k] >> 1]
            segments[drawn + segment, 1] = last
            graph.segment_chord[segment] = i
            segment += 1
    graph.segment_start[chords] = segment
    return segment


@kernel
def _link(chord, places, halves, meetings, nodes, graph):
    """For each half-edge the next one around its face: at its end, the next clockwise from where it came."""
    start, entry, node_of = meetings.start, meetings.entry, meetings.node
    node_start, node_chord, node_rank = nodes.start, nodes.chord, nodes.rank
    segment_start, segment_chord = graph.segment_start, graph.segment_chord
    place_start, place_chord, after = graph.place_start, graph.place_chord, graph.after
    for x in range(halves):
        if x < places:
            p = x + 1 if x + 1 < places else 0
            k = place_start[p]
        else:
            segment, back = (x - places) >> 1, (x - places) & 1
            i = segment_chord[segment]
            rank = segment - segment_start[i] - back  # of the node ahead
            if 0 <= rank < start[i + 1] - start[i]:
                # At a node: of the places to which its other chords lead, the nearest clockwise from the origin.
                origin = chord[i, Q] if back else chord[i, P]
                n = node_of[entry[start[i] + rank] >> 1]
                nearest, out = places, x
                for k in range(node_start[n], node_start[n + 1]):
                    o = node_chord[k]
                    if o == i:
                        continue
                    turn = (origin - chord[o, P] + places) % places
                    if turn < nearest:
                        nearest, out = turn, places + 2 * (segment_start[o] + node_rank[k]) + 1
                    turn = (origin - chord[o, Q] + places) % places
                    if turn < nearest:
                        nearest, out = turn, places + 2 * (segment_start[o] + node_rank[k] + 1)
                after[x] = out
                continue
            p = chord[i, P] if back else chord[i, Q]
            k = place_start[p]
            while place_chord[k] != i:
                k += 1
            k += 1
        # At a place: the next of its chords, or along the boundary.
        if k == place_start[p + 1]:
            after[x] = p
        else:
            i = place_chord[k]
            after[x] = places + (2 * segment_start[i] if p == chord[i, P] else 2 * segment_start[i + 1] - 1)


@kernel
def _trace(after, halves, count, faces):
    """Walk around every face; returns whether all of them close and there are `count` of them."""
    of, walk, start = faces.of, faces.walk, faces.start
    for x in range(halves):
        of[x] = -1
    traced, walked = 0, 0
    for begin in range(halves):
        if of[begin] >= 0:
            continue
        if traced == count:
            return False
        start[traced] = walked
        x = begin
        while of[x] < 0:
            of[x] = traced
            walk[walked] = x
            walked += 1
            x = after[x]
        if x != begin:
            return False
        traced += 1
    start[traced] = walked
    return traced == count


@kernel
def _find_patterns(places, count, layer_chord, unit_start, segment_chord, faces):
    """Give each face its activation pattern, starting from the first: crossing a chord flips the units on it.

    Returns whether every face has a pattern, the same from all sides, and no two the same. faces.mask comes with the
    pattern of face 0.
    """
    of, walk, start, mask = faces.of, faces.walk, faces.start, faces.mask
    key, order, stack = faces.key, faces.order, faces.stack
    for f in range(count):
        order[f] = -1  # not reached
    key[0], order[0], stack[0] = 0, 0, 0
    waiting, reached = 1, 1
    while waiting > 0:
        waiting -= 1
        here = stack[waiting]
        for k in range(start[here], start[here + 1]):
            x = walk[k]
            if x < places:
                continue
            i = segment_chord[(x - places) >> 1]
            flipped = key[here]
            for r in range(unit_start[i], unit_start[i + 1]):
                flipped ^= _key(layer_chord[r, UNIT])
            there = of[places + ((x - places) ^ 1)]
            if order[there] >= 0:
                if key[there] != flipped:
                    return False
                continue
            order[there], key[there], stack[waiting] = there, flipped, there
            waiting += 1
            reached += 1
            for w in range(mask.shape[1]):
                mask[there, w] = mask[here, w]
            if mask.shape[1] > 0:
                for r in range(unit_start[i], unit_start[i + 1]):
                    mask[there, layer_chord[r, UNIT] >> 6] ^= _ONE << np.uint64(layer_chord[r, UNIT] & 63)
    if reached != count:
        return False
    for f in range(count):
        stack[f], order[f] = key[f], f
    sort(stack, order, 0, count)
    distinct = True
    for f in range(1, count):
        distinct &= stack[f] != stack[f - 1]
    return distinct


@kernel
def _close_cell(c, mask, used, finer, size):
    """The half-edges refs[size[HALVES] : used] are a new cell in cell c with the pattern mask (words,)."""
    made = size[CELLS]
    for w in range(len(mask)):
        finer.masks[made, w] = mask[w]
    finer.parent[made] = c
    finer.starts[made + 1] = used
    size[CELLS], size[HALVES] = made + 1, used


@kernel
def _halve(c, cell, places, chord, edge, mask, finer, size):
    """Cut cell c along one chord, the new edge `edge`: into its boundary without the arc from P to Q, and that arc."""
    p, q, j = chord[P], chord[Q], chord[UNIT]
    for w in range(mask.shape[1]):
        mask[1, w] = mask[0, w]
    if mask.shape[1] > 0:
        mask[1 if chord[SIGN] > 0 else 0, j >> 6] |= _ONE << np.uint64(j & 63)
    half, refs, used = cell.half, finer.refs, size[HALVES]
    for k in range(p):
        refs[used] = half[k]
        used += 1
    refs[used] = 2 * edge
    used += 1
    for k in range(q, places):
        refs[used] = half[k]
        used += 1
    _close_cell(c, mask[0], used, finer, size)
    for k in range(p, q):
        refs[used] = half[k]
        used += 1
    refs[used] = 2 * edge + 1
    _close_cell(c, mask[1], used + 1, finer, size)
    segment = size[SEGMENTS]
    finer.segments[segment, 0], finer.segments[segment, 1] = cell.vertex[p], cell.vertex[q]
    size[SEGMENTS] = segment + 1


@kernel
def cut_cells(cells, layer, first, edge_points, chords, vertices, extent, scratch, finer):
    """Cut every cell along its chords.

    layer, cells: the old vertices and cells; vertices (V + edge points): the old ones and the points that cut_edges put
    on the edges. extent: as for cut_edges. Writes to finer (FinerCells.empty), as many masks as its columns hold.

    Returns OK or why the chords cannot be right, the cell to which that applies, and how many cells, half-edges,
    segments and inner points were written.
    """
    ends, starts, refs = cells.ends, cells.starts, cells.refs
    cell, meetings, nodes, graph, faces = scratch
    mask, words, size = faces.mask, finer.masks.shape[1], np.zeros(4, np.int64)
    edges = len(ends) + len(edge_points.a)  # after they were subdivided
    for c in range(len(starts) - 1):
        low, high = starts[c], starts[c + 1]
        for w in range(words):
            mask[0, w] = _NONE
            for i in range(low, high):
                mask[0, w] |= layer.positive[ends[refs[i] >> 1, refs[i] & 1], w]
            mask[0, w] &= ~chords.crossing[c, w]
        begin, end = chords.start[c], chords.start[c + 1]
        if begin == end:
            used = size[HALVES]
            for i in range(low, high):
                e = refs[i] >> 1
                finer.refs[used] = 2 * (e + first[e]) + (refs[i] & 1)
                used += 1
            _close_cell(c, mask[0], used, finer, size)
            continue
        places = list_places(cells, c, first, len(layer.h), cell.vertex, cell.half)
        edge = edges + size[SEGMENTS]
        if end == begin + 1:
            _halve(c, cell, places, chords.chord[begin], edge, mask, finer, size)
            continue
        n = merge_chords(chords.chord, begin, end, cell.chord, cell.unit_start)
        met, _ = find_meetings(cell.chord, n, meetings.pair, meetings.start)
        if order_meetings(cell, n, meetings, met, layer, edge_points, vertices.kappa):
            inner = unite_meetings(n, meetings, met)
        else:
            inner = met
            for x in range(met):
                meetings.node[x] = x
        list_nodes(n, meetings, inner, nodes)
        place_nodes(cell, n, meetings, layer, edge_points, vertices, extent, finer.inner, finer.kappa, size[INNER])
        vertex = len(vertices.xy) + size[INNER]
        segments = _draw_segments(cell, n, meetings, graph, finer.segments, size[SEGMENTS], vertex)
        _list_chords_at_places(cell.chord, n, places, graph.place_start, graph.place_chord)
        halves, made = places + 2 * segments, 1 + segments - inner  # m chords through a node add m - 1 faces
        _link(cell.chord, places, halves, meetings, nodes, graph)
        if not _trace(graph.after, halves, made, faces):
            return NOT_PLANAR, c, size
        if words > 0:
            # Face 0 lies ahead of place 0.
            for i in range(begin, end):
                j, sign = chords.chord[i, UNIT], chords.chord[i, SIGN]
                if (sign if chords.chord[i, P] == 0 else -sign) > 0:
                    mask[0, j >> 6] |= _ONE << np.uint64(j & 63)
        if not _find_patterns(places, made, chords.chord, cell.unit_start, graph.segment_chord, faces):
            return NOT_UNIQUE, c, size
        used = size[HALVES]
        for f in range(made):
            for k in range(faces.start[f], faces.start[f + 1]):
                x = faces.walk[k]
                finer.refs[used] = cell.half[x] if x < places else 2 * edge + x - places
                used += 1
            _close_cell(c, mask[f], used, finer, size)
        size[SEGMENTS] += segments
        size[INNER] += inner
    return OK, 0, size


@kernel
def areas(cells, xy):
    """The area of each cell (C,), by the shoelace formula about its first vertex: a small cell far from the origin
    loses no digits to cancellation."""
    ends, starts, refs = cells.ends, cells.starts, cells.refs
    out = np.empty(len(starts) - 1, np.float64)
    for c in range(len(out)):
        low, high = starts[c], starts[c + 1]
        o = ends[refs[low] >> 1, refs[low] & 1]
        total = 0.0
        for i in range(low + 1, high - 1):
            a = ends[refs[i] >> 1, refs[i] & 1]
            b = ends[refs[i] >> 1, 1 - (refs[i] & 1)]
            total += (xy[a, 0] - xy[o, 0]) * (xy[b, 1] - xy[o, 1]) - (xy[b, 0] - xy[o, 0]) * (xy[a, 1] - xy[o, 1])
        out[c] = 0.5 * total
    return out
