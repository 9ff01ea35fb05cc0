"""The residual block and three-block model of the survey article on residual connections: F(x) = H(x) + x, then a ReLU.

Block: relu(BN conv3x3 -> ReLU, plus BN conv1x1 of the input): one activation under a projection shortcut in every
block. The listing stacks filters 64, 64, 128 on 32x32x3 at stride 1 in Keras and stops at the feature map (batch norm
with Keras' epsilon 1e-3 and momentum 0.99, convolutions with bias, weights Glorot uniform); the head, a global average
and one affine map, is ours. No count or error is published; 126,336 is what Keras counts as trainable in the listing.
"""

from torch import nn

from skipform.arguments import Size
from skipform.nets.blocks import Merge, MergeKind, Skip, Staged, classifier

SURVEY = {
    "paper": "survey article on residual connections, listing",
    "year": 2024,
    "skip": "addition",
    "levels": 1,
}
VARIANTS = {
    "three blocks": ({}, 3, 127_626),
    "three blocks, 100 classes": ({"num_classes": 100}, 3, 139_236),
}


def build(
    *,
    in_channels: Size = 3,
    num_classes: Size = 10,
    filters: tuple[Size, ...] = (64, 64, 128),
    skip: MergeKind = "add",
) -> nn.Module:
    """(n, in_channels, h, w) -> (n, num_classes).

    filters: the channels of every block. skip: the kind of merge, see `Merge`; "none": the plain twin, no projections.
    """
    blocks: list[nn.Module] = []
    c_in = in_channels
    for c in filters:
        branch = nn.Sequential(nn.Conv2d(c_in, c, 3, padding=1), _norm(c), nn.ReLU())
        projection = nn.Sequential(nn.Conv2d(c_in, c, 1), _norm(c)) if skip != "none" else nn.Identity()
        blocks.append(Skip(branch, projection, Merge(skip, c), nn.ReLU()))
        c_in = c
    net = Staged(nn.Identity(), blocks, classifier(c_in, num_classes), filters)
    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.get_parameter("bias"))
    return net


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01)
