"""Shortcuts that are not the identity: He et al., "Identity mappings in deep residual networks" (ECCV 2016), Table 1.

The original two-convolution unit x -> relu(f F(x) + s(x)) of the CIFAR ResNets under each shortcut of the table. Test
error of 110 layers on CIFAR-10 with crops and flips, median of five runs ("fail": above 20 %):

    identity     6.61 %                       exclusive    (1 - g) x, g F    8.70 % at gate_bias=-6, fail at 0..-5
    constant     0.5 x, 0.5 F   12.35 %       gated        (1 - g) x         6.91 % at gate_bias=-6, 12.86 % at 0
                 0.5 x, F       fail          convolution  1x1, BN, all units 12.22 %
                 0 x, F         fail          dropout      of x, 0.5         fail

g = sigmoid(1x1 convolution of x, with bias). Where the shape changes, x is the zero-padded identity (option A); the
paper leaves that open. Srivastava (2025) disputes the paper's claim on gates, see highway.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from skipform.arguments import Depth, Share, Size
from skipform.nets.blocks import (
    Gated,
    Merge,
    Skip,
    Staged,
    basic,
    classifier,
    conv_bn,
    init_he,
    shortcut,
    stack,
    stem,
    units,
)

SURVEY = {
    "paper": "He et al., ECCV 2016, Table 1",
    "year": 2016,
    "skip": "addition, gated or scaled",
    "levels": 1,
}
VARIANTS = {
    "identity 110": ({"kind": "identity"}, 110, 1_727_962),
    "constant 110": ({"kind": "constant"}, 110, 1_727_962),
    "exclusive 110": ({"kind": "exclusive"}, 110, 1_824_186),
    "gated 110": ({"kind": "gated"}, 110, 1_824_186),
    "convolution 110": ({"kind": "convolution"}, 110, 1_826_202),
    "dropout 110": ({"kind": "dropout"}, 110, 1_727_962),
}


class Scaled(nn.Module):
    """x -> factor * x."""

    def __init__(self, factor: float):
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * x


class GatedShortcut(nn.Module):
    """x -> (1 - gate(x)) * shortcut(x)."""

    def __init__(self, shortcut: nn.Module, gate: nn.Module):
        super().__init__()
        self.shortcut, self.gate = shortcut, gate

    def forward(self, x: Tensor) -> Tensor:
        return torch.rsub(self.gate(x), 1) * self.shortcut(x)


def build(
    *,
    in_channels: Size = 3,
    num_classes: Size = 10,
    depth: Depth = 110,
    width: Size = 16,
    kind: Literal["identity", "constant", "exclusive", "gated", "convolution", "dropout"] = "identity",
    scale: float = 0.5,
    branch_scale: float = 0.5,
    gate_bias: float = -6.0,
    dropout: Share = 0.5,
) -> nn.Module:
    """(n, in_channels, h, w) -> (n, num_classes).

    depth: 6n+2. width: channels of the first stage, doubled at every following one. kind: of shortcut, see above.
    scale, branch_scale: of shortcut and branch, for "constant". gate_bias: the gates' initial bias, for "exclusive" and
        "gated". dropout: for "dropout".
    """

    def block(c_in: int, c: int, stride: int) -> nn.Module:
        branch, same = basic(c_in, c, stride), shortcut("A", c_in, c, stride)
        if kind in ("exclusive", "gated"):
            gate = nn.Sequential(nn.Conv2d(c_in, c, 1, stride), nn.Sigmoid())
            if kind == "exclusive":
                return nn.Sequential(Gated(branch, same, gate), nn.ReLU())
            return Skip(branch, GatedShortcut(same, gate), Merge("add", c), nn.ReLU())
        if kind == "constant":
            branch, same = branch.append(Scaled(branch_scale)), nn.Sequential(same, Scaled(scale))
        elif kind == "convolution":
            same = conv_bn(c_in, c, 1, stride)
        elif kind == "dropout":
            same = nn.Sequential(same, nn.Dropout(dropout))
        return Skip(branch, same, Merge("add", c), nn.ReLU())

    channels = [width, 2 * width, 4 * width]
    body = stack(width, channels, [units("shortcuts", depth, 6, 2)] * 3, block)
    net = init_he(Staged(stem("3x3", in_channels, width), body, classifier(channels[-1], num_classes), channels))
    for module in net.modules():
        if isinstance(module, nn.Conv2d) and module.bias is not None:
            nn.init.constant_(module.bias, gate_bias)
    return net
