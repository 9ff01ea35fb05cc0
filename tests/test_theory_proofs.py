"""The proofs succeed for true statements and fail for false ones; the rounding bounds hold; verify reports both."""

import json
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from skipform.errors import SkipformError
from skipform.stages import cli, verify
from skipform.theory import blocks, pooling, proofs, rounding, skips
from skipform.theory.affine import Affine
from skipform.theory.network import CanonicalNetwork
from skipform.theory.shallow import five_group_sum, six_group_sum
from skipform.theory.statements import Statement


def nudged(network):
    """The network with one weight of its readout off by 2^-20."""
    readout = network.readout
    data = readout.data.copy()
    data[-1] += Fraction(1, 2**20)
    return replace(network, readout=Affine(readout.indptr, readout.indices, data, readout.bias, readout.in_features))


@pytest.mark.parametrize("n", range(1, 10))
def test_the_maximum_of_up_to_nine_is_proved_over_the_reals(n):
    assert proofs.prove(pooling.maximum(n, exact=True), lambda x: np.array([proofs.greatest(x)], dtype=object))
    assert proofs.prove_maximum(pooling.maximum(n, exact=True))


def test_the_maximum_of_five_in_two_layers_is_proved_over_the_reals():
    five = pooling.shallow_maximum(5, exact=True)
    assert five.depth == 2
    assert proofs.prove(five, lambda x: np.array([proofs.greatest(x)], dtype=object))


@pytest.mark.parametrize("n", [4, 5, 7, 8, 9, 10])
def test_the_shallow_maximum_of_up_to_ten_is_proved_over_the_reals(n):
    network = pooling.shallow_maximum(n, exact=True)
    assert network.depth == pooling.depth_bound(n)
    assert proofs.prove_maximum(network)


def test_the_maximum_of_six_is_proved_over_the_reals():
    """In one of the 15 orders that its symmetries leave at a time, and in all orders at once, which takes longer."""
    relu_sum = six_group_sum([(i,) for i in range(6)])
    assert proofs.prove_sum(range(6), relu_sum)
    assert proofs.prove_maximum(pooling.shallow_maximum(6, exact=True), seconds=600)


