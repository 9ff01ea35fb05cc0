"""Boxes: the data and the task Detect, against permutations, loops and cases computed by hand."""

import io
from itertools import permutations

import numpy as np
import pytest
import small_sets
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from small_sets import below, lay
from torch import nn

from skipform import data, nets
from skipform.data import boxes as room
from skipform.data.boxes import Augmentation, BoxBatches, BoxEpochs, Boxes, Example
from skipform.data.scenes import scenes
from skipform.errors import SkipformError
from skipform.tasks.detect import Detect, detections, match, set_loss
from skipform.tasks.optimizer import Optimizer

# ---------------------------------------------------------------- matching and loss


def giou(a, b):
    """Rezatofighi et al. (2019), of boxes x0 y0 x1 y1."""
    wide, high = (max(0.0, min(a[i + 2], b[i + 2]) - max(a[i], b[i])) for i in (0, 1))
    area = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    union = area[0] + area[1] - wide * high
    hull = (max(a[2], b[2]) - min(a[0], b[0])) * (max(a[3], b[3]) - min(a[1], b[1]))
    return wide * high / union - (hull - union) / hull


def around(box):
    x, y, w, h = box
    return (x - w / 2, y - h / 2, x + w / 2, y + h / 2)


def cost(logits, box, label, goal):
    chance = np.exp(logits - logits.max())
    far = sum(abs(p - g) for p, g in zip(box, goal, strict=True))
    return -chance[label] / chance.sum() + 5 * far - 2 * giou(around(box), around(goal))


def best(logits, boxes, labels, goals):
    """Of every way to give each object its own prediction (or each prediction its own object) the cheapest."""
    q, k = len(boxes), len(goals)
    if q >= k:
        ways = [list(zip(chosen, range(k), strict=True)) for chosen in permutations(range(q), k)]
    else:
        ways = [list(zip(range(q), chosen, strict=True)) for chosen in permutations(range(k), q)]
    return min(ways, key=lambda way: sum(cost(logits[i], boxes[i], labels[j], goals[j]) for i, j in way))


def drawn(seed, layers=2, n=2, q=3, classes=3, counts=(2, 4)):
    """Read-outs of a net and targets: some images have more objects than it predicts, some none."""
    draw = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(layers, n, q, classes + 1, generator=draw, dtype=torch.float64)
    boxes = 0.05 + 0.9 * torch.rand(layers, n, q, 4, generator=draw, dtype=torch.float64)
    targets = []
    for k in counts:
        corner = torch.rand(k, 2, generator=draw) * 20
        sides = 1 + torch.rand(k, 2, generator=draw) * 10
        labels = torch.randint(classes, (k,), generator=draw)
        one = {"boxes": torch.cat([corner, corner + sides], 1), "labels": labels, "iscrowd": torch.zeros_like(labels)}
        targets.append(one | {"size": (32, 40)})
    return logits, boxes, targets


def shares(target):
    h, w = target["size"]
    x0, y0, x1, y1 = (target["boxes"] / torch.tensor([w, h, w, h])).unbind(1)
    return torch.stack([(x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0], 1)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 4), st.lists(st.integers(0, 4), min_size=1, max_size=3))
def test_matching_is_the_cheapest_of_all_permutations(seed, q, counts):
    logits, boxes, targets = drawn(seed, n=len(counts), q=q, counts=counts)
    labels, goals = torch.cat([t["labels"] for t in targets]), torch.cat([shares(t) for t in targets])
    pairs = match(logits, boxes, labels, goals.double(), list(counts)).T.tolist()
    expected, starts = [], np.cumsum([0, *counts])
    for layer in range(len(logits)):
        for image, target in enumerate(targets):
            own = (logits[layer, image].numpy(), boxes[layer, image].tolist())
            way = best(*own, target["labels"].tolist(), shares(target).tolist())
            expected += [[layer, image, i, j + starts[image]] for i, j in way]
    assert sorted(pairs) == sorted(expected)


