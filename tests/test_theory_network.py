"""The canonical network and its affine maps, against dense arithmetic written out by hand."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from skipform.errors import SkipformError
from skipform.theory.affine import Affine, block_diagonal, hstack, identity, select, vstack
from skipform.theory.network import CanonicalNetwork, add, affine, direct, parallel, perceptron

rationals = st.fractions(min_value=-4, max_value=4, max_denominator=6)


@st.composite
def dense(draw, m=None, d=None):
    """(W, b) as object arrays of Fractions, zeros and empty sizes included."""
    m = draw(st.integers(0, 4)) if m is None else m
    d = draw(st.integers(0, 4)) if d is None else d
    weight = np.array(draw(st.lists(rationals, min_size=m * d, max_size=m * d)), dtype=object).reshape(m, d)
    bias = np.array(draw(st.lists(rationals, min_size=m, max_size=m)), dtype=object)
    return weight, bias


@st.composite
def networks(draw, d=None, m=None):
    """An exact canonical network of depth 0 to 3."""
    d = draw(st.integers(1, 3)) if d is None else d
    layers, size = [], d
    for _ in range(draw(st.integers(0, 3))):
        layers.append(Affine.of(*draw(dense(d=size)), exact=True))
        size += layers[-1].out_features
    m = draw(st.integers(1, 3)) if m is None else m
    return CanonicalNetwork(tuple(layers), Affine.of(*draw(dense(m=m, d=size)), exact=True))


def points(d):
    return st.lists(rationals, min_size=d, max_size=d).map(lambda v: np.array(v, dtype=object))


def naive(network, x):
    """The definition, one layer at a time, with dense matrices."""
    z = list(x)
    for a in network.layers:
        matrix = [[row.get(j, Fraction(0)) for j in range(a.in_features)] for row in a.rows()]
        y = [sum((w * v for w, v in zip(r, z, strict=True)), b) for r, b in zip(matrix, a.bias, strict=True)]
        z = [max(v, Fraction(0)) for v in y] + z
    rows = network.readout.rows()
    return [sum((w * z[j] for j, w in row.items()), b) for row, b in zip(rows, network.readout.bias, strict=True)]


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_affine_algebra_is_matrix_algebra(data):
    (w, b), (v, c) = data.draw(dense()), data.draw(dense())
    f, g = Affine.of(w, b, exact=True), Affine.of(v, c, exact=True)
    x = data.draw(points(f.in_features + g.in_features))
    left, right = x[: f.in_features], x[f.in_features :]
    assert list(f(left)) == list(w.dot(left) + b)
    assert list(block_diagonal(f, g)(x)) == [*f(left), *g(right)]
    h = Affine.of(*data.draw(dense(d=f.out_features)), exact=True)
    assert list(h.compose(f)(left)) == list(h(f(left)))
    same = Affine.of(*data.draw(dense(d=f.in_features)), exact=True)
    assert list(vstack(f, same)(left)) == [*f(left), *same(left)]
    other = Affine.of(*data.draw(dense(m=f.out_features)), exact=True)
    y = data.draw(points(other.in_features))
    assert list(hstack(f, other)(np.concatenate([left, y]))) == list(f(left) + other(y))
    twin = Affine.of(*data.draw(dense(m=f.out_features, d=f.in_features)), exact=True)
    assert list((f - twin)(left)) == list(f(left) - twin(left))
    assert list((Fraction(1, 3) * f)(left)) == list(f(left) / 3)
    order = data.draw(st.permutations(range(f.in_features)))
    assert list(f.spread(np.array(order, dtype=int), f.in_features)(left)) == list(f(left[list(order)]))
    assert list(identity(f.in_features, exact=True)(left)) == list(left)
    assert list(select(order, f.in_features, exact=True)(left)) == list(left[list(order)])


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_a_network_is_its_definition(data):
    network = data.draw(networks())
    x = data.draw(points(network.in_features))
    assert list(network(x)) == naive(network, x)
    assert network.depth == len(network.widths)
    assert network.relu_count == sum(network.widths)


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_composition_and_concatenation_of_networks(data):
    f = data.draw(networks())
    x = data.draw(points(f.in_features))
    g = data.draw(networks(d=f.out_features))
    assert list(f.then(g)(x)) == list(g(f(x)))
    assert f.then(g).depth == f.depth + g.depth
    h = data.draw(networks(d=f.in_features))
    assert list(parallel(f, h)(x)) == [*f(x), *h(x)]
    assert parallel(f, h).depth == max(f.depth, h.depth)
    y = data.draw(points(h.in_features))
    assert list(direct(f, h)(np.concatenate([x, y]))) == [*f(x), *h(y)]
    twin = data.draw(networks(d=f.in_features, m=f.out_features))
    assert list(add(f, twin)(x)) == [a + b for a, b in zip(f(x), twin(x), strict=True)]


@given(st.data())
@settings(max_examples=40, deadline=None)
def test_only_the_carried_coordinates_matter(data):
    network = data.draw(networks())
    read = {j for row in network.readout.rows() for j in row}
    assert network.carried[-1] == len(read)
    first = set()
    size = network.readout.in_features
    for a in network.affine_maps:
        first |= {j + size - a.in_features for row in a.rows() for j in row}
    inputs = {j for j in first if j >= size - network.in_features}
    assert network.carried[0] == len(inputs)


@given(st.data())
@settings(max_examples=40, deadline=None)
def test_float64_agrees_with_the_rationals(data):
    network = data.draw(networks())
    x = data.draw(points(network.in_features))
    exact = np.array([float(v) for v in network(x)])
    # |z_k| grows by at most 4 * 4 columns * |z| + 4 a layer; with depth 3 and the readout the values stay below 1e8 and
    # at most 60 roundings of relative size 2^-53 act on each, besides those of the entries themselves.
    bound = 1e8 * 120 * 2.0**-53
    got = network.float()(torch.tensor([float(v) for v in x], dtype=torch.float64))
    assert got.dtype == torch.float64
    np.testing.assert_allclose(got.numpy(), exact, rtol=0, atol=bound)


@pytest.mark.parametrize("exact", [False, True])
def test_saved_networks_come_back_equal(tmp_path, exact):
    maps = [Affine.of([[Fraction(1, 3), 2], [-1, 0]], [Fraction(1, 7), 0], exact=True), Affine.of([[1, 1]], exact=True)]
    network = perceptron(maps) if exact else perceptron(maps).float()
    network.save(tmp_path / "net.safetensors")
    again = CanonicalNetwork.load(tmp_path / "net.safetensors")
    x = np.array([[Fraction(1, 2), Fraction(-3)], [Fraction(5), Fraction(1)]], dtype=object)
    x = x if exact else torch.tensor(x.astype(float))
    assert again.is_exact == exact
    assert (np.asarray(again(x)) == np.asarray(network(x))).all()


def test_what_is_not_a_network_is_refused(tmp_path):
    with pytest.raises(SkipformError, match="A_1 reads 2 coordinates, z_1 has 3"):
        CanonicalNetwork((Affine.of([[1, 1]]), Affine.of([[1, 1]])), Affine.of([[1, 1]]))
    with pytest.raises(SkipformError, match=r"argument of shape \(3,\); \(2,\) or \(n, 2\) is accepted"):
        affine(identity(2))(torch.zeros(3))
    (tmp_path / "cut").write_bytes(b"\x10")
    with pytest.raises(SkipformError, match="cannot be read"):
        CanonicalNetwork.load(tmp_path / "cut")
    with pytest.raises(SkipformError, match="cannot be read"):
        CanonicalNetwork.load(tmp_path / "absent")