@pytest.mark.parametrize(("count", "group_sum"), [(5, five_group_sum), (6, six_group_sum)])
def test_a_sum_over_groups_that_is_off_by_a_little_is_not_proved(count, group_sum):
    base, terms = group_sum([(i,) for i in range(count)])
    assert proofs.prove_sum(range(count), (base, terms))
    for i in (0, len(terms) // 2, len(terms) - 1):
        weight, form = terms[i]
        others = [*terms[:i], *terms[i + 1 :]]
        for wrong in ((weight + Fraction(1, 10**6), form), (weight, form | {next(iter(form)): 3})):
            assert not proofs.prove_sum(range(count), (base, [*others, wrong]))
        assert not proofs.prove_sum(range(count), (base, others))
    assert not proofs.prove_sum(range(count + 1), (base, terms))
    assert not proofs.prove_sum(range(count), ({(0, 1): 1}, terms))


def test_the_assumptions_of_a_proof_are_found_on_the_weights():
    five = pooling.shallow_maximum(5, exact=True)
    assert proofs.translates(five)
    assert proofs.commutes(five, [1, 0, 2, 3, 4])
    assert proofs.commutes(five, [2, 3, 0, 1, 4])
    assert not proofs.commutes(five, [0, 2, 1, 3, 4])  # the function is symmetric, its weights are not


@pytest.mark.parametrize("network", [pooling.maximum(4, exact=True), pooling.shallow_maximum(5, exact=True)])
def test_a_weight_off_by_a_millionth_is_not_proved(network):
    wrong = nudged(network)
    assert not proofs.prove_maximum(wrong)
    assert not proofs.prove(wrong, lambda x: np.array([proofs.greatest(x)], dtype=object))


@settings(max_examples=40, deadline=None)
@given(st.permutations(range(4)), st.lists(st.integers(-5, 5).map(Fraction), min_size=4, max_size=4))
def test_a_permutation_that_commutes_leaves_the_value_alone(permutation, x):
    network = skips.maximum((2,), (2,), exact=True)
    if proofs.commutes(network, permutation):
        moved = [x[i] for i in permutation]
        assert (
            network(np.array(moved, dtype=object).reshape(2, 2)).tolist() == network(np.array(x).reshape(2, 2)).tolist()
        )


def test_a_network_that_is_not_symmetric_does_not_commute():
    first = CanonicalNetwork((), Affine.of([[1, 0]], exact=True))
    assert not proofs.commutes(first, [1, 0])
    assert proofs.translates(first)
    assert not proofs.translates(skips.add((1,), (1,), exact=True))


def test_two_different_nets_are_not_the_same_polynomial():
    def net(first, second):
        w = [(proofs.symbols(name, 2, 2), proofs.symbols(name + "b", 2)) for name in (first, second)]
        return blocks.BlockNet.of([w], blocks.eye(2), merge="add")

    assert proofs.same_net(net("a", "b"), net("a", "b"))
    assert not proofs.same_net(net("a", "b"), net("b", "a"))


def test_a_wrong_product_is_not_proved():
    network = skips.multiply((1,), (1,), (1,))
    assert proofs.prove_product(network, lambda x: x.prod(keepdims=True))
    assert not proofs.prove_product(network, lambda x: x[:1] * x[1:2])


def test_a_float_network_is_refused():
    with pytest.raises(SkipformError, match="an exact one is accepted"):
        proofs.prove_maximum(pooling.maximum(3))


finite = st.floats(-(2.0**1022), 2.0**1022)


@given(finite, finite)
def test_relu_of_the_difference_plus_y_rounds_within_the_bound(x, y):
    got = max(x - y, 0.0) + y
    assert abs(Fraction(got) - max(Fraction(x), Fraction(y))) <= Fraction(float(rounding.pair_bound(x, y)))


def test_a_small_operand_is_lost_against_a_large_one_and_minus_infinity_gives_nan():
    x, y = np.float64(1.0), np.float64(-(2.0**54))
    assert max(x - y, 0.0) + y == 0.0
    assert abs(0.0 - max(x, y)) <= rounding.pair_bound(x, y)
    with np.errstate(invalid="ignore"):
        assert np.isnan(np.maximum(x + np.inf, 0) - np.inf)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 33), st.data())
def test_every_maximum_rounds_within_the_bound_of_its_network(n, data):
    x = data.draw(arrays(np.float64, (1, n), elements=st.floats(-1e6, 1e6)))
    for build in (pooling.maximum, pooling.shallow_maximum):
        network = build(n)
        assert abs(network(x).item() - x.max()) <= rounding.network_bound(network, x).item()


def test_verify_reports_every_statement_and_writes_the_same_file_twice(tmp_path, capsys, monkeypatch):
    assert verify.main(out=tmp_path / "a.json", instances=1) == 0
    table = capsys.readouterr().out
    monkeypatch.setattr(proofs, "_valid", lambda *_: True)  # the second time without the solver
    assert verify.main(out=tmp_path / "b.json", instances=1) == 0
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    written = json.loads((tmp_path / "a.json").read_text())
    for row in written["statements"]:
        assert row["holds"] is True
        assert row["statement"] in table
    assert {row["item"] for row in written["statements"]} >= {f"Theorem {k}" for k in (1, 2, 3, 4)} | {"Proposition 1"}
    assert all(row["proved"] for row in written["statements"] if row["item"] in ("Theorem 3", "Theorem 4"))
    assert {"kind", "name", "depth", "widths", "relu_count"} <= set(written["constructors"][0])


def test_verify_exits_1_if_a_statement_fails(monkeypatch, capsys):
    def wrong(check):
        check.network_equals(lambda exact: pooling.maximum(3, exact=exact), lambda x: x.min(-1))

    monkeypatch.setattr(verify, "STATEMENTS", [Statement("Theorem 0", "max = min", wrong)])
    assert verify.main(instances=1) == 1
    assert "FAILS" in capsys.readouterr().out


def test_verify_takes_all_as_a_switch(monkeypatch):
    seen = []
    statement = Statement("Theorem 0", "0 = 0", lambda check: seen.append(check.thorough))
    monkeypatch.setattr(verify, "STATEMENTS", [statement])
    assert cli.main(["verify", "--all", "--instances", "1"]) == 0
    assert cli.main(["verify", "--all", "false"]) == 0
    assert seen == [True, False]
