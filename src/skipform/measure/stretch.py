"""A part of a segment whose state is made of curves: each value is computed only at the points where it may bend.

It takes the local steps at the start of a program (local.py); line.py takes the others, and all steps on a GPU. Both
decide alike: a unit cuts an interval between two neighbouring points, of all, where it has strict opposite signs at the
two. A unit that changes sign between two of its own points, but is zero within its error at a point in between, gets
that point as one of its own.

n points, m cuts.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from skipform.measure.curves import Curve, evaluate_in, full, identity, union
from skipform.measure.cuts import Cuts
from skipform.measure.local import LocalStep
from skipform.measure.program import TOLERANCE, UNIT, Program, Segment, rounding
from skipform.measure.windows import find_changes, find_largest

BLOCK = 1 << 22  # numbers in the windows of the curves that a step reads and makes


@dataclass(frozen=True, eq=False)
class Stretch:
    """A part of the segment before step k of a program."""

    k: int
    t: np.ndarray  # (n,) break points so far, with both ends
    kappa: np.ndarray  # (n,)
    curves: tuple[Curve, ...]
    error: Tensor  # (D,) the e of each column of the state

    @staticmethod
    def of(program: Program, ends: Tensor) -> "Stretch":
        """All of the segment between two flat inputs (2, d)."""
        segment = program.steps[0].apply
        assert isinstance(segment, Segment)
        c, h, w = segment.shapes[segment.live[0]]
        values = ends.view(2, c, h, w).permute(0, 2, 3, 1).reshape(-1).numpy()
        curve = Curve((c, h, w), np.array([full((c, h, w))] * 2), np.array([0, c * h * w]), values)
        return Stretch(0, np.array([0.0, 1.0]), np.ones(2), (curve,), torch.zeros(ends.shape[1], dtype=torch.float64))

    def parts(self, step: LocalStep) -> list["Stretch"]:
        """Stretches, from right to left, of which the step makes at most BLOCK numbers, if they have enough points."""
        sizes = np.cumsum(step.sizes(self.curves)[1:-1])  # both ends are whole in every part
        count = -(-int(sizes[-1]) // BLOCK) if len(sizes) else 1
        if count <= 1:
            return [self]
        cuts = 1 + np.searchsorted(sizes, sizes[-1] / count * np.arange(1, count))
        return self.split(np.unique(cuts.clip(1, len(self.t) - 2)))

    def split(self, cuts: np.ndarray) -> list["Stretch"]:
        """The stretches between these inner points, from right to left. Neighbours share their end point."""
        ends = np.array([0, *cuts, len(self.t) - 1])
        whole = [self._whole_at(curve, cuts) for curve in self.curves]
        parts = []
        for low, high in zip(ends[-2::-1], ends[:0:-1], strict=True):
            own = slice(low, high + 1)
            curves = tuple(Curve(c.shape, c.box[own], c.start[own], c.values) for c in whole)
            parts.append(Stretch(self.k, self.t[own], self.kappa[own], curves, self.error))
        return parts

    def _whole_at(self, curve: Curve, points: np.ndarray) -> Curve:
        """The curve with all entries as its own at these points."""
        if len(points) == 0:
            return curve
        box = np.zeros_like(curve.box)
        box[points] = full(curve.shape)
        return _extended(curve, evaluate_in(identity(0, curve.shape), [curve], self.t, box), points)

    def states(self, rows: int) -> list[tuple[Tensor, Tensor, Tensor]]:
        """t, kappa and the state (n, D) of parts of at most `rows` points, from right to left."""
        parts = []
        for part in self.split(np.arange(rows - 1, len(self.t) - 1, rows - 1)):
            columns = []
            for curve in part.curves:
                c, h, w = curve.shape
                box = np.tile(full(curve.shape), (len(part.t), 1))
                values = evaluate_in(identity(0, curve.shape), [curve], part.t, box).values
                columns.append(torch.from_numpy(values).view(-1, h, w, c).permute(0, 3, 1, 2).flatten(1))
            parts.append((torch.from_numpy(part.t), torch.from_numpy(part.kappa), torch.cat(columns, 1)))
        return parts

    def after(self, program: Program, local: LocalStep) -> "Stretch":
        """The stretch after its step."""
        step = program.steps[self.k]
        size = torch.cat([_planes(_largest(curve, self.t), curve) for curve in self.curves])
        error = rounding(step, size, self.error)
        h, *carried = local(self.curves, self.t)
        c, rows, columns = h.shape
        tau = TOLERANCE * UNIT * error[: step.units].view(c, rows, columns).permute(1, 2, 0).flatten().numpy()
        on, entry, before, after = _changes(h, self.t, self.kappa, tau)
        # A unit that is off on the whole stretch is exactly zero after the ReLU.
        error[: step.units] *= _planes(on, h)
        if len(entry) == 0:
            h = replace(h, values=np.maximum(h.values, 0.0))
            return Stretch(self.k + 1, self.t, self.kappa, (h, *carried), error)

        va, vb = h.values[h.index(entry, before)], h.values[h.index(entry, after)]
        ta, tb = self.t[before], self.t[after]
        zero = ta + va / (va - vb) * (tb - ta)
        i = (np.searchsorted(self.t, zero, "right") - 1).clip(before, after - 1)
        left = np.where(i == before, va, _between(va, vb, ta, tb, self.t[i]))
        right = np.where(i + 1 == after, vb, _between(va, vb, ta, tb, self.t[i + 1]))
        strict_left = np.sign(va) * left > self.kappa[i] * tau[entry]
        strict_right = np.sign(vb) * right > self.kappa[i + 1] * tau[entry]
        cut = strict_left & strict_right
        # Points at which a unit is zero that bends there, and that were not its own so far.
        touched = np.concatenate([i[~strict_left & (i > before)], i[~strict_right & (i + 1 < after)] + 1])
        touching = np.concatenate([entry[~strict_left & (i > before)], entry[~strict_right & (i + 1 < after)]])

        t, kappa = torch.from_numpy(self.t), torch.from_numpy(self.kappa)
        where, unit, rise = i[cut], entry[cut], (right - left)[cut]
        largest = _largest(h, self.t)[unit]
        given = (torch.from_numpy(v) for v in (where, unit, left[cut], rise, tau[unit], largest))
        cuts = Cuts.of(t, kappa, *given)
        old, new = (place.numpy() for place in cuts.places(len(t)))
        total = len(old) + len(new)
        all_t, all_kappa = np.empty(total), np.empty(total)
        all_t[old], all_t[new] = self.t, cuts.t.numpy()
        all_kappa[old], all_kappa[new] = self.kappa, cuts.kappa.numpy()

        h, *carried = (_spaced(curve, old, total) for curve in (h, *carried))
        point = np.concatenate([new[cuts.point.numpy()], old[touched]])
        unit = np.concatenate([cuts.unit.numpy(), touching])
        box = _around(h, point, unit)
        box[old[touched]] = union([box[old[touched]], h.box[old[touched]]])
        windows = evaluate_in(identity(0, h.shape), [h], all_t, box)
        zeros = windows.index(cuts.unit.numpy(), new[cuts.point.numpy()])
        windows.values[zeros] = 0.0  # the units that cut here are zero here
        h = _extended(h, windows, np.unique(point))
        np.maximum(h.values, 0.0, out=h.values)
        return Stretch(self.k + 1, all_t, all_kappa, (h, *carried), error)


def _extended(curve: Curve, windows: Curve, points: np.ndarray) -> Curve:
    """The curve with other windows at these points."""
    box, start = curve.box.copy(), curve.start.copy()
    box[points], start[points] = windows.box[points], windows.start[points] + len(curve.values)
    return Curve(curve.shape, box, start, np.concatenate([curve.values, windows.values]))


def _spaced(curve: Curve, old: np.ndarray, count: int) -> Curve:
    """The curve among `count` points, of which the old ones have its windows and the others none."""
    box, start = np.zeros((count, 4), np.int64), np.zeros(count, np.int64)
    box[old], start[old] = curve.box, curve.start
    return replace(curve, box=box, start=start)


def _around(curve: Curve, point: np.ndarray, entry: np.ndarray) -> np.ndarray:
    """For each of the curve's points the smallest box around the entries (m,) that are paired with it."""
    c, _, w = curve.shape
    y, x = np.divmod(entry // c, w)
    low, high = np.full((len(curve.box), 2), np.iinfo(np.int64).max), np.zeros((len(curve.box), 2), np.int64)
    np.minimum.at(low, point, np.stack([y, x], 1))
    np.maximum.at(high, point, np.stack([y, x], 1) + 1)
    low[high[:, 0] == 0] = 0
    return np.stack([low[:, 0], high[:, 0], low[:, 1], high[:, 1]], 1)


def _between(va: np.ndarray, vb: np.ndarray, ta: np.ndarray, tb: np.ndarray, t: np.ndarray) -> np.ndarray:
    """The value at t of what is va at ta and vb at tb."""
    gap = tb - ta
    between: np.ndarray = va + (t - ta) / np.where(gap > 0, gap, 1.0) * (vb - va)
    return between


def _planes(entries: np.ndarray, curve: Curve) -> Tensor:
    """The entries (y w + x) c + channel of a curve in the order of the state, channel after channel."""
    c, h, w = curve.shape
    return torch.from_numpy(entries).view(h, w, c).permute(2, 0, 1).flatten()


def _largest(curve: Curve, t: np.ndarray) -> np.ndarray:
    """The largest absolute value of each entry, (U,)."""
    largest = np.zeros(np.prod(curve.shape))
    find_largest(curve.pieces(t), largest)
    return largest


def _changes(
    h: Curve, t: np.ndarray, kappa: np.ndarray, tau: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Which entries are on or zero at some own point, (U,); and for each change of sign between two own points of an
    entry the entry and the points."""
    room, units = 1024, len(tau)
    while True:
        on, found = np.zeros(units, bool), np.empty((3, room), np.int64)
        count = find_changes(h.pieces(t), kappa, tau, on, np.zeros(units), np.zeros(units, np.int64), *found)
        if count <= room:
            return on, *found[:, :count]
        room = count
