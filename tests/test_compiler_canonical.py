"""The canonical network of a model: sparse maps against the model itself, exactly where numbers are whole."""

from fractions import Fraction

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from test_compiler_models import randomised
from test_compiler_rules import CASES, Function, numbers
from torch import nn

from skipform import nets
from skipform.compiler.flatten import canonical, structure
from skipform.compiler.rewrite import rewrite
from skipform.errors import SkipformError
from skipform.theory.convolved import convolution_matrix
from skipform.theory.network import CanonicalNetwork


def whole(module):
    """The module in float64 with weights -2..2, so that every sum is exact."""
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(torch.randint(-2, 3, p.shape, generator=torch.Generator().manual_seed(p.numel())))
    return module.double().eval()


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(2, 2, 3, padding=1), nn.Conv2d(2, 2, 3, padding=1)
        self.readout = nn.Linear(2 * 2 * 2, 3)

    def forward(self, x):
        x = x + self.second(torch.relu(self.first(x)))
        return self.readout(F.max_pool2d(torch.relu(x), 2).flatten(1))


def test_a_network_of_whole_numbers_is_the_same_in_fractions():
    module = whole(Residual())
    network = canonical(module, torch.zeros(1, 2, 4, 4))
    x = torch.randint(-3, 4, (3, 2, 4, 4), generator=torch.Generator().manual_seed(0)).double()
    exact = network.exact()(x)
    assert exact.dtype == object
    assert all(isinstance(value, Fraction) for value in exact.ravel())
    assert np.array_equal(exact.astype(float), module(x).detach().numpy())
    assert torch.equal(network(x), module(x).detach())


def test_depth_is_the_longest_chain_of_relus():
    network = canonical(whole(Residual()), torch.zeros(1, 2, 4, 4))
    assert network.depth == 2 + 2  # two ReLUs of the block's path, two layers of the 2x2 maximum
    assert network.widths == (32, 32, 16, 8)
    assert network.input_shape == (2, 4, 4)
    assert network.output_shape == (3,)


def test_a_relu_stands_in_the_earliest_layer():
    late = Function(lambda x: (x.relu() - 1).relu() + (-x).relu()).eval()
    assert canonical(late, torch.zeros(1, 3)).widths == (6, 3)


@pytest.mark.parametrize("name", ["convolution", "convolution in 3d", "matrices", "padding", "interpolation", "pieces"])
def test_every_kind_of_affine_map_has_its_matrix(name):
    shape, function = CASES[name]
    network = canonical(Function(function).eval(), numbers(1, *shape))
    x = numbers(2, *shape)
    expected = torch.stack([torch.cat([y.flatten() for y in function(sample[None])]) for sample in x])
    assert torch.allclose(network(x), expected, rtol=0, atol=1e-12)


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_the_matrix_of_a_convolution_is_the_convolution(data):
    rank = data.draw(st.integers(1, 3))
    groups, per_group, out = (data.draw(st.integers(1, 2)) for _ in range(3))
    kernel, stride, padding, dilation = ([data.draw(st.integers(low, 3)) for _ in range(rank)] for low in (1, 1, 0, 1))
    least = [max(1, d * (k - 1) + 1 - 2 * p) for k, p, d in zip(kernel, padding, dilation, strict=True)]
    spatial = [data.draw(st.integers(n, 7)) for n in least]
    x = torch.randn(1, groups * per_group, *spatial, dtype=torch.float64)
    weight = torch.randn(groups * out, per_group, *kernel, dtype=torch.float64)
    how = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    y = (F.conv1d, F.conv2d, F.conv3d)[rank - 1](x, weight, **how)
    matrix = convolution_matrix(x.shape[1:], weight.numpy(), y.shape[2:], **how)
    # at most 2 * 27 products of numbers near 1
    assert np.allclose(matrix @ x.numpy().ravel(), y.numpy().ravel(), rtol=0, atol=1e-12)


def test_structure_agrees_with_the_matrices_without_building_them():
    model = randomised(nets.build("resnet", depth=8, in_channels=3, num_classes=10)).double()
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    shape, network = structure(rewrite(model, x)), canonical(model, x)
    assert (shape.depth, shape.widths) == (network.depth, network.widths)
    assert shape.entries >= network.nonzeros
    with torch.no_grad():
        expected = model(x)
    assert (network(x) - expected).abs().max() <= 1e-12 * expected.abs().max()


def test_saved_and_loaded_it_is_the_same_network(tmp_path):
    network = canonical(whole(Residual()), torch.zeros(1, 2, 4, 4))
    network.save(tmp_path / "net.safetensors")
    loaded = CanonicalNetwork.load(tmp_path / "net.safetensors")
    x = torch.randn(3, 2, 4, 4, dtype=torch.float64)
    assert torch.equal(loaded(x), network(x))


def test_several_inputs_are_laid_end_to_end():
    module = Function(lambda x, y: torch.maximum(x, y)).eval()
    network = canonical(module, (torch.zeros(1, 3), torch.zeros(1, 3)))
    x, y = torch.randn(2, 3).double(), torch.randn(2, 3).double()
    assert torch.allclose(network(torch.cat((x, y), 1)), torch.maximum(x, y), rtol=0, atol=1e-15)


def test_what_would_not_fit_in_memory_is_refused_beforehand():
    with pytest.raises(SkipformError, match=r"GiB; memory=0\.125 GiB is accepted"):
        canonical(nn.Conv2d(3, 64, 3).eval(), torch.zeros(1, 3, 64, 64), memory=2**27)
