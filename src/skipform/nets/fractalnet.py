"""FractalNet: Larsson, Maire, Shakhnarovich, "FractalNet: ultra-deep neural networks without residuals" (ICLR 2017).

f_1(z) = conv(z), f_{C+1}(z) = mean(f_C(f_C(z)), conv(z)), conv = a 3x3 convolution, dropout, batch norm, ReLU in this
order; B blocks with 2x2 max pooling at their end. Joins that meet are one mean over all columns that end there.
Published for B=5, C=3 (20 layers), CIFAR-10 / CIFAR-10+, Table 1:

    10.18 / 5.22 %     with drop-path and dropout 7.33 / 4.60 %     its deepest column alone 7.27 / 4.68 %

No public re-implementation has reached these. The text leaves open where channels grow, which is `expand`: "column", in
the first convolution of every column, as in the generator that the authors published, 33,724,618 parameters (our
default; it gives the six counts of Table 3, 0.3 to 21.1 M for 1 to 6 columns of width 16); "block", in a 1x1
convolution with BN-ReLU before every block, 38,912,202; "change", in one before those blocks whose channels grow,
38,649,034, near the 38.6 M that DenseNet's Table 2 prints. As in the generator, every column has its own max pooling
before the last join of a block.
"""

from functools import reduce
from typing import Literal, cast

import torch
from torch import Tensor, nn

from skipform.arguments import Doublings, PartialShare, Share, Size
from skipform.nets.blocks import classifier, conv, conv_bn_relu

SURVEY = {
    "paper": "Larsson et al., ICLR 2017",
    "year": 2017,
    "skip": "mean",
    "levels": 2,
}
VARIANTS = {
    "FractalNet-20": ({}, 20, 33_724_618),
    "FractalNet-20, 1x1 before blocks": ({"expand": "block"}, 20, 38_912_202),
    "FractalNet-20, 1x1 on change": ({"expand": "change"}, 20, 38_649_034),
    "FractalNet-40": ({"columns": 4}, 40, 76_106_634),
    **{
        f"Table 3, {columns} columns": ({"columns": columns, "width": 16, "num_classes": 100}, depth, count)
        for columns, depth, count in (
            (1, 5, 258_292),
            (2, 10, 847_716),
            (3, 20, 2_125_204),
            (4, 40, 4_778_820),
            (5, 80, 10_184_692),
            (6, 160, 21_095_076),
        )
    },
}


class Join(nn.Module):
    """Mean of the columns that end here; while training, of those that drop-path leaves.

    Local drop-path: every input is dropped with probability `drop_path`, but at least one stays. Global drop-path:
    where the whole net follows one column, that column alone stays; where this column does not end, all stay, and the
    result does not reach the output. All is drawn once for a mini-batch.
    """

    def __init__(self, first: int, drop_path: float):
        super().__init__()
        self.first, self.drop_path = first, drop_path

    def forward(self, columns: list[Tensor], followed: Tensor | None) -> Tensor:
        if followed is None:
            return reduce(torch.add, columns) / len(columns)
        k, device = len(columns), followed.device
        stay = torch.rand(k, device=device) >= self.drop_path
        local = torch.where(stay.any(), stay, torch.arange(k, device=device) == torch.randint(k, (), device=device))
        alone = torch.arange(self.first, self.first + k, device=device) == followed
        mask = torch.where(followed < 0, local, alone | ~alone.any()).to(columns[0].dtype)  # k
        return torch.einsum("k...,k->...", torch.stack(columns), mask / mask.sum())  # n c h w


class FractalBlock(nn.Module):
    """Columns c = 0, 1, ..., C-1 of 2^c convolutions; column c ends in a join at every multiple of 2^(C-1-c)."""

    def __init__(self, c_in: int, c: int, columns: int, dropout: float, drop_path: float, expand: bool):
        super().__init__()
        self.expand = conv_bn_relu(c_in, c, 1) if expand else nn.Identity()
        entry = c if expand else c_in
        self.columns = nn.ModuleList(
            nn.ModuleList(_layer(c if i else entry, c, dropout) for i in range(2**column)) for column in range(columns)
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


def _layer(c_in: int, c: int, dropout: float) -> nn.Sequential:
    return nn.Sequential(conv(c_in, c), nn.Dropout(dropout), nn.BatchNorm2d(c), nn.ReLU())


class FractalNet(nn.Module):
    """Fractal blocks and a classifier; `column(c)` is the plain net of column c, sharing its weights.
    `subnets`: of several columns the deepest, whose error Table 1 gives as well."""

    def __init__(
        self, blocks: list[FractalBlock], head: nn.Module, columns: int, drop_path: float, global_ratio: float
    ):
        super().__init__()
        self.blocks, self.head = nn.ModuleList(blocks), head
        self.columns, self.global_ratio = columns, global_ratio
        self.drops = drop_path > 0 or global_ratio > 0

    def followed(self, x: Tensor) -> Tensor | None:
        """The column, (), that a mini-batch follows through the net, or -1 for local drop-path; None without it."""
        if not (self.training and self.drops):
            return None
        column = torch.randint(self.columns, (), device=x.device)
        return torch.where(torch.rand((), device=x.device) < self.global_ratio, column, -1)

    def forward(self, x: Tensor) -> Tensor:
        followed = self.followed(x)
        for block in self.blocks:
            x = block(x, followed)
        return self.head(x)

    def subnets(self) -> dict[str, nn.Module]:
        return {"deepest": self.column(self.columns - 1)} if self.columns > 1 else {}

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
    dropout: block b drops entries with b times this probability. global_ratio: the share of mini-batches that follow
        one column. The paper's regularised net has dropout 0.1, drop_path 0.15 and global_ratio 0.5.
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
