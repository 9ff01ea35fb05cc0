"""The net with any Keras merge: what the theory says of its merges, and equal sizes."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from skipform import nets
from skipform.nets.blocks import Merge, Skip
from skipform.nets.merges import Dot

KEEPING = ["add", "subtract", "multiply", "average", "maximum", "minimum", "none"]  # merges without parameters


def built(skip: str, seed: int, **arguments) -> nn.Module:
    """The net in eval mode and float64, its batch norms no longer at their start."""
    torch.manual_seed(seed)
    net = nets.build("merges", in_channels=1, num_classes=3, depth=14, width=2, skip=skip, **arguments).double().eval()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                tensor.data += torch.rand_like(tensor)
    return net


def images(seed: int) -> Tensor:
    return torch.randn(3, 1, 6, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def units(net: nn.Module) -> list[Skip]:
    return [module for module in net.modules() if isinstance(module, Skip)]


@given(depth=st.integers(1, 4).map(lambda n: 6 * n + 2), width=st.integers(1, 6), batch_norm=st.booleans())
def test_merges_have_equal_numbers_of_parameters_but_for_the_maps_of_concat_and_dot(depth, width, batch_norm):
    def count(skip: str) -> int:
        with torch.device("meta"):
            net = nets.build("merges", depth=depth, width=width, skip=skip, batch_norm=batch_norm)
        return sum(p.numel() for p in net.parameters())

    n = (depth - 2) // 6
    merged = [n * [width], (n - 1) * [2 * width], (n - 1) * [4 * width]]  # channels of the units with a merge
    channels = [c for stage in merged for c in stage]
    assert len({count(skip) for skip in KEEPING}) == 1
    assert count("concat") - count("add") == sum(2 * c * c for c in channels)
    assert count("dot") - count("add") == sum(channels)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 999))
def test_a_net_that_subtracts_is_one_that_adds_with_other_signs(seed):
    """Theorem 2, learned: with u_k = (-1)^k x_k, x_{k+1} = B(x_k) - x_k is u_{k+1} = (-1)^{k+1} B((-1)^k u_k) + u_k;
    the signs go into the last convolution of B and into the scale and the mean of its first batch norm."""
    net, twin = built("subtract", seed), built("add", seed)
    twin.load_state_dict(net.state_dict())
    sign = 1.0
    with torch.no_grad():
        for module in [part for stage in twin.stages for part in stage] + [twin.head]:
            branch = module.branch if isinstance(module, Skip) else module
            first = next(layer for layer in branch.modules() if isinstance(layer, nn.BatchNorm2d))
            first.weight *= sign
            first.running_mean *= sign
            if isinstance(module, Skip):
                sign = -sign
                list(module.branch)[-1].weight *= sign
            else:
                sign = 1.0  # a unit without a skip: its input carries the sign, its output none
    # a factor of -1 rounds nothing, and sums are of the same numbers with other signs
    x = images(seed)
    torch.testing.assert_close(twin(x), net(x), rtol=1e-12, atol=1e-12)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 999), skip=st.sampled_from(["add", "average", "subtract", "none"]))
def test_concatenation_expresses_every_linear_merge(seed, skip):
    """Proposition 1: W = (I I), (I/2 I/2), (I -I) or (I 0)."""
    net, twin = built(skip, seed), built("concat", seed)
    weights = twin.state_dict() | net.state_dict()
    twin.load_state_dict(weights)
    u, v = {"add": (1, 1), "average": (0.5, 0.5), "subtract": (1, -1), "none": (1, 0)}[skip]
    for unit in units(twin):
        assert isinstance(unit.merge, Merge)
        eye = torch.eye(unit.merge.mix.out_channels, dtype=torch.float64)
        unit.merge.mix.weight = nn.Parameter(torch.cat((u * eye, v * eye), 1)[:, :, None, None])
    x = images(seed)
    torch.testing.assert_close(twin(x), net(x), rtol=1e-12, atol=1e-12)  # sums with zeros, in another order


@given(n=st.integers(1, 3), c=st.integers(1, 4), h=st.integers(1, 3), seed=st.integers(0, 99))
def test_dot_is_the_inner_product_of_every_pixel_times_one_vector(n, c, h, seed):
    torch.manual_seed(seed)
    dot, b, x = Dot(c).double(), torch.randn(n, c, h, 2).double(), torch.randn(n, c, h, 2).double()
    w, y = dot.spread.weight.detach().flatten(), dot(b, x).detach()
    for i in range(n):
        for row in range(h):
            for column in range(2):
                product = sum(float(b[i, k, row, column] * x[i, k, row, column]) for k in range(c))
                assert y[i, :, row, column].tolist() == pytest.approx((w * product).tolist(), rel=1e-12, abs=1e-12)


@given(seed=st.integers(0, 999), scale=st.floats(0.01, 100))
@settings(max_examples=10, deadline=None)
def test_without_batch_norm_and_bias_the_features_are_homogeneous_of_degree_one(seed, scale):
    net, x = nets.features(built("add", seed, batch_norm=False)), images(seed)
    torch.testing.assert_close(net(scale * x), scale * net(x), rtol=1e-10, atol=1e-12 * scale)
