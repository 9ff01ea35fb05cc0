"""Reads what training, measuring and verifying leave in records/ and measures/ as tidy tables, and writes what the
notebooks produce. No weights are read.

A published value never comes from a single run: `spread` gives the median and the range over the seeds.
"""

import json
import os
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from safetensors import safe_open

pd.set_option("display.max_colwidth", None, "display.max_columns", None, "display.max_rows", 100)  # tables in full

ROOT = Path(__file__).resolve().parents[1]
# `skipform notebooks` lets them write into a temporary folder and moves the files here once all have succeeded.
GENERATED = Path(os.environ.get("SKIPFORM_GENERATED", ROOT / "paper" / "generated"))
GENERATED.mkdir(parents=True, exist_ok=True)


def published() -> dict[str, dict[str, Any]]:
    """Published numbers per architecture, with their source."""
    return yaml.safe_load((ROOT / "analysis" / "published.yaml").read_text())


def second_machine() -> pd.DataFrame:
    """The numbers of one machine (committed) next to those of another (found): `skipform compare --out`."""
    return pd.read_csv(ROOT / "analysis" / "second_machine.csv")


def names() -> dict[str, str]:
    """The name of each architecture as the survey prints it, in the order of the survey."""
    return {net: entry["name"] for net, entry in published().items()}


def surveyed() -> dict[str, dict[str, Any]]:
    """The entries of published.yaml that the survey's table has: all but those of nets trained for one claim alone."""
    return {net: entry for net, entry in published().items() if "claim" not in entry}


def theorems() -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """The results of `skipform verify`: one row per statement of the paper, one per layer built from ReLUs, and one per
    depth from 2 to 5: of how many numbers it takes the maximum."""
    results = json.loads((ROOT / "measures" / "theorems.json").read_text())
    columns = ["layers", "tree", "published", *(n + r for n in ("five", "six", "eight") for r in ("", "_relus"))]
    maxima = pd.DataFrame(results.get("maxima", ()), columns=columns)
    return pd.DataFrame(results["statements"]), pd.DataFrame(results["constructors"]), maxima


def grammar() -> tuple[pd.DataFrame, pd.DataFrame]:
    """The results of `skipform grammar`, in the order of the survey: the models it accepted and those it refused.

    A model that is piecewise linear has net, label, input; layers, relus, poolings and held of the module; and depth,
    canonical_relus and carried of its canonical network. One that is not has net, label, input, operation and reason.
    """
    results = json.loads((ROOT / "measures" / "grammar.json").read_text())
    order = list(names())
    accepted, refused = [], []
    for row in sorted(results, key=lambda row: order.index(row["net"])):
        label, size = row["variant"], " + ".join("×".join(map(str, shape)) for shape in row["inputs"])
        # A published model is known by its name. A variant of a small net ("max", "M1 add") needs the name of the net.
        if label[0].islower() or row["net"] == "activation_blocks":
            label = f"{names()[row['net']]}, {label}"
        model = {"net": row["net"], "label": label, "input": size}
        if "reason" in row:
            refused.append(model | {"operation": row["reason"].split()[0], "reason": row["reason"]})
            continue
        old, new = row["before"], row["after"]
        module = {"layers": old["depth"], "relus": old["relu_count"], "poolings": old["max_poolings"]}
        canonical = {"depth": new["depth"], "canonical_relus": new["relu_count"], "carried": new["carried"]}
        accepted.append(model | module | {"held": old["held"]} | canonical)
    return pd.DataFrame(accepted), pd.DataFrame(refused, columns=["net", "label", "input", "operation", "reason"])


def bypassed() -> dict[tuple[str, str], list[int]]:
    """The numbers of activations that the skips of a model bypass, by net and variant, as `skipform grammar` counts."""
    results = json.loads((ROOT / "measures" / "grammar.json").read_text())
    return {(row["net"], row["variant"]): row["bypassed"] for row in results}


