# %% [markdown]
# # Examples of inputs and outputs
#
# The first test inputs and the outputs of trained nets for them: masks, boxes, feature pyramids, attention, texts. They
# are not selected: they are the first inputs of the test set, the first seed and the last epoch.

# %%
import frame
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import style
from matplotlib.patches import Rectangle
from scipy import ndimage

style.use()
names = frame.names()
examples = {net: frame.examples(net) for net in names}
SHOWN = 3  # examples per net
figures = []


def picture(axes: plt.Axes, image: np.ndarray, title: str = "") -> None:
    """One image (c, h, w) in grey, without axes."""
    axes.imshow(image.mean(0), cmap="gray_r", interpolation="nearest")
    axes.set(xticks=[], yticks=[])
    axes.set_title(title, fontsize=8)


def grid_of(rows: int, columns: int, head: float) -> tuple[plt.Figure, np.ndarray]:
    """Square panels as wide as the text block, with `head` inches above them."""
    side = style.WIDTH / columns
    return plt.subplots(rows, columns, squeeze=False, figsize=(style.WIDTH, side * rows + head))


def stored(columns: list[tuple[str, str]], most: int) -> int:
    """How many examples there are of every (net, variant), at most `most`; a small batch of a run has fewer."""
    return min(most, *(len(examples[net][variant]["images"]) for net, variant in columns))


def save(figure: plt.Figure, name: str) -> None:
    style.save(figure, name)
    figures.append(name)


# %% [markdown]
# ## Masks
#
# The class of every pixel, first in the true mask, then in the prediction of each variant. A number on every connected
# piece of a class names the class.


# %%
def mask(axes: plt.Axes, classes: np.ndarray, count: int, title: str = "") -> None:
    """A mask (h, w) of classes 0 (background), ..., count - 1, with the class in the middle of each piece."""
    axes.imshow(np.where(classes > 0, classes, np.nan), cmap="viridis", vmin=0, vmax=count, interpolation="nearest")
    axes.set(xticks=[], yticks=[])
    axes.set_title(title, fontsize=8)
    back = {"boxstyle": "round,pad=0.1", "facecolor": style.INK, "linewidth": 0}
    for index in np.unique(classes[classes > 0]):
        pieces, number = ndimage.label(classes == index, np.ones((3, 3)))
        for piece in range(1, number + 1):
            rows, columns = np.nonzero(pieces == piece)
            if len(rows) >= 0.01 * classes.size:  # pieces of a few pixels are not labelled
                at = {"ha": "center", "va": "center", "fontsize": 7, "color": "white", "bbox": back}
                axes.text(columns.mean(), rows.mean(), str(index - 1), **at)


segmented = [net for net in names if any("masks" in arrays for arrays in examples[net].values())]
if segmented:
    images = stored([(net, variant) for net in segmented for variant in examples[net]], 2)
    panels = 2 + max(len(examples[net]) for net in segmented)
    figure, grid = grid_of(images * len(segmented), panels, 0.4)
    for k, row in enumerate(grid):
        net, image = segmented[k // images], k % images
        variants = examples[net]
        first = next(iter(variants.values()))  # images and true masks are the same for all variants
        count = 1 + int(first["masks"].max())
        picture(row[0], first["images"][image], names[net] if image == 0 else "")
        mask(row[1], first["masks"][image], count, "truth" if image == 0 else "")
        for axes, (variant, arrays) in zip(row[2:], variants.items(), strict=False):
            mask(axes, arrays["predicted"][image], count, frame.readable(variant) if image == 0 else "")
        for axes in row[2 + len(variants) :]:
            axes.remove()
    save(figure, "fig_masks")

# %% [markdown]
# ## Boxes
#
# Dashed: the true boxes. Solid: the predictions whose score is above `THRESHOLD`, with their class and score.

# %%
THRESHOLD = 0.3
detected = [net for net in names if any("predicted_boxes" in arrays for arrays in examples[net].values())]


def box(axes: plt.Axes, corners: np.ndarray, **look: object) -> None:
    """A box (x0, y0, x1, y1) as a rectangle."""
    x0, y0, x1, y1 = corners - 0.5  # pixel centres have whole coordinates
    axes.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, **look))


