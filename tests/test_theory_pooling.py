"""Theorem 1 and the pooling layers: depth, ReLUs and values, against Python and torch (Keras: test_theory_keras.py)."""

from fractions import Fraction
from itertools import permutations
from math import ceil, log, log2

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from skipform.errors import SkipformError
from skipform.theory import eight, pooling, rounding
from skipform.theory.shallow import shallow_depth, shallow_layers
from skipform.theory.trees import half_tree, pair_tree, tree_depth

# Sixty-three rationals, drawn by index: quick to draw, often equal, zero among them.
rationals = st.integers(-31, 31).map(lambda k: Fraction(k, 1 + abs(k) % 7))
POOL = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
SIX = pooling.shallow_maximum(6, exact=True)
AVERAGE = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}


def close(network, x, wanted, unit=rounding.UNIT):
    """Equal up to the bound derived in theory.rounding, plus two roundings per cell of the oracle itself."""
    x, got, wanted = x.numpy(), network(x).numpy(), wanted.numpy()
    assert got.shape == wanted.shape
    bound = rounding.network_bound(network, x) + 2 * network.in_features * unit * np.abs(x).max()
    np.testing.assert_array_less(np.abs(got - wanted).reshape(len(x), -1), bound.reshape(len(x), -1) + 1e-300)


@settings(max_examples=40, deadline=None)
@given(st.lists(rationals, min_size=1, max_size=40))
def test_average_pooling_is_a_perceptron_of_depth_0(numbers):
    network = pooling.average(len(numbers), exact=True)
    assert network.depth == 0
    assert network(numbers)[0] == sum(numbers) / len(numbers)


@settings(max_examples=40, deadline=None)
@given(st.lists(rationals, min_size=1, max_size=40))
def test_max_pooling_is_a_relu_perceptron_of_depth_exactly_ceil_log2_n(numbers):
    n = len(numbers)
    network = pooling.maximum(n, exact=True)
    assert network.depth == ceil(log2(n))
    assert network.relu_count == n - 1
    assert network(numbers)[0] == max(numbers)
    assert pooling.minimum(n, exact=True)(numbers)[0] == min(numbers)


@settings(max_examples=40, deadline=None)
@given(st.lists(rationals, min_size=1, max_size=12), st.integers(0, 15))
def test_max_pooling_takes_any_number_of_layers_from_log2_n_on(numbers, more):
    depth = tree_depth(len(numbers)) + more
    network = pooling.maximum(len(numbers), depth=depth, exact=True)
    assert network.depth == depth
    assert network.relu_count == len(numbers) - 1
    assert network(numbers)[0] == max(numbers)


def test_fewer_than_log2_n_layers_are_refused():
    with pytest.raises(SkipformError, match="maximum of 5 numbers: depth 2; at least 3"):
        pooling.maximum(5, depth=2)


@settings(max_examples=40, deadline=None)
@given(st.lists(rationals, min_size=5, max_size=5))
def test_the_maximum_of_five_takes_two_layers_and_thirteen_relus(numbers):
    network = pooling.shallow_maximum(5, exact=True)
    assert network.widths == (6, 7)
    assert network(numbers)[0] == max(numbers)


def test_the_maximum_of_five_by_symmetric_features_is_the_same_function():
    """The formula that linear programming over symmetric features gave first, as printed in the errata."""
    half, third = Fraction(1, 2), Fraction(1, 3)
    generator = np.random.default_rng(0)
    for numbers in generator.integers(-4, 5, (4, 5)).tolist():
        total = Fraction(0)
        for x1, x2, x3, x4, x5 in permutations(map(Fraction, numbers)):
            total += 4 * third * max(x3, (x1 + x2) / 2, half * max(x5, x1) + half * max(x4, x1))
            total -= 4 * third * max(half * (max(x3, x1) + max(x2, x1)), half * (max(x5, x4) + max(x3, x2)))
            total += 4 * third * max(x2, x1, x4, x3) - third * max(x3, (x1 + x2) / 2, (x4 + x5) / 2)
        assert total / 120 == max(numbers) == pooling.shallow_maximum(5, exact=True)(numbers)[0]


@pytest.mark.parametrize("n", [*range(4, 20), 28, 29, 30, 31, 54, 55, 81, 82, 83, 84, 162, 163])
def test_the_shallow_maximum_never_takes_more_layers_than_the_bound_of_log3(n):
    assert pooling.depth_bound(n) == ceil(log(n - 2, 3) - 1e-9) + 1
    assert len(shallow_layers([tuple(range(n))])) == shallow_depth(n) == sum(n > 2 * 3**k for k in range(6)) + 1
    k = shallow_depth(n)
    assert shallow_depth(n) == pooling.depth_bound(n) - (3 ** (k - 1) + 3 <= n <= 2 * 3 ** (k - 1))


