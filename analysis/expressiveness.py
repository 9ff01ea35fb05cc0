# %% [markdown]
# # Regions and ranks
#
# A net of affine maps and ReLUs is piecewise affine. Three of its numbers are measured on real test inputs in float64,
# **before training** (hollow marks) **and after** (filled marks):
#
# - **activation regions** on a segment between two inputs: the parts on which no ReLU changes its state;
# - **affine pieces** on the same segment: the parts on which the function itself is one affine map. Neighbouring
#   regions may have the same map, so there are never more pieces than regions, and the two are different numbers;
# - **rank** of the Jacobian of the features, the input of the last linear layer: in how many directions they can move
#   when the image does.
#
# Regions and pieces are exact; a rank counts singular values, and the gap below the last one counted is recorded. A
# mark is the median over seeds and segments, the bar runs from the minimum to the maximum, and a tick marks the largest
# rank possible. A net that is not piecewise linear has no regions; the operation that makes it so is named instead.
# Nets on texts are measured as functions of the embeddings of eight tokens, nets for masks and boxes on a stated share
# of one segment, and their ranks along at most 256 directions. A fourth number, the **functional dimension** over a
# batch of inputs (in how many directions the scores can move when the weights do), is listed in the table at the end.

# %%
import frame
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import style
from matplotlib.ticker import MaxNLocator

style.use()
table = frame.measures()
table.head(3)

