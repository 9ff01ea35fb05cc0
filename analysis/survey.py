# %% [markdown]
# # The survey
#
# Every architecture is described in the same terms: how branch and shortcut are merged, how many activations one skip
# bypasses, and how many levels of skips are nested. The table adds what the authors published and what the same file
# of this package gives at the scale of this run. The two results are not comparable, because data, size and schedule
# differ; both are printed so that the difference is visible. At scale `paper` they are, and a test compares net, data
# set, score and epochs, except where a star marks a published result that was obtained differently.
#
# Published numbers come from `published.yaml`. Skip, levels and the exact parameter count of the published model come
# from the architecture's own file, and a test compares the count with the net that is built. The activations that a
# skip bypasses are counted by `skipform grammar` on the graph of the published model: on the path from the fork to the
# merge that has the most of them. Several numbers are those of different skips; 0 is attention alone.

# %%
import frame
import pandas as pd

from skipform import nets

models = pd.DataFrame(nets.survey())
last = frame.metrics().merge(frame.scores())
published = frame.surveyed()
bypassed = frame.bypassed()

# %% [markdown]
# ## The table
#
# An architecture that this run did not train has dashes in its last columns.

# %%
DASH = "–"


def ours(net: str, variant: str | None) -> dict[str, str]:
    """Parameters and score of one variant of an experiment, by default its first."""
    rows = last[last["net"] == net]
    if rows.empty:
        return {"trained": DASH, "parameters": DASH, "score": DASH, "unit": DASH}
    rows = rows[rows["variant"] == (variant or rows["variant"].iloc[0])]
    digits = 2 if rows["unit"].iloc[0] == "nats" else 1
    middle, low, high = (f"{value:.{digits}f}" for value in (f(rows["value"]) for f in (pd.Series.median, min, max)))
    return {
        "trained": rows["variant"].iloc[0],
        "parameters": f"{rows['parameters'].iloc[0]:,}".replace(",", "\u2009"),
        "score": f"{middle} ({low}–{high})",
        "unit": f"{rows['unit'].iloc[0]} {frame.SCORES[rows['score'].iloc[0]]}{frame.further(rows)}",
    }


def activations(net: str, variant: str | None) -> str:
    """What the skips of the published model bypass; of all models of the net where `grammar` has not that one."""
    counted = {label: numbers for (owner, label), numbers in bypassed.items() if owner == net}
    numbers = counted[variant] if variant in counted else set().union(*counted.values())
    return ", ".join(map(str, sorted(numbers))) or DASH


def row(net: str, entry: dict) -> dict[str, str]:
    """The row of one architecture: the terms that its file states, the published result and ours."""
    variants = models[models["net"] == net]
    terms = variants.iloc[0]
    counted = variants.loc[variants["variant"] == entry.get("variant"), "parameters"]
    return {
        "architecture": entry["name"],
        "paper": entry.get("paper", ""),
        "skip": terms["skip"],
        "activations": activations(net, entry.get("variant")),
        "levels": str(terms["levels"]),
        "model": entry["model"],
        "published": f"{entry['params']:g} M" if "params" in entry else DASH,
        "counted": f"{counted.iloc[0]:,}".replace(",", "\u2009") if len(counted) else DASH,
        "benchmark": entry.get("benchmark", DASH),
        "result": entry.get("result", DASH) + ("*" if "other" in entry else ""),
        **ours(net, entry.get("ours")),
    }


table = pd.DataFrame([row(net, entry) for net, entry in published.items()])
frame.write_table(table, "table_survey")
table

# %% [markdown]
# ## What was trained

# %%
runs = frame.records()
settings = runs["config"]
frame.write_numbers(
    {
        "architectures": len(published),
        "trained": int(last["net"].nunique()),
        "variants": len(last.drop_duplicates(["net", "variant"])),
        "runs": len(last),
        "seeds": int(last["seed"].nunique()),
        "epochs": sorted(last["epochs"].unique().tolist()),
        "data": sorted({config["data"]["name"] for config in settings}),
        "scale": settings.iloc[0]["scale"],
        "parameters": [int(last["parameters"].min()), int(last["parameters"].max())],
    },
    "survey",
)
