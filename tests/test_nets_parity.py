"""Nets against independent code: the same architectures in torchvision and Keras, and the formulas of the papers."""

import os
from collections.abc import Callable, Iterator

os.environ.setdefault("KERAS_BACKEND", "torch")
import keras
import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from skipform import nets

LEAVES = (nn.Conv2d, nn.BatchNorm2d, nn.Linear)


def leaves(net: nn.Module) -> list[nn.Module]:
    return [module for module in net.modules() if isinstance(module, LEAVES)]


def settled(net: nn.Module) -> nn.Module:
    """In eval mode, batch norms as if trained: scales and variances near 1, shifts and means near 0."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for norm in (module for module in net.modules() if isinstance(module, nn.BatchNorm2d)):
            norm.weight.uniform_(0.8, 1.2, generator=generator)
            norm.running_var.uniform_(0.8, 1.2, generator=generator)
            norm.bias.normal_(0, 0.1, generator=generator)
            norm.running_mean.normal_(0, 0.1, generator=generator)
    return net.eval()


def with_weights_of(net: nn.Module, reference: nn.Module) -> nn.Module:
    """The net with the reference's weights, layer by layer in the order both register them."""
    for own, other in zip(leaves(net), leaves(reference), strict=True):
        own.load_state_dict(other.state_dict())
    return net.eval()


def agree(actual: Tensor, expected: Tensor, relative: float) -> None:
    scale = float(expected.detach().abs().max())
    torch.testing.assert_close(actual, expected, rtol=0, atol=relative * scale)


IMAGENET = {"num_classes": 1000, "first": "7x7"}
RESNET = IMAGENET | {"stages": 4, "width": 64, "option": "B"}
RESNEXT = IMAGENET | {"stages": 4, "depth": 50, "cardinality": 32, "bottleneck_width": 4}
DENSENET = IMAGENET | {"depth": 121, "growth": 32, "bottleneck": True, "compression": 0.5}


@pytest.mark.parametrize(
    ("reference", "name", "arguments"),
    [
        ("resnet18", "resnet", RESNET | {"depth": 18}),
        ("resnet50", "resnet", RESNET | {"depth": 50}),
        ("resnext50_32x4d", "resnext", RESNEXT),
        ("densenet121", "densenet", DENSENET),
    ],
)
def test_the_imagenet_net_is_torchvisions(reference, name, arguments):
    torch.manual_seed(0)
    theirs = settled(getattr(torchvision.models, reference)())
    ours = with_weights_of(nets.build(name, **arguments), theirs)
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        agree(ours(x), theirs(x), 1e-5)  # float32, the same operations in the same order: a few ulp, 1.2e-7 each
        theirs, ours, x = theirs.double(), ours.double(), x.double()
        agree(ours(x), theirs(x), 1e-12)


def test_the_vgg_features_are_torchvisions():
    torch.manual_seed(0)
    columns = torchvision.models.vgg.cfgs["D"]
    narrow = [c if c == "M" else c // 16 for c in columns]
    theirs = settled(torchvision.models.vgg.make_layers(narrow, batch_norm=True)).double()
    ours = nets.build("vgg", width=4).double()
    theirs.append(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), leaves(ours)[-1]))
    with_weights_of(ours, theirs)
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    agree(ours(x), theirs(x), 1e-12)


def test_the_projection_blocks_are_the_keras_listing():
    def block(x, filters):
        y = keras.layers.Conv2D(filters, (3, 3), padding="same")(x)
        y = keras.layers.ReLU()(keras.layers.BatchNormalization()(y))
        side = keras.layers.BatchNormalization()(keras.layers.Conv2D(filters, (1, 1), padding="same")(x))
        return keras.layers.ReLU()(keras.layers.Add()([y, side]))

    entry = keras.layers.Input(shape=(32, 32, 3))
    listing = keras.Model(entry, block(block(block(entry, 64), 64), 128))
    ours = settled(nets.build("projection_blocks"))
    body = [p for key, p in ours.named_parameters() if not key.startswith("head")]
    assert sum(p.numel() for p in body) == sum(int(torch.tensor(w.shape).prod()) for w in listing.trainable_weights)

    # a block's two convolutions differ in their kernels, its norms follow in the order of the listing
    theirs = [layer for layer in listing.layers if layer.weights]
    for stage, own in enumerate(ours.stages):
        four = theirs[4 * stage : 4 * stage + 4]
        convolutions = sorted((w for w in four if hasattr(w, "kernel")), key=lambda w: -w.kernel.shape[0])
        norms = [w for w in four if not hasattr(w, "kernel")]
        for (convolution, norm), their, their_norm in zip(
            ((own.branch[0], own.branch[1]), (own.shortcut[0], own.shortcut[1])), convolutions, norms, strict=True
        ):
            their.set_weights(
                [convolution.weight.detach().permute(2, 3, 1, 0).numpy(), convolution.bias.detach().numpy()]
            )
            values = (norm.weight, norm.bias, norm.running_mean, norm.running_var)
            their_norm.set_weights([value.detach().numpy() for value in values])
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = listing(x.permute(0, 2, 3, 1), training=False).permute(0, 3, 1, 2)
        agree(ours.maps(x)[-1], expected, 1e-5)


