"""The rule that decides the comparisons of an experiment file (src/skipform/comparisons.py), and its statistics.

The unit is the seed: a variant has one network per seed, and all its numbers are of that network. From
PAIRED shared seeds on, the two networks of a seed are a pair, and the test is Wilcoxon's signed-rank test (all signs of
the differences); below, when signs have too few patterns to decide anything (5 pairs: 32), it is the rank-sum test (all
splits into two groups; 5 against 5: 252). Both are exact, with ties, and one-sided; a seed that makes its two networks
alike makes the second too cautious, not too bold.

    >   expects that the first lies above the second. It holds if the test against "not above" gives p <= LEVEL; it does
        not hold if the test against "not below" does.
    =   expects that they differ by less than the margin, which is named before anything is measured. It holds if both
        tests against "further above, or below, than the margin" give p <= LEVEL; it does not hold if a test against
        "within the margin" gives p <= LEVEL / 2. With margin 0 it is an identity, which needs no test: equal for every
        seed, or not.

p is that of Holm's procedure over the comparisons of the claim. What neither holds nor fails is open. A claim holds if
all its comparisons do, does not hold if one of them does not, and is open otherwise.

Beside p stand the effect, which is the probability that a network of the first lies above one of the second (ties count
half), and the shift, which is the median difference (of Hodges and Lehmann) with its interval: all shifts that the same
tests do not reject, at LEVEL on each side. Numbers of seeds n and m allow no p below 1 / C(n + m, n), or 1 / 2^n for
pairs: `least` is this bound times the number of comparisons, and above LEVEL none of them can hold.
"""

import math
import statistics
from bisect import bisect_left
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from itertools import combinations
from typing import TYPE_CHECKING, Any, Literal

from skipform.comparisons import COPY, Comparison
from skipform.errors import SkipformError

if TYPE_CHECKING:
    import numpy as np

LEVEL = 0.05
PAIRED = 10  # shared seeds from which on they are pairs: 2^-10 < 0.001
MOST = 200_000  # splits or patterns of signs that are enumerated; of more, as many are drawn at random

Verdict = Literal["holds", "does not hold", "open"]
Numbers = Mapping[int, float]  # seed -> the number of its network; infinite for what a net has never reached


@dataclass(frozen=True)
class Outcome:
    """One decided comparison; see the rule. when: "initial" or "final", before or after training.

    A number is None where it is infinite, and p and p_against are for an identity.
    """

    claim: str
    measure: str
    when: str
    first: str
    second: str
    expected: str
    margin: float | None
    seeds: tuple[int, int]
    median_first: float | None
    median_second: float | None
    shift: float | None
    low: float | None
    high: float | None
    effect: float
    least: float
    p: float | None
    p_against: float | None
    verdict: Verdict


