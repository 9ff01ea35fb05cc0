"""Random modules made of every operation in the table of rules, for hypothesis, with bounds on rounding errors.

Half of the modules are whole: their weights and inputs are small whole numbers and every division is by a power of 2.
test_compiler_random.py says what its bounds rest on.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor, nn

from skipform.measure.program import Program

FUNCTIONS = 5  # in a module
A = torch.ops.aten
SIZES = (1, 2, 3, 4, 5, 7, 8, 9, 16)  # 2 and 3: the compiler's batches; 3, 4: runs of indices; 8: entries of a key
SMALL = 128  # entries of a sample up to which an operation may enlarge it


@dataclass(frozen=True)
class Weight:
    """A stored tensor and the view of it that a step reads."""

    stored: int
    view: Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Step:
    """function(*sources, *weights). gain: g of the docstring, relative to the sources. bits: by how many binary digits
    whole numbers become finer, None where they leave the binary fractions."""

    function: Callable[..., Tensor]
    sources: tuple[int, ...] = ()
    weights: tuple[Weight, ...] = ()
    gain: float = 1.0
    bits: int | None = 0
    rule: str = ""


@dataclass
class Drawing:
    """A module while it is drawn: stored tensors by kind, and the values that steps have produced so far, by sizes with
    -1 for the batch."""

    draw: Callable[..., Any]
    whole: bool
    kinds: list[str] = field(default_factory=list)
    stored: list[Tensor] = field(default_factory=list)
    sizes: list[tuple[int, ...]] = field(default_factory=list)

    def integer(self, low: int, high: int) -> int:
        return self.draw(st.integers(low, high))

    def choice(self, *options: Any) -> Any:
        return self.draw(st.sampled_from(options))

    def number(self) -> float:
        return self.choice(-2.0, -1.0, 0.5, 2.0, 3.0) if self.whole else self.choice(-1.7, -0.3, 0.2, 0.9, 2.3)

    def dim(self, sizes: tuple[int, ...]) -> int:
        """Any dimension but the batch, counted from either end."""
        d = self.choice(*(d for d, n in enumerate(sizes) if n != -1))
        return self.choice(d, d - len(sizes))

    def dims(self, sizes: tuple[int, ...]) -> tuple[int, ...]:
        first = self.dim(sizes) % len(sizes)
        return tuple(d for d, n in enumerate(sizes) if n != -1 and (d == first or self.draw(st.booleans())))

    def _values(self, *shape: int) -> Tensor:
        generator = torch.Generator().manual_seed(self.integer(0, 10**6))
        if not self.whole:
            return torch.randn(shape, generator=generator, dtype=torch.float32).double()
        sign = torch.randint(-1, 2, shape, generator=generator)
        return (sign * (torch.rand(shape, generator=generator) < 0.6)).double()

    def store(self, value: Tensor, kind: str | None = None) -> int:
        self.kinds.append(kind or self.choice("parameter", "buffer", "constant"))
        self.stored.append(value)
        return len(self.stored) - 1

    def weight(self, *shape: int) -> Weight:
        """Numbers of that shape: a stored tensor or a view of one, new, tied to an earlier one, or an earlier one with
        its last entry changed (constants are identified by their content)."""
        views: list[tuple[tuple[int, ...], Callable[[Tensor], Tensor]]] = [(shape, lambda w: w)] * 3
        rank = len(shape)
        if rank:
            d = self.integer(0, rank - 1)
            n = shape[d]
            views += [
                (shape[::-1], lambda w: w.permute(*range(w.ndim)[::-1])),
                ((*shape[:d], n + 2, *shape[d + 1 :]), lambda w: w.narrow(d, 1, n)),
                ((*shape[:-1], 2 * shape[-1]), lambda w: w[..., 1::2]),
                (shape, lambda w: w.flip(d)),
                ((*shape[:d], 1, *shape[d + 1 :]), lambda w: w.expand(shape)),
                ((math.prod(shape),), lambda w: w.reshape(shape)),
                ((2, *shape), lambda w: w[1]),
                ((*shape, 1), lambda w: w.squeeze(-1)),
                (shape, lambda w: 2 * w),
            ]
        size, view = self.choice(*views)
        alike = [i for i, w in enumerate(self.stored) if w.shape == size and w.is_floating_point()]
        origin = self.choice("new", "new", "tied", "twin") if alike else "new"
        if origin == "tied":
            return Weight(self.choice(*alike), view)
        value = self.stored[alike[-1]].clone() if origin == "twin" else self._values(*size)
        if origin == "twin":
            value.view(-1)[-1] += 1
        return Weight(self.store(value), view)

    def index(self, n: int, *shape: int) -> Weight:
        """Whole numbers from 0 to n - 1."""
        generator = torch.Generator().manual_seed(self.integer(0, 10**6))
        return Weight(self.store(torch.randint(n, shape, generator=generator), "buffer"), lambda w: w)

    def value(self, weight: Weight) -> Tensor:
        return weight.view(self.stored[weight.stored])

    def other(self, sizes: tuple[int, ...]) -> int:
        """A tensor of the same sizes, drawn before."""
        return self.choice(*(i for i, s in enumerate(self.sizes) if s == sizes))


@dataclass
class Drawn(nn.Module):
    """Functions of the inputs, each a list of steps over the inputs and its own earlier results; forward returns the
    last result of each, and the results that `also` names."""

    def __init__(
        self,
        drawing: Drawing,
        functions: list[list[Step]],
        dtype: torch.dtype,
        also: tuple[tuple[int, int], ...] = (),
        inputs: int = 1,
    ):
        super().__init__()
        self.functions, self.also, self.inputs = functions, also, inputs
        for i, (kind, value) in enumerate(zip(drawing.kinds, drawing.stored, strict=True)):
            value = value.to(dtype) if value.is_floating_point() else value.clone()
            if kind == "parameter":
                self.register_parameter(f"w{i}", nn.Parameter(value))
            elif kind == "buffer":
                self.register_buffer(f"w{i}", value)
            else:
                setattr(self, f"w{i}", value)  # a plain attribute: export lifts it as a constant
        self.eval()

    def __hash__(self):
        return id(self)

    def results(self, function: list[Step], inputs: tuple[Tensor, ...]) -> list[Tensor]:
        values = [*inputs]
        for step in function:
            weights = [w.view(getattr(self, f"w{w.stored}")) for w in step.weights]
            values.append(step.function(*(values[i] for i in step.sources), *weights))
        return values

    def forward(self, *inputs: Tensor):
        every = [self.results(function, inputs) for function in self.functions]
        last = [values[-1] for values in every]
        if len(last) == 1 and not self.also:
            return last[0]
        return {"last": last, "also": tuple(every[f][i] for f, i in self.also)}

    def bounds(self, inputs: tuple[Tensor, ...], unit: float, whole: bool) -> list[float]:
        """Of each output, the largest difference of two evaluations; 0 where all numbers are exact."""
        maxima = []
        for function in self.functions:
            values = self.results(function, inputs)
            errors = [0.0] * len(inputs)
            exact = [0.0 if whole else None] * len(inputs)
            for step, y in zip(function, values[len(inputs) :], strict=True):
                sources = [values[i] for i in step.sources]
                before = max(float(x.abs().max()) for x in sources)
                after = float(y.abs().max())
                weights = [getattr(self, f"w{w.stored}") for w in step.weights]
                terms = max(math.prod(t.shape) for t in (*sources, y, *weights))
                largest = 2 * step.gain * before + after
                errors.append(step.gain * max(errors[i] for i in step.sources) + (terms + 8) * unit * largest)
                fine = [exact[i] for i in step.sources]
                known = step.bits is not None and None not in fine
                exact.append(
                    max(fine) + step.bits if known and largest * 2 ** (max(fine) + step.bits) < 1 / unit else None
                )
            maxima.append([0.0 if e is not None else 2 * b for e, b in zip(exact, errors, strict=True)])
        return [f[-1] for f in maxima] + [maxima[f][i] for f, i in self.also]


# -- one generator for every operation in the table --------------------------------------------------------------
# A generator takes the drawing and the number of the tensor to act on, whose sizes fit its need: "any" tensor, one with
# "inner" dimensions besides the batch, or a number of dimensions after the batch, which comes first.

Generator = Callable[[Drawing, int], Step]
GENERATORS: dict[str, tuple[str | int, Generator]] = {}


def operations(need: str | int, **table: Generator) -> None:
    GENERATORS.update({name: (need, generator) for name, generator in table.items()})


def simple(function: Callable[..., Tensor], gain: float = 1.0, bits: int | None = 0) -> Generator:
    """An operation without arguments."""
    return lambda d, i: Step(function, (i,), gain=gain, bits=bits)


def total(w: Tensor, *dims: int) -> float:
    """The largest sum of absolute values along dims."""
    return max(1.0, float(w.abs().sum(dims).max())) if w.numel() else 1.0


def like(d: Drawing, sizes: tuple[int, ...]) -> Weight:
    """A constant that broadcasts to sizes."""
    first = d.integer(0, len(sizes))
    return d.weight(*(1 if n == -1 or d.draw(st.booleans()) else n for n in sizes[first:]))


def with_number(make: Callable[..., Callable[[Tensor], Tensor]], gain: Callable[[float], float] = abs, bits: int = 1):
    def generator(d: Drawing, i: int) -> Step:
        c = d.number()
        return Step(make(c), (i,), gain=max(1.0, gain(c)), bits=bits)

    return generator


def sum_of_two(function: Callable[..., Tensor]) -> Generator:
    """x + alpha y for a tensor, constant or number y."""

    def generator(d: Drawing, i: int) -> Step:
        kind, alpha = d.choice("tensor", "constant", "number", "column"), d.choice(1, 2, -3)
        c = d.number()
        if kind == "tensor":
            return Step(lambda x, y: function(x, y, alpha=alpha), (i, d.other(d.sizes[i])), gain=4)
        if kind == "constant":
            swap = d.draw(st.booleans())
            w = like(d, d.sizes[i])
            return Step(lambda x, w: function(*((w, x) if swap else (x, w)), alpha=alpha), (i,), (w,), gain=4)
        if kind == "column":
            return Step(lambda x: function(x, x.narrow(-1, 0, 1) if x.ndim > 1 else x, alpha=alpha), (i,), gain=4)
        return Step(lambda x: function(x, c, alpha=alpha), (i,), gain=4, bits=1)

    return generator


def product(function: Callable[..., Tensor]) -> Generator:
    def generator(d: Drawing, i: int) -> Step:
        w, c, by_number = like(d, d.sizes[i]), d.number(), d.draw(st.booleans())
        if by_number:
            return Step(lambda x: function(x, c), (i,), gain=max(1, abs(c)), bits=1)
        swap = d.draw(st.booleans())
        return Step(lambda x, w: function(w, x) if swap else function(x, w), (i,), (w,), total(d.value(w)))

    return generator


def quotient(function: Callable[..., Tensor]) -> Generator:
    def generator(d: Drawing, i: int) -> Step:
        w, c = like(d, d.sizes[i]), d.choice(-2.0, 0.5, 4.0, 3.0)
        if d.draw(st.booleans()):
            return Step(lambda x: function(x, c), (i,), gain=2, bits=None if c == 3 else 2)
        # divisors from 1 to 2: 2^[w > 0]
        return Step(lambda x, w: function(x, 1 + (w > 0)), (i,), (w,), bits=1)

    return generator


def extreme_of_two(function: Callable[..., Tensor]) -> Generator:
    def generator(d: Drawing, i: int) -> Step:
        if d.draw(st.booleans()):
            return Step(function, (i, d.other(d.sizes[i])))
        swap = d.draw(st.booleans())
        return Step(lambda x, w: function(*((w, x) if swap else (x, w))), (i,), (like(d, d.sizes[i]),))

    return generator


def extreme(function: Callable[..., Any]) -> Generator:
    """max and min, of two tensors or along a dimension."""

    def generator(d: Drawing, i: int) -> Step:
        if d.draw(st.booleans()):
            return extreme_of_two(function)(d, i)
        dim, keep = d.dim(d.sizes[i]), d.draw(st.booleans())
        return Step(lambda x: function(x, dim, keep)[0], (i,))

    return generator


def clamping(function: Callable[..., Tensor]) -> Generator:
    def generator(d: Drawing, i: int) -> Step:
        kind = d.choice("both", "crossed", "low", "high", "constants", "tensors")
        if kind == "constants":
            return Step(lambda x, w: function(x, w - 1, w + 1), (i,), (like(d, d.sizes[i]),), gain=3)
        if kind == "tensors":
            return Step(lambda x, y: function(x, -y, 2 * y), (i, d.other(d.sizes[i])), gain=4)
        low, high = {"both": (-1.0, 2.0), "crossed": (1.0, -2.0), "low": (-0.5, None), "high": (None, 1.5)}[kind]
        return Step(lambda x: function(x, low, high), (i,), gain=3, bits=1)

    return generator


def slope_of_channels(d: Drawing, i: int) -> Step:
    sizes = d.sizes[i]
    channels = 1 if len(sizes) < 2 or sizes[1] == -1 or d.draw(st.booleans()) else sizes[1]
    w = d.weight(channels)
    return Step(A.prelu.default, (i,), (w,), gain=2 + total(d.value(w)))


def slopes(d: Drawing, i: int) -> Step:
    w = like(d, d.sizes[i])
    return Step(
        lambda x, w: A._prelu_kernel(x, w.expand_as(x) if w.ndim > x.ndim else w), (i,), (w,), 2 + total(d.value(w))
    )


def masked(d: Drawing, i: int) -> Step:
    w, c = like(d, d.sizes[i]), d.number()
    return Step(lambda x, w: x.masked_fill(w > 0, c), (i,), (w,), bits=1)


def chosen(d: Drawing, i: int) -> Step:
    w, c = like(d, d.sizes[i]), d.number()
    kind = d.choice("number", "tensor", "constant")
    if kind == "number":
        return Step(lambda x, w: torch.where(w > 0, x, c), (i,), (w,), bits=1)
    if kind == "tensor":
        return Step(lambda x, y, w: torch.where(w > 0, x, y), (i, d.other(d.sizes[i])), (w,))
    return Step(lambda x, w, v: torch.where(w > 0, v, x), (i,), (w, like(d, d.sizes[i])))


def axes(d: Drawing, i: int) -> tuple[int, int]:
    last = len(d.sizes[i]) - 1
    return d.integer(0, last), d.integer(-last - 1, last)


def of_axes(function: Callable[..., Tensor]) -> Generator:
    def generator(d: Drawing, i: int) -> Step:
        a, b = axes(d, i)
        return Step(lambda x: function(x, a, b), (i,))

    return generator


operations(
    "any",
    add=sum_of_two(torch.add),
    sub=sum_of_two(torch.sub),
    rsub=sum_of_two(torch.rsub),
    neg=simple(torch.neg),
    mul=product(torch.mul),
    div=quotient(torch.div),
    true_divide=quotient(torch.true_divide),
    where=chosen,
    masked_fill=masked,
    relu=simple(torch.relu),
    relu6=simple(A.relu6.default),
    hardtanh=simple(lambda x: F.hardtanh(x, -0.5, 1.5), gain=3, bits=1),
    clamp=clamping(torch.clamp),
    clip=clamping(torch.clip),
    clamp_min=with_number(lambda c: lambda x: A.clamp_min(x, c), lambda c: 3.0),
    clamp_max=with_number(lambda c: lambda x: A.clamp_max(x, c), lambda c: 3.0),
    leaky_relu=with_number(lambda c: lambda x: F.leaky_relu(x, c), lambda c: 1 + 2 * abs(c)),
    prelu=slope_of_channels,
    _prelu_kernel=slopes,
    rrelu=simple(lambda x: F.rrelu(x, 0.25, 0.75), gain=2, bits=1),
    abs=simple(torch.abs, gain=3),
    absolute=simple(torch.absolute, gain=3),
    threshold=with_number(lambda c: lambda x: F.threshold(x, c, c), lambda c: 3.0),
    softshrink=simple(lambda x: F.softshrink(x, 0.5), gain=2, bits=1),
    hardsigmoid=simple(F.hardsigmoid, bits=None),
    maximum=extreme_of_two(torch.maximum),
    minimum=extreme_of_two(torch.minimum),
    fmax=extreme_of_two(torch.fmax),
    fmin=extreme_of_two(torch.fmin),
    clone=simple(torch.clone),
    contiguous=simple(A.contiguous.default),
    positive=simple(A.positive.default),
    nan_to_num=simple(torch.nan_to_num),
    pow=simple(lambda x: x**1),
    to=simple(lambda x: x.to(x.dtype, copy=True)),
    _to_copy=simple(lambda x: A._to_copy(x, dtype=x.dtype)),
    detach=simple(torch.detach),
    alias=simple(A.alias.default),
    lift_fresh_copy=simple(A.lift_fresh_copy.default),
    type_as=simple(lambda x: x.type_as(x)),
    dropout=simple(lambda x: F.dropout(x, 0.5, False)),
    feature_dropout=simple(lambda x: A.feature_dropout(x, 0.5, False)),
    alpha_dropout=simple(lambda x: F.alpha_dropout(x, 0.5, False)),
    feature_alpha_dropout=simple(lambda x: A.feature_alpha_dropout(x, 0.5, False)),
    zeros_like=simple(lambda x: x + torch.zeros_like(x)),
    ones_like=simple(lambda x: x - torch.ones_like(x), gain=2),
    full_like=with_number(lambda c: lambda x: torch.full_like(x, c) - x, lambda c: 2.0),
    empty_like=with_number(lambda c: lambda x: x + A.fill.Scalar(torch.empty_like(x), c), lambda c: 2.0),
    new_zeros=simple(lambda x: torch.maximum(x, x.new_zeros(x.shape))),
    new_ones=simple(lambda x: torch.minimum(x.new_ones(x.shape), x)),
    new_full=with_number(lambda c: lambda x: x + x.new_full(x.shape, c), lambda c: 2.0),
    new_empty=with_number(lambda c: lambda x: x + A.fill.Scalar(x.new_empty(x.shape), c), lambda c: 2.0),
    fill=with_number(lambda c: lambda x: x - A.fill.Scalar(x, c), lambda c: 2.0),
    copy=lambda d, i: (
        Step(lambda x, y: A.copy(x, y) + x, (i, d.other(d.sizes[i])), gain=2)
        if d.draw(st.booleans())
        else Step(lambda x, w: A.copy(x, w) + x, (i,), (like(d, d.sizes[i]),), gain=2)
    ),
    unsqueeze=lambda d, i: (lambda at: Step(lambda x: x.unsqueeze(at), (i,)))(d.integer(-1, len(d.sizes[i]))),
    squeeze=lambda d, i: (lambda at: Step(lambda x: x.unsqueeze(at).squeeze(at), (i,)))(d.integer(0, len(d.sizes[i]))),
    expand=lambda d, i: (lambda n: Step(lambda x: x.expand(n, *[-1] * x.ndim).movedim(0, -1), (i,)))(d.integer(1, 3)),
    broadcast_to=lambda d, i: Step(lambda x: A.broadcast_to(x, (2, *x.shape)).movedim(0, -1), (i,)),
    expand_as=lambda d, i: Step(lambda x: x.unsqueeze(-1).expand_as(torch.stack((x, x), -1)), (i,)),
    reshape=lambda d, i: Step(lambda x: x.unsqueeze(-1).reshape(x.shape), (i,)),
    view_as=lambda d, i: Step(lambda x: torch.relu(x).flatten(x.ndim - 1).view_as(x), (i,)),
    reshape_as=lambda d, i: Step(lambda x: x.unsqueeze(-1).reshape_as(x), (i,)),
    view=lambda d, i: Step(lambda x: x.contiguous().view((*x.shape, 1)), (i,)),
    _unsafe_view=lambda d, i: Step(lambda x: A._unsafe_view(x.contiguous(), [*x.shape, 1]), (i,)),
    permute=lambda d, i: (lambda order: Step(lambda x: x.permute(order), (i,)))(
        d.draw(st.permutations(range(len(d.sizes[i]))))
    ),
    transpose=of_axes(torch.transpose),
    swapaxes=of_axes(A.swapaxes.default),
    swapdims=of_axes(A.swapdims.default),
    movedim=of_axes(torch.movedim),
    moveaxis=of_axes(A.moveaxis.int),
)


def size(d: Drawing, i: int, dim: int) -> int:
    return d.sizes[i][dim]


def entries(d: Drawing, i: int) -> int:
    return abs(math.prod(d.sizes[i]))


def along(make: Callable[[Drawing, int, int], Any], gain: Callable[[int], float] = lambda n: 1.0, bits: int | None = 0):
    """An operation along one dimension: make(drawing, dim, its size) -> function."""

    def generator(d: Drawing, i: int) -> Step:
        dim = d.dim(d.sizes[i])
        n = size(d, i, dim)
        return Step(make(d, dim, n), (i,), gain=gain(n), bits=bits)

    return generator


def reduced(function: Callable[..., Tensor], gain: bool = False, bits: bool = False) -> Generator:
    """A reduction over some dimensions; bits: a division by their sizes."""

    def generator(d: Drawing, i: int) -> Step:
        dims, keep = d.dims(d.sizes[i]), d.draw(st.booleans())
        n = math.prod(d.sizes[i][dim] for dim in dims)
        fine = (n - 1).bit_length() if n & (n - 1) == 0 else None
        return Step(lambda x: function(x, dims, keep), (i,), gain=3 * n if gain else 1, bits=fine if bits else 0)

    return generator


def in_range(d: Drawing, dim: int, n: int) -> tuple[int, int]:
    start = d.integer(0, n - 1)
    return start, d.integer(start + 1, n)


def sliced(d: Drawing, dim: int, n: int) -> Callable[[Tensor], Tensor]:
    (start, stop), step = in_range(d, dim, n), d.integer(1, 3)
    return lambda x: A.slice.Tensor(x, dim, start, stop, step)


def narrowed(d: Drawing, dim: int, n: int) -> Callable[[Tensor], Tensor]:
    start, stop = in_range(d, dim, n)
    return lambda x: x.narrow(dim, start, stop - start)


def selected(d: Drawing, dim: int, n: int) -> Callable[[Tensor], Tensor]:
    index = d.integer(-n, n - 1)
    return lambda x: x.select(dim, index)


def rejoined(split: Callable[..., Any]) -> Callable[[Drawing, int, int], Callable[[Tensor], Tensor]]:
    """The pieces of a split in reverse."""

    def make(d: Drawing, dim: int, n: int) -> Callable[[Tensor], Tensor]:
        k = d.integer(1, n)
        return lambda x: torch.cat(list(split(x, k, n, dim))[::-1], dim)

    return make


def indexed(
    function: Callable[[Tensor, int, Tensor], Tensor], *, whole_shape: bool = False, gain: float = 1.0
) -> Generator:
    """An operation with constant indices along a dimension; of the shape of the tensor, one row for all samples, or
    one-dimensional."""

    def generator(d: Drawing, i: int) -> Step:
        sizes = d.sizes[i]
        dim = d.dim(sizes)
        n, count = sizes[dim], d.choice(1, 2, 3, 4, 5)
        if not whole_shape:
            w = d.index(n, count)
            return Step(lambda x, w: function(x, dim, w), (i,), (w,), gain=gain)
        shape = [1 if m == -1 else m for m in sizes]
        shape[dim] = count
        batch = sizes.index(-1)
        w = d.index(n, *shape)
        return Step(
            lambda x, w: function(
                x, dim, w.expand(*(x.shape[0 + batch] if k == batch else m for k, m in enumerate(w.shape)))
            ),
            (i,),
            (w,),
            gain=gain,
        )

    return generator


def scattered(function: Callable[..., Tensor]) -> Generator:
    """select_scatter: an entry along dim, replaced by a constant or by the first entry doubled."""

    def generator(d: Drawing, i: int) -> Step:
        dim = d.dim(d.sizes[i])
        n = size(d, i, dim)
        index = d.integer(0, n - 1)
        return Step(lambda x: function(x, 2 * x.select(dim, 0), dim, index), (i,), gain=3)

    return generator


def slices_scattered(d: Drawing, i: int) -> Step:
    dim = d.dim(d.sizes[i])
    start, stop = in_range(d, dim, size(d, i, dim))
    return Step(lambda x: torch.slice_scatter(x, -x.narrow(dim, start, stop - start), dim, start, stop), (i,), gain=2)


def vector_norm(function: Callable[..., Tensor]) -> Generator:
    def generator(d: Drawing, i: int) -> Step:
        dims, order = d.dims(d.sizes[i]), d.choice(1, math.inf)
        n = math.prod(d.sizes[i][dim] for dim in dims)
        return Step(lambda x: function(x, order, dims), (i,), gain=3 * n)

    return generator


def joined(function: Callable[..., Tensor]) -> Generator:
    def generator(d: Drawing, i: int) -> Step:
        dim, sizes = d.dim(d.sizes[i]), d.sizes[i]
        kind = d.choice("itself", "other", "constant")
        if kind == "other":
            return Step(lambda x, y: function([y, x], dim), (i, d.other(sizes)))
        if kind == "itself":
            return Step(lambda x: function([x, -x, x], dim), (i,))
        w = d.weight(*(1 if n == -1 else n for n in sizes))
        batch = sizes.index(-1)
        return Step(
            lambda x, w: function(
                [w.expand(*(x.shape[k] if k == batch else n for k, n in enumerate(w.shape))), x], dim
            ),
            (i,),
            (w,),
        )

    return generator


operations(
    "inner",
    mean=reduced(torch.mean, bits=True),
    sum=reduced(torch.sum, gain=True),
    amax=reduced(torch.amax),
    amin=reduced(torch.amin),
    nanmean=reduced(torch.nanmean, bits=True),
    nansum=reduced(torch.nansum, gain=True),
    linalg_vector_norm=vector_norm(torch.linalg.vector_norm),
    norm=vector_norm(lambda x, order, dims: A.norm.ScalarOpt_dim(x, order, dims)),
    cumsum=along(lambda d, dim, n: lambda x: x.cumsum(dim), float),
    max=extreme(torch.max),
    min=extreme(torch.min),
    topk=along(lambda d, dim, n: lambda x: torch.topk(x, 1, dim).values),
    cummax=along(lambda d, dim, n: lambda x: torch.cummax(x, dim).values),
    cummin=along(lambda d, dim, n: lambda x: torch.cummin(x, dim).values),
    cat=joined(torch.cat),
    concat=joined(torch.concat),
    concatenate=joined(torch.concatenate),
    stack=joined(torch.stack),
    slice=along(sliced),
    narrow=along(narrowed),
    narrow_copy=along(
        lambda d, dim, n: (lambda a: lambda x: torch.narrow_copy(x, dim, a[0], a[1] - a[0]))(in_range(d, dim, n))
    ),
    select=along(selected),
    split=along(rejoined(lambda x, k, n, dim: x.split(k, dim))),
    split_with_sizes=along(rejoined(lambda x, k, n, dim: A.split_with_sizes(x, [k, n - k], dim))),
    chunk=along(rejoined(lambda x, k, n, dim: x.chunk(k, dim))),
    tensor_split=along(rejoined(lambda x, k, n, dim: A.tensor_split.sections(x, k, dim))),
    unbind=along(lambda d, dim, n: lambda x: sum(x.unbind(dim)), float),
    index_select=indexed(lambda x, dim, w: x.index_select(dim, w)),
    index=indexed(lambda x, dim, w: x[(*[slice(None)] * (dim % x.ndim), w)]),
    _unsafe_index=indexed(lambda x, dim, w: A._unsafe_index.Tensor(x, [*[None] * (dim % x.ndim), w])),
    index_put=indexed(
        lambda x, dim, w: A.index_put(x, [*[None] * (dim % x.ndim), w[:1]], 2 * x.select(dim, 0).unsqueeze(dim))
    ),
    index_copy=indexed(lambda x, dim, w: torch.index_copy(x, dim, w[:1], -x.narrow(dim, 0, 1))),
    gather=indexed(torch.gather, whole_shape=True),
    scatter=indexed(lambda x, dim, w: x.scatter(dim, w, 2.0), whole_shape=True),
    scatter_add=indexed(lambda x, dim, w: x.scatter_add(dim, w, x.gather(dim, w)), whole_shape=True, gain=6),
    index_add=indexed(lambda x, dim, w: x.index_add(dim, w, x.index_select(dim, w)), gain=6),
    flip=along(lambda d, dim, n: lambda x: x.flip(dim)),
    roll=along(lambda d, dim, n: (lambda k: lambda x: x.roll(k, dim))(d.integer(-n, n))),
    repeat_interleave=along(lambda d, dim, n: lambda x: x.repeat_interleave(2, dim)),
    unfold=along(lambda d, dim, n: (lambda k, s: lambda x: x.unfold(dim, k, s))(d.integer(1, n), d.integer(1, 3))),
    slice_copy=along(lambda d, dim, n: (lambda a: lambda x: A.slice_copy.Tensor(x, dim, *a))(in_range(d, dim, n))),
    select_scatter=scattered(torch.select_scatter),
    slice_scatter=slices_scattered,
    repeat=along(lambda d, dim, n: lambda x: x.repeat(*(2 if k == dim % x.ndim else 1 for k in range(x.ndim)))),
    tile=along(lambda d, dim, n: lambda x: A.tile(x, [2 if k == dim % x.ndim else 1 for k in range(x.ndim)])),
    unflatten=along(lambda d, dim, n: lambda x: A.unflatten.int(x, dim, [n, 1])),
    linear=lambda d, i: linear(d, i),
)


def linear(d: Drawing, i: int) -> Step:
    """On the last dimension; where that is the batch, it is moved first."""
    sizes = d.sizes[i]
    front = sizes[-1] == -1
    n = sizes[0] if front else sizes[-1]
    w = d.weight(d.choice(1, 3, 5), n)
    gain = total(d.value(w), -1)
    if d.draw(st.booleans()):
        return Step(lambda x, w: F.linear(x.movedim(-1, 0).movedim(1, -1) if front else x, w), (i,), (w,), gain)
    b = d.weight(d.value(w).shape[0])
    return Step(lambda x, w, b: F.linear(x.movedim(-1, 0).movedim(1, -1) if front else x, w, b), (i,), (w, b), gain)


def times(make: Callable[..., tuple[tuple[int, ...], Callable[..., Tensor], tuple[int, ...]]]) -> Generator:
    """A product with a constant: make(drawing, *sizes) -> its shape, the function, the dimensions summed over."""

    def generator(d: Drawing, i: int) -> Step:
        shape, function, summed = make(d, *d.sizes[i][1:])
        w = d.weight(*shape)
        return Step(function, (i,), (w,), total(d.value(w), *summed))

    return generator


def matrix_product(d: Drawing, *sizes: int) -> Any:
    n, k = sizes
    m = d.choice(1, 2, 3, 4, 8)
    return d.choice(
        ((k, m), lambda x, w: x @ w, (0,)),
        ((m, k), lambda x, w: x @ w.T, (1,)),
        ((m, n), lambda x, w: w @ x, (1,)),
        ((k,), lambda x, w: x @ w, (0,)),
        ((n, k, m), lambda x, w: (x.unsqueeze(2) @ w).squeeze(2), (1,)),
    )


def contraction(d: Drawing, *sizes: int) -> Any:
    n, k = sizes
    return d.choice(
        ((k, 3), lambda x, w: torch.einsum("bij,jk->bik", x, w), (0,)),
        ((2, k), lambda x, w: torch.einsum("...ij,kj->...ki", x, w), (1,)),
        ((n, k, 2), lambda x, w: torch.einsum("bij,ijo->bo", x, w), (0, 1)),
        ((n, k), lambda x, w: torch.einsum("bij,ij->bij", x, w), ()),
        ((n,), lambda x, w: torch.einsum("i,bij->jb", w, x), (0,)),
    )


def added(d: Drawing, i: int, function: Callable[..., Tensor], *shape: int) -> Step:
    w, b = d.weight(*shape), d.weight(shape[-1])
    how = {"beta": d.choice(1, 0.5, 0), "alpha": d.choice(1, -2)}
    return Step(lambda x, w, b: function(b, x, w, **how), (i,), (w, b), 2 * total(d.value(w), -2), bits=1)


def normalised(function: Callable[..., Tensor]) -> Generator:
    def generator(d: Drawing, i: int) -> Step:
        mean, var, weight, bias = (d.weight(size(d, i, 1)) for _ in range(4))
        gain = total(d.value(weight)) * (1 + total(d.value(mean)))
        return Step(
            lambda x, m, v, w, b: function(x, m, v * v + 0.5, w, b), (i,), (mean, var, weight, bias), 2 * gain, None
        )

    return generator


def bilinear(d: Drawing, i: int) -> Step:
    w, v = d.weight(2, size(d, i, 1), 3), d.weight(3)
    gain = total(d.value(w), 1, 2) * total(d.value(v))
    return Step(lambda x, w, v: F.bilinear(x, v.expand(x.shape[0], -1), w), (i,), (w, v), gain)


def crossed(d: Drawing, i: int) -> Step:
    w = d.weight(3)
    return Step(
        lambda x, w: torch.linalg.cross(x.narrow(1, 0, 1) - w, w.expand(x.shape[0], -1)),
        (i,),
        (w,),
        4 * total(d.value(w)) ** 2,
    )


def attended(d: Drawing, i: int) -> Step:
    """Values (b, n, k) under constant queries and keys, whose weights are a softmax."""
    q, k = d.weight(2, 3), d.weight(size(d, i, 1), 3)
    return Step(
        lambda x, q, k: F.scaled_dot_product_attention(*(w.expand(x.shape[0], -1, -1) for w in (q, k)), x),
        (i,),
        (q, k),
        bits=None,
    )


operations(
    1,
    bilinear=bilinear,
    linalg_cross=crossed,
    numpy_T=simple(lambda x: A.numpy_T(x)),
    ravel=simple(lambda x: A.ravel(x[:, 0])),
    hsplit=simple(lambda x: torch.cat(A.hsplit.int(x, x.shape[1])[::-1], 1)),
    vsplit=simple(lambda x: torch.cat(A.vsplit.int(x.movedim(0, 1), x.shape[1])[::-1])),
    mm=times(lambda d, n: ((n, d.choice(1, 3, 5)), torch.mm, (0,))),
    mv=times(lambda d, n: ((n,), torch.mv, (0,))),
    addmm=lambda d, i: added(d, i, torch.addmm, size(d, i, 1), d.choice(1, 4)),
    t=simple(lambda x: x.t()),
    block_diag=simple(lambda x: torch.block_diag(x)),
    hstack=simple(lambda x: A.hstack([x, 2 * x]), gain=2),
    flatten=simple(lambda x: x.unsqueeze(1).flatten(1)),
)
operations(
    2,
    scaled_dot_product_attention=attended,
    inner=times(lambda d, n, k: ((d.choice(1, 3), k), torch.inner, (1,))),
    tensordot=times(lambda d, n, k: ((n, 3), lambda x, w: torch.tensordot(x, w, ([1], [0])), (0,))),
    dsplit=simple(lambda x: torch.cat(A.dsplit.int(x, x.shape[2])[::-1], 2)),
    matmul=times(matrix_product),
    einsum=times(contraction),
    bmm=times(lambda d, n, k: ((1, k, 3), lambda x, w: torch.bmm(x, w.expand(x.shape[0], -1, -1)), (1,))),
    baddbmm=lambda d, i: (
        lambda b: Step(
            lambda x, w, b: torch.baddbmm(b, x, w.expand(x.shape[0], -1, -1), beta=0.5),
            (i,),
            (d.weight(1, size(d, i, 2), 3), b),
            gain=3 * total(torch.full((size(d, i, 2), 1), 4.0), 0) + 4,
            bits=1,
        )
    )(d.weight(3)),
    fliplr=simple(torch.fliplr),
    flipud=simple(lambda x: torch.flipud(x.movedim(0, 1))),
    vstack=simple(lambda x: A.vstack([x.movedim(0, 1), 2 * x.movedim(0, 1)]), gain=2),
    dstack=simple(lambda x: A.dstack([x, -x])),
    rot90=lambda d, i: (lambda k: Step(lambda x: torch.rot90(x, k, (1, 2)), (i,)))(d.integer(1, 3)),
    tril=lambda d, i: (lambda k: Step(lambda x: x.tril(k), (i,)))(d.integer(-1, 1)),
    triu=lambda d, i: (lambda k: Step(lambda x: x.triu(k), (i,)))(d.integer(-1, 1)),
    diagonal=simple(lambda x: x.diagonal(0, 1, 2)),
    diag_embed=simple(lambda x: torch.diag_embed(x)),
    diagonal_scatter=simple(lambda x: torch.diagonal_scatter(x, 2 * x.diagonal(0, 1, 2), 0, 1, 2), gain=2),
    mT=simple(lambda x: A.mT(x)),
    mH=simple(lambda x: A.mH(x)),
    adjoint=simple(A.adjoint.default),
)


def convolved(rank: int, kind: str) -> Generator:
    function = (F.conv1d, F.conv2d, F.conv3d)[rank - 1]
    backward = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[rank - 1]

    def generator(d: Drawing, i: int) -> Step:
        _, channels, *places = d.sizes[i]
        groups = channels if d.draw(st.booleans()) and channels < 5 else 1
        kernel = [d.integer(1, min(n, 3)) for n in places]
        stride, padding, dilation = d.integer(1, 2), d.integer(0, 1), d.integer(1, 2)
        if any((n - 1) * stride + k <= 2 * padding for k, n in zip(kernel, places, strict=True)):
            padding = 0
        if any(dilation * (k - 1) + 1 > n + 2 * padding for k, n in zip(kernel, places, strict=True)):
            dilation = 1
        out = groups * d.integer(1, 2)
        transposed = kind == "transposed" or (kind == "any" and d.draw(st.booleans()))
        shape = (channels, out // groups, *kernel) if transposed else (out, channels // groups, *kernel)
        w, b = d.weight(*shape), d.weight(out)
        gain = total(d.value(w), *((0,) if transposed else (1,)), *range(2, rank + 2))

        def apply(x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
            if kind == "any":
                each = [[v] * rank for v in (stride, padding, dilation)]
                return A.convolution(x, w, b, *each, transposed, [0] * rank, groups)
            if transposed:
                return backward(x, w, b, stride, padding, 0, groups, dilation)
            return function(x, w, b, stride, padding, dilation, groups)

        return Step(apply, (i,), (w, b) if d.draw(st.booleans()) else (w,), gain)

    return generator


def pooled(rank: int, kind: str) -> Generator:
    average = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[rank - 1]
    largest = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[rank - 1]
    indices = (A.max_pool1d_with_indices, A.max_pool2d_with_indices, A.max_pool3d_with_indices)[rank - 1].default

    def generator(d: Drawing, i: int) -> Step:
        _, _, *places = d.sizes[i]
        kernel = [d.integer(1, min(n, 5)) for n in places]
        if min(places) >= 3 and d.draw(st.booleans()):
            kernel = [3] * rank  # three entries have a rule of their own
        padding = d.integer(0, min(kernel) // 2)
        stride, ceil = d.integer(1, 3), d.draw(st.booleans())
        if kind == "average":
            padded = d.draw(st.booleans())
            return Step(lambda x: average(x, kernel, stride, padding, ceil, padded), (i,), bits=None)
        dilation = d.integer(1, 2)
        if any(dilation * (k - 1) + 1 > n + 2 * padding for k, n in zip(kernel, places, strict=True)):
            dilation = 1
        every = [[v] * rank for v in (stride, padding, dilation)]

        def pool(x: Tensor) -> Tensor:
            return indices(x, kernel, *every, ceil)[0] if kind == "indices" else largest(x, kernel, *every, ceil)

        def pool_padded(x: Tensor) -> Tensor:  # as 'same' pooling pads
            return largest(F.pad(x, [1] * (2 * rank), value=-math.inf), kernel, stride, 0, 1, ceil)

        function = pool_padded if kind == "largest" and d.draw(st.booleans()) else pool
        if not bool(
            function(torch.zeros(1, 1, *places)).isfinite().all()
        ):  # a window of nothing but padding is refused
            every = [[1] * rank, [0] * rank, [1] * rank]
            function = pool
        return Step(function, (i,))

    return generator


def adaptive(function: Callable[..., Any], rank: int, *, average: bool = False) -> Generator:
    def generator(d: Drawing, i: int) -> Step:
        size = [1] * rank if d.draw(st.booleans()) else [d.integer(1, n) for n in d.sizes[i][2:]]

        def apply(x: Tensor) -> Tensor:
            y = function(x, size)
            return y[0] if isinstance(y, tuple) else y

        return Step(apply, (i,), bits=None if average else 0)

    return generator


def resized(rank: int, mode: str, **how: Any) -> Generator:
    def generator(d: Drawing, i: int) -> Step:
        sizes = [d.choice(max(1, n // 2), n, n + 1, 2 * n) for n in d.sizes[i][2:]]
        if "antialias" in how and sizes[-1] == 1:  # there torch is wrong, and the module is refused
            sizes[-1] = 2
        return Step(
            lambda x: F.interpolate(x, size=sizes, mode=mode, **how),
            (i,),
            gain=3.0 if "cubic" in mode else 1.0,
            bits=0 if "nearest" in mode else None,
        )

    return generator


def padded(rank: int, mode: str) -> Generator:
    function = getattr(A, f"{mode}_pad{rank}d").default

    def generator(d: Drawing, i: int) -> Step:
        pads = [d.integer(0, min(2, n - 1) if mode == "reflection" else 2) for n in d.sizes[i][:1:-1] for _ in "ab"]
        return Step(lambda x: function(x, pads), (i,))

    return generator


def padded_with(function: Callable[..., Tensor]) -> Generator:
    def generator(d: Drawing, i: int) -> Step:
        pads, value = [d.integer(0, 2) for _ in range(4)], d.choice(0.0, 0.0, 3.0, -1.0)
        if d.draw(st.booleans()) and min(d.sizes[i][2:]) > 1:
            pads[0] = pads[2] = -1
        return Step(lambda x: function(x, pads, value), (i,))

    return generator


def sampled(d: Drawing, i: int) -> Step:
    w, corners = d.weight(1, d.integer(1, 3), 2, 2), d.draw(st.booleans())
    mode = d.choice("bilinear", "nearest")
    return Step(
        lambda x, w: F.grid_sample(x, w.expand(x.shape[0], -1, -1, -1) * 0.37, mode, align_corners=corners),
        (i,),
        (w,),
        bits=None,
    )


for rank in (1, 2, 3):
    operations(
        rank + 1,
        **{
            f"conv{rank}d": convolved(rank, "plain"),
            f"conv_transpose{rank}d": convolved(rank, "transposed"),
            f"avg_pool{rank}d": pooled(rank, "average"),
            f"max_pool{rank}d": pooled(rank, "largest"),
            f"max_pool{rank}d_with_indices": pooled(rank, "indices"),
            f"adaptive_avg_pool{rank}d": adaptive(getattr(F, f"adaptive_avg_pool{rank}d"), rank, average=True),
            f"adaptive_max_pool{rank}d": adaptive(getattr(A, f"adaptive_max_pool{rank}d").default, rank),
            f"upsample_nearest{rank}d": resized(rank, "nearest"),
            f"_upsample_nearest_exact{rank}d": resized(rank, "nearest-exact"),
            f"reflection_pad{rank}d": padded(rank, "reflection"),
            f"replication_pad{rank}d": padded(rank, "replication"),
        },
    )
operations(
    2,
    upsample_linear1d=resized(1, "linear", align_corners=False),
    batch_norm=normalised(lambda x, m, v, w, b: F.batch_norm(x, m, v, w, b)),
    _native_batch_norm_legit_no_training=normalised(
        lambda x, m, v, w, b: A._native_batch_norm_legit_no_training(x, w, b, m, v, 0.1, 1e-5)[0]
    ),
)
operations(
    3,
    convolution=convolved(2, "any"),
    instance_norm=normalised(lambda x, m, v, w, b: F.instance_norm(x, m, v, w, b, use_input_stats=False)),
    _adaptive_avg_pool2d=adaptive(A._adaptive_avg_pool2d.default, 2, average=True),
    upsample_bilinear2d=resized(2, "bilinear", align_corners=True),
    upsample_bicubic2d=resized(2, "bicubic"),
    _upsample_bilinear2d_aa=resized(2, "bilinear", antialias=True),
    _upsample_bicubic2d_aa=resized(2, "bicubic", antialias=True),
    grid_sampler_2d=sampled,
    im2col=simple(lambda x: F.unfold(x, 1 if min(x.shape[2:]) < 2 else 2, padding=1)),
    col2im=simple(lambda x: F.fold(F.unfold(x, 1, padding=1), x.shape[2:], 1, padding=1), gain=1),
    pixel_shuffle=simple(lambda x: F.pixel_shuffle(torch.cat([x] * 4, 1), 2)),
    pixel_unshuffle=simple(lambda x: F.pixel_unshuffle(x.repeat_interleave(2, 2).repeat_interleave(2, 3), 2)),
    channel_shuffle=simple(lambda x: torch.channel_shuffle(torch.cat((x, -x), 1), 2)),
    pad=padded_with(lambda x, pads, value: A.pad(x, pads, "constant", value)),
    constant_pad_nd=padded_with(A.constant_pad_nd.default),
)
operations(
    4,
    _adaptive_avg_pool3d=adaptive(A._adaptive_avg_pool3d.default, 3, average=True),
    upsample_trilinear3d=resized(3, "trilinear", align_corners=False),
)
# What no generator can reach, and why.
UNREACHED = {
    "take": "it counts entries through the batch, so it can only be refused",
    "take_along_dim": "torch.export fixes the batch size where it broadcasts the index, so it is refused",
}


# -- drawing -----------------------------------------------------------------------------------------------------


def sizes_of(drawing: Drawing, step: Step) -> tuple[int, ...]:
    """The sizes of a step's result, -1 for the batch, from two batch sizes that nothing else has."""
    weights = [drawing.value(w) for w in step.weights]
    shapes = []
    for batch in (17, 19):
        sources = [torch.zeros([batch if n == -1 else n for n in drawing.sizes[i]]).double() for i in step.sources]
        shapes.append(step.function(*sources, *weights).shape)
    return tuple(-1 if a != b else a for a, b in zip(*shapes, strict=True))


