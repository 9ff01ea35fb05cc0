"""Comparisons of trained networks, as an experiment file announces them.

    comparisons:
      - claim: "skips make deep nets trainable"     a sentence; entries with equal sentences are one claim
        measures: [train_error, epochs_to 0.1]      numbers of the runs or of what has been measured on their nets
        pairs: [[plain-44, residual-44]]            variants; "concat as add": the exact copies of concat with addition
        expected: ">"                               or "="
        margin: 2                                   with "=" only, in the unit of the measure

src/skipform/verdicts.py states the rule that decides them.
"""

import math
import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Literal

from skipform.arguments import check_keys, typed
from skipform.errors import SkipformError, shown
from skipform.files import fields

EXPRESSIVE = ("regions", "pieces", "hidden_rank", "jacobian_rank", "functional_dimension")  # `skipform claims` measures
MEASURE = r"[a-z][a-z0-9_]*|(epochs|steps)_to [0-9.e+-]+"
KEYS = {"claim": str, "expected": Literal[">", "="], "measures": list[str], "pairs": list[list[str]]}
COPY = " as "


@dataclass(frozen=True)
class Comparison:
    """The announcement: every pair of variants is compared in every measure, at every moment at which it is known."""

    claim: str
    expected: Literal[">", "="]
    measures: list[str]
    pairs: list[list[str]]
    margin: float | None = None

    def variants(self) -> set[str]:
        """The variants that are compared, or whose copies are."""
        return {net.partition(COPY)[0] for pair in self.pairs for net in pair}

    def of_copies(self) -> bool:
        """Whether it is about exact copies, which have regions, pieces and ranks, but no functional dimension."""
        return any(COPY in net for pair in self.pairs for net in pair)


def read(announced: Any, variants: Collection[str], where: str) -> list[Comparison]:
    """The comparisons in an experiment file, checked.

    Raises:
        SkipformError: one line that begins with `where`: another key or type, an unknown variant, no pair, a margin
            missing or out of place.
    """
    result = []
    for i, given in enumerate(typed(announced, list[dict[str, Any]], where)):
        here = f"{where}[{i}]"
        check_keys(given, [*KEYS, "margin"], here)
        comparison = Comparison(**fields(given, KEYS, here))
        if comparison.expected == "=":
            margin = fields(given, {"margin": float}, here)["margin"]
            if not 0 <= margin < math.inf:
                raise SkipformError(f"{here}: margin: {margin}; accepted: 0 or more, in the unit of the measure")
        elif "margin" in given:
            raise SkipformError(f'{here}: margin: {shown(given["margin"])}; accepted: with expected: "=" only')
        for measure in comparison.measures:
            if not re.fullmatch(MEASURE, measure):
                raise SkipformError(
                    f"{here}: measures: {shown(measure)}; accepted: the name of a number, such as test_error or"
                    ' pieces, or "epochs_to LOSS", "steps_to LOSS"'
                )
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
