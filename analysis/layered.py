"""Draws a diagram of operations in layers: `layout` places the nodes, `routes` leads the edges around them.

The column of a node is the length of the longest path to it from an input. Its row is the level of its resolution where
a net changes the resolution, so that a U-Net is a U; else the longest path from the input to the output is one row and
what runs beside it lies below. All lengths are in inches.
"""

import math
from collections.abc import Iterator, Sequence
from itertools import combinations, pairwise

import matplotlib.pyplot as plt
import style
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyBboxPatch

from skipform.compiler.diagram import Diagram, Node

Point = tuple[float, float]
Box = tuple[float, float, float, float]  # left, bottom, right, top
PITCH, GAP = 0.29, 0.11  # between the centres of columns, and at least between their boxes
LINE, LETTER = 0.105, 0.052  # height of a line of text, mean width of a letter
FONT = 7  # points
RADIUS = 0.085  # of the circle of a sum
ROOM = 0.12  # between boxes above each other
ARC = 0.11  # between the arcs of skips
ROUND = "round,pad=0,rounding_size=0.03"
SIGNS = {"add": "+", "sub": "−", "mul": "×"}
FILLS = {"cat": style.PALE, "module": style.PAPER_BLUE, "scaled_dot_product_attention": style.PAPER_BLUE}


def longest_path(diagram: Diagram) -> list[int]:
    """The nodes of the longest path from an input to the first output; of equally long ones that of the first nodes."""
    best: list[list[int]] = []
    for k in range(len(diagram.nodes)):
        before = [best[i] for i, j in diagram.edges if j == k]
        best.append([*max(before, key=len, default=[]), k])
    return best[next(k for k, node in enumerate(diagram.nodes) if node.operation == "output")]


def columns(diagram: Diagram) -> list[int]:
    """The longest path to each node, further to the right where another node of its row stands already; an input stands
    right before the first node that reads it."""
    found: list[int] = []
    levels = rows(diagram)
    for k in range(len(diagram.nodes)):
        column = max((found[i] + 1 for i, j in diagram.edges if j == k), default=0)
        while any(found[i] == column and abs(levels[i] - levels[k]) < 1 for i in range(k)):
            column += 1
        found.append(column)
    for k, node in enumerate(diagram.nodes):
        if node.operation == "input":
            found[k] = min((found[j] for i, j in diagram.edges if i == k), default=1) - 1
    return found


def rows(diagram: Diagram) -> list[float]:
    """The row of each node, from 0 downwards."""
    sides = [node.size[-1] if len(node.size) == 3 else 1 for node in diagram.nodes]  # channels, height, width
    if len(set(sides)) == 1:
        main = set(longest_path(diagram))
        return [float(k not in main) for k in range(len(sides))]
    levels = [float(round(math.log2(max(sides) / side))) for side in sides]
    for k in range(len(sides)):
        coarsest = max((levels[i] for i, j in diagram.edges if j == k and sides[i] < sides[k]), default=None)
        if coarsest is not None and diagram.nodes[k].operation != "output":
            levels[k] = coarsest - 0.5  # what makes a map finer stands between the levels
    return levels


def lines_of(label: str) -> list[str]:
    """The label in lines of at most 18 letters, broken after commas where that is possible."""
    lines = [""]
    for part in label.replace(", ", ",\n").split("\n"):
        joined = f"{lines[-1]} {part}".strip()
        lines = [*lines[:-1], joined] if len(joined) <= 18 else [*lines, part]
    return [line for line in lines if line]


def half_size(node: Node, tallest: float) -> Point:
    """Half the width and half the height of a node; `tallest` is that of the boxes of its diagram."""
    if node.operation in SIGNS:
        return RADIUS, RADIUS
    if node.operation in ("input", "output"):
        return LINE / 2, len(node.label) * LETTER / 2 + 0.03
    return max(0.09, len(lines_of(node.label)) * LINE / 2 + 0.03), tallest