def decide(comparisons: Iterable[Comparison], rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The outcomes, as dictionaries, of the comparisons of measured networks.

    rows: one per variant, seed, `when` and `copy` (its skip, or None), with the measures; several rows of one network
    complete each other.

    Raises:
        SkipformError: a measure that no row has, or not those of both sides.
    """
    measured: dict[tuple[str, str], dict[int, dict[str, Any]]] = {}
    for row in rows:
        name = row["variant"] + (COPY + row["copy"] if row.get("copy") else "")
        measured.setdefault((name, row["when"]), {}).setdefault(row["seed"], {}).update(row)
    outcomes: list[Outcome] = []
    for comparison in comparisons:
        for measure in comparison.measures:
            for pair in comparison.pairs:
                x, y = (_moments(measured, net, measure) for net in pair)
                both = [when for when in x if when in y]
                if not both:
                    lacking = pair[0] if not x else pair[1]
                    known = sorted({key for nets in measured.values() for row in nets.values() for key in row})
                    raise SkipformError(
                        f"{comparison.claim}: {measure} is not known for {lacking}; known are: {', '.join(known)}"
                    )
                outcomes += [_tested(comparison, measure, when, pair, x[when], y[when]) for when in both]
    return [asdict(outcome) for outcome in _decided(outcomes)]


def _moments(measured: Mapping[tuple[str, str], Any], net: str, measure: str) -> dict[str, Numbers]:
    """When -> the numbers of a variant, at the moments at which all its networks have them."""
    found: dict[str, Numbers] = {}
    for when in ("initial", "final"):
        values = {seed: row.get(measure) for seed, row in measured.get((net, when), {}).items()}
        if values and None not in values.values():
            found[when] = values
    return found


def _tested(comparison: Comparison, measure: str, when: str, pair: list[str], x: Numbers, y: Numbers) -> Outcome:
    """The outcome before Holm's procedure, and without a verdict unless it is an identity."""
    paired, margin = are_pairs(x, y), comparison.margin
    low, high = interval(x, y)
    outcome = Outcome(
        claim=comparison.claim,
        measure=measure,
        when=when,
        first=pair[0],
        second=pair[1],
        expected=comparison.expected,
        margin=margin,
        seeds=(len(x), len(y)),
        median_first=_finite(statistics.median(x.values())),
        median_second=_finite(statistics.median(y.values())),
        shift=_finite(statistics.median(differences(x, y))),
        low=_finite(low),
        high=_finite(high),
        effect=effect(x, y),
        least=1 / (2 ** len(x) if paired else math.comb(len(x) + len(y), len(x))),
        p=None,
        p_against=None,
        verdict="open",
    )
    if margin == 0:
        apart = [_minus(x[seed], y[seed]) for seed in x if seed in y] or [math.inf]
        middle, least, most = (_finite(of(apart)) for of in (statistics.median, min, max))
        verdict: Verdict = "holds" if x == y else "does not hold"
        return replace(outcome, shift=middle, low=least, high=most, least=0.0, verdict=verdict)
    if margin is None:
        return replace(outcome, p=p_above(x, y), p_against=p_above(y, x))
    inside = max(p_above(x, y, -margin), p_above(y, x, -margin))
    outside = min(p_above(x, y, margin), p_above(y, x, margin))
    return replace(outcome, p=inside, p_against=min(1.0, 2 * outside))


def _decided(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """The outcomes with the p of Holm's procedure over each claim, and with their verdicts."""
    result = list(outcomes)
    for claim in dict.fromkeys(outcome.claim for outcome in outcomes):
        places = [i for i, outcome in enumerate(outcomes) if outcome.claim == claim and outcome.p is not None]
        corrected = zip(
            places,
            holm([outcomes[i].p or 0.0 for i in places]),
            holm([outcomes[i].p_against or 0.0 for i in places]),
            strict=True,
        )
        for i, p, p_against in corrected:
            verdict: Verdict = "holds" if p <= LEVEL else "does not hold" if p_against <= LEVEL else "open"
            least = min(1.0, len(places) * outcomes[i].least)
            result[i] = replace(outcomes[i], p=p, p_against=p_against, least=least, verdict=verdict)
    return result


def verdict_of(verdicts: Collection[str]) -> Verdict:
    """The verdict on a claim, from those of its comparisons."""
    if "does not hold" in verdicts:
        return "does not hold"
    return "holds" if {*verdicts} == {"holds"} else "open"


# The statistics. x and y: seed -> number.


def are_pairs(x: Numbers, y: Numbers) -> bool:
    """Whether the two networks of a seed are compared with each other."""
    return x.keys() == y.keys() and len(x) >= PAIRED


def p_above(x: Numbers, y: Numbers, shift: float = 0.0) -> float:
    """The p of the exact one-sided test against "x lies above y by no more than `shift`"."""
    import numpy as np
    from scipy.stats import rankdata

    if are_pairs(x, y):
        apart = np.array([_minus(x[seed], y[seed]) - shift for seed in x])
        ranks = np.sign(apart) * rankdata(np.abs(apart))
        return float(np.mean(_signs(len(x)) @ ranks >= ranks.sum()))
    ranks = rankdata([value - shift for value in x.values()] + list(y.values()))
    return float(np.mean(ranks[_splits(len(x), len(y))].sum(axis=1) >= ranks[: len(x)].sum()))


def differences(x: Numbers, y: Numbers) -> list[float]:
    """The differences that the test counts, in order: of all networks of x and y, or the means of two pairs'."""
    if are_pairs(x, y):
        apart = [_minus(x[seed], y[seed]) for seed in x]
        return sorted((a + b) / 2 for i, a in enumerate(apart) for b in apart[i:])
    return sorted(_minus(a, b) for a in x.values() for b in y.values())


def interval(x: Numbers, y: Numbers) -> tuple[float, float]:
    """The least and the greatest shift of x above y that the tests, at LEVEL on each side, do not reject."""
    return _least_shift(x, y), -_least_shift(y, x)


def _least_shift(x: Numbers, y: Numbers) -> float:
    # p grows with the shift, in steps at the differences. Where even the first step is high, no shift is rejected.
    steps = [step for step in differences(x, y) if math.isfinite(step)]
    reached: Callable[[float], bool] = lambda step: p_above(x, y, step) > LEVEL  # noqa: E731
    below = min(steps, default=0.0) - 1
    if not steps or p_above(x, y, below) > LEVEL:
        return -math.inf
    place = bisect_left(steps, True, key=reached)
    return steps[place] if place < len(steps) else math.inf


def effect(x: Numbers, y: Numbers) -> float:
    """The probability that a network of x lies above one of y; ties count half."""
    above = sum((a > b) + (a == b) / 2 for a in x.values() for b in y.values())
    return above / (len(x) * len(y))


def holm(p: Sequence[float]) -> list[float]:
    """The p of Holm's procedure: of m, the k-th smallest counts (m - k + 1) times, and no less than a smaller one."""
    corrected, highest = [0.0] * len(p), 0.0
    for rank, i in enumerate(sorted(range(len(p)), key=p.__getitem__)):
        highest = max(highest, min(1.0, (len(p) - rank) * p[i]))
        corrected[i] = highest
    return corrected


def _minus(a: float, b: float) -> float:
    return 0.0 if a == b else a - b  # also where both are infinite


def _finite(number: float) -> float | None:
    return number + 0.0 if math.isfinite(number) else None  # + 0.0: of -0.0 too


@cache
def _splits(n: int, m: int) -> "np.ndarray":
    """The places of the first group in n + m networks, one split a row; the first row is 0, ..., n - 1."""
    import numpy as np

    if math.comb(n + m, n) <= MOST:
        return np.array([*combinations(range(n + m), n)])
    drawn = np.random.default_rng(0).permuted(np.tile(np.arange(n + m), (MOST, 1)), axis=1)[:, :n]
    return np.vstack([np.arange(n), drawn])


@cache
def _signs(n: int) -> "np.ndarray":
    """Patterns of n signs, one a row; the first row is all +."""
    import numpy as np

    if 2**n <= MOST:
        return 1.0 - 2.0 * (np.arange(2**n)[:, None] >> np.arange(n) & 1)
    return np.vstack([np.ones(n), np.random.default_rng(0).choice([-1.0, 1.0], (MOST, n))])
