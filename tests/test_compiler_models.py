"""Whole models through the compiler: random ones drawn by hypothesis, and those of libraries.

Tolerances relative to the largest output: 1e-12 in float64 and 1e-5 in float32, the project's aim; a rounding of 2^-53
(2^-24) in each of some hundred layers stays a hundred (five) times below.
"""

import time

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from test_compiler_rules import assert_plain
from torch import nn

from skipform.compiler.flatten import canonical, structure
from skipform.compiler.rewrite import rewrite


def randomised(model, seed=0):
    """The model in eval mode with running statistics and scales that batch norm cannot be left out for."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for norm in model.modules():
            if isinstance(norm, nn.modules.batchnorm._BatchNorm):
                norm.running_mean.normal_(0, 0.3, generator=generator)
                norm.running_var.uniform_(0.5, 2, generator=generator)
                if norm.affine:
                    norm.weight.uniform_(0.5, 1.5, generator=generator)
                    norm.bias.normal_(0, 0.3, generator=generator)
    return model.eval()


def difference(model, plain, *inputs):
    """The largest difference relative to the largest output."""
    with torch.no_grad():
        a, b = model(*inputs), plain(*inputs)
    if isinstance(a, dict):
        a, b = a["out"], b["out"]
    return ((a - b).abs().max() / a.abs().max()).item()


# -- random modules ----------------------------------------------------------------------------------------------


class Drawn(nn.Module):
    """Steps on a list of tensors, each a pair (name, settings); a step appends its result, the last is the output."""

    def __init__(self, steps, parts):
        super().__init__()
        self.steps, self.parts = steps, nn.ModuleList(parts)

    def forward(self, x):
        tensors, parts = [x], iter(self.parts)
        for kind, where in self.steps:
            x = tensors[-1]
            if kind == "module":
                tensors.append(next(parts)(x))
            elif kind == "add":
                tensors.append(x + tensors[where])
            elif kind == "difference":
                tensors.append(tensors[where] - 0.5 * x)
            elif kind == "maximum":
                tensors.append(torch.maximum(x, tensors[where]))
            elif kind == "minimum":
                tensors.append(torch.minimum(tensors[where], x))
            elif kind == "cat":
                tensors.append(torch.cat((tensors[where], x), 1))
            elif kind == "in place":
                tensors.append((x * 2).add_(tensors[where]).relu_())
            elif kind == "halves":
                a, b = x.chunk(2, 1)
                tensors.append(torch.cat((b, a), 1) if a.shape == b.shape else a)
            elif kind == "transpose":
                tensors.append(x.transpose(2, 3).abs())
            elif kind == "pad":
                tensors.append(F.pad(x, (1, 0, 0, 1), mode="replicate"))
        return tensors[-1].flatten(1)


@st.composite
def modules(draw):
    """A random module on images (b, c, h, w) and the shape of its input."""
    c, h, w = draw(st.integers(1, 3)), draw(st.integers(1, 6)), draw(st.integers(1, 6))
    shape = (c, h, w)
    shapes, steps, parts = [shape], [], []
    for _ in range(draw(st.integers(1, 7))):
        c, h, w = shapes[-1]
        same = [i for i, s in enumerate(shapes) if s == shapes[-1]]
        aligned = [i for i, s in enumerate(shapes) if s[1:] == (h, w) and s[0] + c <= 8]
        kinds = ["module"] * 4 + ["add", "difference", "maximum", "minimum", "in place", "halves", "transpose", "pad"]
        kind = draw(st.sampled_from(kinds + ["cat"] * bool(aligned)))
        if kind == "module":
            k = draw(st.integers(1, 3))
            stride, padding = draw(st.integers(1, 2)), draw(st.integers(0, k // 2))
            fits = min(h, w) + 2 * padding >= k
            out = draw(st.integers(1, 4))
            options = [nn.BatchNorm2d(c), nn.ReLU(inplace=draw(st.booleans())), nn.LeakyReLU(0.3), nn.PReLU(c)]
            options += [nn.Hardtanh(-0.5, 0.7), nn.ReLU6(), nn.Dropout(), nn.Conv2d(c, out, 3, padding=1)]
            options += [nn.Conv2d(c, c * 2, 1, groups=c), nn.Identity(), nn.AdaptiveMaxPool2d(2)]
            options += [nn.Upsample(scale_factor=2, mode=m) for m in ("nearest", "bilinear")] if h * w <= 36 else []
            options += [nn.ConvTranspose2d(c, out, k, stride, padding)] if h * w <= 36 and h > k and w > k else []
            if fits:
                ceil = draw(st.booleans())
                options += [nn.MaxPool2d(k, stride, padding, ceil_mode=ceil), nn.Conv2d(c, out, k, stride, padding)]
                options += [nn.AvgPool2d(k, stride, padding, ceil, draw(st.booleans()))]
            part = draw(st.sampled_from(options)).double().eval()
            parts.append(part)
            shapes.append(tuple(part(torch.zeros(1, c, h, w, dtype=torch.float64)).shape[1:]))
            steps.append((kind, 0))
        else:
            where = draw(st.sampled_from(aligned if kind == "cat" else same))
            after = {"cat": (shapes[where][0] + c, h, w), "transpose": (c, w, h), "pad": (c, h + 1, w + 1)}
            if kind == "halves":
                after["halves"] = (c if c % 2 == 0 else (c + 1) // 2, h, w)
            shapes.append(after.get(kind, shapes[-1]))
            steps.append((kind, where))
            if kind == "halves" and c == 1:  # one channel has no second half
                shapes.pop()
                steps.pop()
    return randomised(Drawn(steps, parts)), shape


@settings(max_examples=25, deadline=None)
@given(modules(), st.integers(1, 3), st.sampled_from(["grammar", "keep_add"]))
def test_random_modules_equal_their_rewriting_and_their_canonical_network(drawn, batch, target):
    module, shape = drawn
    x = torch.randn(batch, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(batch))
    plain = rewrite(module, x[:1], target)
    assert_plain(plain, target)
    network = canonical(module, x[:1])
    with torch.no_grad():
        expected, actual = module(x), plain(x)
    # the entries may cancel to 0, so the inputs' size 1 bounds the scale from below
    scale = expected.abs().max().clamp(min=1.0)
    assert (expected - actual).abs().max() <= 1e-12 * scale
    assert (expected - network(x)).abs().max() <= 1e-12 * scale
    shape = structure(plain)
    assert (shape.depth, shape.widths, shape.relu_count) == (network.depth, network.widths, network.relu_count)
    assert all(few <= many for few, many in zip(network.carried, shape.carried, strict=True))


# -- the libraries' models ---------------------------------------------------------------------------------------

TORCHVISION = {"resnet18": 33, "densenet121": 33, "squeezenet1_1": 33}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvision_models_are_rewritten_exactly(name):
    model = randomised(torchvision.models.get_model(name, weights=None)).double()
    x = torch.randn(2, 3, TORCHVISION[name], TORCHVISION[name], dtype=torch.float64)
    plain = rewrite(model, x[:1])
    assert_plain(plain)
    assert difference(model, plain, x) <= 1e-12
    assert difference(model.float(), plain.float(), x.float()) <= 1e-5


def test_timm_models_are_rewritten_exactly():
    model = randomised(timm.create_model("resnet10t", num_classes=10)).double()
    x = torch.randn(2, 3, 33, 33, dtype=torch.float64)
    assert difference(model, rewrite(model, x[:1]), x) <= 1e-12


def test_a_segmentation_model_keeps_its_dictionary():
    model = randomised(torchvision.models.segmentation.fcn_resnet50(weights=None, weights_backbone=None)).double()
    x = torch.randn(1, 3, 33, 33, dtype=torch.float64)
    plain = rewrite(model, x)
    assert set(plain(x)) == {"out"}
    assert difference(model, plain, x) <= 1e-12


def test_rewriting_resnet18_takes_at_most_three_times_its_export():
    """2.2 times on one core: a second where torch.export takes 0.5. The best of five rounds: what else the machine does
    can only make a round slower."""
    model, x = torchvision.models.resnet18().eval(), torch.randn(2, 3, 64, 64)

    def seconds(function):
        start = time.thread_time()  # of this thread alone, not of those of torch that wait for work
        function()
        return time.thread_time() - start

    def export():
        torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},), strict=False)

    export()  # imports what torch imports at its first export
    rounds = [(seconds(lambda: rewrite(model, x)), seconds(export)) for _ in range(5)]
    ours, theirs = map(min, zip(*rounds, strict=True))
    assert ours <= 3 * theirs


def test_a_relu_in_place_on_the_input_is_a_relu():
    module = nn.Sequential(nn.ReLU(inplace=True), nn.Linear(4, 3), nn.Hardtanh(inplace=True)).double().eval()
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    # Each output is a sum of five terms below 2^3: a few roundings of 2^-50.
    torch.testing.assert_close(rewrite(module, x.clone())(x.clone()), module(x.clone()), rtol=0, atol=2**-48)
