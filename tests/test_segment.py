"""Segmentation: losses, scores and predictions against naive definitions, pixel by pixel."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import nn
from torch.nn import functional

from skipform import nets
from skipform.errors import SkipformError
from skipform.tasks import Optimizer
from skipform.tasks.segment import (
    BoundaryIoU,
    PixelError,
    RandError,
    Segment,
    at_boundary,
    centre,
    mirrored,
    rand_score,
    rotated,
)


class Fixed(nn.Module):
    """A net whose scores are its input."""

    def forward(self, x):
        return x


@settings(max_examples=30)
@given(
    k=st.integers(2, 4),
    h=st.integers(2, 7),
    smaller=st.sampled_from([0, 2]),
    ignore=st.sampled_from([None, 255]),
    weighted=st.booleans(),
    seed=st.integers(0, 99),
)
def test_loss_and_scores_are_their_definitions_pixel_by_pixel(k, h, smaller, ignore, weighted, seed):
    torch.manual_seed(seed)
    scores, masks = torch.randn(3, k, h, h), torch.randint(k, (3, h + smaller, h + smaller))
    if ignore:
        masks[:, smaller // 2 + 1, :] = ignore
    weights = tuple(range(1, k + 1)) if weighted else None
    task = Segment(Fixed(), Optimizer(), num_classes=k, ignore_index=ignore, class_weights=weights)
    for part in range(3):  # the scores are of all pixels together, however they come
        actual = task.evaluate("test", scores[part : part + 1], masks[part : part + 1])
    whole = task.step(scores, masks)
    seen = masks[:, smaller // 2 : smaller // 2 + h, smaller // 2 : smaller // 2 + h]
    pixels = [
        (scores[n, :, i, j], int(seen[n, i, j]))
        for n, i, j in np.ndindex(3, h, h)
        if ignore is None or seen[n, i, j] != ignore
    ]
    costs = [(weights or [1] * k)[c] * -s.log_softmax(0)[c] for s, c in pixels]
    expected = sum(costs) / sum((weights or [1] * k)[c] for _, c in pixels)
    torch.testing.assert_close(whole["loss"], expected, rtol=1e-5, atol=1e-6)  # float32, another order of summing
    guesses = [(int(s.argmax()), c) for s, c in pixels]
    assert whole["size"] == len(pixels)
    assert whole["error"] == sum(guess != c for guess, c in guesses)
    assert actual["size"] * 3 == len(pixels)
    shares = []
    for c in range(k):
        either = sum(c in pair for pair in guesses)
        if either:
            shares.append(sum(pair == (c, c) for pair in guesses) / either)
    reported = task.scores("test")
    assert reported["mean_iou"] == pytest.approx(100 * np.mean(shares), rel=1e-5)  # float32
    assert reported["accuracy"] == pytest.approx(100 * sum(g == c for g, c in guesses) / len(pixels), rel=1e-5)
    assert task.scores("test") == {}


@settings(deadline=None)
@given(
    st.integers(1, 3).flatmap(
        lambda k: st.tuples(
            st.just(k),
            st.tuples(st.integers(1, 2), st.integers(1, 9), st.integers(1, 9)).flatmap(
                lambda shape: st.tuples(*[hnp.arrays(np.int64, shape, elements=st.integers(0, k - 1))] * 2)
            ),
        )
    ),
    st.booleans(),
)
def test_the_boundary_iou_is_that_of_outlines_drawn_pixel_by_pixel(drawn, ignores):
    k, (masks, predicted) = drawn
    ignored = k if ignores else None
    masks = np.where(masks == predicted.max(), k, masks) if ignores else masks
    metric = BoundaryIoU(k + 1, ignored)
    for mask, guess in zip(masks, predicted, strict=True):  # of a split together, whatever the batches
        metric.update(
            functional.one_hot(torch.tensor(guess)[None], k + 1).movedim(-1, 1).float(), torch.tensor(mask)[None]
        )

    def outlined(picture, c):
        """The pixels of a class but for those whose eight neighbours are all in it."""
        places = {tuple(place) for place in np.argwhere(picture == c).tolist()}
        inner = {
            (n, i, j) for n, i, j in places if {(n, i + a, j + b) for a in (-1, 0, 1) for b in (-1, 0, 1)} <= places
        }
        return {place for place in places - inner if masks[place] != ignored}

    shares = []
    for c in range(k):
        ours, theirs = outlined(predicted, c), outlined(masks, c)
        if ours | theirs:
            shares.append(len(ours & theirs) / len(ours | theirs))
    value = metric.compute().item()
    assert value == pytest.approx(np.mean(shares), rel=1e-6) if shares else np.isnan(value)  # float32


def test_a_boundary_is_as_wide_as_two_percent_of_the_diagonal():
    for side, distance in ((10, 1), (53, 1), (54, 2), (88, 2), (89, 3)):  # 0.02 * 53 * sqrt(2) = 1.499
        mask = torch.zeros(1, side, side, dtype=torch.int64)
        metric = BoundaryIoU(2)
        metric.update(functional.one_hot(mask, 2).movedim(-1, 1).float(), mask)
        assert metric.either.tolist() == [side**2 - (side - 2 * distance) ** 2, 0]
        assert metric.compute() == 1
    picture = torch.zeros(1, 7, 7, dtype=torch.int64)
    picture[0, 3, 3] = 1
    assert at_boundary(picture, 1)[0].tolist() == [
        [max(abs(i - 3), abs(j - 3)) <= 1 or {i, j} & {0, 6} != set() for j in range(7)] for i in range(7)
    ]


def pairs_score(truth, predicted):
    """The Rand score by counting ordered pairs of pixels, each region grown pixel by pixel."""

    def grown(picture):
        regions, names = {}, 0
        for start in zip(*np.nonzero(picture), strict=True):
            if start in regions:
                continue
            names, waiting = names + 1, [start]
            while waiting:
                i, j = waiting.pop()
                if (i, j) in regions or not (0 <= i < picture.shape[0] and 0 <= j < picture.shape[1]):
                    continue
                if picture[i, j]:
                    regions[i, j] = names
                    waiting += [(i + 1, j), (i - 1, j), (i, j + 1), (i, j - 1)]
        return regions

    theirs, ours = grown(truth), grown(predicted)
    ours |= {place: -1 - n for n, place in enumerate(theirs) if place not in ours}  # a cell of its own
    pairs = [(theirs[p] == theirs[q], ours[p] == ours[q]) for p in theirs for q in theirs]
    both, true, predicted = (sum(map(of, pairs)) for of in (all, lambda x: x[0], lambda x: x[1]))
    return 2 * both / (true + predicted) if theirs else 1.0


@settings(max_examples=40)
@given(hnp.arrays(bool, st.tuples(st.just(2), st.integers(1, 6), st.integers(1, 6))))
def test_the_rand_score_counts_pairs_of_pixels(pictures):
    truth, predicted = pictures
    assert rand_score(truth, predicted) == pytest.approx(pairs_score(truth, predicted), rel=1e-12)
    assert rand_score(truth, truth) == 1


def test_a_gap_in_a_membrane_costs_one_pixel_but_joins_two_cells():
    truth = np.ones((9, 9), bool)
    truth[:, 4] = False
    gap = truth.copy()
    gap[4, 4] = True
    # two cells of 36: true pairs 2 * 36^2, predicted pairs 72^2, shared 2 * 36^2
    assert rand_score(truth, gap) == pytest.approx(2 * 2 * 36**2 / (2 * 36**2 + 72**2))


def test_isbi_errors_are_one_minus_the_best_f_score_over_ten_thresholds():
    torch.manual_seed(0)
    truth = torch.rand(2, 8, 8) < 0.7
    probability = (0.6 * truth + 0.5 * torch.rand(2, 8, 8)).clamp(0.01, 0.99)
    scores = torch.stack((torch.zeros_like(probability), probability.logit()), 1)
    pixel, rand = PixelError(), RandError()
    for metric in (pixel, rand):
        metric.update(scores[:1], truth[:1].long())
        metric.update(scores[1:], truth[1:].long())
    f_scores, rands = [], []
    for threshold in np.arange(10) / 10:
        actual = probability > threshold
        right = (actual & truth).sum().item()
        f_scores.append(2 * right / (actual.sum().item() + truth.sum().item()))
        rands.append(np.mean([pairs_score(t.numpy(), p.numpy()) for t, p in zip(truth, actual, strict=True)]))
    assert pixel.compute().item() == pytest.approx(1 - max(f_scores), abs=1e-6)  # float32
    assert rand.compute().item() == pytest.approx(1 - max(rands), abs=1e-6)


@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 30), st.integers(0, 30))
def test_mirroring_is_numpys_reflection_round_the_centre(h, w, more, wider):
    x = np.arange(h * w).reshape(1, 1, h, w)
    sides = [(0, 0), (0, 0), (more // 2, more - more // 2), (wider // 2, wider - wider // 2)]
    actual = mirrored(torch.from_numpy(x), h + more, w + wider)
    assert np.array_equal(actual, np.pad(x, sides, "reflect"))
    assert np.array_equal(centre(actual, h, w), x)


@settings(max_examples=10, deadline=None)
@given(st.integers(5, 40), st.integers(5, 40))
def test_with_mirrored_borders_a_net_without_padding_scores_every_pixel(h, w):
    net = nets.build("unet", width=2, levels=2).eval()
    images, masks = torch.randn(1, 1, h, w), torch.zeros(1, h, w, dtype=torch.long)
    bare = Segment(net, Optimizer(), num_classes=2, mirror=True)
    actual = bare.examples(images, masks)
    assert actual["predicted"].shape == actual["masks"].shape == masks.shape
    room = net.room(h), net.room(w)
    # the least size that fits: one step less scores fewer pixels, or does not fit at all
    for size, fitting in zip((h, w), room, strict=True):
        net.check(fitting)
        assert fitting - 2 * net.margin >= size
        assert fitting == net.least or fitting - net.step - 2 * net.margin < size
    # at the image's centre the mirrored border changes nothing: the scores are those of the inner pixels
    if min(h, w) >= net.least and (h - net.least) % net.step == (w - net.least) % net.step == 0:
        inner = net(images)
        assert torch.isfinite(inner).all()


def test_mirroring_is_refused_for_a_net_that_needs_none():
    with pytest.raises(SkipformError, match=r"task.mirror: true, but Fixed does not say how large an image must be"):
        Segment(Fixed(), Optimizer(), num_classes=2, mirror=True)


def test_as_many_class_weights_as_classes():
    with pytest.raises(
        SkipformError, match=r"task.class_weights: \(1.0, 2.0, 3.0\); accepted: 2 numbers, one per class"
    ):
        Segment(Fixed(), Optimizer(), num_classes=2, class_weights=(1.0, 2.0, 3.0))


@pytest.mark.parametrize("ignore", [None, 2])
@pytest.mark.parametrize("class_weights", [None, (2.0, 0.5, 3.0)])
def test_the_weighted_loss_is_the_mean_over_pixels_by_class_and_border_weight(ignore, class_weights):
    torch.manual_seed(0)
    scores, masks, borders = torch.randn(2, 3, 4, 5), torch.randint(3, (2, 4, 5)), 10 * torch.rand(2, 4, 5)
    task = Segment(Fixed(), Optimizer(), num_classes=3, ignore_index=ignore, class_weights=class_weights)
    total = weight = 0.0
    for n, i, j in np.ndindex(2, 4, 5):
        c = int(masks[n, i, j])
        if c != ignore:
            w = (class_weights or (1.0, 1.0, 1.0))[c] + borders[n, i, j].item()
            total, weight = total - w * scores[n, :, i, j].log_softmax(0)[c].item(), weight + w
    assert task.step(scores, masks, borders)["loss"].item() == pytest.approx(total / weight, rel=1e-5)  # float32
    plain, none = task.step(scores, masks), task.step(scores, masks, torch.zeros(2, 4, 5))
    torch.testing.assert_close(plain, none, rtol=1e-6, atol=0)


def test_rotating_is_exact_for_right_angles_and_undone_by_the_opposite_angle():
    x = torch.randn(2, 3, 8, 8)
    for k in range(4):
        # float32 coordinates
        torch.testing.assert_close(rotated(x, k * np.pi / 2), torch.rot90(x, k, (2, 3)), rtol=0, atol=1e-5)
    smooth = torch.linspace(-1, 1, 32).expand(1, 1, 32, 32)
    back = rotated(rotated(smooth, 1.0), -1.0)
    torch.testing.assert_close(centre(back, 20, 20), centre(smooth, 20, 20), rtol=0, atol=1e-5)  # bilinear in a plane


@pytest.mark.parametrize("size", [(9, 9), (12, 7)])
def test_the_average_over_rotations_is_the_mean_of_the_nets_probabilities(size):
    torch.manual_seed(0)
    net, images = nn.Conv2d(1, 3, 3, padding=1), torch.randn(2, 1, *size)
    task = Segment(net, Optimizer(), num_classes=3, rotations=4).eval()
    side = int(np.ceil(np.hypot(*size)))
    sides = [(side - s) // 2 for s in size]
    extended = mirrored(images, side, side)
    turned = [torch.rot90(net(torch.rot90(extended, k, (2, 3))).softmax(1), -k, (2, 3)) for k in range(4)]
    expected = torch.stack(turned).mean(0)[..., sides[0] : sides[0] + size[0], sides[1] : sides[1] + size[1]]
    with torch.no_grad():
        actual = task._averaged(images)
        torch.testing.assert_close(actual.exp(), expected, rtol=0, atol=1e-5)  # float32 coordinates
        assert torch.equal(task.predict(images), actual.argmax(1))
        single = Segment(net, Optimizer(), num_classes=3)
        assert torch.equal(single._averaged(images), net(images))


def test_a_net_of_single_pixels_is_its_own_average_over_seven_rotations_on_a_plane():
    net = nn.Conv2d(1, 2, 1)
    images = torch.zeros(1, 1, 24, 24) + 0.3
    with torch.no_grad():
        average = Segment(net, Optimizer(), num_classes=2, rotations=7)._averaged(images)
        torch.testing.assert_close(average, net(images).log_softmax(1), rtol=0, atol=1e-5)


@pytest.mark.parametrize("padding", ["same", "valid"])
def test_seven_rotations_score_every_pixel_and_training_none_of_them(padding):
    net = nets.build("unet", width=2, levels=2, padding=padding).eval()
    images, masks = torch.randn(2, 1, 21, 30), torch.randint(2, (2, 21, 30))
    one, seven = (
        Segment(net, Optimizer(), num_classes=2, mirror=padding == "valid", rotations=rotations) for rotations in (1, 7)
    )
    assert seven.predict(images).shape == masks.shape
    assert torch.equal(seven.step(images, masks)["loss"], one.step(images, masks)["loss"])
    assert not torch.equal(seven.evaluate("test", images, masks)["loss"], one.evaluate("test", images, masks)["loss"])
