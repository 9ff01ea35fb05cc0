"""The check of one statement, in three ways, which are reported separately.

error    the largest difference to the definition in float64 on random inputs, relative to the largest value of the
         batch (absolute where that is below 1); it must stay within the bound that `rounding` derives for it
exact    equality on random rational inputs, with ties, in fractions
proved   no real input is an exception: z3 over the reals, sympy for polynomial identities (`proofs`)
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np

from skipform.theory import rounding
from skipform.theory.affine import fractions
from skipform.theory.blocks import Block, BlockNet, Layer
from skipform.theory.network import CanonicalNetwork
from skipform.theory.skips import ProductNetwork


@dataclass
class Check:
    """What a check has established so far; a statement's function calls these methods, one or more for each way.

    generator: draws sizes, weights and inputs. repetitions: random instances of one construction. thorough: also what
    takes longer. A way that the statement's function never uses stays None.
    """

    generator: np.random.Generator
    repetitions: int
    thorough: bool
    instances: int = 0
    max_error: float | None = None
    exact: bool | None = None
    proved: bool | None = None
    within_bounds: bool = True
    requirements_met: bool = True
    proved_for: list[int] = field(default_factory=list)  # the n of maxima of n numbers for which it is proved

    @property
    def holds(self) -> bool:
        """Whether nothing that was checked failed."""
        return self.within_bounds and self.exact is not False and self.proved is not False and self.requirements_met

    def require(self, condition: bool) -> None:
        """Something that must hold besides equality: a depth, a count, an inequality."""
        self.requirements_met = self.requirements_met and condition

    def proof(self, succeeded: bool, n: int | None = None) -> None:
        """Record the outcome of a proof; n: of what maximum, where it is of one."""
        self.proved = succeeded and self.proved is not False
        if succeeded and n is not None:
            self.proved_for.append(n)

    def exactly_equal(self, got: np.ndarray, wanted: np.ndarray) -> None:
        """Two arrays of Fractions must be equal."""
        self.exact = bool((got == wanted).all()) and self.exact is not False

    def equal_within(self, got: np.ndarray, wanted: np.ndarray, bound: np.ndarray) -> None:
        """An array of float64, one random instance, must differ from the wanted one by no more than the bound."""
        self.instances += 1
        error = np.abs((fractions(got) - fractions(wanted)).astype(np.float64))
        size = max(1.0, float(np.abs(wanted.astype(np.float64)).max()))
        self.max_error = max(self.max_error or 0.0, float(error.max()) / size)
        self.within_bounds = self.within_bounds and bool((error <= bound).all())

    def network_equals(
        self, build: Callable[..., CanonicalNetwork], definition: Callable[[np.ndarray], np.ndarray]
    ) -> None:
        """build(exact=False) and build(exact=True) must compute the definition of a batch (8, d)."""
        network = build(exact=False)
        x = self.rationals(8, network.in_features)
        shaped = x.reshape(8, *(network.input_shape or (network.in_features,)))
        wanted = definition(x).reshape(8, -1)
        self.exactly_equal(build(exact=True)(shaped).reshape(8, -1), wanted)
        got = network(shaped.astype(np.float64)).numpy().reshape(8, -1)
        self.equal_within(got, wanted, rounding.network_bound(network, x.astype(np.float64)))

    def product_equals(self, network: ProductNetwork, definition: Callable[[np.ndarray], np.ndarray]) -> None:
        """A product network must compute the definition of a batch (8, d).

        One with logarithms is given positive inputs only, and is compared in float64 only.
        """
        has_logarithms = "log" in network.activations
        x = self.rationals(8, network.in_features)
        if has_logarithms:
            x = np.abs(x) + np.array(Fraction(1, 12))
        wanted = definition(x).reshape(8, -1)
        got = network(x.astype(np.float64)).reshape(8, -1)
        if not has_logarithms:
            self.exactly_equal(network.exact()(x).reshape(8, -1), wanted)
        self.equal_within(got, wanted, rounding.product_bound(network, x.astype(np.float64)).reshape(8, -1))

    def nets_equal(self, first: BlockNet, second: BlockNet | CanonicalNetwork) -> None:
        """Two nets with Fraction weights must be equal on fractions, and in float64 within the sum of their bounds."""
        x = self.rationals(8, first.stem[0].shape[1])
        self.exactly_equal(second(x), first(x))
        real = x.astype(np.float64)
        wanted, bound = _float_value_and_bound(first, real)
        got, other_bound = _float_value_and_bound(second, real)
        self.equal_within(got, wanted, bound + other_bound)

    def weights(self, name: str, *shape: int) -> np.ndarray:
        """Random Fractions as the weights of that name; `proofs.symbols` has the same arguments and gives symbols."""
        return self.rationals(*shape)

    def rationals(self, *shape: int) -> np.ndarray:
        """Random Fractions with denominators up to 12, many of them equal."""
        numerators, denominators = self.generator.integers(-24, 25, shape), self.generator.integers(1, 13, shape)
        return np.vectorize(lambda p, q: Fraction(int(p), int(q)), otypes=[object])(numerators, denominators)

    def generic(self, *shape: int) -> np.ndarray:
        """Random Fractions from -2 to 2 with denominator 997, fine enough to be in general position."""
        numerators = self.generator.integers(-1994, 1995, shape)
        return np.vectorize(lambda p: Fraction(int(p), 997), otypes=[object])(numerators)


def _float_value_and_bound(net: BlockNet | CanonicalNetwork, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """net(x) with weights and x in float64, and the bound of its rounding error."""
    if isinstance(net, CanonicalNetwork):
        network = net.float()
        return network(x).numpy(), rounding.network_bound(network, x)
    parts = tuple(Block(tuple(map(_rounded, b.layers)), b.shortcut and _rounded(b.shortcut)) for b in net.blocks)
    rounded = BlockNet(_rounded(net.stem), parts, _rounded(net.readout))
    return rounded(x), rounding.block_bound(rounded, x)


def _rounded(layer: Layer) -> Layer:
    return layer[0].astype(np.float64), layer[1].astype(np.float64)
