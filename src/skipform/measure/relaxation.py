"""Bounds on every ReLU and output of a canonical network over a box of inputs, without any search.

interval   A = A+ - A-:  low(A z + b) = A+ low(z) - A- high(z) + b
linear     a bound of c . z_k is pushed back to the inputs: a ReLU h = relu(t) with low < 0 < high of t is replaced by
           h <= high / (high - low) (t - low) or by h >= s t, s = 1 if high > -low, else 0 (Zhang et al. 2018, CROWN)

Both hold; the linear ones are those that see that x - relu(x - y) is at most y. n_k ReLUs of layer k, D coordinates of
z_L; coordinates are counted in z_L, of which z_k is the tail.
"""

from dataclasses import dataclass

import numpy as np
from scipy import sparse

from skipform.theory.affine import Affine
from skipform.theory.network import CanonicalNetwork


@dataclass(frozen=True)
class Range:
    """low <= value <= high, entry by entry."""

    low: np.ndarray
    high: np.ndarray

    def before(self, low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The ends of the range of (h; z), h in this range and low <= z <= high."""
        return np.concatenate([self.low, low]), np.concatenate([self.high, high])


def interval(network: CanonicalNetwork, box: Range) -> Range:
    """The range of the output by interval arithmetic, (m,)."""
    low, high = box.low, box.high
    for a in network.layers:
        t = through(a, low, high)
        low, high = Range(t.low.clip(0), t.high.clip(0)).before(low, high)
    return through(network.readout, low, high)


def through(a: Affine, low: np.ndarray, high: np.ndarray) -> Range:
    """The range of a(z) for low <= z <= high, by intervals."""
    weight = a.weight
    plus, minus = weight.maximum(0), (-weight).maximum(0)
    return Range(plus @ low - minus @ high + a.bias, plus @ high - minus @ low + a.bias)


def linear(network: CanonicalNetwork, box: Range) -> list[Range]:
    """The ranges of the arguments of the ReLUs of layers 0, ..., L-1, (n_k,) each, and of the output: the tighter of
    the bounds by intervals and by linear functions."""
    ranges: list[Range] = []
    low, high = box.low, box.high
    for a in network.affine_maps:
        t = through(a, low, high)
        above = -_lowest(network, ranges, box, -a.weight, -a.bias)
        below = _lowest(network, ranges, box, a.weight, a.bias)
        t = Range(np.maximum(t.low, below), np.minimum(t.high, above))
        t = Range(np.minimum(t.low, t.high), t.high)  # where rounding made them cross
        ranges.append(t)
        low, high = Range(t.low.clip(0), t.high.clip(0)).before(low, high)
    return ranges


def _lowest(
    network: CanonicalNetwork, ranges: list[Range], box: Range, weight: sparse.csr_array, bias: np.ndarray
) -> np.ndarray:
    """A lower bound of weight @ z_k + bias, where `ranges` has those of the k layers below."""
    c, constant = weight.toarray(), bias.copy()
    for a, t in zip(reversed(network.layers[: len(ranges)]), reversed(ranges), strict=True):
        own, c = c[:, : a.out_features], c[:, a.out_features :]
        width = np.where(t.high > t.low, t.high - t.low, 1.0)
        on, cut = t.low >= 0, (t.low < 0) & (t.high > 0)
        above = np.where(on, 1.0, np.where(cut, t.high / width, 0.0))  # slopes
        below = np.where(on | (cut & (t.high > -t.low)), 1.0, 0.0)
        plus, minus = own.clip(0), (-own).clip(0)
        constant = constant - minus @ np.where(cut, -t.low * above, 0.0)
        slope = plus * below - minus * above
        constant = constant + slope @ a.bias
        c = c + slope @ a.weight
    return constant + c.clip(0) @ box.low - (-c).clip(0) @ box.high
