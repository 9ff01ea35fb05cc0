"""Exact linear regions on a segment, for any piecewise-linear net and inputs of any size.

The values of all coordinates still in use are carried at all break points so far, with one batched product a layer
(Sotoudeh & Thakur 2019, ExactLine). A ReLU cuts an interval where it has strict opposite signs at the two ends; between
two break points everything computed so far is affine, so the state at a new one is the mean of its neighbours' states.

Tolerances. Signs are three-way, zero meaning within the rounding error of program.py times the point's `kappa`. A new
point is where h_a + s (h_b - h_a) = 0; an error tau in h moves s by tau / |h_b - h_a|. Two cuts are one point when
these intervals overlap (coincident units). Where the point is off, a later unit is off by its slope times that. Taking
every unit to climb at most four times its largest value over the segment, that is 4 max |h| len / |h_b - h_a| times its
own error: what kappa adds to the 1 it starts with.

n points, D columns of the state, m outputs.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from skipform.errors import SkipformError
from skipform.measure.program import TOLERANCE, UNIT, Program, Step, checked_threads, mapping, points, rounding
from skipform.theory.network import CanonicalNetwork

SLOPE = 4.0
KAPPA_LIMIT = 1e5  # bounds kappa where only the neighbours locate a point, so that it does not hide other cuts
_BLOCK = 1 << 22  # numbers in one block of states: 32 MiB, and as much again for what is computed from it


@dataclass(frozen=True, eq=False)
class LineRegions:
    """The regions of t -> f(a + t (b - a)), t in [0, 1]."""

    count: int  # activation regions: maximal intervals on which no ReLU changes its strict sign
    pieces: int  # maximal intervals with one affine map
    breakpoints: np.ndarray = field(repr=False)  # (count - 1,) where activation regions meet, ascending, in (0, 1)
    bends: np.ndarray = field(repr=False)  # (pieces - 1,) the break points where the affine map changes


@torch.no_grad()
def line(
    f: nn.Module | CanonicalNetwork | Program,
    a: Tensor,
    b: Tensor,
    *,
    threads: int = 1,
    progress: Callable[[float], object] | None = None,
) -> LineRegions:
    """The exact regions of f on the segment from a to b, two inputs of the net without a batch dimension.

    f is a canonical network, a Program or a torch module in eval mode, which is copied and promoted to float64.
    `progress`, if given, is called with the share of the segment that is done. Memory is a few blocks of 32 MiB for
    each of the `threads`, whatever the number of regions, plus y at every break point. The numbers do not depend on
    the threads; torch's own threads share out a single block already, so more are for nets whose blocks are small.

    Raises SkipformError for end points that do not fit and where values leave the range of float64 (program.py), and
    UnsupportedOperation for a net that is not piecewise linear.
    """
    a, b = points("line", a=a, b=b)
    if a.shape != b.shape:
        raise SkipformError(
            f"line: end points of shape {tuple(a.shape)} and {tuple(b.shape)}; the same shape is accepted"
        )
    return line_of(Program.of(f, a), torch.stack([a, b]).flatten(1), progress, threads)


def line_of(
    program: Program, ends: Tensor, progress: Callable[[float], object] | None = None, threads: int = 1
) -> LineRegions:
    """The regions of a program on the segment between two flat inputs, ends (2, d)."""
    t, y, error = _march(program, ends, progress, checked_threads("line", threads))
    bends = _bends(program, ends, t, y, TOLERANCE * UNIT * error)
    return LineRegions(len(t) - 1, int(bends.sum()) + 1, t[1:-1], t[1:-1][bends])


@dataclass(frozen=True, eq=False)
class _Block:
    """A part of the segment before step k of a program."""

    k: int
    t: Tensor  # (n,) break points so far, with both ends
    kappa: Tensor  # (n,)
    state: Tensor  # (n, D)
    error: Tensor  # (D,) the e of each column

    def parts(self, rows: int) -> list["_Block"]:
        """Blocks of at most `rows` points from right to left. Neighbours share their end point."""
        cuts = [slice(i, i + rows) for i in reversed(range(0, len(self.t) - 1, rows - 1))]
        return [_Block(self.k, self.t[cut], self.kappa[cut], self.state[cut], self.error) for cut in cuts]

    def after(self, program: Program) -> "_Block":
        """The block after its step."""
        step, last = program.steps[self.k], self.k == len(program.steps) - 1
        error = rounding(step, torch.maximum(self.state.amax(0), -self.state.amin(0)), self.error)
        state = step.apply(self.state)
        if last:
            return _Block(self.k + 1, self.t, self.kappa, state, error)
        t, kappa, state, on = _cut(step, self.t, self.kappa, state, error)
        # A unit that is off on the whole block is exactly zero after the ReLU.
        error[: step.units] *= on
        return _Block(self.k + 1, t, kappa, state, error)


def _march(
    program: Program, ends: Tensor, progress: Callable[[float], object] | None, threads: int
) -> tuple[np.ndarray, Tensor, Tensor]:
    """Break points with both ends (n,), y (n, m) there, and the largest e of each output (m,).

    How the segment is cut into blocks depends on their size alone, so that the numbers are the same for any number of
    threads. The leftmost blocks are processed first.
    """
    both, exact = torch.ones(2, dtype=torch.float64), torch.zeros(ends.shape[1], dtype=torch.float64)
    blocks = [_Block(0, torch.tensor([0.0, 1.0], dtype=torch.float64), both, ends, exact)]
    done: list[_Block] = []

    @torch.no_grad()  # which holds in the thread that sets it
    def finer(block: _Block) -> list[_Block]:
        rows = max(2, _BLOCK // max(block.state.shape[1], program.steps[block.k].width))
        return block.parts(rows) if len(block.t) > rows else [block.after(program)]

    with mapping(threads) as mapped:
        while blocks:
            batch = [blocks.pop() for _ in range(min(threads, len(blocks)))]
            made = [block for parts in reversed([*mapped(finer, batch)]) for block in parts]
            finished = [block for block in made if block.k == len(program.steps)]
            blocks += [block for block in made if block.k < len(program.steps)]
            done += finished
            if progress is not None and finished:
                progress(1.0 - sum(float(block.t[-1] - block.t[0]) for block in blocks))
    done.sort(key=lambda block: float(block.t[0]))
    shared = [slice(1 if i else 0, None) for i in range(len(done))]
    t = torch.cat([block.t[own] for block, own in zip(done, shared, strict=True)])
    y = torch.cat([block.state[own] for block, own in zip(done, shared, strict=True)])
    return t.numpy(), y, torch.stack([block.error for block in done]).amax(0)


def _cut(step: Step, t: Tensor, kappa: Tensor, state: Tensor, error: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Insert the zeros of the step's units and rectify.

    Returns t, kappa and the state at the old and new points, and which units are on or zero at some point.
    """
    h = state[:, : step.units]
    tau = TOLERANCE * UNIT * error[: step.units]
    threshold = kappa[:, None] * tau
    positive, negative = h > threshold, h < threshold.neg_()
    on = ~negative.all(0)
    where, unit = ((positive[:-1] & negative[1:]) | (negative[:-1] & positive[1:])).nonzero(as_tuple=True)
    if len(where) == 0:
        h.relu_()  # nothing else reads the state
        return t, kappa, state, on
    left, rise = h[where, unit], h[where + 1, unit] - h[where, unit]
    share = -left / rise
    blur = tau[unit] * torch.maximum(kappa[where], kappa[where + 1]) / rise.abs()

    order = torch.from_numpy(np.lexsort((share.numpy(), where.numpy())))
    where, unit, share, blur, rise = (v[order] for v in (where, unit, share, blur, rise))
    fresh = torch.ones(len(where), dtype=torch.bool)
    fresh[1:] = (where[1:] != where[:-1]) | (share[1:] - share[:-1] > blur[1:] + blur[:-1])
    point = fresh.cumsum(0) - 1  # which new point each cut belongs to
    # Coincident cuts are one point, placed by the least uncertain of them: the first when sorted by blur.
    chosen = torch.from_numpy(np.lexsort((blur.numpy(), point.numpy())))[fresh.nonzero()[:, 0]]
    i, s, size = where[chosen], share[chosen], h[:, unit[chosen]].abs().amax(0)
    length = t[i + 1] - t[i]

    mean = torch.lerp(state[i], state[i + 1], s[:, None])
    mean[point, unit] = 0.0  # the units that cut here are zero here
    total = len(t) + len(i)
    at_new = i + 1 + torch.arange(len(i))
    at_old = torch.ones(total, dtype=torch.bool).index_fill_(0, at_new, False).nonzero()[:, 0]

    def merged(old: Tensor, new: Tensor) -> Tensor:
        return (
            torch.empty(total, *old.shape[1:], dtype=old.dtype).index_copy_(0, at_old, old).index_copy_(0, at_new, new)
        )

    spread = torch.lerp(kappa[i], kappa[i + 1], s) + SLOPE * size * length / rise[chosen].abs()
    finer = merged(state, mean)
    finer[:, : step.units].relu_()
    return merged(t, torch.lerp(t[i], t[i + 1], s)), merged(kappa, spread.clamp(max=KAPPA_LIMIT)), finer, on


