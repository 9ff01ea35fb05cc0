"""What training, measuring and verifying left behind, as tidy tables; and where the notebooks put what they make.

A value is never one run's: `spread` gives the median and the range over the seeds.
"""

import json
import os
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from safetensors import safe_open

ROOT = Path(__file__).resolve().parents[1]
# The pipeline has the notebooks write beside the finished folder and moves all of it over at the end.
GENERATED = Path(os.environ.get("SKIPFORM_GENERATED", ROOT / "paper" / "generated"))
GENERATED.mkdir(parents=True, exist_ok=True)


def published() -> dict[str, dict[str, Any]]:
    """Published numbers per architecture, with their source."""
    return yaml.safe_load((ROOT / "analysis" / "published.yaml").read_text())


def names() -> dict[str, str]:
    """How the survey writes each architecture, in its order."""
    return {net: entry["name"] for net, entry in published().items()}


def theorems() -> tuple[pd.DataFrame, pd.DataFrame]:
    """As `skipform verify` found them: one row a statement of the paper, and one row a layer built from ReLUs."""
    found = json.loads((ROOT / "measures" / "theorems.json").read_text())
    return pd.DataFrame(found["statements"]), pd.DataFrame(found["constructors"])


def grammar() -> tuple[pd.DataFrame, pd.DataFrame]:
    """As `skipform grammar` found the architectures, in the order of the survey.

    One row a model that is piecewise linear: net, label, input, layers, relus, poolings and held of the module; depth,
    canonical_relus and carried of its canonical network. One row a model that is not: net, label, operation, reason.
    """
    found = json.loads((ROOT / "measures" / "grammar.json").read_text())
    order = list(names())
    accepted, refused = [], []
    for row in sorted(found, key=lambda row: order.index(row["net"])):
        label, size = row["variant"], " + ".join("×".join(map(str, shape)) for shape in row["inputs"])
        # A name of its own stands alone; the variants of a small net, "max" or "M1 add", say what they are variants of.
        if label[0].islower() or row["net"] == "activation_blocks":
            label = f"{names()[row['net']]}, {label}"
        about = {"net": row["net"], "label": label, "input": size}
        if "reason" in row:
            refused.append(about | {"operation": row["reason"].split()[0], "reason": row["reason"]})
            continue
        old, new = row["before"], row["after"]
        module = {"layers": old["depth"], "relus": old["relu_count"], "poolings": old["max_poolings"]}
        canonical = {"depth": new["depth"], "canonical_relus": new["relu_count"], "carried": new["carried"]}
        accepted.append(about | module | {"held": old["held"]} | canonical)
    return pd.DataFrame(accepted), pd.DataFrame(refused, columns=["net", "label", "input", "operation", "reason"])


def runs() -> pd.DataFrame:
    """One row a run, in the order of the experiments: net, variant, seed, folder, config (as it was resolved)."""
    rows = []
    for net in names():
        summary = ROOT / "runs" / "survey" / net / "summary.json"
        if not summary.is_file():
            continue
        for variant in json.loads(summary.read_text()):
            for folder in sorted((summary.parent / variant).glob("seed*"), key=lambda f: int(f.name[4:])):
                config = yaml.safe_load((folder / "config.yaml").read_text())
                rows.append((net, variant, int(folder.name[4:]), folder, config))
    return pd.DataFrame(rows, columns=["net", "variant", "seed", "folder", "config"])


def metrics() -> pd.DataFrame:
    """One row a run: net, variant, seed and everything in its metrics.json."""
    return pd.DataFrame(
        [{"net": run.net, **json.loads((run.folder / "metrics.json").read_text())} for run in runs().itertuples()]
    )


def scores() -> pd.DataFrame:
    """One row a run: net, variant, seed, its task's score and the unit, and its value on the test set."""
    rows = metrics()
    chosen = [(*row["shown"], row[f"test_{row['shown'][0]}"]) for _, row in rows.iterrows()]
    return rows[["net", "variant", "seed"]].assign(
        **dict(zip(("score", "unit", "value"), zip(*chosen, strict=True), strict=True))
    )


def histories() -> pd.DataFrame:
    """One row a run and epoch: net, variant, seed and the columns of its history.csv."""
    tables = [
        pd.read_csv(run.folder / "history.csv").assign(net=run.net, variant=run.variant, seed=run.seed)
        for run in runs().itertuples()
    ]
    return pd.concat(tables, ignore_index=True)


def examples(net: str) -> dict[str, dict[str, Any]]:
    """What `skipform examples` kept of a net: variant -> name -> array, or list of texts; none if there is no file."""
    path = ROOT / "measures" / "examples" / f"{net}.safetensors"
    found: dict[str, dict[str, Any]] = {}
    if path.is_file():
        with safe_open(path, "numpy") as file:
            kept = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no mapping)
            kept |= json.loads(file.metadata()["texts"])
        for key in sorted(kept):
            variant, _, name = key.partition("/")
            found.setdefault(variant, {})[name] = kept[key]
    return found


def measures() -> pd.DataFrame:
    """One row a network and slice: regions on a segment and Jacobian rank, before and after training."""
    rows = []
    for path in [ROOT / "measures" / "survey" / f"{net}.json" for net in names()]:
        if not path.is_file():
            continue
        found = json.loads(path.read_text())
        rows += [row | {"net": found["net"], "batch": found["batch"]} for row in found["rows"]]
    return pd.DataFrame(rows)  # of all rows at once: what a net lacks (null) is NaN among numbers


def claim(name: str) -> pd.DataFrame:
    """One row a network and moment, and one an exact copy of it (`copy`: its skip, empty for the network itself)."""
    found = json.loads((ROOT / "measures" / "claims" / f"{name}.json").read_text())
    return pd.DataFrame(found["rows"]).fillna({"copy": ""})


# How a score is written in a table and beside an axis.
SCORES = {
    "error": "error", "mean_iou": "mean IoU", "ap50": "AP50", "loss": "loss", "accuracy": "accuracy",
    "exact_match": "exact match", "bleu": "BLEU",
}  # fmt: skip


def spread(table: pd.DataFrame, by: list[str], value: str) -> pd.DataFrame:
    """Median, least and largest of `value` in each group, and how many there were."""
    groups = table.groupby(by, sort=False)[value]
    return groups.agg(median="median", low="min", high="max", n="count").reset_index()


def write_table(table: pd.DataFrame, name: str) -> None:
    """Write `name`.csv."""
    table.to_csv(GENERATED / f"{name}.csv", index=False, lineterminator="\n")


def write_numbers(numbers: dict[str, Any], name: str) -> None:
    """Write `name`.json, what the paper's prose quotes; the pipeline joins the notebooks' numbers in numbers.json."""
    (GENERATED / f"{name}.json").write_text(
        json.dumps(numbers, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8"
    )
