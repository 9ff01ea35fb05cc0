"""Averages over windows and interpolation: a fixed matrix along each axis."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

from skipform.compiler.emit import Emitter
from skipform.compiler.rules.affine import reduction
from skipform.compiler.rules.values import adaptive_windows, one_per_dim, pooled_dims, result_sizes, size_of


def avg_pool(
    e: Emitter,
    x: fx.Node,
    kernel_size: int | Sequence[int],
    stride: int | Sequence[int] = (),
    padding: int | Sequence[int] = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> fx.Node:
    """The average over windows: a depthwise convolution, or one matrix along each axis where windows are cut short."""
    dims = pooled_dims(e, x)
    rank = len(dims)
    kernel, strides, pads = (one_per_dim(v, rank) for v in (kernel_size, stride or kernel_size, padding))
    e.not_batch(x, *dims)
    sizes, counts = e.sizes(x), result_sizes(e)
    whole = all((counts[d] - 1) * strides[i] + kernel[i] <= sizes[d] + 2 * pads[i] for i, d in enumerate(dims)) and (
        count_include_pad or divisor_override or not any(pads)
    )
    if whole and x.meta["batch_dim"] == 0 and x.meta["val"].ndim == rank + 2:
        channels = sizes[1]
        weight = torch.full((channels, 1, *kernel), 1 / (divisor_override or math.prod(kernel)), dtype=torch.float64)
        return e.convolution(x, weight, None, stride=tuple(strides), padding=tuple(pads), groups=channels)
    for i, d in enumerate(dims):
        matrix = torch.zeros(counts[d], sizes[d], dtype=torch.float64)
        for row in range(counts[d]):
            start = row * strides[i] - pads[i]
            stop = min(start + kernel[i], sizes[d] + pads[i])
            first, last = max(start, 0), min(stop, sizes[d])
            divisor = stop - start if count_include_pad else last - first
            matrix[row, first:last] = 1.0 if divisor_override else 1 / divisor
        if divisor_override and i == 0:
            matrix /= divisor_override
        x = e.along(x, d, matrix)
    return x


def adaptive_avg_pool(e: Emitter, x: fx.Node, output_size: int | Sequence[int]) -> fx.Node:
    counts, dims = result_sizes(e), pooled_dims(e, x)
    if all(counts[d] == 1 for d in dims):
        return reduction(e, x, dims, average=True)
    for d in dims:
        matrix = torch.zeros(counts[d], size_of(x, d), dtype=torch.float64)
        for row, window in enumerate(adaptive_windows(size_of(x, d), counts[d])):
            matrix[row, window.start : window.stop] = 1 / len(window)
        x = x if matrix.shape[0] == matrix.shape[1] else e.along(x, d, matrix)
    return x


# -- interpolation: every axis by the operation itself, applied along that axis alone ----------------------------


def upsample_nearest(e: Emitter, x: fx.Node, *args: Any, **kwargs: Any) -> fx.Node:
    """aten.upsample_nearest*: a choice of entries along each axis, read off from the image of their indices."""
    rank = e.source.meta["val"].ndim - 2
    for axis in range(rank):
        n = size_of(x, axis + 2)
        index = torch.arange(n, dtype=torch.float64).reshape(1, 1, *(n if i == axis else 1 for i in range(rank)))
        image = _upsample_along(e, index, axis, args, kwargs, other_size=1)
        x = e.take(x, axis + 2, image.flatten().long().tolist())
    return x


def upsample(e: Emitter, x: fx.Node, *args: Any, **kwargs: Any) -> fx.Node:
    """Every other aten.upsample_* (linear, bilinear, bicubic, ...): a matrix along each axis, read off from the images
    of the unit vectors. The other axes have two equal entries: torch 2.11 interpolates wrongly with antialias where
    the last size is 1, so that the original is refused there."""
    counts = result_sizes(e)
    rank = len(counts) - 2
    if e.source.target._schema.name.endswith("_aa") and counts[3] == 1 and counts[2] not in (1, size_of(x, 2)):
        raise e.unsupported("is computed wrongly by torch where the last size is 1", "antialias=False")
    for axis in range(rank):
        d, n = axis + 2, size_of(x, axis + 2)
        unit = torch.eye(n, dtype=torch.float64).reshape(1, n, *(n if i == axis else 1 for i in range(rank)))
        unit = unit.expand(1, n, *(n if i == axis else 2 for i in range(rank))).contiguous()
        image = _upsample_along(e, unit, axis, args, kwargs, other_size=2)
        matrix = image.movedim(d, 2).reshape(n, counts[d], -1)[:, :, 0].T
        x = x if torch.equal(matrix, torch.eye(n, dtype=torch.float64)) else e.along(x, d, matrix)
    return x


def _upsample_along(
    e: Emitter, image: Tensor, axis: int, args: Sequence[Any], kwargs: dict[str, Any], other_size: int
) -> Tensor:
    """The operation applied to an image whose axes but `axis` have `other_size` entries before and after."""
    rank = image.ndim - 2
    names = [argument.name for argument in e.source.target._schema.arguments]
    given = dict(zip(names[1:], args, strict=False)) | kwargs
    for name, value in given.items():
        if isinstance(value, (list, tuple)):
            other = 1.0 if name in ("scale_factors", "scales") else other_size
            given[name] = [value[i] if i == axis else other for i in range(rank)]
        elif name.startswith("scales_"):  # scales_d, scales_h, scales_w
            given[name] = value if name[-1] == "dhw"[3 - rank + axis] else None
    return e.source.target(image, **given)
