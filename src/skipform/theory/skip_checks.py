"""What is checked of Theorem 2 and Proposition 1, and of the merge layers that only Keras has."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import numpy as np

from skipform.theory import definitions, proofs, rounding, skips
from skipform.theory.affine import Affine
from skipform.theory.check import Check
from skipform.theory.network import CanonicalNetwork
from skipform.theory.trees import tree_depth


def addition_is_affine(check: Check) -> None:
    _affine_merge(check, skips.add, range(1, 10), sum)


def subtraction_is_affine(check: Check) -> None:
    _affine_merge(check, skips.subtract, [2], definitions.difference)


def average_is_affine(check: Check) -> None:
    _affine_merge(check, skips.average, range(1, 10), definitions.mean)


def maximum_is_a_relu_tree(check: Check) -> None:
    _merge(check, skips.maximum, range(2, 10), partial(np.max, axis=0), proofs.greatest, depth=tree_depth)


def minimum_is_a_relu_tree(check: Check) -> None:
    _merge(check, skips.minimum, range(2, 10), partial(np.min, axis=0), proofs.least, depth=tree_depth)


def division_is_not_affine(check: Check) -> None:
    at_midpoint, mean_of_ends = skips.division_witness()
    check.instances = 1
    check.exact = at_midpoint != mean_of_ends


def concatenation_reorders(check: Check) -> None:
    for axis, shapes in ((0, ((2, 3), (1, 3))), (1, ((2, 3), (2, 1), (2, 2))), (-1, ((2,), (3,)))):
        wanted = partial(definitions.concatenation, shapes=shapes, axis=axis)
        for _ in range(check.repetitions // 4 + 1):
            check.network_equals(partial(skips.concatenate, *shapes, axis=axis), wanted)
        check.proof(proofs.prove(skips.concatenate(*shapes, axis=axis, exact=True), wanted))


def product_by_logarithms(check: Check) -> None:
    _product(check, "log", depth=lambda n: 2)


def product_by_squares(check: Check) -> None:
    _product(check, "squares", depth=tree_depth)


def dot_by_logarithms(check: Check) -> None:
    _dot(check, "log")


def dot_by_squares(check: Check) -> None:
    _dot(check, "squares")


def splitting_and_joining(check: Check) -> None:
    """Proposition 1 in both directions: w = (u v) splits into u and v, and u and v join to w."""
    for _ in range(check.repetitions):
        first, second, m = check.generator.integers(1, 6, 3).tolist()
        weight, bias = check.rationals(m, first + second), check.rationals(m)
        w = Affine.of(weight, bias, exact=True)
        u, v = skips.split(w, first)
        x = check.rationals(8, first + second)
        check.exactly_equal(u(x[:, :first]) + v(x[:, first:]), w(x))
        check.exactly_equal(skips.join(u, v)(x), w(x))
        real = x.astype(np.float64)
        got = u.float()(real[:, :first]) + v.float()(real[:, first:])
        magnitude = np.abs(real) @ np.abs(w.weight.toarray()).T + abs(bias).astype(float)
        check.equal_within(got, w(x), rounding.gamma(first + second + 3) * magnitude)
    a, b = proofs.symbols("a", 2), proofs.symbols("b", 3)
    weight, bias = proofs.symbols("w", 2, 5), proofs.symbols("c", 2)
    joined = weight @ np.concatenate([a, b]) + bias
    apart = (weight[:, :2] @ a + bias) + weight[:, 2:] @ b
    check.proof(all((one - two).expand() == 0 for one, two in zip(joined, apart, strict=True)))


def _affine_merge(
    check: Check,
    merge: Callable[..., CanonicalNetwork],
    counts: Iterable[int],
    definition: Callable[[Any], Any],
) -> None:
    _merge(check, merge, counts, definition, definition, depth=lambda n: 0)


def _merge(
    check: Check,
    merge: Callable[..., CanonicalNetwork],
    counts: Iterable[int],
    definition: Callable[[Any], Any],
    symbolic_definition: Callable[[Any], Any],
    *,
    depth: Callable[[int], int],
) -> None:
    """`merge` of n tensors (2, 3), n in counts, has its depth and its value; definitions act along the first axis."""
    for n in counts:
        for _ in range(max(1, check.repetitions // 8)):
            check.network_equals(partial(merge, *[(2, 3)] * n), partial(definitions.merge, n=n, of=definition))
        network = merge(*[(1,)] * n, exact=True)
        check.require(network.depth == depth(n))
        check.proof(proofs.prove(network, lambda x: definitions.single(symbolic_definition(x))))


def _product(check: Check, form: str, *, depth: Callable[[int], int]) -> None:
    for n in range(2, 10):
        network = skips.multiply(*[(2,)] * n, form=form)
        check.product_equals(network, partial(definitions.merge, n=n, of=partial(np.prod, axis=0)))
        check.require(network.depth == depth(n))
        check.proof(proofs.prove_product(network, partial(definitions.product, n=n)))


def _dot(check: Check, form: str) -> None:
    network = skips.dot((2, 3), (3, 4), axes=(2, 1), form=form)
    for _ in range(check.repetitions):
        check.product_equals(network, definitions.matrix_product)
    check.proof(proofs.prove_product(network, definitions.matrix_product))
