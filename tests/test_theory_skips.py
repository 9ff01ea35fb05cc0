"""Theorem 2 and Proposition 1: every skip and merge, with the corrections of the paper."""

from fractions import Fraction
from math import prod

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skipform.errors import SkipformError
from skipform.theory import rounding, skips
from skipform.theory.affine import Affine
from skipform.theory.network import perceptron
from skipform.theory.trees import tree_depth

# Sixty-three rationals, drawn by index: quick to draw, often equal, zero among them.
rationals = st.integers(-31, 31).map(lambda k: Fraction(k, 1 + abs(k) % 7))


def vectors(count, size):
    return st.lists(st.lists(rationals, min_size=size, max_size=size), min_size=count, max_size=count)


@st.composite
def operands(draw):
    """n vectors of one length."""
    return draw(vectors(draw(st.integers(2, 9)), draw(st.integers(1, 3))))


def affine(draw, m, d):
    matrix = draw(st.lists(st.lists(rationals, min_size=d, max_size=d), min_size=m, max_size=m))
    return Affine.of(matrix, draw(st.lists(rationals, min_size=m, max_size=m)), exact=True)


@settings(deadline=None, max_examples=30)
@given(operands())
def test_addition_and_average_skips_are_a_concatenation_and_an_affine_map(x):
    shapes = [(len(x[0]),)] * len(x)
    sums = [sum(column) for column in zip(*x, strict=True)]
    assert skips.add(*shapes, exact=True)(x).tolist() == sums
    assert skips.average(*shapes, exact=True)(x).tolist() == [s / len(x) for s in sums]
    assert skips.add(*shapes).depth == skips.average(*shapes).depth == 0


@settings(deadline=None, max_examples=30)
@given(vectors(2, 3))
def test_subtraction_skip_is_a_concatenation_and_an_affine_map(x):
    assert skips.subtract((3,), (3,), exact=True)(x).tolist() == [a - b for a, b in zip(*x, strict=True)]


def test_division_is_not_affine_unlike_the_paper_states():
    at_midpoint, mean_of_ends = skips.division_witness()
    divide = lambda x, y: Fraction(x, y)  # noqa: E731
    assert at_midpoint == divide(1, 2) != (divide(1, 1) + divide(1, 3)) / 2 == mean_of_ends


@settings(deadline=None, max_examples=30)
@given(operands())
def test_maximum_and_minimum_skips_are_relu_trees(x):
    shapes = [(len(x[0]),)] * len(x)
    maximum, minimum = skips.maximum(*shapes, exact=True), skips.minimum(*shapes, exact=True)
    assert maximum(x).tolist() == [max(column) for column in zip(*x, strict=True)]
    assert minimum(x).tolist() == [min(column) for column in zip(*x, strict=True)]
    assert maximum.depth == minimum.depth == tree_depth(len(x))
    assert maximum.relu_count == minimum.relu_count == (len(x) - 1) * len(x[0])


@settings(deadline=None, max_examples=30)
@given(vectors(5, 2))
def test_the_shallow_maximum_skip_of_five_has_depth_two(x):
    network = skips.maximum(*[(2,)] * 5, shallow=True, exact=True)
    assert network.depth == 2
    assert network(x).tolist() == [max(column) for column in zip(*x, strict=True)]


@settings(deadline=None, max_examples=30)
@given(operands())
def test_products_by_squares_are_exact_for_all_numbers(x):
    network = skips.multiply(*[(len(x[0]),)] * len(x)).exact()
    assert network(np.array(x, dtype=object).reshape(-1)).tolist() == [prod(column) for column in zip(*x, strict=True)]
    assert network.depth == tree_depth(len(x))


