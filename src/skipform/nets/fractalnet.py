"""FractalNet: Larsson, Maire, Shakhnarovich, "FractalNet: ultra-deep neural networks without residuals" (ICLR 2017).

f_1(z) = conv(z), f_{C+1}(z) = mean(f_C(f_C(z)), conv(z)), conv = BN-ReLU after a 3x3 convolution; B blocks, a 2x2
maximum at the end of each. Joins that meet are one mean over all columns that end there. Published for B=5, C=3 (20
layers; 38.6 M where DenseNet's Table 2 cites it), CIFAR-10 / CIFAR-10+:

    10.18 / 5.22 %     with drop-path and dropout 7.33 / 4.60 %     its deepest column alone 7.27 / 4.68 %

No public re-implementation has reached these. The text leaves open where channels grow, which is `expand`: "column", in
the first convolution of every column, as in the generator that the authors published, 33,724,618 parameters (our
default); "block", in a 1x1 convolution with BN-ReLU before every block, 38,912,202; "change", in one before those
blocks whose channels grow, 38,649,034, the only reading that gives 38.6 M. As in the generator, every column has its
own maximum before the last join of a block.
"""

from functools import reduce
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from skipform.arguments import Doublings, PartialShare, Share, Size
from skipform.nets.blocks import classifier, conv_bn_relu

SURVEY = {
    "paper": "Larsson et al., ICLR 2017",
    "year": 2017,
    "skip": "mean",
    "activations_per_block": "1, 2, 4",
    "levels": 2,
}
VARIANTS = {
    "FractalNet-20": ({}, 20, 33_724_618),
    "FractalNet-20, 1x1 before blocks": ({"expand": "block"}, 20, 38_912_202),
    "FractalNet-20, 1x1 on change": ({"expand": "change"}, 20, 38_649_034),
    "FractalNet-40": ({"columns": 4}, 40, 76_106_634),
}


class Join(nn.Module):
    """Mean of the columns that end here; while training, of those that drop-path leaves.

    Local drop-path: a sample drops every input with probability `drop_path`, but keeps at least one. Global drop-path:
    a sample that follows one column through the whole net keeps that column alone; where this column does not end, it
    keeps all, and the result does not reach its output.
    """

    def __init__(self, first: int, drop_path: float):
        super().__init__()
        self.first, self.drop_path = first, drop_path

    def forward(self, columns: list[Tensor], followed: Tensor | None) -> Tensor:
        if followed is None:
            return reduce(torch.add, columns) / len(columns)
        n, k = len(followed), len(columns)
        kept = torch.rand(n, k, device=followed.device) >= self.drop_path
        one = F.one_hot(torch.randint(k, (n,), device=followed.device), k).bool()
        local = torch.where(kept.any(1, keepdim=True), kept, one)
        alone = torch.arange(self.first, self.first + k, device=followed.device) == followed[:, None]
        alone = alone | ~alone.any(1, keepdim=True)
        mask = torch.where(followed[:, None] < 0, local, alone).to(columns[0].dtype)  # n k
        weights = (mask / mask.sum(1, keepdim=True)).view(n, k, 1, 1, 1)
        return (torch.stack(columns, 1) * weights).sum(1)  # n c h w


class FractalBlock(nn.Module):
    """Columns c = 0, 1, ..., C-1 of 2^c convolutions; column c ends in a join at every multiple of 2^(C-1-c)."""

    def __init__(self, c_in: int, c: int, columns: int, dropout: float, drop_path: float, expand: bool):
        super().__init__()
        self.expand = conv_bn_relu(c_in, c, 1) if expand else nn.Identity()
        entry = c if expand else c_in
        self.columns = nn.ModuleList(
            nn.ModuleList(conv_bn_relu(c if i else entry, c).append(nn.Dropout2d(dropout)) for i in range(2**column))
            for column in range(columns)
        )
        self.pool = nn.MaxPool2d(
            2, ceil_mode=True
        )  # over the part of a window inside, so that small images are accepted
        self.steps = [
            [j for j in range(columns) if not t % 2 ** (columns - 1 - j)] for t in range(1, 2 ** (columns - 1) + 1)
        ]
        self.joins = nn.ModuleList(Join(step[0], drop_path) for step in self.steps)

    def forward(self, x: Tensor, followed: Tensor | None) -> Tensor:
        x = self.expand(x)
        states = [x] * len(self.columns)
        layers = [iter(list(column.children())) for column in self.columns]
        for step, join in zip(self.steps[:-1], self.joins[:-1], strict=True):
            joined = join([next(layers[j])(states[j]) for j in step], followed)  # n c h w
            states = [joined if j in step else state for j, state in enumerate(states)]
        ends = [self.pool(next(rest)(state)) for rest, state in zip(layers, states, strict=True)]  # n c h/2 w/2
        return self.joins[-1](ends, followed)

    def column(self, index: int) -> nn.Sequential:
        return nn.Sequential(self.expand, *self.columns[index].children(), self.pool)


class FractalNet(nn.Module):
    """Fractal blocks and a classifier; `column(c)` is the plain net of column c, sharing its weights."""

    def __init__(
        self, blocks: list[FractalBlock], head: nn.Module, columns: int, drop_path: float, global_ratio: float
    ):
        super().__init__()
        self.blocks, self.head = nn.ModuleList(blocks), head
        self.columns, self.global_ratio = columns, global_ratio
        self.drops = drop_path > 0 or global_ratio > 0

    def followed(self, x: Tensor) -> Tensor | None:
        """The column that every sample follows through the net, (n,), or -1 for local drop-path; None without it."""
        if not (self.training and self.drops):
            return None
        column = torch.randint(self.columns, (len(x),), device=x.device)
        return torch.where(torch.rand(len(x), device=x.device) < self.global_ratio, column, -1)

    def forward(self, x: Tensor) -> Tensor:
        followed = self.followed(x)
        for block in self.blocks:
            x = block(x, followed)
        return self.head(x)

    def column(self, index: int) -> nn.Sequential:
        return nn.Sequential(*[cast(FractalBlock, block).column(index) for block in self.blocks], self.head)


def build(
    *,
    in_channels: Size = 3,
    num_classes: Size = 10,
    blocks: Doublings = 5,
    columns: Doublings = 3,
    width: Size = 64,
    expand: Literal["column", "block", "change"] = "column",
    dropout: Share = 0.0,
    drop_path: PartialShare = 0.0,
    global_ratio: Share = 0.0,
) -> nn.Module:
    """(n, in_channels, h, w) -> (n, num_classes), blocks * 2^(columns - 1) layers deep.

    width: channels of the first block, then 2, 4, 8, 8, ... times as many. columns: 1 is a plain net.
    dropout: block b drops channels with b times this probability. global_ratio: the share of samples that follow one
        column. The paper's regularised net has dropout 0.1, drop_path 0.15 and global_ratio 0.5.
    """
    channels = [in_channels, *[width * min(2**b, 8) for b in range(blocks)]]
    body = [
        FractalBlock(
            channels[b],
            channels[b + 1],
            columns,
            b * dropout,
            drop_path,
            {"column": False, "block": True, "change": channels[b] != channels[b + 1]}[expand],
        )
        for b in range(blocks)
    ]
    net = FractalNet(body, classifier(channels[-1], num_classes), columns, drop_path, global_ratio)
    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.xavier_uniform_(module.weight)
    return net
