"""Every operator of the table of from_onnx against onnxruntime, or against onnx's own reference evaluator where
onnxruntime has no kernel for so old a version.

Hypothesis draws shapes, attributes and opsets. Inputs and weights are small whole numbers, so that sums of products are
exact in float32 whatever their order, and the results must be equal. Operators that divide or take roots (ROUNDED) do
at most 32 roundings of numbers of at most M, the largest of inputs, weights and outputs, on each side:
64 * 2^-24 * M.
"""

import math

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from skipform import from_onnx
from skipform.compiler.from_onnx.operators import OPERATORS

onnxruntime.set_default_logger_severity(4)
EXAMPLES = 15  # per operator
NEWEST = 21


class Drawing:
    """One node with its operands: the activation x, then constants."""

    def __init__(self, draw):
        self.draw, self.attributes, self.operands, self.opset, self.outputs = draw, {}, [], NEWEST, 1
        self.shape, self.active = (), 1

    def integer(self, low, high):
        return self.draw(st.integers(low, high))

    def choice(self, *options):
        return self.draw(st.sampled_from(options))

    def flag(self):
        return self.draw(st.booleans())

    def numbers(self, *shape):
        generator = np.random.default_rng(self.integer(0, 10**6))
        return generator.integers(-3, 4, shape).astype(np.float32)

    def x(self, low=1, high=4, first=None):
        """The sizes of the input; the first one is 1 as a rule."""
        rank = self.integer(low, high)
        self.shape = (first or self.choice(1, 1, 2), *(self.integer(1, 4) for _ in range(rank - 1)))
        return self.shape

    def image(self, channels=None, least=1, rank=None):
        rank = rank or self.integer(1, 3)
        channels = channels or self.integer(1, 4)
        self.shape = (self.choice(1, 1, 2), channels, *(self.integer(max(least, 3), 7) for _ in range(rank)))
        return rank

    def axis(self, rank=None):
        rank = rank or len(self.shape)
        return self.integer(-rank, rank - 1)

    def axes(self):
        return [a - self.choice(0, len(self.shape)) for a in range(len(self.shape)) if self.flag()] or [self.axis()]

    def like(self, shape=None):
        """A constant that broadcasts to the input, or with it."""
        shape = self.shape if shape is None else shape
        part = shape[self.integer(0, len(shape)) :]
        return self.numbers(*(self.choice(1, n) for n in part))

    def whole(self, *numbers):
        return np.array(numbers, dtype=np.int64)


def unary(d):
    d.x()


def other(d):
    d.x()
    d.operands.append(d.like())


def several(d):
    d.x()
    d.operands += [d.like() for _ in range(d.integer(0, 2))]


def positive(d):
    """Operands at which the function is defined: x^2 + 1, made by the test."""
    d.x()


def comparison(d):
    d.x()
    d.operands.append(d.like())


def quotient(d):
    d.x()
    d.operands.append(np.abs(d.like()) + 1)


def power(d):
    d.x()
    d.operands.append(np.float32(d.choice(1, 2, 3)))


def logical(d):
    d.x()
    d.attributes["pre"] = "Greater"
    d.operands.append(d.like() > 0)


def numbered(*names):
    def generator(d):
        d.x()
        for name in names:
            if d.flag():
                d.attributes[name] = d.choice(0.25, 0.5, 2.0)

    return generator


def shrunk(d):
    d.x()
    bound = d.choice(0.5, 1.0)
    d.attributes |= {"bias": bound, "lambd": bound}


def prelu(d):
    d.x(2, 4)
    d.opset = d.choice(7, 9, 16)
    part = d.shape[d.integer(0, len(d.shape)) :]
    channels = (d.shape[1], *(1,) * (len(d.shape) - 2))
    d.operands.append(d.numbers(*d.choice(part, channels)) / 4)


def clip(d):
    d.x()
    low, high = sorted((d.integer(-3, 3), d.integer(-3, 3)))
    bounds = {k: float(v) for k, v in (("min", low), ("max", high)) if d.flag()}
    d.opset = d.choice(6, 11, 13)
    if d.opset == 6:
        d.attributes |= bounds
    else:
        d.operands += [np.float32(bounds[k]) if k in bounds else None for k in ("min", "max")]


