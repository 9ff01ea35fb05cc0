# %% [markdown]
# # The claims and their verdicts
#
# What the paper and two survey articles say of skips and pooling, tested one by one: **holds**, **does not hold**, or
# **open** at this scale. The experiment files announce what is compared (`comparisons:`), and `skipform claims` decides
# it by one rule, which `src/skipform/verdicts.py` states: exact tests over the seeds at 5 %, corrected (Holm) over
# the comparisons of a claim; equality only within a margin that was named beforehand.
#
# The first three claims are those of the abstract: (i) pooling lowers expressive power, (ii) addition and concatenation
# reach equally far in fully connected nets, (iii) single-activation blocks reach further than multiple ones. They are
# tested on small nets, **before training** (hollow marks) **and after** (filled marks):
#
# - **activation regions** and **affine pieces** on the plane through three test images, counted exactly. Two networks
#   that compute the same function have equal pieces but not always equal regions, so a claim is best judged by pieces;
# - **rank** of the Jacobian, of the last hidden layer (pooled nets) or of the scores (fully connected nets);
# - **functional dimension** over a batch: in how many directions the scores can move when the weights do.

# %%
import math
from typing import Any

import frame
import matplotlib.pyplot as plt
import pandas as pd
import style

style.use()
pooling, skips, blocks = map(frame.claim, frame.ABSTRACT)
MEASURES = {
    "regions": "activation regions",
    "pieces": "affine pieces",
    "hidden_rank": "rank, last hidden layer",
    "jacobian_rank": "rank, scores",
    "functional_dimension": "functional dimension",
}
POOLS = ["none", *(variant for variant in pooling["variant"].unique() if variant != "none")]
pooling.head(3)

# %% [markdown]
# ## (i) Pooling
#
# One small convolutional net of two layers; its variants differ in the pooling and in nothing else.

# %%
style.before_after(
    {variant: pooling[pooling["variant"] == variant] for variant in POOLS},
    {
        "regions": ("activation\nregions", None),
        "pieces": ("affine\npieces", None),
        "hidden_rank": ("rank, last\nhidden layer", "input_dim"),
        "functional_dimension": ("functional\ndimension", "functional_dimension_most"),
    },
    "fig_claim_pooling",
)

# %% [markdown]
# ## (ii) Addition and concatenation, (iii) one activation or several
#
# A copy computes the same function as the net above it, with the other kind of skip. The wide variants have as many
# parameters as the single-activation net; the others have its width.

# %%
SKIP_NAMES = {"concat": "concatenation", "add": "addition"}


def thousands(number: int) -> str:
    return f"{number:,}".replace(",", "\u2009")


connected = {}
for variant, copy in (("concat", ""), ("concat", "add"), ("add", ""), ("add", "concat")):
    table = skips[(skips["variant"] == variant) & (skips["copy"] == copy)]
    size = thousands(table["parameters"].iloc[0])
    connected[f"copied, {SKIP_NAMES[copy]}, {size}" if copy else f"{SKIP_NAMES[variant]}, {size}"] = table
for variant in ("single", "double", "quadruple", "double-wide", "quadruple-wide"):
    table = blocks[blocks["variant"] == variant]
    connected[f"{variant}, {thousands(table['parameters'].iloc[0])}"] = table
style.before_after(
    connected,
    {
        "regions": ("activation\nregions", None),
        "pieces": ("affine\npieces", None),
        "functional_dimension": ("functional\ndimension", "functional_dimension_most"),
    },
    "fig_claim_blocks",
)


# %% [markdown]
# ## The comparisons
#
# One row per comparison: the two medians over the seeds, the shift between the nets with its interval of 90 %, the
# effect, which is the probability that a net of the first lies above one of the second, p after Holm's correction, and
# the verdict. An identity (margin 0) needs no test.


# %%
def printed(net: str) -> str:
    """The name of a variant, or of its copies, in tables."""
    variant, _, copy = net.partition(" as ")
    name = SKIP_NAMES.get(variant, frame.readable(variant))
    return f"{name}, copied as {SKIP_NAMES[copy]}" if copy else name


def number(value: float | None, digits: int = 3) -> str:
    """A number to three figures; a word for what a net never reaches."""
    if value is None or pd.isna(value):
        return "never"
    return f"{value:.0f}" if abs(value) >= 10 ** (digits - 1) else f"{value:.{digits}g}"


