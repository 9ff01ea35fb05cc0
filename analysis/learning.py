# %% [markdown]
# # Learning beside expressiveness
#
# Does what a net can express predict what it learns? The paper leaves the question open. Here every variant of the
# survey that is measured gives one point: its **test error** (median over the seeds) against an expressiveness of the
# trained net (median over seeds and segments). Nets of different architectures differ in size and recipe, so a
# correlation counts **within architectures** only: error and measure are ranked among the variants of each
# architecture, and the ranks are correlated over all of them (Spearman). The interval is a bootstrap over the
# architectures, 95 %; p comes from exchanging the variants of each architecture at random.

# %%
import frame
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import style
from scipy.stats import rankdata

style.use()
MEASURES = {  # column -> what it is called in tables and on axes
    "line_pieces": "affine pieces on a segment",
    "feature_rank": "rank of the features",
    "functional_dimension": "functional dimension",
}
DRAWS = 9_999
final = frame.measures().query("when == 'final'")
power = final.groupby(["net", "variant"], sort=False)[[*MEASURES]].median().reset_index()
error = frame.scores().query("score == 'error'").groupby(["net", "variant"], sort=False)["value"].median().reset_index()
points = power.merge(error.rename(columns={"value": "error"}))
points.head(3)

# %%
Ranks = list[np.ndarray]  # of one architecture: a row of centred ranks of a measure, and one of the errors


def within(column: str) -> dict[str, np.ndarray]:
    """Architecture -> the centred ranks (2, variants) of a measure and of the errors among its variants."""
    known = points.dropna(subset=column)
    groups = {net: group[[column, "error"]].to_numpy(float).T for net, group in known.groupby("net", sort=False)}
    ranks = {net: rankdata(values, axis=1) for net, values in groups.items() if values.shape[1] > 1}
    return {net: rows - rows.mean(axis=1, keepdims=True) for net, rows in ranks.items()}


def correlation(ranks: Ranks) -> float:
    """The correlation of the ranks of all architectures together; 0 where one side never differs."""
    x, y = np.concatenate(ranks, axis=1)
    size = np.sqrt((x @ x) * (y @ y))
    return float(x @ y / size) if size else 0.0


def summary(column: str) -> dict[str, object]:
    """The pooled correlation of a measure with the error, its interval and its p."""
    ranks, draw = list(within(column).values()), np.random.default_rng(0)
    rho = correlation(ranks)
    resampled = [correlation([ranks[i] for i in draw.integers(len(ranks), size=len(ranks))]) for _ in range(DRAWS)]
    exchanged = [correlation([np.stack([x, draw.permutation(y)]) for x, y in ranks]) for _ in range(DRAWS)]
    low, high = np.quantile(resampled, [0.025, 0.975])
    more = sum(abs(other) >= abs(rho) - 1e-12 for other in exchanged)  # 1e-12: sums of a few small ranks
    return {
        "measure": MEASURES[column],
        "architectures": len(ranks),
        "variants": sum(rows.shape[1] for rows in ranks),
        "rho": round(rho, 2),
        "low": round(float(low), 2),
        "high": round(float(high), 2),
        "p": round((more + 1) / (DRAWS + 1), 3),
    }


found = pd.DataFrame([summary(column) for column in MEASURES])
frame.write_table(found, "table_learning")
found

# %% [markdown]
# ## The points
#
# A line joins the variants of an architecture, in the order of the measure: it falls where more expressive variants
# have smaller errors.

# %%
figure, grid = plt.subplots(1, len(MEASURES), figsize=(style.WIDTH, 2.3), sharey=True)
looks = style.marks(points["net"].unique())
for axes, (column, label), row in zip(grid, MEASURES.items(), found.itertuples(), strict=True):
    for net, group in points.dropna(subset=column).sort_values(column).groupby("net", sort=False):
        look = looks[net]
        axes.plot(group[column], group["error"], color=look.color, marker=look.marker, linewidth=0.7, markersize=3.2)
    axes.set(title=label, xscale="log", yscale="log", xlabel=f"within architectures: ρ = {row.rho:.2f}")
    style.plain_log(axes.yaxis)
    style.plain_log(axes.xaxis)
grid[0].set_ylabel("test error (%)")
style.save(figure, "fig_learning")

# %% [markdown]
# ## Within each architecture

# %%
alone = {column: {net: correlation([rows]) for net, rows in within(column).items()} for column in MEASURES}
families = pd.DataFrame(alone).rename(columns=MEASURES).rename_axis("net").reset_index()
families.round(2)

# %%
frame.write_numbers(
    {
        "correlations": found.to_dict("records"),
        "predicts": [row.measure for row in found.itertuples() if row.low > 0 or row.high < 0],
        "architectures": int(found["architectures"].max()),
        "variants": int(found["variants"].max()),
    },
    "learning",
)
