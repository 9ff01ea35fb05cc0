"""Ranks, trajectory length and bounds, against closed forms."""

import math
import subprocess
import sys
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from skipform.errors import SkipformError
from skipform.measure import (
    bounds,
    functional_dimension,
    jacobian_rank,
    line,
    trajectory_length,
)
from skipform.measure.bounds import arrangement, montufar_lower, raghu_upper, serra_upper
from skipform.theory.affine import Affine, identity
from skipform.theory.network import CanonicalNetwork, perceptron
from skipform.theory.pooling import average_pool, max_pool


def seeded(seed: int, *sizes: int) -> nn.Module:
    """A ReLU perceptron with weights drawn from the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        parts: list[nn.Module] = []
        for m, n in pairwise(sizes):
            parts += [nn.Linear(m, n), nn.ReLU()]
        return nn.Sequential(*parts[:-1]).eval()


def gaussian(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_import_of_measure_does_not_load_numba() -> None:
    code = "import sys, skipform.measure; skipform.measure.plane; sys.exit('numba' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@given(rank=st.integers(0, 4), seed=st.integers(0, 2**20))
def test_jacobian_rank_of_a_linear_map_is_its_rank(rank: int, seed: int) -> None:
    matrix = gaussian(seed, 5, rank) @ gaussian(seed + 1, rank, 4) if rank else torch.zeros(5, 4, dtype=torch.float64)
    net = perceptron([Affine.of(matrix.numpy())])
    result = jacobian_rank(net, torch.zeros(4))
    assert result.rank == rank
    # What lies below the rank is rounding: a factor of at least 10^3 between them, for matrices of condition < 10^10.
    assert result.gap > 1e3


def test_average_pooling_has_the_rank_of_its_windows_and_max_pooling_too() -> None:
    x = gaussian(0, 1, 4, 4)
    assert jacobian_rank(average_pool((1, 4, 4), 2), x).rank == 4
    assert jacobian_rank(max_pool((1, 4, 4), 2), x).rank == 4
    assert jacobian_rank(nn.MaxPool2d(2).eval(), x).rank == 4
    assert jacobian_rank(nn.Identity().eval(), x).rank == 16


def test_jacobian_rank_of_a_module_is_that_of_its_canonical_network() -> None:
    from skipform.compiler.flatten import canonical

    for seed in range(5):
        net, x = seeded(seed, 6, 5, 4, 5), gaussian(seed, 6)
        as_module, as_canonical = jacobian_rank(net, x), jacobian_rank(canonical(net.double(), x[None]), x)
        assert as_module.rank == as_canonical.rank <= 4
        # Two float64 routes to singular values of size 1, each off by a few hundred u.
        assert abs(as_module.singular_values - as_canonical.singular_values).max() < 1e-13


def test_ranks_need_no_piecewise_linear_net() -> None:
    attention = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, activation="gelu").eval()
    # Layer normalisation takes the mean out of each of 3 tokens; its eps leaves a trace of their lengths, 10^-10.
    assert jacobian_rank(attention, gaussian(0, 3, 8)).rank == 3 * 7


@pytest.mark.parametrize(("inputs", "width"), [(2, 3), (3, 5)])
def test_functional_dimension_of_a_perceptron_is_its_parameters_minus_its_scalings(inputs: int, width: int) -> None:
    # Each hidden unit may be scaled up and its outgoing weight down: width lost, and no more when all units bend
    # within the batch (Grigsby, Lindsey, Meyerhoff, Wu 2022).
    net = seeded(0, inputs, width, 1)
    parameters = sum(p.numel() for p in net.parameters())
    result = functional_dimension(net, 3 * gaussian(1, 400, inputs))
    assert result.rank == parameters - width
    assert result.gap > 1e6


def test_functional_dimension_counts_only_what_is_free() -> None:
    net = seeded(0, 2, 3, 1)
    for parameter in net[0].parameters():
        parameter.requires_grad_(False)
    assert functional_dimension(net, 3 * gaussian(1, 50, 2)).rank == 4


def test_functional_dimension_of_a_canonical_network_is_that_of_its_module() -> None:
    net = seeded(0, 2, 3, 1).double()
    maps = [Affine.of(part.weight.detach().numpy(), part.bias.detach().numpy()) for part in (net[0], net[2])]
    x = 3 * gaussian(1, 100, 2)
    assert functional_dimension(perceptron(maps), x).rank == functional_dimension(net, x).rank


def test_trajectory_of_an_isometry_keeps_its_length_and_of_a_zigzag_is_stretched() -> None:
    circle = torch.linspace(0, 2 * math.pi, 101, dtype=torch.float64)
    path = torch.stack([circle.cos(), circle.sin()], 1)
    rotation = perceptron([Affine.of([[0.6, -0.8], [0.8, 0.6]])])
    assert trajectory_length(rotation, path).growth == pytest.approx(1.0, rel=1e-14)  # rounding of 100 lengths
    # |x| folds [-1, 1]: sampled at its ends nothing moves; exactly, the length stays the same.
    fold = perceptron([Affine.of([[1.0], [-1.0]]), Affine.of([[1.0, 1.0]])])
    ends = torch.tensor([[-1.0], [1.0]])
    assert trajectory_length(fold, ends).output == 0
    assert trajectory_length(fold, ends, exact=True).output == 2


def folded(*widths: int) -> CanonicalNetwork:
    """Montufar's construction on [0, 1]: every layer but the last folds it onto itself, layer k widths[k] times; the
    last cuts what is left at widths[-1] places."""
    *folding, last = widths
    maps, before = [], identity(1)
    for n in folding:
        maps.append(Affine.of([[float(n)]] * n, [-float(k) for k in range(n)]).compose(before))
        before = Affine.of([[1.0] + [2.0 * (-1) ** k for k in range(1, n)]])
    cuts = Affine.of([[1.0]] * last, [-(k + 1.0) / (last + 1) for k in range(last)]).compose(before)
    return perceptron([*maps, cuts, Affine.of([[2.0**-k for k in range(last)]])])


@pytest.mark.parametrize("widths", [(2,), (3, 2), (4, 3, 2), (2, 2, 2, 2, 3)])
def test_folding_reaches_the_lower_bound(widths: tuple[int, ...]) -> None:
    inside = line(folded(*widths), torch.tensor([0.0]), torch.tensor([1.0]))
    assert inside.count == montufar_lower(widths, 1) <= bounds(widths, 1).upper


@given(widths=st.lists(st.integers(1, 6), max_size=4), inputs=st.integers(1, 4))
def test_the_bounds_are_in_order(widths: list[int], inputs: int) -> None:
    result = bounds(widths, inputs)
    assert result.serra == serra_upper(widths, inputs) <= raghu_upper(widths, inputs) <= 2 ** sum(widths)
    assert result.lower is None or result.lower <= result.upper
    assert bounds(widths, inputs, skips=True).upper == result.raghu


def test_one_layer_attains_all_bounds() -> None:
    for width in range(1, 6):
        result = bounds([width], 2) if width >= 2 else bounds([width], 1)
        assert result.upper == result.lower == arrangement(width, 2 if width >= 2 else 1)


def test_what_has_no_rank_is_refused_in_one_line() -> None:
    net = seeded(0, 2, 3, 1)
    refusals = [
        lambda: jacobian_rank(net, torch.zeros(2, dtype=torch.int64)),
        lambda: jacobian_rank(seeded(0, 2, 3).train(), torch.zeros(2)),
        lambda: functional_dimension(nn.ReLU().eval(), torch.zeros(1, 2)),
        lambda: functional_dimension(net, torch.zeros(1, 2, dtype=torch.float64).expand(100_000_000, 2)),
        lambda: trajectory_length(net, torch.zeros(1, 2)),
        lambda: bounds([3], 0),
    ]
    for refused in refusals:
        with pytest.raises(SkipformError) as caught:
            refused()
        assert "\n" not in str(caught.value)
