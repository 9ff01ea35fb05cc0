"""Exact linear regions on a two-dimensional slice, for any piecewise-linear net and inputs of any size.

Layer by layer a mesh of convex cells on the slice is cut along the zeros of the layer's units (mesh.py says how, and
faces.py draws it). Every vertex carries the state of the net there: one batched product evaluates all of them, and
between vertices everything computed so far is affine, so the state of a new vertex is a mean of the states of old ones,
values carried by skips included. The cells after the last layer are counted without being built: K chords with I
crossings make 1 + K + I.

Three numbers, not to be confused. `count`: activation regions, maximal sets on which no ReLU changes its strict sign.
`pieces`: maximal connected open sets on which the output is one affine map. `maps`: distinct affine maps. Two nets
that compute the same function may differ in the first number, but not in the others.

Tolerances are those of line.py: three-way signs with the rounding error of program.py times the vertex's kappa;
crossings that are closer to each other than their own uncertainty are one.

C cells, m outputs.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scipy import sparse
from torch import Tensor, nn

from skipform.errors import SkipformError
from skipform.measure.mesh import Mesh, box_mesh
from skipform.measure.program import LARGEST, SMALLEST, TOLERANCE, UNIT, Program, checked_threads, points, rounding
from skipform.theory.network import CanonicalNetwork

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_SAMPLES = 33  # points on each of the two lines along which sign changes are counted before a plane is begun
_SAMPLED_FROM = 1 << 13  # nets with fewer ReLUs are not sampled
_BLOCK = 1 << 21  # numbers in a block of states: 16 MiB, which malloc keeps for the next block; from 32 MiB it does not


@dataclass(frozen=True, eq=False)
class PlaneRegions:
    """The regions of (s, t) -> f(origin + s u + t v) on a box. All but `count` is computed when it is first read."""

    count: int  # activation regions
    program: Program = field(repr=False)
    slice: Tensor = field(repr=False)  # (3, d): origin, u, v
    box: tuple[float, float, float, float]
    memory: int = field(repr=False)

    @cached_property
    def _mesh(self) -> Mesh:
        from skipform.measure import cutting

        widest = max(self.program.widths)
        needed = self.count * (2 * 8 * widest + cutting.CELL_BYTES)
        if needed > self.memory:
            raise SkipformError(
                f"plane: the polygons of {self.count} regions of a net {widest} wide need {needed / 2**30:.3g} GiB; "
                f"{self.memory / 2**30:.3g} GiB is accepted (a smaller box, or a larger memory=)"
            )
        mesh = box_mesh(self.slice, self.box)
        for _ in self.program.steps[:-1]:
            mesh = cutting.cut(self.program, mesh, self.memory, masks=True)
        if len(mesh) != self.count:
            raise SkipformError(f"plane: {len(mesh)} cells built where {self.count} were counted{cutting.REMEDY}")
        return mesh

    @cached_property
    def _coefficients(self) -> tuple[np.ndarray, np.ndarray]:
        """y = c + s g + t h of each region, (count, 3, m), and the error of each output, (m,)."""
        return _affine_maps(self.program, self.slice, self._mesh)

    @cached_property
    def labels(self) -> np.ndarray:
        """The piece that each activation region belongs to, (count,), numbered from 0."""
        ends, starts, refs = self._mesh.cells
        sides = np.full((len(ends), 2), -1)  # the cell on each side of an edge
        sides[refs >> 1, refs & 1] = np.repeat(np.arange(self.count), np.diff(starts))
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
        ends, starts, refs = self._mesh.cells
        corners = self._mesh.vertices.xy[ends[refs >> 1, refs & 1]]
        return np.split(corners, starts[1:-1])

    def areas(self) -> np.ndarray:
        """The area of each activation region in the (s, t) plane, (count,)."""
        from skipform.measure.faces import areas

        return np.asarray(areas(self._mesh.cells, self._mesh.vertices.xy))

    def affine_maps(self) -> np.ndarray:
        """c, g, h with y = c + s g + t h on each activation region, (count, 3, m)."""
        return self._coefficients[0]

    def plot(self, ax: "Axes | None" = None) -> "Axes":
        """Draw the activation regions into `ax`, by default that of a new figure, and return it. All regions of a piece
        have one shade; the shades say nothing else."""
        import matplotlib as mpl
        from matplotlib.collections import PolyCollection

        if ax is None:
            from matplotlib import pyplot

            ax = pyplot.subplots(figsize=(6, 6), layout="constrained")[1]
        # A low-discrepancy sequence of positions in one colour map, so that pieces differ in lightness too.
        shades = mpl.colormaps["cividis"]((0.5 + self.labels * 0.6180339887498949) % 1.0)
        ax.add_collection(PolyCollection(self.polygons(), facecolors=shades, edgecolors="black", linewidths=0.15))
        ax.set(xlim=self.box[:2], ylim=self.box[2:], xlabel="s", ylabel="t", aspect="equal")
        ax.set_title(f"{self.count:,} activation regions in {self.pieces:,} affine pieces (one shade each)")
        return ax


@torch.no_grad()
def plane(
    f: nn.Module | CanonicalNetwork | Program,
    origin: Tensor,
    u: Tensor,
    v: Tensor,
    box: tuple[float, float, float, float] = (-1.0, 1.0, -1.0, 1.0),
    *,
    memory: int = 4 << 30,
    limit: float = 2e10,
    threads: int = 1,
    progress: Callable[[float], object] | None = None,
) -> PlaneRegions:
    """The exact regions of f on {origin + s u + t v : s in box[:2], t in box[2:]}.

    origin, u, v: inputs of the net without a batch dimension; u and v may be dependent. f is a canonical network, a
    Program or a torch module in eval mode, which is copied and promoted to float64. Counting streams blocks of cells
    through the layers and stays within `memory` bytes; `progress`, if given, is called with the share of the box that
    is done. The count does not depend on the number of `threads`.

    Every cut is checked: the areas of the cells add up to that of the box, V - E + C is unchanged, patterns are unique.

    Raises SkipformError for a slice or box that does not fit, for a net of which two lines across the box predict
    more than `limit` ReLU values (regions times ReLUs) to evaluate, for cells that need more than the memory, and where
    double precision does not suffice; UnsupportedOperation for a net that is not piecewise linear.
    """
    origin, u, v = points("plane", origin=origin, u=u, v=v)
    if not origin.shape == u.shape == v.shape:
        shapes = ", ".join(str(tuple(point.shape)) for point in (origin, u, v))
        raise SkipformError(f"plane: origin, u, v of shapes {shapes}; the same shape is accepted")
    box = _sides(box)
    threads = checked_threads("plane", threads)
    program = Program.of(f, origin)
    slice_ = torch.stack([origin, u, v]).flatten(1)
    _check_limit(program, slice_, box, limit)
    return PlaneRegions(_count(program, slice_, box, memory, threads, progress), program, slice_, box, memory)


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


def _check_limit(program: Program, slice_: Tensor, box: tuple[float, float, float, float], limit: float) -> None:
    """Raise SkipformError if two lines across the box predict more than `limit` regions times ReLUs.

    If the cuts lay at random, and two segments across the box met n and n' of them on average, there would be about
    pi n n' / 4 regions (integral geometry: Crofton's formula, twice). n is estimated by the number of sign changes
    between neighbouring sample points, which is never too large.
    """
    relus = sum(step.units for step in program.steps)
    if relus < _SAMPLED_FROM:
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


def _count(
    program: Program,
    slice_: Tensor,
    box: tuple[float, float, float, float],
    memory: int,
    threads: int,
    progress: Callable[[float], object] | None,
) -> int:
    """The number of activation regions on the box."""
    from skipform.measure import cutting, faces  # these load numba, which takes a second

    last = len(program.steps) - 2
    if last < 0:
        return 1
    # Each layer holds one block of states while the layers above it work on parts of that block.
    rows = max(256, memory // (8 * max(program.widths) * (len(program.steps) + 1)))
    area = (box[1] - box[0]) * (box[3] - box[2])
    total, done = 0, 0.0
    meshes = [box_mesh(slice_, box)]
    while meshes:
        mesh = meshes.pop()
        if len(mesh.rows) > rows and len(mesh) > 1:
            meshes.extend(mesh.parts(rows))
        elif mesh.k < last:
            meshes.append(cutting.cut(program, mesh, memory, masks=False, threads=threads))
        else:
            total += cutting.count_cut(program, mesh, threads)
            if progress is not None:
                done += float(faces.areas(mesh.cells, mesh.vertices.xy).sum()) / area
                progress(min(done, 1.0))
    return total


@torch.no_grad()
def _affine_maps(program: Program, slice_: Tensor, mesh: Mesh) -> tuple[np.ndarray, np.ndarray]:
    """y = c + s g + t h on each cell, (C, 3, m), and a bound on the errors of each output, (m,).

    The three coefficients pass through the layers as values do, with every unit on or off as it is in the cell. A
    block of cells needs, at every layer, only the cells that hold it, and these are consecutive.
    """
    count = len(mesh)
    ancestors = [np.arange(count)]
    for parent in reversed(mesh.parents):
        ancestors.append(parent[ancestors[-1]])
    ancestors.reverse()  # ancestors[k]: for every cell, the cell before step k that holds it
    maps = np.empty((count, 3, program.steps[-1].width))
    worst = torch.zeros(program.steps[-1].width, dtype=torch.float64)
    block = max(1, _BLOCK // (3 * max(program.widths)))
    for low in range(0, count, block):
        high = min(low + block, count)
        state, error, begin = slice_[None], torch.zeros(slice_.shape[1], dtype=torch.float64), 0
        for k, step in enumerate(program.steps):
            error = rounding(step, state.abs().amax((0, 1)), error)
            zero = step.apply(torch.zeros(1, state.shape[2], dtype=torch.float64))
            state = step.apply(state.flatten(0, 1)).reshape(len(state), 3, step.width)
            state[:, 1:] -= zero
            error = error + zero[0].abs()  # the constant was added and subtracted again, which rounds
            if k == len(program.steps) - 1:
                break
            chain = ancestors[k + 1][low:high]
            here = np.arange(chain[0], chain[-1] + 1)
            state = state[torch.from_numpy(mesh.parents[k][here] - begin)]
            masks = mesh.masks[k][here].astype("<u8", copy=False).view(np.uint8)
            on = np.unpackbits(masks, axis=1, count=step.units, bitorder="little")
            state[:, :, : step.units] *= torch.from_numpy(on)[:, None]
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
