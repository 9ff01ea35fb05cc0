"""Exact linear regions on a segment, for any piecewise-linear net and inputs of any size.

The values of all coordinates still in use are carried at all break points so far, with one batched product a layer
(Sotoudeh & Thakur 2019, ExactLine). A ReLU cuts an interval where it has strict opposite signs at the two ends; between
two break points everything computed so far is affine, so the state at a new one is the mean of its neighbours' states.

On a CPU the convolutions at the start of a net are taken by stretch.py, which computes each value only at the points
where it may bend; there are the same points, up to rounding.

Tolerances. Signs are three-way, zero meaning within the rounding error of program.py times the point's `kappa`, which
starts with 1 and grows where a point is located badly (cuts.py).

n points, D columns of the state, m outputs.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from skipform.errors import SkipformError
from skipform.measure.cuts import Cuts
from skipform.measure.program import (
    TOLERANCE,
    UNIT,
    Program,
    Segment,
    Step,
    checked_device,
    checked_threads,
    mapping,
    points,
    rounding,
)
from skipform.theory.network import CanonicalNetwork

if TYPE_CHECKING:
    from skipform.measure.local import LocalStep
    from skipform.measure.stretch import Stretch

_BLOCK = 1 << 22  # numbers in one block of states: 32 MiB, and as much again for what is computed from it
_BLOCK_ON_GPU = 1 << 27


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
    device: torch.device | str | None = None,
    progress: Callable[[float], object] | None = None,
) -> LineRegions:
    """The exact regions of f on the segment from a to b, two inputs of the net without a batch dimension, in float64,
    on the device (the CPU).

    f is a canonical network, a Program or a torch module in eval mode, which is copied and promoted to float64.
    `progress`, if given, is called with the share of the segment that is done. Memory is a few blocks of 32 MiB (on a
    GPU of 1 GiB) for each of the `threads`, whatever the number of regions, plus y at every break point. The numbers do
    not depend on the threads; torch's own threads share out a single block already, so more are for nets whose blocks
    are small.

    Raises SkipformError for end points that do not fit and where values leave the range of float64 (program.py), and
    UnsupportedOperation for a net that is not piecewise linear.
    """
    device = checked_device("line", device)
    a, b = points("line", a=a, b=b)
    if a.shape != b.shape:
        raise SkipformError(
            f"line: end points of shape {tuple(a.shape)} and {tuple(b.shape)}; the same shape is accepted"
        )
    threads = checked_threads("line", threads)
    return line_of(Program.of(f, a).to(device), torch.stack([a, b]).flatten(1).to(device), progress, threads)


def line_of(
    program: Program,
    ends: Tensor,
    progress: Callable[[float], object] | None = None,
    threads: int = 1,
    *,
    dense: bool = False,
) -> LineRegions:
    """The regions of a program on the segment between two flat inputs, ends (2, d), on the device where they lie.
    dense: compute every value at every point, as on a GPU."""
    t, kappa, y, error = _march(program, ends, progress, threads, dense or ends.device.type != "cpu")
    bends = _bends(program, ends, t, kappa, y, TOLERANCE * UNIT * error)
    places = t[1:-1].cpu().numpy()
    return LineRegions(len(t) - 1, int(bends.sum()) + 1, places, places[bends])


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
    program: Program, ends: Tensor, progress: Callable[[float], object] | None, threads: int, dense: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Break points with both ends (n,), their kappa, y (n, m) there, and the largest e of each output (m,).

    How the segment is cut into blocks depends on their size alone, so that the numbers are the same for any number of
    threads. The leftmost blocks are processed first.
    """
    local = [] if dense else _local_steps(program)
    if local:
        from skipform.measure.stretch import Stretch

        blocks: list[Any] = [Stretch.of(program, ends)]
    else:
        t = ends.new_tensor([0.0, 1.0])
        blocks = [_Block(0, t, torch.ones_like(t), ends, torch.zeros_like(ends[0]))]
    done: list[_Block] = []
    numbers = _BLOCK if ends.device.type == "cpu" else _BLOCK_ON_GPU

    @torch.no_grad()  # which holds in the thread that sets it
    def finer(block: "_Block | Stretch") -> "list[_Block] | list[Stretch]":
        rows = max(2, numbers // max(len(block.error), program.steps[block.k].width))
        if isinstance(block, _Block):
            return block.parts(rows) if len(block.t) > rows else [block.after(program)]
        if block.k == len(local):
            states = block.states(rows)
            return [_Block(block.k, t, kappa, state, block.error) for t, kappa, state in states]
        parts = block.parts(local[block.k])
        return parts if len(parts) > 1 else [block.after(program, local[block.k])]

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
    kappa = torch.cat([block.kappa[own] for block, own in zip(done, shared, strict=True)])
    y = torch.cat([block.state[own] for block, own in zip(done, shared, strict=True)])
    return t, kappa, y, torch.stack([block.error for block in done]).amax(0)


def _local_steps(program: Program) -> "list[LocalStep]":
    """The steps that stretch.py takes: none of a net that does not begin with a convolution, which needs no numba."""
    if not isinstance(program.steps[0].apply, Segment):
        return []
    from skipform.measure.local import local_steps

    return local_steps(program)


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
    cutting, which = unit.unique(return_inverse=True)
    largest = h[:, cutting].abs().amax(0)[which]
    cuts = Cuts.of(t, kappa, where, unit, left, rise, tau[unit], largest)
    mean = torch.lerp(state[cuts.interval], state[cuts.interval + 1], cuts.share[:, None])
    mean[cuts.point, cuts.unit] = 0.0  # the units that cut here are zero here
    at_old, at_new = cuts.places(len(t))
    total = len(at_old) + len(at_new)

    def merged(old: Tensor, new: Tensor) -> Tensor:
        return old.new_empty(total, *old.shape[1:]).index_copy_(0, at_old, old).index_copy_(0, at_new, new)

    finer = merged(state, mean)
    finer[:, : step.units].relu_()
    return merged(t, cuts.t), merged(kappa, cuts.kappa), finer, on


def _bends(program: Program, ends: Tensor, t: Tensor, kappa: Tensor, y: Tensor, tolerance: Tensor) -> np.ndarray:
    """At which inner break points the affine map changes, (n - 2,).

    Three values that differ from a straight line by more than their errors prove a change. Where a break point is
    misplaced, a unit that is zero there by definition is not, by up to kappa times its error; and the errors of units
    that are zero there together may add up, to sqrt(units) times what the model of rounding expects. Where the values
    lie on a line the intervals may just be short, so there the slopes on both sides are compared, which are computed
    inside the intervals.
    """
    if len(t) == 2:
        return np.zeros(0, dtype=bool)
    at = t[:, None]
    share = (at[1:-1] - at[:-2]) / (at[2:] - at[:-2])
    off = (y[1:-1] - torch.lerp(y[:-2], y[2:], share)).abs()
    worst = torch.maximum(kappa[1:-1], torch.maximum(kappa[:-2], kappa[2:]))[:, None]
    together = max(step.units for step in program.steps) ** 0.5
    bends = (off > 3 * together * worst * tolerance).any(1)
    straight = (~bends).nonzero()[:, 0]
    middles = torch.cat([straight, straight + 1]).unique()  # interval i lies between break points i and i + 1
    direction = (ends[1] - ends[0])[None]
    slope = y.new_zeros(len(t) - 1, y.shape[1])
    error = torch.zeros_like(tolerance)
    rows = max(1, _BLOCK // max(2 * max(program.widths), 1))
    for block in middles.split(rows) if len(middles) else ():
        middle = (at[block] + at[block + 1]) / 2
        inside, bound = program.slopes(torch.lerp(ends[:1], ends[1:], middle), direction)
        slope[block] = inside[:, 0]
        error = torch.maximum(error, bound)
    bends[straight] = ((slope[straight + 1] - slope[straight]).abs() > 2 * error).any(1)
    return bends.cpu().numpy()
