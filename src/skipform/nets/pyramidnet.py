"""PyramidNet: Han, Kim, Kim, "Deep pyramidal residual networks" (CVPR 2017), Table 4.

Channels grow with every unit, from 16 to 16 + alpha (additive) or 16 alpha (multiplicative); unit
x -> BN conv relu BN conv BN(x) + x, no ReLU at the start nor after the sum; the shortcut is averaged 2x2 where the unit
strides and padded with zero channels. Published parameters and test error, CIFAR-10+ / CIFAR-100+:

    110, alpha 48    1.7 M   4.62 / 23.31 %     multiplicative  110, alpha 4.75   1.7 M   4.62 / 23.16 %
    110, alpha 84    3.8 M   4.27 / 20.21 %                     110, alpha 8      3.8 M   4.50 / 20.94 %
    110, alpha 270   28.3 M  3.73 / 18.25 %                     110, alpha 27     28.3 M  4.06 / 18.79 %
    164 bottleneck, alpha 270   27.0 M   3.48 / 17.01 %

The paper rounds channel counts down, its code to the nearest integer; independent code has the counts of the latter.
"""

from math import floor
from typing import Literal

from torch import nn

from skipform.arguments import Depth, NotNegative, Size
from skipform.nets.blocks import (
    Merge,
    MergeKind,
    Skip,
    Staged,
    basic,
    classifier,
    conv_bn,
    init_he,
    shortcut,
    units,
)
from skipform.nets.blocks import bottleneck as deep_branch

SURVEY = {
    "paper": "Han et al., CVPR 2017",
    "year": 2017,
    "skip": "addition",
    "levels": 1,
}
_DEEP = {"depth": 164, "bottleneck": True}
_TIMES = {"growth": "multiplicative"}
VARIANTS = {
    "PyramidNet-110 a48": ({"alpha": 48}, 110, 1_772_706),
    "PyramidNet-110 a84": ({"alpha": 84}, 110, 3_904_446),
    "PyramidNet-110 a270": ({"alpha": 270}, 110, 28_485_477),
    "PyramidNet-164 a48": ({"alpha": 48} | _DEEP, 164, 1_715_442),
    "PyramidNet-164 a84": ({"alpha": 84} | _DEEP, 164, 3_757_494),
    "PyramidNet-164 a270": ({"alpha": 270} | _DEEP, 164, 27_216_021),
    "PyramidNet-110 x4.75": ({"alpha": 4.75} | _TIMES, 110, 1_762_206),
    "PyramidNet-110 x8": ({"alpha": 8} | _TIMES, 110, 3_876_547),
    "PyramidNet-110 x27": ({"alpha": 27} | _TIMES, 110, 28_361_693),
}


def build(
    *,
    in_channels: Size = 3,
    num_classes: Size = 10,
    depth: Depth = 110,
    alpha: NotNegative = 48,
    growth: Literal["additive", "multiplicative"] = "additive",
    width: Size = 16,
    bottleneck: bool = False,
    skip: MergeKind = "add",
) -> nn.Module:
    """(n, in_channels, h, w) -> (n, num_classes).

    depth: 6n+2, with bottlenecks (which put out four times the channels) 9n+2; of the N = 3n units, unit k has
        width + alpha k / N channels, eq. (2), or width alpha^(k / N), eq. (3), rounded to the nearest integer.
    width: channels of the stem.
    skip: the kind of merge, see `Merge`; "none": the plain twin.
    """
    n = units("pyramidnet", depth, 9 if bottleneck else 6, 2)
    body: list[nn.Module] = []
    channels: list[int] = []
    c_in = width
    for stage in range(3):
        blocks = nn.Sequential()
        for k in range(stage * n + 1, stage * n + n + 1):
            grown = width + alpha * k / (3 * n) if growth == "additive" else width * alpha ** (k / (3 * n))
            c = floor(grown + 0.5)
            stride = 2 if stage and not blocks else 1
            if bottleneck:
                c_out, branch = 4 * c, deep_branch(c_in, c, 4 * c, stride, order="bcbrcbrcb")
            else:
                c_out, branch = c, basic(c_in, c, stride, order="bcbrcb")
            # at the border the average is over the part of its window inside, which gives the size of the branch
            halved = nn.AvgPool2d(2, ceil_mode=True) if stride == 2 else nn.Identity()
            side = nn.Sequential(halved, shortcut("A", c_in, c_out))
            blocks.append(Skip(branch, side, Merge(skip, c_out)))
            c_in = c_out
        body.append(blocks)  # n c_in h/s w/s
        channels.append(c_in)
    head = nn.Sequential(nn.BatchNorm2d(c_in), nn.ReLU(), *classifier(c_in, num_classes))
    return init_he(Staged(conv_bn(in_channels, width), body, head, channels))
