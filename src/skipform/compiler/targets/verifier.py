"""A net that verifiers read: Conv, Gemm, Relu, Add, Concat along channels, Flatten and Reshape alone.

The net of the target `keep_add` is walked once. A convolution or a matrix stays what it is. Everything else that is
affine (slices, windows, paddings, permutations, averages, interpolations, scales) is collected until a ReLU, an output
or such a layer reads it, as a sum of sparse matrices on tensors that are there already:

    v = sum_i M_i t_i + b        t_i a "base": an input, or the result of a layer, a ReLU or a concatenation

Then every M_i that has the structure of a convolution becomes one, with fixed weights, every other one a Gemm, and the
sum an addition. So max pooling is a tree of convolutions with weights 1 and -1. Weights are dense: groups and
dilations are written out with zeros, since readers ignore them (maraboupy 2.0.0 does).

b batch, c o channels, h w pixels, k kernel.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy import sparse
from torch import Tensor, fx, nn

from skipform.compiler.check import compare_forms
from skipform.compiler.emit import Emitter
from skipform.compiler.flatten import MOVES, constant_of, matrix_of, moved_rows, shape_of
from skipform.compiler.rewrite import finish, rewrite_in_float64
from skipform.compiler.targets import Settings
from skipform.compiler.targets.keep_add import AddingEmitter
from skipform.errors import SkipformError
from skipform.theory.trees import Window

SAME = 1e-14  # relative: entries of one kernel that were summed in another order differ by a few roundings of 2^-53


class _SeparateMaxima(AddingEmitter):
    """Maxima over boxes along one axis after the other: fewer ReLUs, and every layer is a convolution."""

    def box_max(self, x: fx.Node, windows: dict[int, list[Window]]) -> fx.Node:
        for dim, along in windows.items():
            x = self.window_max(x, dim, along)
        return x


def rewritten(module: nn.Module, inputs: tuple[Tensor, ...], settings: Settings) -> fx.GraphModule:
    """A graph of conv2d, linear, relu, add, cat along channels, flatten and reshape. Raises SkipformError if its
    weights would take more than the memory, or an output has its batch elsewhere than in front."""
    graph = rewrite_in_float64(module, inputs, _SeparateMaxima, check=settings.check)
    walk = _Walk(graph, Emitter(inputs[0].device, inputs[0].dtype), settings.memory)
    outputs = fx.node.map_arg(graph.graph.output_node().args[0], walk.output)
    plain = finish(walk.e, outputs, [tuple(x.shape[1:]) for x in inputs], type(module).__name__)
    plain.meta["original_operations"] = graph.meta["original_operations"]
    if settings.check:
        compare_forms(graph, plain)
    return plain


@dataclass(frozen=True, eq=False)
class Base:
    """A tensor of the new graph; shape: of one sample. An image (c, h, w) if it has two or three dimensions."""

    node: fx.Node
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def image(self) -> tuple[int, int, int] | None:
        return _image(self.shape)


def _image(shape: Sequence[int]) -> tuple[int, int, int] | None:
    if len(shape) == 3:
        return shape[0], shape[1], shape[2]
    return (shape[0], 1, shape[1]) if len(shape) == 2 else None


@dataclass
class Form:
    """sum_i M_i t_i + b over the entries of one sample of a tensor of this shape."""

    shape: tuple[int, ...]
    bias: np.ndarray
    terms: dict[Base, sparse.csr_array] = field(default_factory=dict)

    @property
    def entries(self) -> int:
        return sum(matrix.nnz for matrix in self.terms.values())

    def after(self, matrix: Any, bias: np.ndarray, shape: tuple[int, ...]) -> "Form":
        """matrix (M t + b) + bias."""
        terms = {base: sparse.csr_array(matrix @ own) for base, own in self.terms.items()}
        return Form(shape, matrix @ self.bias + bias, terms)


def _of(base: Base) -> Form:
    return Form(base.shape, np.zeros(base.size), {base: sparse.eye_array(base.size, format="csr")})


class _Walk:
    """The new graph, in the emitter e, of the net `graph`."""

    def __init__(self, graph: fx.GraphModule, e: Emitter, memory: int):
        self.graph, self.e, self.memory = graph, e, memory
        self.weights = 0  # entries so far
        self.inputs: list[Base] = []  # a constant is 0 x + b
        self.forms: dict[fx.Node, Form] = {}
        for node in graph.graph.nodes:
            if node.op in ("placeholder", "call_function"):
                self.e.place = node.meta.get("place", "")
                sources = [n for n in node.all_input_nodes if "batch_dim" in n.meta]
                self.forms[node] = self._form(node, sources)

    def output(self, node: fx.Node) -> fx.Node:
        """The tensor of the new graph that an output is. A constant stays one."""
        if node.op == "get_attr":
            raise SkipformError(
                "target verifier: an output is a constant without a batch dimension; one row a sample is accepted"
            )
        if node.meta["batch_dim"] != 0:
            raise SkipformError(
                "target verifier: an output has no batch in its first dimension; batch first is accepted"
            )
        base = self._base(self.forms[node])
        return self.e.reshape(base.node, [-1, *node.meta["val"].shape[1:]])

    def _form(self, node: Any, sources: Sequence[fx.Node]) -> Form:
        shape = _sample(node)
        if node.op == "placeholder":
            base = Base(self.e.input(node.name, node.meta["val"]), shape)
            self.inputs.append(base)
            return _of(base)
        forms = [self.forms[n] for n in sources]
        if node.target is torch.relu:
            base = self._base(forms[0])
            return _of(Base(self.e.relu(base.node), base.shape))
        if node.target is torch.add:
            return self._shared(node, self._sum(node, forms, shape))
        if node.target is torch.cat and node.args[1] == 1 and node.meta["batch_dim"] == 0 and _image(shape):
            concatenation = self._concatenation(forms, shape)
            if concatenation:
                return concatenation
        if node.target in MOVES:
            return self._moved(node, sources, forms, shape)
        layer = self._layer(node, forms[0], shape)
        if layer:
            return layer
        return self._shared(node, forms[0].after(*matrix_of(self.graph, node, sources[0]), shape))

    def _sum(self, node: fx.Node, forms: Sequence[Form], shape: tuple[int, ...]) -> Form:
        x, y = forms[0], forms[-1]  # x + x has one source
        alpha = node.kwargs.get("alpha", 1)
        terms = dict(x.terms)
        for base, matrix in y.terms.items():
            scaled = matrix * alpha
            terms[base] = sparse.csr_array(terms[base] + scaled) if base in terms else scaled
        return Form(shape, x.bias + alpha * y.bias, terms)

    def _shared(self, node: fx.Node, form: Form) -> Form:
        """A sum that several operations read is computed once; what only moves or scales entries is not worth it."""
        if len(node.users) > 1 and form.entries > len(form.bias):
            return _of(self._base(form))
        return form

    def _concatenation(self, forms: Sequence[Form], shape: tuple[int, ...]) -> Form | None:
        """Concat, unless all parts only move entries of one tensor, or one would be no image."""
        if len({base for form in forms for base in form.terms}) < 2:
            return None
        parts = [self._base(form) for form in forms]
        return _of(Base(self.e.cat([self._view(part, part.shape) for part in parts], 1), shape))

    def _moved(self, node: fx.Node, sources: Sequence[fx.Node], forms: Sequence[Form], shape: tuple[int, ...]) -> Form:
        rows = moved_rows(self.graph, node, sources)
        ends = np.cumsum([len(form.bias) for form in forms])
        moved = Form(shape, np.zeros(len(rows)))
        for form, end in zip(forms, ends, strict=True):
            inside = np.flatnonzero((rows >= end - len(form.bias)) & (rows < end))
            columns = rows[inside] - (end - len(form.bias))
            ones = np.ones(len(inside))
            matrix = sparse.csr_array((ones, (inside, columns)), shape=(len(rows), len(form.bias)))
            part = form.after(matrix, np.zeros(len(rows)), shape)
            moved.bias += part.bias
            for base, own in part.terms.items():
                moved.terms[base] = sparse.csr_array(moved.terms[base] + own) if base in moved.terms else own
        return moved

    def _layer(self, node: Any, form: Form, shape: tuple[int, ...]) -> Form | None:
        """A dense convolution of an image, or a matrix on a vector, as it is; None for any other operation."""
        how = dict(node.kwargs)
        vector = node.target is F.linear and len(form.shape) == 1
        dense = node.target in (F.conv1d, F.conv2d) and how.get("groups", 1) == 1
        if not vector and not (dense and _image(form.shape) and not isinstance(how.get("padding"), str)):
            return None
        weight = constant_of(self.graph, node.args[1])
        bias = constant_of(self.graph, node.args[2]) if len(node.args) > 2 and node.args[2] is not None else None
        if vector:
            return _of(Base(self._gemm(self._base(form), weight, bias), shape))
        rank = weight.ndim - 2
        stride, padding, dilation = (
            _pair(how.get(name, default), rank, default)
            for name, default in (("stride", 1), ("padding", 0), ("dilation", 1))
        )
        weight = weight if rank == 2 else weight.unsqueeze(2)
        spread = weight.new_zeros(
            *weight.shape[:2], *(d * (k - 1) + 1 for d, k in zip(dilation, weight.shape[2:], strict=True))
        )
        spread[:, :, :: dilation[0], :: dilation[1]] = weight
        return _of(Base(self._conv(self._base(form), spread, bias, stride, padding), shape))

    # -- layers of the new graph ---------------------------------------------------------------------------------

    def _base(self, form: Form) -> Base:
        """The form as a tensor: the sum of a convolution or a Gemm for each of its terms."""
        terms = [*form.terms.items()] or [(self.inputs[0], sparse.csr_array((len(form.bias), self.inputs[0].size)))]
        base, matrix = terms[0]
        if len(terms) == 1 and _is_identity(matrix) and not form.bias.any():
            return Base(base.node if base.shape == form.shape else self._view(base, form.shape), form.shape)
        image, bias, parts = _image(form.shape), form.bias, []
        for base, matrix in sorted(terms, key=lambda term: _is_identity(term[1])):
            if base.shape == form.shape and _is_identity(matrix):
                parts.append(self._view(base, form.shape))
                continue
            part, bias = self._product(base, matrix, bias, image)
            parts.append(part)
        total, *others = parts
        for part in others:
            total = self.e.emit(torch.add, total, part)
        if bias.any():
            total = self.e.emit(torch.add, total, torch.from_numpy(bias).reshape(1, *(image or form.shape)))
        return Base(total, form.shape)

    def _product(
        self, base: Base, matrix: sparse.csr_array, bias: np.ndarray, image: tuple[int, int, int] | None
    ) -> tuple[fx.Node, np.ndarray]:
        """matrix @ base + bias as a convolution or a Gemm, and what of the bias is left, since a convolution adds one
        number for each channel."""
        left = np.zeros_like(bias)
        kernel = convolution_of(matrix, base.image, image) if base.image and image else None
        if kernel is None or image is None:
            self._count(math.prod(matrix.shape), add=False)  # before it is made
            y = self._gemm(base, torch.from_numpy(matrix.toarray()), torch.from_numpy(bias))
            return (self.e.reshape(y, [-1, *image]) if image else y), left
        weight, stride, padding = kernel
        per_channel = bias.reshape(image[0], -1)
        own = per_channel[:, 0].copy()
        if (per_channel != own[:, None]).any():
            own, left = np.zeros_like(own), bias
        return self._conv(base, torch.from_numpy(weight), torch.from_numpy(own), stride, padding), left

    def _view(self, base: Base, shape: tuple[int, ...]) -> fx.Node:
        """The tensor as the image or the vector that one of this shape is kept as."""
        image = _image(shape)
        return self.e.reshape(base.node, [-1, *image]) if image else self._flat(base)

    def _flat(self, base: Base) -> fx.Node:
        return base.node if base.node.meta["val"].ndim == 2 else self.e.emit(torch.flatten, base.node, 1)

    def _gemm(self, base: Base, weight: Tensor, bias: Tensor | None) -> fx.Node:
        self._count(weight.numel())
        return self.e.linear(self._flat(base), weight, bias if bias is not None else weight.new_zeros(len(weight)))

    def _conv(
        self, base: Base, weight: Tensor, bias: Tensor | None, stride: Sequence[int], padding: Sequence[int]
    ) -> fx.Node:
        self._count(weight.numel())
        bias = weight.new_zeros(len(weight)) if bias is None else bias
        return self.e.convolution(
            self._view(base, base.shape), weight, bias, stride=tuple(stride), padding=tuple(padding)
        )

    def _count(self, entries: int, *, add: bool = True) -> None:
        needed = 8 * (self.weights + entries)
        if needed > self.memory:
            raise SkipformError(
                f"target verifier: at {self.e.place} its dense weights take {needed / 2**30:.2g} GiB;"
                f" memory={self.memory / 2**30:.2g} GiB is accepted (smaller inputs, or more)"
            )
        self.weights += entries if add else 0


def _sample(node: fx.Node) -> tuple[int, ...]:
    """The shape of one sample's entries: without the batch dimension if that comes first and is the batch alone."""
    shape = shape_of(node)
    return shape[1:] if node.meta["batch_dim"] == 0 and shape[0] == 1 else shape