def _bends(program: Program, ends: Tensor, t: np.ndarray, y: Tensor, tolerance: Tensor) -> np.ndarray:
    """At which inner break points the affine map changes, (n - 2,).

    Three values that differ from a straight line by more than their errors prove a change. (A break point may be
    misplaced, but the values are those at the point where it was placed.) Where they lie on a line the intervals may
    just be short, so there the slopes on both sides are compared, which are computed inside the intervals.
    """
    if len(t) == 2:
        return np.zeros(0, dtype=bool)
    at = torch.from_numpy(t)[:, None]
    share = (at[1:-1] - at[:-2]) / (at[2:] - at[:-2])
    off = (y[1:-1] - torch.lerp(y[:-2], y[2:], share)).abs()
    bends = (off > 3 * tolerance).any(1).numpy()
    straight = np.flatnonzero(~bends)
    middles = np.unique(np.concatenate([straight, straight + 1]))  # interval i lies between break points i and i + 1
    direction = (ends[1] - ends[0])[None]
    slope = torch.zeros(len(t) - 1, y.shape[1], dtype=torch.float64)
    error = torch.zeros(y.shape[1], dtype=torch.float64)
    rows = max(1, _BLOCK // max(2 * max(program.widths), 1))
    for start in range(0, len(middles), rows):
        block = middles[start : start + rows]
        middle = torch.from_numpy((t[block] + t[block + 1]) / 2)[:, None]
        inside, bound = program.slopes(torch.lerp(ends[:1], ends[1:], middle), direction)
        slope[block] = inside[:, 0]
        error = torch.maximum(error, bound)
    bends[straight] = ((slope[straight + 1] - slope[straight]).abs() > 2 * error).any(1).numpy()
    return bends
