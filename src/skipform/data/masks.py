"""Images with a class for every pixel: scenes of digits, ISBI 2012 and Pascal VOC 2012.

Letters: n images of a batch, N images of a split, c channels, H W height and width of an image, h w of a crop.
"""

import hashlib
import io
import tarfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from PIL import Image
from torch import Tensor
from torch.nn import functional

from skipform.data.scenes import scenes
from skipform.errors import SkipformError


@dataclass(frozen=True)
class Stated:
    """What net and task must know: (in_channels, H, W) -> (H, W) of classes 0 .. num_classes - 1; pixels of the class
    ignore_index have none."""

    in_channels: int
    num_classes: int
    ignore_index: int | None


# Mean and standard deviation per channel, of the training images scaled to [0, 1]; of voc2012 those of ImageNet, as
# torchvision's backbones take them.
SETS = {
    "digit_masks": (Stated(1, 11, None), (0.164,), (0.201,)),
    "isbi2012": (Stated(1, 2, None), (0.491,), (0.171,)),
    "voc2012": (Stated(3, 21, 255), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}
ISBI = "https://raw.githubusercontent.com/zhixuhao/unet/909ae9b5fefd8a55900e24a771b073b1d4ef70ff/"
VOC_SIDE = 500  # no image of VOC is higher or wider


class Masks(LightningDataModule):
    """One set of images and their masks, in memory as bytes, on the device that trains.

    digit_masks   scenes of scikit-learn's digits (see `scenes`): 0 background, 1 + digit. Those for testing are a fifth
                  as many, of digits that are in none for training.
    isbi2012      30 neighbouring slices of a fly's nerve cord, 512x512, 1 channel: 0 membrane, 1 cell. The challenge
                  keeps its own test's masks to itself; here slices 0 .. 23 are for training, 24 .. 29 for testing: a
                  block, since neighbours look alike. In ROOT/isbi2012_unet/data/membrane, or in membrane.tar beside.
    voc2012       1,464 + 1,449 photographs of 20 kinds of things, 3 channels, at most 500x500, filled up to that with
                  the mean and with pixels that have no class, as the contours have none. In ROOT/VOCdevkit/VOC2012, or
                  in torchvision's archive, ROOT/VOCtrainval_11-May-2012.tar.

    Files are checked before use, isbi2012's against their sha256 sums; one that is missing or altered is an error that
    names it, unless `download` is true. Archives are read as they are, not unpacked.

    A batch is (images (n, c, h, w), masks int64 (n, h, w)).

    Args:
        name: the set.
        root: the folder that holds the files; scenes of digits need none.
        download: fetch what is missing or altered. Nothing is fetched when all is there.
        batch_size: images of a training batch; an epoch has only full ones (fewer images than that make one batch).
        limit: keep only so many images of each split, the first.
        scenes, canvas, digits, size: of digit_masks: how many are for training, and the arguments of `scenes`.
        crop: training images are cropped at random to so many pixels a side; none: they are whole.
        crops: an epoch of training has so many crops of each image.
        symmetries: 2: training images are mirrored left-right with probability 1/2; 8: each of the square's symmetries
            is as likely; 1: neither.
        elastic: training images are deformed: the points of a 3x3 grid over the image move by random vectors, normal
            with so many pixels' deviation, all between by bicubic interpolation (U-Net, Section 3.1, has 10); what is
            beyond the border is mirrored.
        seed: with the epoch's number it fixes the order and variations of that epoch, whatever came before. Scenes are
            the same for every seed.
    """

    TARGETS = "masks"

    def __init__(
        self,
        name: Literal["digit_masks", "isbi2012", "voc2012"],
        *,
        root: str = "data",
        download: bool = False,
        batch_size: int = 8,
        limit: int | None = None,
        scenes: int = 1000,
        canvas: int = 64,
        digits: tuple[int, int] = (2, 5),
        size: tuple[int, int] = (12, 24),
        crop: int | None = None,
        crops: int = 1,
        symmetries: Literal[1, 2, 8] = 1,
        elastic: float = 0.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if name not in SETS:
            raise SkipformError(f"unknown data set {name!r}; accepted: {', '.join(SETS)}")
        sizes = (
            ("batch_size", batch_size, 1),
            ("limit", limit, 1),
            ("scenes", scenes, 5),
            ("crop", crop, 1),
            ("crops", crops, 1),
            ("elastic", elastic, 0),
        )
        for key, value, least in sizes:
            if value is not None and value < least:
                raise SkipformError(f"data.{key}: {value}; accepted: {least} or more")
        if symmetries not in (1, 2, 8):
            raise SkipformError(f"data.symmetries: {symmetries}; accepted: 1, 2, 8")
        self.name: str = name
        self.root, self.download, self.batch_size, self.limit = root, download, batch_size, limit
        self.scenes = (scenes, canvas, tuple(digits), tuple(size))
        self.crop, self.crops, self.symmetries, self.elastic, self.seed = crop, crops, symmetries, elastic, seed
        self.stated, self.mean, self.std = SETS[name]
        self.pixels: dict[str, tuple[Tensor, Tensor]] = {}

    @staticmethod
    def states(name: str, **rest: Any) -> dict[str, Any]:
        return asdict(SETS[name][0])

    @property
    def held_out(self) -> list[str]:
        return ["test"]

    @property
    def splits(self) -> dict[str, tuple[Tensor, Tensor]]:
        """{"train", "test"} -> images (N, c, H, W) as a net sees them, masks uint8 (N, H, W)."""
        standardise = self._standardise(torch.device("cpu"))
        return {split: (standardise(images), masks) for split, (images, masks) in self.pixels.items()}

    def prepare_data(self) -> None:
        """Check every file, or fetch it: SkipformError names the first that is missing or altered."""
        if self.name != "digit_masks":
            _check(self.name, Path(self.root), self.download)

    def setup(self, stage: str | None = None) -> None:
        """Fill `pixels`, one entry a split: uint8 (N, c, H, W), uint8 (N, H, W)."""
        if self.name == "digit_masks":
            count, canvas, digits, size = self.scenes
            for split, number in (("train", count), ("test", count // 5)):
                drawn = scenes(split, min(number, self.limit or number), canvas=canvas, digits=digits, size=size)
                self.pixels[split] = (drawn.images, drawn.masks)
        else:
            self.pixels = dict(_read(self.name, self.root, self.limit))
        h, w = self.pixels["train"][1].shape[1:]
        if self.crop is not None and self.crop > min(h, w):
            raise SkipformError(f"data.crop: {self.crop}; accepted: at most {min(h, w)}, the size of the images")

    def _standardise(self, device: torch.device) -> Callable[[Tensor], Tensor]:
        """uint8, (n, c, h, w) -> float32 of mean 0 and deviation 1."""
        mean, std = (torch.tensor(values, device=device)[:, None, None] for values in (self.mean, self.std))

        def standardise(images: Tensor) -> Tensor:
            return images.float().div_(255).sub_(mean).div_(std)

        return standardise

    def train_dataloader(self) -> "Tiles":
        """Of several processes each one takes its share of every batch."""
        images, masks = self._near("train")
        return Tiles(
            images,
            masks,
            self.batch_size,
            standardise=self._standardise(images.device),
            seed=self.seed,
            crop=self.crop,
            crops=self.crops,
            symmetries=self.symmetries,
            elastic=self.elastic,
            share=(self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1),
        )

    def val_dataloader(self) -> "list[Tiles]":
        """The test images, whole; of several processes each one takes its share."""
        rank, world = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        images, masks = (all[rank::world] for all in self._near("test"))
        at_once = max(1, 2**20 // masks[0].numel())  # a million pixels
        return [Tiles(images, masks, at_once, standardise=self._standardise(images.device))]

    def _near(self, split: str) -> tuple[Tensor, Tensor]:
        """The split on the trainer's device, so that no batch is copied there on its own."""
        device = self.trainer.strategy.root_device if self.trainer else torch.device("cpu")
        images, masks = self.pixels[split]
        return images.to(device), masks.to(device)


class Tiles:
    """The batches of one epoch, cut from images and masks where these lie.

    Training (`seed` given): full batches of crops, in an order and with variations drawn from (seed, epoch); what does
    not fill a batch sits this epoch out. Whoever trains sets `epoch` before each one. With share=(r, R), the r-th of R
    equal parts of each of these batches. Otherwise: all images, in order, whole.

    All that is random in an epoch is drawn on the CPU and moved at its start: within it the host never waits.
    """

    def __init__(
        self,
        images: Tensor,  # uint8 (N, c, H, W)
        masks: Tensor,  # uint8 (N, H, W)
        batch_size: int,
        *,
        standardise: Callable[[Tensor], Tensor] = torch.Tensor.float,
        seed: int | None = None,
        crop: int | None = None,
        crops: int = 1,
        symmetries: int = 1,
        elastic: float = 0.0,
        share: tuple[int, int] = (0, 1),
    ) -> None:
        self.images, self.masks, self.standardise = images, masks, standardise
        self.total = len(images) * crops
        self.batch_size = min(batch_size, self.total)
        if self.batch_size % share[1]:
            raise SkipformError(
                f"data.batch_size: {self.batch_size}; accepted: a multiple of {share[1]}, the processes"
            )
        size = masks.shape[1:]
        self.h, self.w = size if crop is None else (crop, crop)
        if symmetries == 8 and self.h != self.w:
            raise SkipformError(f"data.symmetries: 8 of images of {self.h}x{self.w}; accepted: with squares, see crop")
        self.seed, self.symmetries, self.elastic, self.share = seed, symmetries, elastic, share
        self.epoch = 0

    def __len__(self) -> int:
        full, rest = divmod(self.total, self.batch_size)
        return full if self.seed is not None else full + bool(rest)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        if self.seed is None:
            pairs = zip(*(all.split(self.batch_size) for all in (self.images, self.masks)), strict=True)
            for images, masks in pairs:
                yield self.standardise(images), masks.long()
            return
        mixed = np.random.SeedSequence([self.seed, self.epoch]).generate_state(1, np.uint64)
        generator = torch.Generator().manual_seed(int(mixed[0] >> np.uint64(1)))
        steps, n, (rank, world) = len(self), self.batch_size, self.share
        order = torch.randperm(self.total, generator=generator)[: steps * n].view(steps, n) % len(self.images)
        spare = torch.tensor(self.masks.shape[1:]) - torch.tensor([self.h, self.w])
        corner = (torch.rand(steps, n, 2, generator=generator, dtype=torch.float64) * (spare + 1)).long()
        turned = torch.rand(steps, n, 3, generator=generator) < 0.5
        knots = self.elastic * torch.randn(steps, n, 2, 3, 3, generator=generator)
        drawn = [
            all.view(steps, world, n // world, *all.shape[2:])[:, rank].to(self.images.device)
            for all in (order, corner, turned, knots)
        ]
        for chosen, *variation in zip(*drawn, strict=True):
            images, masks = self._cut(chosen, variation[0], variation[2])
            yield self._turned(images, variation[1]), self._turned(masks, variation[1])[:, 0].long()

    def _cut(self, chosen: Tensor, corner: Tensor, knots: Tensor) -> tuple[Tensor, Tensor]:
        """Image chosen[i] from its corner[i] on, deformed: (n, c, h, w), and its mask (n, 1, h, w)."""
        height, width = self.masks.shape[1:]
        at = chosen[:, None, None, None]
        channel = torch.arange(self.images.shape[1], device=chosen.device)[:, None, None]
        row, column = (torch.arange(size, device=chosen.device) for size in (self.h, self.w))
        rows = (corner[:, :1] + row)[:, None, :, None]  # n 1 h 1
        columns = (corner[:, 1:] + column)[:, None, None, :]  # n 1 1 w
        if not self.elastic:
            return self.standardise(self.images[at, channel, rows, columns]), self.masks[at, rows, columns]
        moved = functional.interpolate(knots, (height, width), mode="bicubic", align_corners=True)  # n 2 H W
        one, xy = torch.arange(len(chosen), device=chosen.device)[:, None, None, None], channel.new_tensor([0, 1])
        moved = moved[one, xy[:, None, None], rows, columns]  # n 2 h w
        x, y = columns[:, 0] + moved[:, 0], rows[:, 0] + moved[:, 1]  # n h w
        grid = torch.stack((2 * x / (width - 1) - 1, 2 * y / (height - 1) - 1), -1)  # n h w 2

        def sampled(of: Tensor, mode: str) -> Tensor:
            return functional.grid_sample(of, grid, mode=mode, padding_mode="reflection", align_corners=True)

        masks = self.masks[chosen][:, None].float()  # n 1 H W
        return sampled(self.standardise(self.images[chosen]), "bilinear"), sampled(masks, "nearest")

    def _turned(self, images: Tensor, turned: Tensor) -> Tensor:
        """(n, c, h, w), each mirrored left-right, top-bottom and at the diagonal, as turned (n, 3) has it."""
        changes = (lambda x: x.flip(3), lambda x: x.flip(2), lambda x: x.transpose(2, 3))
        for change, wanted in list(zip(changes, turned.T, strict=True))[: {1: 0, 2: 1, 8: 3}[self.symmetries]]:
            images = torch.where(wanted[:, None, None, None], change(images), images)
        return images


class Kept:
    """Files below a folder, and where one is not there, the member of that name of an archive."""

    def __init__(self, folder: Path, archive: Path) -> None:
        self.folder, self.archive = folder, archive
        self.members: dict[str, tarfile.TarInfo] = {}
        with suppress(FileNotFoundError, tarfile.ReadError):  # of one that was cut short, what is left
            self.tar = tarfile.open(archive)  # noqa: SIM115 (read from as long as this lives)
            for member in self.tar:
                self.members[member.name] = member

    def has(self, name: str) -> bool:
        return (self.folder / name).is_file() or name in self.members

    def read(self, name: str) -> bytes:
        """The file's bytes; those that are left, if the archive was cut short."""
        if (self.folder / name).is_file():
            return (self.folder / name).read_bytes()
        try:
            return self.tar.extractfile(self.members[name]).read()  # type: ignore[union-attr]
        except tarfile.ReadError:
            return b""


def _isbi(root: Path) -> Kept:
    folder = root / "isbi2012_unet"
    return Kept(folder, folder / "membrane.tar")


def _isbi_sums() -> dict[str, str]:
    """Name -> sha256 sum of every file that is used."""
    lines = Path(__file__).with_name("isbi2012.sha256").read_text(encoding="utf-8").splitlines()
    return {name: total for total, name in (line.split() for line in lines)}


def _voc(root: Path) -> Kept:
    from torchvision.datasets.voc import DATASET_YEAR_DICT

    return Kept(root, root / DATASET_YEAR_DICT["2012"]["filename"])


def _voc_pairs(kept: Kept, part: str) -> list[tuple[str, str]]:
    """Names of the images of a part (train, val) and of their masks."""
    base = "VOCdevkit/VOC2012"
    names = kept.read(f"{base}/ImageSets/Segmentation/{part}.txt").decode().split()
    return [(f"{base}/JPEGImages/{name}.jpg", f"{base}/SegmentationClass/{name}.png") for name in names]


@lru_cache(maxsize=1)  # the seeds and variants of one experiment read the same set
def _read(name: str, root: str, limit: int | None) -> tuple[tuple[str, tuple[Tensor, Tensor]], ...]:
    """Splits of a set whose files have been checked: images uint8 (N, c, H, W), masks uint8 (N, H, W)."""
    if name == "isbi2012":
        kept = _isbi(Path(root))
        parts = {}
        for split, slices in (("train", range(24)), ("test", range(24, 30))):
            images, masks = (
                np.stack([_decoded(kept, f"data/membrane/train/{kind}/{i}.png") for i in slices[:limit]])
                for kind in ("image", "label")
            )
            parts[split] = (images[:, None], masks >> 7)  # 0 and 255 -> 0 and 1
    else:
        kept = _voc(Path(root))
        mean = np.rint(255 * np.array(SETS[name][1])).astype(np.uint8)
        parts = {}
        for split, part in (("train", "train"), ("test", "val")):
            pairs = _voc_pairs(kept, part)[:limit]
            images = np.tile(mean[:, None, None], (len(pairs), 1, VOC_SIDE, VOC_SIDE))
            masks = np.full((len(pairs), VOC_SIDE, VOC_SIDE), 255, np.uint8)
            for i, (photograph, mask) in enumerate(pairs):
                pixels = _decoded(kept, photograph).transpose(2, 0, 1)
                h, w = pixels.shape[1:]
                images[i, :, :h, :w], masks[i, :h, :w] = pixels, _decoded(kept, mask)
            parts[split] = (images, masks)
    return tuple(
        (split, (torch.from_numpy(images), torch.from_numpy(masks))) for split, (images, masks) in parts.items()
    )


def _decoded(kept: Kept, name: str) -> np.ndarray:
    """(H, W) of a picture with one channel or a palette, (H, W, 3) of others."""
    try:
        return np.array(Image.open(io.BytesIO(kept.read(name))))
    except OSError as error:
        raise SkipformError(f"{kept.folder / name}: altered or cut short: {error}") from error


def _check(name: str, root: Path, download: bool) -> None:
    """Every file of the set is there, fetched if need be and allowed; or SkipformError names the first that is not."""
    from torchvision.datasets.utils import download_and_extract_archive, download_url
    from torchvision.datasets.voc import DATASET_YEAR_DICT

    voc = DATASET_YEAR_DICT["2012"]
    source = ISBI if name == "isbi2012" else voc["url"]
    broken = _broken(name, root)
    if not broken:
        return
    first, state = next(iter(broken.items()))
    if not download:
        raise SkipformError(
            f"{first}: {state}; mend it with --data.download true, or with: python -c "
            f'"from skipform.data.masks import Masks; '
            f'Masks({name!r}, root={str(root)!r}, download=True).prepare_data()"'
        )
    try:
        if name == "isbi2012":
            folder = root / "isbi2012_unet"
            for path in broken:
                path.unlink(missing_ok=True)
                download_url(ISBI + path.relative_to(folder).as_posix(), str(path.parent))
        else:
            download_and_extract_archive(source, str(root), filename=voc["filename"], md5=voc["md5"])
    except (OSError, RuntimeError) as error:  # no network, no space, a wrong sum
        raise SkipformError(f"{first}: could not be fetched from {source}: {error}") from error
    for path, state in _broken(name, root).items():
        raise SkipformError(f"{path}: {state} at its home too, {source}")


def _broken(name: str, root: Path) -> dict[Path, str]:
    """The set's files that are not as they should be -> what they are."""
    if name == "isbi2012":
        kept, sums = _isbi(root), _isbi_sums()
        wrong = [path for path, total in sums.items() if not kept.has(path) or _sha256(kept.read(path)) != total]
    else:
        kept = _voc(root)
        lists = [f"VOCdevkit/VOC2012/ImageSets/Segmentation/{part}.txt" for part in ("train", "val")]
        wrong = [path for path in lists if not kept.has(path)]
        if not wrong:
            pairs = [path for part in ("train", "val") for pair in _voc_pairs(kept, part) for path in pair]
            wrong = [path for path in pairs if not kept.has(path)]
    return {kept.folder / path: "altered or cut short" if kept.has(path) else "missing" for path in wrong}


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
