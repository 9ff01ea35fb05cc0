"""A program, and a rewritten net, in place of the net that they are of."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import skipform
from skipform.errors import SkipformError
from skipform.measure import Program, functional_dimension, jacobian_rank, line, plane, program, trajectory_length


def seeded(seed: int, *sizes: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers = [part for m, n in pairwise(sizes) for part in (nn.Linear(m, n), nn.ReLU())]
        return nn.Sequential(*layers[:-1]).eval()


@settings(max_examples=4)
@given(seed=st.integers(0, 2**20), width=st.integers(1, 6))
def test_a_program_gives_the_numbers_of_its_network(seed, width):
    net = seeded(seed, 2, width, width, 2)
    origin, u, v = torch.randn(3, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    canonical = skipform.canonical(net.double(), origin[None])
    for f in (net, canonical, skipform.rewrite(net, origin[None]), skipform.rewrite(net, origin[None], "keep_add")):
        compiled = Program.of(f, origin)
        assert Program.of(compiled, origin) is compiled
        assert line(compiled, u, v).count == line(f, u, v).count == line(net, u, v).count
        ours, theirs = plane(compiled, origin, u, v), plane(net, origin, u, v)
        assert (ours.count, ours.pieces) == (theirs.count, theirs.pieces)
        assert jacobian_rank(compiled, origin).rank == jacobian_rank(f, origin).rank
        path = torch.stack([origin, u, v])
        for exact in (False, True):
            # Two float64 routes to lengths of size 1, off by a few hundred roundings of 2^-53.
            expected = pytest.approx(trajectory_length(net, path, exact=exact).output, rel=1e-12, abs=1e-12)
            assert trajectory_length(compiled, path, exact=exact).output == expected


def test_a_rewritten_net_is_read_as_it_is_and_another_is_rewritten(monkeypatch):
    x = torch.zeros(1, 2)
    plain = skipform.rewrite(seeded(0, 2, 3, 1), x)
    scaled = skipform.rewrite(seeded(0, 2, 3, 1), x)
    scaled.register_forward_hook(lambda module, inputs, output: 2 * output)
    squared = skipform.rewrite(nn.Sequential(nn.ReLU()).eval(), x)
    (relu,) = [node for node in squared.graph.nodes if node.target is torch.relu]
    relu.target = torch.square
    squared.recompile()
    assert program.is_rewritten(plain)
    assert not any(map(program.is_rewritten, (scaled, squared, seeded(0, 2, 3, 1))))
    with pytest.raises(SkipformError, match="not piecewise linear"):
        line(squared, x[0], x[0] + 1)
    monkeypatch.setattr("skipform.compiler.rewrite.rewrite_in_float64", None)  # cannot be called
    assert line(plain, x[0], x[0] + 1).count >= 1


def test_the_cpu_is_the_device_of_ranks_by_default_and_an_unknown_one_is_refused():
    net, x = seeded(0, 3, 4, 2), torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    for rank, points in ((jacobian_rank, x[0]), (functional_dimension, x)):
        default, chosen = rank(net, points), rank(net, points, device="cpu")
        assert (default.singular_values == chosen.singular_values).all()
        assert default.rank == chosen.rank
        for device in ("nowhere", 1.5, "meta"):
            with pytest.raises(SkipformError, match="cpu or cuda is accepted"):
                rank(net, points, device=device)


def test_what_a_program_cannot_do_is_refused_in_one_line():
    compiled = Program.of(seeded(0, 2, 3, 1), torch.zeros(2))
    plain = skipform.rewrite(seeded(0, 2, 3, 1), torch.zeros(1, 2))
    refusals = [
        lambda: Program.of(compiled, torch.zeros(3)),
        lambda: Program.of(plain, torch.zeros(3)),
        lambda: line(compiled, torch.zeros(1, 2), torch.ones(1, 2)),
        lambda: functional_dimension(compiled, torch.zeros(1, 2)),
    ]
    for refused in refusals:
        with pytest.raises(SkipformError) as caught:
            refused()
        assert "accepted" in str(caught.value)
        assert "\n" not in str(caught.value)