def records() -> pd.DataFrame:
    """One row per run, in the order of the survey: net, variant, seed, and its config, metrics and history."""
    rows = []
    for net in names():
        path = ROOT / "records" / "survey" / f"{net}.jsonl"
        lines = path.read_text().splitlines() if path.is_file() else []
        for run in map(json.loads, lines):
            rows.append({"net": net, "variant": run["config"]["variant"], "seed": run["config"]["seed"], **run})
    return pd.DataFrame(rows)


def metrics() -> pd.DataFrame:
    """One row per run: net, variant, seed and everything in its metrics."""
    return pd.DataFrame([{"net": run.net, **run.metrics} for run in records().itertuples()])


def scores() -> pd.DataFrame:
    """One row per run: net, variant, seed, the name and the unit of its task's score, and its value on the test set."""
    rows = metrics()
    chosen = [(*row["shown"], row[f"test_{row['shown'][0]}"]) for _, row in rows.iterrows()]
    return rows[["net", "variant", "seed"]].assign(
        **dict(zip(("score", "unit", "value"), zip(*chosen, strict=True), strict=True))
    )


def histories() -> pd.DataFrame:
    """One row per run and epoch: net, variant, seed, epoch and what was computed after the epoch."""
    tables = [
        pd.DataFrame(run.history).assign(net=run.net, variant=run.variant, seed=run.seed)
        for run in records().itertuples()
    ]
    return pd.concat(tables, ignore_index=True)


def examples(net: str) -> dict[str, dict[str, Any]]:
    """The examples stored for a net: variant -> name -> array or list of texts; empty if there is no file."""
    path = ROOT / "measures" / "examples" / f"{net}.safetensors"
    variants: dict[str, dict[str, Any]] = {}
    if path.is_file():
        with safe_open(path, "numpy") as file:
            stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
            stored |= json.loads(file.metadata()["texts"])
        for key in sorted(stored):
            variant, _, name = key.partition("/")
            variants.setdefault(variant, {})[name] = stored[key]
    return variants


MEASURED = ("line_reason", "line_share", "line_bound", "growth", "layers", "directions", "feature_most")


def measures() -> pd.DataFrame:
    """One row per network, moment (before or after training) and slice: regions on a segment, Jacobian ranks.

    line_operation: the operation for which a net has no regions. feature_most: the largest possible rank. What an
    earlier version did not measure is missing (NaN)."""
    rows = []
    for results in _survey():
        rows += [row | {"net": results["net"], "batch": results["batch"]} for row in results["rows"]]
    # One table of all rows, so that a missing value (null) becomes NaN in a column of numbers.
    table = pd.DataFrame(rows)
    table = table.reindex(columns=[*table.columns, *(name for name in MEASURED if name not in table)])
    table["line_operation"] = [
        OPERATIONS.get(text.split()[0], text.split()[0].replace("_", " ")) if isinstance(text, str) else None
        for text in table["line_reason"]
    ]
    return table.assign(feature_most=table["feature_most"].fillna(table["feature_dim"]))


OPERATIONS = {"scaled_dot_product_attention": "attention", "sigmoid": "a gate (sigmoid)"}


def poolings() -> pd.DataFrame:
    """One row per max pooling of a trained net: whether its ReLU form is proved to be equal."""
    columns = ["net", "variant", "layer", "windows", "different", "proved"]
    rows = [row | {"net": results["net"]} for results in _survey() for row in results.get("poolings", ())]
    return pd.DataFrame(rows, columns=columns)


def _survey() -> list[dict[str, Any]]:
    """What `skipform measure` wrote of each net, in the order of the survey."""
    paths = [ROOT / "measures" / "survey" / f"{net}.json" for net in names()]
    return [json.loads(path.read_text()) for path in paths if path.is_file()]


def radii() -> dict[str, Any]:
    """What `skipform radii` wrote: the net, and one row per digit with its radius and the work of both encodings."""
    return json.loads((ROOT / "measures" / "radii.json").read_text())


