"""Multilayer perceptron w_L . relu . w_{L-1} . ... . relu . w_0 (Definition 1), optionally with a skip over hidden
layers.

`depth` is the number of activation layers: depth 0 is one affine map. Test error about 1.6 % on MNIST with two or three
hidden ReLU layers and SGD, about 40-45 % on CIFAR-10 without augmentation (common knowledge, no single table). No
deviation.
"""

from itertools import pairwise

from torch import nn

from skipform.arguments import Depth, Size
from skipform.nets.blocks import Merge, MergeKind, Skip

SURVEY = {
    "paper": "Nagase & Ishiwata 2019, Definition 1",
    "year": 1986,
    "skip": "none",
    "levels": 0,
}
VARIANTS = {  # parameters: the sum of in * out + out
    "MLP-2": ({}, 2, 1_841_162),
    "MLP-2 MNIST": ({"in_channels": 1, "image_size": 28}, 2, 669_706),
    "affine": ({"depth": 0}, 0, 30_730),
}


def build(
    *,
    in_channels: Size = 3,
    image_size: Size = 32,
    num_classes: Size = 10,
    depth: Depth = 2,
    width: Size = 512,
    skip: MergeKind = "none",
) -> nn.Module:
    """(n, in_channels, image_size, image_size) -> (n, num_classes) through `depth` hidden layers of `width` ReLUs.

    skip: the skip x -> merge(relu(w x), x), of the kind that `Merge` names, around every hidden layer but the first,
        which changes the width. "none": the plain perceptron.
    """
    sizes = [in_channels * image_size**2] + [width] * depth
    layers: list[nn.Module] = [nn.Sequential(nn.Linear(a, b), nn.ReLU()) for a, b in pairwise(sizes)]
    if skip != "none":
        layers[1:] = [Skip(layer, nn.Identity(), Merge(skip, width, nn.Linear)) for layer in layers[1:]]
    return nn.Sequential(nn.Flatten(), *layers, nn.Linear(sizes[-1], num_classes))
