"""Small nets, one for each operation that verifiers differ in, and what their users report as refused or misread."""

import torch
import torch.nn.functional as F
from test_compiler_rules import Function
from torch import nn


def _net(seed, function, **parts):
    torch.manual_seed(seed)
    for part in parts.values():
        part.reset_parameters()
    return Function(function, **parts).eval()


def _image(seed, function, features):
    """function of a convolution's image (b, 2, 4, 4), then an affine readout of its features."""
    torch.manual_seed(seed)
    parts = {"conv": nn.Conv2d(1, 2, 3), "readout": nn.Linear(features, 2)}
    return Function(lambda x, conv, readout: readout(function(conv(x)).flatten(1)), **parts).eval()


def _pair(seed, function):
    """function of two affine images of a vector (b, 4), then a readout."""
    torch.manual_seed(seed)
    parts = {"a": nn.Linear(4, 4), "b": nn.Linear(4, 4), "readout": nn.Linear(4, 2)}
    return Function(lambda x, a, b, readout: readout(function(a(x), b(x))), **parts).eval()


SHAPES = {}  # of one input; (1, 6, 6) where nothing stands


def _vector(name, module):
    SHAPES[name] = (4,)
    return module


TWELVE = {
    "max pooling": _image(0, lambda y: F.max_pool2d(y, 2), 8),
    "average pooling": _image(1, lambda y: F.avg_pool2d(y.relu(), 2), 8),
    "residual addition": _vector("residual addition", _pair(2, lambda a, b: (a + b.relu()).relu())),
    "concatenation": _image(3, lambda y: torch.cat([y.relu(), y], 1)[:, :, ::2, ::2], 16),
    "maximum": _vector("maximum", _pair(4, torch.maximum)),
    "clamp, relu6": _vector("clamp, relu6", _pair(5, lambda a, b: F.relu6(8 * a) + b.clamp(-0.2, 0.3))),
    "leaky relu": _vector("leaky relu", _pair(6, lambda a, b: F.leaky_relu(a, 0.1) - F.leaky_relu(b, 0.3))),
    "prelu": _vector("prelu", _pair(7, lambda a, b: F.prelu(a, torch.tensor([0.1, 0.2, -0.3, 2.0]).to(a)) + b)),
    "absolute value": _vector("absolute value", _pair(8, lambda a, b: a.abs() - b.abs())),
    "global max": _image(9, lambda y: y.amax((2, 3)), 2),
    "transposed convolution": _net(
        15,
        lambda x, conv, up, readout: readout(up(conv(x).relu()).relu().flatten(1)),
        conv=nn.Conv2d(1, 2, 3, 2),
        up=nn.ConvTranspose2d(2, 1, 2, 2),
        readout=nn.Linear(16, 2),
    ),
    "upsampling": _net(
        11,
        lambda x, conv, then, readout: readout(then(F.interpolate(conv(x).relu(), scale_factor=2)).relu().flatten(1)),
        conv=nn.Conv2d(1, 2, 3, 3),
        then=nn.Conv2d(2, 1, 2),
        readout=nn.Linear(9, 2),
    ),
}
REPORTED = {
    "padded max pooling": _image(20, lambda y: F.max_pool2d(y, 3, 2, 1), 8),
    "two max poolings and a convolution": _net(
        21,
        lambda x, conv, then, readout: readout(F.max_pool2d(then(F.max_pool2d(conv(x), 2, 1)), 2).flatten(1)),
        conv=nn.Conv2d(1, 1, 3),
        then=nn.Conv2d(1, 2, 2),
        readout=nn.Linear(2, 2),
    ),
    "division": _vector("division", _pair(22, lambda a, b: a.relu() / 3 + b / torch.tensor([1.0, 2, 4, 8]).to(b))),
    "slice": _image(23, lambda y: y[:, :, 1:3, ::2].relu(), 8),
    "gather": _image(24, lambda y: y[:, :, [2, 0, 0]][..., :2].relu(), 12),
    "concatenation of unequal parts": _image(25, lambda y: torch.cat([y.relu(), y[:, :1]], 1)[:, :, :2, :2], 12),
    "global average": _image(26, lambda y: F.adaptive_avg_pool2d(y.relu(), 1), 2),
    "dilated and grouped convolution": _net(
        27,
        lambda x, conv, then, readout: readout(then(conv(x).relu()).relu().flatten(1)),
        conv=nn.Conv2d(1, 2, 3),
        then=nn.Conv2d(2, 2, 2, dilation=2, groups=2),
        readout=nn.Linear(8, 2),
    ),
}
MODELS = TWELVE | REPORTED


def shape_of(name):
    return SHAPES.get(name, (1, 6, 6))


def _padded():
    """The sum of the maxima of four windows: those of rows and columns 0, 1 and 3, 4, 5."""
    model = nn.Sequential(nn.MaxPool2d(3, 4, 1), nn.Flatten(), nn.Linear(4, 1)).eval()
    with torch.no_grad():
        model[2].weight.fill_(1.0)
        model[2].bias.zero_()
    return model


# Without its padding the windows have as many places, so that Marabou (issue 614) reads something else in silence.
PADDED = _padded()
PADDED_SHAPE = (1, 7, 7)
