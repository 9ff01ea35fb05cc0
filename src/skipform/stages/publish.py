"""`skipform publish`: copy the summaries of finished runs into results/, each number with its origin.

For the runs of the pipeline it also copies what its stages took here: `skipform repro` on another machine starts from
these times.
"""

from pathlib import Path

from skipform import results
from skipform.errors import SkipformError
from skipform.files import write_json
from skipform.outputs import WORKING, check_file
from skipform.pipeline import PUBLISHED, SECONDS, read_seconds
from skipform.runs import Run, read_summary


def main(*, runs: str = "runs/survey", out: str | None = None) -> None:
    """Write one CSV row per variant: middle and range over the seeds, command, commit, hardware, versions, seconds.

    Args:
        runs: The folder whose experiments are published.
        out: The CSV file; results/<scale>.csv when not given. All runs must be of one scale.
    """
    if out is not None:
        check_file(out, suffixes=[".csv"])
    rows = []
    for summary in sorted(Path(runs).glob("*/summary.json")):
        if summary.parent.suffix in WORKING:
            continue
        for variant, trained in read_summary(summary.parent).items():
            finished = [Run(summary.parent / variant / f"seed{seed}") for seed in trained["seeds"]]
            rows.append(results.row_of(summary.parent.name, variant, trained, finished))
    scales = sorted({row["scale"] for row in rows})
    if not scales:
        raise SkipformError(f"{runs}: no finished runs (NET/summary.json) in it; `skipform fit` writes them")
    if len(scales) > 1:
        raise SkipformError(f"{runs}: finished runs of {', '.join(scales)} scale; those of one are accepted")
    out = out if out is not None else str(Path("results", f"{scales[0]}.csv"))
    check_file(out, suffixes=[".csv"])
    results.write(out, rows)
    if runs == "runs/survey" and SECONDS.is_file():
        write_json(PUBLISHED, read_seconds(PUBLISHED) | {scales[0]: read_seconds(SECONDS)})
