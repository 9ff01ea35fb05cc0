"""`skipform scores`: the records and measures as files for `dvc metrics` and `dvc plots`.

    OUT/metrics/survey/NET/VARIANT.json    score, parameters and measures of a variant: a row of `dvc metrics show`
    OUT/curves/survey/NET.csv              the learning curves of a net's variants: a figure of `dvc plots show`

and the same below claims/. Numbers are medians over the seeds; "low" and "high" are the lowest and the highest.
"""

import csv
import io
import json
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from skipform import outputs
from skipform.errors import SkipformError
from skipform.files import fields, read_json, write_text
from skipform.records import Record, read

KINDS = ("survey", "claims")
# of the trained nets, over seeds and segments
MEASURED = ("line_regions", "line_pieces", "jacobian_rank", "feature_rank")
CURVES = ("train_loss", "test_loss")  # and the score that the task shows


def main(*, records: Path = Path("records"), measures: Path = Path("measures"), out: Path = Path("scores")) -> None:
    """Write the score of every variant of every net, and its learning curves, as DVC shows and compares them.

    Args:
        records: The folder with survey/NET.jsonl and claims/CLAIM.jsonl, as `skipform fit --records` writes them.
        measures: The folder with survey/NET.json, as `skipform measure` writes them; a net without one has no measures.
        out: The folder to write into.
    """
    outputs.check_folder(out, command="scores")
    files = [(kind, path) for kind in KINDS for path in sorted((records / kind).glob("*.jsonl"))]
    if not files:
        raise SkipformError(f"{records}: no records (survey/NET.jsonl) in it; `skipform fit --records` writes them")
    texts: dict[str, str] = {}
    for kind, path in files:
        variants = by_variant(path)
        measured = measures / kind / f"{path.stem}.json"
        rows = fields(read_json(measured), {"rows": list}, measured)["rows"] if measured.is_file() else []
        for variant, runs in variants.items():
            texts[f"metrics/{kind}/{path.stem}/{variant}.json"] = json.dumps(row(variant, runs, rows), indent=2) + "\n"
        texts[f"curves/{kind}/{path.stem}.csv"] = table(variants)
    outputs.mark(out, texts, "scores")
    for name, text in texts.items():
        write_text(out / name, text)


def by_variant(path: Path) -> dict[str, list[Record]]:
    """Variant -> the records of its runs, in the order of the file."""
    variants: dict[str, list[Record]] = {}
    for record in read(path):
        variants.setdefault(record["config"]["variant"], []).append(record)
    return variants


def row(variant: str, runs: list[Record], measured: list[dict[str, Any]]) -> dict[str, Any]:
    """What `dvc metrics show` prints of a variant. What is undefined for one of its runs is left out."""
    metrics = [run["metrics"] for run in runs]
    name, unit = metrics[0]["shown"]
    numbers = {split: [one.get(f"{split}_{name}") for one in metrics] for split in ("train", "test")}
    trained = [one for one in measured if one["variant"] == variant and one["when"] == "final"]
    numbers |= {key: [one.get(key) for one in trained] for key in MEASURED}
    middles = {key: statistics.median(values) for key, values in numbers.items() if values and None not in values}
    if "test" in middles:
        middles |= {"low": min(numbers["test"]), "high": max(numbers["test"])}
    first = {"score": f"{name.replace('_', ' ')}, {unit}", "parameters": metrics[0]["parameters"]}
    return first | {"epochs": metrics[0]["epochs"], "seeds": len(runs)} | middles


def table(variants: dict[str, list[Record]]) -> str:
    """The learning curves as CSV: epoch, variant, what is drawn, its median, lowest and highest value."""
    text = io.StringIO()
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow(["epoch", "variant", "curve", "middle", "low", "high"])
    for variant, runs in variants.items():
        for epoch, curve, values in points(runs):
            numbers = statistics.median(values), min(values), max(values)
            lines.writerow([epoch, variant, curve, *(f"{number:.6g}" for number in numbers)])
    return text.getvalue()


def points(runs: list[Record]) -> Iterator[tuple[int, str, list[float]]]:
    """(epoch, name of the curve, its value for every seed) of a variant, where it is defined for all of them."""
    name, unit = runs[0]["metrics"]["shown"]
    names = {key: key.replace("_", " ") for key in CURVES}
    names[f"test_{name}"] = f"test {name.replace('_', ' ')}, {unit}"
    for key, curve in names.items():
        histories = [run["history"] for run in runs if key in run["history"]]
        for history in zip(*(zip(one["epoch"], one[key], strict=True) for one in histories), strict=True):
            values = [value for _, value in history]
            if None not in values:
                yield int(history[0][0]), curve, values