def slow_set_loss(logits, boxes, targets):
    """Sections 3.1 and A.4 read aloud: one read-out, one image, one prediction at a time."""
    total, objects = 0.0, max(1, sum(len(t["labels"]) for t in targets))
    for layer in range(len(logits)):
        entropy = weights = 0.0
        for image, target in enumerate(targets):
            rows, own = logits[layer, image], boxes[layer, image].tolist()
            goals, labels = shares(target).tolist(), target["labels"].tolist()
            way = dict(best(rows.numpy(), own, labels, goals))
            for i, row in enumerate(rows):
                wanted, weight = (labels[way[i]], 1.0) if i in way else (rows.shape[1] - 1, 0.1)
                entropy -= weight * row.log_softmax(0)[wanted].item()
                weights += weight
                if i in way:
                    far = sum(abs(p - g) for p, g in zip(own[i], goals[way[i]], strict=True))
                    total += (5 * far + 2 * (1 - giou(around(own[i]), around(goals[way[i]])))) / objects
        total += entropy / weights
    return total


def seen(logits, boxes):
    return {"logits": logits[-1], "boxes": boxes[-1], "auxiliary": {"logits": logits[:-1], "boxes": boxes[:-1]}}


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 3), st.lists(st.integers(0, 3), min_size=1, max_size=3))
def test_the_set_loss_is_its_definition_written_out(seed, layers, counts):
    logits, boxes, targets = drawn(seed, layers=layers, n=len(counts), counts=counts)
    # float32 within; the two GIoU differ by 1e-7 under the fraction
    assert set_loss(seen(logits, boxes), targets).item() == pytest.approx(
        slow_set_loss(logits, boxes, targets), rel=1e-4
    )


def test_the_set_loss_of_a_perfect_prediction_is_zero_and_its_gradient_reaches_every_read_out():
    _, _, targets = drawn(0, counts=(3, 3))
    boxes = torch.stack([shares(t) for t in targets]).repeat(2, 1, 1, 1).requires_grad_()
    sure = 100 * nn.functional.one_hot(torch.stack([t["labels"] for t in targets]), 4).float().repeat(2, 1, 1, 1)
    logits = sure.clone().requires_grad_()
    # torchvision's GIoU adds 1e-7 under the fraction, to areas of 1/1280 at least: 2e-4 a pair at most
    assert set_loss(seen(logits, boxes), targets).item() == pytest.approx(0, abs=1e-3)
    set_loss(seen(logits / 100, boxes + 0.1), targets).backward()
    assert (logits.grad != 0).any(-1).all()
    assert (boxes.grad != 0).any(-1).all()


def test_a_crowd_is_not_learned():
    logits, boxes, targets = drawn(1, counts=(2, 3))
    crowded = [t | {"iscrowd": torch.tensor([0] * len(t["labels"]))} for t in targets]
    extra = torch.tensor([[0.0, 0.0, 40.0, 32.0]])
    crowded[0] |= {
        "boxes": torch.cat([extra, targets[0]["boxes"]]),
        "labels": torch.cat([torch.tensor([1]), targets[0]["labels"]]),
        "iscrowd": torch.tensor([1, 0, 0]),
    }
    assert torch.equal(set_loss(seen(logits, boxes), crowded), set_loss(seen(logits, boxes), targets))


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ((0, 0, 2, 2), (0, 0, 2, 2), 1),
        ((0, 0, 2, 2), (0, 0, 2, 1), 1 / 2),  # within each other: the IoU
        ((0, 0, 1, 1), (1, 1, 2, 2), -1 / 2),  # apart: half of the hull is neither's
        ((0, 0, 1, 1), (9, 9, 10, 10), -98 / 100),
    ],
)
def test_the_twins_giou_is_known_by_hand(one, other, expected):
    assert giou(one, other) == giou(other, one) == pytest.approx(expected)


# ---------------------------------------------------------------- the task


class FixedDetector(nn.Module):
    """A net that takes targets and always detects the same objects."""

    def __init__(self, detected):
        super().__init__()
        self.detected, self.norm, self.weight = detected, nn.BatchNorm2d(1), nn.Parameter(torch.tensor(2.0))

    def forward(self, images, targets=None):
        assert [image.shape[1:] for image in images] == [torch.Size((32, 40))] * len(images)
        self.norm(torch.stack(list(images)))
        if self.training:
            return {
                "near": self.weight * len(targets),
                "right": self.weight * 0 + sum(len(t["labels"]) for t in targets),
            }
        return self.detected


