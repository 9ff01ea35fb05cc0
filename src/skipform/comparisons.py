"""Comparisons of measured networks: those that an experiment file announces, and the rule that decides them.

Two variants, with one network per seed each, differ in a measure only where their ranges over the seeds are disjoint:

    >   every seed of the first lies above every seed of the second        =   they are equal, seed by seed
    <   every seed of the first lies below every seed of the second        ~   anything else

A comparison supports its claim if its relation is the expected one. It contradicts the claim if the ranges are disjoint
the other way round, or, where equality is expected, disjoint at all. Everything else is open.
"""

import statistics
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from skipform.arguments import check_keys, typed
from skipform.errors import SkipformError, shown
from skipform.files import fields

MEASURES = ("regions", "pieces", "hidden_rank", "jacobian_rank", "functional_dimension")
KEYS = {
    "claim": str,
    "expected": Literal[">", "="],
    "measures": list[Literal[MEASURES]],  # type: ignore[valid-type]
    "pairs": list[list[str]],
}
COPY = " as "  # "concat as add": the exact copies with addition of the networks of variant concat


@dataclass(frozen=True)
class Comparison:
    """The announcement: every pair of variants is compared in every measure, before and after training."""

    claim: str
    expected: Literal[">", "="]
    measures: list[str]
    pairs: list[list[str]]

    def variants(self) -> set[str]:
        """The variants that are compared, or whose copies are."""
        return {net.partition(COPY)[0] for pair in self.pairs for net in pair}

    def of_copies(self) -> bool:
        """Whether it is about exact copies, which have regions, pieces and ranks, but no functional dimension."""
        return any(COPY in net for pair in self.pairs for net in pair)


@dataclass(frozen=True)
class Outcome:
    """One decided comparison. when: "initial" or "final"."""

    claim: str
    measure: str
    when: str
    first: str
    second: str
    expected: str
    relation: Literal[">", "<", "=", "~"]
    outcome: Literal["supports", "contradicts", "open"]
    median_first: float
    median_second: float
    seeds: int


def read(announced: Any, variants: Collection[str], where: str) -> list[Comparison]:
    """The comparisons in an experiment file, checked.

    Raises:
        SkipformError: one line that begins with `where`: another key or type, an unknown variant, no pair.
    """
    result = []
    for i, given in enumerate(typed(announced, list[dict[str, Any]], where)):
        here = f"{where}[{i}]"
        check_keys(given, KEYS, here)
        comparison = Comparison(**fields(given, KEYS, here))
        for pair in comparison.pairs:
            if len(pair) != 2:
                raise SkipformError(f"{here}: pairs: {shown(pair)}; accepted: [VARIANT, VARIANT], or VARIANT{COPY}SKIP")
        if unknown := comparison.variants() - {*variants}:
            raise SkipformError(f"{here}: pairs: no variant {shown(min(unknown))}; there are: {', '.join(variants)}")
        if comparison.of_copies() and "functional_dimension" in comparison.measures:
            raise SkipformError(
                f"{here}: measures: functional_dimension is not measured for copies; accepted: the others"
            )
        result.append(comparison)
    return result


def decide(comparisons: Iterable[Comparison], rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The outcomes, as dictionaries, of the comparisons of measured networks.

    rows: one per variant, seed, `when` and `copy` (its skip, or None), with the measures.
    """
    measured: dict[tuple[str, str], dict[int, Mapping[str, Any]]] = {}
    for row in rows:
        name = row["variant"] + (COPY + row["copy"] if row["copy"] else "")
        measured.setdefault((name, row["when"]), {})[row["seed"]] = row
    outcomes = []
    for comparison in comparisons:
        for measure in comparison.measures:
            for first, second in comparison.pairs:
                for when in ("initial", "final"):
                    x, y = ({s: row[measure] for s, row in measured[net, when].items()} for net in (first, second))
                    sign = relation(x, y)
                    outcomes.append(
                        Outcome(
                            claim=comparison.claim,
                            measure=measure,
                            when=when,
                            first=first,
                            second=second,
                            expected=comparison.expected,
                            relation=sign,
                            outcome=outcome(sign, comparison.expected),
                            median_first=statistics.median(x.values()),
                            median_second=statistics.median(y.values()),
                            seeds=len(x),
                        )
                    )
    return [asdict(outcome) for outcome in outcomes]


def relation(first: Mapping[int, float], second: Mapping[int, float]) -> Literal[">", "<", "=", "~"]:
    """The relation of two variants; both map the seed to the measured number."""
    if first == second:
        return "="
    if min(first.values()) > max(second.values()):
        return ">"
    return "<" if max(first.values()) < min(second.values()) else "~"


def outcome(relation: str, expected: str) -> Literal["supports", "contradicts", "open"]:
    """What a relation says of a claim that expects another one, or this one."""
    if relation == expected:
        return "supports"
    against = {">": "<", "=": "<>"}[expected]
    return "contradicts" if relation in against else "open"
