"""Scenes and masks: exact masks, splits that share no digit, files, variations, weights of borders."""

import csv
import hashlib
import io
import json
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import small_sets
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image
from scipy import ndimage
from small_sets import lay
from torch.nn import functional
from torchvision.datasets.voc import DATASET_YEAR_DICT

from skipform import data
from skipform.data import masks as module
from skipform.data.borders import border_weights
from skipform.data.epochs import Epochs
from skipform.data.images import Images
from skipform.data.masks import Masks, Tiles
from skipform.data.scenes import INK, scenes
from skipform.errors import SkipformError
from skipform.stages import cli

KINDS = {
    "default": {},
    "dense": {"canvas": 32, "digits": (3, 5), "size": (8, 12)},
    "touching": {"canvas": 40, "digits": (3, 4), "size": (16, 18), "overlap": 0.3},
}


@pytest.fixture(scope="module", params=KINDS)
def drawn(request):
    return scenes("train", 12, seed=3, **KINDS[request.param]), KINDS[request.param]


def test_masks_are_the_ink_and_boxes_are_tight_round_it(drawn):
    actual, _ = drawn
    for image, mask, boxes, labels in zip(actual.images[:, 0], actual.masks, actual.boxes, actual.labels, strict=True):
        assert torch.equal(mask > 0, image > 63)  # the background is at most 48, ink at least 255 INK = 63.5
        assert {int(label) + 1 for label in labels} == set(mask.unique().tolist()) - {0}
        for digit in labels.unique():  # the ink of a class fills just the boxes of its digits, from edge to edge
            ink, within = mask == digit + 1, torch.zeros_like(mask, dtype=torch.bool)
            for x0, y0, x1, y1 in boxes[labels == digit].int().tolist():
                within[y0:y1, x0:x1] = True
                inside = ink[y0:y1, x0:x1]
                assert inside[0].any()
                assert inside[-1].any()
                assert inside[:, 0].any()
                assert inside[:, -1].any()
            assert not (ink & ~within).any()


def test_numbers_sizes_and_overlaps_are_those_asked_for(drawn):
    actual, asked = drawn
    least, most = asked.get("digits", (2, 5))
    canvas = asked.get("canvas", 64)
    for boxes, labels in zip(actual.boxes, actual.labels, strict=True):
        assert least <= len(labels) == len(boxes) <= most
        assert (boxes >= 0).all()
        assert (boxes <= canvas).all()
        sides = boxes[:, 2:] - boxes[:, :2]
        assert (sides <= asked.get("size", (12, 24))[1]).all()
        for one, other in combinations(boxes.tolist(), 2):
            shared = np.zeros((canvas, canvas), int)
            for x0, y0, x1, y1 in np.array([one, other], int):
                shared[y0:y1, x0:x1] += 1
            smaller = min((x1 - x0) * (y1 - y0) for x0, y0, x1, y1 in (one, other))
            assert (shared == 2).sum() <= asked.get("overlap", 0.1) * smaller


def spanned(present):
    """From the first that is there to the last."""
    (places,) = np.nonzero(present.numpy())
    return slice(places[0], places[-1] + 1)


def test_every_digit_is_an_interpolated_one_of_its_own_split():
    data = Images("digits")
    data.setup()
    for split in ("train", "test"):
        actual = scenes(split, 6, seed=1, digits=(2, 2), size=(12, 12), noise=0)
        pixels, classes = data.pixels[split]
        enlarged = functional.interpolate(pixels.double() / 16, size=12, mode="bilinear")[:, 0]
        enlarged = torch.where(enlarged >= INK, enlarged, 0)
        for image, boxes, labels in zip(actual.images[:, 0], actual.boxes, actual.labels, strict=True):
            for (x0, y0, x1, y1), label in zip(boxes.int().tolist(), labels.tolist(), strict=True):
                patch = image[y0:y1, x0:x1]
                candidates = enlarged[classes == label]
                cut = [one[spanned(one.any(1)), spanned(one.any(0))] for one in candidates]
                # other digits' ink may reach into the box, and rounding is to one of 255 levels
                alike = [((one * 255 - patch).abs() <= 1)[one > 0].all() for one in cut if one.shape == patch.shape]
                assert any(alike)


