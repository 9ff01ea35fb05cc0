"""One class per pixel.

Letters: n batch, c channels, H W height and width of an image, h w of the scores, K classes.
"""

import math
from collections.abc import Mapping
from functools import reduce
from typing import Annotated, Any

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor, nn
from torch.nn import functional
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import BinaryPrecisionRecallCurve, MulticlassAccuracy, MulticlassJaccardIndex

from skipform.arguments import NotNegative, Range, Size
from skipform.errors import SkipformError
from skipform.tasks.optimizer import Optimizer
from skipform.tasks.task import Task

THRESHOLDS = torch.arange(10) / 10  # of ISBI 2012's scores


class Segment(Task):
    """Cross-entropy per pixel; the error is the share of pixels whose largest score is that of another class.

    net: images (n, c, H, W) -> scores (n, K, h, w). A batch is (images, masks (n, H, W)); in training it may also have
    weights (n, H, W), which are added to those of the classes. If scores and mask differ in size, their centres are
    compared.

    Scores, over all pixels of a split together: mean_iou, the mean over the classes that occur of intersection over
    union of prediction and mask (Long et al. 2015, Section 5); boundary_iou, the same of the pixels at the boundaries
    alone, see `BoundaryIoU`; accuracy, the share of right pixels. With two classes, none of them ignored, also
    pixel_error and rand_error of class 1 (the cells), as ISBI 2012 defined them.

    Args:
        num_classes: K.
        ignore_index: pixels of this class are ignored in loss and scores.
        class_weights: the weight in the loss of the pixels of each class; by default all are equal.
        mirror: images are extended by their mirror image, so far that the net scores all of their pixels: U-Net's
            overlap-tile strategy. For nets with a method `room`, which states how large the image must be.
        rotations: outside of training the probabilities are the mean of those of this number of rotated images, by
            equal angles from 0 on, see `rotated`; 1: of the image alone. U-Net's published result is that of 7 rotated
            images, by angles that are not published.
    """

    TARGETS = "masks"
    MAIN_SCORE = ("mean_iou", "%")
    HIGHER_IS_BETTER = True
    weights: Tensor | None

    def __init__(
        self,
        net: nn.Module | Mapping[str, Any],
        optimizer: Optimizer | Mapping[str, Any],
        *,
        num_classes: Size,
        ignore_index: int | None = None,
        class_weights: tuple[NotNegative, ...] | None = None,
        mirror: bool = False,
        rotations: Annotated[int, Range(1, 360)] = 1,
    ) -> None:
        super().__init__(net, optimizer)
        if class_weights is not None and len(class_weights) != num_classes:
            raise SkipformError(f"task.class_weights: {class_weights}; accepted: {num_classes} numbers, one per class")
        if mirror and not hasattr(self.net, "room"):
            raise SkipformError(
                f"task.mirror: true, but {type(self.net).__name__} does not say how large an image must be;"
                " accepted for such a net: false"
            )
        self.num_classes, self.ignore_index, self.mirror, self.rotations = num_classes, ignore_index, mirror, rotations
        if num_classes == 2 and ignore_index is None:
            self.FURTHER_SCORES = ("pixel_error", "rand_error")  # type: ignore[misc]
        weights = None if class_weights is None else torch.tensor(class_weights, dtype=torch.float32)
        self.register_buffer("weights", weights, persistent=False)

    def step(self, images: Tensor, masks: Tensor, weights: Tensor | None = None) -> dict[str, Any]:
        return self._loss_and_error(*self._compared(self._scores(images), masks, weights))

    def evaluate(self, split: str, *batch: Tensor) -> dict[str, Any]:
        scores, masks, _ = self._compared(self._averaged(batch[0]), batch[1])
        self.metric(split).update(scores.float(), masks)
        return self._loss_and_error(scores, masks)

    def metrics(self) -> MetricCollection:
        classes: dict[str, Any] = {"num_classes": self.num_classes, "ignore_index": self.ignore_index}
        metrics: dict[str, Metric | MetricCollection] = {
            "mean_iou": MulticlassJaccardIndex(**classes, validate_args=False),
            "boundary_iou": BoundaryIoU(**classes),
            "accuracy": MulticlassAccuracy(**classes, average="micro", validate_args=False),
        }
        if self.num_classes == 2 and self.ignore_index is None:
            metrics |= {"pixel_error": PixelError(), "rand_error": RandError()}
        return MetricCollection(metrics)

    def predict(self, images: Tensor, masks: Tensor | None = None) -> Tensor:
        """The class of each pixel that the net scores, (n, h, w)."""
        return self._averaged(images).argmax(1)

    def examples(self, images: Tensor, masks: Tensor) -> dict[str, Tensor | list[str]]:
        scores, masks, _ = self._compared(self._averaged(images), masks)
        return {"images": images, "masks": masks, "predicted": scores.argmax(1)}

    def _compared(
        self, scores: Tensor, masks: Tensor, weights: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """The parts of scores (n, K, h, w) and of masks and weights (n, h, w) that belong together."""
        h, w = (min(*sizes) for sizes in zip(scores.shape[-2:], masks.shape[-2:], strict=True))
        return centre(scores, h, w), centre(masks, h, w), None if weights is None else centre(weights, h, w)

    def _scores(self, images: Tensor) -> Tensor:
        """The net's scores; if `mirror`, of images that are extended by their mirror image."""
        if self.mirror:
            images = mirrored(images, *(self.net.room(size) for size in images.shape[-2:]))  # type: ignore[operator]
        return self(images)

    def _averaged(self, images: Tensor) -> Tensor:
        """The net's scores; with `rotations`, the logarithms of the mean of their probabilities, (n, K, h, w).

        So that no corner is missing, the images (n, c, H, W) are extended by their mirror image to squares as wide as
        their diagonal.
        """
        if self.rotations == 1:
            return self._scores(images)
        h, w = images.shape[-2:]
        side = math.ceil(math.hypot(h, w))
        wide = mirrored(images, side, side)

        def probabilities(angle: float) -> Tensor:
            return rotated(self._scores(rotated(wide, angle)).float().softmax(1), -angle)

        angles = (2 * math.pi * i / self.rotations for i in range(self.rotations))
        mean = reduce(torch.add, map(probabilities, angles)) / self.rotations
        mean = centre(mean, min(h, mean.shape[-2]), min(w, mean.shape[-1]))
        return mean.clamp_min(torch.finfo(mean.dtype).tiny).log()  # a probability may be rounded to 0

    def _loss_and_error(self, scores: Tensor, masks: Tensor, weights: Tensor | None = None) -> dict[str, Any]:
        """Loss and error of scores (n, K, h, w). The loss is a weighted mean over the pixels of masks (n, h, w), by the
        weights of their classes plus `weights` (n, h, w)."""
        # flattened, because CUDA has no deterministic kernel for two-dimensional inputs
        logarithms, classes = scores.log_softmax(1).movedim(1, -1).flatten(0, -2), masks.flatten()  # pixels K, pixels
        ignored = -100 if self.ignore_index is None else self.ignore_index
        if weights is None:
            loss = functional.nll_loss(logarithms, classes, self.weights, ignore_index=ignored)
        else:
            counted = classes != ignored
            known = torch.where(counted, classes, 0)
            of_classes = torch.ones_like(logarithms[:, 0]) if self.weights is None else self.weights[known]
            each = counted * (of_classes + weights.flatten())  # pixels
            losses = functional.nll_loss(logarithms, known, reduction="none")
            loss = (each * losses).sum() / each.sum()
        predicted = scores.detach().max(1).indices.flatten()  # pixels; argmax, five times as fast
        wrong = predicted != classes
        if self.ignore_index is None:
            return {"loss": loss, "size": len(classes), "error": wrong.sum()}
        counted = classes != self.ignore_index
        return {"loss": loss, "size": counted.sum(), "error": (wrong & counted).sum()}


def centre(x: Tensor, h: int, w: int) -> Tensor:
    top, left = (x.shape[-2] - h) // 2, (x.shape[-1] - w) // 2
    return x[..., top : top + h, left : left + w]


def mirrored(x: Tensor, h: int, w: int) -> Tensor:
    """(..., H, W) -> (..., h, w): x in the middle, extended by its mirror image as often as necessary."""
    for axis, size in ((-2, h), (-1, w)):
        length = x.shape[axis]
        at = torch.arange(size, device=x.device) - (size - length) // 2
        period = max(2 * length - 2, 1)  # the border pixel is not repeated
        at = at.remainder(period)
        x = x.index_select(axis, torch.minimum(at, period - at))
    return x


def rotated(x: Tensor, angle: float) -> Tensor:
    """x (n, c, h, h) turned round its centre by an angle in radians, in the direction of torch.rot90; bilinear between
    pixels, mirrored beyond the border."""
    cos, sin = math.cos(angle), math.sin(angle)
    turn = x.new_tensor([[cos, -sin, 0.0], [sin, cos, 0.0]])
    grid = functional.affine_grid(turn.expand(len(x), 2, 3), list(x.shape), align_corners=False)
    return functional.grid_sample(x, grid, padding_mode="reflection", align_corners=False)


class BoundaryIoU(Metric):
    """Mean over the classes of intersection over union of the pixels at the boundaries of prediction and mask.

    With G_k the pixels of class k in the mask, P_k those predicted, and ' for the part within d pixels of an outline,

        (1/K) sum_k  |G'_k and P'_k| / |G'_k or P'_k|

    over the K classes of which either has a pixel at a boundary; numbers of pixels are those of a split together
    (Cheng et al. 2021, "Boundary IoU", Equation 2). As there, d is 2 % of the diagonal, at least 1, distance is the
    larger one of those along the axes, and the border of the image is an outline. Pixels of the ignored class are left
    out of both; beside one of them, a pixel of the mask is at a boundary.
    """

    higher_is_better = True
    full_state_update = False
    both: Tensor
    either: Tensor

    def __init__(self, num_classes: int, ignore_index: int | None = None) -> None:
        super().__init__()
        self.num_classes, self.ignore_index = num_classes, ignore_index
        for name in ("both", "either"):
            self.add_state(name, torch.zeros(num_classes, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, scores: Tensor, masks: Tensor) -> None:
        """scores (n, K, h, w), masks (n, h, w)."""
        predicted = scores.max(1).indices
        distance = max(1, round(0.02 * math.hypot(*masks.shape[-2:])))
        counted = torch.ones_like(masks, dtype=torch.bool)
        if self.ignore_index is not None:
            counted = masks != self.ignore_index
        ours, theirs = (at_boundary(classes, distance) & counted for classes in (predicted, masks))
        both = self._per_class(masks[ours & theirs & (predicted == masks)])
        self.both += both
        self.either += self._per_class(predicted[ours]) + self._per_class(masks[theirs]) - both

    def compute(self) -> Tensor:
        occur = self.either > 0
        return (self.both[occur] / self.either[occur]).mean()

    def _per_class(self, classes: Tensor) -> Tensor:
        return torch.bincount(classes, minlength=self.num_classes)


def at_boundary(classes: Tensor, distance: int) -> Tensor:
    """Whether a pixel of another class, or the outside, is within the distance along both axes: (n, h, w) -> bool."""
    wide = functional.pad(classes.float(), (distance,) * 4, value=-1.0)
    side = 2 * distance + 1
    highest, lowest = functional.max_pool2d(wide, side, 1), -functional.max_pool2d(-wide, side, 1)
    return highest != lowest


class PixelError(BinaryPrecisionRecallCurve):
    """1 - max_t F(t), F the harmonic mean of precision and recall of the pixels whose probability is at least t."""

    higher_is_better = False

    def __init__(self) -> None:
        super().__init__(THRESHOLDS, validate_args=False)

    def update(self, scores: Tensor, masks: Tensor) -> None:
        """scores (n, 2, h, w), masks (n, h, w)."""
        super().update(scores.softmax(1)[:, 1], masks)

    def compute(self) -> Tensor:  # type: ignore[override]
        precision, recall, _ = super().compute()
        return 1 - (2 * precision * recall / (precision + recall)).nan_to_num().max()


class RandError(Metric):
    """1 - max_t (mean over images of `rand_score` of the pixels whose probability is above t)."""

    higher_is_better = False
    full_state_update = False
    total: Tensor
    images: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.zeros(len(THRESHOLDS), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("images", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, scores: Tensor, masks: Tensor) -> None:
        """scores (n, 2, h, w), masks (n, h, w)."""
        probabilities, truths = scores.softmax(1)[:, 1].cpu().numpy(), masks.cpu().numpy() == 1
        for probability, truth in zip(probabilities, truths, strict=True):
            scored = [rand_score(truth, probability > threshold) for threshold in THRESHOLDS.tolist()]
            self.total += torch.tensor(scored, dtype=torch.float64, device=self.total.device)
        self.images += len(truths)

    def compute(self) -> Tensor:
        return 1 - (self.total / self.images).max()


def rand_score(truth: np.ndarray, predicted: np.ndarray) -> float:
    """The foreground-restricted Rand score of two pictures of cells, bool (h, w); a cell is a 4-connected region.

    Consider the ordered pairs of pixels within true cells. Let T be the number of pairs in the same true cell, P in the
    same predicted cell, S in the same cell of both. The score is the harmonic mean 2 S / (T + P) of S / P and S / T. A
    pixel that is predicted to be no cell counts as a cell by itself. Without true cells the score is 1. The
    normalisation is that of Arganda-Carreras et al. (2015), Section 3.2.
    """
    ours, theirs = (ndimage.label(picture)[0][truth] for picture in (predicted, truth))
    lone = ours == 0
    together = theirs[~lone].astype(np.int64) * (ours.max(initial=0) + 1) + ours[~lone]
    squares = [float((np.bincount(cells).astype(float) ** 2).sum()) for cells in (theirs, ours[~lone])]
    shared = float((np.unique(together, return_counts=True)[1].astype(float) ** 2).sum()) + lone.sum()
    return 2 * shared / (sum(squares) + lone.sum()) if truth.any() else 1.0
