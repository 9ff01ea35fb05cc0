"""DETR: Carion et al., "End-to-end object detection with transformers" (ECCV 2020).

The pixels of a backbone's last map pass an encoder; in a decoder N trained queries attend to them and to one another,
and every query yields a class (or none) and a box. Positions are added to queries and keys of every attention, not to
the values. ResNet-50, 6 + 6 layers of 256: COCO AP 40.6 after 300 epochs, 42.0 after 500. Of its 41,524,768 parameters
frozen=True trains 41,302,368, the paper's 41.3 M. With its weights equal to the net of the `transformers` library. Not
piecewise linear. Matching and the set loss belong to the task (`tasks/detect.py`).

No deviation in the net; by default it has the 91 classes that COCO's labels are numbered up to, as the authors' code,
and an experiment gives it the 80 that occur. `build` makes a backbone with random weights; an experiment replaces them
by torchvision's ImageNet weights, as the paper does, with backbone_weights: imagenet.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import MLP

from skipform.arguments import Depth, Share, Size
from skipform.nets.attention import (
    Attention,
    DecoderSkip,
    check_multiple,
    feed_forward,
    padding_mask,
    sinusoids_2d,
    sublayers,
)
from skipform.nets.blocks import Staged, freeze, without_head

SURVEY = {
    "paper": "Carion et al., ECCV 2020",
    "year": 2020,
    "skip": "addition",
    "levels": 1,
    "piecewise_linear": False,
}
_RESNET = {"name": "resnet", "stages": 4, "first": "7x7", "width": 64, "option": "B"}
VARIANTS = {
    "DETR, ResNet-50": ({"backbone": _RESNET | {"depth": 50}, "frozen": True}, 6, 41_524_768),
    "DETR, ResNet-50, 80 classes": (
        {"backbone": _RESNET | {"depth": 50}, "frozen": True, "num_classes": 80},
        6,
        41_521_941,
    ),
    "DETR, ResNet-101": ({"backbone": _RESNET | {"depth": 101}, "frozen": True}, 6, 60_464_672),
}


class PositionedAttention(nn.Module):
    """(x, position, keys, values, mask) -> attention of the queries x + position; positions are already in the keys."""

    def __init__(self, d: int, heads: int, dropout: float):
        super().__init__()
        self.attention = Attention(d, heads, dropout)

    def forward(self, x: Tensor, position: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.attention(x + position, keys, values, mask)


class EncoderLayer(nn.Module):
    """(n, s, d) -> (n, s, d): self-attention, feed-forward; post-norm."""

    def __init__(self, d: int, heads: int, hidden: int, skip: DecoderSkip, dropout: float):
        super().__init__()
        parts = {
            "attention": PositionedAttention(d, heads, dropout),
            "feed_forward": feed_forward(d, hidden, nn.ReLU(), dropout),
        }
        self.attention, self.feed_forward = sublayers(d, parts, "post", skip, dropout)

    def forward(self, x: Tensor, position: Tensor, mask: Tensor) -> Tensor:
        return self.feed_forward(self.attention(x, position, x + position, x, mask))


class DecoderLayer(nn.Module):
    """(n, q, d) -> (n, q, d): self-attention among the queries, attention to the image, feed-forward; post-norm."""

    def __init__(self, d: int, heads: int, hidden: int, skip: DecoderSkip, dropout: float):
        super().__init__()
        within, across = (PositionedAttention(d, heads, dropout) for _ in range(2))
        parts = {"attention": within, "cross": across, "feed_forward": feed_forward(d, hidden, nn.ReLU(), dropout)}
        self.attention, self.cross, self.feed_forward = sublayers(d, parts, "post", skip, dropout)

    def forward(self, x: Tensor, position: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
        x = self.attention(x, position, x + position, x)
        return self.feed_forward(self.cross(x, position, keys, values, mask))


class DETR(nn.Module):
    """images (n, c, h, w), mask (n, h, w) -> {"logits", "boxes", "auxiliary"}. The mask is boolean, True where an image
    is not padding, by default everywhere.

    "logits": (n, q, classes + 1), the last class is "no object". "boxes": (n, q, 4), centre x y, width and height as
    shares of the image's. "auxiliary": {"logits": (l-1, n, q, classes + 1), "boxes": (l-1, n, q, 4)}, the same heads on
    the decoder's l-1 layers before the last.
    """

    def __init__(
        self, body: Staged, d: int, classes: int, queries: int, encoder: list[EncoderLayer], decoder: list[DecoderLayer]
    ):
        super().__init__()
        self.backbone, self.entry = body, nn.Conv2d(body.channels[-1], d, 1)
        self.encoder, self.decoder, self.norm = nn.ModuleList(encoder), nn.ModuleList(decoder), nn.LayerNorm(d)
        self.queries = nn.Parameter(torch.empty(queries, d))
        nn.init.normal_(self.queries)
        self.classes, self.box = nn.Linear(d, classes + 1), MLP(d, [d, d, 4], inplace=None)
        self.d = d

    def forward(self, images: Tensor, mask: Tensor | None = None) -> dict[str, Tensor | dict[str, Tensor]]:
        x = self.entry(self.backbone.maps(images)[-1])  # n d h w
        mask = torch.ones_like(images[:, 0]) if mask is None else mask.to(x.dtype)
        present = F.interpolate(mask[:, None], size=x.shape[-2:])[:, 0].bool()  # n h w
        fine = torch.promote_types(x.dtype, torch.float32)
        position = sinusoids_2d(present, self.d, fine).flatten(1, 2).to(x.dtype)  # n s d
        visible = padding_mask(present.flatten(1))
        x = x.flatten(2).transpose(1, 2)  # n s d
        for layer in self.encoder:
            x = layer(x, position, visible)
        queries = self.queries.expand(x.shape[0], -1, -1)  # n q d
        y, outputs, keys = torch.zeros_like(queries), [], x + position
        for layer in self.decoder:
            y = layer(y, queries, keys, x, visible)
            outputs.append(self.norm(y))
        stacked = torch.stack(outputs)  # l n q d
        logits, boxes = self.classes(stacked), self.box(stacked).sigmoid()
        return {"logits": logits[-1], "boxes": boxes[-1], "auxiliary": {"logits": logits[:-1], "boxes": boxes[:-1]}}


def build(
    *,
    backbone: nn.Module,
    num_classes: Size = 91,
    queries: Size = 100,
    encoder_depth: Depth = 6,
    decoder_depth: Depth = 6,
    width: Size = 256,
    heads: Size = 8,
    hidden: Size = 2048,
    skip: DecoderSkip = "add",
    dropout: Share = 0.1,
    frozen: bool = False,
) -> nn.Module:
    """(n, c, h, w) -> {"logits", "boxes", "auxiliary"}, see `DETR`; sizes may differ from batch to batch.

    backbone: a net of stages; its head is left out. queries: the maximum number of objects that it finds in an image.
    width: d. hidden: width inside the feed-forward.
    skip: around every sub-layer of encoder and decoder ("add"), around none, or around those named.
    frozen: the paper's treatment of a pre-trained backbone: its batch norms constant, stem and first stage untrained.
    """
    check_multiple("detr", "width", width, heads, "heads")
    check_multiple("detr", "width", width, 4, "a sine and a cosine of row and column")
    body, sizes = without_head("detr", backbone), (width, heads, hidden, skip, dropout)
    encoder = [EncoderLayer(*sizes) for _ in range(encoder_depth)]
    decoder = [DecoderLayer(*sizes) for _ in range(decoder_depth)]
    net = DETR(body, width, num_classes, queries, encoder, decoder)
    for p in [*net.encoder.parameters(), *net.decoder.parameters()]:
        if p.dim() > 1:
            nn.init.xavier_uniform_(p)
    if frozen:
        freeze(body)
    return net