def layout(diagram: Diagram) -> tuple[list[Point], list[Point]]:
    """The centres of the nodes and half their widths and heights."""
    drawn = [node for node in diagram.nodes if node.operation not in (*SIGNS, "input", "output")]
    tallest = max((len(line) for node in drawn for line in lines_of(node.label)), default=1) * LETTER / 2 + 0.05
    halves = [half_size(node, tallest) for node in diagram.nodes]
    levels, places = rows(diagram), columns(diagram)
    apart = tallest + ROOM  # between rows: an edge in one row has to pass a box in the next one
    for i, j in combinations(range(len(halves)), 2):
        if places[i] == places[j] and levels[i] != levels[j]:
            apart = max(apart, (halves[i][1] + halves[j][1] + ROOM) / abs(levels[i] - levels[j]))
    for i, j in diagram.edges:
        if levels[j] % 1 and sum(source == i for source, _ in diagram.edges) > 1:
            apart = max(apart, 2 * tallest + ROOM)  # a box between rows is clear of what else leaves its source
    wide: dict[int, float] = {}
    for column, (half, _) in zip(places, halves, strict=True):
        wide[column] = max(wide.get(column, 0.0), half)
    middle, x = {}, 0.0
    for column in sorted(wide):
        x += max(PITCH, wide.get(column - 1, 0.0) + wide[column] + GAP) if column else wide[column]
        middle[column] = x
    return [(middle[column], -row * apart) for column, row in zip(places, levels, strict=True)], halves


def box(centre: Point, half: Point) -> Box:
    return centre[0] - half[0], centre[1] - half[1], centre[0] + half[0], centre[1] + half[1]


def meets(path: Sequence[Point], box: Box, room: float = 0.03) -> bool:
    """Whether a path of horizontal and vertical lines comes closer to a box than `room`."""
    left, bottom, right, top = box
    return any(
        min(a[0], b[0]) < right + room
        and max(a[0], b[0]) > left - room
        and min(a[1], b[1]) < top + room
        and max(a[1], b[1]) > bottom - room
        for a, b in pairwise(path)
    )


def overlap(path: Sequence[Point], other: Sequence[Point]) -> bool:
    """Whether two paths run along each other on a horizontal line."""
    return any(
        a[1] == b[1] and c[1] == d[1] and abs(a[1] - c[1]) < 1e-9 and max(a[0], c[0]) < min(b[0], d[0])
        for a, b in pairwise(path)
        for c, d in pairwise(other)
    )


def candidates(start: Box, end: Box, several: bool, top: float, shift: float) -> Iterator[list[Point]]:
    """Paths from the right side of one box to another, the simplest first. several: whether the other box is read by
    several edges, of which one takes its side; top: above all nodes; shift: where an arc enters, from the middle."""
    x0, y0, y1 = start[2], (start[1] + start[3]) / 2, (end[1] + end[3]) / 2
    middle, gap, before = (end[0] + end[2]) / 2, x0 + GAP / 2, end[0] - GAP / 2
    if y0 == y1 or (several and end[1] + 0.05 < y0 < end[3] - 0.05):
        yield [(x0, y0), (end[0], y0)]
    elif several:
        yield [(x0, y0), (middle, y0), (middle, end[1] if y0 < y1 else end[3])]
    if y0 != y1:
        yield [(x0, y0), (before, y0), (before, y1), (end[0], y1)]
        yield [(x0, y0), (gap, y0), (gap, y1), (middle, y1) if several else (end[0], y1)]
        yield [(x0, y0), (gap, y0), (gap, y1), (end[0], y1)]
    for level in range(1, 20):
        height = top + level * ARC
        yield [(x0, y0), (gap, y0), (gap, height), (middle + shift, height), (middle + shift, end[3])]


def routes(diagram: Diagram) -> dict[tuple[int, int], list[Point]]:
    """The path of every edge: none touches a node that it does not join, and no two arcs run along each other."""
    centres, halves = layout(diagram)
    boxes = [box(centre, half) for centre, half in zip(centres, halves, strict=True)]
    read = [sum(j == k for _, j in diagram.edges) for k in range(len(boxes))]
    arcs: dict[tuple[int, int], list[Point]] = {}
    arriving = [0] * len(boxes)
    found = {}
    for i, j in sorted(diagram.edges, key=lambda edge: (boxes[edge[1]][0] - boxes[edge[0]][2], edge)):
        others = [other for k, other in enumerate(boxes) if k not in (i, j)]
        top = max(b[3] for b in boxes if b[0] < boxes[j][2] and b[2] > boxes[i][0] and b[1] <= centres[i][1] <= b[3])
        shift = halves[j][0] * 0.8 * ((2 * arriving[j] + 1) / max(read[j] - 1, 1) - 1)
        for path in candidates(boxes[i], boxes[j], read[j] > 1, max(top, boxes[j][3]), shift):
            if any(meets(path, other) for other in others):
                continue
            if len(path) == 5 and any(overlap(path[2:4], arc[2:4]) for (k, _), arc in arcs.items() if k != i):
                continue
            found[i, j] = path
            break
        else:
            raise ValueError(f"no path for the edge {i} -> {j}")
        if len(found[i, j]) == 5:
            arcs[i, j] = found[i, j]
            arriving[j] += 1
    return found


