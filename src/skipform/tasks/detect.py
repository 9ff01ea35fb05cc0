"""Objects in an image: a box and a class for every object.

Letters: n images, q predictions of an image, c classes, l read-outs of a net (the auxiliary ones, then the last), K
objects in all images together, m pairs of a prediction and an object.
"""

from collections.abc import Mapping
from inspect import signature
from typing import Any, Literal

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, distributed, nn
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence
from torchmetrics import MetricCollection
from torchmetrics.detection import MeanAveragePrecision
from torchvision.ops import box_convert, generalized_box_iou, generalized_box_iou_loss

from skipform.errors import SkipformError
from skipform.tasks.optimizer import Optimizer
from skipform.tasks.task import Numbers, Task

Target = dict[str, Any]
BOX, OVERLAP = 5.0, 2.0  # weights of the L1 distance and of the GIoU, in matching and loss (DETR, Section A.4)
NOTHING = 0.1  # weight of "no object" in the cross-entropy


class Detect(Task):
    """Average precision as COCO defines it, by pycocotools, of at most 100 boxes per image: `ap` over IoU 0.50, 0.55,
    ..., 0.95, `ap50` at 0.50, `ap75` at 0.75. A batch is (images (n, c, h, w), targets), see `data.boxes.Boxes`.

    A net whose forward(images, targets) takes targets computes its own losses, like torchvision's detectors: for a list
    of images (c, h, w) it returns {name: loss} in training, and the sum is minimised; in evaluation mode it returns
    {"boxes", "scores", "labels"} for each image.

    Any other net predicts a set, forward(images, mask) -> {"logits", "boxes", "auxiliary"}, like DETR: `set_loss` is
    minimised, and every prediction counts as an object of its likeliest class other than "no object".

    Args:
        net, optimizer: see `Task`.
        shown: the score that tables show.
    """

    TARGETS = "boxes"
    MAIN_SCORE = ("ap50", "%")

    def __init__(
        self,
        net: nn.Module | Mapping[str, Any],
        optimizer: Optimizer | Mapping[str, Any],
        *,
        shown: Literal["ap50", "ap"] = "ap50",
    ) -> None:
        super().__init__(net, optimizer)
        self.MAIN_SCORE = (shown, "%")  # type: ignore[misc]
        self.takes_targets = "targets" in signature(self.net.forward).parameters

    def compile_step(self, *, channels_last: bool, backend: str = "inductor") -> None:
        raise SkipformError(
            "trainer.fast: true; accepted with task detect: false, because the shapes in its loss are not fixed"
        )

    def step(self, images: Tensor, targets: list[Target]) -> Numbers:
        loss = (
            self._own_loss(images, targets)
            if self.takes_targets
            else self._set_loss(self._output(images, targets), targets)
        )
        return {"loss": loss, "size": len(images)}

    def evaluate(self, split: str, images: Tensor, targets: list[Target]) -> Numbers:
        output = self._output(images, targets)
        self.metric(split).update(self._detections(output, targets), targets)
        loss = self._own_loss(images, targets) if self.takes_targets else self._set_loss(output, targets)
        return {"loss": loss, "size": len(images)}

    def metrics(self) -> MetricCollection:
        precision = MeanAveragePrecision(backend="pycocotools")
        precision.warn_on_many_detections = False  # the best 100 count, as COCO defines it
        return MetricCollection({"precision": precision})

    def scores(self, split: str) -> dict[str, float]:
        if split not in self._metrics:
            return {}
        values = self._metrics.pop(split).compute()
        names = {"ap": "map", "ap50": "map_50", "ap75": "map_75"}
        return {ours: 100 * values[theirs].item() for ours, theirs in names.items()}

    def predict(self, images: Tensor, targets: list[Target] | None = None) -> list[dict[str, Tensor]]:
        """Boxes x0 y0 x1 y1 in pixels, scores and labels of each image; only "size" is read of targets, and
        without targets an image has no padding."""
        if targets is None:
            targets = [{"size": tuple(images.shape[-2:])}] * len(images)
        return self._detections(self._output(images, targets), targets)

    def examples(self, images: Tensor, targets: list[Target]) -> dict[str, Tensor | list[str]]:
        """Images, and true and predicted boxes; images with fewer boxes have further ones of label -1."""
        predicted = self.predict(images, targets)
        return {
            "images": images,
            "boxes": pad_sequence([target["boxes"] for target in targets], True),
            "labels": pad_sequence([target["labels"] for target in targets], True, -1),
            "predicted_boxes": pad_sequence([image["boxes"] for image in predicted], True),
            "predicted_labels": pad_sequence([image["labels"] for image in predicted], True, -1),
            "predicted_scores": pad_sequence([image["scores"] for image in predicted], True),
        }

    def _output(self, images: Tensor, targets: list[Target]) -> Any:
        """The net's output for images without targets."""
        return self(cut(images, targets)) if self.takes_targets else self(images, present(images, targets))

    def _detections(self, output: Any, targets: list[Target]) -> list[dict[str, Tensor]]:
        return output if self.takes_targets else detections(output, [target["size"] for target in targets])

    def _own_loss(self, images: Tensor, targets: list[Target]) -> Tensor:
        mode = self.net.training
        self.net.training = True  # also for held-out images, while the layers inside stay in evaluation mode
        losses = self(cut(images, targets), objects(targets))
        self.net.training = mode
        return torch.stack(list(losses.values())).sum()

    def _set_loss(self, output: Any, targets: list[Target]) -> Tensor:
        return set_loss(output, targets, share=self.training and distributed.is_initialized())


