"""The operators of ONNX that act on windows of images: convolutions, poolings, interpolation.

n batch, c channels, k kernel size, s stride, d dilation; x (n, c, ...) with one, two or three axes after the channels.
Padding may differ before and after an axis, which torch's own functions do not have: then zeros, or for a maximum
-inf, are put around first.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from skipform.compiler.from_onnx.operation import ROWS, Call, Rule, along, constant

CONVOLUTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
TRANSPOSED = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}
AVERAGES: dict[int, Any] = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}
MAXIMA: dict[int, Any] = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}


@dataclass(frozen=True)
class Windows:
    """One entry per axis after the channels; before, after: the padding; counts: windows along the axis."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]
    counts: tuple[int, ...]

    @property
    def symmetric(self) -> bool:
        return self.before == self.after and min(self.before) >= 0

    def pairs(self, after: tuple[int, ...] | None = None) -> list[int]:
        """The padding as F.pad takes it, from the last axis on."""
        return [n for pair in zip(self.before[::-1], (after or self.after)[::-1], strict=True) for n in pair]

    def reach(self, sizes: tuple[int, ...]) -> tuple[int, ...]:
        """The padding after each axis with which the last window just fits; with ceil_mode it may need more."""
        ends = [
            (m - 1) * s + (k - 1) * d + 1
            for m, s, k, d in zip(self.counts, self.stride, self.kernel, self.dilation, strict=True)
        ]
        return tuple(max(e - n - b, a) for e, n, b, a in zip(ends, sizes, self.before, self.after, strict=True))