def skip_edges(diagram: Diagram) -> set[tuple[int, int]]:
    """The edges of skips: those outside the longest path that leave it and come back to it."""
    main = longest_path(diagram)
    after, before = set(main), set(main)
    for i, j in diagram.edges:
        after |= {j} if i in after else set()
    for i, j in reversed(diagram.edges):
        before |= {i} if j in before else set()
    return {(i, j) for i, j in diagram.edges if i in after and j in before} - {*pairwise(main)}


def draw(diagram: Diagram) -> Figure:
    """The diagram at its natural size; in an SVG the nodes are named node-0, ... and the edges edge-0-1, ..."""
    centres, halves = layout(diagram)
    paths, skips = routes(diagram), skip_edges(diagram)
    boxes = [box(centre, half) for centre, half in zip(centres, halves, strict=True)]
    points = [point for path in paths.values() for point in path]
    margin = 0.06
    left, right = min(b[0] for b in boxes) - margin, max(b[2] for b in boxes) + margin
    bottom = min([b[1] for b in boxes] + [y for _, y in points]) - margin
    top = max([b[3] for b in boxes] + [y for _, y in points]) + margin
    figure = plt.figure(figsize=(right - left, top - bottom))
    figure.set_layout_engine("none")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(left, right), ylim=(bottom, top))
    axes.axis("off")
    for (i, j), path in paths.items():
        skip = (i, j) in skips
        look = {"color": style.BLUE, "linewidth": 1.3} if skip else {"color": style.INK, "linewidth": 0.7}
        (line,) = axes.plot(*zip(*path, strict=True), **look, zorder=2 - skip, solid_capstyle="butt")
        line.set_gid(f"edge-{i}-{j}")
        arrow = {"arrowstyle": "-|>,head_width=0.1,head_length=0.22", "shrinkA": 0, "shrinkB": 0, **look}
        axes.annotate("", path[-1], path[-2], arrowprops=arrow, zorder=2 - skip)
    for k, (node, (x, y), half) in enumerate(zip(diagram.nodes, centres, halves, strict=True)):
        if node.operation in SIGNS:
            shape, text, turn = Circle((x, y), RADIUS, facecolor="white"), SIGNS[node.operation], 0
        elif node.operation in ("input", "output"):
            shape, text, turn = Circle((x, y), 0.01, alpha=0), node.label, 90
        else:
            fill = FILLS.get(node.operation, style.PAPER_BLUE if "conv" in node.operation else "white")
            corner = (x - half[0], y - half[1])
            shape = FancyBboxPatch(corner, 2 * half[0], 2 * half[1], boxstyle=ROUND, facecolor=fill)
            text, turn = "\n".join(lines_of(node.label)), 90
            for behind in (2, 1) if node.groups > 1 else ():  # parallel paths
                moved = (corner[0] + 0.03 * behind, corner[1] + 0.03 * behind)
                axes.add_patch(FancyBboxPatch(moved, 2 * half[0], 2 * half[1], boxstyle=ROUND, facecolor=fill,
                                              edgecolor=style.INK, linewidth=0.7, zorder=2.5))  # fmt: skip
        shape.set(edgecolor=style.INK, linewidth=0.7, zorder=3, gid=f"node-{k}")
        axes.add_patch(shape)
        axes.text(x, y, text, rotation=turn, ha="center", va="center", fontsize=FONT if turn else 9, zorder=4,
                  linespacing=1.0)  # fmt: skip
    return figure
