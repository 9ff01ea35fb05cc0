"""`skipform publish`: copy the summaries of finished runs into results/, each number with its origin."""

import csv
import io
from pathlib import Path

from skipform.errors import SkipformError
from skipform.files import write_text
from skipform.outputs import WORKING, check_file
from skipform.runs import Run, further, read_summary


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
            config = finished[0].config
            origins = [run.provenance for run in finished]
            row = {
                "experiment": summary.parent.name,
                "variant": variant,
                "scale": config["scale"],
                "data": config["data"]["name"],
                "parameters": trained["parameters"],
                "epochs": trained["epochs"],
                "seeds": " ".join(map(str, trained["seeds"])),
            }
            row["score"], row["unit"] = trained["shown"]
            for split in ("train", "test"):  # some scores are only computed in evaluation mode, not while training
                score = trained.get(f"{split}_{row['score']}", {})
                row |= {f"{split}_{end}": f"{score[end]:.2f}" if score else "" for end in ("middle", "low", "high")}
            row["further"] = ", ".join(further(trained))
            row["seconds_per_seed"] = f"{sorted(m['training_seconds'] for m in origins)[len(origins) // 2]:.1f}"
            hardware = origins[0]["hardware"]
            row["hardware"] = ", ".join(f"{key} {value}" for key, value in hardware.items() if value)
            row["versions"] = " ".join(f"{name}={version}" for name, version in origins[0]["versions"].items())
            row["commit"], row["command"] = origins[0]["commit"], origins[0]["command"]
            rows.append(row)
    scales = sorted({row["scale"] for row in rows})
    if len(scales) != 1:
        raise SkipformError(f"{runs}: finished runs of {', '.join(scales) or 'no'} scale; those of one are accepted")
    out = out if out is not None else str(Path("results", f"{scales[0]}.csv"))
    check_file(out, suffixes=[".csv"])
    text = io.StringIO()
    table = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    write_text(out, text.getvalue())