def scored(detected, targets):
    task = Detect(FixedDetector(detected), Optimizer()).eval()
    with torch.no_grad():
        numbers = task.evaluate("test", torch.rand(len(targets), 1, 40, 50), targets)
    assert task.scores("train") == {}
    return numbers, task.scores("test"), task


def test_perfect_boxes_have_a_precision_of_100_none_of_0_and_the_scores_are_forgotten():
    _, _, targets = drawn(2, counts=(2, 4))
    perfect = [{"boxes": t["boxes"], "labels": t["labels"], "scores": torch.ones(len(t["labels"]))} for t in targets]
    numbers, scores, task = scored(perfect, targets)
    assert scores == {"ap": pytest.approx(100), "ap50": pytest.approx(100), "ap75": pytest.approx(100)}
    assert task.scores("test") == {}
    assert (numbers["loss"].item(), numbers["size"]) == (2 * 2 + 6, 2)
    none = [{key: value[:0] for key, value in detected.items()} for detected in perfect]
    assert scored(none, targets)[1] == {"ap": 0, "ap50": 0, "ap75": 0}
    wrong = [detected | {"labels": 3 - detected["labels"]} for detected in perfect]
    targets = [target | {"labels": target["labels"] % 2} for target in targets]
    assert scored(wrong, targets)[1]["ap50"] == 0


def test_the_precision_at_half_an_overlap_is_that_of_half_an_overlap():
    target = {"labels": torch.tensor([0]), "iscrowd": torch.tensor([0]), "size": (32, 40)}
    target["boxes"] = torch.tensor([[0.0, 0.0, 10.0, 10.0]])
    for right, expected in ((6.0, 100), (4.0, 0)):  # IoU 0.6 and 0.4
        detected = {
            "boxes": torch.tensor([[0.0, 0.0, right, 10.0]]),
            "labels": torch.tensor([0]),
            "scores": torch.ones(1),
        }
        scores = scored([detected], [target])[1]
        assert scores["ap50"] == pytest.approx(expected)
        assert scores["ap75"] == 0


