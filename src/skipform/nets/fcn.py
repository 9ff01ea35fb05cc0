"""FCN: Long, Shelhamer, Darrell, "Fully convolutional networks for semantic segmentation" (CVPR 2015).

A classifier whose linear layers became convolutions scores every pixel of its last map; transposed convolutions, at
first bilinear interpolation, bring the scores back to the size of the image: in one step (32s), with the scores of the
map before (pool4) added on the way (16s), or with those of pool3 too (8s). The last transposed convolution stays the
bilinear interpolation, those before it are trained (Section 4.3). On VGG-16 with 21 classes 136,152,917, 134,815,994,
134,489,759 parameters, as in wkentaro/pytorch-fcn.

Mean IoU on VOC 2011 validation: 59.4, 62.4, 62.7 (Table 2: batches of 20, momentum 0.9, in stages 32s, 16s, 8s from
ImageNet weights, on the 8,498 images that have masks in SBD; on the 1,112 of VOC 2011 alone 32s has 56.0, Table 1). The
63.6, 65.0, 65.5 of the journal version (PAMI 2017) belong to the online recipe: momentum 0.99, one image a step. There,
8s is also trained at once, 65.4, with pool4 scaled by 1e-2 and pool3 by 1e-4 before they are scored: scaled=True, as in
the authors' voc-fcn8s-atonce.

`build` makes a backbone with random weights; an experiment replaces them, and those of the 7x7 and the 1x1 convolution,
by torchvision's VGG-16 of ImageNet with backbone_weights: imagenet. Section 4.3 calls training from scratch not
feasible. Deviation: the paper starts from the authors' own VGG-16. It pads the image by 100 and crops; here the 7x7
convolution pads its own map, which keeps all maps aligned at every size of the image. Dropout removes whole channels,
as in wkentaro/pytorch-fcn, the paper's single values. On other backbones "pool4" and "pool3" are the last stage but one
and but two.
"""

from collections.abc import Iterable
from math import ceil
from typing import Annotated, Literal, cast

import torch
from torch import Tensor, nn

from skipform.arguments import Range, Share, Size
from skipform.errors import SkipformError
from skipform.nets.blocks import MERGES, Staged, strides, with_skip, without_head

SURVEY = {
    "paper": "Long et al., CVPR 2015",
    "year": 2015,
    "skip": "addition, long",
    "levels": 2,
}
_VGG = {"num_classes": 21, "backbone": {"name": "vgg", "batch_norm": False}}
VARIANTS = {
    "FCN-32s": ({"kind": "32s"} | _VGG, 16, 136_152_917),
    "FCN-16s": ({"kind": "16s"} | _VGG, 16, 134_815_994),
    "FCN-8s": ({"kind": "8s"} | _VGG, 16, 134_489_759),
}
STEPS = {"32s": 0, "16s": 1, "8s": 2}  # doublings before the last step
SCALES = {"pool4": 1e-2, "pool3": 1e-4}  # of maps whose values are larger the earlier they are


def crop(x: Tensor, like: Tensor) -> Tensor:
    return x[..., : like.shape[-2], : like.shape[-1]]


def bilinear(c: int, s: int) -> nn.ConvTranspose2d:
    """(n, c, h, w) -> (n, c, sh, sw), initially the bilinear interpolation of each channel, zeros beyond the border."""
    k = 2 * s - s % 2
    layer = nn.ConvTranspose2d(c, c, k, s, ceil((s - 1) / 2), bias=False)
    hat = 1 - (torch.arange(k) - (k - 1) / 2).abs() / s  # k
    layer.weight = nn.Parameter(torch.eye(c)[:, :, None, None] * (hat[:, None] * hat))  # c c k k
    return layer


def scores(c: int, classes: int) -> nn.Conv2d:
    """One affine map for every pixel, zero at first, so that a finer map begins by adding nothing."""
    layer = nn.Conv2d(c, classes, 1)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(cast(nn.Parameter, layer.bias))
    return layer


class Scaled(nn.Module):
    """x -> factor * x, a constant factor."""

    def __init__(self, factor: float):
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * x


class Refine(nn.Module):
    """(scores, finer map) -> up(scores) + score(finer map), of the finer map's size; without `score` up(scores)."""

    def __init__(self, classes: int, score: nn.Module | None):
        super().__init__()
        self.up, self.score = bilinear(classes, 2), score or nn.Identity()
        self.merge = MERGES["add" if score else "none"]

    def forward(self, x: Tensor, finer: Tensor) -> Tensor:
        return self.merge(crop(self.up(x), finer), self.score(finer))


class FCN(nn.Module):
    """(n, c, h, w) -> (n, classes, h, w), for any h, w."""

    def __init__(self, body: Staged, top: nn.Module, steps: Iterable[Refine], last: nn.Module):
        super().__init__()
        self.backbone, self.top, self.steps, self.last = body, top, nn.ModuleList(steps), last

    def forward(self, x: Tensor) -> Tensor:
        maps = self.backbone.maps(x)
        y = self.top(maps[-1])  # n classes h/32 w/32
        for step, finer in zip(self.steps, maps[-2::-1], strict=False):
            y = step(y, finer)  # n classes 2h 2w
        return crop(self.last(y), x)


def build(
    *,
    backbone: nn.Module,
    num_classes: Size = 21,
    kind: Literal["32s", "16s", "8s"] = "8s",
    skip: Literal["add", "none"] | tuple[Literal["pool4", "pool3"], ...] = "add",
    hidden: Annotated[int, Range(0, 2**20)] = 4096,
    dropout: Share = 0.5,
    scaled: bool = False,
) -> nn.Module:
    """(n, c, h, w) -> (n, num_classes, h, w) scores of every pixel.

    backbone: a net of stages; its head is left out. kind: no, one or two doublings, each with a skip, before the last
        step.
    skip: whether the scores of all finer maps are added ("add"), of none, or of those named. A doubling without a skip
        still doubles.
    hidden: channels of the 7x7 and the 1x1 convolution that were VGG's linear layers; 0: the last map is scored as it
        is. dropout: of the channels of these two.
    scaled: pool4 is multiplied by 1e-2 and pool3 by 1e-4 before it is scored, for training with all skips at once.
    """
    body = without_head("fcn", backbone)
    if len(body.channels) <= STEPS[kind]:
        needed = STEPS[kind] + 1
        raise SkipformError(f"net 'fcn': kind={kind!r} takes a backbone of {needed} stages, not {len(body.channels)}")
    c = body.channels[-1]
    top: list[nn.Module] = []
    for kernel, c_in in ((7, c), (1, hidden)) if hidden else ():
        layer = nn.Conv2d(c_in, hidden, kernel, padding=kernel // 2)
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        top += [layer, nn.ReLU(), nn.Dropout2d(dropout)]
    top.append(scores(hidden or c, num_classes))
    names = ("pool4", "pool3")[: STEPS[kind]]
    added = with_skip(skip, names)
    steps = []
    for name, c in zip(names, reversed(body.channels[:-1]), strict=False):
        score = scores(c, num_classes) if name in added else None
        steps.append(Refine(num_classes, nn.Sequential(Scaled(SCALES[name]), score) if score and scaled else score))
    last = bilinear(num_classes, strides(body)[-1 - len(steps)]).requires_grad_(False)
    return FCN(body, nn.Sequential(*top), steps, last)
