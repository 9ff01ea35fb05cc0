"""Exact linear regions on a two-dimensional slice, for any piecewise-linear net and inputs of any size.

Layer by layer a mesh of convex cells on the slice is cut along the zeros of the layer's units; the kernels are in
cells.py. Every vertex carries the state of the net there: one batched product evaluates all of them, and between
vertices everything computed so far is affine, so the state of a new vertex is a mean of the states of old ones, carried
skips included. The last layer's cells are counted without being built: K chords with I crossings make 1 + K + I.

Three numbers, never to be mixed up. `count`: activation regions, maximal sets on which no ReLU changes its strict sign.
`pieces`: maximal connected open sets on which the output is one affine map. `maps`: distinct affine maps. Writing a
net differently changes the first and not the others.

Tolerances are those of line.py: three-way signs with the rounding error of program.py times the vertex's kappa, and
crossings that are closer than their own uncertainty are one.

V vertices, E edges, C cells, D columns of the state, m outputs.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from scipy import sparse
from torch import Tensor, nn

from skipform.errors import SkipformError
from skipform.measure.program import LARGEST, SMALLEST, TOLERANCE, UNIT, Program, points, rounding
from skipform.theory.network import CanonicalNetwork

_BLOCK = 1 << 20  # numbers in a block of states: 8 MiB stay in the cache from the product to the packing of signs
_MESH = 400  # bytes of a cell with its share of vertices and edges, and what is made from it in one cut
_SAMPLES = 33  # of each line that is looked at
_LOOK_FIRST = 1 << 13  # ReLUs from which on a plane is looked at along two lines before it is set out on


@dataclass(frozen=True, eq=False)
class _Source:
    """Where states come from: rows of h, rectified in `units` columns, and means of them (see cells.gather)."""

    h: np.ndarray
    units: int
    a: np.ndarray
    b: np.ndarray
    share: np.ndarray
    four: np.ndarray
    weight: np.ndarray


@dataclass(frozen=True, eq=False)
class _Mesh:
    """Convex cells (see cells.py) before step k, with the source row of each vertex."""

    k: int
    xy: np.ndarray  # (V, 2)
    kappa: np.ndarray  # (V,)
    ends: np.ndarray  # (E, 2)
    starts: np.ndarray  # (C + 1,)
    refs: np.ndarray
    source: _Source
    rows: np.ndarray  # (V,)
    size: Tensor  # (D,) largest absolute value of each column of the state
    error: Tensor  # (D,) its rounding error in units of 2^-53
    parents: tuple[np.ndarray, ...] = ()  # per layer cut: the cell of the mesh before that each cell lies in
    masks: tuple[np.ndarray, ...] = ()  # per layer cut: (C, words) the units that are positive in each cell

    def part(self, low: int, high: int) -> "_Mesh":
        """The cells low, ..., high - 1 alone."""
        refs = self.refs[self.starts[low] : self.starts[high]]
        edges, edge = np.unique(refs >> 1, return_inverse=True)
        vertices, ends = np.unique(self.ends[edges], return_inverse=True)
        return replace(
            self,
            xy=self.xy[vertices],
            kappa=self.kappa[vertices],
            ends=ends.reshape(-1, 2),
            starts=self.starts[low : high + 1] - self.starts[low],
            refs=2 * edge + (refs & 1),
            rows=self.rows[vertices],
        )


@dataclass(frozen=True, eq=False)
class PlaneRegions:
    """The regions of (s, t) -> f(origin + s u + t v) on a box. All but `count` is found when first asked for."""

    count: int  # activation regions
    program: Program
    slice: Tensor  # (3, d): origin, u, v
    box: tuple[float, float, float, float]
    memory: int

    @cached_property
    def _mesh(self) -> _Mesh:
        widest = max(self.program.widths)
        needed = self.count * (2 * 8 * widest + _MESH)
        if needed > self.memory:
            raise SkipformError(
                f"plane: the polygons of {self.count} regions of a net {widest} wide need {needed / 2**30:.1f} GiB; "
                f"{self.memory / 2**30:.1f} GiB is accepted (a smaller box, or a larger memory=)"
            )
        mesh = _root(self.program, self.slice, self.box)
        for _ in self.program.steps[:-1]:
            mesh, _ = _cut(self.program, mesh, _extent(self.box), self.memory, build=True, masks=True)
        if len(mesh.starts) - 1 != self.count:
            raise SkipformError(f"plane: {len(mesh.starts) - 1} cells built where {self.count} were counted{_REPORT}")
        return mesh

    @cached_property
    def _coefficients(self) -> tuple[np.ndarray, np.ndarray]:
        """y = c + s g + t h of each region, (count, 3, m), and the error of each output, (m,)."""
        return _affine_maps(self.program, self.slice, self._mesh)

    @cached_property
    def labels(self) -> np.ndarray:
        """The piece that each activation region belongs to, (count,), numbered from 0."""
        mesh = self._mesh
        cell = np.repeat(np.arange(self.count), np.diff(mesh.starts))
        sides = np.full((len(mesh.ends), 2), -1)
        sides[mesh.refs >> 1, mesh.refs & 1] = cell
        inner = sides[(sides >= 0).all(1)]
        maps, error = self._coefficients
        same = (np.abs(maps[inner[:, 0], 1:] - maps[inner[:, 1], 1:]) <= 2 * error).all((1, 2))
        links = sparse.coo_array((np.ones(same.sum()), inner[same].T), shape=(self.count, self.count))
        return sparse.csgraph.connected_components(links, directed=False)[1]

    @cached_property
    def pieces(self) -> int:
        """Maximal connected open sets with one affine map."""
        return int(self.labels.max()) + 1

    @cached_property
    def maps(self) -> int:
        """Distinct affine maps (s, t) -> y."""
        coefficients, error = self._coefficients
        first = np.unique(self.labels, return_index=True)[1]
        return _distinct(coefficients[first].reshape(len(first), -1), np.tile(2 * error, 3))

    def polygons(self) -> list[np.ndarray]:
        """The corners (s, t) of each activation region, (k, 2), counterclockwise."""
        mesh = self._mesh
        corners = mesh.xy[mesh.ends[mesh.refs >> 1, mesh.refs & 1]]
        return np.split(corners, mesh.starts[1:-1])

    def areas(self) -> np.ndarray:
        """The area of each activation region in the (s, t) plane, (count,)."""
        from skipform.measure import cells

        return np.asarray(cells.areas(self._mesh.starts, self._mesh.refs, self._mesh.ends, self._mesh.xy))

    def affine_maps(self) -> np.ndarray:
        """c, g, h with y = c + s g + t h on each activation region, (count, 3, m)."""
        return self._coefficients[0]


_REPORT = ": the slice is beyond double precision here (shift the box a little)"


@torch.no_grad()
def plane(
    f: nn.Module | CanonicalNetwork,
    origin: Tensor,
    u: Tensor,
    v: Tensor,
    box: tuple[float, float, float, float] = (-1.0, 1.0, -1.0, 1.0),
    *,
    memory: int = 4 << 30,
    limit: float = 2e10,
    progress: Callable[[float], object] | None = None,
) -> PlaneRegions:
    """The exact regions of f on {origin + s u + t v : s in box[:2], t in box[2:]}.

    origin, u, v: inputs of the net without a batch dimension; u and v may be dependent. f is a canonical network or a
    torch module in eval mode, which is copied and promoted to float64. Counting streams blocks of cells through the
    layers and stays within `memory` bytes; `progress`, if given, is called with the share of the box done.

    Every cut checks itself: the cells' areas sum to the box's, V - E + C is unchanged, patterns are unique.

    Raises SkipformError for a slice or box that does not fit, for a net of which two lines across the box foretell
    more than `limit` ReLU values (regions times ReLUs) to evaluate, when cells outgrow the memory, and when
    double precision does not suffice; UnsupportedOperation for a net that is not piecewise linear.
    """
    origin, u, v = points("plane", origin=origin, u=u, v=v)
    if not origin.shape == u.shape == v.shape:
        shapes = ", ".join(str(tuple(point.shape)) for point in (origin, u, v))
        raise SkipformError(f"plane: origin, u, v of shapes {shapes}; the same shape is accepted")
    box = _sides(box)
    program = Program.of(f, origin)
    slice_ = torch.stack([origin, u, v]).flatten(1)
    _foretell(program, slice_, box, limit)
    return PlaneRegions(_count(program, slice_, box, memory, progress), program, slice_, box, memory)


def _sides(box: Any) -> tuple[float, float, float, float]:
    """The box as four numbers, low < high, whose differences can be multiplied. Else SkipformError."""
    try:
        low_s, high_s, low_t, high_t = (float(side) for side in box)
    except (TypeError, ValueError):
        raise SkipformError(f"plane: box {box}; four numbers (low s, high s, low t, high t) are accepted") from None
    if not all(SMALLEST < side < LARGEST for side in (high_s - low_s, high_t - low_t)):
        raise SkipformError(
            f"plane: box {(low_s, high_s, low_t, high_t)}; (low s, high s, low t, high t) with low < high, sides of"
            f" {SMALLEST:.0e} to {LARGEST:.0e}, is accepted"
        )
    return low_s, high_s, low_t, high_t


def _foretell(program: Program, slice_: Tensor, box: tuple[float, float, float, float], limit: float) -> None:
    """Refuse a plane with too many regions, as told by two lines across it.

    Cuts that lie as if drawn at random meet segments of length l, l' across the box in n, n' points on average, and
    make about pi n n' / 4 regions (integral geometry: Crofton's formula, twice). n is taken as the number of sign
    changes between neighbouring sample points, which is never too large.
    """
    relus = sum(step.units for step in program.steps)
    if relus < _LOOK_FIRST:
        return
    s, t = torch.linspace(*box[:2], _SAMPLES).double(), torch.linspace(*box[2:], _SAMPLES).double()
    cuts = []
    for along in (torch.stack([s, t.mean().expand(_SAMPLES)]), torch.stack([s.mean().expand(_SAMPLES), t])):
        state, flips = slice_[0] + along.T @ slice_[1:], 0
        for step in program.steps[:-1]:
            state = step.apply(state)
            on = state[:, : step.units] > 0
            flips += int((on[1:] != on[:-1]).sum())
            state[:, : step.units].relu_()
        cuts.append(flips)
    regions = np.pi / 4 * cuts[0] * cuts[1]
    if regions * relus > limit:
        raise SkipformError(
            f"plane: about {regions:.1g} regions of a net with {relus} ReLUs (lines across the box cross {cuts[0]} and "
            f"{cuts[1]}): {regions * relus:.1g} ReLU values; {limit:.1g} accepted (a smaller box or a larger limit=)"
        )


def _extent(box: tuple[float, float, float, float]) -> float:
    return max(box[1] - box[0], box[3] - box[2])


def _root(program: Program, slice_: Tensor, box: tuple[float, float, float, float]) -> _Mesh:
    """The box as one cell."""
    low_s, high_s, low_t, high_t = box
    xy = np.array([(low_s, low_t), (high_s, low_t), (high_s, high_t), (low_s, high_t)])
    state = slice_[0] + torch.from_numpy(xy) @ slice_[1:]
    # The corners are sums of three rounded terms.
    error = slice_[0].abs() + np.abs(xy[:, 0]).max() * slice_[1].abs() + np.abs(xy[:, 1]).max() * slice_[2].abs()
    none, empty = np.zeros(0, dtype=np.int64), np.zeros(0)
    source = _Source(state.numpy(), 0, none, none, empty, none.reshape(0, 4), empty.reshape(0, 4))
    ends = np.array([(0, 1), (1, 2), (2, 3), (3, 0)])
    starts, refs, rows = np.array([0, 4]), np.array([0, 2, 4, 6]), np.arange(4)
    return _Mesh(0, xy, np.ones(4), ends, starts, refs, source, rows, state.abs().amax(0), error)


def _count(
    program: Program,
    slice_: Tensor,
    box: tuple[float, float, float, float],
    memory: int,
    progress: Callable[[float], object] | None,
) -> int:
    last = len(program.steps) - 2
    if last < 0:
        return 1
    # Each layer holds one block of states while the layers above it work on parts of that block.
    rows = max(256, memory // (8 * max(program.widths) * (len(program.steps) + 1)))
    area = (box[1] - box[0]) * (box[3] - box[2])
    total, done = 0, 0.0
    meshes = [_root(program, slice_, box)]
    while meshes:
        mesh = meshes.pop()
        if len(mesh.rows) > rows and len(mesh.starts) > 2:
            meshes.extend(_parts(mesh, rows))
            continue
        finer, count = _cut(program, mesh, _extent(box), memory, build=mesh.k < last, masks=False)
        if mesh.k < last:
            meshes.append(finer)
            continue
        total += count
        if progress is not None:
            from skipform.measure import cells

            done += float(np.sum(cells.areas(mesh.starts, mesh.refs, mesh.ends, mesh.xy))) / area
            progress(min(done, 1.0))
    return total


def _parts(mesh: _Mesh, rows: int) -> Iterator[_Mesh]:
    """The mesh in blocks of consecutive cells with at most about `rows` vertices each."""
    cuts = np.searchsorted(mesh.starts, np.arange(0, mesh.starts[-1], max(rows, 8)))
    bounds = np.unique(np.append(cuts, len(mesh.starts) - 1))
    for low, high in reversed(list(pairwise(bounds.tolist()))):
        yield mesh.part(low, high)


def _cut(program: Program, mesh: _Mesh, extent: float, memory: int, *, build: bool, masks: bool) -> tuple[_Mesh, int]:
    """The mesh cut by the units of its step (as it was unless `build`), and the number of cells that makes."""
    from skipform.measure import cells  # numba is loaded when a plane is asked for

    step = program.steps[mesh.k]
    h, positive, negative, tau, reach, largest, passed = _evaluate(program, mesh)
    start, unit, point, first, a, b, share, kappa, ends = cells.cut_edges(
        mesh.ends, positive, negative, h, tau, reach, mesh.kappa, mesh.xy, extent
    )
    kappa = np.concatenate([mesh.kappa, kappa])
    old = len(mesh.starts) - 1
    crossed, chord_start = np.empty((old, positive.shape[1]), np.uint64), np.empty(old + 1, np.int64)
    most_places = cells.survey(mesh.starts, mesh.refs, mesh.ends, positive, negative, first, crossed, chord_start)
    chord, pairs = np.empty((chord_start[-1], 4), np.int64), np.empty(old, np.int64)
    status, cell = cells.find_chords(
        mesh.starts, mesh.refs, mesh.ends, positive, negative, crossed, start, unit, point, first, chord_start, chord,
        pairs, step.units,
    )  # fmt: skip
    _refuse(program, mesh, status, cell)
    most = (most_places, int(np.diff(chord_start).max()), int(pairs.max()))
    if not build:
        return mesh, cells.count_cells(
            mesh.starts, mesh.refs, mesh.ends, first, chord_start, chord, pairs, a, b, share, h, tau, kappa, *most
        )
    # What can be made at most: fewer where chords or crossings coincide.
    inner, drawn = int(pairs.sum()), len(chord) + 2 * int(pairs.sum())
    made = old + len(chord) + inner
    if made * _MESH > memory:
        where, needed = f"layer {mesh.k + 1} of {len(program.steps) - 1}", made * _MESH / 2**30
        raise SkipformError(
            f"plane: {made} cells at {where} need {needed:.1f} GiB; {memory / 2**30:.1f} GiB is accepted "
            "(a smaller box, or a larger memory=)"
        )
    xy = np.concatenate([mesh.xy, mesh.xy[a] + share[:, None] * (mesh.xy[b] - mesh.xy[a])])
    starts, parent = np.empty(made + 1, np.int64), np.empty(made, np.int64)
    refs = np.empty(len(mesh.refs) + 2 * (len(a) + drawn), np.int64)
    tail, head = np.empty(drawn, np.int64), np.empty(drawn, np.int64)
    four, weight, inner_kappa = np.empty((inner, 4), np.int64), np.empty((inner, 4)), np.empty(inner)
    on = np.empty((made, positive.shape[1] if masks else 0), np.uint64)
    status, cell, made, used, drawn, inner = cells.cut_cells(
        mesh.starts, mesh.refs, mesh.ends, positive, crossed, first, chord_start, chord, pairs, a, b, share,
        h, tau, reach, kappa, xy, extent, *most,
        starts, refs, parent, tail, head, four, weight, inner_kappa, on,
    )  # fmt: skip
    _refuse(program, mesh, status, cell)
    starts, refs, parent, on = starts[: made + 1], refs[:used], parent[:made], on[:made]
    four, weight, inner_kappa = four[:inner], weight[:inner], inner_kappa[:inner]
    xy = np.concatenate([xy, (mesh.xy[four] * weight[:, :, None]).sum(1)])
    ends = np.concatenate([ends, np.stack([tail[:drawn], head[:drawn]], 1)])
    finer = _Mesh(
        mesh.k + 1, xy, np.concatenate([kappa, inner_kappa]), ends, starts, refs,
        _Source(h, step.units, a, b, share, four, weight), np.arange(len(xy)),
        torch.from_numpy(largest), torch.from_numpy(passed),
        (*mesh.parents, parent) if masks else (),
        (*mesh.masks, on) if masks else (),
    )  # fmt: skip
    _check(mesh, finer, extent)
    return finer, made


def _refuse(program: Program, mesh: _Mesh, status: int, cell: int) -> None:
    """Turn what a kernel found wrong into an error."""
    from skipform.measure import cells

    failures = {
        cells.NOT_CONVEX: "a unit does not change sign twice around",
        cells.NOT_PLANAR: "chords do not close in",
        cells.NOT_UNIQUE: "a pattern repeats in",
    }
    if status in failures:
        where = f"layer {mesh.k + 1} of {len(program.steps) - 1}"
        raise SkipformError(f"plane: {where}: {failures[status]} cell {cell}{_REPORT}")


def _check(mesh: _Mesh, finer: _Mesh, extent: float) -> None:
    """Cutting keeps V - E + C and the total area, and leaves no cell inside out.

    A vertex is off by at most 64 u kappa / 4 of the extent (line.py), a cell's area by that times its perimeter.
    """
    from skipform.measure import cells

    before, after = (len(m.xy) - len(m.ends) + len(m.starts) for m in (mesh, finer))
    if before != after:
        raise SkipformError(f"plane: layer {finer.k}: V - E + C went from {before - 1} to {after - 1}{_REPORT}")
    old, new = (cells.areas(m.starts, m.refs, m.ends, m.xy) for m in (mesh, finer))
    off = TOLERANCE * UNIT * finer.kappa.max() * extent**2
    if abs(old.sum() - new.sum()) > off or new.min() < -off:
        raise SkipformError(
            f"plane: layer {finer.k}: areas sum to {new.sum()} of {old.sum()}, the least is {new.min():.1e}{_REPORT}"
        )


def _evaluate(program: Program, mesh: _Mesh) -> tuple[np.ndarray, ...]:
    """The step at all vertices: h (V, D), strict signs (V, words) twice, tau and the largest |h| of each unit (units,),
    and of each column the largest value and e after the ReLU (D,)."""
    from skipform.measure import cells

    step, source, n = program.steps[mesh.k], mesh.source, len(mesh.rows)
    error = rounding(step, mesh.size, mesh.error)
    tau = TOLERANCE * UNIT * error[: step.units].numpy()
    words = (step.units + 63) // 64
    h = np.empty((n, step.width))
    positive, negative = np.empty((n, words), np.uint64), np.empty((n, words), np.uint64)
    reach = np.zeros(step.units)
    largest = np.concatenate([np.full(step.units, -np.inf), np.zeros(step.width - step.units)])
    rows_at_once = max(16, _BLOCK // max(source.h.shape[1], step.width))
    state, out = np.empty((min(n, rows_at_once), source.h.shape[1])), torch.from_numpy(h)
    for low in range(0, n, rows_at_once):
        block = slice(low, min(low + rows_at_once, n))
        rows = state[: block.stop - low]
        cells.gather(
            mesh.rows[block], source.h, source.units, source.a, source.b, source.share, source.four, source.weight, rows
        )
        step.into(torch.from_numpy(rows), out[block])
        cells.signs(h[block], step.units, tau, mesh.kappa[block], positive[block], negative[block], largest, reach)
    # A unit that is off at all vertices is exactly zero after the ReLU.
    passed = error.numpy().copy()
    passed[: step.units][largest[: step.units] < -tau] = 0.0
    return h, positive, negative, tau, reach, np.maximum(largest, 0.0), passed


@torch.no_grad()
def _affine_maps(program: Program, slice_: Tensor, mesh: _Mesh) -> tuple[np.ndarray, np.ndarray]:
    """y = c + s g + t h on each cell, (C, 3, m), and a bound on the errors of each output, (m,).

    The three coefficients go through the layers like values, each unit on or off as it is in the cell. A block of
    cells needs at every layer only the cells it lies in, which are consecutive.
    """
    count = len(mesh.starts) - 1
    ancestors = [np.arange(count)]
    for parent in reversed(mesh.parents):
        ancestors.append(parent[ancestors[-1]])
    ancestors.reverse()  # ancestors[k]: the cell before step k that each cell lies in
    maps = np.empty((count, 3, program.steps[-1].width))
    worst = torch.zeros(program.steps[-1].width, dtype=torch.float64)
    bits = np.arange(64, dtype=np.uint64)
    block = max(1, (1 << 24) // (3 * max(program.widths)))
    for low in range(0, count, block):
        high = min(low + block, count)
        state, error, begin = slice_[None], torch.zeros(slice_.shape[1], dtype=torch.float64), 0
        for k, step in enumerate(program.steps):
            error = rounding(step, state.abs().amax((0, 1)), error)
            zero = step.apply(torch.zeros(1, state.shape[2], dtype=torch.float64))
            state = step.apply(state.flatten(0, 1)).reshape(len(state), 3, step.width)
            state[:, 1:] -= zero
            error = error + zero[0].abs()  # what was added was subtracted again
            if k == len(program.steps) - 1:
                break
            chain = ancestors[k + 1][low:high]
            here = np.arange(chain[0], chain[-1] + 1)
            state = state[torch.from_numpy(mesh.parents[k][here] - begin)]
            on = ((mesh.masks[k][here][:, :, None] >> bits) & np.uint64(1)).reshape(len(here), -1)[:, : step.units]
            state[:, :, : step.units] *= torch.from_numpy(on.astype(np.float64))[:, None]
            begin = int(chain[0])
        maps[low:high] = state.numpy()
        worst = torch.maximum(worst, error)
    return maps, TOLERANCE * UNIT * worst.numpy()


def _distinct(rows: np.ndarray, tolerance: np.ndarray) -> int:
    """How many rows (n, k) differ by more than the tolerance (k,) in some column."""
    scaled = rows / np.maximum(tolerance, np.finfo(np.float64).tiny)
    weight = np.random.default_rng(0).uniform(1, 2, rows.shape[1])  # any fixed weights: equal rows have near keys
    key = scaled @ weight
    slack = float(np.sum(weight)) + 4 * UNIT * rows.shape[1] * float(np.max(np.abs(scaled) @ weight))
    order = np.argsort(key)
    count = 0
    for left in np.split(order, np.flatnonzero(np.diff(key[order]) > slack) + 1):
        while len(left):
            left = left[(np.abs(rows[left] - rows[left[0]]) > tolerance).any(1)]
            count += 1
    return count
