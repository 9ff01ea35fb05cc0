"""A small pre-activated residual net whose merge is any of Keras' merge layers: Nagase & Ishiwata 2019, Theorem 2.

Unit x -> merge(B(x), x), with B = conv relu BN conv relu BN. Nothing follows the merge, so that units differ in the
merge alone. The two units that change the shape are B(x) alone: a shortcut that projects would add parameters, and one
that is padded with zeros would make products zero for ever.

    add       B + x        average   (B + x) / 2     concat   W (B; x), W = (I I) at the start, then trained
    subtract  B - x        maximum   max(B, x)       dot      w <B, x> at every pixel, w of c numbers
    multiply  B * x        minimum   min(B, x)       none     B

Keras' Dot of two vectors of c features is their inner product, one number, and keeps no shape. On maps (n, c, h, w) it
is taken here pixel by pixel, as Dot(axes=-1) in a TimeDistributed layer takes it, which gives (n, 1, h, w); as
concatenation is followed by a map from 2c channels to c, it is followed by one from 1 to c. All other nets have equal
numbers of parameters; "concat" has 2c^2 and "dot" c more in every unit with a merge.

Without batch norm (batch_norm=False) the norms are left out and nothing takes their place: with or without skip and
norm are the four cases of Balduzzi et al., "The shattered gradients problem" (ICML 2017). The paper on merges trains no
net, so there is no published error; sizes are ours.
"""

from typing import Literal

from torch import Tensor, nn

from skipform.arguments import Depth, Size
from skipform.nets.blocks import Merge, Skip, Staged, chain, classifier, conv, init_he, stack, units

SURVEY = {
    "paper": "Nagase & Ishiwata 2019, Theorem 2",
    "year": 2019,
    "skip": "every Keras merge",
    "levels": 1,
}
VARIANTS = {
    **{
        f"{kind} 20": ({"skip": kind}, 20, 269_722)
        for kind in ("add", "subtract", "multiply", "average", "maximum", "minimum")
    },
    "concat 20": ({"skip": "concat"}, 20, 291_738),
    "dot 20": ({"skip": "dot"}, 20, 269_962),
    "none 20": ({"skip": "none"}, 20, 269_722),
    "add 20, no batch norm": ({"batch_norm": False}, 20, 268_346),
    "none 20, no batch norm": ({"skip": "none", "batch_norm": False}, 20, 268_346),
}


class Dot(nn.Module):
    """(branch, shortcut) (n, c, h, w) -> their inner product at every pixel (n, 1, h, w), mapped to c channels."""

    def __init__(self, channels: int):
        super().__init__()
        self.spread = conv(1, channels, 1)

    def forward(self, branch: Tensor, shortcut: Tensor) -> Tensor:
        product = (branch * shortcut).sum(1, keepdim=True)  # n 1 h w
        return self.spread(product)  # n c h w


def build(
    *,
    in_channels: Size = 3,
    num_classes: Size = 10,
    depth: Depth = 20,
    width: Size = 16,
    skip: Literal["add", "subtract", "multiply", "average", "maximum", "minimum", "concat", "dot", "none"] = "add",
    batch_norm: bool = True,
) -> nn.Module:
    """(n, in_channels, h, w) -> (n, num_classes).

    depth: 6n+2. width: channels of the first stage, doubled at every following one. skip: the merge, see above; "none":
        the plain twin. batch_norm: whether every ReLU has one before it.
    """
    before = "br" if batch_norm else "r"

    def unit(c_in: int, c: int, stride: int) -> nn.Module:
        branch = chain(f"{before}c{before}c", c_in, conv(c_in, c, 3, stride), conv(c, c))
        if stride > 1 or c_in != c:
            return branch
        return Skip(branch, nn.Identity(), Dot(c) if skip == "dot" else Merge(skip, c))

    channels = [width, 2 * width, 4 * width]
    body = stack(width, channels, [units("merges", depth, 6, 2)] * 3, unit)
    head = nn.Sequential(*chain(before, channels[-1]), *classifier(channels[-1], num_classes))
    return init_he(Staged(conv(in_channels, width), body, head, channels))