def measured(name: str) -> str:
    """The name of a measure: of expressive power, of a score on test data, or of any other number."""
    score = name.removeprefix("test_")
    return MEASURES.get(name) or frame.SCORES.get(score) or score.replace("_", " ")


def select(table: pd.DataFrame, variant: str, copy: str = "") -> pd.DataFrame:
    return table[(table["variant"] == variant) & (table["copy"] == copy)]


decided = frame.comparisons()
comparisons = pd.DataFrame(
    {
        "experiment": decided["experiment"],
        "claim": decided["claim"],
        "measure": decided["measure"].map(measured),
        "when": decided["when"],
        "first": decided["first"].map(printed),
        "expected": [
            e if pd.isna(m) else f"= (±{m:g})" for e, m in zip(decided["expected"], decided["margin"], strict=True)
        ],
        "second": decided["second"].map(printed),
        **{name: decided[name].map(number) for name in ("median_first", "median_second", "shift", "low", "high")},
        "effect": decided["effect"].map("{:.2f}".format),
        "p": ["identity" if pd.isna(p) else f"{p:.3f}" for p in decided["p"]],
        "seeds": decided["seeds"].map(min),
        "verdict": decided["verdict"],
    }
)
frame.write_table(comparisons, "table_comparisons")
comparisons

# %% [markdown]
# ## The verdicts
#
# A claim **holds** if all its comparisons do, and **does not hold** if one of them does not. The claims of the abstract
# are about the sets of functions that architectures can represent: counts for some of these functions can agree or
# disagree with what a claim leads one to expect; they can neither prove nor refute it.

# %%
KINDS = ("holds", "does not hold", "open")


def verdict_of(verdicts: set[str]) -> str:
    """As in src/skipform/verdicts.py; a test compares the two."""
    return "does not hold" if "does not hold" in verdicts else "holds" if verdicts == {"holds"} else "open"


def evidence(rows: pd.DataFrame) -> str:
    """The medians of a single comparison, or how many of several have which verdict."""
    if len(rows) == 1:
        row = rows.iloc[0]
        return f"{row['measure']}: {row['median_first']} against {row['median_second']}"
    counts = rows["verdict"].value_counts()
    return f"{len(rows)} comparisons: " + ", ".join(f"{counts[kind]} {kind}" for kind in KINDS if kind in counts)


def spread(values: pd.Series) -> str:
    low, high = min(values), max(values)
    return low if low == high else f"{low} to {high}"


verdicts = pd.DataFrame(
    [
        {
            "experiment": experiment,
            "claim": claim,
            "evidence": evidence(rows),
            "effect": spread(rows["effect"]),
            "p": spread(rows["p"]),
            "seeds": int(rows["seeds"].min()),
            "verdict": verdict_of({*rows["verdict"]}),
        }
        for (experiment, claim), rows in comparisons.groupby(["experiment", "claim"], sort=False)
    ]
)
frame.write_table(verdicts, "table_verdicts")
verdicts

# %% [markdown]
# ## Every comparison, drawn
#
# The effect of every comparison of trained nets: at 1 every net of the first lies above every net of the second, at 1/2
# they do not differ. Filled: the claim's expectation holds; hollow: open; a cross: it does not hold.

# %%
LOOKS = {
    "holds": {"marker": "o", "markerfacecolor": style.INK},
    "open": {"marker": "o", "markerfacecolor": "white"},
    "does not hold": {"marker": "X", "markerfacecolor": style.INK},
}
ROWS = 53  # per figure, at most: a page


def title_of(experiment: str) -> str:
    return experiment.replace("_", " ").capitalize()


def draw(lines: list[tuple[str, pd.Series | None]], name: str) -> None:
    """One line per comparison, or per heading (without a comparison)."""
    figure, axes = plt.subplots(figsize=(style.WIDTH, 0.15 * len(lines) + 0.55))
    for y, (_, row) in enumerate(lines):
        if row is not None:
            axes.plot(float(row["effect"]), y, markeredgecolor=style.INK, markersize=4.6, **LOOKS[row["verdict"]])
            text = f"{row['median_first']} : {row['median_second']}"
            axes.annotate(text, (1.02, y), xycoords=axes.get_yaxis_transform(), fontsize=7.5, va="center")
    axes.axvline(0.5, color=style.GREY, linewidth=0.8, zorder=0)
    axes.set(
        xlim=(-0.04, 1.04), ylim=(len(lines) - 0.4, -0.6), xlabel="effect: share of pairs in which the first lies above"
    )
    axes.set_yticks(range(len(lines)), [text for text, _ in lines], fontsize=7.5)
    for label, (_, row) in zip(axes.get_yticklabels(), lines, strict=True):
        label.set_fontweight("normal" if row is not None else "bold")
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1])
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x")
    style.save(figure, name)


