# %% [markdown]
# # The six schematics, redrawn from code
#
# The paper explains its vocabulary in six pictures: a fully connected layer, an activation layer, a convolution, a
# pooling layer, and the two skip connections. Here each picture is drawn from the torch module that it shows. Only the
# nodes are placed by hand: **an edge is drawn where the Jacobian of the module is not zero** (at any of sixteen points,
# since a maximum reads one argument at a time), and **edges share a line style where the module shares the weight**.
#
# This is the only notebook that runs layers; the others read stored results.

# %%
from collections.abc import Callable, Sequence

import matplotlib.pyplot as plt
import numpy as np
import style
import torch
from matplotlib.axes import Axes
from matplotlib.patches import Circle, FancyBboxPatch
from torch import Tensor, nn

style.use()

# %%
Nodes = list[tuple[float, float]]
RADIUS = 0.31
SIZE, BOX = (2.05, 1.75), (-0.45, 4.85, -2.26, 2.26)  # inches and units: three pictures fill a line of the paper
LEFT, RIGHT = 0.0, 4.4


def jacobians(f: Callable[[Tensor], Tensor], features: int) -> Tensor:
    """The Jacobian of f: R^features -> R^m at sixteen points, (16, m, features)."""
    points = torch.randn(16, features, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return torch.stack([torch.autograd.functional.jacobian(f, point) for point in points])


def column(x: float, count: int, middle: float = 0.0, pitch: float = 0.74) -> Nodes:
    """The centres of `count` nodes in a vertical line, the first one on top."""
    return [(x, middle + pitch * ((count - 1) / 2 - i)) for i in range(count)]


def draw_nodes(axes: Axes, nodes: Nodes, labels: Sequence[str], color: str = "white") -> None:
    for (x, y), label in zip(nodes, labels, strict=True):
        axes.add_patch(Circle((x, y), RADIUS, facecolor=color, edgecolor=style.INK, linewidth=0.8, zorder=3))
        axes.text(x, y - 0.015, label, ha="center", va="center", fontsize=8.5, zorder=4)


def draw_edge(axes: Axes, start: tuple[float, float], end: tuple[float, float], mark: style.Mark, label: str = "",
              where: float = 0.5, rims: tuple[float, float] = (RADIUS, RADIUS)) -> None:  # fmt: skip
    """An arrow between the rims of two nodes; `rims` are their radii. The label lies on it at the fraction `where`."""
    start, end = np.array(start), np.array(end)
    along = (end - start) / np.linalg.norm(end - start)
    arrow = {"arrowstyle": "-|>,head_width=0.13,head_length=0.3", "color": mark.color, "linestyle": mark.linestyle,
             "linewidth": 0.9, "shrinkA": 0, "shrinkB": 0}  # fmt: skip
    axes.annotate("", end - rims[1] * along, start + rims[0] * along, arrowprops=arrow, zorder=2)
    if label:
        x, y = start + where * (end - start)
        box = {"facecolor": "white", "edgecolor": "none", "pad": 0.6}
        axes.text(x, y, label, fontsize=7, ha="center", va="center", color=mark.color, bbox=box, zorder=2.5)


def canvas() -> tuple[plt.Figure, Axes]:
    figure, axes = plt.subplots(figsize=SIZE)
    axes.set(xlim=BOX[:2], ylim=BOX[2:], aspect="equal")
    axes.axis("off")
    return figure, axes


def names(letter: str, count: int) -> list[str]:
    return [f"${letter}_{{{i + 1}}}$" for i in range(count)]


PLAIN = style.Mark("#4a4a4a", (), "o")

# %% [markdown]
# ## Figure 1: the fully connected layer
#
# Every output reads every input, and every such pair has its own weight. As in the paper, w_ij leads from input i to
# output j: y_j = w_1j x_1 + w_2j x_2 + w_3j x_3 + b_j, so that w_ij is the entry (j, i) of torch's weight matrix.

# %%
layer = nn.Linear(3, 3).double()
W = jacobians(layer, 3)[0]
xs, ys = column(LEFT, 3, pitch=1.6), column(RIGHT, 3, pitch=1.6)
figure, axes = canvas()
for j, i in np.argwhere(W.numpy() != 0):
    draw_edge(axes, xs[i], ys[j], PLAIN, f"$w_{{{i + 1}{j + 1}}}$", where=0.25)
draw_nodes(axes, xs, names("x", 3))
draw_nodes(axes, ys, names("y", 3))
style.save(figure, "fig_fully_connected")

# %% [markdown]
# ## Figure 2: the activation layer
#
# Each output reads only the input at its own place: the Jacobian is diagonal. The picture is the same for any function
# that is applied coordinate by coordinate; here it is the ReLU.

# %%
J = jacobians(nn.ReLU(), 3)
xs, ys = column(LEFT, 3, pitch=1.6), column(RIGHT, 3, pitch=1.6)
figure, axes = canvas()
for j, i in np.argwhere((J != 0).any(0).numpy()):
    draw_edge(axes, xs[i], ys[j], PLAIN, "$f$")
draw_nodes(axes, xs, names("x", 3))
draw_nodes(axes, ys, names("y", 3))
style.save(figure, "fig_activation")

# %% [markdown]
# ## Figure 3: convolution of size 3 and stride 1
#
# The same three weights slide along the input: a sparse affine map with shared entries. Equal entries of the Jacobian
# share a line style.

# %%
convolution = nn.Conv1d(1, 1, kernel_size=3, stride=1).double()
W = jacobians(lambda x: convolution(x[None])[0], 5)[0]
shared = {weight: k for k, weight in enumerate(convolution.weight.flatten().tolist())}
xs, ys = column(LEFT, 5, pitch=0.92), column(RIGHT, len(W), pitch=0.92)
figure, axes = canvas()
for j, i in np.argwhere(W.numpy() != 0):
    k = shared[W[j, i].item()]
    draw_edge(axes, xs[i], ys[j], style.MARKS[k], f"$w_{k + 1}$", where=0.3)
draw_nodes(axes, xs, names("x", 5))
draw_nodes(axes, ys, names("y", len(W)))
style.save(figure, "fig_convolution")

# %% [markdown]
# ## Figure 4: pooling of size 2
#
# Two inputs become one output. At each point the maximum reads the larger of the two; over all points it reads both,
# and no other input.

# %%
pooling = nn.MaxPool1d(2)
J = jacobians(lambda x: pooling(x[None])[0], 4)
xs, ys = column(LEFT, 4, pitch=1.1), column(RIGHT, J.shape[1], pitch=2.2)
figure, axes = canvas()
for j, reads in enumerate((J != 0).any(0)):
    window = [xs[i] for i in torch.nonzero(reads).flatten()]
    low, high = min(y for _, y in window), max(y for _, y in window)
    axes.add_patch(FancyBboxPatch((-0.3, low - 0.3), 0.6, high - low + 0.6, boxstyle="round,pad=0.13",
                                  facecolor=style.PAPER_BLUE, edgecolor="none", zorder=1))  # fmt: skip
    for node in window:
        draw_edge(axes, node, ys[j], PLAIN)
draw_nodes(axes, xs, names("x", 4))
draw_nodes(axes, ys, names("y", J.shape[1]))
style.save(figure, "fig_pooling")

# %% [markdown]
# ## Figures 5 and 6: the two skip connections
#
# A skip connection bypasses a block B. **Addition**: y = B(x) + x. **Concatenation**: y = (B(x); x). The edges of both
# modules are read off two Jacobians: with B replaced by the constant zero, the Jacobian in x has the edges of the skip;
# the Jacobian in the output of B has the edges that come from the block.


# %%
class Addition(nn.Module):
    """y = B(x) + x."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x) + x


class Concatenation(nn.Module):
    """y = (B(x); x)."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat((self.block(x), x), dim=-1)


class Constant(nn.Module):
    """The constant function x -> value."""

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.value = value

    def forward(self, x: Tensor) -> Tensor:
        return self.value


def skip_edges(skip: type[nn.Module], features: int) -> tuple[np.ndarray, np.ndarray]:
    """The pairs (j, i) where output j reads input i past the block, and (j, k) where it reads output k of the block."""
    past = jacobians(skip(Constant(torch.zeros(features, dtype=torch.float64))), features)
    x = torch.zeros(features, dtype=torch.float64)
    through = jacobians(lambda b: skip(Constant(b))(x), features)
    return np.argwhere((past != 0).any(0).numpy()), np.argwhere((through != 0).any(0).numpy())


def draw_skip(skip: type[nn.Module], name: str, labels: Sequence[str], outputs: Nodes) -> None:
    """Draw a skip connection that bypasses a block of three coordinates."""
    figure, axes = canvas()
    xs = column(LEFT, 3, middle=-1.15)
    left, right = column(1.5, 3, middle=1.15, pitch=0.5), column(2.9, 3, middle=1.15, pitch=0.5)
    axes.add_patch(FancyBboxPatch((1.55, 0.5), 1.3, 1.3, boxstyle="round,pad=0.05", facecolor=style.PAPER_BLUE,
                                  edgecolor=style.BLUE, linewidth=0.9, zorder=3))  # fmt: skip
    axes.text(2.2, 1.15, "$B$", ha="center", va="center", fontsize=11, color=style.BLUE, zorder=4)
    past, through = skip_edges(skip, 3)
    block = style.Mark(style.BLUE, (), "o")
    for x, port in zip(xs, left, strict=True):
        draw_edge(axes, x, port, block, rims=(RADIUS, 0))
    for j, k in through:
        draw_edge(axes, right[k], outputs[j], block, rims=(0, RADIUS))
    for j, i in past:
        draw_edge(axes, xs[i], outputs[j], PLAIN)
    draw_nodes(axes, xs, names("x", 3))
    draw_nodes(axes, outputs, labels)
    style.save(figure, name)


draw_skip(Addition, "fig_addition", ["$+$"] * 3, column(RIGHT, 3, middle=-1.15))

# %%
outputs = column(RIGHT, 3, middle=1.15) + column(RIGHT, 3, middle=-1.15)
draw_skip(Concatenation, "fig_concatenation", names("y", 6), outputs)

# %% [markdown]
# ## The canonical network of a maximum
#
# The idea of the whole paper in one picture: max pooling of four numbers (left) as affine maps and concatenated ReLUs
# (right), drawn from the network that Theorem 1 builds. A node with a hinge is a ReLU; a solid line adds, a dashed one
# subtracts; a pale line carries a coordinate along. A coordinate that no later layer reads is no longer drawn, and the
# next ReLU takes its place.

# %%
from skipform.theory.network import CanonicalNetwork
from skipform.theory.pooling import maximum, shallow_maximum

ADD, SUBTRACT = style.Mark(style.INK, (), "o"), style.MARKS[2]


def live(network: CanonicalNetwork) -> list[set[int]]:
    """For k = 0..L, the coordinates of z_k, counted from its end, that one of A_k, ..., A_{L-1}, R still reads."""
    sets, reads = [], set()
    for map_ in reversed(network.affine_maps):
        reads = {i for i in reads if i < map_.in_features} | {map_.in_features - 1 - int(j) for j in map_.indices}
        sets.append(reads)
    return sets[::-1]


def draw_hinge(axes: Axes, x: float, y: float) -> None:
    axes.add_patch(Circle((x, y), RADIUS, facecolor=style.PAPER_BLUE, edgecolor=style.BLUE, linewidth=0.9, zorder=3))
    axes.plot([x - 0.17, x - 0.01, x + 0.16], [y - 0.08, y - 0.08, y + 0.13], color=style.BLUE, linewidth=1.2, zorder=4)


def draw_canonical(axes: Axes, network: CanonicalNetwork, left: float, step: float, pitch: float) -> None:
    """Draw z_0, ..., z_L and y as columns from x = `left` on; an edge is an entry of an affine map, styled by sign."""
    alive, size = live(network), network.in_features
    height = {size - 1 - i: pitch * ((size - 1) / 2 - i) for i in range(size)}  # by coordinate, counted from the end
    draw_nodes(axes, [(left, y) for y in height.values()], names("x", size))
    fresh = 0  # coordinates from here on are new and drawn as nodes; those before are carried along and drawn as dots
    for k, map_ in enumerate(network.affine_maps):
        here, there = left + k * step, left + (k + 1) * step
        final = k == network.depth
        carried = set() if final else alive[k + 1]
        free = sorted((height[i] for i in alive[k] - carried), reverse=True)
        if len(free) < map_.out_features:  # the column needs more places than are free: extend it upwards
            more, top = map_.out_features - len(free), max(height[i] for i in alive[k])
            free = [top + pitch * (j + 1) for j in reversed(range(more))] + free
        for row, entries in enumerate(map_.rows()):
            coordinate = map_.in_features + map_.out_features - 1 - row
            height[coordinate] = 0.0 if final else free[row]
            for j, weight in entries.items():
                i = map_.in_features - 1 - j
                rim = RADIUS if i >= fresh else 0.13
                draw_edge(axes, (here, height[i]), (there, height[coordinate]), ADD if weight > 0 else SUBTRACT,
                          rims=(rim, RADIUS))  # fmt: skip
            if not final:
                draw_hinge(axes, there, height[coordinate])
        for i in carried & set(range(map_.in_features)):
            axes.plot([here, there], [height[i]] * 2, color=style.PALE, linewidth=3.2, zorder=1, solid_capstyle="butt")
            axes.add_patch(Circle((there, height[i]), 0.09, facecolor=style.GREY, edgecolor="none", zorder=3))
        fresh = map_.in_features
    draw_nodes(axes, [(left + (network.depth + 1) * step, height[coordinate])], ["$y$"])


figure, axes = plt.subplots(figsize=(style.WIDTH, 1.9))
axes.set(xlim=(-0.5, 14.5), ylim=(-2.2, 2.2), aspect="equal")
axes.axis("off")
xs, y = column(0, 4, pitch=1.15), (3.4, 0.0)
axes.add_patch(FancyBboxPatch((-0.3, -2.0), 0.6, 4.0, boxstyle="round,pad=0.13", facecolor=style.PAPER_BLUE,
                              edgecolor="none", zorder=1))  # fmt: skip
pooling = nn.MaxPool1d(4)
reads = (jacobians(lambda x: pooling(x[None])[0], 4) != 0).any(0)[0]
for node in np.array(xs)[reads.numpy()]:
    draw_edge(axes, tuple(node), y, PLAIN)
draw_nodes(axes, xs, names("x", 4))
draw_nodes(axes, [y], ["$y$"])
axes.text(4.6, -0.03, "$=$", fontsize=16, ha="center", va="center")
draw_canonical(axes, maximum(4), left=5.8, step=2.75, pitch=1.15)
style.save(figure, "fig_canonical")

# %% [markdown]
# ## Two networks for a maximum of nine
#
# A window of 3 x 3: the tree of Theorem 1 (above), and a network with one layer less and more than twice as many
# ReLUs (below).

# %%
heights = (-3.7, 3.7), (-3.7, 5.4)
ratios = [top - bottom for bottom, top in heights]
figure, panels = plt.subplots(2, 1, figsize=(style.WIDTH, style.WIDTH * sum(ratios) / 19), height_ratios=ratios)
for axes, limits, network in zip(panels, heights, (maximum(9), shallow_maximum(9)), strict=True):
    axes.set(xlim=(-0.5, 18.5), ylim=limits, aspect="equal")
    axes.axis("off")
    draw_canonical(axes, network, left=0.0, step=18 / (network.depth + 1), pitch=0.82)
style.save(figure, "fig_nine")
