"""Images and their class: the digits inside scikit-learn, CIFAR-10 and Fashion-MNIST.

Letters: n images of a batch, N images of a split, c channels, h w height and width.
"""

import gzip
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.nn import functional

from skipform.errors import SkipformError


@dataclass(frozen=True)
class Stated:
    """What a net must know of the images: (in_channels, image_size, image_size) -> one of num_classes."""

    in_channels: int
    image_size: int
    num_classes: int


# Mean and standard deviation per channel, of the training images scaled to [0, 1].
SETS = {
    "digits": (Stated(1, 8, 10), (0.305,), (0.376,)),
    "cifar10": (Stated(3, 32, 10), (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "fashion_mnist": (Stated(1, 28, 10), (0.2860,), (0.3530,)),
}


class Images(LightningDataModule):
    """One set of images, in memory as its bytes (184 MB for CIFAR-10), on the device that trains.

    Each batch is scaled to [0, 1], standardised per channel, cropped and mirrored there.

    digits          1,797 real 8x8 scans, 1 channel, from scikit-learn's wheel. The last 450 are for testing, 1,347 for
                    training: "last" in the file's order and per class (`in_class_order`), so that most of the test
                    digits come from writers of whom no digit was trained on.
    cifar10         50,000 + 10,000 of 32x32, 3 channels, in ROOT/cifar-10-batches-py.
    fashion_mnist   60,000 + 10,000 of 28x28, 1 channel, in ROOT/FashionMNIST/raw/*.gz (read as they are, not unpacked).

    The files of the last two are those of torchvision, checked against its md5 sums before use; one that is missing or
    altered is an error that names it, unless `download` is true, which fetches just those files.

    Args:
        name: the set.
        root: the folder that holds the files; digits need none.
        download: fetch what is missing or altered. Nothing is fetched when all is there.
        batch_size: images of a training batch; an epoch has only full ones (fewer images than that make one batch).
        validation: so many training images, the last per class, are held out as a third split.
        limit: keep only so many images of each split, the first per class.
        crop: training images are padded by so many zeros on each side and cropped at random (after standardisation, so
            that zero is the mean).
        flip: training images are mirrored left-right with probability 1/2.
        seed: with the epoch's number it fixes the order, the crops and the flips of that epoch, whatever came before.
    """

    TARGETS = "labels"

    def __init__(
        self,
        name: Literal["digits", "cifar10", "fashion_mnist"],
        *,
        root: str = "data",
        download: bool = False,
        batch_size: int = 64,
        validation: int = 0,
        limit: int | None = None,
        crop: int = 0,
        flip: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if name not in SETS:
            raise SkipformError(f"unknown data set {name!r}; accepted: {', '.join(SETS)}")
        sizes = (("batch_size", batch_size, 1), ("limit", limit, 1), ("validation", validation, 0), ("crop", crop, 0))
        for key, value, least in sizes:
            if value is not None and value < least:
                raise SkipformError(f"data.{key}: {value}; accepted: {least} or more")
        self.name: str = name
        self.root, self.download = root, download
        self.batch_size, self.validation, self.limit = batch_size, validation, limit
        self.crop, self.flip, self.seed = crop, flip, seed
        self.stated, self.mean, self.std = SETS[name]
        self.pixels: dict[str, tuple[Tensor, Tensor]] = {}

    @staticmethod
    def states(name: str, **rest: Any) -> dict[str, Any]:
        """What nets are told of a set: see `Stated`."""
        return asdict(SETS[name][0])

    @property
    def splits(self) -> dict[str, tuple[Tensor, Tensor]]:
        """{"train", "test", and "validation" if asked for} -> images (N, c, h, w) as a net sees them, labels (N,)."""
        standardise = self._standardise(torch.device("cpu"))
        return {split: (standardise(pixels), labels) for split, (pixels, labels) in self.pixels.items()}

    def prepare_data(self) -> None:
        """Check every file, or fetch it: SkipformError names the first that is missing or altered."""
        if self.name != "digits":
            _check(self.name, Path(self.root), self.download)

    def setup(self, stage: str | None = None) -> None:
        """Fill `pixels`, one entry a split: uint8 (N, c, h, w), labels (N,)."""
        train, test = _read(self.name, self.root)
        order = in_class_order(train[1])
        left = len(order) - self.validation
        if left < 1:
            raise SkipformError(f"data.validation: {self.validation}; accepted: 0 to {len(order) - 1} images")
        kept, held = np.sort(order[:left]), np.sort(order[left:])
        parts = {"train": (train[0][kept], train[1][kept]), "test": test}
        if self.validation:
            parts["validation"] = (train[0][held], train[1][held])
        for split, (images, labels) in parts.items():
            first = np.sort(in_class_order(labels)[: self.limit])
            pixels = torch.from_numpy(images[first]).permute(0, 3, 1, 2).contiguous()
            self.pixels[split] = (pixels, torch.from_numpy(labels[first]))

    def _standardise(self, device: torch.device) -> Callable[[Tensor], Tensor]:
        """uint8 in 0..255 (digits: 0..16), (n, c, h, w) -> float32 of mean 0 and deviation 1."""
        top = 16 if self.name == "digits" else 255
        mean, std = (torch.tensor(values, device=device)[:, None, None] for values in (self.mean, self.std))

        def standardise(pixels: Tensor) -> Tensor:
            return pixels.float().div_(top).sub_(mean).div_(std)

        return standardise

    def train_dataloader(self) -> "Batches":
        """Of several processes each one takes its share of every batch, and of its crops and flips."""
        share = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        images, labels = self._near("train")
        return Batches(
            images,
            labels,
            self.batch_size,
            shuffle_seed=self.seed,
            crop=self.crop,
            flip=self.flip,
            standardise=self._standardise(images.device),
            share=share,
        )

    def val_dataloader(self) -> "list[Batches]":
        """The splits not trained on, in the order of `held_out`; of several processes each one takes its share."""
        rank, world = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        batches = []
        for split in self.held_out:
            images, labels = self._near(split)
            standardise = self._standardise(images.device)
            batches.append(Batches(images[rank::world], labels[rank::world], 512, standardise=standardise))
        return batches

    @property
    def held_out(self) -> list[str]:
        return ["validation", "test"] if self.validation else ["test"]

    def _near(self, split: str) -> tuple[Tensor, Tensor]:
        """The split on the trainer's device, so that no batch is copied there on its own."""
        device = self.trainer.strategy.root_device if self.trainer else torch.device("cpu")
        pixels, labels = self.pixels[split]
        return pixels.to(device), labels.to(device)


class Batches:
    """The batches of one epoch, cut from two tensors; lies where they lie, and needs no worker.

    Training (`shuffle_seed` given): full batches in an order drawn from (shuffle_seed, epoch), randomly cropped and
    flipped; what does not fill a batch sits this epoch out. Whoever trains sets `epoch` before each one. With
    share=(r, R), the r-th of R equal parts of each of these batches.
    Otherwise: all images, in order, as they are.

    All that is random in an epoch is drawn on the CPU and moved at its start: within it the host never waits.
    """

    def __init__(
        self,
        images: Tensor,  # (N, c, h, w)
        labels: Tensor,  # (N,)
        batch_size: int,
        *,
        shuffle_seed: int | None = None,
        crop: int = 0,
        flip: bool = False,
        standardise: Callable[[Tensor], Tensor] = torch.Tensor.float,
        share: tuple[int, int] = (0, 1),
    ) -> None:
        self.images, self.labels, self.standardise, self.share = images, labels, standardise, share
        self.batch_size = min(batch_size, len(images))
        if self.batch_size % share[1]:
            raise SkipformError(
                f"data.batch_size: {self.batch_size}; accepted: a multiple of {share[1]}, the processes"
            )
        self.shuffle_seed, self.crop, self.flip = shuffle_seed, crop, flip
        self.epoch = 0

    def __len__(self) -> int:
        full, rest = divmod(len(self.images), self.batch_size)
        return full if self.shuffle_seed is not None else full + bool(rest)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        if self.shuffle_seed is None:
            for images, labels in zip(*(all.split(self.batch_size) for all in (self.images, self.labels)), strict=True):
                yield self.standardise(images), labels
            return
        mixed = np.random.SeedSequence([self.shuffle_seed, self.epoch]).generate_state(1, np.uint64)
        generator = torch.Generator().manual_seed(int(mixed[0] >> np.uint64(1)))
        order = torch.randperm(len(self.images), generator=generator)[: len(self) * self.batch_size]
        drawn = torch.stack([self._drawn(generator) for _ in range(len(self))])  # (batches, 3, batch_size)
        rank, world = self.share
        order, drawn = (
            part.unflatten(-1, (-1, world, self.batch_size // world))[..., rank, :].to(self.images.device)
            for part in (order, drawn)
        )  # (batches, n), (batches, 3, 1, n)
        for chosen, (top, left, mirrored) in zip(order, drawn.squeeze(2), strict=True):
            yield self._varied(self.standardise(self.images[chosen]), top, left, mirrored), self.labels[chosen]

    def _drawn(self, generator: torch.Generator) -> Tensor:
        """Of each image in a batch: the crop's top, its left, whether it is mirrored; (3, batch_size)."""
        drawn = torch.zeros(3, self.batch_size, dtype=torch.int64)
        if self.crop or self.flip:
            drawn[:2] = torch.randint(2 * self.crop + 1, (2, self.batch_size), generator=generator)
        if self.flip:
            drawn[2] = torch.randint(2, (self.batch_size,), generator=generator)
        return drawn

    def _varied(self, images: Tensor, top: Tensor, left: Tensor, mirrored: Tensor) -> Tensor:
        """images (n, c, h, w) -> each cropped from its padded self and mirrored; top, left, mirrored (n,)."""
        if not (self.crop or self.flip):
            return images
        n, c, h, w = images.shape
        one, channel, row, column = (torch.arange(size, device=images.device) for size in (n, c, h, w))
        rows, columns = top[:, None] + row, left[:, None] + column  # (n, h), (n, w)
        if self.flip:
            columns = torch.where(mirrored[:, None].bool(), columns.flip(1), columns)
        padded = functional.pad(images, (self.crop,) * 4)  # (n, c, h + 2 crop, w + 2 crop)
        return padded[one[:, None, None, None], channel[:, None, None], rows[:, None, :, None], columns[:, None, None]]


def in_class_order(labels: np.ndarray) -> np.ndarray:
    """The indices by their relative rank within their class, ties in the given order.

    Any head or tail of it has every class in proportion, to within one image.
    """
    rank = np.empty(len(labels))
    for label in np.unique(labels):
        (members,) = np.nonzero(labels == label)
        rank[members] = (np.arange(len(members)) + 0.5) / len(members)
    return np.argsort(rank, kind="stable")


Part = tuple[np.ndarray, np.ndarray]  # images uint8 (N, h, w, c), labels int64 (N,)


@lru_cache(maxsize=1)  # the seeds and variants of one experiment read the same set
def _read(name: str, root: str) -> tuple[Part, Part]:
    """Training and test part of a set whose files have been checked."""
    if name == "digits":
        from sklearn.datasets import load_digits

        images, labels = load_digits(return_X_y=True)
        images, labels = images.astype(np.uint8).reshape(-1, 8, 8, 1), labels.astype(np.int64)
        order = in_class_order(labels)
        train, test = np.sort(order[:-450]), np.sort(order[-450:])
        return (images[train], labels[train]), (images[test], labels[test])
    if name == "cifar10":
        from torchvision.datasets import CIFAR10

        parts = (CIFAR10(root, train=True), CIFAR10(root, train=False))
        return tuple((part.data, np.array(part.targets, np.int64)) for part in parts)  # type: ignore[return-value]
    raw = Path(root) / "FashionMNIST" / "raw"
    return tuple(  # type: ignore[return-value]
        (
            # idx files: a header of 16 bytes before images, of 8 before labels, then one byte a value.
            np.frombuffer(gzip.open(raw / f"{part}-images-idx3-ubyte.gz").read(), np.uint8, offset=16).reshape(
                -1, 28, 28, 1
            ),
            np.frombuffer(gzip.open(raw / f"{part}-labels-idx1-ubyte.gz").read(), np.uint8, offset=8).astype(np.int64),
        )
        for part in ("train", "t10k")
    )


def _check(name: str, root: Path, download: bool) -> None:
    """Every file of the set is there with torchvision's md5 sum, fetched if need be and allowed; or SkipformError."""
    from torchvision.datasets import CIFAR10, FashionMNIST
    from torchvision.datasets.utils import download_and_extract_archive, download_url

    if name == "cifar10":
        folder = root / CIFAR10.base_folder
        sums = dict([*CIFAR10.train_list, *CIFAR10.test_list])
        sums[CIFAR10.meta["filename"]] = CIFAR10.meta["md5"]
    else:
        folder = root / "FashionMNIST" / "raw"
        sums = dict(FashionMNIST.resources)
    broken = [file for file, md5 in sums.items() if not _has_md5(folder / file, md5)]
    if not broken:
        return
    if not download:
        state = "altered or cut short" if (folder / broken[0]).is_file() else "missing"
        raise SkipformError(
            f"{folder / broken[0]}: {state}; mend it with --data.download true, or with: python -c "
            f'"from skipform.data.images import Images; '
            f'Images({name!r}, root={str(root)!r}, download=True).prepare_data()"'
        )
    source = CIFAR10.url if name == "cifar10" else FashionMNIST.mirrors[0]
    try:
        if name == "cifar10":
            download_and_extract_archive(source, str(root), filename=CIFAR10.filename, md5=CIFAR10.tgz_md5)
        else:
            for file in broken:
                download_url(source + file, str(folder), md5=sums[file])
    except (OSError, RuntimeError) as error:  # no network, no space, a wrong sum
        raise SkipformError(f"{folder / broken[0]}: could not be fetched from {source}: {error}") from error


def _has_md5(path: Path, md5: str) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest() == md5