def pieces() -> pd.DataFrame:
    """One row per net, epoch and segment of `skipform pieces`: its activation regions and affine pieces."""
    nets = json.loads((ROOT / "measures" / "pieces.json").read_text())["nets"]
    rows = [
        {"variant": net["variant"], "epoch": moment["epoch"], "regions": regions, "pieces": pieces}
        for net in nets
        for moment in net["moments"]
        for regions, pieces in zip(moment["regions"], moment["pieces"], strict=True)
    ]
    return pd.DataFrame(rows)


def claim(name: str) -> pd.DataFrame:
    """One row per network and moment, and one per exact copy of it (`copy`: its skip; empty for the network itself)."""
    results = json.loads((ROOT / "measures" / "claims" / f"{name}.json").read_text())
    return pd.DataFrame(results["rows"]).fillna({"copy": ""})


ABSTRACT = ("pooling", "addition_concatenation", "activation_blocks")  # the experiments of its three claims


def comparisons() -> pd.DataFrame:
    """One row per comparison that `skipform claims` has decided, with its experiment: first the claims of the abstract,
    then all others in alphabetical order."""
    rows = []
    for path in sorted((ROOT / "measures" / "claims").glob("*.json"), key=lambda path: (_place(path.stem), path.stem)):
        rows += [{"experiment": path.stem} | row for row in json.loads(path.read_text())["comparisons"]]
    return pd.DataFrame(rows)


def _place(experiment: str) -> int:
    return ABSTRACT.index(experiment) if experiment in ABSTRACT else len(ABSTRACT)


def question(experiment: str) -> str:
    """The question that the file of a claim's experiment states in its first lines."""
    (path,) = [
        path for kind in ("claims", "comparisons") for path in (ROOT / "experiments" / kind).glob(f"{experiment}.yaml")
    ]
    lines = path.read_text().partition("# Feeds")[0].removeprefix("# Question").splitlines()
    return " ".join(line.removeprefix("#").strip() for line in lines).strip()


# How a score is printed in tables and as the label of an axis.
SCORES = {
    "error": "error", "mean_iou": "mean IoU", "boundary_iou": "boundary IoU", "ap": "AP", "ap50": "AP50",
    "loss": "loss", "accuracy": "accuracy", "exact_match": "exact match", "bleu": "BLEU",
    "pixel_error": "pixel error", "rand_error": "Rand error", "deepest_error": "error of the deepest column",
}  # fmt: skip


def further(rows: pd.DataFrame) -> str:
    """The further scores of one variant's runs, medians over the seeds: "; 6.1 % pixel error"; empty if it has none."""
    named = rows["further"].iloc[0] if "further" in rows else None  # NaN where only other runs have some
    return "".join(
        f"; {rows[f'test_{name}'].median():.1f} % {SCORES[name]}" for name in (named if isinstance(named, list) else [])
    )


def readable(variant: str) -> str:
    """How a variant is printed: "no_skips" as "no skips"; one of another experiment, written with it, such as
    "fpn/no-laterals" or "overfitting_decay/plain-net", as "FPN, no-laterals" or "plain-net, decay"."""
    experiment, _, own = variant.rpartition("/")
    own = own.replace("_", " ")
    if experiment in names():
        return f"{names()[experiment]}, {own}"
    return f"{own}, {experiment.rpartition('_')[2]}" if experiment else own


def spread(table: pd.DataFrame, by: list[str], value: str) -> pd.DataFrame:
    """Median, minimum and maximum of `value` in each group, and the number of values."""
    groups = table.groupby(by, sort=False)[value]
    return groups.agg(median="median", low="min", high="max", n="count").reset_index()


def write_table(table: pd.DataFrame, name: str) -> None:
    """Write `name`.csv."""
    table.to_csv(GENERATED / f"{name}.csv", index=False, lineterminator="\n")


def write_numbers(numbers: dict[str, Any], name: str) -> None:
    """Write `name`.json, the numbers that the paper quotes; `skipform notebooks` joins all of them in numbers.json."""
    (GENERATED / f"{name}.json").write_text(
        json.dumps(numbers, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8"
    )
