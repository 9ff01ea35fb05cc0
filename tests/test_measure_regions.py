"""Exact regions on a line and on a plane, against rational arithmetic, on generic and on degenerate nets."""

from fractions import Fraction
from importlib import import_module
from itertools import pairwise
from random import Random

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from skipform.compiler.flatten import canonical
from skipform.compiler.rewrite import UnsupportedOperation
from skipform.errors import SkipformError
from skipform.measure import bounds, line, plane, reference
from skipform.theory.affine import Affine
from skipform.theory.network import CanonicalNetwork, perceptron
from skipform.theory.pooling import average_pool, max_pool, maximum

# Corners of the random nets' regions are rationals of a few digits: they lie far more than this apart, and the
# computed ones are off by at most kappa 64 u < 1e-9.
CLOSE = 1e-9


def floats(point: list[Fraction]) -> Tensor:
    return torch.tensor([float(x) for x in point], dtype=torch.float64)


def random_net(rng: Random) -> CanonicalNetwork:
    """A canonical network with small rational weights, so that ties abound: units that repeat, oppose and scale earlier
    ones, missing entries, often no bias; every layer may read all before it (concatenation, and so addition)."""
    inputs, depth, denominator = rng.choice([1, 2, 2, 3]), rng.choice([0, 1, 2, 2, 3]), rng.choice([1, 1, 2, 3])
    biased = rng.random() < 0.65
    size, maps = inputs, []
    for k in range(depth + 1):
        rows: list[list[Fraction]] = []
        bias: list[Fraction] = []
        for _ in range(rng.choice([1, 3, 5]) if k < depth else rng.choice([1, 2])):
            if rows and rng.random() < 0.3:
                scale, j = rng.choice([1, -1, 2, -3]), rng.randrange(len(rows))
                rows.append([scale * x for x in rows[j]])
                bias.append(scale * bias[j])
                continue
            filled = [rng.random() < 0.7 for _ in range(size)]
            rows.append([Fraction(rng.randint(-3, 3) if there else 0, denominator) for there in filled])
            bias.append(Fraction(rng.randint(-2, 2) if biased else 0, denominator))
        maps.append(Affine.of(rows, bias, exact=True))
        size += len(rows)
    return CanonicalNetwork(tuple(maps[:-1]), maps[-1])


def random_point(rng: Random, size: int) -> list[Fraction]:
    return [Fraction(rng.randint(-2, 2)) for _ in range(size)]


def agree_on_a_line(net: CanonicalNetwork, a: list[Fraction], b: list[Fraction]) -> None:
    expected = reference.line_regions(net, a, b)
    regions = line(net, floats(a), floats(b))
    assert (regions.count, regions.pieces) == (len(expected), reference.pieces(expected))
    np.testing.assert_allclose(regions.breakpoints, [float(r.corners[0][0]) for r in expected[1:]], rtol=0, atol=CLOSE)


def agree_on_a_plane(
    net: CanonicalNetwork, origin: list[Fraction], u: list[Fraction], v: list[Fraction]
) -> tuple[int, int, int]:
    expected = reference.plane_regions(net, origin, u, v)
    regions = plane(net, floats(origin), floats(u), floats(v))
    numbers = (regions.count, regions.pieces, regions.maps)
    assert numbers == (len(expected), reference.pieces(expected), reference.maps(expected))
    areas = sorted(float(reference.area(region.corners)) for region in expected)
    np.testing.assert_allclose(np.sort(regions.areas()), areas, rtol=0, atol=CLOSE)
    return numbers


@pytest.mark.parametrize("start", range(0, 200, 50))
def test_regions_of_random_nets_are_those_of_rational_arithmetic(start: int) -> None:
    for seed in range(start, start + 50):
        rng = Random(seed)
        net = random_net(rng)
        a, b, origin, u, v = (random_point(rng, net.in_features) for _ in range(5))
        agree_on_a_line(net, a, b)
        agree_on_a_plane(net, origin, u, v)


class Pooled(nn.Module):
    """Convolution, batch norm, addition, concatenation and one of the poolings, with weights of few bits."""

    def __init__(self, pool: nn.Module, rng: Random) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv1d(1, 2, 3, padding=1), nn.BatchNorm1d(2)
        self.second, self.pool, self.last = nn.Conv1d(2, 2, 1), pool, nn.Conv1d(4, 1, 2)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(
                    torch.tensor([rng.randint(-3, 3) / 2 for _ in range(parameter.numel())]).view_as(parameter)
                )
            # A running variance whose root is a power of two but for eps keeps the folded weights far from ties.
            self.norm.running_var.fill_(0.25)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.norm(self.first(x)))
        return self.last(self.pool(torch.cat([torch.relu(self.second(h) + h), h], 1)))


