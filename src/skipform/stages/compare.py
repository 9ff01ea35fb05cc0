"""`skipform compare`: the numbers and verdicts committed in git next to those that this machine has found."""

import html
import io
import json
import math
import statistics
import subprocess
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal, NamedTuple

import pandas as pd

from skipform.comparisons import COPY, Comparison
from skipform.errors import SkipformError, one_line
from skipform.files import write_text
from skipform.outputs import check_file
from skipform.verdicts import decide

FOLDERS = ("records", "measures")
PATTERNS = ("records/*/*.jsonl", "measures/survey/*.json", "measures/claims/*.json")
SURVEY = ("line_regions", "line_pieces", "jacobian_rank", "feature_rank", "functional_dimension")
CLAIM = ("regions", "pieces", "jacobian_rank", "hidden_rank", "functional_dimension")
ANNOUNCED = ("claim", "expected", "measure", "first", "second", "margin")
OTHER_SEEDS = "of other seeds"  # a verdict may turn for that alone
SUFFIXES = (".html", ".csv")
GOOD = ("equal", "inside", "kept")  # what a number or a verdict may be where the found one agrees
COLUMNS = ["kind", "experiment", "variant", "number", "committed", "found", "is"]

Key = tuple[str, str, str, str]  # kind, experiment, variant, number
Files = Mapping[str, str]  # path -> text


