"""One step of a program cuts a mesh (mesh.py) along the zeros of its units, and every cut is checked.

V vertices, C cells, D columns of the state after the layer, words = ceil(units / 64).
"""

import numpy as np
import torch

from skipform.errors import SkipformError
from skipform.measure.chords import cut_edges, find_chords
from skipform.measure.faces import FinerCells, Scratch, areas, cut_cells
from skipform.measure.meetings import Cell, Meetings, count_cells
from skipform.measure.mesh import NOT_CONVEX, NOT_PLANAR, NOT_UNIQUE, Cells, Layer, Mesh, Source, Vertices
from skipform.measure.program import TOLERANCE, UNIT, Program, mapping, rounding
from skipform.measure.states import gather, pack_signs

CELL_BYTES = 400  # of memory for a cell with its share of vertices and edges, and what one cut makes from it
REMEDY = ": the slice is beyond double precision here (shift the box a little)"

_PARTS = 4  # in which the cells of one thread are counted: not all parts take the same time
_BLOCK = 1 << 20  # numbers in a block of states: 8 MiB stay in the cache from the product to the packing of signs
_FAILURES = {
    NOT_CONVEX: "a unit does not change sign twice around",
    NOT_PLANAR: "chords do not close in",
    NOT_UNIQUE: "a pattern repeats in",
}


def count_cut(program: Program, mesh: Mesh, threads: int = 1) -> int:
    """How many cells the units of the mesh's step cut it into. Every cell is counted by itself, from the same values,
    so that the number of threads changes nothing."""
    layer, _, _ = _evaluate(program, mesh, threads)
    crossings, edge_points, new_kappa, _ = cut_edges(mesh.cells.ends, mesh.vertices, layer, mesh.extent)
    kappa = np.concatenate([mesh.vertices.kappa, new_kappa])

    def count(low: int, high: int) -> tuple[int, int, int]:
        """What find_chords reports about the cells low, ..., high - 1, about which of them, and how many they make."""
        cells = mesh.cells._replace(starts=mesh.cells.starts[low : high + 1])
        status, cell, chords = find_chords(cells, layer, crossings)
        if status in _FAILURES:
            return status, low + cell, 0
        scratch = Cell.empty(chords), Meetings.empty(chords)
        return status, cell, int(count_cells(cells, layer, crossings.first, edge_points, kappa, chords, *scratch))

    parts = _PARTS * threads if threads > 1 else 1
    bounds = np.unique(np.linspace(0, len(mesh), parts + 1).astype(int)).tolist()
    with mapping(threads) as mapped:
        counts = list(mapped(count, bounds[:-1], bounds[1:]))
    for status, cell, _ in counts:
        _refuse(program, mesh, status, cell)
    return sum(made for *_, made in counts)


def cut(program: Program, mesh: Mesh, memory: int, *, masks: bool, threads: int = 1) -> Mesh:
    """The mesh cut by the units of its step. masks: record which units are positive in every cell.

    Raises SkipformError if the cells may need more than `memory` bytes, or if a check shows that double precision does
    not suffice.
    """
    layer, size, error = _evaluate(program, mesh, threads)
    old, step = mesh.vertices, program.steps[mesh.k]
    crossings, edge_points, new_kappa, ends = cut_edges(mesh.cells.ends, old, layer, mesh.extent)
    status, cell, chords = find_chords(mesh.cells, layer, crossings)
    _refuse(program, mesh, status, cell)
    most = len(mesh) + len(chords.chord) + int(chords.pairs.sum())  # fewer where chords or crossings coincide
    if most * CELL_BYTES > memory:
        where, needed = f"layer {mesh.k + 1} of {len(program.steps) - 1}", most * CELL_BYTES / 2**30
        raise SkipformError(
            f"plane: {most} cells at {where} need {needed:.3g} GiB; {memory / 2**30:.3g} GiB is accepted "
            "(a smaller box, or a larger memory=)"
        )
    a, b, share = old.xy[edge_points.a], old.xy[edge_points.b], edge_points.share[:, None]
    vertices = Vertices(np.concatenate([old.xy, a + share * (b - a)]), np.concatenate([old.kappa, new_kappa]))
    words = layer.positive.shape[1] if masks else 0
    made = FinerCells.empty(mesh.cells, edge_points, chords, words)
    status, cell, written = cut_cells(
        mesh.cells,
        layer,
        crossings.first,
        edge_points,
        chords,
        vertices,
        mesh.extent,
        Scratch.empty(chords, words),
        made,
    )
    _refuse(program, mesh, status, cell)
    made = made.trim(written)
    inner_xy = (old.xy[made.inner.four] * made.inner.weight[:, :, None]).sum(1)
    xy, kappa = np.concatenate([vertices.xy, inner_xy]), np.concatenate([vertices.kappa, made.kappa])
    finer = Mesh(
        k=mesh.k + 1,
        extent=mesh.extent,
        cells=Cells(np.concatenate([ends, made.segments]), made.starts, made.refs),
        vertices=Vertices(xy, kappa),
        source=Source(layer.h, step.units, edge_points, made.inner),
        rows=np.arange(len(xy)),
        size=size,
        error=error,
        parents=(*mesh.parents, made.parent) if masks else (),
        masks=(*mesh.masks, made.masks) if masks else (),
    )
    _check(mesh, finer)
    return finer