def windows_of(call: Call, kernel: tuple[int, ...] | None = None) -> Windows:
    """The windows that the attributes describe. kernel: of a convolution, the size of its weights."""
    if call.x.rank not in (3, 4, 5):
        raise call.refusal(f"acts on shape {call.x.shape}", "one, two or three axes after the channels")
    sizes, rank = call.x.shape[2:], call.x.rank - 2
    kernel = kernel or tuple(call.whole("kernel_shape") or ())
    ones = [1] * rank
    stride, dilation = tuple(call.whole("strides") or ones), tuple(call.whole("dilations") or ones)
    pads = call.whole("pads") or [0] * 2 * rank
    if (
        not len(kernel) == len(stride) == len(dilation) == len(pads) // 2 == rank
        or min(*kernel, *stride, *dilation) < 1
    ):
        raise call.refusal(f"kernel {kernel}, strides {stride}, dilations {dilation}, pads {pads} for {rank} axes")
    before, after = tuple(pads[:rank]), tuple(pads[rank:])
    spans = [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]
    how = call.attribute("auto_pad", "NOTSET")
    if how in ("SAME_UPPER", "SAME_LOWER"):
        totals = [max((-(-n // s) - 1) * s + span - n, 0) for n, s, span in zip(sizes, stride, spans, strict=True)]
        less, more = tuple(t // 2 for t in totals), tuple(t - t // 2 for t in totals)
        before, after = (less, more) if how == "SAME_UPPER" else (more, less)
    elif how == "VALID":
        before = after = (0,) * rank
    call.bounded([n + max(b, 0) + max(a, 0) + s for n, b, a, s in zip(sizes, before, after, spans, strict=True)])
    counts = []
    for n, b, a, span, s in zip(sizes, before, after, spans, stride, strict=True):
        steps = n + b + a - span
        count = (-(-steps // s) if call.attribute("ceil_mode") else steps // s) + 1
        counts.append(count - 1 if call.attribute("ceil_mode") and (count - 1) * s >= n + b else count)
    if min(counts) < 1:
        raise call.refusal(f"windows of {kernel} do not fit into shape {call.x.shape}")
    return Windows(kernel, stride, dilation, before, after, tuple(counts))


def _constant_weights(call: Call) -> None:
    if any(v is not None and v.active for v in call.operands[1:]):
        raise call.refusal("a product of two activations is not piecewise linear", "constant weights")


def conv(call: Call) -> Rule:
    _constant_weights(call)
    weight, bias, groups = call[1], call.get(2), call.attribute("group", 1)
    w, function = windows_of(call, weight.shape[2:]), CONVOLUTIONS[call.x.rank - 2]

    def convolve(lead: int, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        if not w.symmetric:
            x = F.pad(x, w.pairs())
        return function(x, weight, bias, w.stride, w.before if w.symmetric else 0, w.dilation, groups)

    return Rule(convolve, [call.x, weight, *([bias] if bias else [])], ROWS)


def conv_transpose(call: Call) -> Rule:
    """The transpose of a convolution: entry i of x adds its multiple of the kernel at s i - padding."""
    _constant_weights(call)
    weight, bias, groups = call[1], call.get(2), call.attribute("group", 1)
    kernel, rank = weight.shape[2:], call.x.rank - 2
    if rank not in TRANSPOSED:
        raise call.refusal(f"acts on shape {call.x.shape}", "one, two or three axes after the channels")
    stride, dilation = (tuple(call.whole(name) or [1] * rank) for name in ("strides", "dilations"))
    extra = tuple(call.whole("output_padding") or [0] * rank)
    pads = call.whole("pads") or [0] * 2 * rank
    before, after = pads[:rank], pads[rank:]
    how, wanted = call.attribute("auto_pad", "NOTSET"), call.whole("output_shape")
    if wanted is not None:
        wanted = wanted[-rank:]
    elif how in ("SAME_UPPER", "SAME_LOWER"):
        wanted = [n * s for n, s in zip(call.x.shape[2:], stride, strict=True)]
    elif how == "VALID":
        before = after = [0] * rank
    full = [
        s * (n - 1) + o + (k - 1) * d + 1
        for s, n, o, k, d in zip(stride, call.x.shape[2:], extra, kernel, dilation, strict=True)
    ]
    if wanted is not None:
        totals = [max(n - m, 0) for n, m in zip(full, wanted, strict=True)]
        less, more = [t // 2 for t in totals], [t - t // 2 for t in totals]
        before, after = (less, more) if how == "SAME_UPPER" else (more, less)
    call.bounded([*call.x.shape[:1], weight.shape[1] * groups, *full])
    inside = before == after and min(before) >= 0
    function = TRANSPOSED[rank]

    def convolve(lead: int, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        padding = tuple(before) if inside else 0
        y = function(x, weight, bias, stride, padding, extra, groups, dilation)
        return y if inside else F.pad(y, [-n for pair in zip(before[::-1], after[::-1], strict=True) for n in pair])

    return Rule(convolve, [call.x, weight, *([bias] if bias else [])], ROWS)


def max_pool(call: Call) -> Rule:
    w, function = windows_of(call), MAXIMA[call.x.rank - 2]
    sizes = call.x.shape[2:]
    after = w.reach(sizes)
    simple = w.before == after and all(0 <= 2 * b <= k for b, k in zip(w.before, w.kernel, strict=True))

    def pool(lead: int, x: Tensor) -> Tensor:
        if not simple:
            x = F.pad(x, w.pairs(after), value=-math.inf)
        y = function(x, w.kernel, w.stride, w.before if simple else 0, w.dilation)
        return _first(y, w.counts)

    return Rule(pool, [call.x], ROWS)


def average_pool(call: Call) -> Rule:
    """The mean over windows; the padding counts if count_include_pad, what ceil_mode adds behind it never does."""
    w, include = windows_of(call), bool(call.attribute("count_include_pad"))
    rank, channels, sizes = call.x.rank - 2, call.x.shape[1], call.x.shape[2:]
    after = w.reach(sizes)
    inside = w.before == after and all(0 <= 2 * b <= k for b, k in zip(w.before, w.kernel, strict=True))
    if inside and (after == w.after or not include) and w.dilation == (1,) * rank:
        function = AVERAGES[rank]
        return Rule(
            lambda lead, x: _first(function(x, w.kernel, w.stride, w.before, False, include), w.counts), [call.x], ROWS
        )
    counted = torch.ones(1, 1, *sizes, dtype=torch.float64)
    if include:
        counted = F.pad(counted, w.pairs(), value=1.0)
        behind = tuple(a - b for a, b in zip(after, w.after, strict=True))
        counted = F.pad(counted, [n for pair in zip((0,) * rank, behind[::-1], strict=True) for n in pair])
    else:
        counted = F.pad(counted, w.pairs(after))
    kernel = torch.ones(1, 1, *w.kernel, dtype=torch.float64)
    function = CONVOLUTIONS[rank]
    count = _first(function(counted, kernel, None, w.stride, 0, w.dilation), w.counts)
    weight = constant(kernel.expand(channels, *kernel.shape[1:]).clone())

    def average(lead: int, x: Tensor, weight: Tensor, share: Tensor) -> Tensor:
        sums = function(F.pad(x, w.pairs(after)), weight, None, w.stride, 0, w.dilation, channels)
        return _first(sums, w.counts) * share

    return Rule(average, [call.x, weight, constant(1 / count)], ROWS)


def _first(y: Tensor, counts: tuple[int, ...]) -> Tensor:
    """The windows that are counted: torch may find room for more."""
    if tuple(y.shape[2:]) == counts:
        return y
    for axis, n in enumerate(counts, 2):
        y = y.narrow(axis, 0, n)
    return y


# -- interpolation: along every axis a choice of entries, or one matrix ------------------------------------------


def upsample(call: Call) -> Rule:
    """Upsample is Resize of version 10."""
    scales = call.numbers("scales", 1)
    if call.version < 7:
        scales = [1.0, 1.0, call.attribute("height_scale"), call.attribute("width_scale")]
    return _resized(call, scales, None, "asymmetric", "floor")


def resize(call: Call) -> Rule:
    if call.version < 11:
        return _resized(call, call.numbers("scales", 1), None, "asymmetric", "floor")
    if call.attribute("antialias") or call.attribute("keep_aspect_ratio_policy", "stretch") != "stretch":
        raise call.refusal("antialias, or keep_aspect_ratio_policy", "antialias 0 and 'stretch'")
    scales, sizes = call.numbers("scales", 2), call.whole("sizes", 3)
    places = call.attribute("coordinate_transformation_mode", "half_pixel")
    return _resized(call, scales or None, sizes, places, call.attribute("nearest_mode", "round_prefer_floor"))


def _resized(call: Call, scales: list[float] | None, sizes: list[int] | None, places: str, nearest: str) -> Rule:
    axes = [call.axis(a) for a in call.whole("axes") or range(call.x.rank)]
    if scales is None and sizes is None:
        raise call.refusal("has neither scales nor sizes")
    mode = call.attribute("mode", "nearest")
    if mode not in ("nearest", "linear", "bilinear", "cubic"):
        raise call.refusal(f"mode {mode!r}", "'nearest', 'linear' or 'cubic'")
    choices: list[tuple[int, bool]] = []  # axis, whether it is a choice of entries
    operands = [call.x]
    new = [*call.x.shape]
    for position, axis in enumerate(axes):
        n = call.x.shape[axis]
        count = sizes[position] if sizes else math.floor(n * scales[position])  # type: ignore[index]
        scale = count / n if sizes else scales[position]  # type: ignore[index]
        if scale == 1 and count == n:
            continue
        new[axis] = count
        call.bounded(new)
        if mode != "nearest":
            call.bounded((count, n))
        if mode == "nearest":
            operands.append(constant(_nearest(call, n, count, scale, places, nearest)))
        else:
            x = _source(call, n, count, scale, places).double()
            matrix = _linear(x, n) if mode != "cubic" else _cubic(call, x, n)
            operands.append(constant(matrix))
        choices.append((axis, mode == "nearest"))

    def interpolate(lead: int, x: Tensor, *along_axes: Tensor) -> Tensor:
        for (axis, choice), operand in zip(choices, along_axes, strict=True):
            d = axis + lead
            if choice:
                x = x.index_select(d, operand)
            elif d == x.ndim - 1:
                x = F.linear(x, operand)
            elif d == x.ndim - 2:
                x = operand @ x
            else:
                x = F.linear(x.movedim(d, -1), operand).movedim(-1, d)
        return x

    return along(call, interpolate, operands, [axis for axis, _ in choices])


def _source(call: Call, n: int, count: int, scale: float, places: str) -> Tensor:
    """Where in the source entry i of the result lies, in the rounding of ONNX: float32."""
    i, one = torch.arange(count, dtype=torch.float32), torch.tensor(scale, dtype=torch.float32)
    if places == "half_pixel":
        return (i + 0.5) / one - 0.5
    if places == "pytorch_half_pixel":
        return (i + 0.5) / one - 0.5 if count > 1 else torch.zeros(count)
    if places == "align_corners":
        return i * (n - 1) / (count - 1) if count > 1 else torch.zeros(count)
    if places == "asymmetric":
        return i / one
    if places == "tf_half_pixel_for_nn":
        return (i + 0.5) / one
    if places == "half_pixel_symmetric":
        return n / 2 * (1 - count / (n * scale)) + (i + 0.5) / one - 0.5
    raise call.refusal(f"coordinate_transformation_mode {places!r}", "half_pixel, asymmetric or align_corners")


def _nearest(call: Call, n: int, count: int, scale: float, places: str, nearest: str) -> Tensor:
    x = _source(call, n, count, scale, places)
    rounded = {
        "round_prefer_floor": torch.ceil(x - 0.5),
        "round_prefer_ceil": torch.floor(x + 0.5),
        "floor": torch.floor(x),
        "ceil": torch.ceil(x),
    }
    return rounded[nearest].long().clamp(0, n - 1)


def _linear(x: Tensor, n: int) -> Tensor:
    """Row i: the two entries next to x_i, by distance."""
    x = x.clamp(0, n - 1)
    left = x.floor().long().clamp(max=max(n - 2, 0))
    matrix, row = torch.zeros(len(x), n, dtype=torch.float64), torch.arange(len(x))
    matrix[row, left] += 1 - (x - left)
    matrix[row, (left + 1).clamp(max=n - 1)] += x - left
    return matrix


def _cubic(call: Call, x: Tensor, n: int) -> Tensor:
    """Row i: the four entries next to x_i, by Keys' cubic kernel; outside of the source its last entry stands."""
    a = call.attribute("cubic_coeff_a", -0.75)
    left, row = x.floor().long(), torch.arange(len(x))
    matrix = torch.zeros(len(x), n, dtype=torch.float64)
    for offset in (-1, 0, 1, 2):
        t = (x - (left + offset)).abs()
        near = ((a + 2) * t - (a + 3)) * t * t + 1
        far = ((a * t - 5 * a) * t + 8 * a) * t - 4 * a
        weight, place = torch.where(t <= 1, near, far), left + offset
        if call.attribute("exclude_outside"):
            weight = torch.where((place < 0) | (place >= n), 0.0, weight)
        matrix.index_put_((row, place.clamp(0, n - 1)), weight, accumulate=True)
    return matrix / matrix.sum(1, keepdim=True) if call.attribute("exclude_outside") else matrix