def matmul(d):
    rank = d.integer(1, 4)
    d.x(rank, rank)
    k, m = d.shape[-1], d.integer(1, 3)
    d.operands.append(d.numbers(*(d.shape[:-2] if d.flag() else ()), *d.choice((k,), (k, m)))) if rank > 2 else None
    if not d.operands:
        d.operands.append(d.numbers(*d.choice((k,), (k, m), (2, k, m))))
    elif d.operands[0].ndim > 2 and d.operands[0].shape[-2:] != (k, m):
        d.operands[0] = d.numbers(k, m)


def gemm(d):
    d.x(2, 2)
    d.opset = d.choice(7, 9, 11, 13)
    turned = d.flag()
    n, k = d.shape[::-1] if turned else d.shape
    m = d.integer(1, 3)
    d.attributes |= {"transA": int(turned), "transB": d.choice(0, 1)}
    d.operands.append(d.numbers(*((m, k) if d.attributes["transB"] else (k, m))))
    if d.opset < 11 or d.flag():
        d.operands.append(d.numbers(*d.choice((), (m,), (1, m), (n, m), (n, 1))))
    if d.flag():
        d.attributes |= {"alpha": d.choice(0.5, 2.0), "beta": d.choice(0.0, 0.5, 2.0)}


def einsum(d):
    d.x(3, 3)
    i, j = d.shape[1:]
    equation, shape = d.choice(("abc,cd->abd", (j, 2)), ("abc,bc->ac", (i, j)), ("abc,c", (j,)), ("abc->cb", None))
    d.attributes["equation"] = equation
    d.operands += [] if shape is None else [d.numbers(*shape)]


def cumsum(d):
    d.x()
    d.attributes |= {"exclusive": d.choice(0, 1), "reverse": d.choice(0, 1)}
    d.operands.append(np.int64(d.axis()))


def reduction(newest_version):
    def generator(d):
        d.x()
        d.opset = d.choice(11, 13, 18)
        d.attributes["keepdims"] = d.choice(0, 1)
        if d.flag():
            axes = d.axes()
            if d.opset >= newest_version:
                d.operands.append(d.whole(*axes))
            else:
                d.attributes["axes"] = axes

    return generator


def window(d, rank, kernel, ceil=True):
    d.attributes["strides"] = [d.integer(1, 3) for _ in range(rank)]
    if d.flag():
        d.attributes["pads"] = [d.integer(0, min(1, k - 1)) for _ in range(2) for k in kernel]
    elif d.flag():
        d.attributes["auto_pad"] = d.choice("SAME_UPPER", "SAME_LOWER", "VALID")
    if ceil and "auto_pad" not in d.attributes:
        d.attributes["ceil_mode"] = d.choice(0, 1)


