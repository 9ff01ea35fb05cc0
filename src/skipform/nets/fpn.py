"""FPN: Lin et al., "Feature pyramid networks for object detection" (CVPR 2017).

P_l = conv3x3(M_l), M_l = lateral_l(C_l) + up(M_{l+1}): a 1x1 convolution of every stage's map C_l (lateral) and the
coarser M by nearest neighbours (top-down). On the maps of a ResNet-50, 3,344,384 parameters; with its weights equal to
torchvision's FeaturePyramidNetwork. Faster R-CNN on it: COCO minival AP 31.6 -> 33.9; average recall of proposals on
small objects 44.9, without laterals 26.5, without top-down 30.5 (Table 1).

head="retinanet": the one-stage detector of Lin et al., "Focal loss for dense object detection" (ICCV 2017), made of
torchvision's parts (anchors, head, losses, suppression); with three levels and two more by convolutions it is
torchvision's retinanet_resnet50_fpn, 34,068,119 parameters with 91 classes. That one computes P6 from P5; the paper
(Section 4, note 2) computes it from C5, the last map of the backbone: extra="convolutions-c5", 38,196,887 parameters.
COCO AP 35.7 after 90,000 steps of 16 images (the model zoo of the authors' Detectron, R-50-FPN 1x, whose 2014 minival
is the validation set of 2017).

Deviation: the inner convolutions of the head begin with He initialisation, not with a standard deviation of 0.01, from
which a narrow head hardly learns. `build` makes a backbone with random weights; an experiment replaces them by
torchvision's ImageNet weights with backbone_weights: imagenet; the authors use those of He et al., which stride in the
first 1x1 convolution of a bottleneck. The depth is that of the backbone. The pyramid is piecewise linear, the choice of
boxes is not.
"""

from collections.abc import Callable
from typing import Any, Literal, cast

import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection import RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool, LastLevelP6P7

from skipform.arguments import Few, Size
from skipform.errors import SkipformError
from skipform.nets.blocks import MERGES, Staged, freeze, strides, without_head

SURVEY = {
    "paper": "Lin et al., CVPR 2017",
    "year": 2017,
    "skip": "addition, lateral",
    "levels": 3,
}
_R50 = {"name": "resnet", "depth": 50, "stages": 4, "first": "7x7", "width": 64, "option": "B"}
_RETINA = {"levels": 3, "extra": "convolutions", "head": "retinanet", "num_classes": 91}
_PAPER = {"extra": "convolutions-c5", "num_classes": 80}
VARIANTS = {
    "FPN, ResNet-50": ({"backbone": _R50}, 50, 26_852_416),
    "RetinaNet, ResNet-50": ({"backbone": _R50} | _RETINA, 50, 34_068_119),
    "RetinaNet, P6 from C5": ({"backbone": _R50, "frozen": True} | _RETINA | _PAPER, 50, 37_915_572),
}


def _coarser(lateral: Tensor, coarser: Tensor) -> Tensor:
    return coarser


JOINS = {(True, True): MERGES["add"], (True, False): MERGES["none"], (False, True): _coarser}  # laterals, top-down


class Pyramid(nn.Module):
    """Maps C_l, fine to coarse -> maps P_l of c channels and the same sizes."""

    def __init__(self, channels: tuple[int, ...], c: int, laterals: bool, top_down: bool):
        super().__init__()
        last = len(channels) - 1
        self.laterals = nn.ModuleList(
            nn.Conv2d(a, c, 1) if laterals or i == last else nn.Identity() for i, a in enumerate(channels)
        )
        self.outs = nn.ModuleList(nn.Conv2d(c, c, 3, padding=1) for _ in channels)
        self.join = JOINS[laterals, top_down]
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_uniform_(module.weight, a=1)
                nn.init.zeros_(cast(nn.Parameter, module.bias))

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        merged = [self.laterals[-1](maps[-1])]  # M, coarse to fine
        for lateral, finer in zip(self.laterals[-2::-1], maps[-2::-1], strict=True):
            up = F.interpolate(merged[-1], size=finer.shape[-2:])  # n c h w
            merged.append(self.join(lateral(finer), up))
        return [out(m) for out, m in zip(self.outs, reversed(merged), strict=True)]


class FPN(nn.Module):
    """(n, c, h, w) -> {"p2": ..., "p3": ...}, fine to coarse, each (n, out_channels, h_l, w_l)."""

    def __init__(self, body: Staged, levels: int, pyramid: Pyramid, extra: Callable[..., Any], out_channels: int):
        super().__init__()
        self.backbone, self.pyramid, self.extra, self.out_channels = body, pyramid, extra, out_channels
        self.first = len(body.channels) - levels

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        maps = self.backbone.maps(x)[self.first :]
        pyramid, _ = self.extra(self.pyramid(maps), maps, [])
        return {f"p{2 + self.first + i}": p for i, p in enumerate(pyramid)}


