"""Images and the boxes of the objects in them: scenes of digits, blood cells (BCCD), COCO 2017.

Letters: n images of a batch, c channels, h w height and width, k objects of an image.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any, Literal
from xml.etree import ElementTree

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader

from skipform.arguments import Count, Range, Seed, Share, Size
from skipform.data.epochs import Epochs, Loader
from skipform.data.module import DataModule
from skipform.data.scenes import scenes
from skipform.data.source import ArchiveSource, Source, sums
from skipform.errors import SkipformError

# Number of classes; mean and standard deviation per channel of the training images scaled to [0, 1] (for COCO, as is
# usual, those of ImageNet).
SETS = {
    "digit_boxes": (10, (0.164,), (0.201,)),
    "bccd": (3, (0.737, 0.696, 0.715), (0.061, 0.102, 0.075)),
    "coco2017": (80, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}
CELLS = ("RBC", "WBC", "Platelets")
BCCD = "https://github.com/Shenggan/BCCD_Dataset/archive/refs/heads/master.zip"
COCO = "http://images.cocodataset.org/"
COCO_MD5 = {  # of the archives
    "zips/train2017.zip": "cced6f7f71b7629ddf16f17bbcfab6b2",
    "zips/val2017.zip": "442b8da7639aecaf257c1dceb8ba8c80",
    "annotations/annotations_trainval2017.zip": "f4bbac642086de4f52a3fdda2de5fa2c",
}
COCO_IMAGES = {"train": 118_287, "val": 5_000}
CROP_SIDES = (384, 600)  # DETR's crops: minimum and maximum side, after the image is scaled to one of the next line
SIDES_BEFORE_CROP = (400, 500, 600)

Target = dict[str, Any]


@dataclass(frozen=True)
class Example:
    source: Tensor | bytes | Path  # the image as uint8 (c, h, w), or the content of its file, or the file's path
    boxes: Tensor  # float32 (k, 4): x0 y0 x1 y1 in pixels, x0 < x1, y0 < y1
    labels: Tensor  # int64 (k,)
    crowd: Tensor  # int64 (k,): 1 for COCO's regions of many objects, not learned and not counted as missed

    def image(self) -> Tensor:
        """uint8 (c, h, w)."""
        if isinstance(self.source, Tensor):
            return self.source
        from torchvision.io import ImageReadMode, decode_image

        file = self.source.read_bytes() if isinstance(self.source, Path) else self.source
        return decode_image(torch.frombuffer(bytearray(file), dtype=torch.uint8), ImageReadMode.RGB)


class Boxes(DataModule):
    """Images of objects, with a box and a class for every object. A batch is

    images   (n, c, h, w) standardised per channel; smaller images are padded with zeros on the right and below
    targets  for each image {"boxes": float32 (k, 4) as x0 y0 x1 y1 in pixels, "labels": int64 (k,) of 0 .. classes - 1,
             "iscrowd": int64 (k,) of 0, 1, "size": (h, w) of the image without padding}

    Boxes without an area are left out.

    digit_boxes   scenes of scikit-learn's digits (see `scenes`), `scenes` of them for training and an eighth as many
                  for testing.
    bccd          364 microscope images of blood, 640x480, with 4,155 - 2 red cells (two boxes have no area), 372 white
                  cells and 361 platelets; MIT licence. 205 + 87 for training, 72 for testing, in ROOT/bccd/BCCD, or
                  packed in ROOT/bccd/BCCD.tar. Every file is checked against its md5 sum in bccd.md5.
    coco2017      118,287 + 5,000 photographs, 80 classes, in ROOT/coco/{train2017,val2017,annotations}. No checksums of
                  the photographs are known: one is taken as intact if it is not empty.

    Args:
        name: the set.
        root: the folder that holds the files; digit_boxes need none.
        download: fetch files that are missing or altered; without it they are an error.
        batch_size: images of a training batch; an epoch has only full ones (fewer images than that make one batch).
        validation: the 87 validation images of bccd are held out as a third split, not trained on.
        limit: use only this number of images of each split, the first ones.
        scenes, canvas, digits, size: for digit_boxes, the number of training scenes, and arguments of `scenes`.
        sides: images are scaled to one of these shorter sides, drawn at random in training, the last one in testing;
            if there are none, images are not scaled.
        longest: a scaled image's longer side is at most this, whatever `sides` says.
        crop: with this probability a training image is scaled to a shorter side of 400, 500 or 600 and replaced by a
            part of it, 384 to 600 wide and high, before `sides` (DETR, Appendix A.4). A box that is cut off is left
            out.
        flip: training images are mirrored left-right with probability 1/2.
        workers: processes that read images; 0 reads them in this one. The batches are the same.
        seed: with the epoch's number it determines everything that is random in that epoch.
    """

    TARGETS = "boxes"

    def __init__(
        self,
        name: Literal["digit_boxes", "bccd", "coco2017"],
        *,
        root: str = "data",
        download: bool = False,
        batch_size: Count = 16,
        validation: bool = False,
        limit: Count | None = None,
        scenes: Annotated[int, Range(8)] = 1000,
        canvas: Size = 64,
        digits: tuple[int, int] = (2, 5),
        size: tuple[int, int] = (12, 24),
        sides: tuple[Size, ...] = (),
        longest: Size = 1333,
        crop: Share = 0.0,
        flip: bool = False,
        workers: Annotated[int, Range(0, 1024)] = 0,
        seed: Seed = 0,
    ) -> None:
        super().__init__(name, SETS, root=root, download=download, seed=seed)
        if validation and name != "bccd":
            raise SkipformError("data.validation: true; accepted: false, only bccd has a validation part")
        self.limit, self.validation, self.batch_size, self.workers = limit, validation, batch_size, workers
        self.scenes = (scenes, canvas, (digits[0], digits[1]), (size[0], size[1]))  # YAML gives lists
        self.augment = Augmentation(tuple(sides), longest, crop, flip)
        self.splits: dict[str, list[Example]] = {}

    @staticmethod
    def states(name: str, **rest: Any) -> dict[str, Any]:
        """in_channels, num_classes."""
        classes, mean, _ = SETS[name]
        return {"in_channels": len(mean), "num_classes": classes}

    @property
    def held_out(self) -> list[str]:
        return ["validation", "test"] if self.validation else ["test"]

    def sources(self) -> Iterator[Source]:
        if self.name == "bccd":
            yield _bccd_source(self.folder)
        if self.name == "coco2017":
            yield (annotations := _coco_annotations(self.folder))
            for part in COCO_IMAGES:
                listed = json.loads(annotations.read(_coco_file(part)))["images"]
                files = [f"{part}2017/{image['file_name']}" for image in listed]
                yield _coco_source(self.folder, files, f"zips/{part}2017.zip")

    def setup(self, stage: str | None = None) -> None:
        """Fill `splits`."""
        if self.name == "digit_boxes":
            count, canvas, digits, size = self.scenes
            counts = {"train": count, "test": count // 8}
            parts = {split: _scenes(split, n, canvas, digits, size) for split, n in counts.items()}
        elif self.name == "bccd":
            parts = dict(_bccd(self.root))
            if not self.validation:
                parts["train"] = parts["train"] + parts.pop("validation")
        else:
            parts = _coco(self.root)
        self.splits = {split: examples[: self.limit] for split, examples in parts.items()}

    def loader(self, split: str, *, training: bool = False) -> "BoxBatches":
        """The batches of a split; in training with random crops, sizes and mirroring."""
        examples, seed = self.splits[split], self.seed if training else None
        epochs = BoxEpochs(len(examples), self.batch_size, seed=seed, share=self.share)
        _, mean, deviation = SETS[self.name]
        return BoxBatches(examples, epochs, self.augment, mean, deviation, workers=self.workers)


@dataclass(frozen=True)
class Augmentation:
    """How an image changes before a net takes it; see `Boxes`."""

    sides: tuple[int, ...] = ()
    longest: int = 1333
    crop: float = 0.0
    flip: bool = False

    def __call__(self, example: Example, draw: np.random.Generator | None) -> tuple[Tensor, Tensor, Tensor]:
        """The image uint8 (c, h, w), its boxes (k, 4), and which of the example's objects these are, bool; in testing
        `draw` is None."""
        image, boxes = example.image(), example.boxes
        visible = torch.ones(len(boxes), dtype=torch.bool)
        if draw and self.crop and draw.random() < self.crop:
            image, boxes = self._resized(image, boxes, int(draw.choice(SIDES_BEFORE_CROP)))
            least, most = CROP_SIDES
            high, wide = (int(draw.integers(min(least, side), min(most, side) + 1)) for side in image.shape[1:])
            top, left = (
                int(draw.integers(side - part + 1)) for side, part in zip(image.shape[1:], (high, wide), strict=True)
            )
            image = image[:, top : top + high, left : left + wide]
            boxes = boxes - torch.tensor([left, top, left, top])
            boxes = torch.minimum(boxes.clamp(min=0), torch.tensor([wide, high, wide, high]))
            visible = (boxes[:, 2:] > boxes[:, :2]).all(1)
        if self.sides:
            image, boxes = self._resized(image, boxes, int(draw.choice(self.sides) if draw else self.sides[-1]))
        if draw and self.flip and draw.random() < 0.5:
            image = image.flip(2)
            boxes = boxes[:, [2, 1, 0, 3]] * torch.tensor([-1, 1, -1, 1]) + torch.tensor([1, 0, 1, 0]) * image.shape[2]
        return image, boxes[visible], visible

    def _resized(self, image: Tensor, boxes: Tensor, shorter: int) -> tuple[Tensor, Tensor]:
        from torchvision.transforms.v2.functional import resize

        h, w = image.shape[1:]
        factor = min(shorter / min(h, w), self.longest / max(h, w))
        new = [max(1, round(h * factor)), max(1, round(w * factor))]
        return resize(image, new, antialias=True), boxes * torch.tensor([new[1] / w, new[0] / h]).repeat(2)


class BoxEpochs(Epochs):
    """Epochs whose order is drawn by numpy, like the variations of the images."""

    def order(self, generator: torch.Generator) -> Tensor:
        draw = np.random.default_rng([self.seed, self.epoch])  # type: ignore[arg-type]
        order = torch.from_numpy(draw.permutation(self.count))
        return order[: len(self) * self.batch_size].view(-1, self.batch_size)


class BoxBatches(Loader):
    """Batches of images of several sizes, padded, and their targets; see `Boxes`.

    In training the variation of image i depends only on (seed, epoch, i), not on the process that reads the image.
    """

    def __init__(
        self,
        examples: list[Example],
        batch_sampler: Epochs,
        augment: Augmentation,
        mean: tuple[float, ...],  # per channel
        deviation: tuple[float, ...],
        *,
        workers: int = 0,
    ) -> None:
        super().__init__(batch_sampler)
        self.examples, self.augment, self.workers = examples, augment, workers
        self.mean, self.deviation = (torch.tensor(values)[:, None, None] for values in (mean, deviation))

    def __iter__(self) -> Iterator[tuple[Tensor, list[Target]]]:
        batches: DataLoader[Any] = DataLoader(
            self,  # type: ignore[arg-type]
            batch_sampler=[indices.tolist() for indices in self.batch_sampler],
            num_workers=self.workers,
            collate_fn=_uncollated,
            generator=torch.Generator(),  # DataLoader would draw from the global one, which the net uses
        )
        for batch in batches:
            yield _padded(batch)

    def __getitem__(self, number: int) -> tuple[Tensor, Target]:
        seed = self.batch_sampler.seed
        draw = None if seed is None else np.random.default_rng([seed, self.epoch, number])
        example = self.examples[number]
        image, boxes, visible = self.augment(example, draw)
        target = {"boxes": boxes, "labels": example.labels[visible], "iscrowd": example.crowd[visible]}
        image = image.float().div_(255).sub_(self.mean).div_(self.deviation)
        return image, target | {"size": (image.shape[1], image.shape[2])}


def _uncollated(batch: list[tuple[Tensor, Target]]) -> list[tuple[Tensor, Target]]:
    return batch


def _padded(batch: list[tuple[Tensor, Target]]) -> tuple[Tensor, list[Target]]:
    """Images of several sizes as one tensor (n, c, h, w), padded with zeros on the right and below."""
    images, targets = zip(*batch, strict=True)
    h, w = (max(image.shape[axis] for image in images) for axis in (1, 2))
    padded = [functional.pad(image, (0, w - image.shape[2], 0, h - image.shape[1])) for image in images]
    return torch.stack(padded), list(targets)


def _scenes(split: str, count: int, canvas: int, digits: tuple[int, int], size: tuple[int, int]) -> list[Example]:
    drawn = scenes(split, count, canvas=canvas, digits=digits, size=size)
    return [
        Example(image, boxes, labels, torch.zeros_like(labels))
        for image, boxes, labels in zip(drawn.images, drawn.boxes, drawn.labels, strict=True)
    ]


def _bccd_source(root: Path) -> Source:
    checksums = {f"BCCD/{file}": md5 for file, md5 in sums("bccd").items()}
    folder = root / "bccd"
    return ArchiveSource(folder, checksums, BCCD, inside="BCCD_Dataset-master", archive=folder / "BCCD.tar")


@lru_cache(maxsize=1)  # the seeds and variants of one experiment read the same set
def _bccd(root: str) -> dict[str, list[Example]]:
    source = _bccd_source(Path(root))
    parts: dict[str, list[Example]] = {}
    for split, name in (("train", "train"), ("validation", "val"), ("test", "test")):
        parts[split] = []
        for image in source.read(f"BCCD/ImageSets/Main/{name}.txt").decode().split():
            objects = ElementTree.fromstring(source.read(f"BCCD/Annotations/{image}.xml")).findall("object")
            boxes = [
                [float(item.findtext(f"bndbox/{side}", "")) for side in ("xmin", "ymin", "xmax", "ymax")]
                for item in objects
            ]
            labels = [CELLS.index(item.findtext("name", "")) for item in objects]
            file = source.read(f"BCCD/JPEGImages/{image}.jpg")
            parts[split].append(_example(file, boxes, labels, [0] * len(labels)))
    return parts


def _example(source: bytes | Path, boxes: list[list[float]], labels: list[int], crowd: list[int]) -> Example:
    """An example without the boxes that have no area."""
    sides = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    real = (sides[:, 2:] > sides[:, :2]).all(1)
    return Example(
        source, sides[real], torch.tensor(labels, dtype=torch.int64)[real], torch.tensor(crowd, dtype=torch.int64)[real]
    )


class CocoAnnotations(ArchiveSource):
    """The two annotation files of COCO; a file is intact if it lists the right number of images."""

    def is_intact(self, file: str) -> bool:
        part = next(part for part in COCO_IMAGES if file == _coco_file(part))
        try:
            return len(json.loads(self.read(file))["images"]) == COCO_IMAGES[part]
        except (ValueError, KeyError):
            return False


def _coco_annotations(root: Path) -> Source:
    return _coco_source(root, map(_coco_file, COCO_IMAGES), "annotations/annotations_trainval2017.zip", CocoAnnotations)


def _coco_source(
    root: Path, files: Iterable[str], archive: str, source: type[ArchiveSource] = ArchiveSource
) -> ArchiveSource:
    return source(root / "coco", dict.fromkeys(files), COCO + archive, md5=COCO_MD5[archive])


def _coco_file(part: str) -> str:
    """The annotation file of a part."""
    return f"annotations/instances_{part}2017.json"


@lru_cache(maxsize=1)
def _coco(root: str) -> dict[str, list[Example]]:
    parts: dict[str, list[Example]] = {}
    source = _coco_annotations(Path(root))
    for split, part in (("train", "train"), ("test", "val")):
        content = json.loads(source.read(_coco_file(part)))
        label = {number: i for i, number in enumerate(sorted(category["id"] for category in content["categories"]))}
        by_image = sorted(content["annotations"], key=lambda item: item["image_id"])
        objects = {image: list(items) for image, items in groupby(by_image, key=lambda item: item["image_id"])}
        parts[split] = []
        for image in sorted(content["images"], key=lambda image: image["id"]):
            own, size = objects.get(image["id"], []), (image["width"], image["height"])
            boxes = [_clipped(item["bbox"], size) for item in own]
            labels, crowd = [label[item["category_id"]] for item in own], [item["iscrowd"] for item in own]
            path = source.folder / f"{part}2017" / image["file_name"]
            parts[split].append(_example(path, boxes, labels, crowd))
    return parts


def _clipped(box: list[float], size: tuple[int, int]) -> list[float]:
    """x y width height -> x0 y0 x1 y1 within the image."""
    x, y, width, height = box
    return [max(x, 0), max(y, 0), min(x + width, size[0]), min(y + height, size[1])]
