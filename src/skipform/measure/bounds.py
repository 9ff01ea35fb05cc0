"""Closed-form bounds on the number of linear regions of a ReLU net with n_0 inputs and hidden layers of n_1, ..., n_L.

They hold for activation regions, and so for pieces and maps, on R^{n_0}; on a segment or a slice of a larger input
space n_0 is 1 or 2, the slice being the first affine map.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import comb, prod
from operator import index

from skipform.errors import SkipformError


@dataclass(frozen=True)
class Bounds:
    """How many regions a net of these widths has at most, and some net of these widths at least."""

    upper: int  # the smallest upper bound that applies
    serra: int | None  # Theorem 1 of Serra, Tjandraatmadja, Ramalingam 2018; None for a net with skips
    raghu: int  # Theorem 1 of Raghu, Poole, Kleinberg, Ganguli, Sohl-Dickstein 2017
    lower: int | None  # Theorem 4 of Montufar, Pascanu, Cho, Bengio 2014; None where a layer is narrower than the input


def bounds(widths: Sequence[int], inputs: int, *, skips: bool = False) -> Bounds:
    """The bounds for hidden layers of the given widths on `inputs` dimensions.

    `skips`: some layer reads more than the layer before it, as in a canonical network. Then a layer that switches units
    off does not lower the dimension of what later layers see, and Serra's bound does not apply; Raghu's does, since on
    every region the next layer is still an arrangement of n_l hyperplanes in n_0 dimensions.
    """
    try:  # Python's integers: those of NumPy overflow
        widths, inputs = [index(width) for width in widths], index(inputs)
    except TypeError:
        raise SkipformError(f"bounds: {inputs} inputs, widths {widths}; integers are accepted") from None
    if inputs < 1 or any(width < 0 for width in widths):
        raise SkipformError(f"bounds: {inputs} inputs, widths {widths}; at least 1 input and widths >= 0 accepted")
    serra = None if skips else serra_upper(widths, inputs)
    raghu = raghu_upper(widths, inputs)
    narrow = any(width < inputs for width in widths)
    lower = None if narrow else montufar_lower(widths, inputs)
    return Bounds(min(raghu, raghu if serra is None else serra), serra, raghu, lower)


def arrangement(hyperplanes: int, dimension: int) -> int:
    """Regions of n hyperplanes in general position in R^d: sum_{j <= d} C(n, j) (Zaslavsky 1975)."""
    return sum(comb(hyperplanes, j) for j in range(dimension + 1))


def raghu_upper(widths: Sequence[int], inputs: int) -> int:
    """prod_l sum_{j <= n_0} C(n_l, j): every region is cut by an arrangement of n_l hyperplanes (Raghu et al. 2017,
    Theorem 1, whose O(k^{n_0 L}) is this product for L layers of k units)."""
    return prod(arrangement(width, inputs) for width in widths)


def serra_upper(widths: Sequence[int], inputs: int) -> int:
    """sum over (j_1, ..., j_L) in J of prod_l C(n_l, j_l), J = {0 <= j_l <= min(n_0, n_1 - j_1, ..., n_{l-1} - j_{l-1},
    n_l)} (Serra et al. 2018, Theorem 1): j_l counts units off, which lower the rank that later layers see."""

    # From the last layer to the first: after[r] for a rank r of what the layer sees, which no width exceeds.
    after = [1] * (min(inputs, max(widths, default=0)) + 1)
    for width in reversed(widths):
        choices = [comb(width, j) for j in range(min(len(after) - 1, width) + 1)]
        after = [
            sum(choices[j] * after[min(rank, width - j)] for j in range(min(rank, width) + 1))
            for rank in range(len(after))
        ]
    return after[-1]


def montufar_lower(widths: Sequence[int], inputs: int) -> int:
    """prod_{l < L} floor(n_l / n_0)^{n_0} sum_{j <= n_0} C(n_L, j): regions of some net of widths n_l >= n_0
    (Montufar et al. 2014, Theorem 4)."""
    if not widths:
        return 1
    *folding, last = widths
    return prod((width // inputs) ** inputs for width in folding) * arrangement(last, inputs)
