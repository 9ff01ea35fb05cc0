"""`skipform verdicts`: the claims, their comparisons, and what the trained networks say of them, as a table."""

from pathlib import Path
from typing import Any

from skipform.errors import SkipformError
from skipform.files import fields, read_json
from skipform.verdicts import LEVEL, verdict_of

ROW = {"claim": str, "measure": str, "when": str, "first": str, "second": str, "verdict": str}
HEADS = ("comparison", "measure", "medians", "shift", "interval", "effect", "p", "verdict")


def main(*, measures: Path = Path("measures/claims"), second: Path | None = None) -> None:
    """Print every claim with its verdict: holds, does not hold, or open at this scale; and every comparison it rests
    on: the two medians, the shift between the two networks and its interval of 90 %, the effect, which is the
    probability that a network of the first lies above one of the second, and p after Holm's correction over the claim.
    The rule is stated in src/skipform/verdicts.py.

    Args:
        measures: The folder of the files that `skipform claims` writes.
        second: The same folder of another machine; a verdict that is another one there is open.
    """
    files = sorted(measures.glob("*.json"))
    if not files:
        raise SkipformError(f"{measures}: no claims (*.json) in it; `skipform claims` writes them")
    few = False
    for path in files:
        rows = comparisons_in(path)
        if second is not None and (second / path.name).is_file():
            rows = confirmed(rows, comparisons_in(second / path.name))
        for claim in dict.fromkeys(row["claim"] for row in rows):
            own = [row for row in rows if row["claim"] == claim]
            print(f"{path.stem}: {claim}: {verdict_of([row['verdict'] for row in own])}")
            print_table([HEADS, *map(printed, own)])
            print()
            few = few or any(row.get("least", 0) > LEVEL for row in own)
    if few:
        print("*  too few seeds: these numbers of seeds and comparisons allow no p of 0.05 or less")


def comparisons_in(path: Path) -> list[dict[str, Any]]:
    """The comparisons in a file of `skipform claims`."""
    rows = fields(read_json(path), {"comparisons": list}, path)["comparisons"]
    return [fields(row, ROW, f"{path}: comparisons") for row in rows]


def confirmed(rows: list[dict[str, Any]], others: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The comparisons, open where another machine's verdict is not the same."""

    def key(row: dict[str, Any]) -> tuple[str, ...]:
        return tuple(row[name] for name in ROW if name != "verdict")

    there = {key(row): row["verdict"] for row in others}
    return [row | {"verdict": row["verdict"] if there.get(key(row)) == row["verdict"] else "open"} for row in rows]


def printed(row: dict[str, Any]) -> tuple[str, ...]:
    """The cells of a comparison."""
    sign = row["expected"] if row["margin"] is None else f"= (±{row['margin']:g})"
    return (
        f"{row['first']} {sign} {row['second']}",
        row["measure"] + ", before training" * (row["when"] == "initial"),
        f"{number(row['median_first'])}, {number(row['median_second'])}",
        number(row["shift"]),
        f"{number(row['low'])} to {number(row['high'])}",
        f"{row['effect']:.2f}",
        "identity" if row["p"] is None else f"{row['p']:.4f}",
        row["verdict"] + "*" * (row["least"] > LEVEL),
    )


def number(value: float | None) -> str:
    return "none" if value is None else f"{value:.4g}"


def print_table(rows: list[tuple[str, ...]]) -> None:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
