# %% [markdown]
# # The three claims, measured
#
# The abstract of the paper claims (i) that pooling lowers expressive power, (ii) that addition and concatenation reach
# equally far in fully connected nets, (iii) that single-activation blocks reach further than multiple ones. Here each
# claim is tested on small nets, **before training** (hollow marks) **and after** (filled marks), over several seeds:
#
# - **activation regions** and **affine pieces** on the plane through three test images, counted exactly. Two networks
#   that compute the same function have equal pieces but not always equal regions, so a claim is best judged by pieces;
# - **rank** of the Jacobian, of the last hidden layer (pooled nets) or of the scores (fully connected nets);
# - **functional dimension** over a batch: in how many directions the scores can move when the weights do.
#
# Two sets of nets count as different only where their ranges over the seeds are disjoint: `>` and `<` mean that every
# seed of the first lies above, or below, every seed of the second, `=` that they are equal seed by seed, and `~`
# anything else. The experiment files announce what is compared (`comparisons:`), and `skipform claims` decides it.

# %%
import frame
import pandas as pd
import style

style.use()
pooling, skips, blocks = (frame.claim(name) for name in ("pooling", "addition_concatenation", "activation_blocks"))
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


# %%
def printed(net: str, claim: str) -> str:
    """The name of a variant, or of its copies, in the table; the claim says whether it is wide."""
    variant, _, copy = net.partition(" as ")
    name = SKIP_NAMES.get(copy or variant, variant.removesuffix("-wide"))
    if "copy" in claim:
        return f"{name} {'copy' if copy else 'net'}"
    return name


def select(table: pd.DataFrame, variant: str, copy: str = "") -> pd.DataFrame:
    return table[(table["variant"] == variant) & (table["copy"] == copy)]


comparisons = frame.comparisons()
for side in ("first", "second"):
    comparisons[side] = [
        printed(net, claim) for net, claim in zip(comparisons[side], comparisons["claim"], strict=True)
    ]
comparisons["measure"] = comparisons["measure"].map(MEASURES)
frame.write_table(comparisons, "table_comparisons")
comparisons

# %%
ORDER = {">": 0, "=": 1, "~": 2, "<": 3}


def summary(rows: pd.DataFrame) -> str:
    """The relation of the first net to the second ones, such as `> average, max; ~ strided`."""
    parts = {sign: list(group["second"]) for sign, group in rows.groupby("relation", sort=False)}
    return "; ".join(f"{sign} {', '.join(parts[sign])}" for sign in sorted(parts, key=ORDER.__getitem__))


verdicts = pd.DataFrame(
    [
        {"claim": claim, "measure": measure, **{when: summary(rows[rows["when"] == when]) for when in style.MOMENTS}}
        for (claim, measure), rows in comparisons.groupby(["claim", "measure"], sort=False)
    ]
)
frame.write_table(verdicts, "table_verdicts")
verdicts

# %% [markdown]
# ## Where the data disagree with the paper
#
# A comparison **contradicts** a claim when the ranges are disjoint the other way round (for equality: when they are
# disjoint at all), and **supports** it when they are disjoint as claimed (for equality: when all seeds are equal).
# Everything else is **open**. The claims are about the sets of functions that architectures can represent. A count for
# some of these functions can agree or disagree with what a claim leads one to expect; it can neither prove nor refute
# the claim.


# %%
WHEN = {
    ("initial",): "before training",
    ("final",): "after training",
    ("initial", "final"): "before and after training",
}


def sentences(kind: str) -> list[str]:
    """The comparisons of one kind in words, one phrase per claim, measure and relation."""
    rows = comparisons[comparisons["outcome"] == kind]
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
    """The median of a column before and after training."""
    return {when: float(table.loc[table["when"] == when, column].median()) for when in style.MOMENTS}


outcomes = ("supports", "contradicts", "open")
frame.write_numbers(
    {
        "seeds": int(pooling["seed"].nunique()),
        "comparisons": len(comparisons),
        **{kind: int((comparisons["outcome"] == kind).sum()) for kind in outcomes},
        "against": against,
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
