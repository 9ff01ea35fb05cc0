"""`skipform publish`: copy the summaries of finished runs into results/, each number with its origin."""

import csv
import io
from pathlib import Path

from skipform.errors import SkipformError
from skipform.files import write_text
from skipform.runs import Run, read_summary


def main(*, runs: str = "runs/survey", out: str | None = None) -> None:
    """Write one CSV row per variant: middle and range over the seeds, command, commit, hardware, versions, seconds.

    Args:
        runs: The folder whose experiments are published.
        out: The CSV file; results/<scale>.csv when not given. All runs must be of one scale.
    """
    rows = []
    for summary in sorted(Path(runs).glob("*/summary.json")):
        for variant, trained in read_summary(summary.parent).items():
            finished = [Run(summary.parent / variant / f"seed{seed}") for seed in trained["seeds"]]
            config = finished[0].config
            made = [run.provenance for run in finished]
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
            for split in ("train", "test"):  # a score that needs the evaluation mode is not taken in training
                score = trained.get(f"{split}_{row['score']}", {})
                row |= {f"{split}_{end}": f"{score[end]:.2f}" if score else "" for end in ("middle", "low", "high")}
            row["seconds_per_seed"] = f"{sorted(m['training_seconds'] for m in made)[len(made) // 2]:.1f}"
            hardware = made[0]["hardware"]
            row["hardware"] = ", ".join(f"{key} {value}" for key, value in hardware.items() if value)
            row["versions"] = " ".join(f"{name}={version}" for name, version in made[0]["versions"].items())
            row["commit"], row["command"] = made[0]["commit"], made[0]["command"]
            rows.append(row)
    scales = sorted({row["scale"] for row in rows})
    if len(scales) != 1:
        raise SkipformError(f"{runs}: finished runs of {', '.join(scales) or 'no'} scale; those of one are accepted")
    text = io.StringIO()
    table = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    write_text(out or Path("results", f"{scales[0]}.csv"), text.getvalue())
