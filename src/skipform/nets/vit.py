"""ViT: Dosovitskiy et al., "An image is worth 16x16 words: transformers for image recognition at scale" (ICLR 2021).

Patches through one affine map, a class token in front, trained positions, pre-norm layers; the classes' scores are an
affine map of the class token. B/16 at 224x224 with 1000 classes: 86,567,656 parameters, with its weights equal to
torchvision's net; S and Ti are the narrower ones of timm. Pre-trained on ImageNet-21k, B/16 reaches 98.6 to 99.0 % on
CIFAR-10 (its authors' repository). The defaults are Ti's width on 32x32 images in 4x4 patches. Not piecewise linear.

Dropout is where Section B.1 has it: after every affine map but those of queries, keys and values, hence not on the
attention weights, and on the sums of patches and positions. In pre-training the head has a hidden layer (Section 3.1),
with tanh in the authors' code: `representation_size`. Initial weights are torchvision's; deviation: initial biases are
0, there and in the authors' code normal with deviation 1e-6.
"""

import math

import torch
from torch import Tensor, nn

from skipform.arguments import Depth, Share, Size
from skipform.errors import SkipformError
from skipform.nets.attention import EncoderSkip, Layer, NormKind, SelfAttention, check_multiple, feed_forward

SURVEY = {
    "paper": "Dosovitskiy et al., ICLR 2021",
    "year": 2021,
    "skip": "addition",
    "levels": 1,
    "piecewise_linear": False,
}
_IMAGENET = {"image_size": 224, "patch": 16, "num_classes": 1000}
VARIANTS = {
    "ViT-Ti/16": (_IMAGENET, 12, 5_717_416),
    "ViT-S/16": ({"width": 384, "heads": 6} | _IMAGENET, 12, 22_050_664),
    "ViT-B/16": ({"width": 768, "heads": 12} | _IMAGENET, 12, 86_567_656),
    "ViT-L/16": ({"width": 1024, "heads": 16, "depth": 24} | _IMAGENET, 24, 304_326_632),
}


class ViT(nn.Module):
    """(n, c, size, size) -> (n, classes); another image size is a SkipformError."""

    def __init__(self, size: int, patches: nn.Conv2d, layers: list[Layer], norm: nn.Module, head: nn.Module, p: float):
        super().__init__()
        d, count = patches.out_channels, (size // patches.stride[0]) ** 2
        self.size, self.patches, self.dropout = size, patches, nn.Dropout(p)
        self.token = nn.Parameter(torch.zeros(1, 1, d))
        self.positions = nn.Parameter(torch.empty(1, 1 + count, d))
        nn.init.normal_(self.positions, std=0.02)
        self.layers, self.norm, self.head = nn.Sequential(*layers), norm, head
        self.register_forward_pre_hook(_of_size)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)  # n t-1 d
        x = torch.cat((self.token.expand(x.shape[0], -1, -1), x), 1)  # n t d
        x = self.layers(self.dropout(x + self.positions))
        return self.head(self.norm(x[:, 0]))  # n classes


def _of_size(module: ViT, args: tuple[Tensor, ...]) -> None:
    if args[0].shape[-2:] != (module.size, module.size):
        size = "x".join(map(str, args[0].shape[-2:]))
        raise SkipformError(f"net 'vit': images of {size} are not accepted; it takes {module.size}x{module.size}")


def build(
    *,
    in_channels: Size = 3,
    image_size: Size = 32,
    num_classes: Size = 10,
    patch: Size = 4,
    depth: Depth = 12,
    width: Size = 192,
    heads: Size = 3,
    hidden: Size | None = None,
    norm: NormKind = "pre",
    skip: EncoderSkip = "add",
    representation_size: Size | None = None,
    dropout: Share = 0.0,
) -> nn.Module:
    """(n, in_channels, image_size, image_size) -> (n, num_classes) through (image_size / patch)^2 + 1 tokens.

    patch: side of a patch in pixels. depth: layers. width: d. hidden: width inside the feed-forward, by default 4 d.
    norm: "pre" with a last norm, as in the paper; "post" without one.
    skip: around every sub-layer ("add"), around none, or around those named.
    representation_size: width of a hidden layer of the head, with tanh, as in pre-training; None: the head is affine.
    dropout: on the output of every sub-layer, inside the feed-forward, and on the sums of patches and positions.
    """
    check_multiple("vit", "image_size", image_size, patch, "patch")
    check_multiple("vit", "width", width, heads, "heads")
    layers = [
        Layer(
            width,
            SelfAttention(width, heads),
            feed_forward(width, hidden or 4 * width, nn.GELU(), dropout),
            norm=norm,
            skip=skip,
            dropout=dropout,
            eps=1e-6,
        )
        for _ in range(depth)
    ]
    last = nn.LayerNorm(width, 1e-6) if norm == "pre" else nn.Identity()
    patches = nn.Conv2d(in_channels, width, patch, patch)
    scores = nn.Linear(representation_size or width, num_classes)
    head: nn.Module = scores
    if representation_size is not None:
        inner = nn.Linear(width, representation_size)
        nn.init.trunc_normal_(inner.weight, std=math.sqrt(1 / width))
        nn.init.zeros_(inner.bias)
        head = nn.Sequential(inner, nn.Tanh(), scores)
    net = ViT(image_size, patches, layers, last, head, dropout)
    for module in net.layers.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
    nn.init.trunc_normal_(patches.weight, std=math.sqrt(1 / (in_channels * patch**2)))
    for p in (patches.get_parameter("bias"), *scores.parameters()):
        nn.init.zeros_(p)
    return net