def conv(d):
    groups = d.integer(1, 2)
    rank = d.image(groups * d.integer(1, 2), 5)
    kernel = [d.integer(1, 3) for _ in range(rank)]
    window(d, rank, kernel, ceil=False)
    if d.flag() and d.attributes.get("auto_pad") not in ("SAME_UPPER", "SAME_LOWER"):
        d.attributes["dilations"] = [d.integer(1, 2) for _ in range(rank)]
    d.attributes["group"] = groups
    if d.flag():
        d.attributes["kernel_shape"] = kernel
    out = groups * d.integer(1, 2)
    d.operands.append(d.numbers(out, d.shape[1] // groups, *kernel))
    d.operands += [d.numbers(out)] if d.flag() else []


def conv_transpose(d):
    groups = d.integer(1, 2)
    rank = d.image(groups * d.integer(1, 2), rank=d.integer(1, 2))
    kernel = [d.integer(1, 3) for _ in range(rank)]
    strides = [d.integer(1, 3) for _ in range(rank)]
    d.attributes |= {"strides": strides, "group": groups, "kernel_shape": kernel}
    how = d.choice("pads", "output_padding", "output_shape", "auto_pad", "none")
    if how == "pads":
        d.attributes["pads"] = [d.integer(0, 1) for _ in range(2) for _ in kernel]
    elif how == "output_padding":
        d.attributes["output_padding"] = [d.integer(0, s - 1) for s in strides]
    elif how == "output_shape":
        full = [s * (n - 1) + k for s, n, k in zip(strides, d.shape[2:], kernel, strict=True)]
        d.attributes["output_shape"] = [n - d.integer(0, 1) for n in full]
    elif how == "auto_pad" and all(k >= s for k, s in zip(kernel, strides, strict=True)):
        d.attributes["auto_pad"] = d.choice("SAME_UPPER", "SAME_LOWER", "VALID")
    d.operands.append(d.numbers(d.shape[1], d.integer(1, 2), *kernel))
    d.operands += [d.numbers(d.operands[0].shape[1] * groups)] if d.flag() else []


def max_pool(d):
    rank = d.image(least=5)
    d.opset = d.choice(8, 10, 12, 21)
    d.attributes["kernel_shape"] = kernel = [d.integer(1, 3) for _ in range(rank)]
    window(d, rank, kernel, ceil=d.opset >= 10)
    if d.opset >= 10 and d.flag() and d.attributes.get("auto_pad") not in ("SAME_UPPER", "SAME_LOWER"):
        d.attributes["dilations"] = [d.integer(1, 2) for _ in range(rank)]


def average_pool(d):
    rank = d.image(least=5)
    d.opset = d.choice(7, 10, 11, 19)
    d.attributes["kernel_shape"] = kernel = [d.integer(1, 3) for _ in range(rank)]
    window(d, rank, kernel, ceil=d.opset >= 10)
    d.attributes["count_include_pad"] = d.choice(0, 1)
    if d.opset >= 19 and d.flag() and d.attributes.get("auto_pad") not in ("SAME_UPPER", "SAME_LOWER"):
        d.attributes["dilations"] = [d.integer(1, 2) for _ in range(rank)]


def image(d):
    d.image()


def resize(d):
    rank = d.image(rank=d.integer(1, 2))
    mode = d.choice("nearest", "linear", "cubic") if rank == 2 else d.choice("nearest", "linear")
    d.attributes["mode"] = mode
    d.opset = d.choice(10, 11, 13, 18)
    if d.opset == 10:
        d.attributes["mode"] = "nearest"
        d.operands.append(np.array([1, 1, *(d.choice(1.0, 1.5, 2.0, 3.0) for _ in range(rank))], dtype=np.float32))
        return
    modes = ("half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel")
    d.attributes["coordinate_transformation_mode"] = d.choice(*modes)
    if mode == "nearest":
        d.attributes["nearest_mode"] = d.choice("round_prefer_floor", "round_prefer_ceil", "floor", "ceil")
    if mode == "cubic":
        d.attributes |= {"cubic_coeff_a": d.choice(-0.5, -0.75), "exclude_outside": d.choice(0, 1)}
    scales = [1, 1, *(d.choice(0.5, 1.0, 2.0, 4.0) for _ in range(rank))]
    sizes = [max(int(n * s), 1) for n, s in zip(d.shape, scales, strict=True)]
    if d.flag():
        d.operands += [d.numbers(0), np.array(scales, dtype=np.float32)]
    else:
        d.operands += [d.numbers(0), d.numbers(0), d.whole(*sizes)]


def upsample(d):
    rank = d.image(rank=2)
    d.opset = d.choice(7, 9)
    scales = [1.0, 1.0, *(d.choice(1.0, 2.0, 3.0) for _ in range(rank))]
    d.attributes["mode"] = d.choice("nearest", "linear")
    if d.opset == 7:
        d.attributes["scales"] = scales
    else:
        d.operands.append(np.array(scales, dtype=np.float32))


def batch_norm(d):
    d.x(2, 4)
    d.opset = d.choice(7, 9, 14, 15)
    c = d.shape[1]
    d.attributes["epsilon"] = d.choice(1e-5, 0.5)
    d.operands += [d.numbers(c), d.numbers(c), d.numbers(c), np.abs(d.numbers(c)) + 1]


def instance_norm(d):
    d.image()
    d.operands += [d.numbers(d.shape[1]), d.numbers(d.shape[1])]


def layer_norm(d):
    d.x(2, 4)
    axis = d.integer(1, len(d.shape) - 1)
    d.attributes |= {"axis": axis, "epsilon": 0.5}
    d.operands += [d.numbers(*d.shape[axis:]), d.numbers(*d.shape[axis:])]


def response_norm(d):
    d.image(rank=2)
    d.attributes |= {"size": d.choice(1, 3, 5), "alpha": 0.5, "beta": 0.75, "bias": 2.0}


def dropout(d):
    d.x()
    d.opset = d.choice(7, 10, 12, 13)


def reshape(d):
    d.x()
    d.opset = d.choice(5, 13, 14)
    n = math.prod(d.shape)
    kept = d.integer(0, 1)
    d.operands.append(d.whole(*d.choice((n,), (-1,), (1, n), (-1, 1), (0, -1), (1, -1, 1, 1), (-1, n))[: 4 - kept]))


def flatten(d):
    d.x(2, 4)
    d.opset = d.choice(1, 9, 11, 13)
    d.attributes["axis"] = d.integer(0 if d.opset < 11 else -len(d.shape), len(d.shape))


def squeeze(d):
    d.x()
    d.shape = tuple(d.choice(1, n) for n in d.shape)
    d.opset = d.choice(11, 13)
    axes = [i for i, n in enumerate(d.shape) if n == 1 and d.flag()]
    if axes and d.opset == 11:
        d.attributes["axes"] = axes
    elif axes:
        d.operands.append(d.whole(*axes))


def unsqueeze(d):
    d.x(1, 3)
    d.opset = d.choice(11, 13)
    rank = len(d.shape) + 2
    axes = sorted(d.draw(st.sets(st.integers(0, rank - 1), min_size=2, max_size=2)))
    if d.opset == 11:
        d.attributes["axes"] = axes
    else:
        d.operands.append(d.whole(*axes))


def transpose(d):
    d.x()
    if d.flag():
        d.attributes["perm"] = d.draw(st.permutations(range(len(d.shape))))


def expand(d):
    d.x(1, 3)
    shape = [d.choice(1, n) if n > 1 else d.integer(1, 3) for n in d.shape]
    d.operands.append(d.whole(*d.choice((), (2,)), *shape))


def tile(d):
    d.x(1, 3)
    d.operands.append(d.whole(*(d.integer(1, 2) for _ in d.shape)))


def concat(d):
    d.x()
    axis = d.axis()
    d.attributes["axis"] = axis
    for _ in range(d.integer(0, 2)):
        shape = [*d.shape]
        shape[axis] = d.integer(1, 3)
        d.operands.append(d.numbers(*shape))


def split(d):
    d.x()
    d.opset = d.choice(11, 13, 18)
    axis = d.axis()
    n = d.shape[axis]
    d.attributes["axis"], d.outputs = axis, d.integer(1, min(n, 2))
    sizes = [n] if d.outputs == 1 else [d.integer(1, n - 1)]
    sizes += [n - sizes[0]] if d.outputs == 2 else []
    if d.opset == 11:
        d.attributes["split"] = sizes
    else:
        d.operands.append(d.whole(*sizes))


def sliced(d):
    d.x()
    d.opset = d.choice(9, 10, 13)
    axes = sorted({a % len(d.shape) for a in d.axes()})
    starts, ends, steps = [], [], []
    for axis in axes:
        n = d.shape[axis]
        start = d.integer(0, n - 1)
        end = d.choice(n, 2**31 - 1, d.integer(start + 1, n))
        step = 1
        if d.opset >= 10 and d.flag():
            step = d.choice(1, 2, 3)
        elif d.opset >= 10 and d.flag():
            end, step = -n - 1, d.choice(-1, -2)
        starts.append(start - d.choice(0, n))
        ends.append(end)
        steps.append(step)
    if d.opset == 9:
        d.attributes |= {"starts": starts, "ends": ends, "axes": axes}
    else:
        d.operands += [d.whole(*v) for v in (starts, ends, axes, steps)]


def gather(d):
    d.x()
    d.attributes["axis"] = axis = d.axis()
    n = d.shape[axis]
    shape = d.choice((), (1,), (3,), (2, 2))
    d.operands.append(np.random.default_rng(d.integer(0, 99)).integers(-n, n, shape))


def gather_elements(d):
    d.x()
    d.attributes["axis"] = axis = d.axis()
    shape = [d.integer(1, n) for n in d.shape]
    shape[axis] = d.integer(1, 3)
    n = d.shape[axis]
    d.operands.append(np.random.default_rng(d.integer(0, 99)).integers(-n, n, shape))


def positions(d):
    k = d.integer(1, len(d.shape))
    places = d.draw(st.permutations([*np.ndindex(*d.shape[:k])]))[:2]
    return k, np.array(places, dtype=np.int64)


def gather_nd(d):
    d.x()
    d.operands.append(positions(d)[1])


def scatter_nd(d):
    d.x()
    d.opset = d.choice(11, 16)
    k, places = positions(d)
    d.operands += [places, d.numbers(len(places), *d.shape[k:])]


def scatter_elements(newest):
    def generator(d):
        d.x()
        d.opset = newest
        d.attributes["axis"] = axis = d.axis()
        shape = [d.integer(1, n) for n in d.shape]
        rows = np.random.default_rng(d.integer(0, 99)).permuted(
            np.broadcast_to(np.arange(d.shape[axis]), (*shape[:axis], *shape[axis:][1:], d.shape[axis])), axis=-1
        )
        index = np.moveaxis(rows[..., : shape[axis]], -1, axis).copy()
        d.operands += [index, d.numbers(*index.shape)]

    return generator


def pad(d):
    d.x(2, 4)
    d.opset = d.choice(9, 11, 13, 18)
    mode = d.choice("constant", "constant", "edge", "reflect")
    largest = 2 if mode != "reflect" else 1
    sides = [d.integer(0, min(largest, n - 1) if mode == "reflect" else largest) for n in d.shape * 2]
    if mode == "constant" and d.flag() and d.shape[-1] > 2:
        sides[-1] = -1
    value = float(d.integer(-2, 2)) if mode == "constant" else 0.0
    d.attributes["mode"] = mode
    if d.opset == 9:
        d.attributes |= {"pads": sides, "value": value}
    else:
        d.operands += [d.whole(*sides), np.float32(value)]


def blocks(d):
    size = d.integer(1, 2)
    d.attributes["blocksize"] = size
    if d.flag():
        d.attributes["mode"] = d.choice("DCR", "CRD")
    d.shape = (d.choice(1, 2), size**2 * d.integer(1, 2), d.integer(1, 3), d.integer(1, 3))


def depth(d):
    size = d.integer(1, 2)
    d.attributes["blocksize"] = size
    d.shape = (d.choice(1, 2), d.integer(1, 2), size * d.integer(1, 3), size * d.integer(1, 3))


def triangle(d):
    d.x(2, 4)
    d.attributes["upper"] = d.choice(0, 1)
    d.operands += [np.int64(d.integer(-2, 2))] if d.flag() else []


def chosen(d):
    d.x()
    d.operands += [d.like(), d.like() > 0]
    d.attributes["order"] = "mask last"


def top(d):
    d.x()
    d.outputs = 1
    d.attributes |= {"axis": (axis := d.axis()), "largest": d.choice(0, 1)}
    d.operands.append(d.whole(d.integer(1, d.shape[axis])))


def softmax(d):
    d.x()
    d.opset = d.choice(7, 11, 13)
    if d.flag() or len(d.shape) == 1:
        d.attributes["axis"] = d.integer(0 if d.opset == 7 else -len(d.shape), len(d.shape) - 1)


def extreme_place(d):
    d.x()
    d.attributes |= {"axis": d.axis(), "keepdims": d.choice(0, 1)}


def cast(d):
    d.x()
    d.attributes["to"] = d.choice(TensorProto.FLOAT, TensorProto.DOUBLE)


def cast_like(d):
    d.x()
    d.operands.append(np.float64(1))


def constant(d):
    """Constants are made of the shape of x, and added to it."""
    d.x()


GENERATORS = {
    **dict.fromkeys(("Neg", "Relu", "Abs", "Identity", "Sign", "Floor", "Ceil", "Round", "Not"), unary),
    **dict.fromkeys(("Sigmoid", "Tanh", "Exp", "Sin", "Cos", "Tan", "Atan", "Erf", "Softplus", "Softsign"), unary),
    **dict.fromkeys(("Mish", "HardSwish", "Gelu"), unary),
    **dict.fromkeys(("Log", "Sqrt", "Reciprocal", "LpNormalization"), positive),
    **dict.fromkeys(("Add", "Sub", "Mul"), other),
    **dict.fromkeys(("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"), comparison),
    **dict.fromkeys(("And", "Or", "Xor"), logical),
    **dict.fromkeys(("Sum", "Mean", "Max", "Min"), several),
    **dict.fromkeys(("ReduceMean", "ReduceMax", "ReduceMin", "ReduceL1", "ReduceL2", "ReduceSumSquare"), reduction(18)),
    **dict.fromkeys(("ReduceLogSumExp", "ReduceProd"), reduction(18)),
    **dict.fromkeys(("GlobalAveragePool", "GlobalMaxPool"), image),
    **dict.fromkeys(("Constant", "ConstantOfShape", "Shape", "Size", "Range", "NonZero"), constant),
    **dict.fromkeys(("LeakyRelu", "ThresholdedRelu", "Elu", "Celu"), numbered("alpha")),
    **dict.fromkeys(("Softmax", "LogSoftmax"), softmax),
    **dict.fromkeys(("ArgMax", "ArgMin"), extreme_place),
    "Selu": numbered("alpha", "gamma"),
    "HardSigmoid": numbered("alpha", "beta"),
    "Shrink": shrunk,
    "Div": quotient,
    "Pow": power,
    "PRelu": prelu,
    "Clip": clip,
    "MatMul": matmul,
    "Gemm": gemm,
    "Einsum": einsum,
    "CumSum": cumsum,
    "ReduceSum": reduction(13),
    "Conv": conv,
    "ConvTranspose": conv_transpose,
    "MaxPool": max_pool,
    "AveragePool": average_pool,
    "Resize": resize,
    "Upsample": upsample,
    "BatchNormalization": batch_norm,
    "InstanceNormalization": instance_norm,
    "LayerNormalization": layer_norm,
    "LRN": response_norm,
    "Dropout": dropout,
    "Cast": cast,
    "CastLike": cast_like,
    "Reshape": reshape,
    "Flatten": flatten,
    "Squeeze": squeeze,
    "Unsqueeze": unsqueeze,
    "Transpose": transpose,
    "Expand": expand,
    "Tile": tile,
    "Concat": concat,
    "Split": split,
    "Slice": sliced,
    "Gather": gather,
    "GatherElements": gather_elements,
    "GatherND": gather_nd,
    "Scatter": scatter_elements(9),
    "ScatterElements": scatter_elements(13),
    "ScatterND": scatter_nd,
    "Pad": pad,
    "DepthToSpace": blocks,
    "SpaceToDepth": depth,
    "Trilu": triangle,
    "Where": chosen,
    "TopK": top,
}
ROUNDED = {"AveragePool", "GlobalAveragePool", "ReduceMean", "Mean", "Div", "Resize", "Upsample", "BatchNormalization"}
ROUNDED |= {"InstanceNormalization", "LayerNormalization", "LRN", "Selu", "HardSigmoid", "Celu", "Elu", "LogSoftmax"}
ROUNDED |= {
    "Sigmoid",
    "Tanh",
    "Exp",
    "Log",
    "Sqrt",
    "Sin",
    "Cos",
    "Tan",
    "Atan",
    "Erf",
    "Reciprocal",
    "Gelu",
    "Softmax",
}
ROUNDED |= {
    "LpNormalization",
    "Softplus",
    "Softsign",
    "Mish",
    "HardSwish",
    "ReduceL2",
    "ReduceLogSumExp",
    "LeakyRelu",
    "PRelu",
    "Pow",
}
FIRST = {"Mish": 18, "Gelu": 20}


def model_of(operator: str, d: Drawing) -> onnx.ModelProto:
    """A file of one input x: the node, with nodes before it that prepare x where the operator needs another type."""
    attributes = {**d.attributes}
    pre, order = attributes.pop("pre", None), attributes.pop("order", None)
    initializers, names, nodes = [], [], []
    for i, value in enumerate(d.operands):
        if value is None:
            names.append("")
        else:
            initializers.append(numpy_helper.from_array(np.asarray(value), f"c{i}"))
            names.append(f"c{i}")
    source = "x"
    if pre or operator == "Not":
        initializers.append(numpy_helper.from_array(np.float32(0), "zero"))
        nodes.append(helper.make_node("Greater", ["x", "zero"], ["active"]))
        source = "active"
    elif GENERATORS[operator] is positive:
        initializers.append(numpy_helper.from_array(np.float32(1), "one"))
        nodes += [helper.make_node("Mul", ["x", "x"], ["xx"]), helper.make_node("Add", ["xx", "one"], ["active"])]
        source = "active"
    if GENERATORS[operator] is constant:
        nodes += constants_of(operator, d.shape, initializers)
        outputs = ["y0"]
    else:
        inputs = [names[1], source, names[0]] if order else [source, *names]
        outputs = [f"y{i}" for i in range(max(d.outputs, 2 if operator == "TopK" else 1))]
        nodes.append(helper.make_node(operator, inputs, outputs, name=f"the_{operator}", **attributes))
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, d.shape)],
        [onnx.ValueInfoProto(name=name) for name in outputs[: d.outputs]],
        initializers,
    )
    opset = max(d.opset, FIRST.get(operator, 1))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    return onnx.shape_inference.infer_shapes(model)