def _pair(value: Any, rank: int, default: int) -> list[int]:
    """One number for each axis of an image, of which a convolution of rank 1 has the last."""
    values = [value] * rank if isinstance(value, int) else [*value] * (rank // len(value))
    return [default] * (2 - rank) + values


def _is_identity(matrix: sparse.csr_array) -> bool:
    rows, columns = matrix.shape
    return (
        rows == columns == matrix.nnz
        and bool((matrix.data == 1).all())
        and np.array_equal(matrix.indices, np.arange(rows))
        and np.array_equal(matrix.indptr, np.arange(rows + 1))
    )


def convolution_of(
    matrix: sparse.csr_array, image: tuple[int, int, int], result: tuple[int, int, int]
) -> tuple[np.ndarray, tuple[int, int], tuple[int, int]] | None:
    """(weight (o, c, kh, kw), stride, padding) of the convolution that the matrix from an image (c, h, w) to a result
    (o, h', w') is; None if it is none, or one with more weights than the matrix has entries, zeros counted."""
    entries = sparse.coo_array(matrix)
    entries.eliminate_zeros()
    if not entries.nnz:
        return None
    o, *target = np.unravel_index(entries.coords[0], result)
    c, *pixel = np.unravel_index(entries.coords[1], image)
    strides = [_strides(y, i) for y, i in zip(pixel, target, strict=True)]
    for stride in itertools.product(*strides):
        offset = [y - s * i for y, i, s in zip(pixel, target, stride, strict=True)]
        first = [int(q.min()) for q in offset]
        kernel = [int(q.max()) - f + 1 for q, f in zip(offset, first, strict=True)]
        if result[0] * image[0] * math.prod(kernel) > math.prod(matrix.shape):
            continue
        place = (o, c, *(q - f for q, f in zip(offset, first, strict=True)))
        weight = np.zeros((result[0], image[0], *kernel))
        weight[place] = entries.data
        if not np.allclose(weight[place], entries.data, rtol=SAME, atol=0):
            continue
        reached = [
            _inside(f + np.arange(k)[:, None] + s * np.arange(m), n).sum(1)
            for f, k, s, m, n in zip(first, kernel, stride, result[1:], image[1:], strict=True)
        ]  # at how many output positions each entry of the kernel meets a pixel
        if ((weight != 0) * np.multiply.outer(*reached)).sum() != entries.nnz:
            continue
        return _padded(weight, first, stride, image, result)
    return None


def _inside(position: np.ndarray, size: int) -> np.ndarray:
    return (position >= 0) & (position < size)


def _strides(pixel: np.ndarray, target: np.ndarray) -> list[int]:
    """The strides that a convolution may have along an axis: how far the first or last pixel moves from one output
    position to the next."""
    size = int(target.max()) + 1
    low, high = np.full(size, np.iinfo(np.int64).max), np.full(size, -1)
    np.minimum.at(low, target, pixel)
    np.maximum.at(high, target, pixel)
    steps = {1, *(int(step) for edge in (low, high) for step in np.diff(edge[high >= 0])), *range(1, 4)}
    return sorted(step for step in steps if 0 < step <= int(pixel.max()) + 1)


def _padded(
    weight: np.ndarray, first: Sequence[int], stride: Sequence[int], image: Sequence[int], result: Sequence[int]
) -> tuple[np.ndarray, tuple[int, int], tuple[int, int]]:
    """The convolution with as much padding before as after: its kernel starts at -padding instead of `first`, and is as
    long as the number of output positions asks for."""
    padding, around = [], [(0, 0), (0, 0)]
    for f, k, s, n, m in zip(first, weight.shape[2:], stride, image[1:], result[1:], strict=True):
        p = max(0, -f)
        while f + p + k > n + 2 * p - s * (m - 1):  # the longest kernel that reaches m positions
            p += 1
        shortest = n + 2 * p - s * m + 1  # that does not reach m + 1 positions
        padding.append(p)
        around.append((f + p, max(0, shortest - (f + p + k))))
    return np.pad(weight, around), (stride[0], stride[1]), (padding[0], padding[1])
