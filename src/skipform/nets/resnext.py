"""ResNeXt: Xie, Girshick, Dollar, Tu, He, "Aggregated residual transformations for deep neural networks" (CVPR 2017).

CIFAR nets, Section 5.3, Table 7: depth 9n+2, three stages of bottlenecks with cardinality C and width d that put out
256, 512, 1024 channels, projection where the shape changes (option B). Published parameters and test error, mean of ten
runs:

    29, 8x64d    34.4 M   CIFAR-10+ 3.65 %   CIFAR-100+ 17.77 %
    29, 16x64d   68.1 M   CIFAR-10+ 3.58 %   CIFAR-100+ 17.31 %

These are of pre-activated units (unit="pre", see preact) in batches of 256; the authors' code has the original units in
batches of 128, which it calls better. ImageNet (stages=4, first="7x7"): 50, 32x4d, 25.0 M, top-1 error 22.2 %;
torchvision's net.
"""

from typing import Literal

from torch import nn

from skipform.arguments import Depth, Size
from skipform.errors import SkipformError
from skipform.nets.blocks import (
    Merge,
    MergeKind,
    ShortcutOption,
    Skip,
    Staged,
    bottleneck,
    chain,
    classifier,
    conv,
    init_he,
    shortcut,
    stack,
    stem,
    units,
)

SURVEY = {
    "paper": "Xie et al., CVPR 2017",
    "year": 2017,
    "skip": "addition",
    "levels": 1,
}
_IMAGENET = {"num_classes": 1000, "stages": 4, "first": "7x7"}
VARIANTS = {
    "ResNeXt-29 8x64d": ({"cardinality": 8, "bottleneck_width": 64}, 29, 34_426_698),
    "ResNeXt-29 16x64d": ({"cardinality": 16, "bottleneck_width": 64}, 29, 68_155_210),
    "ResNeXt-29 8x64d, pre": ({"cardinality": 8, "bottleneck_width": 64, "unit": "pre"}, 29, 34_423_114),
    "ResNeXt-50 32x4d": (
        {"depth": 50, "cardinality": 32, "bottleneck_width": 4} | _IMAGENET,
        50,
        25_028_904,
    ),
}
IMAGENET = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}  # Table 1


def build(
    *,
    in_channels: Size = 3,
    num_classes: Size = 10,
    depth: Depth = 29,
    cardinality: Size = 8,
    bottleneck_width: Size = 64,
    width: Size = 64,
    stages: Literal[3, 4] = 3,
    first: Literal["3x3", "7x7"] = "3x3",
    option: ShortcutOption = "B",
    unit: Literal["post", "pre"] = "post",
    skip: MergeKind = "add",
) -> nn.Module:
    """(n, in_channels, h, w) -> (n, num_classes).

    unit: "post" x -> relu(merge(sum of C paths, shortcut(x))), "pre" x -> merge(sum of C pre-activated paths, x), with
        a 1x1 convolution of the pre-activated x where the shape changes.
    depth: 9n+2 in three stages, 50 or 101 in four.
    width: channels of the stem; the stages put out 4, 8, 16, ... times as many.
    cardinality, bottleneck_width: C and d of the first stage; d doubles at every following one. The C paths are one
        grouped convolution, Figure 3(c).
    first: the convolution of the stem. option: shortcuts, as for resnet.
    skip: the kind of merge, see `Merge`; "none": the plain twin, without any shortcut.
    """
    if stages == 4 and depth not in IMAGENET:
        accepted = ", ".join(map(str, IMAGENET))
        raise SkipformError(f"net 'resnext': depth={depth} in 4 stages is not accepted; it takes {accepted}")
    if unit == "pre" and first == "7x7":
        raise SkipformError("net 'resnext': unit='pre' with the 7x7 stem is not accepted; it takes first='3x3'")
    counts = IMAGENET[depth] if stages == 4 else (units("resnext", depth, 9, 2),) * 3
    channels = [4 * width * 2**i for i in range(stages)]

    def block(c_in: int, c: int, stride: int) -> nn.Module:
        c_mid = cardinality * bottleneck_width * c // channels[0]
        side = nn.Identity() if skip == "none" else shortcut(option, c_in, c, stride)
        if unit == "post":
            return Skip(bottleneck(c_in, c_mid, c, stride, cardinality), side, Merge(skip, c), nn.ReLU())
        before, branch = chain("br", c_in), bottleneck(c_in, c_mid, c, stride, cardinality, "cbrcbrc")
        if isinstance(side, nn.Identity):
            return Skip(before.extend(branch), side, Merge(skip, c))
        return nn.Sequential(*before, Skip(branch, conv(c_in, c, 1, stride), Merge(skip, c)))

    body = stack(width, channels, counts, block)
    if unit == "post":
        return init_he(Staged(stem(first, in_channels, width), body, classifier(channels[-1], num_classes), channels))
    last = chain("br", channels[-1])
    head = nn.Sequential(*last, *classifier(channels[-1], num_classes))
    return init_he(Staged(conv(in_channels, width), body, head, channels))
