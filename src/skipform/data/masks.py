"""Images with a class for every pixel: scenes of digits, ISBI 2012 and Pascal VOC 2012.

Letters: n images of a batch, N images of a split, c channels, H W height and width of an image, h w of a crop.
"""

import io
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from skipform.arguments import Count, Factor, NotNegative, Range, Seed, Size
from skipform.data.borders import border_weights
from skipform.data.epochs import Epochs, Loader
from skipform.data.images import standardiser
from skipform.data.module import DataModule
from skipform.data.scenes import scenes
from skipform.data.source import ArchiveSource, Source, sums
from skipform.errors import SkipformError


class MaskSet(NamedTuple):
    """Images (in_channels, H, W) and masks (H, W) of classes 0 .. num_classes - 1; pixels of the class ignore_index
    have none."""

    in_channels: int
    num_classes: int
    ignore_index: int | None
    mean: tuple[float, ...]  # per channel, of the training images scaled to [0, 1]
    deviation: tuple[float, ...]


SETS = {
    "digit_masks": MaskSet(1, 11, None, (0.164,), (0.201,)),
    "isbi2012": MaskSet(1, 2, None, (0.491,), (0.171,)),
    # ImageNet's mean and deviation, which torchvision's backbones expect
    "voc2012": MaskSet(3, 21, 255, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}
ISBI = "https://raw.githubusercontent.com/zhixuhao/unet/909ae9b5fefd8a55900e24a771b073b1d4ef70ff/"
VOC = "VOCdevkit/VOC2012"
VOC_LISTS = {split: f"{VOC}/ImageSets/Segmentation/{part}.txt" for split, part in (("train", "train"), ("test", "val"))}
VOC_SIDE = 500  # no image of VOC is higher or wider


class Masks(DataModule):
    """One set of images and their masks, stored as bytes on the device that trains.

    digit_masks   scenes of scikit-learn's digits (see `scenes`): 0 background, 1 + digit. There are a fifth as
                  many test scenes, of digits that are in no training scene.
    isbi2012      30 neighbouring slices of a fly's nerve cord, 512x512, 1 channel: 0 membrane, 1 cell. The masks of the
                  challenge's own test are not public; here slices 0 .. 23 are for training, 24 .. 29 for testing: a
                  block, since neighbours look alike. In ROOT/isbi2012_unet/data/membrane, or packed in
                  ROOT/isbi2012_unet/membrane.tar.
    voc2012       1,464 + 1,449 photographs of 20 kinds of things, 3 channels, at most 500x500, filled up to that size
                  with the mean and with pixels that have no class, as the contours have none. In
                  ROOT/VOCdevkit/VOC2012, or in torchvision's archive, ROOT/VOCtrainval_11-May-2012.tar.

    Files are checked before use, isbi2012's against their sha256 sums. Archives are read without unpacking them.

    A batch is (images (n, c, h, w), masks int64 (n, h, w)); in training, if `border_weight` is not 0, also the weights
    float32 (n, h, w) of the borders between cells.

    Args:
        name: the set.
        root: the folder that holds the files; scenes of digits need none.
        download: fetch files that are missing or altered; without it they are an error.
        batch_size: images of a training batch; an epoch has only full ones (fewer images than that make one batch).
        limit: use only this number of images of each split, the first ones.
        scenes, canvas, digits, size: for digit_masks, the number of training scenes, and arguments of `scenes`.
        crop: training images are cropped at random to squares with sides of this number of pixels; None: whole images.
        crops: the number of crops of each image in an epoch of training.
        symmetries: 2: training images are mirrored left-right with probability 1/2; 8: each of the square's symmetries
            is equally likely; 1: neither.
        elastic: training images are deformed: the points of a 3x3 grid over the image move by random vectors, normal
            with a deviation of this number of pixels, and all points between by bicubic interpolation (U-Net, Section
            3.1, has 10); what is beyond the border is mirrored.
        grey: the values x of a training image, standardised, become (1 + a) x + b, with a and b drawn for the image,
            normal with this deviation. U-Net trains with such changes, but states neither their form nor their size.
        border_weight, border_width: w_0 and, in pixels, sigma of `border_weights`; U-Net has 10 and 5. Not for a set
            with an ignore_index.
        seed: with the epoch's number it determines the order and variations of that epoch. Scenes are the same for
            every seed.
    """

    TARGETS = "masks"

    def __init__(
        self,
        name: Literal["digit_masks", "isbi2012", "voc2012"],
        *,
        root: str = "data",
        download: bool = False,
        batch_size: Count = 8,
        limit: Count | None = None,
        scenes: Annotated[int, Range(5)] = 1000,
        canvas: Size = 64,
        digits: tuple[int, int] = (2, 5),
        size: tuple[int, int] = (12, 24),
        crop: Count | None = None,
        crops: Count = 1,
        symmetries: Literal[1, 2, 8] = 1,
        elastic: Annotated[float, Range(0)] = 0.0,
        grey: Annotated[float, Range(0)] = 0.0,
        border_weight: NotNegative = 0.0,
        border_width: Factor = 5.0,
        seed: Seed = 0,
    ) -> None:
        super().__init__(name, SETS, root=root, download=download, seed=seed)
        self.batch_size, self.limit = batch_size, limit
        self.scenes = (scenes, canvas, tuple(digits), tuple(size))
        self.crop, self.crops, self.symmetries, self.elastic, self.grey = crop, crops, symmetries, elastic, grey
        if border_weight and SETS[name].ignore_index is not None:
            raise SkipformError(
                f"data.border_weight: {border_weight} for {name!r}, some of whose pixels have no class; accepted: 0"
            )
        self.border_weight, self.border_width = border_weight, border_width
        self.pixels: dict[str, tuple[Tensor, Tensor]] = {}  # split -> uint8 (N, c, H, W), uint8 (N, H, W)
        self.borders: Tensor | None = None  # float32 (N, H, W), of the training images

    @staticmethod
    def states(name: str, **rest: Any) -> dict[str, Any]:
        """in_channels, num_classes, ignore_index."""
        return {key: getattr(SETS[name], key) for key in ("in_channels", "num_classes", "ignore_index")}

    @property
    def splits(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Split -> images (N, c, H, W) as a net takes them, masks uint8 (N, H, W)."""
        standardise = self._standardise(torch.device("cpu"))
        return {split: (standardise(images), masks) for split, (images, masks) in self.pixels.items()}

    def sources(self) -> Iterator[Source]:
        if self.name == "isbi2012":
            yield _isbi(self.folder)
        if self.name == "voc2012":
            yield (lists := _voc(self.folder, VOC_LISTS.values()))
            pairs = [pair for split in VOC_LISTS for pair in _voc_pairs(lists, split)]
            yield _voc(self.folder, [file for pair in pairs for file in pair])

    def setup(self, stage: str | None = None) -> None:
        """Fill `pixels`."""
        if self.name == "digit_masks":
            count, canvas, digits, size = self.scenes
            for split, number in (("train", count), ("test", count // 5)):
                drawn = scenes(split, min(number, self.limit or number), canvas=canvas, digits=digits, size=size)
                self.pixels[split] = (drawn.images, drawn.masks)
        else:
            self.pixels = dict(_read(self.name, self.root, self.limit))
        if self.border_weight:
            sizes = {"w_0": self.border_weight, "sigma": self.border_width}
            weights = [border_weights(mask, **sizes) for mask in self.pixels["train"][1].numpy()]
            self.borders = torch.from_numpy(np.stack(weights))
        h, w = self.pixels["train"][1].shape[1:]
        if self.crop is not None and self.crop > min(h, w):
            raise SkipformError(f"data.crop: {self.crop}; accepted: at most {min(h, w)}, the size of the images")

    def _standardise(self, device: torch.device) -> Callable[[Tensor], Tensor]:
        """uint8, (n, c, h, w) -> float32 of mean 0 and deviation 1."""
        return standardiser(255, SETS[self.name].mean, SETS[self.name].deviation, device)

    def loader(self, split: str, *, training: bool = False) -> "Tiles":
        """In training random crops, otherwise whole images."""
        images, masks = (part.to(self.device) for part in self.pixels[split])
        standardise = self._standardise(images.device)
        if not training:
            batch_size = max(1, 2**20 // masks[0].numel())  # a million pixels
            return Tiles(images, masks, Epochs(len(images), batch_size, share=self.share), standardise=standardise)
        return Tiles(
            images,
            masks,
            Epochs(len(images) * self.crops, self.batch_size, seed=self.seed, share=self.share),
            standardise=standardise,
            crop=self.crop,
            symmetries=self.symmetries,
            elastic=self.elastic,
            grey=self.grey,
            borders=None if self.borders is None else self.borders.to(self.device),
        )


class Tiles(Loader):
    """Batches of images and their masks, made on their device: random crops with random variations in training,
    otherwise whole images.

    Everything random in an epoch is drawn on the CPU and copied to the device at its start, so that the host never
    waits for the device within an epoch.

    batch_sampler: index i means a crop of image i modulo N, so that a count of k N gives k crops of every image.
    """

    def __init__(
        self,
        images: Tensor,  # uint8 (N, c, H, W)
        masks: Tensor,  # uint8 (N, H, W)
        batch_sampler: Epochs,
        *,
        standardise: Callable[[Tensor], Tensor] = torch.Tensor.float,
        crop: int | None = None,
        symmetries: int = 1,
        elastic: float = 0.0,
        grey: float = 0.0,
        borders: Tensor | None = None,  # float32 (N, H, W)
    ) -> None:
        super().__init__(batch_sampler)
        self.images, self.masks, self.standardise = images, masks, standardise
        size = masks.shape[1:]
        self.h, self.w = size if crop is None else (crop, crop)
        if symmetries == 8 and self.h != self.w:
            raise SkipformError(f"data.symmetries: 8 of images of {self.h}x{self.w}; accepted: with squares, see crop")
        self.symmetries, self.elastic, self.grey, self.borders = symmetries, elastic, grey, borders

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        epochs = self.batch_sampler
        if epochs.seed is None:
            for part in epochs.slices():
                yield self.standardise(self.images[part]), self.masks[part].long()
            return
        generator = epochs.generator()
        order = epochs.order(generator) % len(self.images)  # (batches, B)
        free = torch.tensor(self.masks.shape[1:]) - torch.tensor([self.h, self.w])
        corner = (torch.rand(*order.shape, 2, generator=generator, dtype=torch.float64) * (free + 1)).long()
        turned = torch.rand(*order.shape, 3, generator=generator) < 0.5
        knots = self.elastic * torch.randn(*order.shape, 2, 3, 3, generator=generator)
        grey = self.grey * torch.randn(*order.shape, 2, 1, 1, 1, generator=generator)
        own = (epochs.own(drawn).to(self.images.device) for drawn in (order, corner, knots, turned, grey))
        for chosen, corners, vectors, turns, change in zip(*own, strict=True):
            images, masks, *weights = (self._turned(part, turns) for part in self._cut(chosen, corners, vectors))
            if self.grey:
                a, b = change.unbind(1)  # n 1 1 1
                images = (1 + a) * images + b
            yield images, masks[:, 0].long(), *(part[:, 0] for part in weights)

    def _cut(self, chosen: Tensor, corner: Tensor, knots: Tensor) -> tuple[Tensor, ...]:
        """The crop of image chosen[i] with its top left at corner[i], deformed: (n, c, h, w); its mask (n, 1, h, w);
        its border weights, if there are any, of the same shape."""
        height, width = self.masks.shape[1:]
        at = chosen[:, None, None, None]
        channel = torch.arange(self.images.shape[1], device=chosen.device)[:, None, None]
        row, column = (torch.arange(size, device=chosen.device) for size in (self.h, self.w))
        rows = (corner[:, :1] + row)[:, None, :, None]  # n 1 h 1
        columns = (corner[:, 1:] + column)[:, None, None, :]  # n 1 1 w
        if not self.elastic:
            maps = [self.masks] if self.borders is None else [self.masks, self.borders]
            return self.standardise(self.images[at, channel, rows, columns]), *(x[at, rows, columns] for x in maps)
        moved = functional.interpolate(knots, (height, width), mode="bicubic", align_corners=True)  # n 2 H W
        one, xy = torch.arange(len(chosen), device=chosen.device)[:, None, None, None], channel.new_tensor([0, 1])
        moved = moved[one, xy[:, None, None], rows, columns]  # n 2 h w
        x, y = columns[:, 0] + moved[:, 0], rows[:, 0] + moved[:, 1]  # n h w
        grid = torch.stack((2 * x / (width - 1) - 1, 2 * y / (height - 1) - 1), -1)  # n h w 2

        def sampled(x: Tensor, mode: str) -> Tensor:
            return functional.grid_sample(x, grid, mode=mode, padding_mode="reflection", align_corners=True)

        masks = self.masks[chosen][:, None].float()  # n 1 H W
        cut = sampled(self.standardise(self.images[chosen]), "bilinear"), sampled(masks, "nearest")
        return cut if self.borders is None else (*cut, sampled(self.borders[chosen][:, None], "bilinear"))

    def _turned(self, images: Tensor, turned: Tensor) -> Tensor:
        """Images (n, c, h, w) mirrored left-right, top-bottom and at the diagonal where turned (n, 3) is True."""
        changes = (lambda x: x.flip(3), lambda x: x.flip(2), lambda x: x.transpose(2, 3))
        for change, wanted in list(zip(changes, turned.T, strict=True))[: {1: 0, 2: 1, 8: 3}[self.symmetries]]:
            images = torch.where(wanted[:, None, None, None], change(images), images)
        return images


def _isbi(root: Path) -> Source:
    folder = root / "isbi2012_unet"
    return Source(folder, sums("isbi2012"), ISBI, archive=folder / "membrane.tar")


def _voc(root: Path, files: Iterable[str]) -> Source:
    from torchvision.datasets.voc import DATASET_YEAR_DICT

    voc = DATASET_YEAR_DICT["2012"]
    return ArchiveSource(root, dict.fromkeys(files), voc["url"], md5=voc["md5"], archive=root / voc["filename"])


def _voc_pairs(source: Source, split: str) -> list[tuple[str, str]]:
    """The files of the images of a split and of their masks."""
    names = source.read(VOC_LISTS[split]).decode().split()
    return [(f"{VOC}/JPEGImages/{name}.jpg", f"{VOC}/SegmentationClass/{name}.png") for name in names]


@lru_cache(maxsize=1)  # the seeds and variants of one experiment read the same set
def _read(name: str, root: str, limit: int | None) -> tuple[tuple[str, tuple[Tensor, Tensor]], ...]:
    """Splits of a set whose files have been checked: images uint8 (N, c, H, W), masks uint8 (N, H, W)."""
    parts = {}
    if name == "isbi2012":
        source = _isbi(Path(root))
        for split, slices in (("train", range(24)), ("test", range(24, 30))):
            images, masks = (
                np.stack([_decoded(source, f"data/membrane/train/{kind}/{i}.png") for i in slices[:limit]])
                for kind in ("image", "label")
            )
            parts[split] = (images[:, None], masks >> 7)  # 0 and 255 -> 0 and 1
    else:
        mean = np.rint(255 * np.array(SETS[name].mean)).astype(np.uint8)
        source = _voc(Path(root), [])
        for split in VOC_LISTS:
            pairs = _voc_pairs(source, split)[:limit]
            images = np.tile(mean[:, None, None], (len(pairs), 1, VOC_SIDE, VOC_SIDE))
            masks = np.full((len(pairs), VOC_SIDE, VOC_SIDE), 255, np.uint8)
            for i, (photograph, mask) in enumerate(pairs):
                pixels = _decoded(source, photograph).transpose(2, 0, 1)
                h, w = pixels.shape[1:]
                images[i, :, :h, :w], masks[i, :h, :w] = pixels, _decoded(source, mask)
            parts[split] = (images, masks)
    return tuple(
        (split, (torch.from_numpy(images), torch.from_numpy(masks))) for split, (images, masks) in parts.items()
    )


def _decoded(source: Source, file: str) -> np.ndarray:
    """The pixels of a picture: (H, W) if it has one channel or a palette, otherwise (H, W, 3)."""
    try:
        return np.array(Image.open(io.BytesIO(source.read(file))))
    except OSError as error:
        raise SkipformError(f"{source.folder / file}: altered or cut short: {error}") from error