@pytest.mark.parametrize("pool", [nn.MaxPool1d(2), nn.AvgPool1d(2), nn.MaxPool1d(3, stride=1, padding=1)], ids=repr)
def test_regions_of_convolutional_nets_are_those_of_rational_arithmetic(pool: nn.Module) -> None:
    rng = Random(7)
    net = Pooled(pool, rng).double().eval()
    points = [random_point(rng, 4) for _ in range(5)]
    exact = canonical(net, torch.zeros(1, 1, 4, dtype=torch.float64))
    a, b, origin, u, v = points
    agree_on_a_line(exact, a, b)
    numbers = agree_on_a_plane(exact, origin, u, v)
    as_module = plane(net, *(floats(point).view(1, 4) for point in (origin, u, v)))
    # Activation regions depend on how the net is written, the function does not.
    assert (as_module.pieces, as_module.maps) == numbers[1:]
    on_line = line(net, floats(a).view(1, 4), floats(b).view(1, 4))
    assert on_line.pieces == line(exact, floats(a), floats(b)).pieces


def layer(*rows: list[int]) -> Affine:
    """Rows of weights with the bias last."""
    return Affine.of([row[:-1] for row in rows], [row[-1] for row in rows], exact=True)


X, Y, ZERO = [Fraction(1), Fraction(0)], [Fraction(0), Fraction(1)], [Fraction(0), Fraction(0)]

DEGENERATE = {
    "coincident lines": [layer([1, 2, 0], [1, 2, 0], [-2, -4, 0], [3, 6, 0]), layer([1, 1, 1, 1, 0])],
    "concurrent lines": [layer([1, 0, 0], [0, 1, 0], [1, 1, 0], [1, -1, 0], [2, 1, 0]), layer([1, 2, 3, 4, 5, 0])],
    "concurrent off the origin": [layer([3, 0, -1], [0, 3, -1], [3, 3, -2], [3, -3, 0]), layer([1, 2, 4, 8, 0])],
    "three thirds": [layer([1, 1, -1], [1, -2, 1], [2, -1, 0], [3, 0, -1]), layer([1, -2, 3, 1, 0])],
    "through corners": [layer([1, 1, 0], [1, -1, 0], [1, 2, -3], [3, 1, 2]), layer([1, 1, 1, 1, 0])],
    "along the box": [layer([1, 0, -1], [1, 0, 1], [0, 1, 1], [0, 2, -2]), layer([1, 1, 1, 1, 0])],
    "dead units": [layer([1, 1, 0], [0, 0, -1], [0, 0, 0]), layer([1, 5, 5, -1], [0, 1, 1, 0]), layer([1, 1, 0])],
    "zero on an open set": [layer([1, 0, 0], [1, 0, -1], [0, 1, 0]), layer([1, -1, 0, 0], [1, 0, -1, 0]),
                            layer([1, 1, 0])],
    "touching": [layer([1, 0, 0], [-1, 0, 0], [0, 1, 0]), layer([1, 1, 0, 0], [-1, -1, 0, 0], [1, 1, 1, 0]),
                 layer([1, 1, 1, 0])],
    "through vertices": [layer([1, 0, 0], [0, 1, 0]), layer([1, -1, 0], [2, -1, 0], [1, 1, -1]), layer([1, 1, 1, 0])],
    "no bias": [layer([1, 2, 0], [2, -1, 0], [-1, 3, 0]), layer([1, -1, 2, 0], [2, 1, -3, 0]), layer([1, -1, 0])],
    "cancelling": [layer([3, 1, 0], [-3, -1, 0]), layer([1, -1, 0]), layer([1, 0])],
}  # fmt: skip


@pytest.mark.parametrize("case", DEGENERATE)
def test_degenerate_nets_have_the_regions_of_rational_arithmetic(case: str) -> None:
    net = perceptron(DEGENERATE[case])
    agree_on_a_plane(net, ZERO, X, Y)
    agree_on_a_line(net, [Fraction(-1), Fraction(-1)], [Fraction(1), Fraction(1)])
    agree_on_a_line(net, [Fraction(0), Fraction(-1)], [Fraction(0), Fraction(1)])


@pytest.mark.parametrize(
    "directions", [(X, X), (X, ZERO), (ZERO, ZERO), ([Fraction(1), Fraction(2)], [Fraction(-2), Fraction(-4)])]
)
def test_rank_deficient_slices_have_the_regions_of_rational_arithmetic(directions: tuple) -> None:
    agree_on_a_plane(perceptron(DEGENERATE["no bias"]), ZERO, *directions)
    agree_on_a_plane(perceptron(DEGENERATE["three thirds"]), X, *directions)


