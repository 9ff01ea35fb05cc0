"""The rule of comparisons: exact tests against scipy's, and on distributions whose answer is known."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from skipform import comparisons, verdicts
from skipform.errors import SkipformError
from skipform.verdicts import LEVEL, PAIRED

GOOD = {"claim": "some", "expected": ">", "measures": ["pieces"], "pairs": [["a", "b"], ["a", "a as add"]]}
NUMBERS = st.one_of(st.integers(-3, 3), st.floats(-1e6, 1e6), st.just(math.inf))


def numbered(values):
    return dict(enumerate(values))


def rows_of(when="final", **variants):
    """One row per variant and seed, with the numbers under "value"."""
    return [
        {"variant": name, "copy": None, "seed": seed, "when": when, "value": value}
        for name, values in variants.items()
        for seed, value in enumerate(values)
    ]


def decided(x, y, expected=">", margin=None, pairs=1):
    """The outcome of a claim of `pairs` equal comparisons."""
    entry = {"claim": "c", "expected": expected, "measures": ["value"], "pairs": [["x", "y"]] * pairs}
    entry |= {"margin": margin} if margin is not None else {}
    (first, *_) = verdicts.decide(comparisons.read([entry], ["x", "y"], "file"), rows_of(x=x, y=y))
    return first


# The tests


@settings(max_examples=60)
@given(st.lists(NUMBERS, min_size=2, max_size=5), st.lists(NUMBERS, min_size=2, max_size=5))
def test_p_of_two_groups_is_that_of_all_splits_of_their_ranks(x, y):
    ranks = stats.rankdata([*x, *y])
    expected = stats.permutation_test(
        (ranks[: len(x)], ranks[len(x) :]),
        lambda first, second, axis: first.sum(axis),
        n_resamples=np.inf,
        alternative="greater",
        vectorized=True,
    ).pvalue
    # both count the same splits and divide by their number: one rounding each
    assert verdicts.p_above(numbered(x), numbered(y)) == pytest.approx(expected, rel=1e-15)


@settings(max_examples=20)
@given(st.lists(st.tuples(NUMBERS, NUMBERS), min_size=PAIRED, max_size=PAIRED + 2))
def test_p_of_pairs_is_that_of_all_signs_of_their_ranked_differences(pairs):
    x, y = zip(*pairs, strict=True)
    apart = np.array([0.0 if a == b else a - b for a, b in pairs])
    ranked = np.sign(apart) * stats.rankdata(np.abs(apart))
    sums = [sum(s * r for s, r in zip(signs, ranked, strict=True)) for signs in np.ndindex(*[2] * len(x))]
    half = ranked.sum() / 2 + sum(ranked) / 2  # the sum where every sign is +, from signs that are 0 or 1
    sums = [2 * s - ranked.sum() for s in sums]
    assert half == ranked.sum()
    assert verdicts.p_above(numbered(x), numbered(y)) == np.mean([s >= ranked.sum() for s in sums])


def test_two_networks_of_a_seed_are_a_pair_from_ten_shared_seeds_on():
    for shared, paired in ((PAIRED - 1, False), (PAIRED, True)):
        assert verdicts.are_pairs(numbered([0.0] * shared), numbered([1.0] * shared)) is paired
    assert not verdicts.are_pairs(numbered([0.0] * PAIRED), numbered([0.0] * (PAIRED + 1)))


@pytest.mark.parametrize(("n", "floor"), [(3, 1 / 20), (5, 1 / 252), (6, 1 / 924), (10, 2**-10), (30, 1 / 200_001)])
def test_the_least_p_is_that_of_networks_that_lie_apart(n, floor):
    below, above = numbered(range(n)), numbered(range(n, 2 * n))
    least = verdicts.p_above(above, below)
    # of 30 pairs not all signs are enumerated: the given ones count among those that are drawn
    assert least == pytest.approx(floor, rel=1e-12)
    assert verdicts.p_above(below, above) == 1


@settings(max_examples=40)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=40))
def test_holms_p_is_the_naive_one(p):
    order = sorted(p)
    naive = {value: max(min(1, (len(p) - i) * order[i]) for i in range(order.index(value) + 1)) for value in order}
    assert verdicts.holm(p) == [
        max(naive[value], *(min(1, (len(p) - i) * v) for i, v in enumerate(order) if v == value)) for value in p
    ]


@settings(max_examples=40)
@given(st.lists(NUMBERS, min_size=1, max_size=6), st.lists(NUMBERS, min_size=1, max_size=6))
def test_the_effect_is_the_share_of_pairs_in_which_the_first_lies_above(x, y):
    first, second = numbered(x), numbered(y)
    shares = [1.0 if a > b else 0.5 if a == b else 0.0 for a in x for b in y]
    assert verdicts.effect(first, second) == sum(shares) / len(shares)
    assert verdicts.effect(first, second) + verdicts.effect(second, first) == pytest.approx(1)


@settings(max_examples=30)
@given(
    st.lists(st.integers(-4, 4), min_size=2, max_size=6),
    st.lists(st.integers(-4, 4), min_size=2, max_size=6),
    st.integers(-9, 9),
)
def test_the_interval_holds_the_shifts_that_are_not_rejected(x, y, shift):
    first, second = numbered(x), numbered(y)
    low, high = verdicts.interval(first, second)
    away = shift + 0.5  # between the differences, at which p changes
    rejected = [verdicts.p_above(first, second, away) <= LEVEL, verdicts.p_above(second, first, -away) <= LEVEL]
    assert (low <= away <= high) == (not any(rejected))


# The rule on distributions whose answer is known.


def share(draw, verdict, trials, **options):
    """How often claims about two drawn groups of networks get a verdict."""
    generator = np.random.default_rng(0)
    return np.mean([decided(*draw(generator), **options)["verdict"] == verdict for _ in range(trials)])


def above_level(trials):
    """LEVEL and three standard errors of a share of so many trials."""
    return LEVEL + 3 * math.sqrt(LEVEL * (1 - LEVEL) / trials)


def normal(n, shift=0.0, alike=0.0):
    """n networks a side, apart by `shift` standard deviations; those of a seed have the correlation `alike`."""

    def draw(generator):
        common, x, y = generator.normal(size=(3, n))
        a, b = math.sqrt(alike), math.sqrt(1 - alike)
        return list(shift + a * common + b * x), list(a * common + b * y)

    return draw


@pytest.mark.parametrize("n", [3, 5, 6, PAIRED])
@pytest.mark.parametrize("alike", [0.0, 0.7])
def test_networks_that_do_not_differ_are_called_different_as_rarely_as_the_level(n, alike):
    """By p alone, on which the verdict on a single comparison depends."""
    generator, trials = np.random.default_rng(0), 400
    drawn = [[numbered(side) for side in normal(n, alike=alike)(generator)] for _ in range(trials)]
    for first, second in ((0, 1), (1, 0)):
        rejected = [verdicts.p_above(sides[first], sides[second]) <= LEVEL for sides in drawn]
        assert np.mean(rejected) <= above_level(trials)


@pytest.mark.parametrize(("n", "pairs"), [(6, 46), (5, 12), (3, 1)])
def test_a_clear_difference_is_decided_both_ways_over_as_many_comparisons_as_the_seeds_allow(n, pairs):
    trials = 3
    assert share(normal(n, 8.0), "holds", trials, pairs=pairs) == 1
    assert share(normal(n, -8.0), "does not hold", trials, pairs=pairs) == 1


def test_numbers_of_seeds_and_comparisons_that_decide_nothing_are_named():
    """One comparison more than 6 (5, 3) networks a side can decide, and one fewer."""
    for n, most in ((6, 46), (5, 12), (3, 1)):
        x, y = list(range(n, 2 * n)), list(range(n))
        for pairs in (most, most + 1):
            outcome = decided(x, y, pairs=pairs)
            assert (outcome["least"] <= LEVEL) == (pairs == most)
            assert (outcome["verdict"] == "holds") == (pairs == most)
            assert outcome["p"] == pytest.approx(pairs / math.comb(2 * n, n))


@pytest.mark.parametrize(
    ("shift", "margin", "verdict"),
    [
        (0.0, 8.0, "holds"),
        (16.0, 8.0, "does not hold"),
        (-16.0, 8.0, "does not hold"),
        (0.0, 0.2, "open"),  # a margin that networks of this spread cannot show to be kept
    ],
)
def test_equality_is_decided_by_its_margin(shift, margin, verdict):
    assert share(normal(6, shift), verdict, 20, expected="=", margin=margin) >= 0.95


@pytest.mark.parametrize("verdict", ["holds", "does not hold"])
def test_equality_at_its_margin_is_decided_as_rarely_as_the_level(verdict):
    """A shift by the whole margin is the nearest case in which either verdict is wrong."""
    trials = 150
    assert share(normal(5, 3.0), verdict, trials, expected="=", margin=3.0) <= above_level(trials)


def test_an_interval_covers_the_true_shift_nine_times_of_ten():
    generator, trials, inside = np.random.default_rng(1), 150, 0
    for _ in range(trials):
        low, high = verdicts.interval(*map(numbered, normal(5, 2.0)(generator)))
        inside += low <= 2 <= high
    assert inside / trials >= 0.9 - 3 * math.sqrt(0.9 * 0.1 / trials)


def test_an_identity_holds_for_every_seed_or_fails():
    assert decided([1, 2, 3], [1, 2, 3], "=", 0)["verdict"] == "holds"
    outcome = decided([1, 2, 3], [1, 2, 4], "=", 0)
    assert (outcome["verdict"], outcome["p"]) == ("does not hold", None)
    assert (outcome["low"], outcome["shift"], outcome["high"]) == (-1, 0, 0)
    assert decided([1, 2], [1, 2, 3], "=", 0)["verdict"] == "does not hold"


def test_what_a_net_never_reaches_lies_above_all_that_others_do():
    outcome = decided([math.inf] * 5, [3, 4, 5, 6, 7])
    assert (outcome["verdict"], outcome["effect"], outcome["median_first"]) == ("holds", 1, None)
    assert (outcome["low"], outcome["high"]) == (None, None)
    assert decided([math.inf] * 5, [math.inf] * 5)["verdict"] == "open"


@pytest.mark.parametrize(
    ("single", "verdict"),
    [
        (["holds", "holds"], "holds"),
        (["holds", "open"], "open"),
        (["holds", "open", "does not hold"], "does not hold"),
        ([], "open"),
    ],
)
def test_a_claim_holds_if_all_its_comparisons_do_and_fails_with_one(single, verdict):
    assert verdicts.verdict_of(single) == verdict


# The announcement


def test_every_measure_pair_and_moment_is_compared_and_entries_of_a_sentence_are_one_claim():
    entries = [GOOD | {"measures": ["regions"]}, GOOD | {"measures": ["pieces"]}, GOOD | {"claim": "other"}]
    rows = [
        {"variant": v, "copy": c, "seed": seed, "when": when, "regions": n + seed, "pieces": seed}
        for v, c, n in (("a", None, 10), ("b", None, 0), ("a", "add", 10))
        for seed in range(5)
        for when in ("initial", "final")
    ]
    found = verdicts.decide(comparisons.read(entries, ["a", "b"], "file"), rows)
    by_place = {(row["claim"], row["measure"], row["second"], row["when"]): row for row in found}
    assert len(by_place) == len(found) == 8 + 4
    apart = by_place["some", "regions", "b", "final"]
    assert (apart["verdict"], apart["seeds"], apart["median_first"]) == ("holds", (5, 5), 12)
    assert apart["p"] == pytest.approx(8 / 252)
    assert by_place["other", "pieces", "b", "final"]["least"] == pytest.approx(4 / 252)


def test_rows_of_a_network_complete_each_other_and_an_unknown_measure_is_named():
    announced = comparisons.read([GOOD | {"pairs": [["a", "b"]], "measures": ["loss"]}], ["a", "b"], "file")
    rows = rows_of(a=range(3), b=range(3, 6))
    losses = [row | {"loss": row.pop("value")} for row in rows_of(a=range(3), b=range(3, 6))]
    (outcome,) = verdicts.decide(announced, [*rows, *losses])
    assert outcome["median_second"] == 4
    with pytest.raises(SkipformError, match=r"some: loss is not known for a; known are: copy, seed, value, variant"):
        verdicts.decide(announced, rows)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"expected": "<"}, r"file\[0\]: expected: "),
        ({"expected": "="}, r"file\[0\]: margin is missing"),
        ({"expected": "=", "margin": -1}, r"file\[0\]: margin: -1; accepted: 0 or more"),
        ({"margin": 1}, r'file\[0\]: margin: 1; accepted: with expected: "=" only'),
        ({"measures": ["Error rate"]}, r"file\[0\]: measures: 'Error rate'; accepted: the name of a number"),
        ({"measures": ["seconds_to 1"]}, r"measures: 'seconds_to 1'; accepted: .*epochs_to LOSS"),
        ({"measures": ["functional_dimension"]}, "functional_dimension is not measured for copies"),
        ({"pairs": [["a"]]}, r"\['a'\]; accepted: \[VARIANT, VARIANT\]"),
        ({"pairs": [["a", "c"]]}, "no variant 'c'; there are: a, b"),
        ({"seeds": 3}, "seeds"),
    ],
)
def test_a_wrong_announcement_is_refused_by_name(changed, words):
    with pytest.raises(SkipformError, match=words):
        comparisons.read([GOOD | changed], ["a", "b"], "file")
