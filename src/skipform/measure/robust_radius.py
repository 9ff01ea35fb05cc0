"""The robust radius of a classifier at an input, by mixed-integer linear programming.

    radius = min { |x' - x|_inf : another class scores at x' at least as high as the class of x does }

over the inputs x' of a box. It lies above what linear bounds prove and below what gradients find; in between, one
program for each other class, over a box no larger than the nearest witness so far, has the distance as its objective.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from skipform.errors import SkipformError
from skipform.measure.highs import NODES, minimum
from skipform.measure.milp import encode
from skipform.measure.output_range import TOLERANCE, prepared
from skipform.measure.pooled import pooled
from skipform.measure.program import on_cpu
from skipform.measure.relaxation import Range, linear
from skipform.theory.affine import Affine
from skipform.theory.network import CanonicalNetwork, affine

HALVINGS = 8  # of the distance: for the radius that linear bounds prove, and for the one that gradients find
STEPS = 20  # of gradient descent within one distance
OUTWARDS = (0.0, 1e-9, 1e-8, 1e-7, 1e-6)  # how far beyond the solver's point its class is looked for, relative


@dataclass(frozen=True)
class RobustRadius:
    """label: the class of x. proved: at no x' nearer than this, up to the solver's tolerance, does another class score
    as high; inf if it does nowhere in the box. found: the distance of the witness, at which class `other` does, by f
    itself in float64; inf without one. relaxed: the part of `proved` that linear bounds alone give.
    switches: binary variables of the largest program; nodes and iterations: of the solver, over all programs, the same
    at every run that its time does not end. seconds: of the whole search."""

    label: int
    proved: float
    found: float
    witness: Tensor | None
    other: int | None
    relaxed: float
    switches: int
    nodes: int
    iterations: int
    seconds: float

    @property
    def is_exact(self) -> bool:
        """Whether what is proved is what was found, to output_range.TOLERANCE."""
        return self.proved == self.found or abs(self.proved - self.found) <= TOLERANCE * (1 + self.found)


@torch.no_grad()
def robust_radius(
    f: nn.Module | CanonicalNetwork,
    x: Tensor,
    lower: Tensor,
    upper: Tensor,
    *,
    maxima: Literal["relu", "native"] = "relu",
    time_limit: float = 60.0,
    nodes: int = NODES,
    memory: int = 4 * 2**30,
    check: bool = True,
) -> RobustRadius:
    """The robust radius at x, one input of f, in the box lower <= x' <= upper; all three are shaped alike.

    maxima: max pooling as ReLUs, each with a binary variable; or "native", with a binary variable for every entry of a
    window, for a Sequential whose MaxPool2d have neither padding nor dilation. Both give the same radius. time_limit:
    seconds of the solver; nodes: of branch and bound, for each class. When they are over, what is proved and found so
    far is returned.

    Raises SkipformError for a box that is not finite or does not hold x, for what `canonical` refuses, for a net of
    fewer than two outputs, and with "native" for another net.
    """
    at, low, high = (np.asarray(part.detach().cpu().double()).ravel() for part in (x, lower, upper))
    if (
        not x.shape == lower.shape == upper.shape
        or not (np.isfinite(low) & np.isfinite(high) & (low <= at) & (at <= high)).all()
    ):
        raise SkipformError("robust_radius: x, lower and upper of one shape, finite, lower <= x <= upper, are accepted")
    if not time_limit > 0 or nodes < 1:
        raise SkipformError(
            f"robust_radius: time_limit={time_limit}, nodes={nodes}; seconds above 0 and nodes from 1 are accepted"
        )
    network, evaluate = prepared(f, x, memory, check, "robust_radius")
    if network.out_features < 2:
        raise SkipformError("robust_radius: a net of one output; one with a score for each of two classes is accepted")
    native = None
    if maxima == "native":
        if isinstance(f, CanonicalNetwork):
            raise SkipformError("robust_radius: maxima='native' of a canonical network; a Sequential is accepted")
        native = pooled(on_cpu(f).double(), x.detach().cpu().double()[None], memory, check)
        network = native.relus
    search = _Search(network, evaluate, at, Range(low, high))
    start = time.monotonic()
    search.descend()
    others = sorted(search.leads, key=lambda j: search.leads[j])
    relaxed = search.relaxed()
    proved, switches, count, iterations = math.inf, 0, 0, 0
    for j in others:
        most = min(search.found, search.reach)
        box, row = search.box(most), search.row([j])
        margin = network.then(affine(row))
        ranges = linear(margin, box)
        if ranges[-1].low[0] > 0:
            proved = min(proved, search.found)  # of this class, up to the witness so far
            continue
        form = margin if native is None else replace(native, readout=row.compose(native.readout))
        inner = ranges[:-1] if native is None else native.ranges(box, ranges)
        encoding = encode(form, box, inner)
        lp = encoding.nearest(form.readout, at, min(relaxed, most), most)
        seconds = max(time_limit - (time.monotonic() - start), 1e-3)
        solved = minimum(lp, seconds, nodes=nodes, command="robust_radius")
        switches = max(switches, encoding.switches)
        count, iterations = count + solved.nodes, iterations + solved.iterations
        if solved.point is not None:
            end = form.readout.in_features
            search.outwards(solved.point[end - len(at) : end])
        proved = min(proved, search.found if math.isinf(solved.bound) else max(solved.bound, relaxed))
    proved = min(proved, search.found)
    witness = None if search.witness is None else torch.from_numpy(search.witness.copy()).reshape(x.shape)
    return RobustRadius(
        search.label, proved, search.found, witness, search.other, min(relaxed, proved),
        switches, count, iterations, time.monotonic() - start,
    )  # fmt: skip


class _Search:
    """The nearest witness so far. leads: other class -> the distance at which gradients have found it, inf if not."""

    def __init__(
        self, network: CanonicalNetwork, evaluate: Callable[[np.ndarray], np.ndarray], x: np.ndarray, domain: Range
    ) -> None:
        self.network, self.evaluate, self.x, self.domain = network, evaluate, x, domain
        self.label = int(evaluate(x[None])[0].argmax())
        self.leads = dict.fromkeys((j for j in range(network.out_features) if j != self.label), math.inf)
        self.reach = float(np.maximum(x - domain.low, domain.high - x).max())
        self.found = math.inf
        self.witness: np.ndarray | None = None
        self.other: int | None = None

    def box(self, distance: float) -> Range:
        """What of the domain lies within this distance of x."""
        low, high = self.x - distance, self.x + distance
        return Range(np.maximum(low, self.domain.low), np.minimum(high, self.domain.high))

    def row(self, others: list[int]) -> Affine:
        """The scores -> that of the class of x less those of others."""
        eye = np.eye(self.network.out_features)
        return Affine.of(eye[self.label] - eye[others])

    def see(self, point: np.ndarray) -> None:
        """Take the point for the nearest witness if it is one, by f itself, and nearer than the last."""
        distance = float(np.abs(point - self.x).max())
        scores = self.evaluate(point[None])[0]
        other = max(self.leads, key=lambda j: scores[j])
        if distance < self.found and scores[other] >= scores[self.label]:
            self.found, self.witness, self.other = distance, point, other

    def outwards(self, point: np.ndarray) -> None:
        """See the solver's point, at which two scores are equal to its tolerance, and some a little beyond it."""
        for factor in OUTWARDS:
            self.see((self.x + (1 + factor) * (point - self.x)).clip(self.domain.low, self.domain.high))

    def relaxed(self) -> float:
        """A distance within which linear bounds prove that no other class scores as high, by bisection."""
        margins = self.network.then(affine(self.row([*self.leads])))
        least, most = 0.0, min(self.found, self.reach)
        if (linear(margins, self.box(most))[-1].low > 0).all():
            return self.found
        for _ in range(HALVINGS):
            middle = (least + most) / 2
            proves = bool((linear(margins, self.box(middle))[-1].low > 0).all())
            least, most = (middle, most) if proves else (least, middle)
        return least

    def descend(self) -> None:
        """Look for a witness of every class by signed gradients (Madry et al. 2018), at distances that are halved."""
        self.see(self.x)
        others = [*self.leads]
        rows = self.row(others).compose(self.network.readout)
        least, most = np.zeros(len(others)), np.full(len(others), min(self.found, self.reach))
        for _ in range(HALVINGS):
            middle = (least + most) / 2
            reached = self._descend(rows, middle)
            least, most = np.where(reached, least, middle), np.where(reached, middle, most)
            self.leads |= {j: d for j, d, r in zip(others, middle.tolist(), reached, strict=True) if r}

    def _descend(self, rows: Affine, distances: np.ndarray) -> np.ndarray:
        """For each row, whether its value becomes <= 0 within its distance of x; the points where are seen."""
        low = np.maximum(self.x - distances[:, None], self.domain.low)
        high = np.minimum(self.x + distances[:, None], self.domain.high)
        points, reached = np.tile(self.x, (len(distances), 1)), np.zeros(len(distances), dtype=bool)
        for _ in range(STEPS):
            values, gradients = _gradients(self.network, rows, points)
            for k in np.flatnonzero((values <= 0) & ~reached):
                self.see(points[k].copy())
            reached |= values <= 0
            step = np.where(reached, 0.0, 2 * distances / STEPS)[:, None] * np.sign(gradients)
            points = (points - step).clip(low, high)
        return reached


def _gradients(network: CanonicalNetwork, rows: Affine, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each row k, an affine map of z_L, its value at x[k] and its gradient with respect to x[k]."""
    state, active = x, []
    for a in network.layers:
        t = a(state)
        active.append(t > 0)
        state = np.concatenate([t.clip(0), state], 1)
    c = rows.weight.toarray()
    values = (c * state).sum(1) + rows.bias
    for a, on in zip(reversed(network.layers), reversed(active), strict=True):
        c = c[:, a.out_features :] + (c[:, : a.out_features] * on) @ a.weight
    return values, c
