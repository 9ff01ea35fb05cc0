"""Examples of what trained nets do, as Weights & Biases images: masks and boxes over the images, attention as a map."""

from typing import Any

import numpy as np

Arrays = dict[str, np.ndarray]  # the examples of a variant by name, see `skipform examples`


def images(variant: str, arrays: Arrays) -> dict[str, list[Any]]:
    """Kind (masks, boxes, classes, attention/K) -> images of one size, for those kinds that the arrays have."""
    kinds: dict[str, list[Any]] = {}
    if "masks" in arrays:
        kinds["masks"] = _masks(variant, arrays)
    elif "boxes" in arrays:
        kinds["boxes"] = _boxes(variant, arrays)
    elif "images" in arrays:
        kinds["classes"] = _classes(variant, arrays)
    for name, x in arrays.items():
        if name.startswith("attention."):
            kinds[name.replace(".", "/")] = [_attention(variant, x)]
    return kinds


def _masks(variant: str, arrays: Arrays) -> list[Any]:
    """The middle of every image, as large as its mask, with the true and the predicted mask over it."""
    import wandb

    h, w = arrays["masks"].shape[1:]
    count = int(max(arrays["masks"].max(), arrays["predicted"].max())) + 1
    labels = {k: "background" if k == 0 else f"class {k}" for k in range(count)} | {255: "not counted"}
    result = []
    for image, true, predicted in zip(arrays["images"], arrays["masks"], arrays["predicted"], strict=True):
        top, left = (image.shape[1] - h) // 2, (image.shape[2] - w) // 2
        masks = {
            name: {"mask_data": np.where(mask < 0, 255, mask).astype(np.uint8), "class_labels": labels}
            for name, mask in (("true", true), ("predicted", predicted))
        }
        result.append(wandb.Image(_pixels(image[:, top : top + h, left : left + w]), masks=masks, caption=variant))
    return result


def _boxes(variant: str, arrays: Arrays) -> list[Any]:
    """Every image with the true and the predicted boxes over it; an entry of label -1 is none."""
    import wandb

    count = int(max(arrays["labels"].max(), arrays["predicted_labels"].max())) + 1
    labels = {k: f"class {k}" for k in range(count)}
    result = []
    for k, image in enumerate(arrays["images"]):
        ones = np.ones(len(arrays["labels"][k]))
        true = _box_data(arrays["boxes"][k], arrays["labels"][k], ones)
        predicted = _box_data(*(arrays[f"predicted_{name}"][k] for name in ("boxes", "labels", "scores")))
        boxes = {
            name: {"box_data": data, "class_labels": labels}
            for name, data in (("true", true), ("predicted", predicted))
            if data
        }
        result.append(wandb.Image(_pixels(image), boxes=boxes, caption=variant))
    return result


def _box_data(boxes: np.ndarray, labels: np.ndarray, scores: np.ndarray) -> list[dict[str, Any]]:
    """Boxes (n, 4) of corners (x0, y0, x1, y1) in pixels, in W&B's form."""
    return [
        {
            "position": dict(zip(("minX", "minY", "maxX", "maxY"), map(float, box), strict=True)),
            "domain": "pixel",
            "class_id": int(label),
            "box_caption": f"class {label}, {100 * score:.0f} %",
            "scores": {"score": float(score)},
        }
        for box, label, score in zip(boxes, labels, scores, strict=True)
        if label >= 0
    ]


def _classes(variant: str, arrays: Arrays) -> list[Any]:
    import wandb

    triples = zip(arrays["images"], arrays["labels"], arrays["predicted"], strict=True)
    return [
        wandb.Image(_pixels(image), caption=f"{variant}: class {label}, predicted {predicted}")
        for image, label, predicted in triples
    ]


def _attention(caption: str, weights: np.ndarray) -> Any:
    """The weights (heads, t, s) as the mean over the heads: how much a token (row) attends to each token (column)."""
    import wandb

    mean = weights.mean(0)
    return wandb.Image(_pixels(mean[None] / max(float(mean.max()), np.finfo(np.float32).tiny)), caption=caption)


def _pixels(image: np.ndarray) -> np.ndarray:
    """An image (c, h, w), its least value black and its greatest white, as bytes (h, w, c)."""
    low, high = float(image.min()), float(image.max())
    grey = (image - low) / (high - low) if high > low else np.zeros_like(image)
    return (255 * grey).round().astype(np.uint8).transpose(1, 2, 0)