def constants_of(operator, shape, initializers):
    """x plus a constant that the operator makes."""
    last = [helper.make_node("Cast", ["made"], ["real"], to=TensorProto.FLOAT)]
    last += [helper.make_node("ReduceSum", ["real"], ["number"], keepdims=0)]
    last += [helper.make_node("Add", ["x", "number"], ["y0"])]
    value = numpy_helper.from_array(np.array([3], dtype=np.int64))
    for name, number in (("start", 1), ("limit", 9), ("delta", 2)):
        initializers.append(numpy_helper.from_array(np.int64(number), name))
    initializers.append(numpy_helper.from_array(np.array([0, 2, 5], dtype=np.int64), "mask"))
    first = {
        "Constant": [helper.make_node("Constant", [], ["made"], value=value)],
        "Shape": [helper.make_node("Shape", ["x"], ["made"], start=0, end=-1)],
        "Size": [helper.make_node("Size", ["x"], ["made"])],
        "Range": [helper.make_node("Range", ["start", "limit", "delta"], ["made"])],
        "NonZero": [helper.make_node("NonZero", ["mask"], ["made"])],
        "ConstantOfShape": [
            helper.make_node("Shape", ["x"], ["shape"]),
            helper.make_node("ConstantOfShape", ["shape"], ["made"], value=value),
        ],
    }
    return first[operator] + last