class Reader:
    """The layers of a net in the order they are registered, each applied to what it is given: the formulas' letters."""

    def __init__(self, net: nn.Module):
        self.rest: Iterator[nn.Module] = iter(leaves(net))

    def conv(self, x: Tensor, stride: int = 1) -> Tensor:
        weight = next(self.rest).weight
        return F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2)

    def bn(self, x: Tensor) -> Tensor:
        norm = next(self.rest)
        mean, scale = norm.running_mean, norm.weight / torch.sqrt(norm.running_var + norm.eps)
        return (x - mean[:, None, None]) * scale[:, None, None] + norm.bias[:, None, None]

    def head(self, x: Tensor) -> Tensor:
        linear = next(self.rest)
        assert next(self.rest, None) is None  # every layer was read
        return x.mean((2, 3)) @ linear.weight.T + linear.bias


def zero_padded(x: Tensor, channels: int) -> Tensor:
    return torch.cat((x, x.new_zeros(len(x), channels - x.shape[1], *x.shape[2:])), 1)


def resnet(read: Reader, x: Tensor) -> Tensor:
    """ "Deep residual learning", Section 4.2, n = 2, option A."""
    x = torch.relu(read.bn(read.conv(x)))
    for stage in range(3):
        for i in range(2):
            stride = 2 if stage and not i else 1
            y = read.bn(read.conv(torch.relu(read.bn(read.conv(x, stride)))))
            x = torch.relu(y + zero_padded(x[:, :, ::stride, ::stride], y.shape[1]))
    return read.head(x)


def preact(read: Reader, x: Tensor) -> Tensor:
    """ "Identity mappings", Figure 4(e) and Appendix, n = 2 bottlenecks."""
    x = read.conv(x)
    for stage in range(3):
        for i in range(2):
            stride = 2 if stage and not i else 1
            a = torch.relu(read.bn(x))
            y = torch.relu(read.bn(read.conv(a, stride)))
            y = read.conv(torch.relu(read.bn(read.conv(y))))
            x = y + (x if i else read.conv(a, stride))
    return read.head(torch.relu(read.bn(x)))


def densenet(read: Reader, x: Tensor) -> Tensor:
    """ "Densely connected convolutional networks", eq. (2), BC, 2 layers per block."""
    x = read.conv(x)
    for block in range(3):
        if block:
            x = F.avg_pool2d(read.conv(torch.relu(read.bn(x))), 2)
        for _ in range(2):
            x = torch.cat((x, read.conv(torch.relu(read.bn(read.conv(torch.relu(read.bn(x))))))), 1)
    return read.head(torch.relu(read.bn(x)))


def pyramidnet(read: Reader, x: Tensor) -> Tensor:
    """ "Deep pyramidal residual networks", Figure 6(d), eq. (2), n = 2, alpha = 5."""
    x = read.bn(read.conv(x))
    for k in range(6):
        stride = 2 if k in (2, 4) else 1
        y = read.bn(read.conv(torch.relu(read.bn(read.conv(read.bn(x), stride)))))
        assert y.shape[1] == int(4 + 5 * (k + 1) / 6 + 0.5)
        x = y + zero_padded(F.avg_pool2d(x, stride), y.shape[1])
    return read.head(torch.relu(read.bn(x)))


def ror(read: Reader, x: Tensor) -> Tensor:
    """ "Residual networks of residual networks", Figure 2, m = 3, 2 units a stage."""
    x = root = torch.relu(read.bn(read.conv(x)))
    for stage in range(3):
        middle = x
        for i in range(2):
            y = read.bn(read.conv(torch.relu(read.bn(read.conv(x)))))
            y = y + (read.bn(read.conv(x)) if y.shape[1] != x.shape[1] else x)
            x = torch.relu(y) if i == 0 else y
        x = x + read.bn(read.conv(middle))
        x = F.max_pool2d(torch.relu(x), 2) if stage < 2 else x
    return read.head(torch.relu(x + read.bn(read.conv(root, 4))))


def highway(read: Reader, x: Tensor) -> Tensor:
    """Highway-110's layer t H(x) + (1 - t) x of three units, 6n+2 = 8."""
    x = torch.relu(read.bn(read.conv(x)))
    for stage in range(3):
        stride = 2 if stage else 1
        h = torch.relu(read.bn(read.conv(torch.relu(read.bn(read.conv(x, stride))))))
        carried = x if h.shape == x.shape else read.bn(read.conv(x, stride))
        t = torch.sigmoid(read.bn(read.conv(torch.relu(read.bn(read.conv(x, stride))))))
        x = t * h + (1 - t) * carried
    return read.head(x)


@pytest.mark.parametrize(
    ("formula", "name", "arguments"),
    [
        (resnet, "resnet", {"depth": 14, "width": 4}),
        (preact, "preact", {"depth": 20, "width": 4, "bottleneck": True}),
        (densenet, "densenet", {"depth": 16, "growth": 4, "bottleneck": True, "compression": 0.5}),
        (pyramidnet, "pyramidnet", {"depth": 14, "width": 4, "alpha": 5}),
        (ror, "ror", {"depth": 20, "width": 4}),
        (highway, "highway", {"depth": 8, "width_factor": 0.5, "body": "block", "gate_bias": -6.0}),
    ],
)
def test_the_net_is_its_papers_formula(formula: Callable[[Reader, Tensor], Tensor], name, arguments):
    torch.manual_seed(0)
    net = settled(nets.build(name, **arguments)).double()
    x = torch.randn(3, 3, 16, 16, dtype=torch.float64)
    # float64, some 20 layers: roundings of 1e-16 each, amplified by far less than 1e4
    agree(net(x), formula(Reader(net), x), 1e-12)
