"""ResNet: He, Zhang, Ren, Sun, "Deep residual learning for image recognition" (CVPR 2016).

CIFAR nets, Section 4.2, Table 6: depth 6n+2, a 3x3 stem, three stages of n two-convolution blocks with 16, 32, 64
channels, option A shortcuts. Published parameters and test error on CIFAR-10 with crops and flips:

    20    0.27 M  8.75 %        44    0.66 M  7.17 %        110    1.7 M   6.43 % (6.61 +- 0.16 over five runs)
    32    0.46 M  7.51 %        56    0.85 M  6.97 %        1202   19.4 M  7.93 %

ImageNet nets, Table 1 (stages=4, first="7x7", width=64): 18, 34 of two-convolution blocks, 50, 101, 152 of bottlenecks;
ten-crop top-1 error 27.88, 25.03 (A), 22.85, 21.75, 21.43 %. With option B they are torchvision's. Deviation, as there:
a bottleneck strides in its 3x3 convolution. With first="3x3" the four-stage nets take small images ("CIFAR ResNet-18").

skip="none" is the plain twin: under option A the same parameters, no skip. Stochastic depth: Huang et al. (ECCV 2016),
110 layers 6.41 -> 5.25 %.
"""

from typing import Literal

from torch import nn
from torchvision.ops import StochasticDepth

from skipform.arguments import Depth, PartialShare, Size
from skipform.errors import SkipformError
from skipform.nets.blocks import (
    Merge,
    MergeKind,
    ShortcutOption,
    Skip,
    Staged,
    basic,
    bottleneck,
    classifier,
    init_he,
    shortcut,
    stack,
    stem,
    units,
)

SURVEY = {
    "paper": "He et al., CVPR 2016",
    "year": 2016,
    "skip": "addition",
    "levels": 1,
}
_SMALL = {"stages": 4, "width": 64, "option": "B"}
_IMAGENET = _SMALL | {"num_classes": 1000, "first": "7x7"}
VARIANTS = {
    "ResNet-20": ({"depth": 20}, 20, 269_722),
    "ResNet-32": ({"depth": 32}, 32, 464_154),
    "ResNet-44": ({"depth": 44}, 44, 658_586),
    "ResNet-56": ({"depth": 56}, 56, 853_018),
    "ResNet-110": ({"depth": 110}, 110, 1_727_962),
    "ResNet-1202": ({"depth": 1202}, 1202, 19_421_274),
    "plain-20": ({"depth": 20, "skip": "none"}, 20, 269_722),
    "plain-56": ({"depth": 56, "skip": "none"}, 56, 853_018),
    "ResNet-20 B": ({"depth": 20, "option": "B"}, 20, 272_474),
    "ResNet-56 B": ({"depth": 56, "option": "B"}, 56, 855_770),
    "ResNet-110 B": ({"depth": 110, "option": "B"}, 110, 1_730_714),
    "ResNet-110 C": ({"depth": 110, "option": "C"}, 110, 1_826_202),
    "CIFAR ResNet-18": ({"depth": 18} | _SMALL, 18, 11_173_962),
    "ResNet-18": ({"depth": 18} | _IMAGENET, 18, 11_689_512),
    "ResNet-34": ({"depth": 34} | _IMAGENET, 34, 21_797_672),
    "ResNet-50": ({"depth": 50} | _IMAGENET, 50, 25_557_032),
    "ResNet-101": ({"depth": 101} | _IMAGENET, 101, 44_549_160),
    "ResNet-152": ({"depth": 152} | _IMAGENET, 152, 60_192_808),
}
IMAGENET = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}  # Table 1


def build(
    *,
    in_channels: Size = 3,
    num_classes: Size = 10,
    depth: Depth = 20,
    width: Size = 16,
    stages: Literal[3, 4] = 3,
    first: Literal["3x3", "7x7"] = "3x3",
    option: ShortcutOption = "A",
    skip: MergeKind = "add",
    stochastic_depth: PartialShare = 0.0,
) -> nn.Module:
    """(n, in_channels, h, w) -> (n, num_classes); block: x -> relu(merge(F(x), shortcut(x))).

    depth: 6n+2 in three stages (Section 4.2); 18, 34, 50, 101, 152 in four (Table 1).
    width: channels of the first stage, doubled at each following one (bottlenecks put out four times as many).
    first: the convolution of the stem.
    option: shortcuts A zero-padded identity, B projection where the shape changes, C projection everywhere.
    skip: the kind of merge, see `Merge`; "none": the plain twin, without any shortcut.
    stochastic_depth: 1 - p_L; in training, block l of L is dropped with probability (1 - p_L) l/L for the whole
        mini-batch. Branches are scaled by 1/p_l in training where the paper scales by p_l in testing: the same
        expectation.
    """
    if stages == 4 and depth not in IMAGENET:
        accepted = ", ".join(map(str, IMAGENET))
        raise SkipformError(f"net 'resnet': depth={depth} in 4 stages is not accepted; it takes {accepted}")
    counts = IMAGENET[depth] if stages == 4 else (units("resnet", depth, 6, 2),) * 3
    deep = stages == 4 and depth >= 50
    channels = [width * 2**i * (4 if deep else 1) for i in range(stages)]
    drops = (stochastic_depth * (block + 1) / sum(counts) for block in range(sum(counts)))

    def block(c_in: int, c: int, stride: int) -> nn.Module:
        branch = bottleneck(c_in, c // 4, c, stride) if deep else basic(c_in, c, stride)
        side = nn.Identity() if skip == "none" else shortcut(option, c_in, c, stride)
        return Skip(branch.append(StochasticDepth(next(drops), "batch")), side, Merge(skip, c), nn.ReLU())

    body = stack(width, channels, counts, block)
    return init_he(Staged(stem(first, in_channels, width), body, classifier(channels[-1], num_classes), channels))
