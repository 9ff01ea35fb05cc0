"""The outlines of regions are those of the net: classes, borders and their lengths."""

import re

import numpy as np
import pytest
import torch
from torch import nn

from skipform.measure import plane
from skipform.measure.outlines import GRID, outlines

BOX = (-2.0, 2.0, -1.0, 2.0)


@pytest.fixture(scope="module", params=[0, 1])
def regions(request):
    torch.manual_seed(request.param)
    net = nn.Sequential(nn.Linear(2, 12), nn.ReLU(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 4)).double().eval()
    x, y = torch.eye(2, dtype=torch.float64)
    regions = plane(net, torch.zeros(2).double(), x, y, BOX)
    return net, regions, outlines(regions)


def lines_of(path):
    """The lines of SVG path data with relative coordinates, (k, 2) each."""
    lines = []
    for part in re.findall(r"M([^M]*)", path):
        begin, _, steps = part.partition("l")
        numbers = [int(number) for number in re.findall(r"-?\d+", f"{begin} {steps}")]
        lines.append(np.cumsum(np.array(numbers).reshape(-1, 2), 0))
    return lines


def on_grid(points):
    """Points (s, t) as places on the grid."""
    return GRID * (points - [BOX[0], BOX[3]]) / [BOX[1] - BOX[0], BOX[2] - BOX[3]]


def inside(point, lines):
    """Whether a point is inside the closed lines, by the rule evenodd."""
    crossings = 0
    for line in lines:
        for (x0, y0), (x1, y1) in zip(line, np.roll(line, -1, 0), strict=True):
            if (y0 > point[1]) != (y1 > point[1]):
                crossings += bool(x0 + (point[1] - y0) / (y1 - y0) * (x1 - x0) > point[0])
    return crossings % 2 == 1


def test_a_point_lies_in_the_area_of_its_class(regions):
    net, _, drawn = regions
    points = np.random.default_rng(0).uniform(BOX[::2], BOX[1::2], (400, 2))
    with torch.no_grad():
        scores = net(torch.from_numpy(points)).sort(1)
    near = (scores.values[:, -1] - scores.values[:, -2]).numpy() < 0.01  # to a border, which is rounded to the grid
    areas = {label: lines_of(path) for label, path in drawn.areas.items()}
    for point, label in zip(on_grid(points)[~near], scores.indices[~near, -1].tolist(), strict=True):
        assert [other for other, lines in areas.items() if inside(point, lines)] == [label]


def test_a_label_stands_in_the_area_of_its_class(regions):
    _, _, drawn = regions
    assert drawn.labels
    for label, x, y in drawn.labels:
        assert inside((x + 0.01, y + 0.02), lines_of(drawn.areas[label]))


def test_every_border_is_drawn_once(regions):
    """The total length: twice that of the borders and once that of the box are the sides of all polygons."""
    _, measured, drawn = regions
    lengths = [np.linalg.norm(np.diff(line, axis=0), axis=1).sum() for line in lines_of(drawn.pieces + drawn.regions)]
    polygons = [on_grid(polygon) for polygon in measured.polygons()]
    sides = sum(np.linalg.norm(polygon - np.roll(polygon, 1, 0), axis=1).sum() for polygon in polygons)
    assert sum(lengths) == pytest.approx((sides - 4 * GRID) / 2, rel=2e-3)


def test_pieces_have_fewer_borders_than_regions_of_a_maximum_built_from_relus():
    net = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2, bias=False)).double().eval()
    with torch.no_grad():  # relu(s) - relu(-s) = s: two regions, one piece
        net[0].weight.copy_(torch.tensor([[1.0, 0.0], [-1.0, 0.0]]))
        net[0].bias.zero_()
        net[2].weight.copy_(torch.tensor([[1.0, -1.0], [-1.0, 1.0]]))
    x, y = torch.eye(2, dtype=torch.float64)
    drawn = outlines(plane(net, torch.zeros(2).double(), x, y, (-1, 1, -1, 1)), 100)
    assert (drawn.pieces, drawn.regions) == ("", "M50 0l0 100")
    assert drawn.areas == {0: "M50 0l0 100 50 0 0-100z", 1: "M0 0l0 100 50 0 0-100z"}
    assert drawn.labels == [(0, 75, 50), (1, 25, 50)]
