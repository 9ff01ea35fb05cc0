"""A net that verifiers read: Conv, Gemm, Relu, Add, Concat along channels, Flatten and Reshape alone.

The net of the target `keep_add` is walked once. A convolution or a matrix stays what it is. Everything else that is
affine (slices, windows, paddings, permutations, averages, interpolations, scales) is collected until a ReLU, an output
or such a layer reads it, as a sum of sparse matrices on tensors that are there already:

    v = sum_i M_i t_i + b        t_i a "base": an input, or the result of a layer, a ReLU or a concatenation

Then every M_i that has the structure of a convolution becomes one, with fixed weights, every other one a Gemm, and the
sum an addition. So max pooling is a tree of convolutions with weights 1 and -1. Weights are dense: groups and
dilations are written out with zeros, since readers ignore them (maraboupy 2.0.0 does).

Where a bias goes is due to maraboupy 2.0.0. It joins affine layers that follow each other, and then counts the bias of
the first once for each layer that this one reads (NetworkLevelReasoner::mergeWSLayers): of a net with a skip it proves
what is false. It joins nothing that a ReLU reads, and is right where one layer alone is read. So a bias stands

    before a ReLU                               a value that is not read by one keeps its bias aside for its readers
    on a function of an input
    on the output that reads a single ReLU      of a net with one output
    on 0 x, which is added                      to any other output

b batch, c o channels, h w pixels, k kernel.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy import sparse
from torch import Tensor, fx, nn

from skipform.compiler.check import compare_forms, output_nodes
from skipform.compiler.emit import Emitter
from skipform.compiler.flatten import MOVES, constant_of, matrix_of, moved_rows, shape_of
from skipform.compiler.rewrite import finish, rewrite_in_float64
from skipform.compiler.targets import Settings
from skipform.compiler.targets.keep_add import AddingEmitter
from skipform.errors import SkipformError
from skipform.theory.trees import Window

BORDER = 32  # entries of a row up to which borders are looked for: those of windows
SAME = 1e-14  # relative: entries of one kernel that were summed in another order differ by a few roundings of 2^-53


class _RegularMaxima(AddingEmitter):
    """Maxima over boxes one axis after the other, and over windows entry by entry: entry j of all windows is a slice,
    so that every layer of the tree is a convolution. Shared parts of overlapping windows are computed again instead."""

    def box_max(self, x: fx.Node, windows: dict[int, list[Window]]) -> fx.Node:
        for dim, along in windows.items():
            x = self.window_max(x, dim, along)
        return x

    def window_max(self, x: fx.Node, dim: int, windows: Sequence[Window]) -> fx.Node:
        if len(windows) == 1:
            return super().window_max(x, dim, windows)
        level = [self.take(x, dim, entries) for entries in zip(*windows, strict=True)]
        while len(level) > 1:
            pairs = [level[i : i + 2] for i in range(0, len(level), 2)]
            level = [self.maximum(*pair) if len(pair) == 2 else pair[0] for pair in pairs]
        return level[0]


def rewritten(module: nn.Module, inputs: tuple[Tensor, ...], settings: Settings) -> fx.GraphModule:
    """A graph of conv2d, linear, relu, add, cat along channels, flatten and reshape. Raises SkipformError if its
    weights would take more than the memory, or an output has its batch elsewhere than in front."""
    graph = rewrite_in_float64(module, inputs, _RegularMaxima, check=settings.check)
    walk = _Walk(graph, Emitter(inputs[0].device, inputs[0].dtype), settings.memory)
    outputs = fx.node.map_arg(graph.graph.output_node().args[0], walk.output)
    plain = finish(walk.e, outputs, [tuple(x.shape[1:]) for x in inputs], type(module).__name__)
    plain.meta["original_operations"] = graph.meta["original_operations"]
    if settings.check:
        compare_forms(graph, plain)
    return plain


Image = tuple[int, int, int]  # (c, h, w)


@dataclass(frozen=True, eq=False)
class Base:
    """A tensor of the new graph with so many entries in a sample, which are an image (c, h, w) or a vector.

    affine  it is a sum, a layer or a concatenation, not an input or the result of a ReLU
    even    all its entries come after the same number of ReLUs
    """

    node: fx.Node
    size: int
    image: Image | None
    affine: bool = True
    even: bool = False


def _image(shape: Sequence[int]) -> Image | None:
    """How the entries of a sample with two or three dimensions are an image."""
    if len(shape) == 3:
        return shape[0], shape[1], shape[2]
    return (shape[0], 1, shape[1]) if len(shape) == 2 else None


@dataclass
class Form:
    """sum_i M_i t_i + b: the entries of one sample, best kept as an image or, without one, as a vector."""

    image: Image | None
    bias: np.ndarray
    terms: dict[Base, sparse.csr_array] = field(default_factory=dict)

    @property
    def entries(self) -> int:
        return sum(matrix.nnz for matrix in self.terms.values())

    def after(self, matrix: Any, bias: np.ndarray, image: Image | None) -> "Form":
        """matrix (M t + b) + bias."""
        terms = {base: sparse.csr_array(matrix @ own) for base, own in self.terms.items()}
        return Form(image, matrix @ self.bias + bias, terms)


def _of(base: Base, bias: np.ndarray | None = None) -> Form:
    """base + bias."""
    bias = np.zeros(base.size) if bias is None else bias
    return Form(base.image, bias, {base: sparse.eye_array(base.size, format="csr")})


class _Walk:
    """The new graph, in the emitter e, of the net `graph`."""

    def __init__(self, graph: fx.GraphModule, e: Emitter, memory: int):
        self.graph, self.e, self.memory = graph, e, memory
        self.weights = 0  # entries so far
        self.inputs: list[Base] = []  # a constant is 0 x + b
        self.forms: dict[fx.Node, Form] = {}
        self._alone = len(output_nodes(graph.graph)) == 1
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
        form = self.forms[node]
        base, left = self._base(form, biased=self._alone and _is_even_activation(form))
        if left.any():
            constant = self._view(self._constant(left, base.image), base.image)
            base = replace(base, node=self.e.emit(torch.add, self._view(base, base.image), constant))
        shape = node.meta["val"].shape[1:]
        if shape == (base.size,):
            return self._view(base, None)
        return self.e.reshape(base.node, [-1, *shape])

    def _form(self, node: Any, sources: Sequence[fx.Node]) -> Form:
        shape = _sample(node)
        image = _image(shape)
        if node.op == "placeholder":
            x = self.e.input(node.name, node.meta["val"])
            base = Base(x, math.prod(shape), image, affine=False, even=True)
            self.inputs.append(base)
            return _of(base)
        forms = [self.forms[n] for n in sources]
        if node.target is torch.relu:
            base = self._before_relu(forms[0])
            return _of(replace(base, node=self.e.relu(base.node), affine=False))
        if node.target is torch.add:
            return self._shared(node, _sum(forms[0], forms[-1], node.kwargs.get("alpha", 1)))  # x + x has one source
        if node.target is torch.cat and node.args[1] == 1 and node.meta["batch_dim"] == 0 and image:
            images = [_image(_sample(n)) for n in node.args[0]]
            if len({base for form in forms for base in form.terms}) > 1:  # else it may only move entries of one tensor
                bases, biases = zip(*(self._base(self.forms[n]) for n in node.args[0]), strict=True)
                parts = [self._view(base, i) for base, i in zip(bases, images, strict=True)]
                return _of(Base(self.e.cat(parts, 1), math.prod(shape), image), np.concatenate(biases))
        if node.target in MOVES:
            return self._moved(node, sources, forms, image)
        layer = self._layer(node, _image(_sample(sources[0])), forms[0], shape)
        if layer:
            return layer
        return self._shared(node, forms[0].after(*matrix_of(self.graph, node, sources[0]), image))

    def _shared(self, node: fx.Node, form: Form) -> Form:
        """A sum that several operations read is computed once; what only moves or scales entries is not worth it."""
        if len(node.users) > 1 and form.entries > len(form.bias):
            return _of(*self._base(form))
        return form

    def _moved(self, node: fx.Node, sources: Sequence[fx.Node], forms: Sequence[Form], image: Image | None) -> Form:
        rows = moved_rows(self.graph, node, sources)
        if len(forms) == 1 and np.array_equal(rows, np.arange(len(forms[0].bias))):
            return replace(forms[0], image=forms[0].image or image)  # a reshape
        moved, start = Form(image, np.zeros(len(rows))), 0
        for form in forms:
            stop = start + len(form.bias)
            inside = np.flatnonzero((rows >= start) & (rows < stop))
            ones = np.ones(len(inside))
            pick = sparse.csr_array((ones, (inside, rows[inside] - start)), shape=(len(rows), len(form.bias)))
            moved, start = _sum(moved, form.after(pick, np.zeros(len(rows)), image), 1), stop
        return moved

    def _layer(self, node: Any, image: Image | None, form: Form, shape: tuple[int, ...]) -> Form | None:
        """A dense convolution of an image, or a matrix on a vector, as it is; None for any other operation."""
        how = dict(node.kwargs)
        vector = node.target is F.linear and len(shape) == 1
        dense = node.target in (F.conv1d, F.conv2d) and how.get("groups", 1) == 1
        if not vector and not (dense and image and not isinstance(how.get("padding"), str)):
            return None
        weight = constant_of(self.graph, node.args[1])
        bias = constant_of(self.graph, node.args[2]) if len(node.args) > 2 and node.args[2] is not None else None
        base, left = self._base(form)
        sample = torch.from_numpy(left).reshape(1, *_sample(node.args[0])).to(weight)
        total = node.target(sample, weight, bias, **how).reshape(math.prod(shape)).cpu().numpy()  # of an input of zeros
        reader = _reader(node)
        relu = reader is not None and reader.target is torch.relu
        ends = reader is not None and reader.op == "output" and self._alone and base.even and not base.affine
        biased = relu or ends or base in self.inputs
        if vector:
            y = self._gemm(base, weight, torch.from_numpy(total) if biased else None)
            return _of(Base(y, len(total), None, even=True), np.zeros_like(total) if biased else total)
        rank = weight.ndim - 2
        stride, padding, dilation = (
            _pair(how.get(name, default), rank, default)
            for name, default in (("stride", 1), ("padding", 0), ("dilation", 1))
        )
        weight = weight if rank == 2 else weight.unsqueeze(2)
        size = [d * (k - 1) + 1 for d, k in zip(dilation, weight.shape[2:], strict=True)]
        spread = weight.new_zeros(*weight.shape[:2], *size)
        spread[:, :, :: dilation[0], :: dilation[1]] = weight
        own, rest = _per_channel(total, shape[0]) if biased else (np.zeros(shape[0]), total)
        y = self._conv(self._view(base, image), spread, torch.from_numpy(own), stride, padding)
        even = all(p < k for p, k in zip(padding, size, strict=True))  # no entry reads padding alone
        return _of(Base(y, len(total), _image(shape), even=even), rest)

    # -- layers of the new graph ---------------------------------------------------------------------------------

    def _before_relu(self, form: Form) -> Base:
        """The form with its bias."""
        base, left = self._base(form, biased=True)
        if not left.any():
            return base
        bias = torch.from_numpy(left).reshape(1, *(base.image or (-1,)))
        return replace(base, node=self.e.emit(torch.add, self._view(base, base.image), bias))

    def _base(self, form: Form, *, biased: bool = False) -> tuple[Base, np.ndarray]:
        """The form as the sum of a convolution or a Gemm for each of its terms, and what of its bias is left. A bias
        that a single layer can add is in it if it may be, or the layer reads an input."""
        image, left = form.image, form.bias
        if not form.terms:
            return self._constant(left, image), np.zeros_like(left)
        terms = sorted(form.terms.items(), key=lambda term: _is_identity(term[1]))
        alone, only = len(terms) == 1, terms[0][0]
        parts, even = [], True
        for base, matrix in terms:
            if _is_identity(matrix) and not (alone and biased and only.affine and left.any()):
                if alone:
                    return base, left
                parts.append(self._view(base, image))
                even = even and base.even
                continue
            bias = left if alone and (biased or only in self.inputs) else np.zeros_like(left)
            part, rest, whole = self._product(base, matrix, bias, image)
            left = rest if bias is left else left
            even = even and whole
            parts.append(part)
        return Base(self._added(parts), len(left), image, even=even), left

    def _added(self, parts: Sequence[fx.Node]) -> fx.Node:
        total, *others = parts
        for part in others:
            total = self.e.emit(torch.add, total, part)
        return total

    def _constant(self, bias: np.ndarray, image: Image | None) -> Base:
        """0 x + bias, for an image x as a convolution whose only position reads one pixel."""
        x = self.inputs[0]
        if x.image:
            c, h, w = x.image
            weight = torch.zeros(len(bias), c, 1, 1, dtype=torch.float64)
            y = self._conv(self._view(x, x.image), weight, torch.from_numpy(bias), (h, w), (0, 0))
        else:
            y = self._gemm(x, torch.zeros(len(bias), x.size, dtype=torch.float64), torch.from_numpy(bias))
        return Base(self.e.reshape(y, [-1, *(image or (len(bias),))]), len(bias), image, even=True)

    def _product(
        self, base: Base, matrix: sparse.csr_array, bias: np.ndarray, image: Image | None
    ) -> tuple[fx.Node, np.ndarray, bool]:
        """matrix @ base + bias as convolutions or a Gemm; what of the bias is left, since a convolution adds one number
        for each channel; whether it is one layer."""
        steps = convolutions_of(matrix, base.image, image) if base.image and image else None
        if steps is None or image is None:
            self._count(math.prod(matrix.shape), add=False)  # before it is made
            y = self._gemm(base, torch.from_numpy(matrix.toarray()), torch.from_numpy(bias))
            return (self.e.reshape(y, [-1, *image]) if image else y), np.zeros_like(bias), True
        whole = len(steps) == len(steps[0]) == 1
        own, left = _per_channel(bias, image[0]) if whole else (np.zeros(image[0]), bias)
        parts = []
        for step in steps:
            y = self._view(base, base.image)
            for kernel in step:
                weight = torch.from_numpy(kernel.weight)
                y = self._conv(y, weight, torch.from_numpy(own) if whole else None, kernel.stride, kernel.padding)
            parts.append(y)
        return self._added(parts), left, whole

    def _view(self, base: Base, image: Image | None) -> fx.Node:
        """The tensor as an image, or as a vector."""
        if image:
            return self.e.reshape(base.node, [-1, *image])
        return base.node if base.node.meta["val"].ndim == 2 else self.e.emit(torch.flatten, base.node, 1)

    def _gemm(self, base: Base, weight: Tensor, bias: Tensor | None) -> fx.Node:
        self._count(weight.numel())
        return self.e.linear(
            self._view(base, None), weight, bias if bias is not None else weight.new_zeros(len(weight))
        )

    def _conv(
        self, x: fx.Node, weight: Tensor, bias: Tensor | None, stride: Sequence[int], padding: Sequence[int]
    ) -> fx.Node:
        self._count(weight.numel())
        bias = weight.new_zeros(len(weight)) if bias is None else bias
        return self.e.convolution(x, weight, bias, stride=tuple(stride), padding=tuple(padding))

    def _count(self, entries: int, *, add: bool = True) -> None:
        needed = 8 * (self.weights + entries)
        if needed > self.memory:
            raise SkipformError(
                f"target verifier: at {self.e.place} its dense weights take {needed / 2**30:.3g} GiB;"
                f" memory={self.memory / 2**30:.3g} GiB is accepted (smaller inputs, or more)"
            )
        self.weights += entries if add else 0


def _sum(x: Form, y: Form, alpha: float) -> Form:
    """x + alpha y."""
    terms = dict(x.terms)
    for base, matrix in y.terms.items():
        scaled = sparse.csr_array(matrix * alpha)
        terms[base] = sparse.csr_array(terms[base] + scaled) if base in terms else scaled
    return Form(x.image or y.image, x.bias + alpha * y.bias, terms)


def _per_channel(bias: np.ndarray, channels: int) -> tuple[np.ndarray, np.ndarray]:
    """What a convolution can add of a bias, one number a channel, and what is left: all of it at once, or nothing."""
    rows = bias.reshape(channels, -1)
    if (rows == rows[:, :1]).all():
        return rows[:, 0].copy(), np.zeros_like(bias)
    return np.zeros(channels), bias


def _is_even_activation(form: Form) -> bool:
    return len(form.terms) == 1 and all(base.even and not base.affine for base in form.terms)


def _reader(node: fx.Node) -> fx.Node | None:
    """The only operation that reads a value, views aside; None if there are several or none."""
    while len(node.users) == 1:
        (node,) = node.users
        if node.target not in (torch.flatten, torch.reshape):
            return node
    return None


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


@dataclass(frozen=True, eq=False)
class Kernel:
    """A convolution with weight (o, c, kh, kw)."""

    weight: np.ndarray
    stride: tuple[int, int]
    padding: tuple[int, int]


def convolutions_of(
    matrix: sparse.csr_array, image: Image, result: Image, axes: tuple[int, ...] = (1, 2)
) -> list[list[Kernel]] | None:
    """The matrix from an image (c, h, w) to a result (o, h', w') as a sum of chains of convolutions: one convolution,
    or, where the first or the last position of an axis differs from the others, as at the border of a padded max
    pooling, one onto these positions followed by one that puts them in their place. None if it is neither, or if the
    convolutions had more weights than the matrix has entries, zeros counted."""
    whole = convolution_of(matrix, image, result)
    if whole:
        return [[whole]]
    if matrix.nnz > BORDER * matrix.shape[0]:
        return None
    for axis in axes:
        others = tuple(a for a in axes if a > axis)
        for first, last in ((1, 0), (0, 1), (1, 1)):
            edges = [0, first, result[axis] - last, result[axis]]
            steps = _by_segments(matrix, image, result, axis, edges, others) if edges[1] <= edges[2] else None
            if steps and sum(kernel.weight.size for step in steps for kernel in step) <= math.prod(matrix.shape):
                return steps
    return None


def _by_segments(
    matrix: sparse.csr_array, image: Image, result: Image, axis: int, edges: list[int], axes: tuple[int, ...]
) -> list[list[Kernel]] | None:
    """convolutions_of for each segment from one edge to the next along an axis of the result."""
    steps = []
    rows = np.arange(matrix.shape[0]).reshape(result)
    for start, stop in itertools.pairwise(edges):
        if start == stop:
            continue
        height, width = (stop - start if a == axis else result[a] for a in (1, 2))
        segment = (result[0], height, width)
        place = rows.take(range(start, stop), axis).ravel()
        part = matrix[place]
        if not part.nnz:  # x - x where a window meets the border
            continue
        inner = convolutions_of(part, image, segment, axes)
        if inner is None:
            return None
        put = sparse.csr_array((np.ones(len(place)), (place, np.arange(len(place)))), shape=(rows.size, len(place)))
        outer = convolution_of(put, segment, result)
        if outer is None:
            return None
        steps += [[*step, outer] for step in inner]
    return steps


def convolution_of(matrix: sparse.csr_array, image: Image, result: Image) -> Kernel | None:
    """The convolution that the matrix from an image (c, h, w) to a result (o, h', w') is; None if it is none, or one
    with more weights than the matrix has entries, zeros counted."""
    entries = sparse.coo_array(matrix)
    entries.eliminate_zeros()
    if not entries.nnz:
        return None
    o, *target = np.unravel_index(entries.coords[0], result)
    c, *pixel = np.unravel_index(entries.coords[1], image)
    strides = [_strides(y, i, n) for y, i, n in zip(pixel, target, image[1:], strict=True)]
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


def _strides(pixel: np.ndarray, target: np.ndarray, length: int) -> list[int]:
    """The strides that a convolution may have along an axis of this length: how far the first or
    last pixel moves from one output position to the next."""
    size = int(target.max()) + 1
    low, high = np.full(size, np.iinfo(np.int64).max), np.full(size, -1)
    np.minimum.at(low, target, pixel)
    np.maximum.at(high, target, pixel)
    steps = {1, *(int(step) for edge in (low, high) for step in np.diff(edge[high >= 0])), *range(1, 4)}
    return sorted(step for step in steps if 0 < step <= max(length, 1))


def _padded(
    weight: np.ndarray, first: Sequence[int], stride: Sequence[int], image: Sequence[int], result: Sequence[int]
) -> Kernel:
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
    return Kernel(np.pad(weight, around), (stride[0], stride[1]), (padding[0], padding[1]))
