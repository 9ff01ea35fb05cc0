# %% [markdown]
# # Regions and ranks
#
# A net of affine maps and ReLUs is piecewise affine. Three of its numbers are measured on real test images in float64,
# **before training** (hollow marks) **and after** (filled marks):
#
# - **activation regions** on a segment between two images: the pages on which no ReLU changes its state;
# - **affine pieces** on the same segment: the pages on which the function itself is one affine map. Neighbouring
#   regions may have the same map, so there are never more pieces than regions, and the two are different numbers;
# - **rank** of the Jacobian of the features, the input of the last linear layer: in how many directions they can move
#   when the image does.
#
# Regions and pieces are exact; a rank counts singular values, and the gap below the last one counted is recorded. A
# mark is the median over seeds and segments, the bar runs from the minimum to the maximum, and a tick marks the number
# of features. A fourth number, the **functional dimension** over a batch of images (in how many directions the scores
# can move when the weights do), is listed in the table at the end.

# %%
import frame
import pandas as pd
import style

style.use()
table = frame.measures()
table.head(3)

# %%
MEASURES = {  # column -> title, and the column of its upper bound
    "line_regions": ("activation regions\non a segment", None),
    "line_pieces": ("affine pieces\non a segment", None),
    "feature_rank": ("rank of the Jacobian\nof the features", "feature_dim"),
}


def by_variant(net: str) -> dict[str, pd.DataFrame]:
    """The measurements of each variant of an experiment."""
    return {variant: table[(table["net"] == net) & (table["variant"] == variant)] for variant in variants[net]}


# %% [markdown]
# ## The architectures

# %%
runs = frame.records()
names = frame.names()
variants = {net: list(group["variant"].unique()) for net, group in runs.groupby("net", sort=False)}
CLAIMS = ("pooled", "activation_blocks")  # what these two compare is measured in the notebook claims
shown = set(table["net"]) - set(CLAIMS)
rows = {f"{names[net]}, {v}": part for net in variants if net in shown for v, part in by_variant(net).items()}
ROWS = 36  # per page
pages = [dict(list(rows.items())[i : i + ROWS]) for i in range(0, len(rows), ROWS)]
for k, page in enumerate(pages, 1):
    style.before_after(page, MEASURES, f"fig_expressiveness_{k}")

# %% [markdown]
# ## All numbers

# %%
keys = ["net", "variant", "when"]
columns = [*MEASURES, "functional_dimension", "jacobian_rank"]
everything = pd.concat([frame.spread(table, keys, column).assign(measure=column) for column in columns])
everything = everything[[*keys, "measure", "median", "low", "high", "n"]]
frame.write_table(everything, "table_expressiveness")
gaps = pd.to_numeric(table["feature_rank_gap"]).dropna()  # missing where no singular value lies below the rank
frame.write_numbers(
    {
        "figures": len(pages),
        "segments": int(table["slice"].nunique()),
        "scores_rank": [int(table["jacobian_rank"].min()), int(table["jacobian_rank"].max())],
        "classes": int(table["output_dim"].max()),
        "more_regions_than_pieces": int((table["line_regions"] > table["line_pieces"]).sum()),
        "measurements": int(table["line_regions"].notna().sum()),
        "batch": int(table["batch"].max()),
        "full_dimension": int((table["functional_dimension"] == table["functional_dimension_most"]).sum()),
        "least_gap": float(f"{gaps.min():.3g}") if len(gaps) else None,
    },
    "expressiveness",
)
