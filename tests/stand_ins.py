"""Small stand-ins of the data sets of scale paper, in their formats and under their names, of random pixels and words.

Their checksums differ from those of the real sets. They are read only by a copy of the sources in which the files of
checksums are those of the stand-ins (`lay`): nothing in the project itself accepts them.
"""

import gzip
import json
import pickle
import random
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from small_sets import lay as write
from small_sets import md5, picture, sha256
from torchvision.datasets.voc import DATASET_YEAR_DICT

from skipform.data import boxes, masks, translation
from skipform.data.source import sums

TRAIN, TEST = 64, 16  # examples
VERSE = "speak hear me before we proceed any further thou art the king , . ; ! First Citizen :"
CAPTIONS = {
    "en": "a dog man two young women run sit on in the red car field , .",
    "de": "ein Hund Mann zwei junge Frauen läuft sitzen auf in dem roten Auto Feld , .",
}


def lay(root: Path, package: Path) -> None:
    """Write the stand-ins below `root`, and their checksums into the copy `package` of src/skipform."""
    voc = voc2012()
    files = cifar10() | isbi2012() | coco2017() | tiny_shakespeare() | multi30k()
    write(files, root)
    write(voc, root, DATASET_YEAR_DICT["2012"]["filename"])
    state(package, "cifar10.md5", "cifar-10-batches-py", {name: md5(content) for name, content in files.items()})
    state(package, "isbi2012.sha256", "isbi2012_unet", {name: sha256(content) for name, content in files.items()})
    state(package, "tiny_shakespeare.sha256", "tinyshakespeare", {n: sha256(content) for n, content in files.items()})
    texts = {n.removesuffix(".gz"): sha256(gzip.decompress(c)) for n, c in files.items() if n.endswith(".gz")}
    others = {f"multi30k/{name}": checksum for name, checksum in sums("multi30k").items()}
    state(package, "multi30k.sha256", "multi30k", others | texts)


def state(package: Path, file: str, folder: str, checksums: Mapping[str, str]) -> None:
    """Replace a file of checksums by those of the files in a folder of the data."""
    lines = [f"{c}  {n.removeprefix(f'{folder}/')}\n" for n, c in checksums.items() if n.startswith(f"{folder}/")]
    assert (package / "data" / file).is_file()
    (package / "data" / file).write_text("".join(lines))


def cifar10() -> dict[str, bytes]:
    """Every test image is the same but for one pixel, so that there are few regions between any two of them: those of
    real images would take a net of 110 layers hours."""
    draw, files = np.random.default_rng(0), {}
    test = np.tile(draw.integers(1, 255, (1, 3072), np.uint8), (TEST, 1))
    test[np.arange(TEST), draw.permutation(3072)[:TEST]] += 1
    parts = {f"data_batch_{i}": draw.integers(0, 256, (-(-TRAIN // 5), 3072), np.uint8) for i in range(1, 6)}
    for name, pixels in (parts | {"test_batch": test}).items():
        batch = {"batch_label": name, "labels": [i % 10 for i in range(len(pixels))], "data": pixels}
        files[f"cifar-10-batches-py/{name}"] = pickle.dumps(batch, protocol=2)
    files["cifar-10-batches-py/batches.meta"] = pickle.dumps({"label_names": list("abcdefghij")}, protocol=2)
    return files


def isbi2012() -> dict[str, bytes]:
    """30 slices of 192x192: U-Net is measured on their centres, and takes none below 188."""
    draw, files = np.random.default_rng(1), {}
    for i in range(30):
        cells = np.kron(draw.random((12, 12)) < 0.8, np.ones((16, 16), bool))
        noise = draw.integers(0, 100, cells.shape, np.uint8)
        files[f"isbi2012_unet/data/membrane/train/image/{i}.png"] = picture((noise + 150 * cells).astype(np.uint8))
        files[f"isbi2012_unet/data/membrane/train/label/{i}.png"] = picture((255 * cells).astype(np.uint8))
    return files


def voc2012() -> dict[str, bytes]:
    draw, files = np.random.default_rng(2), {}
    numbers = {"train": range(TRAIN // 8), "val": range(TRAIN // 8, TRAIN // 8 + TEST // 4)}
    for part, own in numbers.items():
        names = [f"2007_{i:06}" for i in own]
        files[f"{masks.VOC}/ImageSets/Segmentation/{part}.txt"] = "".join(f"{name}\n" for name in names).encode()
        for name in names:
            h, w = draw.integers(40, 80, 2)
            files[f"{masks.VOC}/JPEGImages/{name}.jpg"] = picture(draw.integers(0, 256, (h, w, 3), np.uint8))
            classes = draw.choice([*range(21), 255], (h, w)).astype(np.uint8)
            files[f"{masks.VOC}/SegmentationClass/{name}.png"] = picture(classes, palette=True)
    return files


def coco2017() -> dict[str, bytes]:
    """The lists have as many entries as the real ones, which is how they are known to be complete; the photographs of
    most entries are the same few files."""
    draw, files = np.random.default_rng(3), {}
    categories = sorted(draw.permutation(np.arange(1, 91))[:80].tolist())  # 80 of the numbers up to 90, as in COCO
    for part, listed in boxes.COCO_IMAGES.items():
        names = [f"{i:012}.jpg" for i in range(TEST)]
        for name in names:
            files[f"coco/{part}2017/{name}"] = picture(draw.integers(0, 256, (96, 128, 3), np.uint8))
        photographs = [
            {"id": i, "file_name": names[i % TEST], "width": 128, "height": 96, "license": 1} for i in range(listed)
        ]
        objects = [
            {
                "id": 3 * i + k,
                "image_id": i,
                "category_id": categories[(i + k) % 80],
                "bbox": [float(8 * k), 8.5, 40.0 + i, 48.25],
                "area": 48.25 * (40 + i),
                "iscrowd": int(k == 2),
            }
            for i in range(TEST)
            for k in range(3)
        ]
        content = {"images": photographs, "annotations": objects, "categories": [{"id": i} for i in categories]}
        files[f"coco/annotations/instances_{part}2017.json"] = json.dumps(content).encode()
    return files


def tiny_shakespeare() -> dict[str, bytes]:
    draw = random.Random(4)
    words = VERSE.split()
    lines = [" ".join(draw.choices(words, k=8)) for _ in range(200)]
    return {"tinyshakespeare/input.txt": "".join(f"{line}\n" for line in lines).encode()}


def multi30k() -> dict[str, bytes]:
    draw, files = random.Random(5), {}
    for (split, part), (language, words) in ((p, v) for p in translation.PARTS.items() for v in CAPTIONS.items()):
        count = TRAIN if split == "train" else TEST
        lines = [" ".join(draw.choices(words.split(), k=draw.randint(4, 14))) for _ in range(count)]
        files[f"multi30k/{part}.{language}.gz"] = gzip.compress("".join(f"{line}\n" for line in lines).encode())
    return files