class Range(NamedTuple):
    """A number over the seeds: its median, and the range from the lowest to the highest."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.6g} ({self.low:.6g} to {self.high:.6g})"


class Decided(NamedTuple):
    """The verdict on a comparison, and from how many networks of each side it was decided."""

    verdict: str
    seeds: tuple[int, int]

    def __str__(self) -> str:
        return self.verdict


def main(*, revision: str = "HEAD", out: str | None = None, badge: str | None = None) -> None:
    """Compare what stands in records/ and measures/ with the state of these folders in a git revision.

    A score or a measure is a median over the seeds. It is equal to the committed one, inside the committed range from
    the lowest to the highest seed, or outside. A verdict is kept or turned; both are decided here, from the numbers of
    the two states, by the comparisons of this directory and the present rule, so that nothing but numbers can turn one.
    A claim whose numbers the revision does not have is left out, and none turns where the number of seeds is another
    one. The table counts them; numbers outside and turned verdicts are listed.

    Args:
        revision: The commit, branch or tag.
        out: Every number: a page (.html), for example build/compare.html, or a table (.csv).
        badge: A picture (.svg) of one line, with the counts, for a README.
    """
    if out is not None:
        check_file(out, suffixes=SUFFIXES)
    if badge is not None:
        check_file(badge, "--badge", suffixes=[".svg"])
    before, now = committed(revision), working()
    table = compared(before, now)
    print(summary(table))
    for row in table[table["is"].isin(["outside", "turned", "absent"])].itertuples(index=False):
        print(f"{row[-1]}: {' / '.join(row[1:4])}: committed {row.committed}, found {row.found}")
    if badge is not None:
        write_text(badge, drawn_badge(table))
    if out is not None:
        write_text(out, table.to_csv(index=False) if Path(out).suffix == ".csv" else page(table, revision))


def page(table: pd.DataFrame, revision: str) -> str:
    """The counts and every row, as HTML."""
    css = "<style>body { font-family: sans-serif } td, th { padding: 0.1em 0.6em; text-align: left }</style>"
    title = f"The numbers of {html.escape(revision)} and those found"
    head = f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>{css}</head>'
    counts, rows = (
        t.astype(str).to_html(border=0, index=index) for t, index in ((counted(table), True), (table, False))
    )
    return f"{head}<body>\n<h1>{title}</h1>\n{counts}\n{rows}\n</body></html>\n"


def drawn_badge(table: pd.DataFrame) -> str:
    """An SVG picture of one line: how many numbers of each kind agree, that is, are equal, inside or kept."""
    table = table[table["is"] != OTHER_SEEDS]
    good = table["is"].isin(GOOD).groupby(table["kind"])
    text = "  ".join(f"{kind}s {part.sum()}/{len(part)}" for kind, part in good)
    left, colour = "second machine", "#2a6f3c" if table["is"].isin(GOOD).all() else "#5a5a5a"
    widths = [7 * len(label) + 14 for label in (left, text)]  # 11 pixels high letters are at most 7 wide
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{sum(widths)}" height="20" role="img">'
        f"<title>{left}: {text}</title>"
        f'<rect width="{widths[0]}" height="20" fill="#333"/>'
        f'<rect x="{widths[0]}" width="{widths[1]}" height="20" fill="{colour}"/>'
        '<g fill="#fff" font-family="Verdana,DejaVu Sans,sans-serif" font-size="11" text-anchor="middle">'
        f'<text x="{widths[0] / 2}" y="14">{left}</text>'
        f'<text x="{widths[0] + widths[1] / 2}" y="14" xml:space="preserve">{text}</text></g></svg>\n'
    )


def committed(revision: str) -> Files:
    """The files of FOLDERS in a revision of git."""
    command = ["git", "archive", "--format=tar", revision, "--", *FOLDERS]
    try:
        done = subprocess.run(command, capture_output=True)
    except FileNotFoundError:
        raise SkipformError(
            "no program git on the PATH; accepted: a clone of the project, where git is installed"
        ) from None
    if done.returncode:
        reason = one_line(done.stderr.decode(errors="replace"))
        raise SkipformError(f"{revision}: {reason}; accepted: a revision of a clone that has {' and '.join(FOLDERS)}")
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
        files = {member.name: archive.extractfile(member) for member in archive if _is_read(Path(member.name))}
        return {name: file.read().decode() for name, file in files.items() if file is not None}


def working() -> Files:
    """The files of FOLDERS in the working directory."""
    paths = [path for folder in FOLDERS for path in sorted(Path(folder).rglob("*")) if _is_read(path)]
    return {path.as_posix(): path.read_text(encoding="utf-8") for path in paths}


def _is_read(path: Path) -> bool:
    return any(map(path.match, PATTERNS)) and not path.name.endswith(".metrics.json")  # of older revisions


def compared(before: Files, now: Files) -> pd.DataFrame:
    """One row per number and verdict, in the order of the files; `is`: equal, inside, outside, kept, turned, absent, or
    OTHER_SEEDS."""
    rows: list[tuple[Any, ...]] = []
    announced = dict(announcements(now))
    old, new = dict(numbers(before, announced)), dict(numbers(now, announced))
    for key, value in old.items():
        found = new.get(key)
        rows.append((*key, value, found or "nothing", _state(value, found)))
    return pd.DataFrame(rows, columns=COLUMNS)


def _state(value: Range | Decided, found: Range | Decided | None) -> str:
    if found is None:
        return "absent"
    if isinstance(value, Range) and isinstance(found, Range):
        return "equal" if found == value else "inside" if value.low <= found.median <= value.high else "outside"
    if isinstance(value, Decided) and isinstance(found, Decided) and value.seeds != found.seeds:
        return OTHER_SEEDS
    return "kept" if found == value else "turned"


def announcements(files: Files) -> Iterator[tuple[str, list[Comparison]]]:
    """The comparisons on which the claims in measures/claims/ rest, by the name of the file."""
    for name, text in files.items():
        if Path(name).match("measures/claims/*"):
            with _refused(name):
                rows = [tuple(row[key] for key in ANNOUNCED) for row in json.loads(text)["comparisons"]]
            each = dict.fromkeys(rows)  # a row for each moment at which it is decided
            yield name, [Comparison(claim, sign, [of], [[a, b]], margin) for claim, sign, of, a, b, margin in each]


def numbers(files: Files, announced: Mapping[str, list[Comparison]]) -> Iterator[tuple[Key, Range | Decided]]:
    """Every score and measure with its range over the seeds, and the verdict on every announced comparison."""
    for name, text in sorted(files.items()):
        with _refused(name):
            yield from _of_file(Path(name), text, announced.get(name, []))


@contextmanager
def _refused(name: str) -> Iterator[None]:
    try:
        yield
    except (ValueError, KeyError, TypeError) as error:
        raise SkipformError(f"{name}: not as skipform writes it ({type(error).__name__}: {error})") from None


def _of_file(path: Path, text: str, announced: list[Comparison]) -> Iterator[tuple[Key, Range | Decided]]:
    if path.suffix == ".jsonl":
        runs = [json.loads(line) for line in text.splitlines()]
        scores = {f"test_{run['metrics']['shown'][0]}" for run in runs}
        values = [run["metrics"] | {"variant": run["config"]["variant"]} for run in runs]
        yield from _ranges("score", path.stem, values, sorted(scores))
        return
    measured = json.loads(text)
    claim = path.parent.name == "claims"
    for when in ("initial", "final"):
        rows = [
            row | {"variant": row["variant"] + COPY + row["copy"] if row.get("copy") else row["variant"]}
            for row in measured["rows"]
            if row["when"] == when
        ]
        yield from _ranges("measure", path.stem, rows, CLAIM if claim else SURVEY, f"{when} ")
    rows = [{name: _known(name, value) for name, value in row.items()} for row in measured["rows"]]
    for claimed in dict.fromkeys(comparison.claim for comparison in announced):
        with suppress(SkipformError):  # these nets or numbers are not in this state
            for row in decide((comparison for comparison in announced if comparison.claim == claimed), rows):
                pair = f"{row['first']} : {row['second']}"
                yield (
                    ("verdict", claimed, pair, f"{row['when']} {row['measure']}"),
                    Decided(row["verdict"], row["seeds"]),
                )


def _known(name: str, value: Any) -> Any:
    """The number; JSON has none for the steps to a loss that a run never reaches."""
    return math.inf if value is None and "_to " in name else value


def _ranges(
    kind: Literal["score", "measure"], experiment: str, rows: list[dict[str, Any]], columns: Any, prefix: str = ""
) -> Iterator[tuple[Key, Range]]:
    """The range of each column for each variant; columns without numbers are left out."""
    for variant in dict.fromkeys(row["variant"] for row in rows):
        for column in columns:
            values = [row[column] for row in rows if row["variant"] == variant and row.get(column) is not None]
            if values:
                spread = Range(statistics.median(values), min(values), max(values))
                yield (kind, experiment, variant, f"{prefix}{column}"), spread


def counted(table: pd.DataFrame) -> pd.DataFrame:
    """How many numbers of each kind are equal, inside, ..."""
    return pd.crosstab(table["kind"], table["is"]).rename_axis(index=None, columns=None)


def summary(table: pd.DataFrame) -> str:
    """The counts in words, a line for each kind."""
    lines = []
    for kind, counts in counted(table).iterrows():
        parts = [f"{count} {state}" for state, count in counts.items() if count]
        lines.append(f"{counts.sum():4} {kind}s: {', '.join(parts)}")
    return "\n".join(lines)
