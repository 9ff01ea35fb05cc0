"""The regions of a plane as outlines on a grid of whole numbers, in the notation of SVG paths, ready to be drawn.

Corners are rounded to the grid; nothing else is approximated. A region whose corners round to one line is not drawn.
s runs to the right and t upwards, so that the corner (0, 0) of the grid is the lowest s and the highest t of the box.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator
from typing import NamedTuple

import numpy as np
from scipy import sparse

from skipform.measure.plane import PlaneRegions

GRID = 4096  # units along a side of the box
LABELLED = 0.01  # the least share of the box that an area of one class has to have to be labelled

Point = tuple[int, int]
Path = list[Point]


class Outlines(NamedTuple):
    """What is drawn of one plane.

    areas: class -> the set on which its score is the greatest, as closed paths to be filled by the rule `evenodd`.
    labels: (class, x, y) for every connected part of these areas that is large enough to be labelled: a point in it.
    pieces: the borders between affine pieces. regions: the other borders between activation regions.
    """

    areas: dict[int, str]
    labels: list[tuple[int, int, int]]
    pieces: str
    regions: str


def outlines(regions: PlaneRegions, grid: int = GRID) -> Outlines:
    """The outlines of the regions, the pieces and the classes; the outputs of the net are the scores of the classes."""
    low_s, high_s, low_t, high_t = regions.box
    low, side = np.array([low_s, high_t]), np.array([high_s - low_s, low_t - high_t])
    corners = regions.polygons()
    rings = [_ring(grid * (polygon - low) / side) for polygon in corners]
    sides = _sides(rings)
    pieces = regions.labels
    between = {True: list[tuple[Point, Point]](), False: list[tuple[Point, Point]]()}  # is a border of pieces -> edges
    for edge, cells in sides.items():
        if len(cells) > 1:
            between[len({pieces[cell] for cell in cells}) > 1].append(edge)
    classes, parts = _classes(corners, regions.affine_maps())
    areas = defaultdict(list)
    for cell, ring in enumerate(rings):
        if classes[cell] >= 0:
            areas[int(classes[cell])].append(ring)
    for label, part in parts:
        areas[label].append(_ring(grid * (part - low) / side))
    return Outlines(
        {label: _written(_union(areas[label]), closed=True) for label in sorted(areas)},
        _labels(rings, sides, classes, regions.areas() / abs(side).prod()),
        _written(_lines(between[True])),
        _written(_lines(between[False])),
    )


def _ring(corners: np.ndarray) -> Path:
    """The corners (k, 2) rounded to the grid, without repetitions."""
    ring = [(int(x), int(y)) for x, y in np.rint(corners)]
    return [point for k, point in enumerate(ring) if point != ring[k - 1]]


def _sides(rings: list[Path]) -> dict[tuple[Point, Point], list[int]]:
    """Edge -> the cells that it belongs to: one at the border of the box, else two."""
    sides = defaultdict(list)
    for cell, ring in enumerate(rings):
        for k, point in enumerate(ring):
            sides[min(ring[k - 1], point), max(ring[k - 1], point)].append(cell)
    return sides


def _classes(corners: list[np.ndarray], maps: np.ndarray) -> tuple[np.ndarray, list[tuple[int, np.ndarray]]]:
    """The class with the greatest score on each region, -1 where it is not one class alone, and the parts of those
    regions: (class, corners). maps: c, g, h with scores c + s g + t h, (C, 3, m)."""
    classes, parts = np.full(len(corners), -1), []
    for cell, polygon in enumerate(corners):
        constant, gradients = maps[cell, 0], maps[cell, 1:]
        scores = constant + polygon @ gradients
        if (
            greatest := (scores == scores.max(1, keepdims=True)).all(0)
        ).any():  # then it is so between the corners, too
            classes[cell] = greatest.argmax()
            continue
        for label in range(len(constant)):
            part = polygon
            for other in range(len(constant)):
                if other != label and len(part):
                    lead = constant[label] - constant[other] + part @ (gradients[:, label] - gradients[:, other])
                    part = _clip(part, lead)
            if len(part) > 2:
                parts.append((label, part))
    return classes, parts


def _clip(polygon: np.ndarray, values: np.ndarray) -> np.ndarray:
    """The part of a convex polygon (k, 2) on which an affine function with these values (k,) is not negative."""
    kept = []
    for k in range(len(polygon)):
        before, after = values[k - 1], values[k]
        if (before < 0) != (after < 0):
            kept.append(polygon[k - 1] + before / (before - after) * (polygon[k] - polygon[k - 1]))
        if after >= 0:
            kept.append(polygon[k])
    return np.array(kept).reshape(-1, 2)


def _labels(
    rings: list[Path], sides: dict[tuple[Point, Point], list[int]], classes: np.ndarray, areas: np.ndarray
) -> list[tuple[int, int, int]]:
    """For each connected set of regions of one class: the class, and the middle of the region nearest to its centre."""
    links = np.array([cells for cells in sides.values() if len(cells) == 2 and len({*classes[cells]}) == 1])
    links = links.reshape(-1, 2)
    graph = sparse.coo_array((np.ones(len(links)), links.T), shape=(len(rings), len(rings)))
    component = sparse.csgraph.connected_components(graph, directed=False)[1]
    middles = np.array([np.mean(ring, 0) if ring else (0, 0) for ring in rings])
    labels = []
    for number in np.unique(component[classes >= 0]):
        cells = np.flatnonzero(component == number)
        if areas[cells].sum() < LABELLED:
            continue
        centre = np.average(middles[cells], 0, areas[cells])
        nearest = cells[np.linalg.norm(middles[cells] - centre, axis=1).argmin()]
        x, y = np.rint(middles[nearest])
        labels.append((int(classes[nearest]), int(x), int(y)))
    return sorted(labels)


def _union(rings: Iterable[Path]) -> list[Path]:
    """The borders of the union of polygons of equal orientation that do not overlap: what two of them share is left
    out."""
    following: dict[Point, list[Point]] = defaultdict(list)  # lists: after rounding an edge may occur more than once
    for ring in rings:
        for k, point in enumerate(ring):
            if ring[k - 1] in following[point]:
                following[point].remove(ring[k - 1])
            else:
                following[ring[k - 1]].append(point)
    borders = []
    for start in sorted(following):
        while following[start]:
            border = [start]
            while following[border[-1]]:
                border.append(_straightest(border, following[border[-1]]))
                following[border[-2]].remove(border[-1])
            borders.append(border)
    return borders


def _lines(edges: Iterable[tuple[Point, Point]]) -> list[Path]:
    """The edges joined to lines that are as long and as straight as possible; each edge is in one of them."""
    neighbours: dict[Point, set[Point]] = defaultdict(set)
    for one, other in edges:
        neighbours[one].add(other)
        neighbours[other].add(one)
    lines = []
    for start in sorted(
        neighbours, key=lambda point: (len(neighbours[point]) % 2 == 0, point)
    ):  # first where lines end
        while neighbours[start]:
            line = [start]
            while neighbours[line[-1]]:
                line.append(_straightest(line, neighbours[line[-1]]))
                neighbours[line[-2]].remove(line[-1])
                neighbours[line[-1]].remove(line[-2])
            lines.append(line)
    return lines


def _straightest(line: Path, candidates: Collection[Point]) -> Point:
    """The candidate in whose direction the line goes on with the smallest turn."""
    here = np.array(line[-1])
    if len(candidates) == 1 or len(line) == 1:
        return min(candidates)
    ordered = sorted(candidates)
    steps, before = np.array(ordered) - here, here - np.array(line[-2])
    return ordered[int((steps @ before / np.linalg.norm(steps, axis=1)).argmax())]


def _written(lines: list[Path], closed: bool = False) -> str:
    """SVG path data, with relative coordinates after the first point of each line."""
    texts = []
    for line in lines:
        points = list(_corners(line))
        if closed and (points := points[:-1] if points[0] == points[-1] else points) and len(points) < 3:
            continue
        steps = np.diff(points, axis=0).ravel()
        numbers = "".join(f"{step}" if step < 0 or k == 0 else f" {step}" for k, step in enumerate(steps))
        texts.append(f"M{points[0][0]} {points[0][1]}l{numbers}{'z' * closed}")
    return "".join(texts)


def _corners(line: Path) -> Iterator[Point]:
    """The points of a line but for those that lie, to half a unit of the grid, on the segment of their neighbours."""
    begin = 0
    yield line[0]
    for end in range(2, len(line)):
        (x0, y0), (x1, y1) = line[begin], line[end]
        across, along = (x1 - x0, y1 - y0), np.hypot(x1 - x0, y1 - y0)
        off = [abs(across[0] * (y - y0) - across[1] * (x - x0)) for x, y in line[begin + 1 : end]]
        if max(off) > max(1.0, along) * 0.75 or (x1, y1) == (x0, y0):
            begin = end - 1
            yield line[begin]
    yield line[-1]
