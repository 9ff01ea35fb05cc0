"""U-Net: Ronneberger, Fischer, Brox, "U-Net: convolutional networks for biomedical image segmentation" (MICCAI 2015).

Figure 1: four times two 3x3 convolutions and 2x2 max pooling, with 64, 128, 256, 512 channels, two convolutions with
1024, then four times a 2x2 transposed convolution that halves the channels, its concatenation with the map of the
contracting path, and two convolutions: 23 convolutions without padding, with biases, no batch norm; 31,030,658
parameters for 1 channel and 2 classes. A 572x572 tile gives the scores of its inner 388x388. ISBI 2012: warping error
0.000353, Rand 0.0382, pixel 0.0611. No deviation. Dropout, of 0.5, is where the released net has it: after the second
convolution of the level with 512 channels, before pooling and skip, and of the lowest level. padding="same" keeps the
size of any image.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, Literal

from torch import Tensor, nn

from skipform.arguments import Range, Share, Size
from skipform.errors import SkipformError
from skipform.nets.blocks import MERGES, init_he

SURVEY = {
    "paper": "Ronneberger et al., MICCAI 2015",
    "year": 2015,
    "skip": "concatenation, long",
    "levels": 4,
}
VARIANTS = {
    "U-Net": ({}, 23, 31_030_658),
    "U-Net, one class": ({"num_classes": 1}, 23, 31_030_593),
    "U-Net, addition": ({"skip": "add"}, 23, 27_897_218),
    "U-Net, no skips": ({"skip": "none"}, 23, 27_897_218),
}


def centre(x: Tensor, h: int, w: int) -> Tensor:
    top, left = (x.shape[-2] - h) // 2, (x.shape[-1] - w) // 2
    return x[..., top : top + h, left : left + w]


class UpAndMerge(nn.Module):
    """(coarse, skipped) -> merge of up(coarse) and skipped, the larger of the two cut to its centre.

    Without padding the skipped map is larger; with padding up(coarse) may be larger, by a pixel that pooling rounded
    up.
    """

    def __init__(self, c_in: int, c: int, skip: str):
        super().__init__()
        self.up, self.merge = nn.ConvTranspose2d(c_in, c, 2, 2), MERGES[skip]
        nn.init.normal_(self.up.weight, std=(2 / c_in) ** 0.5)

    def forward(self, coarse: Tensor, skipped: Tensor) -> Tensor:
        up = self.up(coarse)  # n c 2h 2w
        h, w = min(up.shape[-2], skipped.shape[-2]), min(up.shape[-1], skipped.shape[-1])
        return self.merge(centre(up, h, w), centre(skipped, h, w))


class UNet(nn.Module):
    """(n, c, h, w) -> (n, classes, h - 2 margin, w - 2 margin): the scores of the inner pixels.

    With padding `margin` is 0 and any size is accepted. Without, it is 92 at four levels, and a size at which a maximum
    would halve an odd number, or nothing would be left, is a SkipformError.
    """

    def __init__(
        self,
        down: Sequence[nn.Module],
        joins: Sequence[UpAndMerge],
        up: Sequence[nn.Module],
        head: nn.Module,
        padded: bool,
    ):
        super().__init__()
        self.down, self.joins, self.up, self.head = nn.ModuleList(down), nn.ModuleList(joins), nn.ModuleList(up), head
        self.pool, self.padded = nn.MaxPool2d(2, ceil_mode=True), padded
        self.step = 1 if padded else 2 ** len(joins)
        # the two convolutions of a level take 4 of its pixels, in the contracting and again in the expanding path
        self.margin = 0 if padded else 4 * (self.step - 1) + 2 * self.step
        # the output is the least positive size, or larger, that is 4 more than a multiple of the step
        self.least = 1 if padded else 2 * self.margin + 3 % self.step + 1
        self.register_forward_pre_hook(_fits)

    def check(self, *size: int) -> None:
        """A SkipformError that names the sizes that fit, unless these do."""
        if any(s < self.least or (s - self.least) % self.step for s in size):
            images, fits = "x".join(map(str, size)), [self.least + i * self.step for i in range(3)]
            nearest = max(0, round((size[0] - self.least) / self.step)) * self.step + self.least
            accepted = f"{', '.join(map(str, fits))}, ... (steps of {self.step}; nearest {nearest})"
            raise SkipformError(f"net 'unet': images of {images} are not accepted without padding; it takes {accepted}")

    def room(self, size: int) -> int:
        """The least side of an image that fits and of which at least `size` pixels are scored."""
        return self.least + max(0, -(-(size + 2 * self.margin - self.least) // self.step)) * self.step

    def forward(self, x: Tensor) -> Tensor:
        skipped = []
        for level in self.down[:-1]:
            x = level(x)  # n c h w
            skipped.append(x)
            x = self.pool(x)  # n c h/2 w/2
        x = self.down[-1](x)
        for join, level in zip(self.joins, self.up, strict=True):
            x = level(join(x, skipped.pop()))  # n c/2 2h 2w
        return self.head(x)


def _fits(module: UNet, args: tuple[Tensor, ...]) -> None:
    module.check(*args[0].shape[-2:])


def build(
    *,
    in_channels: Size = 1,
    num_classes: Size = 2,
    image_size: Size | None = None,
    width: Size = 64,
    levels: Annotated[int, Range(0, 16)] = 4,
    padding: Literal["valid", "same"] = "valid",
    skip: Literal["concat", "add", "none"] = "concat",
    batch_norm: bool = False,
    dropout: Share = 0.0,
) -> nn.Module:
    """(n, in_channels, h, w) -> (n, num_classes, h - 2 margin, w - 2 margin), margin 0 with padding="same".

    image_size: if given, checked at once instead of at the first image. levels: how often the size is halved.
    width: channels of the first level, doubled at every following one.
    skip: how a map of the contracting path is merged into the expanding path: "concat", "add", or "none", not at all.
    batch_norm: after every 3x3 convolution. dropout: after the second convolution of the two lowest levels.
    """

    def level(c_in: int, c: int, p: float = 0.0) -> nn.Sequential:
        layers: list[nn.Module] = []
        for a in (c_in, c):
            norm = [nn.BatchNorm2d(c)] if batch_norm else []
            layers += [nn.Conv2d(a, c, 3, padding=int(padding == "same")), *norm, nn.ReLU()]
        return nn.Sequential(*layers, *([nn.Dropout(p)] if p else []))

    channels = [width * 2**i for i in range(levels + 1)]
    down = [level(a, c, dropout * (c in channels[-2:])) for a, c in pairwise([in_channels, *channels])]
    ups = list(pairwise(reversed(channels)))
    joins = [UpAndMerge(c_in, c, skip) for c_in, c in ups]
    up = [level(2 * c if skip == "concat" else c, c) for _, c in ups]
    net = UNet(down, joins, up, nn.Conv2d(width, num_classes, 1), padding == "same")
    if image_size is not None:
        net.check(image_size)
    return init_he(net, "fan_in")