def _no_extra(pyramid: list[Tensor], maps: list[Tensor], names: list[str]) -> tuple[list[Tensor], list[str]]:
    return pyramid, names


def from_c5(c_in: int, c: int) -> LastLevelP6P7:
    """P6 = conv3x3(C5), P7 = conv3x3(relu(P6)), both of stride 2; C5 is the backbone's last map, of c_in channels."""
    coarser = LastLevelP6P7(c_in, c)
    coarser.use_P5 = False  # which torchvision reads off c_in == c
    return coarser


class PadOnly(GeneralizedRCNNTransform):
    """A list of images -> one batch, padded with zeros at the right and below to a common size, not resized."""

    def resize(self, image: Tensor, target: dict[str, Tensor] | None = None) -> tuple[Tensor, dict[str, Tensor] | None]:
        return image, target


def build(
    *,
    backbone: nn.Module,
    num_classes: Size = 91,
    levels: Few | None = None,
    channels: Size = 256,
    skip: Literal["add", "none"] = "add",
    top_down: bool = True,
    extra: Literal["none", "pool", "convolutions", "convolutions-c5"] = "none",
    head: Literal["none", "retinanet"] = "none",
    anchors: tuple[Size, ...] = (32, 64, 128, 256, 512),
    frozen: bool = False,
) -> nn.Module:
    """head="none": (n, c, h, w) -> {"p2": (n, channels, h_2, w_2), ...}, p2 the map of the backbone's first stage.

    head="retinanet": torchvision's RetinaNet, which takes a list of images (c, h, w), neither scaled nor normalised. In
    training mode it also takes a list of {"boxes": (k, 4) as x1 y1 x2 y2 in pixels, "labels": (k,) below num_classes}
    and returns {"classification": loss, "bbox_regression": loss}; in eval mode it returns {"boxes", "scores", "labels"}
    for every image, best first.

    backbone: a net of stages; its head is left out. levels: how many of its last stages have a map; None: all.
    channels: of every map. extra: coarser maps on top: "pool", every second pixel of the last; "convolutions", two of
        stride 2, with a ReLU between them; "convolutions-c5", the same from the backbone's last map.
    anchors: for every map the side of its anchors in pixels, which have three sizes and three shapes.
    skip: "none" leaves the laterals out below the coarsest map. top_down: whether coarser maps are added.
    frozen: the treatment of a pre-trained backbone: its batch norms constant, stem and first stage untrained.
    """
    body = without_head("fpn", backbone)
    count = len(body.channels) if levels is None else levels
    if not 1 <= count <= len(body.channels):
        raise SkipformError(f"net 'fpn': levels={levels} is not accepted; it takes 1 to {len(body.channels)}")
    if skip == "none" and not top_down:
        raise SkipformError(
            "net 'fpn': skip='none' with top_down=False is not accepted; it takes one of them, or neither"
        )
    if frozen:
        freeze(body)
    pyramid = Pyramid(body.channels[-count:], channels, skip == "add", top_down)
    more, top = {
        "none": (0, lambda: _no_extra),
        "pool": (1, LastLevelMaxPool),
        "convolutions": (2, lambda: LastLevelP6P7(channels, channels)),
        "convolutions-c5": (2, lambda: from_c5(body.channels[-1], channels)),
    }[extra]
    net, maps = FPN(body, count, pyramid, top(), channels), count + more
    if head == "none":
        return net
    if len(anchors) != maps:
        raise SkipformError(f"net 'fpn': anchors={list(anchors)} is not accepted; it takes one side for each of {maps}")
    sides = tuple((a, int(a * 2 ** (1 / 3)), int(a * 2 ** (2 / 3))) for a in anchors)
    generator = AnchorGenerator(sides, ((0.5, 1.0, 2.0),) * maps)
    c_in = next(module.in_channels for module in body.modules() if isinstance(module, nn.Conv2d))
    heads = RetinaNetHead(channels, generator.num_anchors_per_location()[0], num_classes)
    detector = RetinaNet(net, num_classes, anchor_generator=generator, head=heads)
    for tower in (heads.classification_head.conv, heads.regression_head.conv):
        for module in tower.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    detector.transform = PadOnly(0, 0, [0.0] * c_in, [1.0] * c_in, size_divisible=strides(body)[-1])
    return detector