def test_a_scene_depends_on_split_seed_and_number_alone():
    few, many = scenes("test", 2, seed=5), scenes("test", 4, seed=5)
    assert torch.equal(few.images, many.images[:2])
    assert all(torch.equal(*pair) for pair in zip(few.boxes, many.boxes, strict=False))
    assert torch.equal(scenes.__wrapped__("test", 2, seed=5).masks, few.masks)
    different = {scenes(split, 1, seed=seed).images.numpy().tobytes() for split in ("train", "test") for seed in (5, 6)}
    assert len(different) == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "all"}, "unknown split 'all'; accepted: train, test"),
        ({"digits": (3, 2)}, r"digits: \(3, 2\); accepted: two ascending numbers of at least 1"),
        ({"size": (6, 9)}, r"size: \(6, 9\); accepted: two ascending numbers of at least 8"),
        ({"size": (8, 65)}, r"size: \(8, 65\); accepted: at most 64, the canvas"),
        ({"canvas": 24, "digits": (9, 9), "size": (12, 24)}, "canvas: 24 is too small for up to 9 digits of up to 24"),
    ],
)
def test_scenes_that_cannot_be_drawn_are_one_line(arguments, message):
    with pytest.raises(SkipformError, match=message):
        scenes(**{"split": "train", "count": 1} | arguments)


def test_standardised_digit_scenes_have_about_mean_0_and_deviation_1():
    data = Masks("digit_masks", scenes=100)
    data.setup()
    images = data.splits["train"][0]
    assert len(data.splits["test"][0]) == 20
    # 100 random scenes of about 3.5 digits: the share of ink varies by a few percent
    assert abs(images.mean().item()) < 0.1
    assert abs(images.std().item() - 1) < 0.1


def coordinates(n, h, w):
    """Images whose two channels say each pixel's row and column, masks that say both."""
    rows, columns = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
    images = torch.stack((rows, columns)).expand(n, 2, h, w).to(torch.uint8).contiguous()
    return images, (rows * w + columns).to(torch.uint8).expand(n, h, w).contiguous()


