"""What is checked of Theorem 1, of the depth of a maximum, and of the rounding of relu(x - y) + y."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import product
from typing import Any

import numpy as np
from sympy.polys.domains import QQ
from sympy.polys.matrices import DomainMatrix

from skipform.theory import certificates, definitions, pooling, proofs, rounding, skips
from skipform.theory.affine import Affine, fractions, select
from skipform.theory.check import Check
from skipform.theory.network import CanonicalNetwork, affine
from skipform.theory.shallow import shallow_depth
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
        check.proof(proofs.prove(pooling.maximum(n, exact=True), definitions.symbolic_maximum), n)
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
        check.require(network.depth <= pooling.depth_bound(n))
        # Of six numbers the solver takes half a minute for all orders at once.
        check.proof(certificates.proved(n) if n == 6 else proofs.prove_maximum(network))


def maximum_of_twelve_has_depth_three(check: Check) -> None:
    """Proved for 5, 12, 30 and 75 numbers, equation by equation of the certificate; thorough: 10, 11 and 12 as well at
    once, as one problem for the solver."""
    _maxima_in_few_layers(check, certificates.FIVE)
    for n in (10, 11, 12) if check.thorough else ():
        check.proof(proofs.prove_maximum(pooling.shallow_maximum(n, exact=True), seconds=600))


def maximum_of_six_has_depth_two(check: Check) -> None:
    """Proved for 6, 18, 54 and 162 numbers, equation by equation of the certificate."""
    _maxima_in_few_layers(check, certificates.SIX)


def _maxima_in_few_layers(check: Check, numbers: Sequence[int]) -> None:
    """numbers: what 2, 3, 4 and 5 layers take."""
    for n in (n for n in numbers if n <= 30):
        for _ in range(max(1, check.repetitions // 8)):
            check.network_equals(partial(pooling.shallow_maximum, n), definitions.maximum)
    check.require([shallow_depth(n) for n in numbers] == [2, 3, 4, 5])
    for n in numbers:
        check.proof(certificates.proved(n), n)


def maximum_of_eight_has_depth_two(check: Check) -> None:
    """By exact arithmetic in one order of the numbers, which is enough for a mean over all orders."""
    check.require(tree_depth(8) == shallow_depth(8) == 3)
    check.proof(certificates.proved(8))


def average_pooling_has_as_many_ranks_as_outputs(check: Check) -> None:
    """Without padding the rank is the number of outputs, m of d: the first cells of the windows differ, so that the
    rows are in echelon form. With padding it may be less: 5 cells, windows of 3 at stride 1 with padding, rank 4."""
    for rank in (1, 2, 3):
        for shape, options in _random_poolings(check, rank):
            sizes = {key: options[key] for key in ("window", "stride")}
            readout = pooling.average_pool(shape, **sizes, exact=True).readout
            first = [min(row) for row in readout.rows()]
            check.proof(len(set(first)) == readout.out_features)
            check.exactly_equal(np.array([matrix_rank(readout)]), np.array([readout.out_features]))
            check.instances += 1
        check.require(matrix_rank(pooling.global_average_pool((2, *[3] * rank), exact=True).readout) == 2)
    padded = pooling.average_pool((1, 5), 3, stride=1, padding=1, exact=True).readout
    check.require((matrix_rank(padded), padded.out_features) == (4, 5))


def matrix_rank(a: Affine) -> int:
    """The rank of the weight of an exact affine map."""
    entries = [[QQ(0)] * a.in_features for _ in range(a.out_features)]
    for own, row in zip(entries, a.rows(), strict=True):
        for column, value in row.items():
            own[column] = QQ(value.numerator, value.denominator)
    return DomainMatrix(entries, (a.out_features, a.in_features), QQ).rank()


def poolings_and_skips_within_a_net(check: Check) -> None:
    """A ReLU layer h = relu(A x + a), a skip merges h and x, a pooling, an affine map: a canonical network, whose depth
    is 1, one more for a maximum or minimum as the merge, and two more for max pooling of four numbers."""
    shape = (1, 2, 4)
    poolings: list[tuple[Any, Any, int]] = [
        (pooling.max_pool, max, 2),
        (pooling.average_pool, definitions.mean, 0),
    ]
    merges: list[tuple[Any, Any, int]] = [
        (skips.add, sum, 0),
        (skips.average, definitions.mean, 0),
        (skips.subtract, definitions.difference, 0),
        (skips.maximum, partial(np.max, axis=0), 1),
        (skips.minimum, partial(np.min, axis=0), 1),
    ]
    for (pool, pick, deeper), (merge, of, more) in product(poolings, merges):
        layer = Affine.of(check.rationals(8, 8), check.rationals(8), exact=True)
        last = Affine.of(check.rationals(3, 2), check.rationals(3), exact=True)
        hidden = CanonicalNetwork((layer,), select(range(16), 16, exact=True))  # (h; x)
        pooled = pool(shape, 2, exact=True)
        flat = CanonicalNetwork(pooled.layers, pooled.readout)
        whole = hidden.then(merge((8,), (8,), exact=True)).then(flat).then(affine(last))

        def wanted(x: np.ndarray, layer: Affine = layer, last: Affine = last, of: Any = of, pick: Any = pick) -> Any:
            h = np.maximum(layer(x), 0)
            merged = definitions.merge(np.concatenate([h, x], axis=-1), 2, of)
            return last(definitions.pooling(merged, shape, 2, 2, 0, pick).reshape(len(x), -1))

        check.network_equals(lambda exact, whole=whole: whole if exact else whole.float(), wanted)
        check.require(whole.depth == 1 + more + deeper)


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