lines: list[tuple[str, pd.Series | None]] = []
trained = comparisons[(comparisons["when"] == "final") & ~comparisons["experiment"].isin(frame.ABSTRACT)]
for experiment, rows in trained.groupby("experiment", sort=False):
    lines.append((title_of(experiment), None))
    lines += [
        (f"{row['first']} {row['expected']} {row['second']}, {row['measure']}", row) for _, row in rows.iterrows()
    ]
figures = max(1, math.ceil(len(lines) / ROWS))
rows_each = max(1, math.ceil(len(lines) / figures))
parts = [lines[i : i + rows_each] for i in range(0, len(lines), rows_each)]
for k, part in enumerate(parts, 1):
    draw(part, f"fig_verdicts_{k}")

# %% [markdown]
# ## In words


# %%
def in_words(experiment: str, rows: pd.DataFrame) -> dict[str, object]:
    """What the paper says of an experiment: its question, and the claims of each verdict, with the medians of those of
    one comparison; the others are in the table."""
    of_claim = comparisons.loc[comparisons["experiment"] == experiment, "claim"].value_counts()

    def said(row: Any) -> str:
        return row.claim if of_claim[row.claim] > 1 else f"{row.claim} ({row.evidence})"

    return {
        "title": title_of(experiment),
        "question": frame.question(experiment),
        **{kind.replace(" ", "_"): [said(row) for row in rows.itertuples() if row.verdict == kind]
           for kind in KINDS},
    }  # fmt: skip


paragraphs = [
    in_words(name, rows) for name, rows in verdicts.groupby("experiment", sort=False) if name not in frame.ABSTRACT
]
against = [
    f"{row['claim']}, {row['measure']}: {row['first']} {row['expected']} {row['second']}"
    f" ({row['median_first']} and {row['median_second']}, {'before' if row['when'] == 'initial' else 'after'} training)"
    for _, row in comparisons[comparisons["verdict"] == "does not hold"].iterrows()
]
against


# %%
def medians(table: pd.DataFrame, column: str) -> dict[str, float]:
    """The median of a column before and after training."""
    return {when: float(table.loc[table["when"] == when, column].median()) for when in style.MOMENTS}


frame.write_numbers(
    {
        "seeds": int(pooling["seed"].nunique()),
        "claims": len(verdicts),
        "comparisons": len(comparisons),
        **{kind.replace(" ", "_"): int((verdicts["verdict"] == kind).sum()) for kind in KINDS},
        "abstract": {
            kind.replace(" ", "_"): list(
                verdicts[verdicts["experiment"].isin(frame.ABSTRACT) & (verdicts["verdict"] == kind)]["claim"]
            )
            for kind in KINDS
        },
        "against": against,
        "figures": len(parts),
        "paragraphs": paragraphs,
        "parameters": {
            "pooling": {pool: int(select(pooling, pool)["parameters"].iloc[0]) for pool in POOLS},
            "skips": {skip: int(select(skips, skip)["parameters"].iloc[0]) for skip in SKIP_NAMES},
            "blocks": {v: int(select(blocks, v)["parameters"].iloc[0]) for v in blocks["variant"].unique()},
        },
        "pieces": {pool: medians(select(pooling, pool), "pieces")["final"] for pool in POOLS},
        "max_regions": medians(select(pooling, "max"), "regions")["final"],
        "hidden_dim": {pool: int(select(pooling, pool)["hidden_dim"].iloc[0]) for pool in POOLS},
        "input_dim": int(pooling["input_dim"].iloc[0]),
        "error": {pool: float(f"{medians(select(pooling, pool), 'test_error')['final']:.1f}") for pool in POOLS},
        "scores_rank": [int(skips["jacobian_rank"].min()), int(skips["jacobian_rank"].max())],
        "classes": int(skips["output_dim"].iloc[0]),
        "saturated": sum(
            int((table["functional_dimension"] == table["functional_dimension_most"]).sum())
            for table in (pooling, skips, blocks)
        ),
    },
    "claims",
)