def test_a_held_out_loss_leaves_the_net_as_it_was():
    _, _, targets = drawn(3, counts=(1, 1))
    detected = [{"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=int), "scores": torch.zeros(0)}] * 2
    _, _, task = scored(detected, targets)
    assert task.net.norm.num_batches_tracked == 0
    assert not task.net.training


def test_a_predicted_set_becomes_boxes_in_pixels_without_the_padding_best_first():
    logits = torch.tensor([[[0.0, 5, 0], [9, 0, 0], [0, 0, 9]]])
    boxes = torch.tensor([[[0.5, 0.5, 1, 1], [0.25, 0.5, 0.5, 0.2], [0.5, 0.5, 0.1, 0.1]]])
    (detected,) = detections({"logits": logits, "boxes": boxes}, [(10, 20)])
    assert detected["labels"].tolist()[:2] == [0, 1]
    assert detected["boxes"].tolist()[:2] == [[0, 4, 10, 6], [0, 0, 20, 10]]
    assert (
        detected["scores"][0] > detected["scores"][1] > detected["scores"][2]
    )  # the last one is "no object", hardly a class
    assert len(detected["scores"]) == 3


RESNET = {"depth": 8, "width": 4, "in_channels": 1}
DETECTORS = {
    "own losses": lambda: nets.build(
        "fpn",
        head="retinanet",
        channels=8,
        levels=1,
        anchors=(12,),
        num_classes=10,
        backbone=nets.build("resnet", **RESNET),
    ),
    "a set": lambda: nets.build(
        "detr",
        num_classes=10,
        queries=3,
        encoder_depth=1,
        decoder_depth=2,
        width=16,
        heads=2,
        hidden=16,
        dropout=0.0,
        backbone=nets.build("resnet", **RESNET),
    ),
}


@pytest.mark.parametrize("shown", ["ap50", "ap"])
def test_the_score_that_tables_show_is_chosen(shown):
    task = Detect(DETECTORS["a set"](), Optimizer(), shown=shown)
    assert list(task.MAIN_SCORE) == [shown, "%"]
    assert Detect.MAIN_SCORE == ("ap50", "%")
    assert task.hparams["shown"] == shown


@pytest.mark.parametrize("kind", DETECTORS)
def test_steps_lower_the_loss_and_examples_are_as_many_as_images(kind):
    torch.manual_seed(0)
    data = Boxes("digit_boxes", scenes=8, canvas=32, digits=(1, 2), batch_size=8)
    data.setup()
    (batch,) = data.train_dataloader()
    task = Detect(DETECTORS[kind](), Optimizer(name="adamw", lr=3e-3))
    optimizer = torch.optim.AdamW(task.net.parameters(), 3e-3)
    losses = []
    for _ in range(8):
        numbers = task.step(*batch)
        optimizer.zero_grad()
        numbers["loss"].backward()
        optimizer.step()
        losses.append(numbers["loss"].item())
    assert losses[-1] < 0.9 * losses[0]
    assert numbers["size"] == 8
    task.eval()
    with torch.no_grad():
        assert task.evaluate("test", *batch)["loss"] > 0
        shown = task.examples(*batch)
    assert {len(value) for value in shown.values()} == {8}
    assert set(task.scores("test")) == {"ap", "ap50", "ap75"}


@pytest.mark.parametrize("kind", DETECTORS)
def test_padding_does_not_change_what_is_found(kind):
    torch.manual_seed(0)
    task = Detect(DETECTORS[kind](), Optimizer()).eval()
    image, rest = torch.rand(1, 32, 32), {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    alone = [rest | {"size": (32, 32)}]
    padded = nn.functional.pad(image, (0, 16, 0, 32))
    with torch.no_grad():
        (one,) = task.predict(image[None], alone)
        (same,) = task.predict(padded[None], alone)
    if kind == "own losses":  # it gets the images without their padding
        assert torch.equal(one["boxes"], same["boxes"])
    else:  # convolutions see the zeros beyond the border either way, biases make them others inside: not the same
        assert one["boxes"].shape == same["boxes"].shape
        assert (same["boxes"][:, 2] <= 1.5 * 32).all()


def test_a_compiled_step_is_refused_in_one_line():
    with pytest.raises(SkipformError, match=r"^trainer\.fast: true; accepted with task detect: false[^\n]*$"):
        Detect(DETECTORS["a set"](), Optimizer()).compile_step(channels_last=False)


# ---------------------------------------------------------------- the data


def examples(sizes, objects=2):
    draw = torch.Generator().manual_seed(0)
    made = []
    for h, w in sizes:
        corner = torch.rand(objects, 2, generator=draw) * torch.tensor([w, h]) / 2
        boxes = torch.cat([corner, corner + 1 + torch.rand(objects, 2, generator=draw) * torch.tensor([w, h]) / 3], 1)
        image = torch.randint(256, (3, h, w), generator=draw, dtype=torch.uint8)
        labels = torch.arange(objects)
        made.append(Example(image, boxes, labels, torch.zeros_like(labels)))
    return made


def batches(made, size, augment=None, *, seed=None, workers=0):
    """Batches of the made examples, their pixels as they are."""
    epochs = BoxEpochs(len(made), size, seed=seed)
    return BoxBatches(made, epochs, augment or Augmentation(), (0.0,) * 3, (1 / 255,) * 3, workers=workers)


def test_digit_boxes_are_the_scenes():
    data = Boxes("digit_boxes", scenes=16, canvas=48, digits=[2, 3], size=[12, 16], batch_size=5)  # YAML has no tuples
    data.setup()
    for split, count in (("train", 16), ("test", 2)):
        drawn = scenes(split, count, canvas=48, digits=(2, 3), size=(12, 16))
        (loader,) = (
            data.val_dataloader()
            if split == "test"
            else [BoxBatches(data.splits[split], BoxEpochs(16, 5), Augmentation(), (0.164,), (0.201,))]
        )
        images = torch.cat([images for images, _ in loader])
        torch.testing.assert_close(images, (drawn.images / 255 - 0.164) / 0.201)
        detected = [target for _, targets in loader for target in targets]
        for target, boxes, labels in zip(detected, drawn.boxes, drawn.labels, strict=True):
            assert torch.equal(target["boxes"], boxes)
            assert torch.equal(target["labels"], labels)
            assert target["size"] == (48, 48)
            assert not target["iscrowd"].any()
    assert Boxes.states("digit_boxes") == {"in_channels": 1, "num_classes": 10}


def test_workers_change_nothing():
    made = examples([(20, 30)] * 4)
    augment = Augmentation((10, 16), 24, 0.5, True)
    alone, helped = (list(batches(made, 2, augment, seed=3, workers=w)) for w in (0, 1))
    for (images, targets), (others, same) in zip(alone, helped, strict=True):
        assert torch.equal(images, others)
        assert all(torch.equal(t["boxes"], s["boxes"]) for t, s in zip(targets, same, strict=True))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 999), st.booleans(), st.sampled_from([(), (40,), (30, 60)]), st.sampled_from([0.0, 1.0]))
def test_boxes_go_where_their_pixels_go(seed, flip, sides, crop):
    """After any augmentation the box of a white rectangle on black is that of its white pixels."""
    draw = np.random.default_rng(seed)
    h, w = 64, 96
    x0, y0 = (int(draw.integers(side // 2)) for side in (w, h))
    x1, y1 = (int(draw.integers(low + 8, side)) for low, side in ((x0, w), (y0, h)))
    image = torch.zeros(1, h, w, dtype=torch.uint8)
    image[:, y0:y1, x0:x1] = 255
    example = Example(image, torch.tensor([[x0, y0, x1, y1]]).float(), torch.tensor([1]), torch.tensor([0]))
    augment = Augmentation(sides, 1000, crop, flip)
    varied, boxes, visible = augment(example, np.random.default_rng(seed))
    white = varied[0] > 127
    if not visible.any():
        assert white.sum() == 0
        return
    if not white.any():
        assert crop  # a sliver of less than a pixel
        return
    rows, columns = white.any(1).nonzero(), white.any(0).nonzero()
    detected = torch.tensor([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
    # each of up to two resizings rounds the size by half a pixel, and blurs an edge by as much
    torch.testing.assert_close(boxes[0], detected.float(), atol=2.0, rtol=0)
    if sides and not crop:
        assert min(varied.shape[1:]) in sides


def test_sides_scale_to_the_shorter_one_but_not_beyond_the_longest():
    (example,) = examples([(20, 40)])
    for side, longest, expected in ((10, 100, (10, 20)), (10, 16, (8, 16)), (40, 100, (40, 80))):
        image, boxes, _ = Augmentation((99, side), longest)(example, None)  # testing: the last of them
        assert tuple(image.shape[1:]) == expected
        torch.testing.assert_close(boxes, example.boxes * expected[0] / 20)


def test_images_of_several_sizes_are_padded_right_and_below():
    made = examples([(5, 9), (7, 4)])
    ((images, targets),) = batches(made, 2)
    assert images.shape == (2, 3, 7, 9)
    for image, target, example in zip(images, targets, made, strict=True):
        h, w = target["size"]
        torch.testing.assert_close(image[:, :h, :w], example.source.float())
        assert image[:, h:].abs().sum() + image[:, :, w:].abs().sum() == 0


@pytest.fixture
def bccd(monkeypatch):
    return small_sets.bccd(monkeypatch).files


@pytest.fixture
def coco(monkeypatch):
    return small_sets.coco2017(monkeypatch).files


@pytest.mark.parametrize("packed", [None, "BCCD.tar"])
def test_bccd_is_read_from_its_files_without_boxes_that_have_no_area(packed, bccd, tmp_path):
    lay(below("bccd", bccd), tmp_path / "bccd", packed)
    data = Boxes("bccd", root=str(tmp_path), validation=True)
    data.prepare_data()
    data.setup()
    assert {split: len(detected) for split, detected in data.splits.items()} == {"train": 1, "validation": 1, "test": 1}
    assert data.held_out == ["validation", "test"]
    assert len(data.val_dataloader()) == 2
    for i, split in enumerate(("train", "validation", "test")):
        (example,) = data.splits[split]
        assert example.boxes.tolist() == [[1, 2, 9, 10], [0, 0, 5 + i, 4]]
        assert example.labels.tolist() == [1, 2]
        pixels = np.asarray(Image.open(io.BytesIO(bccd[f"bccd/BCCD/JPEGImages/Blood_{i}.jpg"])))
        # two JPEG decoders may round differently
        assert np.abs(example.image().permute(1, 2, 0).numpy().astype(int) - pixels).max() <= 2
    data = Boxes("bccd", root=str(tmp_path))
    data.setup()
    assert {split: len(detected) for split, detected in data.splits.items()} == {"train": 2, "test": 1}


@pytest.mark.parametrize("spoiled", [None, b"", b"?"])
def test_a_missing_or_altered_file_of_an_archive_is_named(spoiled, bccd, tmp_path):
    file = "bccd/BCCD/Annotations/Blood_1.xml"
    spoilt = {
        name: spoiled if name == file else body for name, body in bccd.items() if name != file or spoiled is not None
    }
    lay(below("bccd", spoilt), tmp_path / "bccd", "BCCD.tar")
    with pytest.raises(SkipformError) as caught:
        Boxes("bccd", root=str(tmp_path)).prepare_data()
    state = "missing" if spoiled is None else "altered or cut short"
    start = f"{tmp_path / file}: {state}; mend it with --data.download true, or with: python -c "
    assert str(caught.value).startswith(start)


def test_the_packages_sums_are_those_of_364_images_and_three_lists():
    files = list(room.sums("bccd"))
    assert len({file for file in files if file.endswith(".jpg")}) == 364
    assert len({file for file in files if file.endswith(".xml")}) == 364
    assert len(files) == 731


def test_coco_is_read_with_labels_in_order_and_boxes_within_the_image(coco, tmp_path):
    lay(coco, tmp_path)
    data = Boxes("coco2017", root=str(tmp_path))
    data.prepare_data()
    data.setup()
    empty, full = data.splits["train"]  # in the order of their numbers
    assert len(empty.labels) == 0
    assert empty.source.name == "1.jpg"
    assert full.boxes.tolist() == [[0, 2, 4, 5.5], [4, 4, 16, 8]]
    assert full.labels.tolist() == [2, 0]
    assert full.crowd.tolist() == [0, 1]
    ((images, targets),) = data.train_dataloader()
    assert images.shape == (2, 3, 12, 16)
    assert sorted(len(target["labels"]) for target in targets) == [0, 2]
    assert len(data.splits["test"]) == 1


@pytest.mark.parametrize("file", ["train2017/1.jpg", "annotations/instances_val2017.json"])
@pytest.mark.parametrize(("content", "state"), [(None, "missing"), (b"", "altered or cut short")])
def test_a_broken_file_of_coco_is_named_and_its_own_archive_mends_it(file, content, state, tmp_path, home, monkeypatch):
    small = small_sets.coco2017(monkeypatch)
    small.lay(tmp_path)
    small.serve(*home, monkeypatch)
    for archive in home[0].rglob("*.zip"):  # the other two are not needed
        if file.partition("/")[0] not in archive.name:
            archive.unlink()
    path = tmp_path / "coco" / file
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SkipformError, match=rf"{file}: {state}; mend it with --data.download true[^\n]*$"):
        Boxes("coco2017", root=str(tmp_path)).prepare_data()
    Boxes("coco2017", root=str(tmp_path), download=True).prepare_data()
    assert path.read_bytes() == small.files[f"coco/{file}"]


def test_annotations_with_too_few_images_are_altered(coco, tmp_path):
    lay(coco | {"coco/annotations/instances_train2017.json": b'{"images": [1]}'}, tmp_path)
    with pytest.raises(SkipformError, match=r"instances_train2017\.json: altered or cut short; mend it"):
        Boxes("coco2017", root=str(tmp_path)).prepare_data()


def test_what_is_not_accepted_is_refused_by_name():
    for key, value in (("scenes", 7), ("workers", -1)):
        with pytest.raises(SkipformError, match=rf"data\.{key}: {value}; accepted: "):
            data.build(0, name="digit_boxes", **{key: value})
    with pytest.raises(SkipformError, match=r"data\.validation: true; accepted: false, only bccd"):
        Boxes("coco2017", validation=True)
