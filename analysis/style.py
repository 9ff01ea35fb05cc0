"""The style that all figures share: sizes, fonts and marks. `save` writes equal bytes for equal figures.

Two series differ in three ways: in lightness (so that they stay apart in grey), in line style and in marker. The name
of a series is written at the end of its line, so that no reader has to match a legend.
"""

import math
from collections.abc import Iterable, Sequence
from itertools import cycle, islice
from typing import NamedTuple

import frame
import matplotlib as mpl
import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator
from matplotlib.transforms import blended_transform_factory

WIDTH = 6.3  # inches: the width of the paper's text block
INK, GREY, PALE = "#1c1c1c", "#8a8a8a", "#d9d9d9"
BLUE, PAPER_BLUE = "#1f5a94", "#cfe0f1"  # the blue of a bypassed block, as in the paper's Figures 5 and 6


class Mark(NamedTuple):
    """How one series is drawn: its colour, its dashes (on, off, ... in points; () for a solid line) and its marker."""

    color: str
    dashes: tuple[float, ...]
    marker: str

    @property
    def linestyle(self) -> str | tuple[int, tuple[float, ...]]:
        return (0, self.dashes) if self.dashes else "-"


# Lightness (CIE L*) rises from 10 to 77, so the order survives printing in grey; dashes and markers differ as well.
MARKS = (
    Mark(INK, (), "o"),
    Mark("#1f5a94", (5, 1.5), "s"),
    Mark("#c2481b", (1, 1.2), "^"),
    Mark("#2a8f7f", (6, 1.5, 1, 1.5), "D"),
    Mark("#d69a1c", (3, 1, 1, 1, 1, 1), "v"),
    Mark("#9fc3e6", (8, 3), "P"),
)


def marks(names: Iterable[str]) -> dict[str, Mark]:
    """A mark for each name, in order; from the seventh name on the marks repeat."""
    names = list(names)
    return dict(zip(names, islice(cycle(MARKS), len(names)), strict=True))


def use() -> None:
    """Set the style; every notebook that draws calls this first."""
    sns.set_theme(
        context="paper",
        style="ticks",
        rc={
            "font.family": "STIXGeneral",  # comes with matplotlib and suits Libertinus, the font of the paper
            "mathtext.fontset": "stix",
            "font.size": 9,
            "axes.titlesize": 9.5,
            "axes.titleweight": "normal",
            "axes.titlelocation": "left",
            "axes.labelsize": 9,
            "xtick.labelsize": 8,
            "ytick.labelsize": 8,
            "axes.linewidth": 0.6,
            "axes.edgecolor": INK,
            "axes.labelcolor": INK,
            "text.color": INK,
            "xtick.color": INK,
            "ytick.color": INK,
            "xtick.major.width": 0.6,
            "ytick.major.width": 0.6,
            "xtick.major.size": 3,
            "ytick.major.size": 3,
            "xtick.minor.size": 1.5,
            "ytick.minor.size": 1.5,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "lines.linewidth": 1.4,
            "lines.markersize": 4.5,
            "grid.color": PALE,
            "grid.linewidth": 0.5,
            "figure.constrained_layout.use": True,
            "svg.hashsalt": "skipform",
            "svg.fonttype": "path",
            "pdf.fonttype": 42,
        },
    )
    if "inline" in mpl.get_backend():
        from matplotlib_inline.backend_inline import set_matplotlib_formats

        set_matplotlib_formats("retina")


def save(figure: Figure, name: str) -> None:
    """Write `name`.svg and `name`.pdf without dates, so that equal figures are equal bytes."""
    figure.savefig(frame.GENERATED / f"{name}.svg", metadata={"Date": None})
    figure.savefig(frame.GENERATED / f"{name}.pdf", metadata={"CreationDate": None})


# Before and after training: label, fill of the mark, offset from the middle of the row, colour of line and label.
MOMENTS = {"initial": ("before", "white", -0.17, GREY), "final": ("after", INK, 0.17, INK)}