def oracle(model):
    """onnxruntime; onnx's reference where it has no kernel."""
    try:
        session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        return lambda x: session.run(None, {"x": x})
    except Exception as error:
        if "NOT_IMPLEMENTED" not in str(error) and "NotImplemented" not in type(error).__name__:
            raise
        reference = ReferenceEvaluator(model)
        return lambda x: reference.run(None, {"x": x})


def assert_same(expected, given, tolerance, largest):
    for a, b in zip(expected, given, strict=True):
        b = b.numpy()
        assert a.shape == b.shape
        a, b = a.astype(np.float64), b.astype(np.float64)
        bound = tolerance * max(largest, float(np.abs(a).max(initial=1.0)))
        assert np.all((np.abs(a - b) <= bound) | (a == b)), (a, b)


def assert_reads(model, path, tolerance, largest=3.0):
    """The module of the file computes what the oracle does of every sample of a batch of three, and of the examples."""
    onnx.save(model, path)
    module, examples = from_onnx(path)
    run = oracle(model)
    (sizes,) = [tuple(d.dim_value for d in v.type.tensor_type.shape.dim) for v in model.graph.input]
    generator = np.random.default_rng(0)
    if module.batched and sizes[0] > 1:
        assert examples[0].shape == sizes
        x = generator.integers(-3, 4, sizes).astype(np.float32)
        assert_same(run(x), results(module, x), tolerance, largest)
        return module
    assert examples[0].shape == (sizes if module.batched else (1, *sizes))
    x = generator.integers(-3, 4, (3, *examples[0].shape[1:])).astype(np.float32)
    given = results(module, x)
    for i in range(3):
        one = x[i : i + 1] if module.batched else x[i]
        expected = run(one)
        mine = [
            y[i : i + 1] if module.batched and e.shape[:1] == (1,) else y[i]
            for y, e in zip(given, expected, strict=True)
        ]
        assert_same(expected, mine, tolerance, largest)
    return module


def results(module, x):
    with torch.no_grad():
        y = module(torch.from_numpy(x))
    return list(y) if isinstance(y, tuple) else [y]


@st.composite
def drawings(draw, operator):
    d = Drawing(draw)
    GENERATORS[operator](d)
    return d


def test_every_operator_of_the_table_has_a_generator():
    assert set(GENERATORS) == set(OPERATORS)


@pytest.mark.parametrize("operator", sorted(OPERATORS))
def test_an_operator_is_what_onnxruntime_computes(operator, tmp_path):
    @settings(max_examples=EXAMPLES)
    @given(drawings(operator))
    def check(d):
        weights = [float(np.abs(v).max(initial=0)) for v in d.operands if v is not None and v.dtype == np.float32]
        tolerance = 64 * 2.0**-24 if operator in ROUNDED else 0.0
        assert_reads(model_of(operator, d), tmp_path / "net.onnx", tolerance, max([3.0, *weights]))

    check()
