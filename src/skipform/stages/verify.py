"""skipform verify: every statement of the paper, checked in float64, in fractions and by proof (`theory.check`)."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from skipform.arguments import Count, Seed
from skipform.files import write_json, write_text
from skipform.outputs import check_file
from skipform.theory.certificates import CERTIFIED, certificate, maxima
from skipform.theory.check import Check
from skipform.theory.keras_layers import constructors
from skipform.theory.statements import STATEMENTS, Statement


def main(
    *,
    out: Path | None = None,
    all: bool = False,
    instances: Count = 20,
    seed: Seed = 0,
    certificates: Path | None = None,
) -> int:
    """Check every statement of the paper and print one row per statement; exit 1 if one fails.

    Args:
        out: JSON file for the rows and the table of all constructors.
        all: also run the proofs and instances that take longer.
        instances: random instances of each statement, where there is a choice.
        seed: the seed of the random instances.
        certificates: only write the certificates of the shallow maxima into this folder (theory/certificates.py).
    """
    if certificates is not None:
        return write_certificates(certificates)
    if out is not None:
        check_file(out, suffixes=[".json"])
    print(f"{'item':<14}{'statement':<52}{'instances':>10}{'max error':>11}  {'exact':<6}{'proved':<7}")
    rows = []
    for number, statement in enumerate(tqdm(STATEMENTS, desc="verify", leave=False, disable=None)):
        check = statement.verify(np.random.default_rng([seed, number]), repetitions=instances, thorough=all)
        rows.append(_record(statement, check))
        tqdm.write(_line(statement, check))
    if out is not None:
        write_json(out, {"statements": rows, "constructors": constructors(), "maxima": maxima()})
    return 1 if any(not row["holds"] for row in rows) else 0


def write_certificates(folder: Path) -> int:
    """Write FOLDER/max5.json, max6.json, ...; `python FOLDER/check.py FOLDER/*.json` proves them."""
    for n in CERTIFIED:
        write_text(folder / f"max{n}.json", json.dumps(certificate(n), separators=(",", ":")) + "\n")
    return 0


def _record(statement: Statement, check: Check) -> dict[str, Any]:
    """The row of the JSON file, which analysis/statements.py reads."""
    return {
        "item": statement.item,
        "statement": statement.text,
        "instances": check.instances,
        "max_error": check.max_error,
        "exact": check.exact,
        "proved": check.proved,
        "holds": check.holds,
        "erratum": statement.erratum,
        "proved_for": sorted(set(check.proved_for)),
    }


def _line(statement: Statement, check: Check) -> str:
    """The row of the printed table."""
    error = "-" if check.max_error is None else f"{check.max_error:.1e}"
    words = {True: "yes", False: "NO", None: "-"}
    verdict = f"{words[check.exact]:<6}{words[check.proved]:<7}{'' if check.holds else '  FAILS'}"
    return f"{statement.item:<14}{statement.text:<52}{check.instances:>10}{error:>11}  {verdict}"