# %%
MEASURES = {  # column -> title, and the column of its upper bound
    "line_regions": ("activation regions\non a segment", None),
    "line_pieces": ("affine pieces\non a segment", None),
    "feature_rank": ("rank of the Jacobian\nof the features", "feature_most"),
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
measured = [net for net in variants if net in set(table["net"])]
rows = {
    f"{names[net]}, {frame.readable(v)}": part
    for net in measured
    if net not in CLAIMS
    for v, part in by_variant(net).items()
}
reasons = {label: part["line_operation"].dropna().iloc[0] for label, part in rows.items()
           if part["line_operation"].notna().any()}  # fmt: skip
ROWS = 60  # per page
pages = [dict(list(rows.items())[i : i + ROWS]) for i in range(0, len(rows), ROWS)]
for k, page in enumerate(pages, 1):
    style.before_after(page, MEASURES, f"fig_expressiveness_{k}", reasons)

# %% [markdown]
# ## Layer by layer
#
# The rank of the Jacobian of every representation of the trained net, divided by the largest that its size, that of the
# input and the number of directions allow; medians over seeds and segments. A line is a variant.


# %%
def by_layer(part: pd.DataFrame) -> list[float]:
    """The median share of the rank of every layer of the trained nets of one variant, from input to output."""
    trained = part[part["when"] == "final"]
    shares = [
        [layer["rank"] / min(layer["dim"], directions) for layer in layers]
        for layers, directions in zip(trained["layers"], trained["directions"], strict=True)
    ]
    return list(pd.DataFrame(shares).median())


layered = {
    net: {v: by_layer(part) for v, part in by_variant(net).items() if len(part["layers"].dropna()) == len(part)}
    for net in measured
}
layered = {net: {v: shares for v, shares in lines.items() if shares} for net, lines in layered.items()}
layered = {net: lines for net, lines in layered.items() if lines}
if layered:
    COLUMNS = 5
    height = -(-len(layered) // COLUMNS)
    figure, grid = plt.subplots(height, COLUMNS, figsize=(style.WIDTH, 0.95 * height + 0.4), sharey=True, squeeze=False)
    for axes in grid.flat[len(layered) :]:
        axes.set_visible(False)
    for axes, (net, lines) in zip(grid.flat, layered.items(), strict=False):
        for (_, shares), mark in zip(lines.items(), style.marks(lines).values(), strict=True):
            axes.plot(range(1, len(shares) + 1), shares, color=mark.color, linestyle=mark.linestyle,
                      marker=mark.marker if len(shares) < 12 else "", markersize=3)  # fmt: skip
        axes.set_title(names[net], fontsize=8)
        axes.tick_params(labelsize=7)
        axes.set_ylim(0, 1.05)
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    figure.supxlabel("layer", fontsize=8.5)
    figure.supylabel("rank / largest possible", fontsize=8.5)
    style.save(figure, "fig_layers")

# %% [markdown]
# ## While the nets train
#
# `skipform pieces` counts the affine pieces of nets like those of the survey on the segments after every epoch: the
# median over segments (line) and the range (band); dashed, the median of the activation regions. One seed.


# %%
def title_of(variant: str) -> str:
    """The net of which "resnet-plain" is a variant, and which one: "ResNet, plain"."""
    net = next(net for net in names if variant.startswith(net.replace("_", "-")))
    kind = variant[len(net) :].lstrip("-")
    return f"{names[net]}, {kind}" if kind else names[net]


watched = frame.pieces()
panels = list(watched.groupby("variant", sort=False))
COLUMNS = 6
height = -(-len(panels) // COLUMNS)
figure, grid = plt.subplots(height, COLUMNS, figsize=(style.WIDTH, 0.68 * height + 0.4), sharex=True, squeeze=False)
for axes in grid.flat[len(panels) :]:
    axes.set_visible(False)
for axes, (variant, part) in zip(grid.flat, panels, strict=False):
    by_epoch = part.groupby("epoch")
    pieces, regions = by_epoch["pieces"], by_epoch["regions"].median()
    axes.fill_between(regions.index, pieces.min(), pieces.max(), color=style.PALE, linewidth=0)
    axes.plot(regions.index, regions, color=style.BLUE, linestyle=(0, (4, 1.5)), linewidth=1)
    axes.plot(regions.index, pieces.median(), color=style.INK, linewidth=1.2)
    axes.set_title(title_of(str(variant)), fontsize=7, pad=4, x=-0.3)  # long names begin above the numbers
    axes.set_ylim(bottom=0)
    axes.tick_params(labelsize=6.5)
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(3, integer=True))
figure.supxlabel("epoch", fontsize=8.5)
figure.supylabel("pieces and regions of a segment", fontsize=8.5)
style.save(figure, "fig_pieces")
medians = watched.groupby(["variant", "epoch"], sort=False)["pieces"].median().unstack("epoch")
last = medians.columns.max()
medians

# %% [markdown]
# ## What was not measured

# %%
unmeasured = table[table["line_reason"].notna()].drop_duplicates(["net", "variant"])
unmeasured = unmeasured.groupby(["net", "line_operation"], sort=False)["variant"].agg(list).reset_index()
unmeasured["variants"] = [
    "all" if set(found) == set(variants[net]) else ", ".join(map(frame.readable, found))
    for net, found in zip(unmeasured["net"], unmeasured["variant"], strict=True)
]
unmeasured = unmeasured.assign(label=unmeasured["net"].map(names))[["label", "variants", "line_operation"]]
frame.write_table(unmeasured, "table_unmeasured")
unmeasured

# %% [markdown]
# ## All numbers

# %%
keys = ["net", "variant", "when"]
columns = [*MEASURES, "functional_dimension", "jacobian_rank", "growth"]
everything = pd.concat([frame.spread(table, keys, column).assign(measure=column) for column in columns])
everything = everything[[*keys, "measure", "median", "low", "high", "n"]]
frame.write_table(everything, "table_expressiveness")

# %% [markdown]
# ## Trajectories and bounds
#
# Does a net without its skips lengthen a segment more? And how far below the known upper bound of the number of
# regions do the counts lie?

# %%
WITHOUT = ("none", "plain", "no_skips", "no-laterals", "affine")  # variants without any of the net's skips
growths = everything[everything["measure"] == "growth"].dropna(subset="median")
bare = growths[growths["variant"].isin(WITHOUT) & (growths["variant"] != "affine")]
longer = {when: {"more": 0, "nets": 0} for when in style.MOMENTS}
for row in bare.itertuples():
    others = growths[(growths["net"] == row.net) & (growths["when"] == row.when)]
    full = others[~others["variant"].isin(WITHOUT)]["median"]
    if len(full):
        longer[row.when]["nets"] += 1
        longer[row.when]["more"] += int(row.median > full.max())
bounded = table.dropna(subset=["line_bound", "line_regions"])
slack = bounded["line_bound"].astype(float) - np.log10(bounded["line_regions"].astype(float))
gaps = pd.to_numeric(table["feature_rank_gap"]).dropna()  # missing where no singular value lies below the rank
poolings = frame.poolings()
classifiers = table[table["line_share"].fillna(1.0) == 1.0]
frame.write_numbers(
    {
        "figures": len(pages),
        "nets": len(measured),
        "layers": len(layered),
        "unmeasured": len(unmeasured),
        "segments": int(table["slice"].nunique()),
        "scores_rank": [int(table["jacobian_rank"].min()), int(table["jacobian_rank"].max())],
        "classes": int(classifiers["output_dim"].max()),
        "more_regions_than_pieces": int((table["line_regions"] > table["line_pieces"]).sum()),
        "measurements": int(table["line_regions"].notna().sum()),
        "batch": int(table["batch"].max()),
        "full_dimension": int((table["functional_dimension"] == table["functional_dimension_most"]).sum()),
        "dimensions": int(table["functional_dimension"].notna().sum()),
        "least_gap": float(f"{gaps.min():.3g}") if len(gaps) else None,
        "longer": longer,
        "slack": [round(float(slack.min()), 1), round(float(slack.max()), 1)] if len(slack) else None,
        "bounded": len(slack),
        "training": {
            "nets": len(medians),
            "epochs": int(last),
            "factors": [
                round(float(f), 1) for f in ((medians[last] / medians[0]).min(), (medians[last] / medians[0]).max())
            ],
            "within_two": int((medians[last] / medians[0]).between(0.5, 2).sum()),
            "fall_first": int(((medians[1] < medians[0]) & (medians[last] > medians[1])).sum()),
        },
        "beyond_bound": int((slack < -1e-9).sum()),  # log10 is rounded
        "poolings": {
            "layers": len(poolings),
            "windows": int(poolings["windows"].sum()) if len(poolings) else 0,
            "proved": int((poolings["proved"] == True).sum()) if len(poolings) else 0,  # noqa: E712 (null is possible)
        },
    },
    "expressiveness",
)
