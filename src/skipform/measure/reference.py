"""Slow and obvious twins of line and plane, in rational arithmetic: no tolerances, no shared vertices, no ordering.

A region is a convex polygon (an interval on a line) together with the affine form of every coordinate of the state on
it. A layer splits every region along each of its units in turn, wherever the unit takes both strict signs at the
corners, and then rectifies. Cost: regions times units times state size, in Fractions; for nets of a few dozen units.

A form c + s g + t h is the tuple (c, g, h); on a line c + t g is (c, g).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import combinations

from skipform.theory.affine import Affine
from skipform.theory.network import CanonicalNetwork

Form = tuple[Fraction, ...]
Point = tuple[Fraction, ...]  # (s, t), or (t,)
Corners = tuple[Point, ...]


@dataclass(frozen=True)
class Region:
    """A convex region by its corners (counterclockwise; ascending on a line), and the output's forms there."""

    corners: Corners
    output: tuple[Form, ...]


def line_regions(net: CanonicalNetwork, a: Sequence[Fraction], b: Sequence[Fraction]) -> list[Region]:
    """The activation regions of t -> net(a + t (b - a)) on [0, 1], from left to right."""
    start = [(Fraction(p), Fraction(q) - Fraction(p)) for p, q in zip(a, b, strict=True)]
    regions = _regions(net, start, ((Fraction(0),), (Fraction(1),)), _split_interval)
    return sorted(regions, key=lambda region: region.corners)


def plane_regions(
    net: CanonicalNetwork,
    origin: Sequence[Fraction],
    u: Sequence[Fraction],
    v: Sequence[Fraction],
    box: Sequence[Fraction] = (Fraction(-1), Fraction(1), Fraction(-1), Fraction(1)),
) -> list[Region]:
    """The activation regions of (s, t) -> net(origin + s u + t v) on the box (low s, high s, low t, high t)."""
    start = [tuple(map(Fraction, form)) for form in zip(origin, u, v, strict=True)]
    a, b, c, d = map(Fraction, box)
    return _regions(net, start, ((a, c), (b, c), (b, d), (a, d)), _split_polygon)


def pieces(regions: Sequence[Region]) -> int:
    """Maximal connected open sets with one affine map: regions with one map that share more than a point are one."""
    parent = list(range(len(regions)))

    def root(i: int) -> int:
        return i if parent[i] == i else root(parent[i])

    for i, j in combinations(range(len(regions)), 2):
        if regions[i].output == regions[j].output and _touch(regions[i].corners, regions[j].corners):
            parent[root(i)] = root(j)
    return len({root(i) for i in range(len(regions))})


def maps(regions: Sequence[Region]) -> int:
    """Distinct affine maps."""
    return len({region.output for region in regions})


def area(corners: Sequence[Point]) -> Fraction:
    """The area of a polygon (the shoelace formula)."""
    around = zip(corners, (*corners[1:], corners[0]), strict=True)
    return sum((p[0] * q[1] - q[0] * p[1] for p, q in around), Fraction(0)) / 2


def _regions(
    net: CanonicalNetwork,
    start: Sequence[Form],
    domain: Corners,
    split: Callable[..., list[Corners]],
) -> list[Region]:
    net = net if net.is_exact else net.exact()
    cells = [(domain, list(start))]  # corners, and the forms of z_k
    for layer in net.layers:
        finer = []
        for corners, state in cells:
            units = _compose(layer, state)
            parts = [corners]
            for unit in units:
                parts = [piece for part in parts for piece in split(part, unit)]
            for part in parts:
                zero = tuple(Fraction(0) for _ in state[0])
                rectified = [unit if any(_at(unit, corner) > 0 for corner in part) else zero for unit in units]
                finer.append((part, rectified + state))
        cells = finer
    return [Region(corners, tuple(_compose(net.readout, state))) for corners, state in cells]


def _compose(affine: Affine, forms: Sequence[Form]) -> list[Form]:
    """The forms of affine(z) for the forms of z."""
    out = []
    for row, bias in zip(affine.rows(), affine.bias, strict=True):
        terms = [
            sum((value * forms[column][i] for column, value in row.items()), Fraction(0)) for i in range(len(forms[0]))
        ]
        out.append((terms[0] + bias, *terms[1:]))
    return out


def _at(form: Form, point: Point) -> Fraction:
    return form[0] + sum((slope * x for slope, x in zip(form[1:], point, strict=True)), Fraction(0))


def _split_interval(ends: Corners, unit: Form) -> list[Corners]:
    low, high = (_at(unit, end) for end in ends)
    if low * high >= 0:
        return [ends]
    zero = (-unit[0] / unit[1],)
    return [(ends[0], zero), (zero, ends[1])]


def _split_polygon(corners: Corners, unit: Form) -> list[Corners]:
    values = [_at(unit, corner) for corner in corners]
    if min(values) >= 0 or max(values) <= 0:
        return [corners]
    sides: tuple[list[Point], list[Point]] = ([], [])
    for i, (p, x) in enumerate(zip(corners, values, strict=True)):
        q, y = corners[(i + 1) % len(corners)], values[(i + 1) % len(corners)]
        if x >= 0:
            sides[0].append(p)
        if x <= 0:
            sides[1].append(p)
        if x * y < 0:
            share = x / (x - y)
            crossing = tuple(a + share * (b - a) for a, b in zip(p, q, strict=True))
            sides[0].append(crossing)
            sides[1].append(crossing)
    return [tuple(sides[0]), tuple(sides[1])]


def _touch(one: Corners, other: Corners) -> bool:
    """Whether two regions share an edge's part of positive length (an end, on a line)."""
    if len(one[0]) == 1:
        return one[1] == other[0] or other[1] == one[0]
    return any(_overlap(one[i - 1], one[i], other[j - 1], other[j]) for i in range(len(one)) for j in range(len(other)))


def _overlap(a: Point, b: Point, p: Point, q: Point) -> bool:
    along = (b[0] - a[0], b[1] - a[1])
    for r in (p, q):
        if along[0] * (r[1] - a[1]) != along[1] * (r[0] - a[0]):
            return False
    length = along[0] ** 2 + along[1] ** 2
    shares = sorted((along[0] * (r[0] - a[0]) + along[1] * (r[1] - a[1])) / length for r in (p, q))
    return shares[0] < 1 and shares[1] > 0