def cut(images: Tensor, targets: list[Target]) -> list[Tensor]:
    """The images without their padding."""
    return [image[:, :h, :w] for image, (h, w) in zip(images, (target["size"] for target in targets), strict=True)]


def present(images: Tensor, targets: list[Target]) -> Tensor:
    """True where an image is not padding: (n, h, w)."""
    mask = torch.zeros_like(images[:, 0], dtype=torch.bool)
    for row, target in zip(mask, targets, strict=True):
        row[: target["size"][0], : target["size"][1]] = True
    return mask


def objects(targets: list[Target]) -> list[Target]:
    """The boxes and labels to learn from: those of single objects, not of crowds."""
    single = [target["iscrowd"] == 0 for target in targets]
    return [{key: target[key][one] for key in ("boxes", "labels")} for target, one in zip(targets, single, strict=True)]


def detections(output: dict[str, Any], sizes: list[tuple[int, int]]) -> list[dict[str, Tensor]]:
    """Predicted sets as boxes x0 y0 x1 y1 in pixels of images of sizes (h, w), best first."""
    chances, labels = output["logits"].float().softmax(-1)[..., :-1].max(-1)  # n q
    boxes = corners(output["boxes"].float())  # n q 4
    order = chances.argsort(descending=True)  # n q
    return [
        {"boxes": box[best] * box.new_tensor([w, h, w, h]), "scores": chance[best], "labels": label[best]}
        for box, chance, label, best, (h, w) in zip(boxes, chances, labels, order, sizes, strict=True)
    ]


def set_loss(output: dict[str, Any], targets: list[Target], *, share: bool = False) -> Tensor:
    """The loss of "End-to-end object detection with transformers", eq. (2) and Sections 3.1, A.4. For each read-out,
    with predictions paired with objects by `match`, and summed over the read-outs:

        weighted mean over all predictions of -log p(class), where the class of an unpaired prediction is "no object"
        + 1/K sum over the pairs of  5 |b - b'|_1 + 2 (1 - GIoU(b, b'))

    with boxes as centre, width and height, relative to the size of the image. "No object" has weight 0.1, and
    every class has weight 1.

    share: K (at least 1) and the sum of the weights are averaged over the processes, so that the mean of their
    gradients is the gradient for all images together.
    """
    logits = torch.cat([output["auxiliary"]["logits"], output["logits"][None]]).float()  # l n q c+1
    boxes = torch.cat([output["auxiliary"]["boxes"], output["boxes"][None]]).float()  # l n q 4
    wanted = objects(targets)
    labels = torch.cat([target["labels"] for target in wanted])  # K
    scaled = [
        target["boxes"] / boxes.new_tensor([w, h, w, h])
        for target, (h, w) in zip(wanted, (target["size"] for target in targets), strict=True)
    ]
    goals = box_convert(torch.cat(scaled), "xyxy", "cxcywh")  # K 4
    layer, image, query, number = match(logits, boxes, labels, goals, [len(target["labels"]) for target in wanted])  # m
    classes = torch.full_like(logits[..., 0], logits.shape[-1] - 1, dtype=torch.int64)  # l n q
    classes[layer, image, query] = labels[number]
    weight = logits.new_ones(logits.shape[-1])  # c+1
    weight[-1] = NOTHING
    sizes = torch.stack([weight[classes].sum() / len(logits), weight.new_tensor(len(labels))])
    if share:
        distributed.all_reduce(sizes)
        sizes = sizes / distributed.get_world_size()
    entropy = functional.cross_entropy(logits.flatten(0, 2), classes.flatten(), weight, reduction="sum")
    predicted, goal = boxes[layer, image, query], goals[number]  # m 4
    distance = (predicted - goal).abs().sum()
    giou_loss = generalized_box_iou_loss(corners(predicted), corners(goal), reduction="sum")
    return entropy / sizes[0] + (BOX * distance + OVERLAP * giou_loss) / sizes[1].clamp(min=1)


@torch.no_grad()
def match(logits: Tensor, boxes: Tensor, labels: Tensor, goals: Tensor, counts: list[int]) -> Tensor:
    """Read-out, image, prediction and object of each pair, (4, m). For each read-out and each image i, its counts[i]
    objects are paired one to one with predictions so that the sum of

        -p(class of the object) + 5 |b - b'|_1 - 2 GIoU(b, b')

    is minimal. If there are more objects than predictions, some objects are not paired. The host waits once for the
    device.

    logits (l, n, q, c+1), boxes (l, n, q, 4), labels (K,), goals (K, 4); boxes as centre, width, height.
    """
    overlap = generalized_box_iou(corners(boxes).flatten(0, 2), corners(goals)).view(*boxes.shape[:3], len(goals))
    cost = BOX * torch.cdist(boxes, goals, 1) - OVERLAP * overlap - logits.softmax(-1)[..., labels]  # l n q K
    pairs, done = [np.zeros((4, 0), np.int64)], 0
    for image, own in enumerate(cost.cpu().numpy().swapaxes(0, 1)):  # l q K
        for layer, costs in enumerate(own[..., done : done + counts[image]]):
            query, number = linear_sum_assignment(costs)
            pairs.append(np.stack([np.full_like(query, layer), np.full_like(query, image), query, done + number]))
        done += counts[image]
    return torch.from_numpy(np.concatenate(pairs, 1)).to(labels.device)


def corners(boxes: Tensor) -> Tensor:
    """Centre x y, width, height -> x0 y0 x1 y1; (..., 4)."""
    return box_convert(boxes, "cxcywh", "xyxy")