if detected:
    columns = [(net, variant) for net in detected for variant in examples[net]]
    figure, grid = grid_of(stored(columns, SHOWN), len(columns), 0.35)
    for k, row in enumerate(grid):
        for axes, (net, variant) in zip(row, columns, strict=True):
            arrays = examples[net][variant]
            picture(axes, arrays["images"][k], f"{names[net]}\n{frame.readable(variant)}" if k == 0 else "")
            for corners, label in zip(arrays["boxes"][k], arrays["labels"][k], strict=True):
                if label >= 0:
                    box(axes, corners, edgecolor=style.INK, linewidth=0.8, linestyle=(0, (3, 2)))
            predicted = (arrays[f"predicted_{key}"][k] for key in ("boxes", "labels", "scores"))
            for corners, label, score in zip(*predicted, strict=True):
                if label >= 0 and score > THRESHOLD:
                    box(axes, corners, edgecolor="#c2481b", linewidth=1.2)
                    text = f"{label} {100 * score:.0f} %"
                    back = {"boxstyle": "square,pad=0.1", "facecolor": "#c2481b", "linewidth": 0}
                    axes.text(corners[0], corners[3] - 1, text, fontsize=6, color="white", bbox=back)
    save(figure, "fig_boxes")

# %% [markdown]
# ## Feature pyramids
#
# The maps of the pyramid for the first image, from fine to coarse: the root mean square over the channels.

# %%
pyramids = [
    (net, variant)
    for net in names
    for variant, arrays in examples[net].items()
    if any("pyramid." in key for key in arrays)
]
if pyramids:
    levels = sorted(key for key in examples[pyramids[0][0]][pyramids[0][1]] if key.startswith("pyramid."))
    figure, grid = grid_of(len(pyramids), 1 + len(levels), 0.25)
    for row, (net, variant) in zip(grid, pyramids, strict=True):
        arrays = examples[net][variant]
        picture(row[0], arrays["images"][0], variant)
        for axes, level in zip(row[1:], levels, strict=True):
            axes.imshow(np.sqrt((arrays[level] ** 2).mean(0)), cmap="gray_r", interpolation="nearest")
            axes.set(xticks=[], yticks=[])
            axes.set_title(level.removeprefix("pyramid.") if row[0] is grid[0][0] else "", fontsize=8)
    save(figure, "fig_pyramids")

# %% [markdown]
# ## Attention
#
# The attention weights for the first example, in the first variant of each net: how much a token (row) attends to each
# token (column), as the mean over the heads of a layer.

# %%
LAYERS = 4  # per net
attending = [
    net for net in names if any(key.startswith("attention.") for arrays in examples[net].values() for key in arrays)
]


def attention(net: str) -> list[np.ndarray]:
    """The attention maps (t, s) of the first variant of a net, in the order of its layers."""
    arrays = examples[net][first_variant[net]]
    keys = sorted((key for key in arrays if key.startswith("attention.")), key=lambda key: int(key.partition(".")[2]))
    return [arrays[key].mean(0) for key in keys]


runs = frame.records()
first_variant = {net: group["variant"].iloc[0] for net, group in runs.groupby("net", sort=False)}
if attending:
    figure, grid = plt.subplots(len(attending), LAYERS, squeeze=False, figsize=(style.WIDTH, 1.55 * len(attending)))
    for row, net in zip(grid, attending, strict=True):
        maps = attention(net)
        chosen = np.unique(np.linspace(0, len(maps) - 1, min(LAYERS, len(maps))).round().astype(int))
        for axes in row[len(chosen) :]:
            axes.remove()
        for axes, layer in zip(row, chosen, strict=False):
            axes.imshow(maps[layer], cmap="gray_r", aspect="auto", interpolation="nearest", vmin=0)
            axes.set(xticks=[], yticks=[])
            axes.set_title(f"{layer + 1} of {len(maps)}", fontsize=8)
        row[0].set_ylabel(names[net], fontsize=8)
    save(figure, "fig_attention")

# %% [markdown]
# ## Texts
#
# The texts that language models and translators write: continuations, filled gaps and translations, per variant.

# %%
written = pd.DataFrame(
    [
        {"net": names[net], "variant": variant, "example": k + 1, "what": key, "text": text}
        for net in names
        for variant, arrays in examples[net].items()
        for key, texts in arrays.items()
        if isinstance(texts, list)
        for k, text in enumerate(texts[:SHOWN])
    ]
)
if len(written):
    frame.write_table(written, "table_texts")
with pd.option_context("display.max_colwidth", None):
    print(written.to_string(index=False) if len(written) else "no texts")

# %%
frame.write_numbers({"figures": figures}, "examples")
