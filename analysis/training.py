# %% [markdown]
# # How they learn
#
# One panel per architecture, one line per variant: the score of its task after each epoch, as the **median over the
# seeds**, in a band from the best to the worst seed. All variants of a panel are trained with the same recipe on the
# same data, so that they differ only in what the name of the variant says.

# %%
import frame
import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
import style
from matplotlib.ticker import MaxNLocator

style.use()
history = frame.histories()
history.tail(3)

# %% [markdown]
# ## Curves

# %%
names = frame.names()
score = frame.scores().drop_duplicates("net").set_index("net")["score"]
unit = frame.scores().drop_duplicates("net").set_index("net")["unit"]
classifiers = [net for net in names if score.get(net) == "error"]
beyond = [net for net in names if net in score and score[net] != "error"]
PANELS, COLUMNS = 24, 4  # per page, in a row


def draw(nets: list[str], name: str) -> None:
    """One panel per net; classifiers share the axis of their errors."""
    rows, shared = -(-len(nets) // COLUMNS), set(nets) <= set(classifiers)
    size = (style.WIDTH, 1.02 * rows + 0.3)
    figure, grid = plt.subplots(rows, COLUMNS, figsize=size, sharey=shared, squeeze=False)
    for axes in grid.flat[len(nets) :]:
        axes.remove()
    ends = {}
    for axes, net in zip(grid.flat, nets, strict=False):
        curves, shown = history[history["net"] == net], f"test_{score[net]}"
        looks = style.marks(curves["variant"].unique())
        sns.lineplot(
            curves, x="epoch", y=shown, hue="variant", style="variant", ax=axes, legend=False,
            estimator="median", errorbar=("pi", 100), err_kws={"alpha": 0.14, "linewidth": 0},
            palette={name: look.color for name, look in looks.items()},
            dashes={name: look.dashes for name, look in looks.items()},
            markers={name: look.marker for name, look in looks.items()} if curves["epoch"].max() == 1 else False,
        )  # fmt: skip
        last = curves["epoch"].max()
        end = frame.spread(curves[curves["epoch"] == last], ["variant"], shown)
        ends[axes] = [(frame.readable(row.variant), row.median, looks[row.variant].color) for row in end.itertuples()]
        label = "" if shared else f": {frame.SCORES[score[net]]} ({unit[net]})"
        axes.set(xlabel="", ylabel="", xlim=(min(1, last - 1), last))
        axes.set_title(f"{names[net]}{label}", fontsize=8)
        axes.tick_params(labelsize=7)
        axes.xaxis.set_major_locator(MaxNLocator(3, integer=True))
        axes.grid(axis="y")
    if shared and history["test_error"].min() > 0:
        grid.flat[0].set_yscale("log")
        grid.flat[0].set_ylim(history["test_error"].min() / 1.2, 100)
        style.plain_log(grid.flat[0].yaxis)
    figure.supxlabel("epoch", fontsize=9)
    if shared:
        figure.supylabel("test error (%)", fontsize=9)
    for axes, lines in ends.items():
        style.name_lines(axes, lines, gap=7.5, size=6.5)
    style.save(figure, name)


parts = [classifiers[i : i + PANELS] for i in range(0, len(classifiers), PANELS)]
for k, part in enumerate(parts, 1):
    draw(part, f"fig_training_{k}")
if beyond:
    draw(beyond, "fig_beyond")

# %% [markdown]
# ## The final scores
#
# A score is that of the last epoch, not of the best one, since choosing the epoch by the test set would flatter every
# variant.

# %%
last = frame.metrics().merge(frame.scores())
groups = last.groupby(["net", "variant"], sort=False)
table = frame.spread(last, ["net", "variant"], "value").rename(columns={"median": "middle", "n": "seeds"})
table.insert(2, "score", list(groups["score"].first()))
table.insert(3, "unit", list(groups["unit"].first()))
table["parameters"] = list(groups["parameters"].first())
frame.write_table(table, "table_training")
table.round(2)

# %% [markdown]
# ## The numbers of a second machine
#
# Another processor rounds differently, so that a trained network is another one there. `second_machine.csv` has every
# number at scale embedded of an Intel Xeon (committed) next to that of an AMD EPYC (found): equal, inside the range
# over the seeds of the first, or outside. The code of the two was the same. The claims of the first had fewer seeds, so
# that no verdict can be compared.
#
#     skipform compare --revision 95bafc6 --out analysis/second_machine.csv --badge paper/second_machine.svg

# %%
second = frame.second_machine()
counts = pd.crosstab(second["kind"], second["is"])
counts

# %%
second[second["is"] == "outside"].drop(columns=["kind", "is"])

# %%
frame.write_numbers(
    {
        "figures": len(parts),
        "beyond": [names[net] for net in beyond],
        "second_machine": {f"{kind}s": row.to_dict() | {"all": int(row.sum())} for kind, row in counts.iterrows()},
    },
    "training",
)
