"""Pre-activation ResNet: He, Zhang, Ren, Sun, "Identity mappings in deep residual networks" (ECCV 2016).

Published parameters and test error on CIFAR-10 with crops and flips, median of five runs: 110 layers 6.37 %, 164 layers
1.7 M 5.46 %, 1001 layers 10.2 M 4.92 %. `order` spans Table 2; error with 110 and 164 layers:

    original       relu(BN conv relu BN conv(x) + x)       6.61 %    5.93 %
    bn-after       relu(BN(conv relu BN conv(x) + x))      8.17 %    6.50 %
    relu-before    relu(BN conv relu BN conv(x)) + x       7.84 %    6.14 %
    relu-only      BN conv relu BN conv relu(x) + x        6.71 %    5.91 %
    full           conv relu BN conv relu BN(x) + x        6.37 %    5.46 %

The last three orders are full pre-activation without its first ReLU, with a BN behind the branch, and both: Han et al.,
"Deep pyramidal residual networks" (CVPR 2017), Figure 6; a 56-layer rerun (hysts) 6.47 % -> 6.14, 6.43, 5.85 %.

Where the shape changes, the shortcut of units of two convolutions is the zero-padded identity (option A), as in the
nets they are compared with, and that of bottlenecks a 1x1 convolution without BN (option B), as in the authors' code.
It is fed, like the first unit of all, with the pre-activated input, and a bottleneck strides in its first convolution.
WRN-28-10 (Zagoruyko & Komodakis, BMVC 2016; 36.5 M, 4.00 %) is depth=26, width_factor=10, option="B": its authors count
the two projections too.
"""

from typing import Literal

from torch import nn

from skipform.arguments import Depth, Size
from skipform.nets.blocks import (
    Merge,
    MergeKind,
    Skip,
    Staged,
    ZeroPadded,
    chain,
    classifier,
    conv,
    init_he,
    stack,
    units,
)

SURVEY = {
    "paper": "He et al., ECCV 2016",
    "year": 2016,
    "skip": "addition",
    "levels": 1,
}
VARIANTS = {
    "PreResNet-20": ({"depth": 20}, 20, 269_722),
    "PreResNet-56": ({"depth": 56}, 56, 853_018),
    "PreResNet-110": ({"depth": 110}, 110, 1_727_962),
    "PreResNet-110 option B": ({"depth": 110, "option": "B"}, 110, 1_730_522),
    "PreResNet-164": ({"depth": 164, "bottleneck": True}, 164, 1_703_258),
    "PreResNet-1001": ({"depth": 1001, "bottleneck": True}, 1001, 10_327_706),
    "original 110": ({"depth": 110, "order": "original"}, 110, 1_727_962),
    "bn-after 110": ({"depth": 110, "order": "bn-after"}, 110, 1_727_962),
    "relu-before 110": ({"depth": 110, "order": "relu-before"}, 110, 1_727_962),
    "relu-only 110": ({"depth": 110, "order": "relu-only"}, 110, 1_727_962),
    "WRN-28-10": ({"depth": 26, "width_factor": 10, "option": "B"}, 28, 36_479_194),
}
ORDERS = {  # letters of `chain`: before the shortcut's start, in the branch of two convolutions, after the merge
    "original": ("", "cbrcb", "r"),
    "bn-after": ("", "cbrc", "br"),
    "relu-before": ("", "cbrcbr", ""),
    "relu-only": ("r", "cbrcb", ""),
    "full": ("br", "cbrc", ""),
    "no-first-relu": ("b", "cbrc", ""),
    "last-bn": ("br", "cbrcb", ""),
    "no-first-relu-last-bn": ("b", "cbrcb", ""),
}


def build(
    *,
    in_channels: Size = 3,
    num_classes: Size = 10,
    depth: Depth = 110,
    width: Size = 16,
    width_factor: Size = 1,
    bottleneck: bool = False,
    order: Literal[
        "original",
        "bn-after",
        "relu-before",
        "relu-only",
        "full",
        "no-first-relu",
        "last-bn",
        "no-first-relu-last-bn",
    ] = "full",
    option: Literal["A", "B"] | None = None,
    skip: MergeKind = "add",
) -> nn.Module:
    """(n, in_channels, h, w) -> (n, num_classes); unit: x -> after(merge(branch(before(x)), x)).

    depth: 6n+2, with bottlenecks 9n+2.
    width: channels of the stem. width_factor: the first stage has this times as many, the widening factor of wide
        residual networks; every following stage doubles them, and bottlenecks put out four times as many.
    option: the shortcut where the shape changes, by default A, of bottlenecks B; see above.
    order: of convolution, batch norm and ReLU, see above.
    skip: the kind of merge, see `Merge`; "none": the plain twin, without any shortcut.
    """
    count = units("preact", depth, 9 if bottleneck else 6, 2)
    before, branch, after = ORDERS[order]
    channels = [width * width_factor * 2**i * (4 if bottleneck else 1) for i in range(3)]
    padded = (option or ("B" if bottleneck else "A")) == "A"
    first = iter([True])

    def unit(c_in: int, c: int, stride: int) -> nn.Module:
        if bottleneck:
            convolutions = [conv(c_in, c // 4, 1, stride), conv(c // 4, c // 4), conv(c // 4, c, 1)]
        else:
            convolutions = [conv(c_in, c, 3, stride), conv(c, c)]
        letters = branch.replace("c", "cbrc", 1) if bottleneck else branch
        end, changed = chain(after, c), stride > 1 or c_in != c
        side: nn.Module = nn.Identity()
        if changed and skip != "none":
            side = ZeroPadded(c_in, c, stride) if padded else conv(c_in, c, 1, stride)
        if next(first, False) or changed:
            return nn.Sequential(
                *chain(before, c_in), Skip(chain(letters, c_in, *convolutions), side, Merge(skip, c), end)
            )
        return Skip(chain(before + letters, c_in, *convolutions), side, Merge(skip, c), end)

    body = stack(width, channels, [count] * 3, unit)
    start = chain({"": "cbr", "r": "cb"}.get(before, "c"), in_channels, conv(in_channels, width))
    last = chain({"": "", "r": "r"}.get(before, "br"), channels[-1])
    head = nn.Sequential(*last, *classifier(channels[-1], num_classes))
    return init_he(Staged(start, body, head, channels))
