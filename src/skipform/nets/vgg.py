"""VGG, the plain convolutional net: Simonyan & Zisserman, "Very deep convolutional networks" (ICLR 2015), Table 1.

The CIFAR net with batch norm: the 13 convolutions of VGG-16 (column D) and one linear layer instead of three,
14,728,266 parameters; test error on CIFAR-10 with crops and flips 7.36 % (kuangliu/pytorch-cifar, one run), 7.29 %
(hysts, who calls the same net VGG-15, median of 3). Deviation: the ImageNet net of the paper has 138 M parameters, 124
M of them in linear layers that are left out here. Convolutions before a batch norm have a bias, as in the nets counted
above.
"""

from typing import Literal

from torch import nn

from skipform.arguments import Size
from skipform.nets.blocks import Staged, classifier, init_he

SURVEY = {
    "paper": "Simonyan & Zisserman, ICLR 2015",
    "year": 2015,
    "skip": "none",
    "levels": 0,
}
VARIANTS = {
    "VGG-11-BN": ({"depth": 11}, 11, 9_231_114),
    "VGG-16-BN": ({"depth": 16}, 16, 14_728_266),
}
CONVOLUTIONS = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}  # columns A B D E


def build(
    *,
    in_channels: Size = 3,
    num_classes: Size = 10,
    depth: Literal[11, 13, 16, 19] = 16,
    width: Size = 64,
    batch_norm: bool = True,
) -> nn.Module:
    """(n, in_channels, h, w) -> (n, num_classes): five stages of 3x3 convolutions that end in 2x2 max pooling.

    width: channels of the first stage; then 2, 4, 8, 8 times as many. At the border the maximum is over the part of its
    window that lies inside, so that images below 32x32 are accepted; on even sizes it is the usual one.
    """
    stages, channels, c_in = [], [width * m for m in (1, 2, 4, 8, 8)], in_channels
    for count, c in zip(CONVOLUTIONS[depth], channels, strict=True):
        layers: list[nn.Module] = []
        for _ in range(count):
            norm = [nn.BatchNorm2d(c)] if batch_norm else []
            layers += [nn.Conv2d(c_in, c, 3, padding=1), *norm, nn.ReLU()]
            c_in = c
        stages.append(nn.Sequential(*layers, nn.MaxPool2d(2, ceil_mode=True)))  # n c ceil(h/2) ceil(w/2)
    return init_he(Staged(nn.Identity(), stages, classifier(c_in, num_classes), channels))
