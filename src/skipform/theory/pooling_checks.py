"""What is checked of Theorem 1, of the depth of a maximum, and of the rounding of relu(x - y) + y."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np

from skipform.theory import definitions, pooling, proofs, rounding
from skipform.theory.affine import fractions
from skipform.theory.check import Check
from skipform.theory.network import CanonicalNetwork
from skipform.theory.trees import Window, half_tree, tree_depth


def average_is_affine(check: Check) -> None:
    for n in [*range(1, 10), *check.generator.integers(10, 40, check.repetitions).tolist()]:
        check.network_equals(partial(pooling.average, n), definitions.mean_of_last_axis)
        check.require(pooling.average(n).depth == 0)
    for n in range(1, 10):
        check.proof(proofs.prove(pooling.average(n, exact=True), definitions.mean_of_last_axis))


def maximum_is_a_tree(check: Check) -> None:
    """By both kinds of tree: disjoint pairs with n - 1 ReLUs, and the overlapping halves that the compiler emits."""
    for n in [*range(1, 10), *check.generator.integers(10, 40, check.repetitions).tolist()]:
        check.network_equals(partial(pooling.maximum, n), definitions.maximum)
        network = pooling.maximum(n)
        check.require(network.depth == int(np.ceil(np.log2(n))) and network.relu_count == n - 1)
    for n in range(1, 17 if check.thorough else 10):
        check.proof(proofs.prove(pooling.maximum(n, exact=True), definitions.symbolic_maximum))
        by_halves = _by_halves([tuple(range(n))], n)
        check.require(by_halves.depth == tree_depth(n))
        check.proof(proofs.prove(by_halves, definitions.symbolic_maximum))


def maximum_has_every_larger_depth(check: Check) -> None:
    for n in range(2, 10 if check.thorough else 7):
        for depth in range(tree_depth(n), n + 2):
            check.network_equals(partial(pooling.maximum, n, depth=depth), definitions.maximum)
            network = pooling.maximum(n, depth=depth, exact=True)
            check.require(network.depth == depth)
            check.proof(proofs.prove(network, definitions.symbolic_maximum))


def max_pooling_is_a_forest(check: Check) -> None:
    for rank in (1, 2, 3):
        for shape, options in _random_poolings(check, rank):
            wanted = partial(definitions.pooling, shape=shape, pick=max, **options)
            check.network_equals(partial(pooling.max_pool, shape, **options), wanted)
        shape = (2, *[4] * rank)
        wanted = partial(definitions.global_pooling, channels=2, of=definitions.maximum)
        check.network_equals(partial(pooling.global_max_pool, shape), wanted)
    shape = (1, 5, 5)
    for stride, padding, dilation in ((2, 1, 1), (1, 0, 2), (2, "same", 1)):
        network = pooling.max_pool(shape, 3, stride=stride, padding=padding, dilation=dilation, exact=True)
        definition = _window_of_three(proofs.greatest, shape, stride, padding, dilation)
        check.proof(proofs.prove(network, definition))
    _overlapping_windows_share_halves(check)
    _a_box_is_pooled_one_dimension_after_the_other(check)


def _overlapping_windows_share_halves(check: Check) -> None:
    """The trees of the compiler for windows of 3, 4 and 5 on a line, at strides 1 and 2, and for running maxima.

    A running maximum repeats indices: entry i is the maximum of the entries min(0, i), min(1, i), ..., min(n - 1, i).
    """
    sliding = [[tuple(range(i, i + n)) for i in range(0, 8 - n, stride)] for n in (3, 4, 5) for stride in (1, 2)]
    running = [[tuple(min(j, i) for j in range(n)) for i in range(n)] for n in (3, 5)]
    for windows in sliding + running:
        network = _by_halves(windows, 8)
        check.require(network.depth == tree_depth(len(windows[0])))
        check.proof(proofs.prove(network, partial(_greatest_of_each, windows=windows)))


def _a_box_is_pooled_one_dimension_after_the_other(check: Check) -> None:
    """A window of 3 x 3 at stride 1 on (4, 4): windows of 3 along the rows, then along the columns."""
    rows = _by_halves([(4 * i + j, 4 * i + j + 1, 4 * i + j + 2) for i in range(4) for j in range(2)], 16)
    columns = _by_halves([(2 * i + j, 2 * i + j + 2, 2 * i + j + 4) for i in range(2) for j in range(2)], 8)
    network = rows.then(columns)
    check.require(network.depth == tree_depth(9))
    check.proof(proofs.prove(network, _window_of_three(proofs.greatest, (1, 4, 4), 1, 0)))


def average_pooling_is_affine(check: Check) -> None:
    for rank in (1, 2, 3):
        for shape, options in _random_poolings(check, rank):
            del options["dilation"]
            wanted = partial(definitions.pooling, shape=shape, pick=definitions.mean, **options)
            check.network_equals(partial(pooling.average_pool, shape, count_include_pad=False, **options), wanted)
        shape = (2, *[4] * rank)
        wanted = partial(definitions.global_pooling, channels=2, of=definitions.mean_of_last_axis)
        check.network_equals(partial(pooling.global_average_pool, shape), wanted)
    shape = (1, 5, 5)
    for padding in (1, "same"):
        network = pooling.average_pool(shape, 3, stride=2, padding=padding, count_include_pad=False, exact=True)
        check.require(network.depth == 0)
        check.proof(proofs.prove(network, _window_of_three(definitions.mean, shape, 2, padding)))


def maximum_of_five_has_depth_two(check: Check) -> None:
    for _ in range(check.repetitions):
        check.network_equals(partial(pooling.shallow_maximum, 5), definitions.maximum)
    network = pooling.shallow_maximum(5, exact=True)
    check.require(network.widths == (6, 7) and pooling.depth_bound(5) == 2 and tree_depth(5) == 3)
    check.proof(proofs.prove(network, definitions.symbolic_maximum))


def maximum_is_shallower_than_the_tree(check: Check) -> None:
    for n in range(4, 10):
        check.network_equals(partial(pooling.shallow_maximum, n), definitions.maximum)
        network = pooling.shallow_maximum(n, exact=True)
        check.require(network.depth == pooling.depth_bound(n))
        check.proof(proofs.prove_maximum(network))


def maximum_of_twelve_has_depth_three(check: Check) -> None:
    for n in (5, 12, 30):
        for _ in range(max(1, check.repetitions // 8)):
            check.network_equals(partial(pooling.shallow_maximum, n), definitions.maximum)
    check.require([pooling.shallow_maximum(n).depth for n in (5, 12, 30, 75)] == [2, 3, 4, 5])
    # The step from m to 2m + floor(m / 2) is the identity for five, proved as in `maximum_of_five_has_depth_two`; its
    # instances for larger n are proved one by one where the solver can.
    check.proof(proofs.prove(pooling.shallow_maximum(5, exact=True), definitions.symbolic_maximum))
    for n in (10, 11, 12) if check.thorough else ():
        check.proof(proofs.prove_maximum(pooling.shallow_maximum(n, exact=True), seconds=600))


def rounding_stays_within_the_bound(check: Check) -> None:
    """The error here is relative to the larger magnitude of x and y."""
    for _ in range(check.repetitions):
        scale = 2.0 ** check.generator.integers(-60, 60, (2, 1000))
        x, y = check.generator.normal(size=(2, 1000)) * scale
        got = np.maximum(x - y, 0) + y
        error = np.abs((fractions(got) - fractions(np.maximum(x, y))).astype(np.float64))
        check.instances += 1
        check.within_bounds = check.within_bounds and bool((error <= rounding.pair_bound(x, y)).all())
        relative = error / np.maximum(np.abs(x), np.abs(y))
        check.max_error = max(check.max_error or 0.0, float(relative.max()))


def _by_halves(windows: list[Window], in_features: int) -> CanonicalNetwork:
    return pooling.tree_maxima(windows, half_tree(windows), in_features, exact=True)


def _greatest_of_each(x: np.ndarray, windows: list[Window]) -> np.ndarray:
    return np.array([proofs.greatest(x[list(window)]) for window in windows], dtype=object)


def _window_of_three(
    pick: Callable[[Any], Any], shape: tuple[int, ...], stride: int, padding: int | str, dilation: int = 1
) -> proofs.Definition:
    """Pooling by its definition; 'same' is used for stride 2 on 5 cells only, where it is a padding of 1."""
    cells = 1 if isinstance(padding, str) else padding
    return partial(
        definitions.pooling, shape=shape, window=3, stride=stride, padding=cells, pick=pick, dilation=dilation
    )


def _random_poolings(check: Check, rank: int) -> Iterator[tuple[tuple[int, ...], dict[str, Any]]]:
    """Random (input_shape, options) that `pooling.max_pool` accepts."""
    draw = check.generator.integers
    for _ in range(max(1, check.repetitions // 4)):
        window = int(draw(2, 4 if rank < 3 else 3))
        shape = (2, *draw(5, 8 if rank < 3 else 6, rank).tolist())
        yield (
            shape,
            {
                "window": window,
                "stride": int(draw(1, 4)),
                "padding": int(draw(0, window // 2 + 1)),
                "dilation": int(draw(1, 3)) if rank < 3 else 1,
                "ceil_mode": bool(draw(0, 2)),
            },
        )
