# %% [markdown]
# # Robust radii of ten digits
#
# How far is a digit from the nearest image that a trained net with max pooling takes for another class, exactly? The
# distance is the **largest change of a pixel**, in units of the grey levels 0 (white) to 1 (black), and the images stay
# within these. `skipform radii` trains the net of `experiments/explorer/radii.yaml` and takes, of every class, the
# first test image that the net classifies rightly. A mixed-integer linear program has the distance as its objective;
# max pooling enters it as ReLUs, each with a binary variable, or as it is, with a binary variable for every entry of a
# window (Tjeng et al. 2019). Both give the same radius; the solver's work differs.

# %%
import frame
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import style

style.use()
found = frame.radii()
rows, shape = found["rows"], found["shape"]
images = [{key: np.reshape(row[key] or row["image"], shape).mean(0) for key in ("image", "witness")} for row in rows]

# %% [markdown]
# ## The digits and their nearest images of another class
#
# Above: the digit. Below: the nearest image of another class, whose class and radius stand over it, checked by the net
# itself.

# %%
figure, grid = plt.subplots(2, max(len(rows), 1), squeeze=False, figsize=(style.WIDTH, 1.42))
for column, row, pair in zip(grid.T, rows, images, strict=False):
    for axes, key in zip(column, ("image", "witness"), strict=True):
        axes.imshow(pair[key], cmap="gray_r", vmin=0, vmax=1, interpolation="nearest")
        axes.set(xticks=[], yticks=[])
    column[0].set_title(f"{row['label']}", fontsize=8, loc="center")
    nearest = (
        "none" if row["radius"] is None else f"{row['other']} at {'' if row['exact'] else '≤ '}{row['radius']:.3f}"
    )
    column[1].set_title(nearest, fontsize=6.5, loc="center")
style.save(figure, "fig_radii")

# %% [markdown]
# ## The solver's work
#
# Binary variables of the largest program; branch-and-bound nodes and simplex iterations over all other classes. They
# are the same at every run of one net, unlike seconds.

# %%
WORK = ("switches", "nodes", "iterations")
RESULT = ("label", "other", "relaxed", "proved", "radius", "exact")
FORMS = [(form, key) for form in ("relu", "native") for key in WORK]
table = pd.DataFrame(
    [[row[key] for key in RESULT] + [row["forms"][form][key] for form, key in FORMS] for row in rows],
    columns=[*RESULT, *(f"{form}_{key}" for form, key in FORMS)],
)
table[["relaxed", "proved", "radius"]] = table[["relaxed", "proved", "radius"]].astype(float)
frame.write_table(table, "table_radii")
table


# %%
def number(value: float, decimals: int) -> float | None:
    """The number as it is printed; None where no digit has one."""
    return None if np.isnan(value) else round(float(value), decimals)


exact = table[table["exact"].astype(bool)]
frame.write_numbers(
    {
        "images": len(rows),
        "exact": len(exact),
        "parameters": found["net"]["parameters"],
        "test_error": round(found["net"]["test_error"], 1),
        "least": number(exact["radius"].min(), 3),
        "most": number(exact["radius"].max(), 3),
        "relaxed": number(100 * (exact["relaxed"] / exact["radius"]).median(), 0),  # percent of the radius
        "totals": {f"{form}_{key}": int(table[f"{form}_{key}"].sum()) for form, key in FORMS},
        "fewer": {key: int((table[f"relu_{key}"] < table[f"native_{key}"]).sum()) for key in WORK},
    },
    "radii",
)