def test_the_maximum_of_two_numbers_is_two_pieces_however_it_is_written() -> None:
    lean = maximum(2)
    split = perceptron([layer([1, -1, 0], [0, 1, 0], [0, -1, 0]), layer([1, 1, -1, 0])])
    plain, wordy = (plane(net, torch.zeros(2), torch.eye(2)[0], torch.eye(2)[1]) for net in (lean, split))
    assert (plain.count, plain.pieces, plain.maps) == (2, 2, 2)
    assert (wordy.count, wordy.pieces, wordy.maps) == (4, 2, 2)


def test_pieces_apart_may_share_one_map() -> None:
    # relu(x - 1/2) + relu(-x - 1/2) is 0 in the middle; 0 times it is 0 everywhere; x cut off on both sides is not.
    hat = perceptron([layer([2, 0, 1], [2, 0, 0], [2, 0, -1]), layer([1, -2, 1, 0])])
    regions = plane(hat, torch.zeros(2), torch.eye(2)[0], torch.eye(2)[1])
    assert (regions.count, regions.pieces, regions.maps) == (4, 4, 3)


def test_pooling_a_picture_cuts_it_as_in_rational_arithmetic() -> None:
    rng = Random(3)
    for net in (max_pool((1, 2, 2), 2), average_pool((1, 2, 2), 2)):
        agree_on_a_plane(net, *(random_point(rng, 4) for _ in range(3)))


