"""A small convolutional net in which only the pooling is exchanged: Nagase & Ishiwata 2019, Theorem 1.

    max       the framework's maximum             relu             the same maximum built from ReLUs, weights frozen
    average   the framework's average             relu-trainable   that construction as a starting point of training
    strided   a strided convolution instead       none             no pooling

The paper trains no net (its Section 5 leaves that open), so there is no published count or error; sizes are ours.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from skipform.arguments import Depth, Size
from skipform.nets.blocks import classifier
from skipform.theory.trees import Window, pair_tree

SURVEY = {
    "paper": "Nagase & Ishiwata 2019, Theorem 1",
    "year": 2019,
    "skip": "addition",
    "levels": 1,
}
VARIANTS = {  # depth: activation layers; the construction for a 2x2 window has 2 of them and 20 weights per channel
    "max": ({"pool": "max"}, 2, 5_418),
    "average": ({"pool": "average"}, 2, 5_418),
    "none": ({"pool": "none"}, 2, 5_418),
    "relu": ({"pool": "relu"}, 6, 6_378),
    "relu-trainable": ({"pool": "relu-trainable"}, 6, 6_378),
    "strided": ({"pool": "strided"}, 2, 10_586),
}


class MaximumByReLU(nn.Module):
    """Maximum over windows of n = size^2 pixels: ceil(log2 n) layers x -> relu(D x) + E x of grouped convolutions.

    The layers are those of the tree of Theorem 1 (theory.trees.pair_tree): for the maximum of a and b from the layer
    before, relu(a - b) + b, D has the row a - b and E the row b; for a maximum that is only carried along, the row of D
    is zero. The first layer also reads the window (kernel and stride `size`). Each layer rounds by at most an ulp of
    the larger magnitude. (n, c, h, w) -> (n, c, floor(h/size), floor(w/size)).
    """

    def __init__(self, channels: int, size: int, trainable: bool):
        super().__init__()
        self.difference, self.carry = nn.ModuleList(), nn.ModuleList()
        maxima: list[Window] = [(pixel,) for pixel in range(size**2)]  # the pixels of each input of the layer
        kernel = size
        for layer in pair_tree([tuple(range(size**2))]):
            difference, carry = torch.zeros(2, len(layer), len(maxima))
            for row, parts in enumerate(layer.values()):
                carry[row, maxima.index(parts[-1])] = 1
                if len(parts) == 2:
                    difference[row, maxima.index(parts[0])] = 1
                    difference[row, maxima.index(parts[1])] = -1
            for convolutions, rows in ((self.difference, difference), (self.carry, carry)):
                c_in, c_out = channels * len(maxima) // kernel**2, channels * len(layer)
                convolution = nn.Conv2d(c_in, c_out, kernel, kernel, groups=channels, bias=False)
                weight = rows.repeat(channels, 1).view_as(convolution.weight)
                convolution.weight = nn.Parameter(weight, requires_grad=trainable)
                convolutions.append(convolution)
            maxima, kernel = list(layer), 1

    def forward(self, x: Tensor) -> Tensor:
        for difference, carry in zip(self.difference, self.carry, strict=True):
            x = torch.relu(difference(x)) + carry(x)  # n c*maxima h/size w/size
        return x


def build(
    *,
    in_channels: Size = 3,
    num_classes: Size = 10,
    width: Size = 16,
    depth: Depth = 2,
    size: Size = 2,
    pool: Literal["max", "average", "relu", "relu-trainable", "strided", "none"] = "max",
) -> nn.Module:
    """(n, in_channels, h, w) -> (n, num_classes): `depth` times convolution 3x3, ReLU, pooling of `size` x `size`
    (at most the image), then the global average and one affine map. width: channels of the first convolution; every
    following one doubles them."""
    pooling = {
        "max": lambda c: nn.MaxPool2d(size),
        "average": lambda c: nn.AvgPool2d(size),
        "relu": lambda c: MaximumByReLU(c, size, trainable=False),
        "relu-trainable": lambda c: MaximumByReLU(c, size, trainable=True),
        "strided": lambda c: nn.Conv2d(c, c, size, size),
        "none": lambda c: nn.Identity(),
    }[pool]
    layers: list[nn.Module] = []
    c_in = in_channels
    for c in [width * 2**i for i in range(depth)]:
        layers += [nn.Conv2d(c_in, c, 3, padding=1), nn.ReLU(), pooling(c)]  # n c h/size w/size
        c_in = c
    return nn.Sequential(*layers, *classifier(c_in, num_classes))