@settings(deadline=None, max_examples=30)
@given(st.lists(st.floats(0.01, 100), min_size=2, max_size=9))
def test_products_by_log_and_exp_hold_for_positive_numbers(x):
    product, quotient = skips.multiply(*[(1,)] * len(x), form="log"), skips.quotient((1,), (1,))
    point, pair = np.array([x]), np.array([x[:2]])
    exact = Fraction(1)
    for number in x:
        exact *= Fraction(number)
    assert abs(Fraction(product(point).item()) - exact) <= Fraction(rounding.product_bound(product, point).item())
    ratio = Fraction(x[0]) / Fraction(x[1])
    assert abs(Fraction(quotient(pair).item()) - ratio) <= Fraction(rounding.product_bound(quotient, pair).item())
    assert rounding.product_bound(product, point).item() <= 2.0**-40 * float(exact)


@pytest.mark.parametrize("number", [0.0, -1.0])
def test_products_by_log_and_exp_refuse_numbers_that_are_not_positive(number):
    with pytest.raises(SkipformError, match=f"log of {number:g} in a product; positive numbers, or form 'squares'"):
        skips.multiply((1,), (1,), form="log")(np.array([2.0, number]))
    assert skips.multiply((1,), (1,))(np.array([2.0, number])).tolist() == [2 * number]


@settings(deadline=None, max_examples=30)
@given(st.data(), st.integers(0, 3), st.integers(1, 3), st.integers(1, 3))
def test_an_affine_map_of_a_concatenation_is_a_sum_of_affine_maps_and_back(data, first, second, m):
    w = affine(data.draw, m, first + second)
    a = np.array(data.draw(st.lists(rationals, min_size=first, max_size=first)), dtype=object)
    b = np.array(data.draw(st.lists(rationals, min_size=second, max_size=second)), dtype=object)
    u, v = skips.split(w, first)
    assert (u(a) + v(b) == w(np.concatenate([a, b]))).all()
    other = affine(data.draw, m, first)
    assert (skips.join(other, v)(np.concatenate([a, b])) == other(a) + v(b)).all()


@settings(deadline=None, max_examples=30)
@given(st.data(), st.sampled_from(["add", "subtract", "average", "maximum", "minimum", "concatenate"]))
def test_a_skip_over_a_block_is_a_concatenation_skip_and_a_merge(data, name):
    """x -> merge(B(x); x) with B = w1 . relu . w0."""
    w0, w1 = affine(data.draw, 3, 2), affine(data.draw, 2, 3)
    x = np.array(data.draw(st.lists(rationals, min_size=2, max_size=2)), dtype=object)
    network = skips.skip(perceptron((w0, w1)), getattr(skips, name)((2,), (2,), exact=True))
    inner = w1(np.array([max(t, Fraction(0)) for t in w0(x)], dtype=object))
    wanted = {
        "add": inner + x,
        "subtract": inner - x,
        "average": (inner + x) / 2,
        "maximum": np.maximum(inner, x),
        "minimum": np.minimum(inner, x),
        "concatenate": np.concatenate([inner, x]),
    }[name]
    assert (network(x) == wanted).all()
    assert network.depth == (2 if name in ("maximum", "minimum") else 1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: skips.subtract((1,), (1,), (1,)), "subtract: 3 inputs; exactly 2"),
        (lambda: skips.add((2,), (3,)), r"add: shapes \[\(2,\), \(3,\)\]; shapes that broadcast"),
        (lambda: skips.add(), "add: no inputs; at least 1"),
        (lambda: skips.concatenate((2, 3), (2, 4), axis=0), "concatenate: shapes .* along axis 0"),
        (lambda: skips.dot((2,), (2,), axes=1, normalize=True), "dot: normalize=True divides by norms"),
        (lambda: skips.multiply((1,), (1,), form="cubes"), "form 'cubes'; 'squares' or 'log'"),
        (lambda: skips.dot((2, 3), (3, 2), axes=0), r"dot: axis 0 of the first input \(2, 3\); 1 to 2"),
        (lambda: skips.dot((2, 3), (2, 2), axes=2), "dot: 3 entries against 2"),
        (lambda: skips.split(Affine.of([[1.0]]), 2), "split: 2 coordinates of 1; 0 to 1"),
    ],
)
def test_merges_that_do_not_fit_are_refused_in_one_line(call, message):
    with pytest.raises(SkipformError, match=message) as error:
        call()
    assert "\n" not in str(error.value)
