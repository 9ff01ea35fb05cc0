"""The mesh that plane refines: convex cells, and the states of a net at their vertices.

A cell's boundary is a cycle of half-edges, counterclockwise. Half-edge 2 e + d walks along edge e, from ends[e, 0] to
ends[e, 1] if d = 0 and back if d = 1, so the two cells on either side of an edge hold its two half-edges.

A layer cuts the mesh along the zeros of its units: cutting.py calls four files whose functions numba compiles.

    states.py     the states at the vertices, and the signs of the units there
    chords.py     a point on an edge wherever a unit changes sign along it, and the chord of its zeros in a cell
    meetings.py   where the chords of a cell meet, and how many faces that makes
    faces.py      the faces themselves; it begins with a drawing

Nothing in them looks at an angle. In a convex cell the zero set of a unit that takes both strict signs is a chord
between two places on the boundary, two chords meet if and only if their ends interleave, and seen from any point of the
cell the places on the boundary appear in their order. Floating point only orders the crossings along an edge and the
meetings along a chord.

V vertices, E edges, C cells, D columns of the state, words = ceil(units / 64).
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

OK, NOT_CONVEX, NOT_PLANAR, NOT_UNIQUE = 0, 1, 2, 3  # what a kernel reports about a cell


class Cells(NamedTuple):
    """Which vertices, edges and cells of a mesh touch."""

    ends: np.ndarray  # (E, 2) the two vertices of each edge
    starts: np.ndarray  # (C + 1,) the half-edges of cell c are refs[starts[c] : starts[c + 1]]
    refs: np.ndarray  # the half-edges of all cells, one cell after the other


class Vertices(NamedTuple):
    """Where vertices are, and how uncertain they are."""

    xy: np.ndarray  # (V, 2) coordinates on the slice
    kappa: np.ndarray  # (V,) factor on the tolerances at each vertex (line.py)


class Layer(NamedTuple):
    """The units of one layer at the vertices of a mesh."""

    h: np.ndarray  # (V, D) what the step computes; its first columns are the units, before their ReLU
    positive: np.ndarray  # (V, words) bit j % 64 of word j // 64: unit j is strictly positive
    negative: np.ndarray  # (V, words) likewise: it is strictly negative; a unit with neither bit counts as zero
    tau: np.ndarray  # (units,) a unit is zero where it is at most kappa tau
    reach: np.ndarray  # (units,) the largest absolute value of each unit


class EdgePoints(NamedTuple):
    """New vertices on edges: point i is a[i] + share[i] (b[i] - a[i])."""

    a: np.ndarray
    b: np.ndarray
    share: np.ndarray


class InnerPoints(NamedTuple):
    """New vertices where chords meet: point i is the mean of the old vertices four[i] with the weights weight[i]."""

    four: np.ndarray  # (n, 4)
    weight: np.ndarray  # (n, 4)


@dataclass(frozen=True, eq=False)
class Source:
    """Where the states of a mesh's vertices come from: rows of h, and means of them (see states.gather)."""

    h: np.ndarray  # (V before the last cut, D) what the last step computed, before its ReLUs
    units: int  # the first columns, which are rectified
    edge_points: EdgePoints
    inner_points: InnerPoints


@dataclass(frozen=True, eq=False)
class Mesh:
    """A mesh on the slice before step k of a program."""

    k: int
    extent: float  # the longer side of the box, the unit of length in kappa
    cells: Cells
    vertices: Vertices
    source: Source
    rows: np.ndarray  # (V,) the row of the source at each vertex
    size: Tensor  # (D,) largest absolute value of each column of the state
    error: Tensor  # (D,) its rounding error in units of 2^-53
    parents: tuple[np.ndarray, ...] = ()  # for every layer cut, (C after it,): the cell before it that holds the cell
    masks: tuple[np.ndarray, ...] = ()  # for every layer cut, (C after it, words): which units are positive in the cell

    def __len__(self) -> int:
        """The number of cells."""
        return len(self.cells.starts) - 1

    def part(self, low: int, high: int) -> "Mesh":
        """The cells low, ..., high - 1 alone."""
        starts = self.cells.starts[low : high + 1]
        refs = self.cells.refs[starts[0] : starts[-1]]
        edges, edge = np.unique(refs >> 1, return_inverse=True)
        vertices, ends = np.unique(self.cells.ends[edges], return_inverse=True)
        return replace(
            self,
            cells=Cells(ends.reshape(-1, 2), starts - starts[0], 2 * edge + (refs & 1)),
            vertices=Vertices(self.vertices.xy[vertices], self.vertices.kappa[vertices]),
            rows=self.rows[vertices],
        )

    def parts(self, rows: int) -> Iterator["Mesh"]:
        """Blocks of consecutive cells with at most about `rows` vertices each, the last block first."""
        starts = self.cells.starts
        cuts = np.searchsorted(starts, np.arange(0, starts[-1], max(rows, 8)))
        bounds = np.unique(np.append(cuts, len(self)))
        for low, high in reversed(list(pairwise(bounds.tolist()))):
            yield self.part(low, high)


def box_mesh(slice_: Tensor, box: tuple[float, float, float, float]) -> Mesh:
    """The box (low s, high s, low t, high t) of a slice (3, d) as one cell, before step 0."""
    low_s, high_s, low_t, high_t = box
    xy = np.array([(low_s, low_t), (high_s, low_t), (high_s, high_t), (low_s, high_t)])
    state = slice_[0] + torch.from_numpy(xy) @ slice_[1:]  # (4, d)
    # The corners are sums of three rounded terms.
    error = slice_[0].abs() + np.abs(xy[:, 0]).max() * slice_[1].abs() + np.abs(xy[:, 1]).max() * slice_[2].abs()
    none, empty = np.zeros(0, dtype=np.int64), np.zeros(0)
    no_points = EdgePoints(none, none, empty), InnerPoints(none.reshape(0, 4), empty.reshape(0, 4))
    ends = np.array([(0, 1), (1, 2), (2, 3), (3, 0)])
    return Mesh(
        k=0,
        extent=max(high_s - low_s, high_t - low_t),
        cells=Cells(ends, np.array([0, 4]), np.array([0, 2, 4, 6])),
        vertices=Vertices(xy, np.ones(4)),
        source=Source(state.numpy(), 0, *no_points),
        rows=np.arange(4),
        size=state.abs().amax(0),
        error=error,
    )
