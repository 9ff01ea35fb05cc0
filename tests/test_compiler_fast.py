"""Target `fast`: the same function, in torch's own operations."""

import operator

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from skipform.compiler.emit import UnsupportedOperation
from skipform.compiler.rewrite import rewrite


class Layer(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def images(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def names(graph) -> list[str]:
    return [node.target.__name__.split(".")[0] for node in graph.graph.nodes if node.op == "call_function"]


def randomised(norm: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    norm.running_mean.normal_(generator=generator)
    norm.running_var.uniform_(0.5, 2, generator=generator)
    return norm


@given(data=st.data())
@settings(max_examples=20)
def test_max_pooling_is_exactly_torchs(data):
    rank = data.draw(st.integers(1, 3))
    sizes = data.draw(st.lists(st.integers(4, 7), min_size=rank, max_size=rank))
    kernel = data.draw(st.lists(st.integers(1, 3), min_size=rank, max_size=rank))
    padding = [data.draw(st.integers(0, k // 2)) for k in kernel]
    dilation = data.draw(st.integers(1, 2)) if max(kernel) < 3 else 1
    stride, ceil = data.draw(st.integers(1, 3)), data.draw(st.booleans())
    pool = getattr(nn, f"MaxPool{rank}d")(kernel, stride, padding, dilation, ceil_mode=ceil).eval()
    x = images(2, 3, *sizes)
    assert torch.equal(rewrite(pool, x[:1], "fast")(x), pool(x))


# What torch computes in another order differs by rounding: 1e-12 of values of size 1 is thousands of roundings.
LAYERS = {
    "average pooling": (nn.AvgPool2d(2), ["avg_pool2d"]),
    "global average": (nn.AdaptiveAvgPool2d(1), ["adaptive_avg_pool2d"]),
    "global maximum": (nn.AdaptiveMaxPool2d(1), ["amax"]),
    "maximum over columns": (Layer(lambda x: x.amax(3)), ["amax"]),
    "maximum over dimensions apart": (Layer(lambda x: x.amax((1, 3), keepdim=True)), ["amax"]),
    "adaptive maximum": (nn.AdaptiveMaxPool2d((2, 3)), None),
    "large window": (nn.MaxPool2d(4, 2, 1), ["max_pool2d"]),
    "leaky relu in place": (
        nn.Sequential(nn.Conv2d(3, 3, 1), nn.LeakyReLU(0.1, inplace=True)),
        ["conv2d", "leaky_relu"],
    ),
    "relu6": (nn.ReLU6(), ["hardtanh"]),
    "clamp": (Layer(lambda x: x.clamp(-0.5, 0.25)), ["clamp"]),
    "clamp by a tensor": (Layer(lambda x: torch.clamp(x, torch.tensor([-1.0, 0, 0, 1, 2, 1, 1, 1]))), None),
    "absolute": (Layer(torch.abs), ["abs"]),
    "batch norm": (randomised(nn.BatchNorm2d(3)), ["addcmul"]),
    "batch norm after a convolution": (nn.Sequential(nn.Conv2d(3, 3, 1), randomised(nn.BatchNorm2d(3))), ["conv2d"]),
    "upsampling": (nn.Upsample(scale_factor=2), ["upsample_nearest2d"]),
    "bilinear upsampling": (nn.Upsample(scale_factor=2, mode="bilinear"), ["upsample_bilinear2d"]),
    "padding by the border": (Layer(lambda x: F.pad(x, (1, 1, 1, 1), mode="replicate")), ["pad"]),
    "padding by reflection": (Layer(lambda x: F.pad(x, (1, 2, 0, 1), mode="reflect")), ["pad"]),
    "padding around": (Layer(lambda x: F.pad(x, (1, 2, 0, 1), mode="circular")), ["pad"]),
    "padding of the last axis": (Layer(lambda x: F.pad(x.flatten(1, 2), (1, 2), mode="circular")), ["reshape", "pad"]),
    "padding without a batch": (Layer(lambda x: F.pad(x.permute(1, 0, 2, 3), (1, 1, 1, 1), mode="replicate")), None),
    "residual": (Layer(lambda x: x + torch.relu(x)), ["relu", "add"]),
    "maximum": (Layer(lambda x: torch.maximum(x[:, :1], x[:, 1:2])), ["getitem", "getitem", "maximum"]),
    "mean": (Layer(lambda x: x.mean((2, 3))), ["mean"]),
    "batch elsewhere": (Layer(lambda x: F.max_pool1d(x.flatten(2).permute(1, 0, 2), 2)), None),
    "no batch": (Layer(lambda x: F.avg_pool2d(x[:, 0], 2)), None),
}


@pytest.mark.parametrize("case", LAYERS)
def test_a_layer_stays_one_operation(case):
    module, operations = LAYERS[case]
    module, x = module.double().eval(), images(3, 3, 6, 8)
    fast = rewrite(module, x[:1], "fast")
    with torch.no_grad():
        torch.testing.assert_close(fast(x), module(x), rtol=1e-12, atol=1e-12)
    if operations is not None:
        assert names(fast) == operations


@pytest.mark.parametrize("function", [lambda x: x.mean(0), lambda x: x.amax(0), lambda x: x.sum()])
def test_what_mixes_the_samples_is_refused(function):
    with pytest.raises(UnsupportedOperation, match="batch"):
        rewrite(Layer(function).eval(), images(2, 3, 4, 4), "fast")


def test_it_trains_and_exports():
    net = nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8, 2)
    )
    x = torch.randn(2, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    fast = rewrite(net.eval(), x, "fast")
    assert operator.getitem in {node.target for node in fast.graph.nodes}
    torch.testing.assert_close(torch.export.export(fast, (x,)).module()(x), fast(x))
    x.requires_grad_()
    fast(x).sum().backward()
    gradient, x.grad = x.grad, None
    net(x).sum().backward()
    torch.testing.assert_close(gradient, x.grad)
