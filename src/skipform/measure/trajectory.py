"""How much a net stretches a curve (Raghu et al. 2017, Section 2.2: trajectory length as a measure of expressivity).

n points of the path, d inputs, m outputs.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from skipform.errors import SkipformError
from skipform.measure.line import line_of
from skipform.measure.program import Program, in_float64, output, points, promoted
from skipform.theory.network import CanonicalNetwork


@dataclass(frozen=True)
class Trajectory:
    """The lengths of a path and of its image, in the Euclidean norm."""

    input: float
    output: float

    @property
    def growth(self) -> float:
        """Output length over input length."""
        return self.output / self.input if self.input else float("nan")


@torch.no_grad()
def trajectory_length(f: nn.Module | CanonicalNetwork | Program, path: Tensor, *, exact: bool = False) -> Trajectory:
    """The length of the image under f of the polygon through path (n, ...), inputs of the net, in float64.

    The image of each segment is measured through its two ends, which is a lower bound that grows as the path is
    refined; with `exact` through all its break points, which is the length itself and needs a piecewise-linear f.

    Every point is evaluated by itself, as a batch of one, so that outputs with the batch in another place and nets
    that mix the samples of a batch are measured like any other. Raises SkipformError for fewer than two points, a
    module in training mode, or a length that is not finite.
    """
    (path,) = points("trajectory_length", path=path)
    if path.ndim < 2 or len(path) < 2:
        raise SkipformError(f"trajectory_length: a path of shape {tuple(path.shape)}; at least two points are accepted")
    flat = path.reshape(len(path), -1)
    length = _length(flat)
    if exact:
        program = Program.of(f, path[0])
        segments = [_refined(program, flat[i : i + 2]) for i in range(len(flat) - 1)]
        return Trajectory(length, sum(_length(_values(program, refined)) for refined in segments))
    if isinstance(f, Program):
        y = _values(Program.of(f, path[0]), flat)
    elif isinstance(f, CanonicalNetwork):
        y = in_float64(f)(path)
    else:
        module = promoted(f)
        y = torch.stack([output(module, point[None].clone()).reshape(-1) for point in path]).double()
    return Trajectory(length, _length(y.reshape(len(path), -1)))


def _refined(program: Program, ends: Tensor) -> Tensor:
    """The points of a segment at which the program bends, with its ends, (k, d)."""
    t = torch.from_numpy(line_of(program, ends).bends)
    return torch.cat([ends[:1], torch.lerp(ends[:1], ends[1:], t[:, None]), ends[1:]])


def _values(program: Program, state: Tensor) -> Tensor:
    for step in program.steps:
        state = step.apply(state)
        state[:, : step.units].relu_()
    return state


def _length(path: Tensor) -> float:
    steps = path[1:] - path[:-1]
    largest = steps.abs().amax(1, keepdim=True)  # of each step: its square may be beyond float64
    length = float((largest[:, 0] * (steps / torch.where(largest > 0, largest, 1.0)).norm(dim=1)).sum())
    if not math.isfinite(length):
        raise SkipformError(f"trajectory_length: a length of {length}; finite values are accepted")
    return length