@settings(max_examples=40)
@given(
    n=st.integers(1, 5),
    side=st.integers(2, 9),
    crop=st.none() | st.integers(1, 9),
    crops=st.integers(1, 3),
    symmetries=st.sampled_from([1, 2, 8]),
    seed=st.integers(0, 9),
)
def test_crops_and_their_masks_are_the_same_window_turned_the_same_way(n, side, crop, crops, symmetries, seed):
    crop = crop and min(crop, side)
    images, masks = coordinates(n, side, side)
    tiles = Tiles(images, masks, Epochs(n * crops, 2, seed=seed), crop=crop, symmetries=symmetries)
    batches = list(tiles)
    assert len(batches) == len(tiles) == max(1, n * crops // 2)
    h = crop or side
    for image, mask in ((i, m) for batch in batches for i, m in zip(*batch, strict=True)):
        rows, columns = image.long()
        assert torch.equal(mask, rows * side + columns)
        top, left = int(rows.min()), int(columns.min())
        window = torch.stack(torch.meshgrid(torch.arange(h) + top, torch.arange(h) + left, indexing="ij"))
        turns = [window.flip(axes) for axes in ((), (2,), (1,), (1, 2))]
        turns += [turn.transpose(1, 2) for turn in turns]
        turns = {1: turns[:1], 2: turns[:2], 8: turns}[symmetries]
        assert any(torch.equal(torch.stack((rows, columns)), turn) for turn in turns)


def test_all_symmetries_and_corners_occur():
    images, masks = coordinates(1, 3, 3)
    tiles = Tiles(images, masks, Epochs(600, 1, seed=0), crop=2, symmetries=8)
    # 4 windows times 8 symmetries, each missed with probability (31/32)^600 < 1e-8
    assert len({tuple(image.flatten().tolist()) for image, _ in tiles}) == 32


def test_variations_depend_on_seed_and_epoch_alone_and_are_shared_out_whole():
    images, masks = coordinates(5, 8, 8)

    def batches(epoch, past=0, **how):
        tiles = Tiles(images, masks, Epochs(10, 4, seed=7, **how), crop=5, symmetries=8, elastic=1.0)
        for tiles.epoch in range(past):
            list(tiles)
        tiles.epoch = epoch
        return torch.stack([image for image, _ in tiles])

    once = batches(3)
    assert torch.equal(batches(3, past=2), once)
    assert not torch.equal(batches(4), once)
    shares = [batches(3, share=(rank, 2)) for rank in (0, 1)]
    assert torch.equal(torch.cat(shares, 1), once)


@settings(max_examples=10)
@given(st.integers(0, 99), st.sampled_from([None, 20]))
def test_elastic_deformation_moves_pixels_as_far_as_its_grid_and_masks_with_them(seed, crop):
    images, masks = coordinates(1, 33, 33)
    masks = (images[:, 0] >= 16).to(torch.uint8)
    plain = next(iter(Tiles(images, masks, Epochs(1, 1, seed=seed), crop=crop)))[0]
    image, mask = next(iter(Tiles(images, masks, Epochs(1, 1, seed=seed), crop=crop, elastic=2.0)))
    moved = image - plain  # what stands at a place, minus what stood there: the vector it is moved by, off the border
    inner = (slice(None), slice(None), slice(8, -8), slice(8, -8))
    assert moved.abs().max() > 0
    # neighbours move alike: between knots 16 pixels apart bicubic interpolation of N(0, 4) has slopes of below 2/3
    assert (image[inner].diff(dim=3).abs().max()) < 3
    sure = (image[:, 0] - 15.5).abs() > 1  # away from the edge, where nearest and bilinear may differ
    assert torch.equal(mask[sure], (image[:, 0] > 15.5).long()[sure])
    still, _ = next(iter(Tiles(images, masks, Epochs(1, 1, seed=seed), crop=crop, elastic=1e-9)))
    torch.testing.assert_close(still, plain, atol=1e-4, rtol=0)  # float32 coordinates of up to 33


def test_testing_sees_every_image_once_whole_and_in_order():
    data = Masks("digit_masks", scenes=60, canvas=32, size=(8, 12), limit=7)
    data.setup()
    (loader,) = data.val_dataloader()
    images, masks = (torch.cat(all) for all in zip(*loader, strict=True))
    assert data.held_out == ["test"]
    assert torch.equal(images, data.splits["test"][0])
    assert torch.equal(masks, data.splits["test"][1].long())
    assert len(images) == 7


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"crops": 0}, r"data.crops: 0; accepted: 1 or more"),
        ({"elastic": -1.0}, r"data.elastic: -1.0; accepted: 0 or more"),
        ({"grey": -1.0}, r"data.grey: -1.0; accepted: 0 or more"),
        (
            {"name": "voc2012", "border_weight": 10.0},
            r"data.border_weight: 10.0 for 'voc2012', some of whose pixels have no class; accepted: 0",
        ),
        ({"symmetries": 4}, r"data.symmetries: 4 is not accepted; accepted: 1 \| 2 \| 8"),
        ({"crop": 65}, r"data.crop: 65; accepted: at most 64, the size of the images"),
    ],
)
def test_a_wrong_argument_is_named(arguments, message):
    with pytest.raises(SkipformError, match=message):
        data.build(0, **{"name": "digit_masks", "scenes": 5} | arguments).setup()


@pytest.fixture
def isbi(monkeypatch):
    """Small slices under their names in isbi2012_unet."""
    return small_sets.below("isbi2012_unet", small_sets.isbi2012(monkeypatch).files)


@pytest.fixture
def voc(monkeypatch):
    return small_sets.voc2012(monkeypatch).files