def append(drawing: Drawing, steps: list[Step], step: Step) -> int:
    drawing.sizes.append(sizes_of(drawing, step))
    steps.append(step)
    return len(drawing.sizes) - 1


def fitted(drawing: Drawing, steps: list[Step], i: int, need: str | int) -> int:
    """The number of a tensor that fits the need: tensor i, after the views and transposes that make it fit."""
    sizes = drawing.sizes[i]
    if need == "any":
        return i
    if need == "inner":
        return i if len(sizes) > 1 else append(drawing, steps, Step(lambda x: x.unsqueeze(-1), (i,)))
    batch = sizes.index(-1)
    if batch:
        i = append(drawing, steps, Step(lambda x: x.movedim(batch, 0), (i,)))
    while len(drawing.sizes[i]) < need + 1:
        last = len(drawing.sizes[i]) - 1
        n = drawing.sizes[i][last]
        factor = next((k for k in (4, 3, 2) if last and n > k and n % k == 0), None)
        if factor and drawing.draw(st.booleans()):
            i = append(drawing, steps, Step(lambda x, f=factor: x.unflatten(-1, (x.shape[-1] // f, f)), (i,)))
        else:
            at = drawing.integer(1, last + 1)
            i = append(drawing, steps, Step(lambda x, at=at: x.unsqueeze(at), (i,)))
    if len(drawing.sizes[i]) > need + 1:
        first = drawing.integer(1, need)
        extra = len(drawing.sizes[i]) - need - 1
        i = append(drawing, steps, Step(lambda x: x.flatten(first, first + extra), (i,)))
    return i


def drawn_function(drawing: Drawing, names: list[str]) -> list[Step]:
    """A chain or graph of these operations: every one acts on the last result, or on an earlier one."""
    steps: list[Step] = []
    for name in names:
        i = len(drawing.sizes) - 1
        if steps and drawing.integer(0, 3) == 0:
            i = drawing.integer(0, i)
        if entries(drawing, i) > SMALL:
            i = fitted(drawing, steps, i, "inner")
            dim = max(range(len(drawing.sizes[i])), key=lambda d: drawing.sizes[i][d])
            i = append(drawing, steps, Step(lambda x, dim=dim: x.narrow(dim, 1, 2), (i,)))
        need, generator = GENERATORS[name]
        i = fitted(drawing, steps, i, need)
        append(drawing, steps, generator(drawing, i))
    return steps


@st.composite
def modules(draw, functions=FUNCTIONS, inputs=None, names=None):
    """(module in float64, the same in float32, sizes of its inputs, whether its numbers are whole)."""
    whole = draw(st.booleans())
    drawing = Drawing(draw, whole)
    sizes = [
        (-1, *draw(st.lists(st.sampled_from(SIZES), max_size=3))) for _ in range(inputs or draw(st.integers(1, 3)))
    ]
    sizes = [s if abs(math.prod(s)) <= 2 * SMALL else s[:2] for s in sizes]
    drawn = []
    lengths = []
    for f in range(functions):
        drawing.sizes = [*sizes]
        words = names[f] if names else draw(st.lists(st.sampled_from(sorted(GENERATORS)), min_size=1, max_size=6))
        if not names:  # the chain starts from any of the inputs
            start = draw(st.integers(0, len(sizes) - 1))
            drawing.sizes = [*sizes]
            first = append(drawing, begin := [], Step(lambda x: x, (start,)))
            assert first == len(sizes)
            drawn.append(begin + drawn_function(drawing, words))
        else:
            drawn.append(drawn_function(drawing, words))
        lengths.append(len(drawing.sizes))
    also = draw(st.lists(st.integers(0, functions - 1), max_size=2)) if functions > 1 else []
    also = tuple((f, draw(st.integers(0, lengths[f] - 1))) for f in also)
    double, single = (Drawn(drawing, drawn, dtype, also, len(sizes)) for dtype in (torch.float64, torch.float32))
    return double, single, sizes, whole


def inputs_of(sizes, batch: int, whole: bool) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(batch)
    shapes = [(batch, *s[1:]) for s in sizes]
    if whole:
        return tuple(torch.randint(-4, 5, shape, generator=generator).double() for shape in shapes)
    return tuple(torch.randn(shape, generator=generator).double() for shape in shapes)


def assert_within(expected: list[Tensor], given: list[Tensor], bounds: list[float]) -> None:
    for position, (a, b, bound) in enumerate(zip(expected, given, bounds, strict=True)):
        assert a.shape == b.shape, position
        difference = float((a - b.double()).abs().max()) if a.numel() else 0.0
        assert difference <= bound, (
            f"output {position}: {difference:.2e}, largest {float(a.abs().max()):.2e}, {bound=:.1e}"
        )


def leaves(outputs: Any) -> list[Tensor]:
    return torch.utils._pytree.tree_leaves(outputs)


def run(program: Program, points: Tensor) -> Tensor:
    """What the program computes at points (n, ...), flat."""
    state = points.reshape(len(points), -1)
    for step in program.steps:
        state = step.apply(state)
        state = torch.cat([state[:, : step.units].relu(), state[:, step.units :]], 1)
    return state