def mlp(width: int, depth: int) -> CanonicalNetwork:
    """2 -> [width] * depth -> 1, PyTorch's default float32 initialisation with seed 0, promoted to float64."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        sizes = [2, *[width] * depth, 1]
        layers = [nn.Linear(m, n).double() for m, n in pairwise(sizes)]
    return perceptron([Affine.of(part.weight.detach().numpy(), part.bias.detach().numpy()) for part in layers])


@pytest.mark.parametrize(("width", "depth", "count"), [(64, 3, 6668), (64, 4, 7920), (128, 4, 29584), (256, 4, 125057)])
def test_the_published_counts_are_reproduced(width: int, depth: int, count: int) -> None:
    assert plane(mlp(width, depth), torch.zeros(2), torch.eye(2)[0], torch.eye(2)[1]).count == count


def test_counting_in_blocks_counts_the_same() -> None:
    net = mlp(64, 3)
    done: list[float] = []
    # Four mebibytes over five layers: blocks of about 1,600 states.
    blocks = plane(net, torch.zeros(2), torch.eye(2)[0], torch.eye(2)[1], memory=4 << 20, progress=done.append)
    assert blocks.count == 6668
    assert len(done) > 4
    assert done == sorted(done)
    assert done[-1] == pytest.approx(1.0, abs=1e-9)  # the sum of 7,000 areas, each rounded


@pytest.mark.parametrize("block", [1, 1000, 1 << 21])  # numbers: one region at a time, several, all of them
def test_polygons_tile_the_box_and_carry_their_affine_maps(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(import_module("skipform.measure.plane"), "_BLOCK", block)
    net = mlp(16, 2)
    box = (-2.0, 1.0, 0.0, 3.0)
    regions = plane(net, torch.zeros(2), torch.eye(2)[0], torch.eye(2)[1], box)
    assert regions.areas().sum() == pytest.approx(9.0, rel=1e-12)  # a few hundred rounded areas
    for corners, (constant, *slopes) in zip(regions.polygons(), regions.affine_maps(), strict=True):
        inside = corners.mean(0)
        value = net(torch.from_numpy(inside)).numpy()
        # Both sides are sums of a few hundred products of size 1.
        np.testing.assert_allclose(constant + inside @ np.array(slopes), value, rtol=0, atol=1e-13)


def test_regions_never_exceed_the_bound() -> None:
    for width, depth in ((4, 2), (8, 3), (16, 2)):
        net = mlp(width, depth)
        on_plane = plane(net, torch.zeros(2), torch.eye(2)[0], torch.eye(2)[1], (-50, 50, -50, 50))
        assert on_plane.count <= bounds([width] * depth, 2).upper
        on_line = line(net, torch.tensor([-50.0, -20.0]), torch.tensor([50.0, 30.0]))
        assert on_line.count <= bounds([width] * depth, 1).upper


def test_break_points_of_a_module_are_where_its_samples_bend() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        net = nn.Sequential(nn.Linear(3, 12), nn.ReLU(), nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 2)).double().eval()
    a, b = torch.tensor([-3.0, 2.0, 1.0]).double(), torch.tensor([2.0, -3.0, 4.0]).double()
    regions = line(net, a, b)
    t = torch.linspace(0, 1, 20001, dtype=torch.float64)
    with torch.no_grad():
        y = net(torch.lerp(a, b, t[:, None]))
    second = (y[2:] - 2 * y[1:-1] + y[:-2]).abs().amax(1).numpy()
    # A second difference of affine values of size 1 is rounding, at most 8 u; a bend at least 1e-9 is seen.
    seen = np.flatnonzero(second > 1e-13)
    nearest = np.abs(t[1:-1].numpy()[seen, None] - regions.bends).min(1)
    assert nearest.max() <= 1 / 20000 + 1e-12  # one step of the sampling, and rounding
    assert np.ptp(regions.bends) > 0.1


def test_what_does_not_fit_is_refused_in_one_line() -> None:
    net, x = mlp(4, 2), torch.zeros(2)
    training = nn.Sequential(nn.Linear(2, 3), nn.ReLU())
    smooth = nn.Sequential(nn.Linear(2, 3), nn.Tanh()).eval()
    refusals = [
        lambda: line(net, torch.zeros(3), torch.zeros(3)),
        lambda: line(net, torch.zeros(2), torch.zeros(3)),
        lambda: line(net, x, x + torch.nan),
        lambda: line(training, x, x + 1),
        lambda: plane(net, x, x, torch.zeros(3)),
        lambda: plane(net, x, x, x, (1, 0, 0, 1)),
        lambda: plane(mlp(64, 2), x, torch.eye(2)[0], torch.eye(2)[1], memory=1 << 10),
        lambda: plane(mlp(64, 2), x, torch.eye(2)[0], torch.eye(2)[1], memory=1 << 19).pieces,
    ]
    for refused in refusals:
        with pytest.raises(SkipformError) as caught:
            refused()
        assert "\n" not in str(caught.value)
    with pytest.raises(UnsupportedOperation):
        line(smooth, x, x + 1)
    with pytest.raises(UnsupportedOperation):
        plane(smooth, x, x + 1, x)


def test_a_plane_of_too_many_regions_is_refused_before_it_is_begun() -> None:
    wide = mlp(8200, 1)
    with pytest.raises(SkipformError, match=r"about \S+ regions"):
        plane(wide, torch.zeros(2), torch.eye(2)[0], torch.eye(2)[1], limit=1e6)


def test_no_compiled_kernel_outlives_a_change_of_any_file_that_it_calls(tmp_path):
    from skipform.measure import kernel

    home = kernel.SOURCES[0].parent
    with_kernels = {path for path in home.glob("*.py") if "@kernel" in path.read_text(encoding="utf-8")}
    assert with_kernels | {home / name for name in ("kernel.py", "mesh.py", "cuts.py")} == set(kernel.SOURCES)
    copies = tuple(tmp_path / path.name for path in kernel.SOURCES)
    for source, copy in zip(kernel.SOURCES, copies, strict=True):
        copy.write_bytes(source.read_bytes())
    assert kernel.folder(copies) == kernel.folder()
    for copy in copies:
        before = copy.read_bytes()
        copy.write_bytes(before + b"# changed\n")
        assert kernel.folder(copies) != kernel.folder(), copy.name
        copy.write_bytes(before)


@pytest.mark.parametrize("units", [1, 64, 256])
@pytest.mark.parametrize("apart", [16, 64, 128])
def test_units_that_are_zero_together_a_little_off_their_point_are_no_bend(units, apart):
    """One point stands for the zeros of x - c and of n times x - c - delta. At it the n units are zero by definition, n
    delta away from the truth; their sum relu(u) - relu(-u) = u bends nowhere."""
    c, delta = 0.25, apart * 2.0**-53  # less than the blur of two zeros, 2 * TOLERANCE * UNIT
    weight = np.concatenate([[1.0], np.ones(units), -np.ones(units)])[:, None]
    bias = np.concatenate([[-c], np.full(units, -c - delta), np.full(units, c + delta)])
    readout = np.concatenate([[0.0], np.ones(units), -np.ones(units), [0.0]])[None]
    network = CanonicalNetwork((Affine.of(weight, bias),), Affine.of(readout, np.zeros(1)))
    regions = line(network, torch.tensor([-1.0]).double(), torch.tensor([1.0]).double())
    assert (regions.count, regions.pieces) == (2, 1)
