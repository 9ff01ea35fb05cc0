"""Images and their class: the digits inside scikit-learn, CIFAR-10 and Fashion-MNIST.

Letters: n images of a batch, N images of a split, c channels, h w height and width.
"""

import gzip
import pickle
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from skipform.arguments import Count, Natural, Range, Seed
from skipform.data.epochs import Epochs, Loader
from skipform.data.module import DataModule
from skipform.data.source import ArchiveSource, Source, sums
from skipform.errors import SkipformError


class ImageSet(NamedTuple):
    """Images (in_channels, image_size, image_size); every image is of one of num_classes classes."""

    in_channels: int
    image_size: int
    num_classes: int
    mean: tuple[float, ...]  # per channel, of the training images scaled to [0, 1]
    deviation: tuple[float, ...]


SETS = {
    "digits": ImageSet(1, 8, 10, (0.305,), (0.376,)),
    "cifar10": ImageSet(3, 32, 10, (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "fashion_mnist": ImageSet(1, 28, 10, (0.2860,), (0.3530,)),
}
CIFAR = "cifar-10-batches-py"


class Images(DataModule):
    """One set of images, stored as bytes (184 MB for CIFAR-10) on the device that trains.

    A batch is (images (n, c, h, w), labels int64 (n,)). Its images are scaled to [0, 1], standardised per channel,
    cropped and mirrored on that device.

    digits          1,797 real 8x8 scans, 1 channel, from scikit-learn's wheel. The last 450 are for testing, 1,347 for
                    training, "last" in the file's order within each class (`in_class_order`), so that most of the
                    test digits come from writers who wrote no training digit.
    cifar10         50,000 + 10,000 of 32x32, 3 channels, in ROOT/cifar-10-batches-py.
    fashion_mnist   60,000 + 10,000 of 28x28, 1 channel, in ROOT/FashionMNIST/raw/*.gz (read without unpacking).

    The files of the last two are those of torchvision, checked against its md5 sums before use.

    Args:
        name: the set.
        root: the folder that holds the files; digits need none.
        download: fetch files that are missing or altered; without it they are an error.
        batch_size: images of a training batch; an epoch has only full ones (fewer images than that make one batch).
        validation: this number of training images, the last per class, are held out as a third split.
        limit: use only this number of images of each split, the first per class.
        crop: training images are padded by this number of zeros on each side and cropped at random (after
            standardisation, so that zero is the mean).
        flip: training images are mirrored left-right with probability 1/2.
        seed: with the epoch's number it determines the order, the crops and the flips of that epoch.
    """

    TARGETS = "labels"

    def __init__(
        self,
        name: Literal["digits", "cifar10", "fashion_mnist"],
        *,
        root: str = "data",
        download: bool = False,
        batch_size: Count = 64,
        validation: Natural = 0,
        limit: Count | None = None,
        crop: Annotated[int, Range(0, 256)] = 0,
        flip: bool = False,
        seed: Seed = 0,
    ) -> None:
        super().__init__(name, SETS, root=root, download=download, seed=seed)
        self.batch_size, self.validation, self.limit = batch_size, validation, limit
        self.crop, self.flip = crop, flip
        self.pixels: dict[str, tuple[Tensor, Tensor]] = {}  # split -> uint8 (N, c, h, w), labels (N,)

    @staticmethod
    def states(name: str, **rest: Any) -> dict[str, Any]:
        """in_channels, image_size, num_classes."""
        return {key: getattr(SETS[name], key) for key in ("in_channels", "image_size", "num_classes")}

    @property
    def splits(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Split -> images (N, c, h, w) as a net takes them, labels (N,)."""
        standardise = self._standardise(torch.device("cpu"))
        return {split: (standardise(pixels), labels) for split, (pixels, labels) in self.pixels.items()}

    @property
    def held_out(self) -> list[str]:
        return ["validation", "test"] if self.validation else ["test"]

    def sources(self) -> Iterator[Source]:
        if self.name == "cifar10":
            from torchvision.datasets import CIFAR10

            checksums = {f"{CIFAR}/{file}": md5 for file, md5 in sums("cifar10").items()}
            yield ArchiveSource(self.folder, checksums, CIFAR10.url, md5=CIFAR10.tgz_md5)
        if self.name == "fashion_mnist":
            from torchvision.datasets import FashionMNIST

            folder = self.folder / "FashionMNIST" / "raw"
            yield Source(folder, sums("fashion_mnist"), FashionMNIST.mirrors[0])

    def setup(self, stage: str | None = None) -> None:
        """Fill `pixels`."""
        train, test = _read(self.name, self.root)
        order = in_class_order(train[1])
        left = len(order) - self.validation
        if left < 1:
            raise SkipformError(f"data.validation: {self.validation}; accepted: 0 to {len(order) - 1} images")
        trained, validated = np.sort(order[:left]), np.sort(order[left:])
        parts = {"train": (train[0][trained], train[1][trained]), "test": test}
        if self.validation:
            parts["validation"] = (train[0][validated], train[1][validated])
        for split, (images, labels) in parts.items():
            first = np.sort(in_class_order(labels)[: self.limit])
            pixels = torch.from_numpy(images[first]).permute(0, 3, 1, 2).contiguous()
            self.pixels[split] = (pixels, torch.from_numpy(labels[first]))

    def _standardise(self, device: torch.device) -> Callable[[Tensor], Tensor]:
        """uint8 in 0 .. 255 (digits: 0 .. 16), (n, c, h, w) -> float32 of mean 0 and deviation 1."""
        top, (*_, mean, deviation) = 16 if self.name == "digits" else 255, SETS[self.name]
        return standardiser(top, mean, deviation, device)

    def loader(self, split: str, *, training: bool = False) -> "ImageBatches":
        images, labels = (part.to(self.device) for part in self.pixels[split])
        standardise = self._standardise(images.device)
        if training:
            epochs = Epochs(len(images), self.batch_size, seed=self.seed, share=self.share)
            return ImageBatches(images, labels, epochs, crop=self.crop, flip=self.flip, standardise=standardise)
        return ImageBatches(images, labels, Epochs(len(images), 512, share=self.share), standardise=standardise)


def standardiser(
    top: int, mean: tuple[float, ...], deviation: tuple[float, ...], device: torch.device
) -> Callable[[Tensor], Tensor]:
    """The function x -> (x / top - mean) / deviation, per channel, of images (n, c, h, w); float32."""
    shift, scale = (torch.tensor(values, device=device)[:, None, None] for values in (mean, deviation))

    def standardise(images: Tensor) -> Tensor:
        return images.float().div_(top).sub_(shift).div_(scale)

    return standardise


class ImageBatches(Loader):
    """Batches of images and labels, made on their device: cropped and mirrored at random in training, otherwise
    unchanged.

    Everything random in an epoch is drawn on the CPU and copied to the device at its start, so that the host never
    waits for the device within an epoch.
    """

    def __init__(
        self,
        images: Tensor,  # (N, c, h, w)
        labels: Tensor,  # (N,)
        batch_sampler: Epochs,
        *,
        crop: int = 0,
        flip: bool = False,
        standardise: Callable[[Tensor], Tensor] = torch.Tensor.float,
    ) -> None:
        super().__init__(batch_sampler)
        self.images, self.labels, self.standardise = images, labels, standardise
        self.crop, self.flip = crop, flip

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        epochs = self.batch_sampler
        if epochs.seed is None:
            for part in epochs.slices():
                yield self.standardise(self.images[part]), self.labels[part]
            return
        generator = epochs.generator()
        order = epochs.order(generator)  # (batches, B)
        variations = torch.stack([self._drawn(order.shape[1], generator) for _ in order])  # (batches, B, 3)
        own = (epochs.own(drawn).to(self.images.device) for drawn in (order, variations))
        for chosen, variation in zip(*own, strict=True):
            yield self._varied(self.standardise(self.images[chosen]), *variation.unbind(1)), self.labels[chosen]

    def _drawn(self, count: int, generator: torch.Generator) -> Tensor:
        """For each of `count` images the top and the left of its crop and whether it is mirrored, (count, 3)."""
        drawn = torch.zeros(3, count, dtype=torch.int64)
        if self.crop or self.flip:
            drawn[:2] = torch.randint(2 * self.crop + 1, (2, count), generator=generator)
        if self.flip:
            drawn[2] = torch.randint(2, (count,), generator=generator)
        return drawn.T

    def _varied(self, images: Tensor, top: Tensor, left: Tensor, mirrored: Tensor) -> Tensor:
        """The images (n, c, h, w), padded, cropped and mirrored as top, left and mirrored (n,) say."""
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
    """The indices in the order of their relative rank within their class; ties stay in the given order.

    The first or last k of them have every class in proportion, to within one image.
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
        files = ([f"data_batch_{i}" for i in range(1, 6)], ["test_batch"])
        return tuple(_cifar_part([Path(root, CIFAR, file) for file in part]) for part in files)  # type: ignore[return-value]
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


def _cifar_part(files: list[Path]) -> Part:
    """The images of some batches of CIFAR-10, pickled by Python 2; their checksums have been checked."""
    batches = [pickle.loads(file.read_bytes(), encoding="latin1") for file in files]
    images = np.concatenate([batch["data"] for batch in batches]).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return images, np.concatenate([batch["labels"] for batch in batches]).astype(np.int64)
