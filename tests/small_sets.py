"""Small versions of the data sets that are read from files: the same formats, with their own checksums."""

import gzip
import hashlib
import io
import itertools
import json
import pickle
import random
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torchvision.datasets import CIFAR10, FashionMNIST
from torchvision.datasets.voc import DATASET_YEAR_DICT

from skipform.data import boxes, images, masks, text, translation


@dataclass
class SmallSet:
    """A set whose files are `files`, path below the root -> content."""

    name: str
    files: dict[str, bytes]
    example: str  # one of the files
    serve: Callable[[Path, str, Any], None]  # (folder, its address, monkeypatch): fetched from there from now on
    checked: bool = True  # whether checksums of the example are known
    arguments: dict[str, Any] = field(default_factory=dict)  # of the data module

    def lay(self, root: Path) -> Path:
        """Write the files below `root`."""
        lay(self.files, root)
        return root


def lay(files: dict[str, bytes], root: Path, packed: str | None = None) -> None:
    """Write the files below `root`, or into the tar `packed` there."""
    root.mkdir(parents=True, exist_ok=True)
    if packed:
        with tarfile.open(root / packed, "w:gz" if packed.endswith("gz") else "w") as tar:
            for name, content in files.items():
                member = tarfile.TarInfo(name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
        return
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def below(folder: str, files: dict[str, bytes]) -> dict[str, bytes]:
    """The files of a folder, by their paths in it."""
    return {name.removeprefix(f"{folder}/"): content for name, content in files.items() if name.startswith(folder)}


def zipped(path: Path, files: dict[str, bytes]) -> str:
    """Write a zip; returns its md5 sum."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return md5(path.read_bytes())


def md5(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def picture(pixels: np.ndarray, *, palette: bool = False) -> bytes:
    """A PNG of one channel, or a JPEG of three."""
    image, file = Image.fromarray(pixels, "P" if palette else None), io.BytesIO()
    if palette:
        image.putpalette(list(range(256)) * 3)
    image.save(file, "PNG" if pixels.ndim == 2 else "JPEG", quality=95, subsampling=0)
    return file.getvalue()


def cifar10(monkeypatch) -> SmallSet:
    """20 + 10 images."""
    draw, files, sums = np.random.default_rng(0), {}, {}
    for name, count in [*((f"data_batch_{i}", 4) for i in range(1, 6)), ("test_batch", 10), ("batches.meta", 0)]:
        content = {"data": draw.integers(0, 256, (count, 3072), np.uint8), "labels": [i % 10 for i in range(count)]}
        content = content if count else {"label_names": list("abcdefghij")}
        files[f"cifar-10-batches-py/{name}"] = pickle.dumps(content)
        sums[name] = md5(files[f"cifar-10-batches-py/{name}"])
    monkeypatch.setattr(images, "sums", lambda name: sums)
    images._read.cache_clear()

    def serve(folder, address, monkeypatch):
        lay(files, folder, CIFAR10.filename)
        monkeypatch.setattr(CIFAR10, "url", address + CIFAR10.filename)
        monkeypatch.setattr(CIFAR10, "tgz_md5", md5((folder / CIFAR10.filename).read_bytes()))

    return SmallSet("cifar10", files, "cifar-10-batches-py/data_batch_3", serve)


def fashion_mnist(monkeypatch) -> SmallSet:
    """20 + 10 images."""
    draw, files = np.random.default_rng(0), {}
    for part, count in (("train", 20), ("t10k", 10)):
        pixels = draw.integers(0, 256, (count, 28, 28), np.uint8)
        labels = (np.arange(count) % 10).astype(np.uint8)
        for kind, head, body in (("images-idx3", 16, pixels), ("labels-idx1", 8, labels)):
            content = gzip.compress(bytes(head) + body.tobytes(), mtime=0)
            files[f"FashionMNIST/raw/{part}-{kind}-ubyte.gz"] = content
    raw = below("FashionMNIST/raw", files)
    monkeypatch.setattr(images, "sums", lambda name: {file: md5(content) for file, content in raw.items()})
    images._read.cache_clear()

    def serve(folder, address, monkeypatch):
        lay(raw, folder)
        monkeypatch.setattr(FashionMNIST, "mirrors", [address])

    return SmallSet("fashion_mnist", files, "FashionMNIST/raw/t10k-labels-idx1-ubyte.gz", serve)


def isbi2012(monkeypatch) -> SmallSet:
    draw, files = np.random.default_rng(0), {}
    for i in range(30):
        slice_, mask = draw.integers(0, 256, (12, 12), np.uint8), 255 * draw.integers(0, 2, (12, 12)).astype(np.uint8)
        files[f"isbi2012_unet/data/membrane/train/image/{i}.png"] = picture(slice_)
        files[f"isbi2012_unet/data/membrane/train/label/{i}.png"] = picture(mask)
    own = below("isbi2012_unet", files)
    monkeypatch.setattr(masks, "sums", lambda name: {file: sha256(content) for file, content in own.items()})
    masks._read.cache_clear()

    def serve(folder, address, monkeypatch):
        lay(own, folder)
        monkeypatch.setattr(masks, "ISBI", address)

    return SmallSet("isbi2012", files, "isbi2012_unet/data/membrane/train/label/7.png", serve)


def voc2012(monkeypatch) -> SmallSet:
    """2 + 1 photographs."""
    draw, files, base = np.random.default_rng(1), {}, "VOCdevkit/VOC2012"
    for part, names in (("train", ["2007_1", "2008_2"]), ("val", ["2009_3"])):
        files[f"{base}/ImageSets/Segmentation/{part}.txt"] = ("\n".join(names) + "\n").encode()
        for name in names:
            h, w = draw.integers(8, 20, 2)
            files[f"{base}/JPEGImages/{name}.jpg"] = picture(draw.integers(0, 256, (h, w, 3), np.uint8))
            classes = draw.choice([0, 3, 20, 255], (h, w)).astype(np.uint8)
            files[f"{base}/SegmentationClass/{name}.png"] = picture(classes, palette=True)
    monkeypatch.setattr(masks, "VOC_SIDE", 24)
    masks._read.cache_clear()

    def serve(folder, address, monkeypatch):
        archive = DATASET_YEAR_DICT["2012"]["filename"]
        lay(files, folder, archive)
        entry = {"url": address + archive, "md5": md5((folder / archive).read_bytes())}
        monkeypatch.setitem(DATASET_YEAR_DICT, "2012", DATASET_YEAR_DICT["2012"] | entry)

    return SmallSet("voc2012", files, f"{base}/JPEGImages/2009_3.jpg", serve, checked=False)


def bccd(monkeypatch) -> SmallSet:
    """One image a split."""
    draw, files = np.random.default_rng(0), {}
    for i, split in enumerate(("train", "val", "test")):
        files[f"bccd/BCCD/ImageSets/Main/{split}.txt"] = f"Blood_{i}\n".encode()
        files[f"bccd/BCCD/JPEGImages/Blood_{i}.jpg"] = picture(draw.integers(0, 256, (12, 16, 3), np.uint8))
        cells = [("WBC", 1, 2, 9, 10), ("RBC", 3, 3, 3, 8), ("Platelets", 0, 0, 5 + i, 4)]
        objects = "".join(
            f"<object><name>{name}</name><bndbox><xmin>{x0}</xmin><ymin>{y0}</ymin><xmax>{x1}</xmax><ymax>{y1}</ymax></bndbox></object>"
            for name, x0, y0, x1, y1 in cells
        )
        files[f"bccd/BCCD/Annotations/Blood_{i}.xml"] = f"<annotation>{objects}</annotation>".encode()
    own = below("bccd/BCCD", files)
    monkeypatch.setattr(boxes, "sums", lambda name: {file: md5(content) for file, content in own.items()})
    boxes._bccd.cache_clear()

    def serve(folder, address, monkeypatch):
        packed = {f"BCCD_Dataset-master/BCCD/{name}": content for name, content in own.items()}
        zipped(folder / "master.zip", packed | {"BCCD_Dataset-master/README.md": b"else"})
        monkeypatch.setattr(boxes, "BCCD", address + "master.zip")

    return SmallSet("bccd", files, "bccd/BCCD/Annotations/Blood_1.xml", serve)


def coco2017(monkeypatch) -> SmallSet:
    """2 + 1 photographs."""
    draw, files = np.random.default_rng(0), {}
    for part, count in (("train", 2), ("val", 1)):
        photographs = [{"id": 7 - i, "file_name": f"{i}.jpg", "width": 16, "height": 12} for i in range(count)]
        objects = [
            {"image_id": 7, "category_id": 90, "bbox": [-1.0, 2.0, 5.0, 3.5], "iscrowd": 0},
            {"image_id": 7, "category_id": 1, "bbox": [4.0, 4.0, 99.0, 4.0], "iscrowd": 1},
            {"image_id": 7, "category_id": 3, "bbox": [4.0, 4.0, 0.0, 4.0], "iscrowd": 0},
        ]
        content = {"images": photographs, "annotations": objects, "categories": [{"id": i} for i in (90, 3, 1)]}
        files[f"coco/annotations/instances_{part}2017.json"] = json.dumps(content).encode()
        for photograph in photographs:
            files[f"coco/{part}2017/{photograph['file_name']}"] = picture(draw.integers(0, 256, (12, 16, 3), np.uint8))
    monkeypatch.setattr(boxes, "COCO_IMAGES", {"train": 2, "val": 1})
    boxes._coco.cache_clear()

    def serve(folder, address, monkeypatch):
        sums = {}
        for archive in boxes.COCO_MD5:
            (folder / archive).parent.mkdir(exist_ok=True)
            part = Path(archive).stem.partition("_")[0]
            sums[archive] = zipped(
                folder / archive, {f"{part}/{name}": body for name, body in below(f"coco/{part}", files).items()}
            )
        monkeypatch.setattr(boxes, "COCO", address)
        monkeypatch.setattr(boxes, "COCO_MD5", sums)

    return SmallSet("coco2017", files, "coco/val2017/0.jpg", serve, checked=False)


VERSE = "".join(f"{i}: Speak, speak.\n" for i in range(60))


def tiny_shakespeare(monkeypatch) -> SmallSet:
    files = {"tinyshakespeare/input.txt": VERSE.encode()}
    monkeypatch.setattr(text, "sums", lambda name: {"input.txt": sha256(VERSE.encode())})
    text._read.cache_clear()

    def serve(folder, address, monkeypatch):
        lay(below("tinyshakespeare", files), folder)
        monkeypatch.setattr(text, "SHAKESPEARE", address)

    return SmallSet("tiny_shakespeare", files, "tinyshakespeare/input.txt", serve, arguments={"context": 8})


VOCABULARY = {
    "en": "a dog man runs sits on the red car , .",
    "de": "ein Hund Mann läuft sitzt auf dem roten Auto , .",
}


def multi30k(monkeypatch) -> SmallSet:
    """20 + 10 + 10 sentences of two languages."""
    draw, files, sums = random.Random(0), {}, {}
    parts = {"train": 20, "val": 10, "test_2016_flickr": 10}
    for (part, count), language in itertools.product(parts.items(), VOCABULARY):
        lines = [" ".join(draw.choices(VOCABULARY[language].split(), k=draw.randint(3, 30))) for _ in range(count)]
        content = "".join(f"{line}\n" for line in lines).encode()
        files[f"multi30k/{part}.{language}.gz"] = gzip.compress(content)
        sums[f"{part}.{language}"] = sha256(content)
    monkeypatch.setattr(translation, "sums", lambda name: sums)
    translation._read.cache_clear()

    def serve(folder, address, monkeypatch):
        lay(below("multi30k", files), folder)
        monkeypatch.setattr(translation, "HOME", address)

    return SmallSet("multi30k", files, "multi30k/val.de.gz", serve, arguments={"vocab_size": 300})


SETS = (cifar10, fashion_mnist, isbi2012, voc2012, bccd, coco2017, tiny_shakespeare, multi30k)
