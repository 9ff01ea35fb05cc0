"""Highway network: Srivastava, Greff, Schmidhuber, "Training very deep networks" (NIPS 2015), and its return in 2025.

Layer x -> t * H(x) + (1 - t) * x, t = sigmoid(T(x)) with the bias of T starting below zero, so that a deep net starts
near the identity. Published on CIFAR-10 with translation and mirroring:

    19 layers   2.3 M    7.60 % (7.69 +- 0.12), Table 3       32 layers   1.25 M   8.80 %, Table 2

body="convolution": H = relu(conv), T = conv, the paper's nets; 19 layers as in the authors' configuration file (stages
of 32, 80, 128 channels, the last 1x1 convolution with 100), whose 20 % dropout before each stage and before the
classifier is `dropout`. This is the fully convolutional net of Table 3; the 7.54 % (7.72 +- 0.16) of Table 2 belongs to
19 layers of which the last is fully connected. The fields of the 32 layers alternate between 3x3 and 1x1.
Deviation: the channels of the 32 layers are not published; 32, 64, 96 gives their 1.25 M and is our reading.

body="block": Highway-110 of Srivastava, rupeshks.cc/blog/skip.html (2025): H and T both BN conv relu BN conv, H with a
last ReLU, the bias of T's last BN starting at -6, no ReLU after the merge, projection where the shape changes.
3,457,562 parameters; at width_factor 0.875 2,649,918 and 6.04 % error, where the same recipe gives ResNet-110 6.25 %
(one run each).
"""

from typing import Literal

from torch import nn

from skipform.arguments import Depth, Factor, Share, Size
from skipform.errors import SkipformError
from skipform.nets.blocks import Gated, Staged, basic, classifier, conv_bn_relu, init_he, shortcut, stack, units

SURVEY = {
    "paper": "Srivastava et al., NIPS 2015",
    "year": 2015,
    "skip": "gated addition",
    "levels": 1,
}
_BLOCK = {"depth": 110, "body": "block", "gate_bias": -6.0}
VARIANTS = {
    "Highway-19": ({"depth": 19}, 19, 2_256_838),
    "Highway-32": ({"depth": 32}, 32, 1_264_502),
    "Highway-110": (_BLOCK, 110, 3_457_562),
    "Highway-110 0.875": (_BLOCK | {"width_factor": 0.875}, 110, 2_649_918),
}
LAYERS = {  # depth -> per stage: channels, kernel sizes of the highway layers that follow a 3x3 convolution
    19: ((32, (3,) * 4), (80, (3,) * 5), (128, (3,) * 5)),
    32: tuple((channels, (1, 3) * 4 + (1,)) for channels in (32, 64, 96)),
}


def build(
    *,
    in_channels: Size = 3,
    num_classes: Size = 10,
    depth: Depth = 19,
    width_factor: Factor = 1.0,
    body: Literal["convolution", "block"] = "convolution",
    gate_bias: float = -2.0,
    dropout: Share = 0.0,
) -> nn.Module:
    """(n, in_channels, h, w) -> (n, num_classes).

    depth: 19 or 32; of blocks 6n+2.
    width_factor: times the channels above (of blocks 16, 32, 64, after a stem of 16 in any case).
    gate_bias: the initial bias of the gates.
    """
    if body == "block":
        return _blocks(in_channels, num_classes, units("highway", depth, 6, 2), width_factor, gate_bias)
    if depth not in LAYERS:
        accepted = " or ".join(map(str, LAYERS))
        raise SkipformError(f"net 'highway': depth={depth} of convolutions is not accepted; it takes {accepted}")
    stages: list[nn.Module] = []
    channels = [int(c * width_factor) for c, _ in LAYERS[depth]]
    c_in = in_channels
    for c, (_, fields) in zip(channels, LAYERS[depth], strict=True):
        pool = nn.MaxPool2d(2, ceil_mode=True) if stages else nn.Identity()
        stage = nn.Sequential(pool, nn.Dropout(dropout), nn.Conv2d(c_in, c, 3, padding=1), nn.ReLU())
        for k in fields:
            gate = nn.Sequential(nn.Conv2d(c, c, k, padding=k // 2), nn.Sigmoid())
            stage.append(Gated(nn.Sequential(nn.Conv2d(c, c, k, padding=k // 2), nn.ReLU()), nn.Identity(), gate))
        stages.append(stage)  # n c h/2 w/2
        c_in = c
    last = int(100 * width_factor)
    pooled, flat, linear = classifier(last, num_classes)
    head = nn.Sequential(nn.Conv2d(c_in, last, 1), nn.ReLU(), pooled, flat, nn.Dropout(dropout), linear)
    return _init_gates(_xavier(Staged(nn.Identity(), stages, head, channels)), gate_bias)


def _blocks(in_channels: int, num_classes: int, n: int, width_factor: float, gate_bias: float) -> nn.Module:
    def block(c_in: int, c: int, stride: int) -> nn.Module:
        gate = basic(c_in, c, stride).append(nn.Sigmoid())
        return Gated(basic(c_in, c, stride).append(nn.ReLU()), shortcut("B", c_in, c, stride), gate)

    channels = [int(c * width_factor) for c in (16, 32, 64)]
    body = stack(16, channels, [n] * 3, block)
    net = Staged(conv_bn_relu(in_channels, 16), body, classifier(channels[-1], num_classes), channels)
    return _init_gates(init_he(net, "fan_in"), gate_bias)


def _xavier(net: nn.Module) -> nn.Module:
    """Caffe's "xavier" filler: weights uniform with variance 1 / fan_in, biases 0."""
    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_uniform_(module.weight, nonlinearity="linear")
            nn.init.zeros_(module.get_parameter("bias"))
    return net


def _init_gates(net: nn.Module, gate_bias: float) -> nn.Module:
    """Set the bias of every gate's last affine layer to gate_bias, in place."""
    for module in net.modules():
        if isinstance(module, Gated):
            *_, affine, _sigmoid = module.gate.children()
            nn.init.constant_(affine.get_parameter("bias"), gate_bias)
    return net
