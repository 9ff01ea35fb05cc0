"""The rows of results/*.csv: a variant, the middle and the range over its seeds, and where these numbers come from."""

import csv
import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from skipform.errors import SkipformError
from skipform.files import read_text, write_text
from skipform.runs import Run, further

Row = dict[str, str]


def row_of(experiment: str, variant: str, trained: dict[str, Any], runs: list[Run]) -> Row:
    """The row of a variant. trained: `summary_of` its runs; commit, hardware, versions and command are the first run's;
    the commit ends in -dirty, as with git, if sources had been changed since; the seconds are the median."""
    config, origin = runs[0].config, runs[0].provenance
    row = {
        "experiment": experiment,
        "variant": variant,
        "scale": config["scale"],
        "data": config["data"]["name"],
        "parameters": str(trained["parameters"]),
        "epochs": str(trained["epochs"]),
        "seeds": " ".join(map(str, trained["seeds"])),
    }
    row["score"], row["unit"] = trained["shown"]
    for split in ("train", "test"):  # some scores are only computed in evaluation mode, not while training
        score = trained.get(f"{split}_{row['score']}", {})
        row |= {f"{split}_{end}": f"{score[end]:.2f}" if score else "" for end in ("middle", "low", "high")}
    row["further"] = ", ".join(further(trained))
    seconds = sorted(run.provenance["training_seconds"] for run in runs)
    row["seconds_per_seed"] = f"{seconds[len(runs) // 2]:.1f}"
    row["hardware"] = ", ".join(f"{key} {value}" for key, value in origin["hardware"].items() if value)
    row["versions"] = " ".join(f"{name}={version}" for name, version in origin["versions"].items())
    row["commit"] = f"{origin['commit'] or ''}{'-dirty' * any(run.provenance['changed_since_commit'] for run in runs)}"
    row["command"] = origin["command"]
    return row


def write(out: str | Path, rows: list[Row]) -> None:
    """Write the rows, one or more, as a CSV file."""
    text = io.StringIO()
    table = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    write_text(out, text.getvalue())


def add(out: str | Path, row: Row) -> None:
    """Write the row into a CSV file: in place of the row of this experiment and variant, or after the others.

    Raises:
        SkipformError: the file has other columns than the row.
    """
    earlier = _read(out, row) if Path(out).is_file() else []
    rows = {(entry["experiment"], entry["variant"]): entry for entry in [*earlier, row]}
    write(out, list(rows.values()))


def _read(path: str | Path, like: Iterable[str]) -> list[Row]:
    table = csv.DictReader(read_text(path).splitlines())
    rows = list(table)
    if list(table.fieldnames or ()) != list(like) or any(None in row or None in row.values() for row in rows):
        raise SkipformError(f"{path}: accepted is a table with the columns {', '.join(like)}, as skipform writes it")
    return rows