def before_after(
    rows: dict[str, pd.DataFrame],
    panels: dict[str, tuple[str, str | None]],
    name: str,
    reasons: dict[str, str] | None = None,
) -> None:
    """Save a figure with one row per entry of `rows` (label -> measurements) and one panel per entry of `panels`.

    A mark is the median, the line through it the range; before and after training are drawn side by side.
    panels: column -> (title, the column that holds its upper bound). A bound is drawn as a vertical tick; a panel
    without one (None) has a logarithmic axis. reasons: label -> why its first panel is empty, written there.
    """
    pitch = 0.22 if len(rows) < 20 else 0.135  # a table of many rows is set on one page
    figure, grid = plt.subplots(1, len(panels), figsize=(WIDTH, pitch * len(rows) + 0.75), sharey=True)
    tables = pd.concat(rows.values())
    for axes, (column, (title, bound)) in zip(grid, panels.items(), strict=True):
        for y, table in enumerate(rows.values()):
            for when, (_, fill, shift, ink) in MOMENTS.items():
                values = table.loc[table["when"] == when, column].dropna()
                if values.empty:
                    continue
                axes.plot([values.min(), values.max()], [y + shift] * 2, color=ink, linewidth=0.9, zorder=2)
                axes.plot(values.median(), y + shift, marker="o", markersize=4.6, markerfacecolor=fill,
                          markeredgecolor=ink, markeredgewidth=0.9, zorder=3)  # fmt: skip
            if bound and table[bound].notna().any():
                axes.plot([table[bound].max()] * 2, [y - 0.33, y + 0.33], color=INK, linewidth=0.8, zorder=1)
        axes.set_title(title, fontsize=9, linespacing=1.05)
        axes.grid(axis="y")
        axes.spines["left"].set_visible(False)
        axes.tick_params(axis="y", length=0)
        if bound:
            axes.set_xlim(0, axes.dataLim.x1 * 1.06)
            axes.xaxis.set_major_locator(MaxNLocator(4, integer=True, steps=[1, 2, 5, 10]))
    # Logarithmic axes share their limits, so that regions and pieces can be compared between panels.
    ends = tables[[column for column, (_, bound) in panels.items() if not bound]].stack()
    for axes, (_, bound) in zip(grid, panels.values(), strict=True):
        if not bound and ends.empty:
            axes.set_xticks([])
        elif not bound:
            axes.set(xscale="log", xlim=(ends.min() / 1.3, ends.max() * 1.3))
            plain_log(axes.xaxis)
    for y, label in enumerate(rows):
        if reasons and label in reasons:
            grid[0].text(0.02, y, reasons[label], transform=grid[0].get_yaxis_transform(), fontsize=7.5, color=GREY,
                         va="center", style="italic")  # fmt: skip
    # The words stand at the first marks that there are, as a rule those of the first row in the first panel.
    y, axes, marked = next(
        (y, axes, table.set_index("when")[column])
        for y, table in enumerate(rows.values())
        for axes, column in zip(grid, panels, strict=True)
        if table[column].notna().any()
    )
    for when, (word, _, shift, ink) in MOMENTS.items():
        axes.annotate(word, (marked[[when]].max(), y + shift), xytext=(5, 0), textcoords="offset points", fontsize=7.5,
                      color=ink, va="center", style="italic")  # fmt: skip
    grid[0].set_yticks(range(len(rows)), list(rows))
    grid[0].set_ylim(len(rows) - 0.5, -0.5)
    save(figure, name)


def plain_log(axis: Axis) -> None:
    """Label a logarithmic axis with plain numbers: 1 per decade, or 1 and 3, or more, until there are three labels."""
    low, high = sorted(axis.get_view_interval())
    for steps in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 5, 7)):
        decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        ticks = [step * 10.0**k for k in decades for step in steps if low <= step * 10.0**k <= high]
        if len(ticks) >= 3:
            break
    axis.set_major_locator(FixedLocator(ticks))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}".replace(",", "\u2009")))


def legible(color: str) -> tuple[float, float, float]:
    """The colour, darkened where it is too light to read as text."""
    r, g, b = to_rgb(color)
    luminance = 0.2126 * r + 0.7152 * g + 0.0722 * b
    factor = min(1.0, 0.42 / max(luminance, 1e-6))
    return (r * factor, g * factor, b * factor)


def apart(positions: Sequence[float], gap: float) -> list[float]:
    """The positions closest to the given ones, in the same order and at least `gap` apart (pool adjacent violators)."""
    order = sorted(range(len(positions)), key=lambda i: (positions[i], i))
    groups: list[list[float]] = []  # [sum of (position - rank * gap), number of members]
    for rank, i in enumerate(order):
        groups.append([positions[i] - rank * gap, 1])
        while len(groups) > 1 and groups[-2][0] / groups[-2][1] > groups[-1][0] / groups[-1][1]:
            total, members = groups.pop()
            groups[-1][0] += total
            groups[-1][1] += members
    centres = [total / members for total, members in groups for _ in range(int(members))]
    out = [0.0] * len(positions)
    for rank, i in enumerate(order):
        out[i] = centres[rank] + rank * gap
    return out


def name_lines(axes: Axes, ends: Sequence[tuple[str, float, str]], gap: float = 9.5, size: float = 8) -> None:
    """Write each name (text, y in data, colour) right of the axes at its line's end, at least `gap` points apart.

    The names do not reach above or below the axes as long as there is room for all of them.
    """
    if not ends:
        return
    figure = axes.get_figure()
    assert figure is not None
    figure.canvas.draw()  # computes the layout, so that data coordinates can be converted to points
    points = 72 / figure.dpi
    heights = [axes.transData.transform((axes.get_xlim()[1], y))[1] * points for _, y, _ in ends]
    bottom, top = axes.bbox.y0 * points, axes.bbox.y1 * points
    wanted = list(heights)
    for rank, i in enumerate(sorted(range(len(ends)), key=lambda i: heights[i])):
        wanted[i] = max(min(heights[i], top - (len(ends) - 1 - rank) * gap), bottom + rank * gap)
    for (text, y, color), here, there in zip(ends, heights, apart(wanted, gap), strict=True):
        axes.annotate(
            text,
            (1.0, y),
            xycoords=blended_transform_factory(axes.transAxes, axes.transData),
            xytext=(gap, there - here),
            textcoords="offset points",
            color=legible(color),
            va="center",
            fontsize=size,
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-",
                "color": color,
                "linewidth": 0.5,
                "shrinkA": 0,
                "shrinkB": 1,
                "relpos": (0, 0.5),
            },
        )
