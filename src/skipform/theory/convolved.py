"""An affine map that is stored as a convolution of an image, without its matrix: y = w * (V z + c) + t.

The matrix of a convolution has one row for each pixel of the result. As a convolution the map takes the memory of its
kernel: the canonical network of VGG-16 on images of 32 x 32 takes an eighth of a GiB, and not nine.

c channels, o output channels, g groups.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy import sparse

from skipform.errors import SkipformError
from skipform.theory.affine import Affine

LARGEST = 2**28  # numbers of an image with its padding, and of the result
CONVOLUTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
Sizes = tuple[int, ...]


@dataclass(frozen=True)
class Geometry:
    """Where the windows of a convolution stand; along each axis of the image, the channels aside."""

    image: Sizes  # (c, *its sizes)
    places: Sizes  # the sizes of the result
    stride: Sizes
    before: Sizes  # zeros before the first pixel; after the last one stand as many as are read
    dilation: Sizes
    groups: int

    def ends(self, window: Sequence[int]) -> list[int]:
        """How many entries of the padded image are read."""
        axes = zip(self.places, self.stride, self.dilation, window, strict=True)
        return [(m - 1) * s + d * (k - 1) + 1 for m, s, d, k in axes]


class Convolved(Affine):
    """y = w * (V z + c) + t in float64. It is the affine map with that matrix, which is made when it is first read.

    Raises SkipformError if the sizes do not fit.
    """

    kernel: np.ndarray  # w, (o, c/g, *sizes of a window)
    shift: np.ndarray  # t, (o,)
    inner: Affine  # z -> the image V z + c, (c * its pixels,)
    geometry: Geometry

    def __init__(self, kernel: np.ndarray, shift: np.ndarray, inner: Affine, geometry: Geometry) -> None:
        fields = {"kernel": kernel, "shift": shift, "inner": inner, "geometry": geometry}
        for name, value in (fields | {"in_features": inner.in_features}).items():
            object.__setattr__(self, name, value)
        self._check()

    def _check(self) -> None:
        g, window = self.geometry, self.kernel.shape[2:]
        rank = len(g.image) - 1
        sizes = (g.places, g.stride, g.before, g.dilation, window)
        if rank not in CONVOLUTIONS or any(len(each) != rank for each in sizes):
            raise SkipformError(f"Convolved: an image {g.image} with axes {sizes}; one to three axes are accepted")
        positive = (*g.image, *g.places, *g.stride, *g.dilation, *self.kernel.shape, g.groups)
        if min(positive) < 1 or min(g.before) < 0:
            raise SkipformError(f"Convolved: sizes {positive}, {g.before}; positive ones are accepted")
        channels, out = g.image[0], len(self.kernel)
        if channels != self.kernel.shape[1] * g.groups or out % g.groups or self.shift.shape != (out,):
            raise SkipformError(
                f"Convolved: a kernel {self.kernel.shape} with {len(self.shift)} biases in {g.groups} groups"
                f" does not fit {channels} channels"
            )
        if math.prod(g.image) != self.inner.out_features:
            raise SkipformError(f"Convolved: {self.inner.out_features} entries are no image {g.image}")
        padded = [max(n, end - b) + b for n, b, end in zip(g.image[1:], g.before, g.ends(window), strict=True)]
        if channels * math.prod(padded) > LARGEST or out * math.prod(g.places) > LARGEST:
            raise SkipformError(f"Convolved: an image of {channels} x {padded}; 2^28 numbers are accepted")

    @property
    def out_features(self) -> int:
        return len(self.kernel) * math.prod(self.geometry.places)

    @property
    def nonzeros(self) -> int:
        """Number of stored entries: those of the kernel and of V."""
        return self.kernel.size + self.inner.nonzeros

    @property
    def is_exact(self) -> bool:
        return False

    @property
    def columns(self) -> np.ndarray:
        """The coordinates of z that y depends on, for weights in general position."""
        window = torch.from_numpy((self.kernel != 0).astype(np.float64))
        image = torch.ones(1, *self.geometry.image, dtype=torch.float64, requires_grad=True)
        (read,) = torch.autograd.grad(self._convolved(image, window).sum(), image)
        rows = np.flatnonzero(read.numpy().ravel())
        return np.asarray(np.unique(self.inner.weight[rows].indices))

    def __call__(self, x: Any) -> np.ndarray:
        flat = self.inner(x)
        with torch.no_grad():
            image = torch.from_numpy(np.ascontiguousarray(flat.reshape(-1, *self.geometry.image)))
            y = self._convolved(image, torch.from_numpy(self.kernel)).flatten(2) + torch.from_numpy(self.shift)[:, None]
        return y.numpy().reshape(*flat.shape[:-1], self.out_features)

    def _convolved(self, image: torch.Tensor, kernel: torch.Tensor) -> torch.Tensor:
        g, ends = self.geometry, self.geometry.ends(kernel.shape[2:])
        axes = zip(g.image[1:], g.before, ends, strict=True)
        sides = [side for n, before, end in axes for side in (max(end - before - n, 0), before)]
        padded = F.pad(image, sides[::-1])
        for axis, end in enumerate(ends, 2):
            padded = padded.narrow(axis, 0, end)
        convolution: Any = CONVOLUTIONS[len(ends)]
        y = convolution(padded, kernel, None, g.stride, 0, g.dilation, g.groups)
        assert isinstance(y, torch.Tensor)
        return y

    @cached_property
    def explicit(self) -> Affine:
        """The same map with its matrix."""
        g = self.geometry
        matrix = convolution_matrix(g.image, self.kernel, g.places, g.stride, g.before, g.dilation, g.groups)
        bias = matrix @ self.inner.bias + np.repeat(self.shift, math.prod(g.places))
        product = (matrix @ self.inner.weight).tocsr()
        product.sort_indices()
        product.eliminate_zeros()
        return Affine.of(product, bias)

    @property
    def indptr(self) -> np.ndarray:
        return self.explicit.indptr

    @property
    def indices(self) -> np.ndarray:
        return self.explicit.indices

    @property
    def data(self) -> np.ndarray:
        return self.explicit.data

    @property
    def bias(self) -> np.ndarray:
        return self.explicit.bias

    def float(self) -> "Convolved":
        return self


def convolution_matrix(
    shape: Sequence[int],
    kernel: np.ndarray,
    places: Sequence[int],
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> sparse.csr_array:
    """The convolution of an image (c, *sizes) with a kernel (o, c/g, *window) onto `places` output positions, as a
    matrix (o * places, c * pixels): row (o, p) holds kernel[o, :, q] in the columns of pixel p stride - padding + q
    dilation, where that is inside the image."""
    channels, *sizes = shape
    window = kernel.shape[2:]
    rank = len(sizes)
    stride, padding, dilation = (per_axis(value, rank) for value in (stride, padding, dilation))
    pixel, inside = np.zeros((1, 1), dtype=np.int64), np.ones((1, 1), dtype=bool)  # places x window, axis by axis
    for n, k, m, s, p, d in zip(sizes, window, places, stride, padding, dilation, strict=True):
        position = np.arange(m)[:, None] * s - p + np.arange(k) * d
        valid = (position >= 0) & (position < n)
        size = (len(pixel) * m, pixel.shape[1] * k)
        pixel = (pixel[:, None, :, None] * n + position[None, :, None, :]).reshape(size)
        inside = (inside[:, None, :, None] & valid[None, :, None, :]).reshape(size)
    w = kernel.reshape(groups, -1, 1, channels // groups, pixel.shape[1])  # g o 1 c q
    column = np.arange(channels).reshape(groups, 1, 1, -1, 1) * math.prod(sizes) + pixel[:, None, :]  # g 1 p c q
    nonzero = (w != 0) & inside[:, None, :]  # g o p c q
    data = np.broadcast_to(w, nonzero.shape)[nonzero]
    indices = np.broadcast_to(column, nonzero.shape)[nonzero]
    indptr = np.concatenate([[0], np.cumsum(nonzero.sum(axis=(3, 4)).ravel())])
    return sparse.csr_array((data, indices, indptr), shape=(len(indptr) - 1, channels * math.prod(sizes)))


def per_axis(value: Any, rank: int) -> Sizes:
    """A number, or one for each axis, as one for each axis."""
    return (value,) * rank if isinstance(value, int) else (*value,) * (rank // len(value))


def before_of(padding: Any, dilation: Any, window: Sequence[int]) -> Sizes:
    """The zeros before the first pixel along each axis, for torch's `padding`: numbers, "same" or "valid"."""
    rank = len(window)
    if padding == "same":
        return tuple(d * (k - 1) // 2 for d, k in zip(per_axis(dilation, rank), window, strict=True))
    return per_axis(0 if padding == "valid" else padding, rank)