@pytest.mark.parametrize("packed", [None, "membrane.tar"])
def test_isbi_is_read_from_folder_or_archive_the_last_six_slices_held_out(packed, isbi, tmp_path):
    lay(isbi, tmp_path / "isbi2012_unet", packed)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    data = Masks("isbi2012", root=str(tmp_path))
    data.prepare_data()
    data.setup()
    for split, slices in (("train", range(24)), ("test", range(24, 30))):
        for i, image, mask in zip(slices, *data.pixels[split], strict=True):
            pixels, label = (
                np.array(Image.open(io.BytesIO(isbi[f"data/membrane/train/{kind}/{i}.png"])))
                for kind in ("image", "label")
            )
            assert np.array_equal(image[0], pixels)
            assert np.array_equal(mask, label == 255)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("packed", [None, "VOCtrainval_11-May-2012.tar"])
def test_voc_is_filled_up_with_the_mean_and_with_pixels_of_no_class(packed, voc, tmp_path):
    lay(voc, tmp_path, packed)
    data = Masks("voc2012", root=str(tmp_path))
    data.prepare_data()
    data.setup()
    images, masks = data.splits["train"]
    assert images.shape == (2, 3, 24, 24)
    assert len(data.splits["test"][0]) == 1
    base = "VOCdevkit/VOC2012"
    for name, image, mask in zip(["2007_1", "2008_2"], data.pixels["train"][0], masks, strict=True):
        photograph = np.array(Image.open(io.BytesIO(voc[f"{base}/JPEGImages/{name}.jpg"])))
        classes = np.array(Image.open(io.BytesIO(voc[f"{base}/SegmentationClass/{name}.png"])))
        h, w = classes.shape
        assert np.array_equal(image[:, :h, :w], photograph.transpose(2, 0, 1))
        assert np.array_equal(mask[:h, :w], classes)
        assert (mask[h:] == 255).all()
        assert (mask[:, w:] == 255).all()
    # 255 times the mean, rounded to a whole number: half of one, over 255 times the deviation
    assert images[..., -1].abs().max() < 0.5 / (255 * 0.22)


@pytest.mark.parametrize(
    ("spoil", "state"), [(None, "missing"), (lambda content: content[:-1] + b"?", "altered or cut short")]
)
def test_a_missing_or_altered_slice_of_an_archive_is_named(spoil, state, isbi, tmp_path):
    name = "data/membrane/train/label/7.png"
    spoilt = isbi | {name: spoil(isbi[name])} if spoil else {key: isbi[key] for key in isbi if key != name}
    lay(spoilt, tmp_path / "isbi2012_unet", "membrane.tar")
    with pytest.raises(SkipformError) as caught:
        Masks("isbi2012", root=str(tmp_path)).prepare_data()
    first = tmp_path / "isbi2012_unet" / name
    assert str(caught.value).startswith(f"{first}: {state}; mend it with --data.download true, or with: python -c ")


@pytest.mark.parametrize("share", [0.3, 0.7])
def test_an_archive_cut_short_names_a_slice_beyond_the_cut(share, isbi, tmp_path):
    lay(isbi, tmp_path / "isbi2012_unet", "membrane.tar")
    archive = tmp_path / "isbi2012_unet" / "membrane.tar"
    archive.write_bytes(archive.read_bytes()[: int(share * archive.stat().st_size)])
    with pytest.raises(SkipformError, match=r"train/(image|label)/\d+\.png: (missing|altered or cut short); mend it"):
        Masks("isbi2012", root=str(tmp_path)).prepare_data()


def test_downloading_mends_what_is_broken_even_next_to_an_archive(isbi, home, tmp_path, monkeypatch):
    name = "data/membrane/train/image/3.png"
    lay(isbi, home[0])
    lay(isbi | {name: b"half"}, tmp_path / "isbi2012_unet", "membrane.tar")
    monkeypatch.setattr(module, "ISBI", home[1])
    Masks("isbi2012", root=str(tmp_path), download=True).prepare_data()
    assert (tmp_path / "isbi2012_unet" / name).read_bytes() == isbi[name]
    assert len(list((tmp_path / "isbi2012_unet").rglob("*.png"))) == 1
    Masks("isbi2012", root=str(tmp_path)).prepare_data()
    (tmp_path / "isbi2012_unet" / name).write_bytes(b"half")
    (home[0] / name).write_bytes(b"other")
    with pytest.raises(
        SkipformError, match=rf"{name}: could not be fetched from {home[1]}{name}: it has another checksum"
    ):
        Masks("isbi2012", root=str(tmp_path), download=True).prepare_data()


