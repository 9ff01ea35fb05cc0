"""The robust radius of a classifier: against one linear program for every activation pattern and other class."""

import numpy as np
import pytest
import torch
from activation_patterns import affine_pieces
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog
from torch import nn

from skipform.errors import SkipformError
from skipform.measure import robust_radius
from skipform.measure.pooled import pooled
from skipform.theory.affine import Affine
from skipform.theory.network import CanonicalNetwork

# HiGHS misses a constraint by 1e-9 at most, linprog by 1e-7. Weights are multiples of 1/2 in at most four maps, so that
# the slope of a margin is zero or at least 1/16, and a miss moves a distance by less than a hundred times as much.
SOLVER = 1e-5


def by_patterns(network, x, low, high):
    """The least distance at which another output is at least as large as that of x's class: for every choice of active
    ReLUs the network is affine, where their arguments have the right signs."""
    label, distances = int(network.evaluate(x[None])[0].argmax()), [np.inf]
    d = len(x)
    for signs, limits, y, c in affine_pieces(network):
        near = np.vstack([np.eye(d), -np.eye(d)])
        for j in set(range(len(c))) - {label}:
            rows = np.vstack([signs, y[[label]] - y[[j]], near])
            e = np.concatenate([np.zeros(len(rows) - 2 * d), -np.ones(2 * d)])
            result = linprog(
                [0.0] * d + [1.0],
                A_ub=np.hstack([rows, e[:, None]]),
                b_ub=np.concatenate([limits, [c[j] - c[label]], x, -x]),
                bounds=[*zip(low, high, strict=True), (0, None)],
            )
            if result.status == 0:
                distances.append(result.fun)
    return min(distances)


@st.composite
def networks(draw):
    """Canonical networks of two or three outputs, with at most four ReLUs and small numbers."""
    inputs, widths = draw(st.integers(1, 3)), draw(st.sampled_from([[], [1], [3], [2, 2], [1, 1, 2]]))
    generator = np.random.default_rng(draw(st.integers(0, 2**32)))
    maps, size = [], inputs
    for width in [*widths, draw(st.integers(2, 3))]:
        maps.append(Affine.of(generator.integers(-3, 4, (width, size)) / 2, generator.integers(-3, 4, width) / 2))
        size += width
    return CanonicalNetwork(tuple(maps[:-1]), maps[-1])


@settings(max_examples=12)
@given(networks(), st.sampled_from([0.0, 0.5, 3.0]), st.integers(0, 2**32))
def test_the_radius_is_the_least_over_all_activation_patterns(network, reach, seed):
    x = np.random.default_rng(seed).integers(-4, 5, network.in_features) / 4
    low, high = x - reach, x + reach / 2
    result = robust_radius(network, *map(torch.from_numpy, (x, low, high)))
    expected = by_patterns(network, x, low, high)
    assert result.label == network.evaluate(x[None])[0].argmax()
    if np.isinf(expected):
        assert result.proved == result.found == np.inf
        assert result.witness is None
        return
    assert abs(result.proved - expected) <= SOLVER * (1 + expected)
    assert result.relaxed <= result.proved <= result.found
    if result.witness is not None:
        assert_is_witness(network, x, low, high, result)
    # Where a tie is never left on the other side, f itself may see none: then nothing is claimed to be found.
    assert result.is_exact or not strict_beyond(network, x, low, high, expected)


def strict_beyond(network, x, low, high, expected):
    """Whether some output gets ahead by 1e-6 or more a little beyond the distance expected."""
    reach = (1 + 1e-4) * expected + 1e-4
    lifted = network.readout
    for j in range(network.out_features):
        ahead = Affine(lifted.indptr, lifted.indices, lifted.data, lifted.bias.copy(), lifted.in_features)
        ahead.bias[j] -= 1e-6
        moved = CanonicalNetwork(network.layers, ahead)
        label = network.evaluate(x[None])[0].argmax()
        if j != label and moved.evaluate(x[None])[0].argmax() == label:
            near = by_patterns(moved, x, np.maximum(low, x - reach), np.minimum(high, x + reach))
            if np.isfinite(near):
                return True
    return False


def assert_is_witness(f, x, low, high, result):
    point = result.witness.numpy().ravel()
    assert ((point >= low.ravel()) & (point <= high.ravel())).all()
    assert abs(point - x.ravel()).max() == result.found
    with torch.no_grad():
        scores = f(result.witness[None])[0]
    assert scores[result.other] >= scores[result.label]


