"""Images and the boxes of what is in them: scenes of digits, blood cells (BCCD), COCO 2017.

Letters: n images of a batch, c channels, h w height and width, k objects of an image.
"""

import hashlib
import json
import tarfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from typing import Any, Literal
from xml.etree import ElementTree

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms.v2.functional import resize

from skipform.data.scenes import scenes
from skipform.errors import SkipformError

# Number of classes; mean and standard deviation per channel of the training images scaled to [0, 1] (COCO: as usual,
# ImageNet's).
SETS = {
    "digit_boxes": (10, (0.164,), (0.201,)),
    "bccd": (3, (0.737, 0.696, 0.715), (0.061, 0.102, 0.075)),
    "coco2017": (80, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}
CELLS = ("RBC", "WBC", "Platelets")
BCCD = "https://github.com/Shenggan/BCCD_Dataset/archive/refs/heads/master.zip"
COCO = {  # what is fetched, with its md5 sum, and the numbers of images that then are there
    "http://images.cocodataset.org/zips/train2017.zip": "cced6f7f71b7629ddf16f17bbcfab6b2",
    "http://images.cocodataset.org/zips/val2017.zip": "442b8da7639aecaf257c1dceb8ba8c80",
    "http://images.cocodataset.org/annotations/annotations_trainval2017.zip": "f4bbac642086de4f52a3fdda2de5fa2c",
}
COUNTS = {"train": 118_287, "val": 5_000}
SHARE = (384, 600)  # DETR's crops: least and greatest side, after the shorter one is one of the next
BEFORE = (400, 500, 600)

Target = dict[str, Any]


@dataclass(frozen=True)
class Example:
    source: Tensor | bytes | Path  # the image as uint8 (c, h, w), or its file, or where that is
    boxes: Tensor  # float32 (k, 4): x0 y0 x1 y1 in pixels, x0 < x1, y0 < y1
    labels: Tensor  # int64 (k,)
    crowd: Tensor  # int64 (k,): 1 for COCO's regions of many objects, not learned and not counted as missed

    def image(self) -> Tensor:
        """uint8 (c, h, w)."""
        if isinstance(self.source, Tensor):
            return self.source
        file = self.source.read_bytes() if isinstance(self.source, Path) else self.source
        return decode_image(torch.frombuffer(bytearray(file), dtype=torch.uint8), ImageReadMode.RGB)


class Boxes(LightningDataModule):
    """Images of objects, each a box and a class. A batch is

    images   (n, c, h, w) standardised per channel, each at the top left of its place, zeros right of it and below
    targets  for each image {"boxes": float32 (k, 4) as x0 y0 x1 y1 in pixels, "labels": int64 (k,) of 0 .. classes - 1,
             "iscrowd": int64 (k,) of 0, 1, "size": (h, w) of the image without the zeros}

    Boxes without an area are left out.

    digit_boxes   scenes of scikit-learn's digits (see `scenes`), of `scenes` to train on and an eighth as many to test.
    bccd          364 microscope images of blood, 640x480, with 4,155 - 2 red cells (two boxes have no area), 372 white
                  ones and 361 platelets; MIT. 205 + 87 to train on, 72 to test, in ROOT/bccd/BCCD.tar or
                  ROOT/bccd/BCCD. Each file is checked against its md5 sum in bccd.md5.
    coco2017      118,287 + 5,000 photographs, 80 classes, in ROOT/coco/{train2017,val2017,annotations}.

    A file that is missing or altered is an error that names it, unless `download` is true.

    Args:
        name: the set.
        root: the folder that holds the files; digit_boxes need none.
        download: fetch what is missing or altered. Nothing is fetched when all is there.
        batch_size: images of a training batch; an epoch has only full ones (fewer images than that make one batch).
        validation: bccd's own 87 are held out as a third split, not trained on.
        limit: keep only so many images of each split, the first ones.
        scenes, canvas, digits, size: of digit_boxes.
        sides: the shorter side of an image becomes one of these, drawn in training, the last one in testing; none
            leaves images as they are.
        longest: no longer side is more than that, whatever `sides` says.
        crop: with so much probability a training image has shorter side 400, 500 or 600, and then is a part of it, 384
            to 600 wide and high, before `sides` (DETR, Appendix A.4). A box cut off goes.
        flip: training images are mirrored left-right with probability 1/2.
        workers: processes that read images; 0 reads them in this one. The batches are the same.
        seed: with the epoch's number it fixes all that is drawn in that epoch, whatever came before.
    """

    TARGETS = "boxes"

    def __init__(
        self,
        name: Literal["digit_boxes", "bccd", "coco2017"],
        *,
        root: str = "data",
        download: bool = False,
        batch_size: int = 16,
        validation: bool = False,
        limit: int | None = None,
        scenes: int = 1000,
        canvas: int = 64,
        digits: tuple[int, int] = (2, 5),
        size: tuple[int, int] = (12, 24),
        sides: tuple[int, ...] = (),
        longest: int = 1333,
        crop: float = 0.0,
        flip: bool = False,
        workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if name not in SETS:
            raise SkipformError(f"unknown data set {name!r}; accepted: {', '.join(SETS)}")
        if validation and name != "bccd":
            raise SkipformError("data.validation: true; accepted: false, only bccd has a validation part")
        least = {"batch_size": (batch_size, 1), "limit": (limit, 1), "scenes": (scenes, 8), "longest": (longest, 1)}
        for key, (value, lowest) in (least | {"workers": (workers, 0)}).items():
            if value is not None and value < lowest:
                raise SkipformError(f"data.{key}: {value}; accepted: {lowest} or more")
        self.name: str = name
        self.root, self.download, self.limit = root, download, limit
        self.batch_size, self.workers, self.seed = batch_size, workers, seed
        self.held_out = ["validation", "test"] if validation else ["test"]
        self.drawn = (scenes, canvas, (digits[0], digits[1]), (size[0], size[1]))  # lists, where YAML was read
        self.vary = Varied(tuple(sides), longest, crop, flip)
        self.splits: dict[str, list[Example]] = {}

    @staticmethod
    def states(name: str, **rest: Any) -> dict[str, Any]:
        """What nets and tasks are told of a set."""
        classes, mean, _ = SETS[name]
        return {"in_channels": len(mean), "num_classes": classes}

    def prepare_data(self) -> None:
        """Check every file, or fetch it: SkipformError names the first that is missing or altered."""
        if self.name == "digit_boxes":
            return
        broken = {"bccd": _bccd_broken, "coco2017": _coco_broken}[self.name]
        found = broken(Path(self.root))
        if found and self.download:
            {"bccd": _bccd_fetch, "coco2017": _coco_fetch}[self.name](Path(self.root), found[0])
            found = broken(Path(self.root))
        if found:
            raise SkipformError(
                f"{found[0]}: {found[1]}; mend it with --data.download true, or with: python -c "
                f'"from skipform.data.boxes import Boxes; '
                f'Boxes({self.name!r}, root={self.root!r}, download=True).prepare_data()"'
            )

    def setup(self, stage: str | None = None) -> None:
        """Fill `splits`."""
        if self.name == "digit_boxes":
            count, canvas, digits, size = self.drawn
            parts = {split: _scenes(split, n, canvas, digits, size) for split, n in _counted(count)}
        elif self.name == "bccd":
            parts = dict(_bccd(self.root))
            if self.held_out == ["test"]:
                parts["train"] = parts["train"] + parts.pop("validation")
        else:
            parts = _coco(self.root)
        self.splits = {split: examples[: self.limit] for split, examples in parts.items()}

    def train_dataloader(self) -> "Batches":
        """Of several processes each one takes its share of every batch."""
        return self._batches("train", self.batch_size, shuffle_seed=self.seed)

    def val_dataloader(self) -> "list[Batches]":
        """The splits not trained on, in the order of `held_out`; of several processes each one takes its share."""
        return [self._batches(split, self.batch_size) for split in self.held_out]

    def _batches(self, split: str, size: int, shuffle_seed: int | None = None) -> "Batches":
        share = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        scaling = SETS[self.name][1:]
        return Batches(self.splits[split], size, self.vary, scaling, shuffle_seed, share=share, workers=self.workers)


@dataclass(frozen=True)
class Varied:
    """How an image changes before a net sees it; see `Boxes`."""

    sides: tuple[int, ...] = ()
    longest: int = 1333
    crop: float = 0.0
    flip: bool = False

    def __call__(self, example: Example, draw: np.random.Generator | None) -> tuple[Tensor, Tensor, Tensor]:
        """-> image uint8 (c, h, w), its boxes (k, 4), which of the example's objects they are; draw=None: testing."""
        image, boxes = example.image(), example.boxes
        kept = torch.ones(len(boxes), dtype=torch.bool)
        if draw and self.crop and draw.random() < self.crop:
            image, boxes = self._resized(image, boxes, int(draw.choice(BEFORE)))
            high, wide = (int(draw.integers(min(SHARE[0], side), min(SHARE[1], side) + 1)) for side in image.shape[1:])
            top, left = (
                int(draw.integers(side - part + 1)) for side, part in zip(image.shape[1:], (high, wide), strict=True)
            )
            image = image[:, top : top + high, left : left + wide]
            boxes = boxes - torch.tensor([left, top, left, top])
            boxes = torch.minimum(boxes.clamp(min=0), torch.tensor([wide, high, wide, high]))
            kept = (boxes[:, 2:] > boxes[:, :2]).all(1)
        if self.sides:
            image, boxes = self._resized(image, boxes, int(draw.choice(self.sides) if draw else self.sides[-1]))
        if draw and self.flip and draw.random() < 0.5:
            image = image.flip(2)
            boxes = boxes[:, [2, 1, 0, 3]] * torch.tensor([-1, 1, -1, 1]) + torch.tensor([1, 0, 1, 0]) * image.shape[2]
        return image, boxes[kept], kept

    def _resized(self, image: Tensor, boxes: Tensor, shorter: int) -> tuple[Tensor, Tensor]:
        h, w = image.shape[1:]
        factor = min(shorter / min(h, w), self.longest / max(h, w))
        new = [max(1, round(h * factor)), max(1, round(w * factor))]
        return resize(image, new, antialias=True), boxes * torch.tensor([new[1] / w, new[0] / h]).repeat(2)


class Batches:
    """The batches of one epoch.

    Training (`shuffle_seed` given): full batches in an order drawn from (shuffle_seed, epoch), each image varied as
    drawn from (shuffle_seed, epoch, its number); what does not fill a batch sits this epoch out. Whoever trains sets
    `epoch` before each one. With share=(r, R), the r-th of R equal parts of each of these batches.
    Otherwise: every R-th image from the r-th on, in order.
    """

    def __init__(
        self,
        examples: list[Example],
        batch_size: int,
        vary: Varied,
        scaling: tuple[tuple[float, ...], tuple[float, ...]],  # mean, deviation, per channel
        shuffle_seed: int | None = None,
        *,
        share: tuple[int, int] = (0, 1),
        workers: int = 0,
    ) -> None:
        self.examples, self.vary, self.shuffle_seed, self.share = examples, vary, shuffle_seed, share
        self.batch_size, self.workers, self.epoch = min(batch_size, len(examples)), workers, 0
        self.mean, self.std = (torch.tensor(values)[:, None, None] for values in scaling)
        if shuffle_seed is not None and self.batch_size % share[1]:
            raise SkipformError(
                f"data.batch_size: {self.batch_size}; accepted: a multiple of {share[1]}, the processes"
            )

    def __len__(self) -> int:
        return len(self._numbers())

    def __iter__(self) -> Iterator[tuple[Tensor, list[Target]]]:
        # its own generator: DataLoader would draw from torch's, which is the net's
        kept = {"num_workers": self.workers, "collate_fn": _as_they_are, "generator": torch.Generator()}
        for batch in DataLoader(self, batch_sampler=self._numbers(), **kept):  # type: ignore[arg-type]
            yield _padded(batch)

    def __getitem__(self, number: int) -> tuple[Tensor, Target]:
        draw = None if self.shuffle_seed is None else np.random.default_rng([self.shuffle_seed, self.epoch, number])
        example = self.examples[number]
        image, boxes, kept = self.vary(example, draw)
        target = {"boxes": boxes, "labels": example.labels[kept], "iscrowd": example.crowd[kept]}
        image = image.float().div_(255).sub_(self.mean).div_(self.std)
        return image, target | {"size": (image.shape[1], image.shape[2])}

    def _numbers(self) -> list[list[int]]:
        """The numbers of each batch's images."""
        rank, world = self.share
        if self.shuffle_seed is None:
            numbers = list(range(rank, len(self.examples), world))
            return [numbers[i : i + self.batch_size] for i in range(0, len(numbers), self.batch_size)]
        order = np.random.default_rng([self.shuffle_seed, self.epoch]).permutation(len(self.examples))
        full = order[: len(order) // self.batch_size * self.batch_size]
        return full.reshape(-1, world, self.batch_size // world)[:, rank].tolist()


def _as_they_are(batch: list[tuple[Tensor, Target]]) -> list[tuple[Tensor, Target]]:
    return batch


def _padded(batch: list[tuple[Tensor, Target]]) -> tuple[Tensor, list[Target]]:
    """Images of several sizes as one tensor (n, c, h, w), zeros right of them and below."""
    images, targets = zip(*batch, strict=True)
    h, w = (max(image.shape[axis] for image in images) for axis in (1, 2))
    padded = [functional.pad(image, (0, w - image.shape[2], 0, h - image.shape[1])) for image in images]
    return torch.stack(padded), list(targets)


def _counted(count: int) -> list[tuple[str, int]]:
    return [("train", count), ("test", count // 8)]


def _scenes(split: str, count: int, canvas: int, digits: tuple[int, int], size: tuple[int, int]) -> list[Example]:
    drawn = scenes(split, count, canvas=canvas, digits=digits, size=size)
    return [
        Example(image, boxes, labels, torch.zeros_like(labels))
        for image, boxes, labels in zip(drawn.images, drawn.boxes, drawn.labels, strict=True)
    ]


def _sums() -> dict[str, str]:
    """bccd.md5, as `md5sum -c` reads it inside the folder BCCD: file -> md5 sum."""
    lines = Path(__file__).with_name("bccd.md5").read_text(encoding="ascii").splitlines()
    return {file: md5 for md5, file in (line.split(maxsplit=1) for line in lines)}


def _bccd_files(root: Path) -> tuple[Path, dict[str, bytes]]:
    """Where BCCD lies, unpacked or not, and its files."""
    folder, archive = root / "bccd" / "BCCD", root / "bccd" / "BCCD.tar"
    if folder.is_dir() or not archive.is_file():
        return folder, {file: (folder / file).read_bytes() for file in _sums() if (folder / file).is_file()}
    with archive.open("rb") as packed:
        try:
            with tarfile.open(fileobj=packed) as tar:
                members = {member.name.removeprefix("BCCD/"): member for member in tar if member.isfile()}
                return archive, {file: tar.extractfile(members[file]).read() for file in _sums() if file in members}  # type: ignore[union-attr]
        except tarfile.TarError:
            return archive, {}


def _bccd_broken(root: Path) -> tuple[Path, str] | None:
    place, files = _bccd_files(root)
    for file, md5 in _sums().items():
        if file not in files:
            return place / file, "missing"
        if hashlib.md5(files[file]).hexdigest() != md5:
            return place / file, "altered or cut short"
    return None


def _bccd_fetch(root: Path, broken: Path) -> None:
    """The whole of BCCD, unpacked; an archive that lies there stays, unread from now on."""
    packed = _fetched(BCCD, root / "bccd", broken)
    with zipfile.ZipFile(packed) as archive:
        names = {name.partition("/BCCD/")[2]: name for name in archive.namelist()}
        for file in _sums().keys() & names.keys():
            target = root / "bccd" / "BCCD" / file
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(archive.read(names[file]))
    packed.unlink()


@lru_cache(maxsize=1)  # the seeds and variants of one experiment read the same set
def _bccd(root: str) -> dict[str, list[Example]]:
    _, files = _bccd_files(Path(root))
    parts: dict[str, list[Example]] = {}
    for split, name in (("train", "train"), ("validation", "val"), ("test", "test")):
        parts[split] = []
        for image in files[f"ImageSets/Main/{name}.txt"].decode().split():
            objects = ElementTree.fromstring(files[f"Annotations/{image}.xml"]).findall("object")
            boxes = [
                [float(found.findtext(f"bndbox/{side}", "")) for side in ("xmin", "ymin", "xmax", "ymax")]
                for found in objects
            ]
            labels = [CELLS.index(found.findtext("name", "")) for found in objects]
            parts[split].append(_example(files[f"JPEGImages/{image}.jpg"], boxes, labels, [0] * len(labels)))
    return parts


def _example(source: bytes | Path, boxes: list[list[float]], labels: list[int], crowd: list[int]) -> Example:
    sides = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    kept = (sides[:, 2:] > sides[:, :2]).all(1)
    return Example(
        source, sides[kept], torch.tensor(labels, dtype=torch.int64)[kept], torch.tensor(crowd, dtype=torch.int64)[kept]
    )


def _coco_broken(root: Path) -> tuple[Path, str] | None:
    """The annotations are read for the images' names; an image counts as there if it is not empty."""
    for part, count in COUNTS.items():
        file = root / "coco" / "annotations" / f"instances_{part}2017.json"
        if not file.is_file():
            return file, "missing"
        try:
            images = json.loads(file.read_bytes())["images"]
        except (ValueError, KeyError):
            images = []
        if len(images) != count:
            return file, "altered or cut short"
        sizes = {path.name: path.stat().st_size for path in (root / "coco" / f"{part}2017").glob("*.jpg")}
        for image in images:
            if not sizes.get(image["file_name"]):
                state = "cut short" if image["file_name"] in sizes else "missing"
                return root / "coco" / f"{part}2017" / image["file_name"], state
    return None


def _coco_fetch(root: Path, broken: Path) -> None:
    """Of the three archives those whose files are not all there, unpacked."""
    while found := _coco_broken(root):
        folder = found[0].parent.name
        url = next(url for url in COCO if folder in url)
        packed = _fetched(url, root / "coco", found[0], COCO[url])
        with zipfile.ZipFile(packed) as archive:
            archive.extractall(root / "coco")
        packed.unlink()
        if _coco_broken(root) == found:
            return  # the archive does not mend it


def _fetched(url: str, folder: Path, broken: Path, md5: str | None = None) -> Path:
    from torchvision.datasets.utils import download_url

    try:
        download_url(url, str(folder), filename=Path(url).name, md5=md5)
    except (OSError, RuntimeError) as error:  # no network, no space, a wrong sum
        raise SkipformError(f"{broken}: could not be fetched from {url}: {error}") from error
    return folder / Path(url).name


@lru_cache(maxsize=1)
def _coco(root: str) -> dict[str, list[Example]]:
    parts: dict[str, list[Example]] = {}
    for split, part in (("train", "train"), ("test", "val")):
        said = json.loads((Path(root) / "coco" / "annotations" / f"instances_{part}2017.json").read_bytes())
        label = {number: i for i, number in enumerate(sorted(category["id"] for category in said["categories"]))}
        by_image = sorted(said["annotations"], key=lambda found: found["image_id"])
        objects = {image: list(found) for image, found in groupby(by_image, key=lambda found: found["image_id"])}
        parts[split] = []
        for image in sorted(said["images"], key=lambda image: image["id"]):
            found, size = objects.get(image["id"], []), (image["width"], image["height"])
            sides = [_clipped(each["bbox"], size) for each in found]
            labels, crowd = [label[each["category_id"]] for each in found], [each["iscrowd"] for each in found]
            parts[split].append(
                _example(Path(root) / "coco" / f"{part}2017" / image["file_name"], sides, labels, crowd)
            )
    return parts


def _clipped(box: list[float], size: tuple[int, int]) -> list[float]:
    """x y width height -> x0 y0 x1 y1 within the image."""
    x, y, width, height = box
    return [max(x, 0), max(y, 0), min(x + width, size[0]), min(y + height, size[1])]
