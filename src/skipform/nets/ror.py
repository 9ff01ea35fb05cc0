"""RoR: Zhang, Sun, Han, Yuan, Guo, Liu, "Residual networks of residual networks" (TCSVT 2018).

Shortcuts around shortcuts. Level 1 (root) spans all three stages, level 2 (middle) each stage, level 3 (final) each
unit; levels=1 is the final level alone (a ResNet), 2 adds the root, 3 the middle. Root and middle are 1x1 projections.
Test error on CIFAR-10 with crops and flips, SD with stochastic depth p_L = 0.5:

    RoR-3-164 + SD 4.86 %   Pre-RoR-3-164 + SD 4.51 %   RoR-3-WRN40-4 + SD 4.09 %
    RoR-3-WRN58-4 + SD 3.77 % (the paper prints 13.3 M; 58 layers of these stages make 13.6 M)

The paper prints 1.7 M parameters for RoR-3-110 and 2.5 M for RoR-3-164. Both cannot be right: depth = 6n+8 gives 1.64 M
and 2.51 M, and 1.7 M is ResNet-110, which has one unit more a stage. unit="pre" is Pre-RoR; with width_factor > 1 it is
RoR-3-WRN. As in both public re-implementations, a 2x2 max pooling lies between stages, and 2 * 3n convolutions, 2
projections, 4 upper shortcuts, stem and head make depth 6n+8; the wide nets are named 6n+4. Projections of
post-activation nets have batch norm, those of pre-activation nets have none: the paper's figures leave it open.
"""

from typing import Literal

from torch import nn
from torchvision.ops import StochasticDepth

from skipform.arguments import Depth, PartialShare, Size
from skipform.nets.blocks import Merge, MergeKind, Skip, basic, chain, classifier, conv, conv_bn, init_he, units

SURVEY = {
    "paper": "Zhang et al., TCSVT 2018",
    "year": 2018,
    "skip": "addition",
    "levels": 3,
}
VARIANTS = {
    "RoR-3-56": ({"depth": 56}, 56, 762_746),
    "RoR-3-110": ({"depth": 110}, 110, 1_637_690),
    "RoR-3-164": ({"depth": 164}, 164, 2_512_634),
    "RoR-2-110": ({"depth": 110, "levels": 2}, 110, 1_634_650),
    "RoR-1-110": ({"depth": 110, "levels": 1}, 110, 1_633_498),
    "Pre-RoR-3-110": ({"depth": 110, "unit": "pre"}, 110, 1_637_146),
    "RoR-3-WRN40-4": ({"depth": 40, "unit": "pre", "width_factor": 4}, 40, 8_995_290),
    "RoR-3-WRN58-4": ({"depth": 58, "unit": "pre", "width_factor": 4}, 58, 13_645_530),
}


def build(
    *,
    in_channels: Size = 3,
    num_classes: Size = 10,
    depth: Depth = 110,
    width: Size = 16,
    width_factor: Size = 1,
    levels: Literal[1, 2, 3] = 3,
    unit: Literal["post", "pre"] = "post",
    skip: MergeKind = "add",
    stochastic_depth: PartialShare = 0.0,
) -> nn.Module:
    """(n, in_channels, h, w) -> (n, num_classes).

    depth: 6n+8, or 6n+4 where width_factor > 1. width: channels of the stem. width_factor: the first stage has this
        times as many, the widening factor of wide residual networks; every following stage doubles them.
    unit: "post" x -> relu(BN conv relu BN conv(x) + x), the ReLU after the outermost sum that ends there; "pre"
        x -> conv relu BN conv relu BN(x) + x.
    levels: of shortcuts. skip: the kind of merge of all levels, see `Merge`; "none": no shortcut of any level.
    stochastic_depth: 1 - p_L, as for resnet, on the final level.
    """
    n = units("ror", depth, 6, 4 if width_factor > 1 else 8)
    post = unit == "post"
    order, after = ("cbrcb", "r") if post else ("brcbrc", "")

    def project(c_in: int, c: int, stride: int = 1) -> nn.Module:
        if skip == "none":
            return nn.Identity()
        return conv_bn(c_in, c, 1, stride) if post else conv(c_in, c, 1, stride)

    stages = nn.Sequential()
    c_in = width
    for stage, c in enumerate([width * width_factor * 2**i for i in range(3)]):
        rooted = levels > 1 and stage == 2
        entry, blocks = c_in, nn.Sequential()
        for i in range(n):
            drop = StochasticDepth(stochastic_depth * (stage * n + i + 1) / (3 * n), "batch")
            side = nn.Identity() if c_in == c else project(c_in, c)
            last = chain("" if i == n - 1 and (levels == 3 or rooted) else after, c)
            blocks.append(Skip(basic(c_in, c, order=order).append(drop), side, Merge(skip, c), last))
            c_in = c
        if levels == 3:
            last = chain("" if rooted else after, c)
            blocks = nn.Sequential(Skip(blocks, project(entry, c), Merge(skip, c), last))
        if stage < 2:
            blocks.append(nn.MaxPool2d(2, ceil_mode=True))
        stages.append(blocks)  # n c h/2 w/2
    body: nn.Module = stages
    if levels > 1:
        body = Skip(stages, project(width, c_in, 4), Merge(skip, c_in), chain(after, c_in))
    first = chain("cbr" if post else "c", in_channels, conv(in_channels, width))
    return init_he(nn.Sequential(first, body, chain("" if post else "br", c_in), classifier(c_in, num_classes)))