def _refuse(program: Program, mesh: Mesh, status: int, cell: int) -> None:
    """Raise the error for what a kernel found about a cell, unless that is OK."""
    if status in _FAILURES:
        where = f"layer {mesh.k + 1} of {len(program.steps) - 1}"
        raise SkipformError(f"plane: {where}: {_FAILURES[status]} cell {cell}{REMEDY}")


def _check(mesh: Mesh, finer: Mesh) -> None:
    """Raise SkipformError unless a cut has kept V - E + C and the total area, and left no cell inside out.

    A vertex is off by at most 64 u kappa / 4 of the extent (line.py), a cell's area by that times its perimeter.
    """
    before, after = (len(m.vertices.xy) - len(m.cells.ends) + len(m) for m in (mesh, finer))
    if before != after:
        raise SkipformError(f"plane: layer {finer.k}: V - E + C went from {before} to {after}{REMEDY}")
    old, new = areas(mesh.cells, mesh.vertices.xy), areas(finer.cells, finer.vertices.xy)
    off = TOLERANCE * UNIT * finer.vertices.kappa.max() * mesh.extent**2
    if abs(old.sum() - new.sum()) > off or new.min() < -off:
        raise SkipformError(
            f"plane: layer {finer.k}: areas sum to {new.sum()} of {old.sum()}, the least is {new.min():.1e}{REMEDY}"
        )


def _evaluate(program: Program, mesh: Mesh, threads: int) -> tuple[Layer, torch.Tensor, torch.Tensor]:
    """The step at all vertices, and for each column after the ReLUs its largest absolute value and its e, (D,)."""
    step, source, n = program.steps[mesh.k], mesh.source, len(mesh.rows)
    error = rounding(step, mesh.size, mesh.error)
    tau = TOLERANCE * UNIT * error[: step.units].numpy()
    words = (step.units + 63) // 64
    h = np.empty((n, step.width))
    positive, negative = np.empty((n, words), np.uint64), np.empty((n, words), np.uint64)
    rows_at_once = max(16, _BLOCK // max(source.h.shape[1], step.width))
    out = torch.from_numpy(h)

    @torch.no_grad()  # which holds in the thread that sets it
    def evaluate(thread: int) -> tuple[np.ndarray, np.ndarray]:
        """Every threads-th block, from block `thread` on; the largest of each column, and the reach of each unit."""
        largest = np.concatenate([np.full(step.units, -np.inf), np.zeros(step.width - step.units)])
        reach, state = np.zeros(step.units), np.empty((min(n, rows_at_once), source.h.shape[1]))
        for low in range(thread * rows_at_once, n, threads * rows_at_once):
            block = slice(low, min(low + rows_at_once, n))
            rows, kappa = state[: block.stop - low], mesh.vertices.kappa[block]
            gather(mesh.rows[block], source.h, source.units, source.edge_points, source.inner_points, rows)
            step.into(torch.from_numpy(rows), out[block])
            pack_signs(h[block], step.units, tau, kappa, positive[block], negative[block], largest, reach)
        return largest, reach

    with mapping(threads) as mapped:
        largest, reach = (np.maximum.reduce(parts) for parts in zip(*mapped(evaluate, range(threads)), strict=True))
    # A unit that is off at all vertices is exactly zero after the ReLU.
    error[: step.units][torch.from_numpy(largest[: step.units] < -tau)] = 0.0
    return Layer(h, positive, negative, tau, reach), torch.from_numpy(largest).clamp(min=0.0), error
