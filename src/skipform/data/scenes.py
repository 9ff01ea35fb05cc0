"""Scenes: several of the real digits inside scikit-learn, enlarged, on one canvas, with exact masks and boxes.

Letters: N scenes, k digits of a scene, h height and width of the canvas, s of an enlarged digit.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from skipform.data.images import Images
from skipform.errors import SkipformError

# An enlarged digit is drawn where it is at least this bright (about a quarter). No interpolated value is equal to this
# threshold, so that rounding does not matter.
INK = 63.5 / 255
TRIES = 100  # attempts to place a digit, and to compose a scene, before the canvas is called too small


@dataclass(frozen=True)
class Scenes:
    images: Tensor  # uint8 (N, 1, h, h)
    masks: Tensor  # uint8 (N, h, h): 0 background, 1 + digit on its ink
    boxes: tuple[Tensor, ...]  # of each scene float32 (k, 4): x0, y0, x1, y1, pixels x0 <= x < x1, y0 <= y < y1
    labels: tuple[Tensor, ...]  # of each scene int64 (k,): 0 .. 9


@lru_cache(maxsize=4)  # the seeds and variants of one experiment look at the same scenes
def scenes(
    split: str,
    count: int,
    *,
    seed: int = 0,
    canvas: int = 64,
    digits: tuple[int, int] = (2, 5),
    size: tuple[int, int] = (12, 24),
    overlap: float = 0.1,
    noise: int = 48,
) -> Scenes:
    """`count` scenes of the digits of one split; the i-th depends only on (split, seed, i) and the keywords.

    A digit x, 8x8, becomes R x R^T with R (s, 8) of bilinear interpolation. Its ink, the pixels that are at
    least INK bright, is drawn over the background and is its mask; the smallest box around the ink is its box. The inks
    of two digits do not overlap.

    Args:
        split: "train" or "test", as in `Images`: no writer's digit is in scenes of both.
        seed: with the scene's number it determines everything that is random in the scene.
        canvas: h.
        digits: the minimum and maximum number of digits in a scene, which is drawn uniformly.
        size: the minimum and maximum s, which is drawn uniformly.
        overlap: the intersection of two boxes is at most this share of the smaller one.
        noise: each pixel of the background is drawn uniformly from 0 .. noise; ink is brighter if that is at most 63.
    """
    for key, (least, most), lowest in (("digits", digits, 1), ("size", size, 8)):
        if not lowest <= least <= most:
            raise SkipformError(f"{key}: ({least}, {most}); accepted: two ascending numbers of at least {lowest}")
    if size[1] > canvas:
        raise SkipformError(f"size: ({size[0]}, {size[1]}); accepted: at most {canvas}, the canvas")
    source = Images("digits")
    source.setup()
    if split not in source.pixels:
        raise SkipformError(f"unknown split {split!r}; accepted: {', '.join(source.pixels)}")
    pixels, classes = source.pixels[split][0].squeeze(1).numpy() / 16, source.pixels[split][1].numpy()
    enlarging = {s: _bilinear(s) for s in range(size[0], size[1] + 1)}
    drawn = []
    for number in range(count):
        draw = np.random.default_rng([seed, list(source.pixels).index(split), number])
        for _ in range(TRIES):
            scene = _scene(draw, pixels, classes, enlarging, canvas, digits, overlap, noise)
            if scene is not None:
                break
        else:
            raise SkipformError(
                f"canvas: {canvas} is too small for up to {digits[1]} digits of up to {size[1]} pixels; "
                "accepted: a larger canvas, or fewer or smaller digits"
            )
        drawn.append(scene)
    images, masks, boxes, labels = zip(*drawn, strict=True)
    return Scenes(
        torch.from_numpy(np.stack(images))[:, None],
        torch.from_numpy(np.stack(masks)),
        tuple(map(torch.from_numpy, boxes)),
        tuple(map(torch.from_numpy, labels)),
    )


def _scene(
    draw: np.random.Generator,
    pixels: np.ndarray,  # (N, 8, 8) in 0 .. 1
    classes: np.ndarray,  # (N,)
    enlarging: dict[int, np.ndarray],
    canvas: int,
    digits: tuple[int, int],
    overlap: float,
    noise: int,
) -> tuple[np.ndarray, ...] | None:
    """Image, mask, boxes and labels of one scene; None if there is no room for one of its digits."""
    image = draw.integers(0, noise + 1, (canvas, canvas), np.uint8)
    mask = np.zeros((canvas, canvas), np.uint8)
    boxes: list[tuple[int, int, int, int]] = []
    chosen = draw.integers(len(pixels), size=draw.integers(digits[0], digits[1] + 1))
    for index in chosen:
        enlarge = enlarging[int(draw.integers(min(enlarging), max(enlarging) + 1))]
        bright = enlarge @ pixels[index] @ enlarge.T  # (s, s)
        ink = bright >= INK
        (rows,), (columns,) = ink.any(1).nonzero(), ink.any(0).nonzero()
        for top, left in draw.integers(0, canvas - len(bright) + 1, (TRIES, 2)):
            box = (left + columns[0], top + rows[0], left + columns[-1] + 1, top + rows[-1] + 1)
            under = np.s_[top : top + len(bright), left : left + len(bright)]
            if all(_shared(box, other) <= overlap for other in boxes) and not mask[under][ink].any():
                break
        else:
            return None
        image[under][ink] = np.rint(255 * bright[ink])
        mask[under][ink] = 1 + classes[index]
        boxes.append(box)
    return image, mask, np.array(boxes, np.float32), classes[chosen]


def _shared(one: tuple[int, int, int, int], other: tuple[int, int, int, int]) -> float:
    """The area of the intersection of two boxes, as a share of the smaller one."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    smaller = min((x1 - x0) * (y1 - y0) for x0, y0, x1, y1 in (one, other))
    return max(width, 0) * max(height, 0) / smaller


def _bilinear(s: int) -> np.ndarray:
    """R (s, 8): row i weighs the two samples next to (i + 1/2) 8 / s - 1/2, as torch does with align_corners=False."""
    at = np.clip((np.arange(s) + 0.5) * 8 / s - 0.5, 0, 7)  # (s,)
    return np.maximum(0, 1 - np.abs(at[:, None] - np.arange(8)))  # (s, 8)