def test_downloading_voc_fetches_and_unpacks_its_archive(voc, home, tmp_path, monkeypatch):
    archive = "VOCtrainval_11-May-2012.tar"
    lay(voc, home[0], archive)
    md5 = hashlib.md5((home[0] / archive).read_bytes()).hexdigest()
    monkeypatch.setitem(DATASET_YEAR_DICT, "2012", DATASET_YEAR_DICT["2012"] | {"url": home[1] + archive, "md5": md5})
    data = Masks("voc2012", root=str(tmp_path), download=True)
    data.prepare_data()
    assert {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.*") if path.is_file()} == {
        *voc,
        archive,
    }
    monkeypatch.setitem(DATASET_YEAR_DICT, "2012", DATASET_YEAR_DICT["2012"] | {"url": home[1] + "nothing"})
    (tmp_path / archive).unlink()
    (tmp_path / next(name for name in voc if name.endswith(".jpg"))).unlink()
    with pytest.raises(SkipformError, match=rf"jpg: could not be fetched from {home[1]}nothing: [^\n]*$"):
        data.prepare_data()


def test_a_photograph_that_is_missing_or_no_picture_is_named(voc, tmp_path):
    name = "VOCdevkit/VOC2012/JPEGImages/2009_3.jpg"
    lay(voc | {name: b"half"}, tmp_path)
    data = Masks("voc2012", root=str(tmp_path))
    data.prepare_data()
    with pytest.raises(SkipformError, match=rf"{name}: altered or cut short"):
        data.setup()
    (tmp_path / name).unlink()
    with pytest.raises(SkipformError, match=rf"{name}: missing; mend it with --data.download true"):
        data.prepare_data()


@settings(max_examples=30)
@given(hnp.arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9)), elements=st.integers(0, 2)))
def test_border_weights_are_the_papers_formula_pixel_by_pixel(mask):
    """w_0 exp(-(d_1 + d_2)^2 / (2 sigma^2)), the distances to every pixel of every cell compared one by one."""
    cells = []
    for c in (1, 2):
        regions, number = ndimage.label(mask == c)
        cells += [np.argwhere(regions == i) for i in range(1, number + 1)]
    expected = np.zeros(mask.shape)
    for place in np.ndindex(mask.shape):
        distances = sorted(min(np.hypot(*(pixel - place)) for pixel in cell) for cell in cells)
        if mask[place] == 0 and len(cells) > 1:
            expected[place] = 10 * np.exp(-((distances[0] + distances[1]) ** 2) / (2 * 5**2))
    # float32; the mask is smaller than the 30 pixels beyond which the weight is left out
    np.testing.assert_allclose(border_weights(mask), expected, rtol=1e-6, atol=0)


def test_border_weights_end_where_they_are_negligible():
    mask = np.zeros((1, 110), np.uint8)
    mask[0, [0, 109]] = 1
    assert not border_weights(mask).any()
    # at the middle of 40 pixels d_1 + d_2 = 40
    mask[0, 40] = 1
    assert border_weights(mask)[0, 20] == pytest.approx(10 * np.exp(-(40**2) / 50), rel=1e-6)
    assert border_weights(mask)[0, 75] == 0  # 35 and 34 pixels from the nearest cells


def test_weights_of_borders_go_with_their_pixels_and_are_those_of_training_alone():
    given = {"scenes": 5, "canvas": 32, "size": (8, 12), "batch_size": 5, "border_weight": 10.0}
    data = Masks("digit_masks", crop=20, symmetries=8, **given)
    data.setup()
    assert all(len(batch) == 2 for batch in data.test_dataloader())
    tiles = data.train_dataloader()
    tiles.images = (tiles.borders[:, None] * 255 / 10).round().to(torch.uint8)  # the weights as grey values
    tiles.standardise = torch.Tensor.float
    (images, _, weights), *_ = tiles
    assert weights.max() > 0
    # rounded to one of 255 values
    torch.testing.assert_close(images[:, 0] * 10 / 255, weights, rtol=0, atol=0.5 * 10 / 255 + 1e-6)
    tiles.elastic = 2.0
    (images, _, weights), *_ = tiles
    torch.testing.assert_close(images[:, 0] * 10 / 255, weights, rtol=0, atol=0.5 * 10 / 255 + 1e-5)


