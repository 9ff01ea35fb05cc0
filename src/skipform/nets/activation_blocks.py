"""Fully connected blocks with one, two or L activations under one skip: Nagase & Ishiwata 2019, Theorem 4.

    concatenation   M = w . (B_K; id) . ... . (B_1; id),   B_k = relu . w_{k,L-1} . ... . relu . w_{k,0}
    addition        M = w . (u_K . B_K + id) . ... . (u_1 . B_1 + id) . v,   u_k, v affine (Proposition 1)

blocks=2, activations=1 is the paper's M_1 (single activation blocks), blocks=1, activations=2 its M_2 (a double one).
The paper trains no net, so there is no published count or error; sizes are ours.
"""

from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn

from skipform.arguments import Few, Size
from skipform.errors import SkipformError
from skipform.nets.blocks import Merge, Skip

SURVEY = {
    "paper": "Nagase & Ishiwata 2019, Theorem 4",
    "year": 2019,
    "skip": "concatenation or addition",
    "levels": 1,
}
VARIANTS = {
    "M1 concat": ({"activations": 1, "blocks": 2}, 2, 429_450),
    "M2 concat": ({"activations": 2, "blocks": 1}, 2, 232_202),
    "M1 add": ({"activations": 1, "blocks": 2, "skip": "add", "state": 64}, 2, 213_962),
    "M2 add": ({"activations": 2, "blocks": 1, "skip": "add", "state": 64}, 2, 209_802),
}


class ConcatenationSkip(nn.Module):
    """x -> (B(x); x)."""

    def __init__(self, branch: nn.Module):
        super().__init__()
        self.branch = branch

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat((self.branch(x), x), 1)  # n width+d


def build(
    *,
    in_channels: Size = 3,
    image_size: Size = 32,
    num_classes: Size = 10,
    blocks: Few = 2,
    activations: Few = 1,
    width: Size | tuple[Size, ...] = 64,
    skip: Literal["concat", "add"] = "concat",
    state: Size | None = None,
) -> nn.Module:
    """(n, in_channels, image_size, image_size) -> (n, num_classes).

    activations: L, the ReLU layers in one block. blocks: K.
    width: of all hidden layers, or a list with the widths of the blocks * activations layers in order.
    state: width of the state between blocks with addition. None: the input's size d plus the widths in which the blocks
        end, at which the addition net can copy the concatenation net exactly; conversely a concatenation net can copy
        an addition net of any state (Theorem 3).
    """
    depth = blocks * activations
    widths = [width] * depth if isinstance(width, int) else list(width)
    if len(widths) != depth or min(blocks, activations) < 1:
        given = f"width={width} with blocks={blocks}, activations={activations}"
        accepted = "one width, or one for each of the blocks * activations layers, both at least 1"
        raise SkipformError(f"net 'activation_blocks': {given} is not accepted; it takes {accepted}")
    size, ends = in_channels * image_size**2, widths[activations - 1 :: activations]
    layers: list[nn.Module] = [nn.Flatten()]
    if skip == "add":
        lifted = state or size + sum(ends)
        layers.append(nn.Linear(size, lifted))
        size = lifted
    for k, end in enumerate(ends):
        hidden = [size, *widths[k * activations : (k + 1) * activations]]
        branch = nn.Sequential(*[m for a, b in pairwise(hidden) for m in (nn.Linear(a, b), nn.ReLU())])
        if skip == "add":
            layers.append(Skip(branch.append(nn.Linear(end, size)), nn.Identity(), Merge("add", size)))
        else:
            layers.append(ConcatenationSkip(branch))
            size += end
    return nn.Sequential(*layers, nn.Linear(size, num_classes))
