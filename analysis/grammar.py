# %% [markdown]
# # The architectures in the grammar
#
# Every piecewise linear architecture of the survey as a canonical network, at its published width and depth. For each
# model, three numbers of the **module as it is written** (hollow) and of its **canonical network** (filled):
#
# - **ReLU layers** on the longest path from input to output; the canonical depth includes the layers that replace max
#   pooling;
# - **ReLUs** for one image; those that replace max pooling are included in the canonical network as well;
# - **numbers held**: for the module, the largest count of numbers that are still needed right after a ReLU or a max
#   pooling; for the canonical network, the largest count of coordinates of a z_k that are still needed. The two differ
#   where a sum of many branches is one tensor in the module but has to be carried as the ReLUs that it is a sum of.
#
# None of these depends on the weights. They were computed by `skipform grammar`; a model that the compiler refuses is
# listed with the reason.

# %%
import frame
import matplotlib.pyplot as plt
import pandas as pd
import style
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullLocator

style.use()
table, refused = frame.grammar()

# %%
columns = ["label", "input", "layers", "relus", "poolings", "depth", "canonical_relus", "held", "carried"]
frame.write_table(table[columns], "table_grammar")
table[columns]

# %% [markdown]
# ## Not piecewise linear

# %%
frame.write_table(refused[["label", "reason"]], "table_refused")
refused[["label", "reason"]]

# %% [markdown]
# ## The module and its canonical network

# %%
PANELS = {  # column of the module, column of its canonical network -> title
    ("layers", "depth"): "ReLU layers",
    ("relus", "canonical_relus"): "ReLUs",
    ("held", "carried"): "numbers held",
}
figure, panels = plt.subplots(1, 3, figsize=(style.WIDTH, 0.16 * len(table) + 0.75), sharey=True)
for axes, ((before, after), title) in zip(panels, PANELS.items(), strict=True):
    heights = range(len(table))
    axes.hlines(heights, table[before], table[after], color=style.INK, linewidth=1.1, zorder=2)
    for column, size, fill in (
        (after, 4.0, style.INK),
        (before, 5.4, "white"),
    ):  # equal numbers are drawn as a dot in a ring
        axes.plot(table[column], heights, "o", markersize=size, markerfacecolor=fill, markeredgecolor=style.INK,
                  markeredgewidth=0.9, zorder=4 if column == after else 3)  # fmt: skip
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    axes.set_xlim(low / 1.1, high * 1.1)
    if high < 1000:
        style.plain_log(axes.xaxis)
    else:
        axes.xaxis.set_major_locator(LogLocator(numticks=5))
        axes.xaxis.set_minor_locator(NullLocator())
    axes.set_title(title, fontsize=9)
    axes.grid(axis="both")
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)
panels[0].set_yticks(range(len(table)), table["label"])
panels[0].set_ylim(len(table) - 0.4, -0.6)
ring = {"marker": "o", "linestyle": "", "markeredgecolor": style.INK, "markeredgewidth": 0.9}
handles = [
    Line2D([], [], markersize=5.4, markerfacecolor="white", label="the module", **ring),
    Line2D([], [], markersize=4.0, markerfacecolor=style.INK, label="its canonical network", **ring),
]
figure.legend(handles=handles, loc="outside lower right", ncols=2, frameon=False, fontsize=8, handletextpad=0.2)
style.save(figure, "fig_grammar")


# %%
def extreme(ratio: pd.Series) -> dict[str, object]:
    """The model with the largest ratio, and the ratio."""
    return {"label": table["label"][ratio.idxmax()], "ratio": round(float(ratio.max()), 2)}


pooling = table["poolings"] > 0
same = (table["depth"] == table["layers"]) & (table["canonical_relus"] == table["relus"])
frame.write_numbers(
    {
        "models": len(table),
        "architectures": int(table["net"].nunique()),
        "with_pooling": int(pooling.sum()),
        "unchanged": int(same.sum()),
        "unchanged_without_pooling": int((same & ~pooling).sum()),
        "relus": extreme(table["canonical_relus"] / table["relus"]),
        "carried": extreme(table["carried"] / table["held"]),
        "by_label": {
            row.label: {"depth": row.depth, "relus": row.canonical_relus, "held": row.held, "carried": row.carried}
            for row in table.itertuples()
        },
        "refused": [
            {"operation": operation, "labels": list(group["label"])}
            for operation, group in refused.groupby("operation", sort=False)
        ],
    },
    "grammar",
)