def test_grey_values_change_by_one_affine_map_for_each_image():
    images, masks = torch.randint(256, (50, 1, 6, 6), dtype=torch.uint8), torch.zeros(50, 6, 6, dtype=torch.uint8)

    def drawn(grey: float) -> torch.Tensor:
        return next(iter(Tiles(images, masks, Epochs(50, 50, seed=1), grey=grey)))[0].double().flatten(1)

    plain, changed = drawn(0.0), drawn(0.1)
    slopes = ((changed - changed.mean(1, keepdim=True)) * (plain - plain.mean(1, keepdim=True))).sum(1) / (
        (plain - plain.mean(1, keepdim=True)).square().sum(1)
    )
    shifts = changed.mean(1) - slopes * plain.mean(1)
    # float32 values of up to 300
    torch.testing.assert_close(changed, slopes[:, None] * plain + shifts[:, None], rtol=0, atol=1e-4)
    for values, middle in ((slopes, 1.0), (shifts, 0.0)):  # 50 draws: their deviation varies by a tenth
        assert abs(values.mean() - middle) < 0.06
        assert 0.06 < values.std() < 0.14


EXPERIMENT = """
variants: {small: {name: unet, width: 2, levels: 1, padding: same}}
data: {name: isbi2012, batch_size: 4, crop: 10, symmetries: 8, elastic: 1, grey: 0.1, border_weight: 10}
task: {name: segment, class_weights: [2.0, 1.0], rotations: 7}
trainer: {max_epochs: 1, accelerator: cpu}
wandb: disabled
"""


def test_pixel_and_rand_error_stand_in_metrics_line_and_published_row(isbi, tmp_path, monkeypatch, capsys):
    lay(isbi, tmp_path / "data" / "isbi2012_unet", "membrane.tar")
    for folder in ("scale", "own"):
        (tmp_path / "experiments" / folder).mkdir(parents=True)
    (tmp_path / "experiments" / "scale" / "small.yaml").write_text("# nothing\n")
    (tmp_path / "experiments" / "own" / "cells.yaml").write_text(EXPERIMENT)
    monkeypatch.chdir(tmp_path)
    command = [
        "fit",
        "--config",
        "experiments/own/cells.yaml",
        "--scale",
        "small",
        "--seeds",
        "0",
        "1",
        "--workers",
        "1",
    ]
    assert cli.main([*command, "--data.root", "data", "--out", "runs/own/cells"]) == 0
    line = capsys.readouterr().out
    summary = json.loads((tmp_path / "runs/own/cells/summary.json").read_text())["small"]
    assert summary["further"] == ["pixel_error", "rand_error"]
    pixel, rand = (summary[f"test_{name}"]["middle"] for name in summary["further"])
    assert line.endswith(f"2 seeds), pixel error {pixel:.2f} %, rand error {rand:.2f} %\n")
    assert cli.main(["publish", "--runs", "runs/own", "--out", "own.csv"]) == 0
    (row,) = csv.DictReader((tmp_path / "own.csv").read_text().splitlines())
    assert (row["score"], row["further"]) == ("mean_iou", f"pixel_error {pixel:.2f} %, rand_error {rand:.2f} %")


def test_every_listed_slice_has_a_sum_and_there_are_thirty_of_each():
    sums = module.sums("isbi2012")
    assert set(sums) == {f"data/membrane/train/{kind}/{i}.png" for kind in ("image", "label") for i in range(30)}
    assert len(set(sums.values())) == 60
    assert {len(total) for total in sums.values()} == {64}
    assert Path(module.__file__).with_name("isbi2012.sha256").is_file()