def pooling_net(seed, channels=2, classes=3):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, channels, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(channels, 2, 2), nn.MaxPool2d(1, 1),
        nn.ReLU(), nn.Flatten(), nn.Linear(2, classes),
    ).double().eval()  # fmt: skip


@pytest.mark.parametrize("seed", range(3))
def test_both_encodings_give_the_same_radius_and_nothing_lies_within_it(seed):
    net, x = pooling_net(seed), torch.rand(1, 4, 4, dtype=torch.float64)
    low, high = torch.zeros_like(x), torch.ones_like(x)
    relus, native = (robust_radius(net, x, low, high, maxima=form) for form in ("relu", "native"))
    assert relus.is_exact
    assert native.is_exact
    if np.isfinite(relus.found):
        assert abs(relus.found - native.found) <= SOLVER
        for result in (relus, native):
            assert_is_witness(net, x.numpy(), low.numpy(), high.numpy(), result)
    reach = min(relus.found, 1.0) * (1 - 1e-6)  # TOLERANCE of what is proved
    near = (x + (2 * torch.rand(2000, *x.shape, dtype=torch.float64) - 1) * reach).clamp(0, 1)
    corners = (x + (2 * torch.rand(2000, *x.shape, dtype=torch.float64) - 1).sign() * reach).clamp(0, 1)
    with torch.no_grad():
        assert (net(torch.cat([near, corners])).argmax(1) == relus.label).all()


@settings(max_examples=6)
@given(st.integers(0, 2**32), st.integers(1, 3), st.booleans())
def test_a_pooled_network_computes_what_the_module_does(seed, size, before):
    torch.manual_seed(seed)
    pool = nn.MaxPool2d(size, min(size, 2))
    parts = [pool, nn.Conv2d(1, 2, 1), nn.ReLU()] if before else [nn.Conv2d(1, 2, 1), nn.ReLU(), pool]
    net = nn.Sequential(*parts, nn.Flatten(), nn.LazyLinear(2)).eval().double()
    x = torch.randn(5, 1, 5, 4, dtype=torch.float64)
    net(x)
    network = pooled(net, x[:1], 2**30, True)
    state = x.flatten(1).numpy()
    for a, window in zip(network.layers, network.windows, strict=True):
        t = a(state)
        own = t.reshape(len(t), -1, window).max(2) if window else t.clip(0)
        state = np.concatenate([own, state], 1)
    with torch.no_grad():
        expected = net(x).numpy()
    # sums of at most 25 numbers below 10
    assert np.allclose(network.readout(state), expected, rtol=0, atol=1e-12)
    assert np.allclose(network.relus.evaluate(x.flatten(1).numpy()), expected, rtol=0, atol=1e-12)


def test_when_the_nodes_are_over_what_is_proved_so_far_holds():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(12, 40), nn.ReLU(), nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 2)).double().eval()
    x = torch.zeros(12, dtype=torch.float64)
    low, high = x - 4, x + 4
    brief, again = (robust_radius(net, x, low, high, nodes=1) for _ in range(2))
    assert (brief.proved, brief.found, brief.iterations) == (again.proved, again.found, again.iterations)
    assert 0 < brief.relaxed <= brief.proved <= brief.found < np.inf
    assert_is_witness(net, x.numpy(), low.numpy(), high.numpy(), brief)


@pytest.mark.parametrize(
    ("net", "options", "words"),
    [
        (nn.Linear(2, 2), {"x": torch.full((2,), 2.0)}, "lower <= x <= upper"),
        (nn.Linear(2, 2), {"lower": torch.zeros(3)}, "one shape"),
        (nn.Linear(2, 2), {"upper": torch.full((2,), torch.inf)}, "finite"),
        (nn.Linear(2, 2), {"time_limit": 0.0}, "seconds above 0"),
        (nn.Linear(2, 2), {"nodes": 0}, "nodes from 1"),
        (nn.Linear(2, 1), {}, "two classes"),
        (nn.Linear(2, 2), {"maxima": "native"}, "Sequential is accepted"),
        (nn.Sequential(nn.Unflatten(1, (1, 1, 2)), nn.MaxPool2d((1, 2), padding=(0, 1)), nn.Flatten(), nn.Linear(2, 2)),
         {"maxima": "native"}, "without padding"),
    ],
)  # fmt: skip
def test_a_wrong_input_box_limit_or_net_is_refused(net, options, words):
    arguments = {"x": torch.zeros(2), "lower": torch.zeros(2), "upper": torch.ones(2)} | options
    with pytest.raises(SkipformError, match=words):
        robust_radius(net.eval(), **arguments)
