"""DenseNet: Huang, Liu, van der Maaten, Weinberger, "Densely connected convolutional networks" (CVPR 2017), Table 2.

Three dense blocks of layers x -> (x; H(x)), H = BN-ReLU-conv3x3 with k new channels; between blocks
BN-ReLU-conv1x1-average 2x2. BC: H has a 1x1 convolution to 4k channels first (B), transitions halve the channels (C).
As in the authors' code, convolutions start at N(0, 2 / fan_out), and `dropout` follows each of them but the first.
Published parameters and test error on CIFAR-10 with crops and flips are in VARIANTS.

The basic nets start with 16 channels, BC with 2k, as the paper says and its counts confirm (the authors' later code
starts with 2k everywhere: 1,059,298 for (40, 12)). ImageNet (Table 1, first="7x7"): 121, 169, 201, 161 layers,
torchvision's nets.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from skipform.arguments import Depth, PositiveShare, Share, Size
from skipform.errors import SkipformError
from skipform.nets.blocks import Staged, bn_relu_conv, classifier, conv, init_he, stem, units

SURVEY = {
    "paper": "Huang et al., CVPR 2017",
    "year": 2017,
    "skip": "concatenation",
    "levels": 1,
}
_BC = {"bottleneck": True, "compression": 0.5}
_IMAGENET = _BC | {"num_classes": 1000, "first": "7x7"}
VARIANTS = {
    "DenseNet (40, 12)": ({"depth": 40, "growth": 12}, 40, 1_019_722),
    "DenseNet (100, 12)": ({"depth": 100, "growth": 12}, 100, 6_979_642),
    "DenseNet (100, 24)": ({"depth": 100, "growth": 24}, 100, 27_249_082),
    "DenseNet-BC (100, 12)": ({"depth": 100, "growth": 12} | _BC, 100, 769_162),
    "DenseNet-BC (250, 24)": ({"depth": 250, "growth": 24} | _BC, 250, 15_324_406),
    "DenseNet-BC (190, 40)": ({"depth": 190, "growth": 40} | _BC, 190, 25_624_430),
    "DenseNet-121": ({"depth": 121, "growth": 32} | _IMAGENET, 121, 7_978_856),
    "DenseNet-161": ({"depth": 161, "growth": 48} | _IMAGENET, 161, 28_681_000),
}
IMAGENET = {121: (6, 12, 24, 16), 169: (6, 12, 32, 32), 201: (6, 12, 48, 32), 161: (6, 12, 36, 24)}


class DenseLayer(nn.Module):
    """x -> (x; H(x))."""

    def __init__(self, branch: nn.Module):
        super().__init__()
        self.branch = branch

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat((x, self.branch(x)), 1)  # n c+k h w


class Checkpointed(nn.Sequential):
    """The layers in order, whose inner tensors are computed again in the backward pass instead of stored: a dense block
    takes linear instead of quadratic memory. The second pass leaves batch norm's running statistics as they are."""

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(super().forward, x, use_reentrant=False, context_fn=partial(_contexts, self))


def _contexts(module: nn.Module) -> tuple[AbstractContextManager, AbstractContextManager]:
    return nullcontext(), _frozen_statistics(module)


@contextmanager
def _frozen_statistics(module: nn.Module) -> Iterator[None]:
    """Within it, the batch norms of the module leave their running statistics as they are."""
    norms = [m for m in module.modules() if isinstance(m, nn.BatchNorm2d)]
    before = [(norm.momentum, norm.get_buffer("num_batches_tracked").clone()) for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield  # checkpoint leaves it by an exception once the last tensor it needs is there
    finally:
        for norm, (momentum, count) in zip(norms, before, strict=True):
            norm.momentum = momentum
            norm.get_buffer("num_batches_tracked").copy_(count)


def build(
    *,
    in_channels: Size = 3,
    num_classes: Size = 10,
    depth: Depth = 100,
    growth: Size = 12,
    bottleneck: bool = False,
    compression: PositiveShare = 1.0,
    dropout: Share = 0.0,
    first: Literal["3x3", "7x7"] = "3x3",
    skip: Literal["concat", "none"] = "concat",
    memory_efficient: bool = False,
) -> nn.Module:
    """(n, in_channels, h, w) -> (n, num_classes).

    depth: 3n+4, with bottlenecks 6n+4; 121, 169, 201, 161 with the 7x7 stem.
    growth: k. compression: theta, the share of the channels that a transition keeps.
    skip: "none" is x -> H(x), a plain chain of `growth` channels.
    memory_efficient: compute the inner tensors of H again in the backward pass; gradients and statistics are the same.
    """
    if first == "7x7" and depth not in IMAGENET:
        accepted = ", ".join(map(str, IMAGENET))
        raise SkipformError(f"net 'densenet': depth={depth} with the 7x7 stem is not accepted; it takes {accepted}")
    counts = IMAGENET[depth] if first == "7x7" else (units("densenet", depth, 6 if bottleneck else 3, 4),) * 3
    c = 2 * growth if bottleneck else 16

    def layer(c_in: int, c_out: int, kernel: int = 3) -> list[nn.Module]:
        return [*bn_relu_conv(c_in, c_out, kernel), *([nn.Dropout(dropout)] if dropout else [])]

    start = stem(first, in_channels, c) if first == "7x7" else conv(in_channels, c)
    stages: list[nn.Module] = []
    channels: list[int] = []
    for count in counts:
        layers: list[nn.Module] = []
        if stages:  # at the border the average is over the part of its window inside, so that small images are accepted
            layers = [*layer(c, int(c * compression), 1), nn.AvgPool2d(2, ceil_mode=True)]
            c = int(c * compression)
        for _ in range(count):
            wide = 4 * growth
            branch = [*layer(c, wide, 1), *layer(wide, growth)] if bottleneck else layer(c, growth)
            H = (Checkpointed if memory_efficient else nn.Sequential)(*branch)
            layers.append(DenseLayer(H) if skip == "concat" else H)
            c = c + growth if skip == "concat" else growth
        stages.append(nn.Sequential(*layers))  # n c h/2 w/2
        channels.append(c)
    head = nn.Sequential(nn.BatchNorm2d(c), nn.ReLU(), *classifier(c, num_classes))
    return init_he(Staged(start, stages, head, channels))
