# %% [markdown]
# # Regions and ranks
#
# A net of affine maps and ReLUs is piecewise affine. Three numbers of it, taken on real test images in float64,
# **before training** (hollow) **and after** (filled):
#
# - **activation regions** on a segment between two images: the parts on which no ReLU changes its state;
# - **affine pieces** on the same segment: the parts on which the function itself is one affine map. Neighbouring
#   regions may carry the same map, so there are never more pieces than regions, and the two are not to be mixed up;
# - **rank** of the Jacobian of the features, what the last linear layer reads: in how many directions they can move
#   when the image does.
#
# Regions and pieces are exact; a rank counts singular values, and the gap below the last one counted is on record. A
# mark is the median over seeds and segments, the bar runs from the least to the largest, a tick stands at the number
# of features. A fourth number, the **functional dimension** over a batch of images (in how many directions the scores
# can move when the weights do), stands in the tables at the end.

# %%
import frame
import pandas as pd
import style

style.use()
measured = frame.measures()
measured.head(3)

# %%
MEASURES = {  # column -> title, column of what cannot be exceeded
    "line_regions": ("activation regions\non a segment", None),
    "line_pieces": ("affine pieces\non a segment", None),
    "feature_rank": ("rank of the Jacobian\nof the features", "feature_dim"),
}


def by_variant(net: str) -> dict[str, pd.DataFrame]:
    """The measurements of each variant of an experiment."""
    table = measured[measured["net"] == net]
    return {variant: table[table["variant"] == variant] for variant in variants[net]}


# %% [markdown]
# ## The architectures

# %%
runs = frame.runs()
names = frame.names()
variants = {net: list(group["variant"].unique()) for net, group in runs.groupby("net", sort=False)}
CLAIMS = ("pooled", "activation_blocks")  # what they ask is measured in expressive_power
asked = set(measured["net"]) - set(CLAIMS)
rows = {f"{names[net]}, {v}": table for net in variants if net in asked for v, table in by_variant(net).items()}
ROWS = 18  # on one page
parts = [dict(list(rows.items())[i : i + ROWS]) for i in range(0, len(rows), ROWS)]
for k, part in enumerate(parts, 1):
    style.before_after(part, MEASURES, f"fig_expressiveness_{k}")

# %% [markdown]
# ## Every number

# %%
keys = ["net", "variant", "when"]
columns = [*MEASURES, "functional_dimension", "jacobian_rank"]
everything = pd.concat([frame.spread(measured, keys, column).assign(measure=column) for column in columns])
everything = everything[[*keys, "measure", "median", "low", "high", "n"]]
frame.write_table(everything, "table_expressiveness")
gaps = pd.to_numeric(measured["feature_rank_gap"]).dropna()  # none where no singular value is left below the rank
frame.write_numbers(
    {
        "figures": len(parts),
        "segments": int(measured["slice"].nunique()),
        "scores_rank": [int(measured["jacobian_rank"].min()), int(measured["jacobian_rank"].max())],
        "classes": int(measured["output_dim"].max()),
        "more_regions_than_pieces": int((measured["line_regions"] > measured["line_pieces"]).sum()),
        "measurements": int(measured["line_regions"].notna().sum()),
        "batch": int(measured["batch"].max()),
        "full_dimension": int((measured["functional_dimension"] == measured["functional_dimension_most"]).sum()),
        "least_gap": float(f"{gaps.min():.3g}") if len(gaps) else None,
    },
    "expressiveness",
)
