"""The exact range of an output over a box: against all activation patterns, one linear program each."""

import numpy as np
import pytest
import torch
from activation_patterns import affine_pieces
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog
from torch import nn
from verifier_models import TWELVE, shape_of

from skipform.errors import SkipformError
from skipform.measure import output_range
from skipform.measure.relaxation import Range, interval, linear
from skipform.stages import cli
from skipform.theory.affine import Affine
from skipform.theory.network import CanonicalNetwork

# HiGHS misses a constraint by 1e-9 at most (1e-7 in linprog); weights and values here are below 100.
SOLVER = 1e-5


def by_patterns(network, low, high):
    """The least and greatest output 0 over the box: for every choice of active ReLUs the network is affine, where their
    arguments have the right signs."""
    values = []
    for signs, limits, y, c in affine_pieces(network):
        for sign in (1, -1):
            result = linprog(sign * y[0], A_ub=signs, b_ub=limits, bounds=list(zip(low, high, strict=True)))
            if result.status == 0:
                values.append(sign * result.fun + c[0])
    return min(values), max(values)


@st.composite
def networks(draw):
    """Canonical networks with at most four ReLUs and small numbers."""
    inputs, widths = draw(st.integers(1, 3)), draw(st.sampled_from([[], [1], [3], [2, 2], [1, 1, 2], [1, 3]]))
    generator = np.random.default_rng(draw(st.integers(0, 2**32)))
    maps, size = [], inputs
    for width in [*widths, 1]:
        maps.append(Affine.of(generator.integers(-4, 5, (width, size)) / 2, generator.integers(-4, 5, width) / 2))
        size += width
    return CanonicalNetwork(tuple(maps[:-1]), maps[-1])


@settings(max_examples=15)
@given(networks(), st.floats(0, 2), st.booleans())
def test_the_range_is_that_over_all_activation_patterns(network, radius, point):
    low = np.linspace(-1, 0.5, network.in_features)
    high = low if point else low + radius
    result = output_range(network, torch.from_numpy(low), torch.from_numpy(high))
    expected = by_patterns(network, low, high)
    assert result.is_exact
    scale = 1 + max(map(abs, expected))
    assert np.allclose(result.found, expected, rtol=0, atol=SOLVER * scale)
    assert np.allclose(result.proved, expected, rtol=0, atol=SOLVER * scale)
    for x, value in zip(result.at, result.found, strict=True):
        assert ((x.numpy() >= low) & (x.numpy() <= high)).all()
        assert abs(float(network(x[None])[0, 0]) - value) <= 1e-12 * scale
    assert result.interval[0] <= result.proved[0] + SOLVER * scale
    assert result.proved[1] - SOLVER * scale <= result.interval[1]


@settings(max_examples=60)
@given(networks())
def test_values_lie_within_the_bounds_by_intervals_and_by_linear_functions(network):
    box = Range(np.full(network.in_features, -1.0), np.full(network.in_features, 0.5))
    x = np.random.default_rng(0).uniform(-1, 0.5, (200, network.in_features))
    y, outer, inner = network.evaluate(x), interval(network, box), linear(network, box)[-1]
    slack = 1e-12 * (1 + abs(y).max())  # rounding of sums of a few small numbers
    for t in (outer, inner):
        assert (t.low <= y + slack).all()
        assert (y <= t.high + slack).all()
    assert (outer.low <= inner.low + slack).all()
    assert (inner.high <= outer.high + slack).all()


def test_linear_bounds_see_that_a_maximum_is_at_most_its_larger_argument():
    pool = nn.MaxPool1d(2).double().eval()
    result = output_range(pool, torch.zeros(1, 2), torch.ones(1, 2))
    assert result.interval == (0.0, 2.0)  # relu(x - y) + y by intervals
    assert np.allclose(result.proved, (0.0, 1.0), rtol=0, atol=SOLVER)


@pytest.mark.parametrize("name", ["max pooling", "concatenation", "clamp, relu6"])
def test_witnesses_are_inputs_of_the_original_and_random_ones_lie_between(name):
    module = TWELVE[name].double()
    low, high = torch.full(shape_of(name), -0.5).double(), torch.full(shape_of(name), 1.0).double()
    result = output_range(module, low, high, torch.tensor([1.0, -1.0]), time_limit=600)
    assert result.is_exact
    x = torch.rand(500, *shape_of(name), dtype=torch.float64) * 1.5 - 0.5
    with torch.no_grad():
        margins = module(x) @ torch.tensor([1.0, -1.0], dtype=torch.float64)
        for witness, value in zip(result.at, result.found, strict=True):
            y = module(witness[None])[0]
            assert abs(y[0] - y[1] - value) <= 1e-12 * (1 + abs(value))
    assert result.proved[0] - SOLVER <= margins.min()
    assert margins.max() <= result.proved[1] + SOLVER


def test_when_the_time_is_up_what_is_proved_so_far_holds():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(12, 40), nn.ReLU(), nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 1)).double().eval()
    seen = []
    result = output_range(net, -torch.ones(12), torch.ones(12), time_limit=1.0, progress=lambda *a: seen.append(a))
    assert not result.is_exact
    with torch.no_grad():
        y = net(torch.rand(1000, 12, dtype=torch.float64) * 2 - 1)
    assert result.proved[0] <= result.found[0] <= y.min() + (y.min() - result.proved[0])
    assert y.max() <= result.proved[1]
    assert {end for end, _, _ in seen} <= {"least", "greatest"}


MLP = [
    "skipform.nets:build",
    "--arguments",
    '{"name": "mlp", "width": 4, "depth": 2, "in_channels": 1, "image_size": 2}',
]


def test_the_command_prints_the_range_and_writes_the_witnesses(tmp_path, capsys):
    options = ["--input", "1,2,2", "--box", "[0, 1]", "--out", str(tmp_path / "at.npy")]
    assert cli.main(["bound", *MLP, *options]) == 0
    printed = capsys.readouterr().out
    for word in ("interval bounds", "proved", "found", "exact"):
        assert word in printed
    assert np.load(tmp_path / "at.npy").shape == (2, 1, 2, 2)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--box", "[1, 0]"], "--box"),
        (["--box", "[0]"], "--box"),
        (["--box", "[0, 1]", "--radius", "0.1"], "--centre"),
        (["--box", "[0, 1]", "--output", "10"], "0 to 9"),
        (["--box", "[0, 1]", "--centre", "nowhere.npy", "--radius", "0.1"], "nowhere.npy"),
    ],
)
def test_the_command_refuses_in_one_line(options, words, capsys):
    assert cli.main(["bound", *MLP, "--input", "1,2,2", *options]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
    assert words in line


@pytest.mark.parametrize(
    ("lower", "upper", "options", "words"),
    [
        (torch.zeros(2), torch.ones(3), {}, "one shape"),
        (torch.ones(2), torch.zeros(2), {}, "lower <= upper"),
        (torch.zeros(2), torch.full((2,), torch.inf), {}, "finite"),
        (torch.zeros(2), torch.ones(2), {"output": torch.ones(2)}, "2 weights"),
        (torch.zeros(2), torch.ones(2), {"time_limit": 0.0}, "seconds above 0"),
    ],
)
def test_a_wrong_box_output_or_time_is_refused(lower, upper, options, words):
    with pytest.raises(SkipformError, match=words):
        output_range(nn.Linear(2, 1).eval(), lower, upper, **options)
