# %% [markdown]
# # The three claims, measured
#
# The abstract of the paper claims (i) that pooling lowers expressive power, (ii) that addition and concatenation reach
# equally far in fully connected nets, (iii) that single-activation blocks reach further than multiple ones. Each is put
# to small nets here, **before training** (hollow) **and after** (filled), over several seeds:
#
# - **activation regions** and **affine pieces** on the plane through three test images, exactly. Writing a net
#   differently changes the first and not the second, so the claims are read on pieces;
# - **rank** of the Jacobian, of what the classifier reads (pooled nets) or of the scores (fully connected ones);
# - **functional dimension** over a batch: in how many directions the scores can move when the weights do.
#
# Two sets of nets are told apart only where their ranges over the seeds are: `>` and `<` mean that every seed of the
# one lies above, or below, every seed of the other, `=` that they are equal seed by seed, `~` that the ranges overlap.

# %%
import frame
import pandas as pd
import style

style.use()
pooling, skips, blocks = (frame.claim(name) for name in ("pooling", "addition_concatenation", "activation_blocks"))
NOUNS = {
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
# One small convolutional net of two layers, its pooling exchanged and nothing else.

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
# The copies compute what the net above them computes, with the other skip. The wide variants have the parameters of the
# single-activation net, the others its width.

# %%
WORDS = {"concat": "concatenation", "add": "addition"}


def thousands(number: int) -> str:
    return f"{number:,}".replace(",", "\u2009")


connected = {}
for variant, copy in (("concat", ""), ("concat", "add"), ("add", ""), ("add", "concat")):
    table = skips[(skips["variant"] == variant) & (skips["copy"] == copy)]
    size = thousands(table["parameters"].iloc[0])
    connected[f"copied, {WORDS[copy]}, {size}" if copy else f"{WORDS[variant]}, {size}"] = table
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


# %%
def relation(first: pd.Series, second: pd.Series) -> str:
    """`=`, `>`, `<` or `~`, see above; both by seed."""
    if (first == second).all():
        return "="
    if first.min() > second.max():
        return ">"
    return "<" if first.max() < second.min() else "~"


def compare(claim: str, expected: str, measures: list[str], pairs: list[tuple[str, pd.DataFrame, str, pd.DataFrame]]):
    """One row a measure, moment and pair (name and measurements of the first and of the second)."""
    return [
        {"claim": claim, "measure": NOUNS[measure], "when": when, "first": one, "second": other, "expected": expected,
         "median_first": x.median(), "median_second": y.median(), "relation": relation(x, y), "seeds": len(x)}
        for measure in measures
        for one, a, other, b in pairs
        for when in style.MOMENTS
        for x, y in [[t[t["when"] == when].set_index("seed")[measure].sort_index() for t in (a, b)]]
    ]  # fmt: skip


def of(table: pd.DataFrame, variant: str, copy: str = "") -> pd.DataFrame:
    return table[(table["variant"] == variant) & (table["copy"] == copy)]


pooled = [("none", of(pooling, "none"), pool, of(pooling, pool)) for pool in POOLS[1:]]
copied = [
    (f"{WORDS[net]} net", of(skips, net), f"{WORDS[copy]} copy", of(skips, net, copy))
    for net, copy in (("concat", "add"), ("add", "concat"))
]
trained = [("concatenation", of(skips, "concat"), "addition", of(skips, "add"))]
equal_width = [("single", of(blocks, "single"), v, of(blocks, v)) for v in ("double", "quadruple")]
equal_size = [("single", of(blocks, "single"), v, of(blocks, f"{v}-wide")) for v in ("double", "quadruple")]
comparisons = pd.DataFrame(
    compare("(i) none : pooled", ">", ["regions", "pieces", "hidden_rank", "functional_dimension"], pooled)
    + compare("(ii) net : exact copy", "=", ["regions", "pieces", "jacobian_rank"], copied)
    + compare("(ii) equal parameters", "=", ["regions", "pieces", "jacobian_rank", "functional_dimension"], trained)
    + compare("(iii) equal width", ">", ["regions", "pieces", "functional_dimension"], equal_width)
    + compare("(iii) equal parameters", ">", ["regions", "pieces", "functional_dimension"], equal_size)
)
frame.write_table(comparisons, "table_comparisons")
comparisons

# %%
ORDER = {">": 0, "=": 1, "~": 2, "<": 3}


def told(rows: pd.DataFrame) -> str:
    """`> average, max; ~ strided`: what the first of each pair is to the second."""
    parts = {sign: list(group["second"]) for sign, group in rows.groupby("relation", sort=False)}
    return "; ".join(f"{sign} {', '.join(parts[sign])}" for sign in sorted(parts, key=ORDER.__getitem__))


verdicts = pd.DataFrame(
    [
        {"claim": claim, "measure": measure, **{when: told(rows[rows["when"] == when]) for when in style.MOMENTS}}
        for (claim, measure), rows in comparisons.groupby(["claim", "measure"], sort=False)
    ]
)
frame.write_table(verdicts, "table_verdicts")
verdicts

# %% [markdown]
# ## Where the data disagree with the paper, first
#
# A comparison **contradicts** a claim when the ranges lie apart the other way round (for equality: apart at all), and
# **supports** it when they lie apart as claimed (for equality: equal seed by seed). Everything else is **open**. The
# claims are about the sets of functions that architectures can reach; a count at some of their points can support or
# contradict what one would expect of them, never prove or refute them.


# %%
def standing(row: pd.Series) -> str:
    if row["relation"] == row["expected"]:
        return "supports"
    against = {">": "<", "=": "<>"}[row["expected"]]
    return "contradicts" if row["relation"] in against else "open"


comparisons["standing"] = comparisons.apply(standing, axis=1)
WHEN = {
    ("initial",): "before training",
    ("final",): "after training",
    ("initial", "final"): "before and after training",
}


def sentences(kind: str) -> list[str]:
    """One phrase a claim, measure and relation of the comparisons of a kind."""
    rows = comparisons[comparisons["standing"] == kind]
    phrases = []
    for (claim, measure, sign, one, other), group in rows.groupby(
        ["claim", "measure", "relation", "first", "second"], sort=False
    ):
        word = {">": "above", "<": "below", "=": "equal to", "~": "overlapping"}[sign]
        phrases.append((claim, measure, f"{one} {word}", other, WHEN[tuple(group["when"])]))
    merged: dict[tuple[str, str, str, str], list[str]] = {}
    for claim, measure, relation_, other, moment in phrases:
        merged.setdefault((claim, measure, relation_, moment), []).append(other)
    return [f"{claim}, {measure}: {relation_} {' and '.join(others)} {moment}"
            for (claim, measure, relation_, moment), others in merged.items()]  # fmt: skip


against = sentences("contradicts")
against


# %%
def medians(table: pd.DataFrame, column: str) -> dict[str, float]:
    """Before and after training."""
    return {when: float(table.loc[table["when"] == when, column].median()) for when in style.MOMENTS}


standings = ("supports", "contradicts", "open")
frame.write_numbers(
    {
        "seeds": int(pooling["seed"].nunique()),
        "comparisons": len(comparisons),
        **{kind: int((comparisons["standing"] == kind).sum()) for kind in standings},
        "against": against,
        "parameters": {
            "pooling": {pool: int(of(pooling, pool)["parameters"].iloc[0]) for pool in POOLS},
            "skips": {skip: int(of(skips, skip)["parameters"].iloc[0]) for skip in WORDS},
            "blocks": {v: int(of(blocks, v)["parameters"].iloc[0]) for v in blocks["variant"].unique()},
        },
        "pieces": {pool: medians(of(pooling, pool), "pieces")["final"] for pool in POOLS},
        "max_regions": medians(of(pooling, "max"), "regions")["final"],
        "hidden_dim": {pool: int(of(pooling, pool)["hidden_dim"].iloc[0]) for pool in POOLS},
        "input_dim": int(pooling["input_dim"].iloc[0]),
        "error": {pool: float(f"{medians(of(pooling, pool), 'test_error')['final']:.1f}") for pool in POOLS},
        "scores_rank": [int(skips["jacobian_rank"].min()), int(skips["jacobian_rank"].max())],
        "classes": int(skips["output_dim"].iloc[0]),
        "saturated": sum(
            int((table["functional_dimension"] == table["functional_dimension_most"]).sum())
            for table in (pooling, skips, blocks)
        ),
    },
    "expressive_power",
)