@settings(max_examples=25, deadline=None)
@given(st.lists(rationals, min_size=1, max_size=32).filter(lambda numbers: len(numbers) not in range(15, 19)))
def test_the_shallow_maximum_is_the_maximum(numbers):
    network = pooling.shallow_maximum(len(numbers), exact=True)
    assert network.depth == shallow_depth(len(numbers)) == sum(len(numbers) > most for most in (1, 2, 6, 18))
    assert network(numbers)[0] == max(numbers)


@settings(max_examples=40, deadline=None)
@given(st.lists(rationals, min_size=6, max_size=6))
def test_the_maximum_of_six_takes_two_layers(numbers):
    network = SIX
    assert network.widths == (15, 72)
    assert network(numbers)[0] == max(numbers)


def test_the_maximum_of_eighteen_takes_three_layers():
    network = pooling.shallow_maximum(18, exact=True)
    assert network.widths == (153, 1080, 72)
    generator = np.random.default_rng(0)
    for largest in (2, 5, 10**6):
        numbers = [Fraction(n) for n in generator.integers(-largest, largest, 18).tolist()]
        assert network(numbers)[0] == max(numbers)


def test_the_sum_over_six_groups_is_the_formula_of_its_theorem():
    def formula(*x):
        other = (1, 0, 3, 2, 5, 4)
        m = {(i, j): max(x[i], x[j]) for i in range(6) for j in range(6)}
        triples = [
            (i, j, k) for i in range(6) for j in range(6) for k in range(6) if len({i // 2, j // 2, k // 2}) == 3
        ]
        total = Fraction(sum(m[i, j] for i in range(6) for j in range(i) if i // 2 != j // 2))
        for i, j, k in triples:  # all 48, so that each term is counted as often as its symmetries say
            total += Fraction(2, 4) * relu(m[i, other[i]] - m[j, k])
            total += Fraction(1, 2) * relu(m[i, j] + m[i, other[j]] - m[i, k] - m[other[i], other[k]])
            total -= Fraction(1, 2) * relu(m[i, j] + m[other[i], other[j]] - m[i, k] - m[j, other[k]])
            total -= Fraction(1, 8) * relu(m[i, j] + m[i, other[j]] - m[other[i], k] - m[other[i], other[k]])
        return total / 12

    def relu(t):
        return max(t, 0)

    generator = np.random.default_rng(0)
    for largest in (1, 3, 50):
        for numbers in generator.integers(-largest, largest + 1, (20, 6)).tolist():
            assert formula(*numbers) == max(numbers) == SIX(list(map(Fraction, numbers)))[0]


def test_the_maximum_of_eight_is_the_mean_over_all_orders():
    """The formula of the theorem, term by term and order by order, in whole numbers: times 840 it has no fractions."""
    orders = np.array(list(permutations(range(8))))
    generator = np.random.default_rng(0)
    for largest in (1, 4, 1000):
        x = generator.integers(-largest, largest + 1, 8)[orders]  # (orders, 8)
        total = 840 * np.maximum(x[:, 0], x[:, 1])
        for weight, plus, minus in eight.TERMS:
            t = sum(x[:, pair].max(1) for pair in map(list, plus)) - sum(x[:, pair].max(1) for pair in map(list, minus))
            total += int(840 * weight) * np.maximum(t, 0)
        assert total.sum() == 840 * len(orders) * x.max()


def test_the_maximum_of_six_is_such_a_mean_too():
    """With the weights that `search.py 2 6 --weights` prints: small enough for a network in fractions."""
    terms = [
        eight.term("2", "12", "34"),
        eight.term("2", "12 13", "14 56"),
        eight.term("-1/2", "12 13", "45 46"),
        eight.term("-2", "12 34", "13 56"),
    ]
    assert eight.proved(6, terms)
    network = eight.network_of(6, terms, exact=True)
    assert network.widths == (15, 630)
    generator = np.random.default_rng(0)
    for largest in (1, 3, 50):
        for numbers in generator.integers(-largest, largest + 1, (4, 6)).tolist():
            assert network(list(map(Fraction, numbers)))[0] == max(numbers)


def test_a_term_of_eight_that_is_off_by_a_little_is_not_proved():
    assert eight.proved()
    for i in (0, 9, 23):
        weight, plus, minus = eight.TERMS[i]
        wrong = [*eight.TERMS[:i], (weight + Fraction(1, 10**9), plus, minus), *eight.TERMS[i + 1 :]]
        assert not eight.proved(8, wrong)
    assert not eight.proved(8, eight.TERMS[:-1])
    assert not eight.proved(8, [])
    assert not eight.proved(7)  # the weights are for eight numbers


def test_the_network_of_eight_numbers_has_two_layers():
    network = eight.maximum_of_eight()
    assert network.widths == (28, 185_290)
    x = np.random.default_rng(0).normal(size=(40, 8))
    x[:10] = np.round(x[:10])  # with ties
    error = np.abs(network(x).numpy()[:, 0] - x.max(1))
    assert (error <= rounding.network_bound(network, x)[:, 0]).all()


def test_windows_share_the_parts_they_have_in_common():
    """Windows of three on a line: one ReLU for each neighbouring pair and one for each window, not two for each."""
    network = pooling.max_pool((1, 10), 3, stride=1)
    assert network.widths == (8, 8)


@st.composite
def pools(draw, with_dilation):
    """(input_shape, window, options) with one to three spatial dimensions, degenerate ones among them."""
    rank = draw(st.integers(1, 3))
    window = draw(st.lists(st.integers(1, 4 if rank < 3 else 3), min_size=rank, max_size=rank))
    options = {
        "stride": draw(st.none() | st.lists(st.integers(1, 4), min_size=rank, max_size=rank)),
        "padding": [draw(st.integers(0, k // 2)) for k in window],
        "ceil_mode": draw(st.booleans()),
    }
    if with_dilation:
        options["dilation"] = [draw(st.integers(1, 3)) for _ in window]
    dilations = options.get("dilation", [1] * rank)
    covered = 2 if with_dilation or rank < 3 else 0  # torch asks for a whole window without padding in avg_pool3d
    least = [
        max(1, d * (k - 1) + 1 - covered * p) for d, k, p in zip(dilations, window, options["padding"], strict=True)
    ]
    spatial = [draw(st.integers(low, low + 4)) for low in least]
    return (draw(st.integers(1, 2)), *spatial), window, options


@settings(max_examples=60, deadline=None)
@given(pools(with_dilation=True), st.booleans(), st.integers(0, 2**32 - 1))
def test_max_pooling_layers_are_affine_relu_concatenation(pool, shallow, seed):
    shape, window, options = pool
    x = torch.randn(3, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    stride = options["stride"] or window
    wanted = POOL[len(window)](x, window, stride, *(options[name] for name in ("padding", "dilation", "ceil_mode")))
    assume(bool(torch.isfinite(wanted).all()))  # torch pads with -inf and returns it for a window wholly outside
    network = pooling.max_pool(shape, window, shallow=shallow, **options)
    close(network, x, wanted)
    assert network.depth <= ceil(log2(np.prod(window)))


def test_a_window_wholly_outside_the_input_is_refused_and_never_minus_infinity():
    x = torch.zeros(1, 1, 1, dtype=torch.float64)
    assert F.max_pool1d(x, 2, 1, 1, dilation=2).isinf().all()
    with pytest.raises(SkipformError, match="a window lies wholly outside the input"):
        pooling.max_pool((1, 1), 2, stride=1, padding=1, dilation=2)


@settings(max_examples=60, deadline=None)
@given(pools(with_dilation=False), st.booleans(), st.none() | st.integers(1, 9), st.integers(0, 2**32 - 1))
def test_average_pooling_layers_are_affine(pool, count_include_pad, divisor, seed):
    shape, window, options = pool
    x = torch.randn(3, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    stride = options["stride"] or window
    rest = [divisor] if len(window) > 1 else []
    divisor = divisor if rest else None
    wanted = AVERAGE[len(window)](x, window, stride, options["padding"], options["ceil_mode"], count_include_pad, *rest)
    network = pooling.average_pool(shape, window, count_include_pad=count_include_pad, divisor=divisor, **options)
    assert network.depth == 0
    close(network, x, wanted)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 3), st.data())
def test_global_and_adaptive_pooling_equal_torch(rank, data):
    spatial = data.draw(st.lists(st.integers(1, 6), min_size=rank, max_size=rank))
    outputs = data.draw(st.lists(st.integers(1, 7), min_size=rank, max_size=rank))
    shape = (2, *spatial)
    x = torch.randn(2, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    adaptive_max = getattr(F, f"adaptive_max_pool{rank}d")(x, outputs)
    adaptive_average = getattr(F, f"adaptive_avg_pool{rank}d")(x, outputs)
    close(pooling.adaptive_max_pool(shape, outputs), x, adaptive_max)
    close(pooling.adaptive_average_pool(shape, outputs), x, adaptive_average)
    close(pooling.global_max_pool(shape), x, x.flatten(2).amax(2))
    close(pooling.global_average_pool(shape), x, x.flatten(2).mean(2))


def test_exact_pooling_is_exact_on_fractions():
    x = np.array([Fraction(i * i % 11, 1 + i % 5) for i in range(2 * 5 * 5)], dtype=object).reshape(2, 5, 5)
    windows = [
        [x[c, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3].ravel() for i in range(2) for j in range(2)] for c in range(2)
    ]
    maxima = pooling.max_pool((2, 5, 5), 3, stride=2, exact=True)(x)
    means = pooling.average_pool((2, 5, 5), 3, stride=2, exact=True)(x)
    assert maxima.reshape(2, 4).tolist() == [[max(w) for w in channel] for channel in windows]
    assert means.reshape(2, 4).tolist() == [[sum(w) / 9 for w in channel] for channel in windows]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: pooling.max_pool((4,), 2), r"input_shape \(4,\); \(c, w\), \(c, h, w\) or \(c, d, h, w\)"),
        (lambda: pooling.max_pool((1, 4, 4), (2, 2, 2)), "window .* an integer or 2 of them"),
        (lambda: pooling.max_pool((1, 4), 2, padding=2), "padding 2 for a window of 2; at most half"),
        (lambda: pooling.max_pool((1, 4), 2, padding="full"), "'valid', 'same' or integers"),
        (lambda: pooling.max_pool((1, 4), 5), "window of 5 on 4 cells"),
        (lambda: pooling.average(0), "n = 0; a positive integer"),
    ],
)
def test_sizes_that_do_not_fit_are_refused_in_one_line(call, message):
    with pytest.raises(SkipformError, match=message) as error:
        call()
    assert "\n" not in str(error.value)


def test_same_averages_leave_the_padding_out_when_asked():
    """On TensorFlow and JAX Keras counts the cells inside; on torch it repeats the edge where padding is uneven."""
    x = np.arange(1.0, 5.0)[None]
    inside = pooling.average_pool((1, 4), 3, stride=2, padding="same", count_include_pad=False)(x).numpy()
    repeated = pooling.average_pool((1, 4), 3, stride=2, padding="same")(x).numpy()
    np.testing.assert_allclose(inside, [[2.0, 3.5]], rtol=4 * rounding.UNIT)
    np.testing.assert_allclose(repeated, [[2.0, 11 / 3]], rtol=4 * rounding.UNIT)


@st.composite
def equal_windows(draw):
    """Up to six windows of one size on nine numbers, which overlap and repeat indices."""
    n = draw(st.integers(1, 9))
    index = st.integers(0, 8)
    return draw(st.lists(st.lists(index, min_size=n, max_size=n).map(tuple), min_size=1, max_size=6))


@settings(max_examples=60, deadline=None)
@given(equal_windows(), st.lists(rationals, min_size=9, max_size=9))
def test_both_kinds_of_trees_take_the_maximum_over_every_window(windows, numbers):
    for tree in (pair_tree(windows), half_tree(windows)):
        network = pooling.tree_maxima(windows, tree, 9, exact=True)
        assert network.depth == len(tree) == tree_depth(len(windows[0]))
        assert network(numbers).tolist() == [max(numbers[i] for i in window) for window in windows]


@settings(max_examples=60, deadline=None)
@given(equal_windows())
def test_a_layer_of_halves_pairs_windows_of_one_size(windows):
    for layer in half_tree(windows):
        pairs = {window: parts for window, parts in layer.items() if len(parts) == 2}
        assert len({len(window) for window in pairs}) == 1
        assert all(set(window) == set(left) | set(right) for window, (left, right) in pairs.items())
        assert all(parts == (window,) and len(window) == 1 for window, parts in layer.items() if window not in pairs)


def test_windows_of_three_take_their_third_index_alone_where_halves_are_not_shared():
    pairs = {(0, 1): ((0,), (1,)), (2, 3): ((2,), (3,)), (2,): ((2,),), (4,): ((4,),)}
    assert half_tree([(0, 1, 2), (2, 3, 4)]) == [pairs, {(0, 1, 2): ((0, 1), (2,)), (2, 3, 4): ((2, 3), (4,))}]
