"""The exact range of an output of a net over a box of inputs, by mixed-integer linear programming.

HiGHS finds the least and the greatest value of w . f(x), f as its canonical network. Until it has, there is an inner
range, of values that f takes at inputs that are given too, and an outer range, which is proved: by interval arithmetic,
by linear functions, and by the solver's own bound.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from skipform.errors import SkipformError
from skipform.measure.highs import minimum
from skipform.measure.milp import encode
from skipform.measure.program import in_float64, on_cpu
from skipform.measure.relaxation import Range, interval, linear
from skipform.theory.network import CanonicalNetwork

TOLERANCE = 1e-6  # relative to 1 + |value|: outer and inner range agree; a thousand misses of highs.FEASIBILITY
SAMPLES = 256  # random inputs, so that there is an inner range from the start

Progress = Callable[[str, float, float], None]


@dataclass(frozen=True)
class OutputRange:
    """proved: (low, high), between which w . f(x) lies for every x of the box, up to the solver's tolerance.
    found: the least and greatest value of w . f that were found, in float64 by f itself; at: the inputs where.
    interval: (low, high) by interval arithmetic. seconds: of the solver."""

    proved: tuple[float, float]
    found: tuple[float, float]
    at: tuple[Tensor, Tensor]
    interval: tuple[float, float]
    seconds: float

    @property
    def is_exact(self) -> bool:
        """Whether what is proved is what was found, to TOLERANCE."""
        return all(abs(p - v) <= TOLERANCE * (1 + abs(v)) for p, v in zip(self.proved, self.found, strict=True))


@torch.no_grad()
def output_range(
    f: nn.Module | CanonicalNetwork,
    lower: Tensor,
    upper: Tensor,
    output: int | Tensor = 0,
    *,
    time_limit: float = 60.0,
    progress: Progress | None = None,
    memory: int = 4 * 2**30,
    check: bool = True,
) -> OutputRange:
    """The range of one output of f over the box lower <= x <= upper, tensors shaped like one input.

    output: the index of an entry of the output, or the weights w of its entries, e.g. 1 and -1 for the margin of two
    classes. time_limit: seconds of the solver, half of them for each end; when they are over, what is proved so far is
    returned. progress: called with "least" or "greatest", the value found and the value proved so far.

    Raises SkipformError for a box that is not finite or not in order, for what `canonical` refuses, or another output.
    """
    low, high = (np.asarray(bound.detach().cpu().double()).ravel() for bound in (lower, upper))
    if lower.shape != upper.shape or not (np.isfinite(low) & np.isfinite(high) & (low <= high)).all():
        raise SkipformError("output_range: lower and upper of one shape, finite and lower <= upper, are accepted")
    if not time_limit > 0:
        raise SkipformError(f"output_range: time_limit={time_limit}; seconds above 0 are accepted")
    network, evaluate = prepared(f, lower, memory, check, "output_range")
    weights = _weights(output, network.out_features)
    box = Range(low, high)
    outer, ranges = interval(network, box), linear(network, box)
    generator = torch.Generator().manual_seed(0)  # fixed inputs: the same net always has the same range
    samples = torch.rand(SAMPLES, len(low), generator=generator, dtype=torch.float64).numpy()
    samples = np.concatenate([low + samples * (high - low), low + samples.round() * (high - low)]).clip(low, high)
    encoding, end = encode(network, box, ranges[:-1]), network.readout.in_features
    start, ends = time.monotonic(), []
    for name, sign in (("least", 1.0), ("greatest", -1.0)):
        # The least value of sign * w . f: `bound` is below it, `value` at x.
        own = sign * weights
        values = evaluate(samples) @ own
        x, value = samples[values.argmin()], values.min()
        bound = max(_least(t, own) for t in (outer, ranges[-1]))
        lp = encoding.least(network.readout, own)
        solved = minimum(lp, time_limit / 2, _reporting(progress, name, sign), command="output_range")
        bound = max(bound, solved.bound)
        if solved.point is not None:
            point = solved.point[end - len(low) : end].clip(low, high)
            at_point = float(evaluate(point[None])[0] @ own)
            x, value = (point, at_point) if at_point <= value else (x, value)
        ends.append((sign * min(bound, value), sign * value, torch.from_numpy(x.copy()).reshape(lower.shape)))
    (a, v, x), (b, w, y) = ends
    inner = _least(outer, weights), -_least(outer, -weights)
    return OutputRange((a, b), (v, w), (x, y), inner, time.monotonic() - start)


def prepared(
    f: nn.Module | CanonicalNetwork, example: Tensor, memory: int, check: bool, command: str
) -> tuple[CanonicalNetwork, Callable[[np.ndarray], np.ndarray]]:
    """The canonical network of f, and f itself on flat inputs (n, d), to flat outputs (n, m), in float64."""
    if isinstance(f, CanonicalNetwork):
        network = in_float64(f)
        shape = network.input_shape or (network.in_features,)
        if tuple(example.shape) != shape:
            raise SkipformError(f"{command}: a box of shape {tuple(example.shape)}; {shape} is accepted")
        return network, lambda x: network.evaluate(x.reshape(-1, *shape)).reshape(len(x), -1)
    from skipform.compiler.flatten import canonical  # the compiler is only needed for torch modules

    module = on_cpu(f).double()
    network = canonical(module, example.detach().cpu().double()[None], memory, explicit=True, check=check)
    if network.output_shape is None:
        raise SkipformError(f"{command}: a net of one output, batch first, is accepted")
    return network, lambda x: module(torch.from_numpy(x).reshape(len(x), *example.shape)).reshape(len(x), -1).numpy()


def _weights(output: int | Tensor, count: int) -> np.ndarray:
    if isinstance(output, Tensor):
        if output.numel() != count or not bool(output.isfinite().all()):
            raise SkipformError(f"output_range: {output.numel()} weights; {count} finite ones are accepted")
        return output.detach().cpu().double().numpy().ravel()
    if not 0 <= output < count:
        raise SkipformError(f"output_range: output {output}; 0 to {count - 1} are accepted")
    return np.eye(count)[output]


def _least(t: Range, weights: np.ndarray) -> float:
    return float(weights.clip(0) @ t.low - (-weights).clip(0) @ t.high)


def _reporting(progress: Progress | None, name: str, sign: float) -> Callable[[float, float], None] | None:
    if progress is None:
        return None
    return lambda value, bound: progress(name, sign * value, sign * bound)
