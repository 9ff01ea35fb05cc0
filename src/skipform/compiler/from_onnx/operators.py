"""One table {operator of ONNX: rule}: what each operator is as a function of torch tensors.

A rule takes a Call and returns a Rule (operation.py). It follows ONNX's definition of the operator in every version
from 1 on; where they differ, the version of the node decides. What is not piecewise linear is translated too, to the
torch function of that name, so that the compiler names it and refuses it there.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as F
from onnx import helper
from torch import Tensor

from skipform.compiler.from_onnx import windows
from skipform.compiler.from_onnx.file import FLOATING, TYPES
from skipform.compiler.from_onnx.operation import DIRECT, LEAD, ROWS, SHAPE, Call, Rule, Value, along, constant

OperatorRule = Callable[[Call], Rule]


# -- entry by entry ----------------------------------------------------------------------------------------------


def entrywise(function: Callable[[Tensor], Tensor]) -> OperatorRule:
    """A function of one entry."""
    return lambda call: Rule(lambda lead, x: function(x), [call.x], DIRECT)


def with_numbers(make: Callable[..., Callable[[Tensor], Tensor]], *defaults: tuple[str, float]) -> OperatorRule:
    """A function of one entry with numeric attributes; a default is what ONNX says where its schema does not."""
    return lambda call: entrywise(make(*(call.attribute(name, default) for name, default in defaults)))(call)


def broadcast(call: Call, values: Sequence[Value], function: Callable[..., Tensor], trailing: int = 0) -> Rule:
    """A function of the entries at the same place of tensors that are broadcast to one shape, as in numpy. trailing: as
    many dimensions of size 1 follow those of the second tensor."""
    shapes = [v.shape + (1,) * (trailing if i == 1 else 0) for i, v in enumerate(values)]
    try:
        shape = tuple(torch.broadcast_shapes(*shapes))
    except RuntimeError:
        raise call.refusal(f"shapes {', '.join(map(str, shapes))} are not broadcast to one") from None
    active = [s for s, v in zip(shapes, values, strict=True) if v.active]
    batched = shape[:1] == (1,) and all(len(s) == len(shape) for s in active)
    direct = not trailing and (batched or all(s == shape for s in active))

    def apply(lead: int, *tensors: Tensor) -> Tensor:
        aligned = []
        for x, s, value in zip(tensors, shapes, values, strict=True):
            x = x[(..., *(None,) * (len(s) - value.rank))]
            new = len(shape) - len(s)
            if lead and value.active and new:
                x = x.reshape(x.shape[0], *(1,) * new, *s)
            aligned.append(x)
        return function(*aligned)

    return Rule(apply, [*values], DIRECT if direct else LEAD)


def binary(function: Callable[[Tensor, Tensor], Tensor]) -> OperatorRule:
    """Two operands. Up to version 6 the second one is broadcast only if an attribute says so, from `axis` on."""

    def rule(call: Call) -> Rule:
        x, y = call[0], call[1]
        trailing = 0
        if call.attribute("broadcast") and call.attribute("axis") is not None:
            trailing = x.rank - call.axis(call.attribute("axis")) - y.rank
        return broadcast(call, [x, y], function, max(trailing, 0))

    return rule


def variadic(function: Callable[[Tensor, Tensor], Tensor], *, average: bool = False) -> OperatorRule:
    def rule(call: Call) -> Rule:
        values = [v for v in call.operands if v is not None]
        scale = 1 / len(values) if average else 1.0
        return broadcast(call, values, lambda *xs: reduce(function, xs) * scale if average else reduce(function, xs))

    return rule


def divide(x: Tensor, y: Tensor) -> Tensor:
    whole = not (x.is_floating_point() or y.is_floating_point())
    return torch.div(x, y, rounding_mode="trunc" if whole else None)


def where(call: Call) -> Rule:
    return broadcast(call, [call[0], call[1], call[2]], lambda c, x, y: torch.where(c.bool(), x, y))


def clip(call: Call) -> Rule:
    """Bounds that no number of the type exceeds are none, as exporters write them."""
    largest = torch.finfo(torch.float32).max
    bounds: list[Any] = [call.attribute("min"), call.attribute("max")]
    given = [call.get(1), call.get(2)]
    if any(v is not None and v.active for v in given):
        values = [v for v in given if v is not None]

        def between(x: Tensor, *tensors: Tensor) -> Tensor:
            x = torch.maximum(x, tensors[0]) if given[0] is not None else x
            return torch.minimum(x, tensors[-1]) if given[1] is not None else x

        return broadcast(call, [call.x, *values], between)
    bounds = [b if v is None else v.constant.item() for b, v in zip(bounds, given, strict=True)]  # type: ignore[union-attr]
    low, high = (None if b is None or b * sign >= largest else b for b, sign in zip(bounds, (-1, 1), strict=True))
    if low is None and high is None:
        return entrywise(lambda x: x)(call)
    return entrywise(lambda x: x.clamp(low, high))(call)


def prelu(call: Call) -> Rule:
    """x for x > 0, else slope * x; the slope is one number, one for every channel, or any tensor that is broadcast."""
    x, slope = call[0], call[1]
    shape = slope.shape
    if call.version < 7 and slope.rank == 1:
        shape = shape + (1,) * (x.rank - 2)
    padded = (1,) * (x.rank - len(shape)) + shape
    channelwise = x.rank >= 2 and all(n == 1 for d, n in enumerate(padded) if d != 1)
    if channelwise and not slope.active:
        return Rule(lambda lead, x, w: F.prelu(x, w.flatten()), [x, slope], ROWS)
    trailing = len(shape) - slope.rank
    return broadcast(call, [x, slope], lambda x, w: w * x + (1 - w) * F.relu(x), trailing)


def thresholded(alpha: float) -> Callable[[Tensor], Tensor]:
    return F.relu if alpha == 0 else lambda x: F.threshold(x, alpha, 0.0)


def shrink(bias: float, bound: float) -> Callable[[Tensor], Tensor]:
    """x - bias above the bound, x + bias below minus the bound, else 0: continuous for bias = bound."""
    if bias == bound:
        return lambda x: F.softshrink(x, bound)
    return lambda x: torch.where(x > bound, x - bias, torch.where(x < -bound, x + bias, 0.0))


def cast(call: Call) -> Rule:
    """To float or double, a floating-point tensor stays as it is: the module holds its numbers in one type."""
    to = call.attribute("to")
    number = to if isinstance(to, int) else getattr(helper.TensorProto, str(to), -1)
    return _cast(call, call.x, TYPES.get(number))


def cast_like(call: Call) -> Rule:
    return _cast(call, call.x, call[1].dtype)


def _cast(call: Call, x: Value, dtype: torch.dtype | None) -> Rule:
    if dtype is None:
        raise call.refusal(f"casts to type {call.attribute('to')}", ", ".join(str(t) for t in TYPES.values()))
    if x.active and x.dtype.is_floating_point and dtype.is_floating_point:
        if dtype not in FLOATING.values():
            raise call.refusal(f"rounds to {dtype}", "float or double")
        return Rule(lambda lead, x: x, [x], DIRECT)
    return Rule(lambda lead, x: x.to(dtype), [x], DIRECT)


# -- shapes ------------------------------------------------------------------------------------------------------


def shaped(shape_of: Callable[[Call], Sequence[int]]) -> OperatorRule:
    """A new shape, the entries in the same order."""

    def rule(call: Call) -> Rule:
        shape = tuple(shape_of(call))
        if math.prod(shape) != math.prod(call.x.shape):
            raise call.refusal(f"makes shape {shape} of {call.x.shape}")
        return Rule(lambda lead, x: x.reshape(shape), [call.x], SHAPE)

    return rule


def reshaped(call: Call) -> Sequence[int]:
    """0 stands for the size before, unless allowzero; one -1 for what is left."""
    target = call.whole("shape", 1) or []
    sizes = [
        call.x.shape[i] if n == 0 and not call.attribute("allowzero") and i < call.x.rank else n
        for i, n in enumerate(target)
    ]
    if sizes.count(-1) == 1:
        known = -math.prod(sizes)
        sizes[sizes.index(-1)] = math.prod(call.x.shape) // known if known else 0
    return sizes


def flattened(call: Call) -> Sequence[int]:
    axis = call.attribute("axis", 1)
    axis = call.x.rank if axis == call.x.rank else call.axis(axis)
    return math.prod(call.x.shape[:axis]), math.prod(call.x.shape[axis:])


def squeezed(call: Call) -> Sequence[int]:
    axes = call.whole("axes", 1)
    shape = call.x.shape
    dropped = {d for d, n in enumerate(shape) if n == 1} if axes is None else {call.axis(a) for a in axes}
    return [n for d, n in enumerate(shape) if d not in dropped]


def unsqueezed(call: Call) -> Sequence[int]:
    axes = call.whole("axes", 1) or []
    rank = call.x.rank + len(axes)
    new, rest = {call.axis(a, rank) for a in axes}, iter(call.x.shape)
    return [1 if d in new else next(rest) for d in range(rank)]


def transpose(call: Call) -> Rule:
    order = call.whole("perm") or [*range(call.x.rank)][::-1]

    def permute(lead: int, x: Tensor) -> Tensor:
        return x.permute(*range(lead), *(lead + d for d in order))

    return along(call, permute, [call.x], [] if order[:1] == [0] else [0])


def expand(call: Call) -> Rule:
    shape = torch.broadcast_shapes(call.x.shape, tuple(call.whole("shape", 1) or []))
    call.bounded(shape)
    x = call.x
    if x.rank == len(shape) and x.shape[:1] == shape[:1]:
        return Rule(lambda lead, x: x.expand(-1, *shape[1:]), [x], ROWS)

    def spread(lead: int, x: Tensor) -> Tensor:
        new = len(shape) - call.x.rank
        x = x.reshape(*x.shape[:lead], *(1,) * new, *call.x.shape)
        return x.expand(*x.shape[:lead], *shape)

    return Rule(spread, [x], LEAD)


def tile(call: Call) -> Rule:
    if call.version < 6:
        times = [1] * call.x.rank
        count, axis = call.whole("tiles", 1) or [1], call.whole("axis", 2) or [0]
        times[call.axis(axis[0])] = count[0]
    else:
        times = call.whole("repeats", 1) or []
    call.bounded([n * t for n, t in zip(call.x.shape, times, strict=True)])
    axes = [d for d, t in enumerate(times) if t != 1]
    return along(call, lambda lead, x: x.repeat(*(1,) * lead, *times), [call.x], axes)


def concat(call: Call) -> Rule:
    values = [v for v in call.operands if v is not None]
    axis = call.axis(call.attribute("axis", 1), values[0].rank)
    active = [i for i, v in enumerate(values) if v.active]

    def join(lead: int, *xs: Tensor) -> Tensor:
        if not active:
            return torch.cat(xs, axis)
        batch = xs[active[0]].shape[0]
        parts = []
        for x, value in zip(xs, values, strict=True):
            if not value.active and lead:
                x = x.expand(batch, *value.shape)
            elif not value.active and axis:
                x = x.expand(batch, *value.shape[1:]) if value.shape[0] == 1 else x
            parts.append(x)
        return torch.cat(parts, axis + lead)

    return along(call, join, values, [axis])


def split(call: Call) -> Rule:
    axis = call.axis(call.attribute("axis", 0))
    n, count = call.x.shape[axis], len(call.node.outputs)
    if call.attribute("num_outputs", count) != count:
        raise call.refusal(f"num_outputs {call.attribute('num_outputs')} with {count} outputs")
    sizes = call.whole("split", 1)
    if sizes is None:
        part = -(-n // count)
        sizes = [max(min(part, n - i * part), 0) for i in range(count)]
    if sum(sizes) != n or min(sizes) < 0:
        raise call.refusal(f"splits {n} entries into {sizes}")
    return along(call, lambda lead, x: tuple(torch.split(x, sizes, axis + lead)), [call.x], [axis])


# -- a choice of entries -----------------------------------------------------------------------------------------


def slice_(call: Call) -> Rule:
    starts, ends = call.whole("starts", 1) or [], call.whole("ends", 2) or []
    axes = [call.axis(a) for a in call.whole("axes", 3) or range(len(starts))]
    steps = call.whole("steps", 4) or [1] * len(starts)
    chosen = {}
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        if step == 0:
            raise call.refusal("has a step of 0")
        chosen[axis] = range(*slice(start, end, step).indices(call.x.shape[axis]))
    changed = {axis: places for axis, places in chosen.items() if places != range(call.x.shape[axis])}
    return chosen_entries(call, changed)


def chosen_entries(call: Call, places: Mapping[int, Sequence[int]]) -> Rule:
    """Of x along every axis the entries at these places: slices where they are, else an index_select."""
    indices = {d: constant(torch.tensor([*p], dtype=torch.int64)) for d, p in places.items() if not _is_slice(p)}

    def choose(lead: int, x: Tensor, *given: Tensor) -> Tensor:
        tensors = iter(given)
        for axis, at in places.items():
            if axis in indices:
                x = x.index_select(axis + lead, next(tensors))
            else:
                x = x[(*(slice(None),) * (axis + lead), slice(at.start, at.stop, at.step))]  # type: ignore[attr-defined]
        return x

    return along(call, choose, [call.x, *indices.values()], [*places])


def _is_slice(places: Sequence[int]) -> bool:
    return isinstance(places, range) and places.step > 0 and len(places) > 0


def gather(call: Call) -> Rule:
    axis = call.axis(call.attribute("axis", 0))
    index = call.literal(1, "indices")
    assert index is not None
    n = call.x.shape[axis]
    flat = torch.where(index < 0, index + n, index).flatten().long()
    _in_range(call, flat, n)

    def choose(lead: int, x: Tensor, chosen: Tensor) -> Tensor:
        y = x.index_select(axis + lead, chosen)
        return y.reshape((*y.shape[: axis + lead], *index.shape, *y.shape[axis + lead + 1 :])) if index.ndim != 1 else y

    return along(call, choose, [call.x, constant(flat)], [axis])


def _in_range(call: Call, index: Tensor, n: int) -> None:
    if index.numel() and not bool(((index >= 0) & (index < n)).all()):
        raise call.refusal(f"has an index outside of 0 to {n - 1}")


def _by_number(call: Call, number: Callable[..., Tensor], others: Sequence[Value] = ()) -> Rule:
    """An operation that only moves entries, of x and then of others, given what it does to their numbers: entry i of
    the result is entry number(...)[i] of all of them in a row."""
    sources = [call.x, *others]
    ends = [*accumulate((math.prod(v.shape) for v in sources), initial=0)]
    numbered = [torch.arange(a, b).reshape(v.shape) for a, b, v in zip(ends, ends[1:], sources, strict=False)]
    moved = number(*numbered)

    def move(lead: int, *tensors: Tensor) -> Tensor:
        *xs, index = tensors
        batch = next((x.shape[0] for x, v in zip(xs, sources, strict=True) if v.active), 1)
        flat = [
            x.reshape(-1, math.prod(v.shape)) if v.active or not lead else x.reshape(1, -1).expand(batch, -1)
            for x, v in zip(xs, sources, strict=True)
        ]
        y = (torch.cat(flat, 1) if others else flat[0]).index_select(1, index)
        return y.reshape(-1, *moved.shape) if lead else y.reshape(moved.shape)

    return Rule(move, [*sources, constant(moved.flatten())], LEAD)


def gather_elements(call: Call) -> Rule:
    axis = call.axis(call.attribute("axis", 0))
    index = call.literal(1, "indices")
    assert index is not None
    index = torch.where(index < 0, index + call.x.shape[axis], index).long()
    _in_range(call, index, call.x.shape[axis])
    return _by_number(call, lambda x: x.gather(axis, index))


def _positions(call: Call) -> tuple[Tensor, ...]:
    """The indices of GatherND and ScatterND: their last axis names an entry, or a slice, of x."""
    index = call.literal(1, "indices")
    assert index is not None
    parts = []
    for d, part in enumerate(index.long().unbind(-1)):
        part = torch.where(part < 0, part + call.x.shape[d], part)
        _in_range(call, part, call.x.shape[d])
        parts.append(part)
    return tuple(parts)


def gather_nd(call: Call) -> Rule:
    if call.attribute("batch_dims"):
        raise call.refusal(f"batch_dims {call.attribute('batch_dims')}", "0")
    return _by_number(call, lambda x: x[_positions(call)])


def scatter_elements(call: Call) -> Rule:
    _plain_reduction(call)
    axis = call.axis(call.attribute("axis", 0))
    index = call.literal(1, "indices")
    assert index is not None
    index = torch.where(index < 0, index + call.x.shape[axis], index).long()
    _in_range(call, index, call.x.shape[axis])
    return _by_number(call, lambda x, updates: x.scatter(axis, index, updates), [call[2]])


def scatter_nd(call: Call) -> Rule:
    _plain_reduction(call)

    def put(x: Tensor, updates: Tensor) -> Tensor:
        x = x.clone()
        x[_positions(call)] = updates
        return x

    return _by_number(call, put, [call[2]])


def _plain_reduction(call: Call) -> None:
    if call.attribute("reduction", "none") != "none":
        raise call.refusal(f"reduction {call.attribute('reduction')!r}", "'none'")


def pad(call: Call) -> Rule:
    amounts = call.whole("pads", 1) or call.whole("paddings") or []
    mode = call.attribute("mode", "constant")
    value = call.attribute("value", 0.0) if call.version < 11 else 0.0
    if call.version >= 11 and (given := call.literal(2, "padding value")) is not None:
        value = given.item()
    axes = [call.axis(a) for a in call.whole("axes", 3) or range(call.x.rank)]
    sides = dict.fromkeys(range(call.x.rank), (0, 0))
    sides |= {d: (amounts[i], amounts[i + len(axes)]) for i, d in enumerate(axes)}
    call.bounded([max(n + sum(sides[d]), 0) for d, n in enumerate(call.x.shape)])
    changed = [d for d, amount in sides.items() if amount != (0, 0)]
    if mode == "constant":
        pairs = [amount for d in range(call.x.rank)[::-1] for amount in sides[d]]
        while pairs and pairs[-2:] == [0, 0]:
            del pairs[-2:]
        return along(call, lambda lead, x: F.pad(x, pairs, value=value) if pairs else x, [call.x], changed)
    places = {}
    for d in changed:
        n = call.x.shape[d]
        around = range(-sides[d][0], n + sides[d][1])
        if mode == "edge":
            places[d] = [min(max(i, 0), n - 1) for i in around]
        elif mode == "wrap":
            places[d] = [i % n for i in around]
        else:  # reflect
            period = max(2 * (n - 1), 1)
            places[d] = [min(i % period, period - i % period) if n > 1 else 0 for i in around]
    return chosen_entries(call, places)


def depth_to_space(call: Call) -> Rule:
    size, columns_first = call.attribute("blocksize"), call.attribute("mode", "DCR") == "DCR"
    _, c, h, w = call.x.shape
    inner = (size, size, c // size**2) if columns_first else (c // size**2, size, size)
    order = (0, 3, 4, 1, 5, 2) if columns_first else (0, 1, 4, 2, 5, 3)

    def move(lead: int, x: Tensor) -> Tensor:
        x = x.reshape(-1, *inner, h, w).permute(order)
        return x.reshape(-1, c // size**2, h * size, w * size)

    return Rule(move, [call.x], ROWS)


def space_to_depth(call: Call) -> Rule:
    size = call.attribute("blocksize")
    _, c, h, w = call.x.shape

    def move(lead: int, x: Tensor) -> Tensor:
        x = x.reshape(-1, c, h // size, size, w // size, size).permute(0, 3, 5, 1, 2, 4)
        return x.reshape(-1, c * size**2, h // size, w // size)

    return Rule(move, [call.x], ROWS)


def triangle(call: Call) -> Rule:
    given = call.literal(1, "diagonal")
    k = 0 if given is None else int(given.item())
    part = torch.triu if call.attribute("upper", 1) else torch.tril
    return along(call, lambda lead, x: part(x, k), [call.x], [call.x.rank - 1, call.x.rank - 2])


# -- along axes --------------------------------------------------------------------------------------------------


def reduced(function: Callable[[Tensor, list[int], bool], Tensor]) -> OperatorRule:
    """A function of the entries along axes, which an attribute names, or an input of newer versions."""

    def rule(call: Call) -> Rule:
        given = call.whole("axes", 1)
        if not given and call.attribute("noop_with_empty_axes"):
            return entrywise(lambda x: x)(call)
        axes = sorted(call.axis(a) for a in given) if given else [*range(call.x.rank)]
        keep = bool(call.attribute("keepdims", 1))
        rule = along(call, lambda lead, x: function(x, [d + lead for d in axes], keep), [call.x], axes)
        if not axes:
            rule.function, rule.form = (lambda lead, x: x), DIRECT
        return rule

    return rule


def product(x: Tensor, dims: list[int], keep: bool) -> Tensor:
    for d in dims:
        x = x.prod(d, keepdim=True)
    return x if keep else x.squeeze(dims)


def index_of(function: Callable[..., Tensor]) -> OperatorRule:
    def rule(call: Call) -> Rule:
        axis, keep = call.axis(call.attribute("axis", 0)), bool(call.attribute("keepdims", 1))
        return along(call, lambda lead, x: function(x, dim=axis + lead, keepdim=keep), [call.x], [axis])

    return rule


def softmax(function: Callable[..., Tensor]) -> OperatorRule:
    """Along one axis; before version 13, over all entries from that axis on."""

    def rule(call: Call) -> Rule:
        axis = call.axis(call.attribute("axis", -1 if call.version >= 13 else 1))
        if call.version >= 13 or axis == call.x.rank - 1:
            return along(call, lambda lead, x: function(x, dim=axis + lead), [call.x], [axis])
        tail = call.x.shape[axis:]

        def joint(lead: int, x: Tensor) -> Tensor:
            return function(x.flatten(axis + lead), dim=-1).unflatten(-1, tail)

        return along(call, joint, [call.x], range(axis, call.x.rank))

    return rule


def cumulative(call: Call) -> Rule:
    """Sums of the entries up to each one, without it if exclusive, from the end if reverse."""
    given = call.literal(1, "axis")
    assert given is not None
    axis = call.axis(int(given.item()))
    n = call.x.shape[axis]
    exclusive, reverse = call.attribute("exclusive"), call.attribute("reverse")

    def sums(lead: int, x: Tensor) -> Tensor:
        d = axis + lead
        x = x.flip(d) if reverse else x
        if exclusive:
            x = F.pad(x.narrow(d, 0, n - 1), (*(0, 0) * (x.ndim - 1 - d), 1, 0))
        x = x.cumsum(d)
        return x.flip(d) if reverse else x

    return along(call, sums, [call.x], [axis])


def top_k(call: Call) -> Rule:
    axis = call.axis(call.attribute("axis", -1))
    k = call.attribute("k") or (call.whole("k", 1) or [1])[0]
    largest = bool(call.attribute("largest", 1))

    def top(lead: int, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        if k == 1:
            return (x.max if largest else x.min)(dim=axis + lead, keepdim=True)[:2]
        return torch.topk(x, k, axis + lead, largest)[:2]

    return along(call, top, [call.x], [axis])


# -- normalisation -----------------------------------------------------------------------------------------------


def batch_norm(call: Call) -> Rule:
    """(x - mean) / sqrt(var + epsilon) * scale + bias with stored statistics, one of each for a channel; before version
    9 there may be one for every entry (spatial = 0)."""
    if call.attribute("training_mode"):
        raise call.refusal("normalises by the statistics of the batch", "training_mode 0")
    x, *given = (call[i] for i in range(5))
    epsilon = call.attribute("epsilon", 1e-5)
    if any(value.active for value in given):
        raise call.refusal("has weights that depend on the input of the network", "constants")
    if call.attribute("spatial", 1) == 0 and call.version < 9:

        def normalise(x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, var: Tensor) -> Tensor:
            return (x - mean) / torch.sqrt(var + epsilon) * scale + bias

        return broadcast(call, [x, *given], normalise)
    if x.rank < 2:
        raise call.refusal(f"normalises the channels of a tensor of shape {x.shape}")

    def by_channel(lead: int, x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, var: Tensor) -> Tensor:
        return F.batch_norm(x, mean, var, scale, bias, False, 0.0, epsilon)

    return Rule(by_channel, [x, *given], ROWS)


def instance_norm(call: Call) -> Rule:
    epsilon = call.attribute("epsilon", 1e-5)
    return Rule(
        lambda lead, x, scale, bias: F.instance_norm(x, weight=scale, bias=bias, eps=epsilon),
        [call[0], call[1], call[2]],
        ROWS,
    )


def layer_norm(call: Call) -> Rule:
    axis = call.axis(call.attribute("axis", -1))
    shape, epsilon = call.x.shape[axis:], call.attribute("epsilon", 1e-5)
    operands = [v for v in call.operands if v is not None]

    def normalise(lead: int, x: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
        bias = bias if bias is None else bias.expand(shape)
        return F.layer_norm(x, shape, scale.expand(shape), bias, epsilon)

    return along(call, normalise, operands, range(axis, call.x.rank))


def lp_norm(call: Call) -> Rule:
    """x divided by its norm of order p along one axis."""
    axis, p = call.axis(call.attribute("axis", -1)), call.attribute("p", 2)

    def normalise(lead: int, x: Tensor) -> Tensor:
        return x / torch.linalg.vector_norm(x, p, axis + lead, keepdim=True)

    return along(call, normalise, [call.x], [axis])


def local_response_norm(call: Call) -> Rule:
    size, alpha, beta, bias = (call.attribute(name) for name in ("size", "alpha", "beta", "bias"))
    return Rule(lambda lead, x: F.local_response_norm(x, size, alpha, beta, bias), [call.x], ROWS)


# -- products ----------------------------------------------------------------------------------------------------


def matmul(call: Call) -> Rule:
    """As numpy.matmul: a vector is a row on the left and a column on the right."""
    a, b = call[0], call[1]
    if a.active and not b.active and b.rank == 2 and a.rank >= 2:
        return Rule(lambda lead, x, w: x @ w, [a, b], ROWS)
    if a.active and not b.active and b.rank == 2:  # a vector: (b, k)
        return Rule(lambda lead, x, w: x @ w, [a, b], LEAD)
    if b.active and not a.active and a.rank == 2 and b.rank == 1:
        return Rule(lambda lead, w, x: x @ w.mT, [a, b], LEAD)
    rank = max(a.rank, b.rank, 2)

    def multiply(lead: int, x: Tensor, y: Tensor) -> Tensor:
        x = x.unsqueeze(-2) if a.rank == 1 else x
        y = y.unsqueeze(-1) if b.rank == 1 else y
        if lead:
            x, y = (
                t.reshape(t.shape[0], *(1,) * (rank + 1 - t.ndim), *t.shape[1:]) if v.active else t
                for t, v in ((x, a), (y, b))
            )
        z = x @ y
        z = z.squeeze(-2) if a.rank == 1 else z
        return z.squeeze(-1) if b.rank == 1 else z

    both = [v for v in (a, b) if v.active]
    batched = rank > 2 and all(v.rank == rank and v.shape[0] == 1 for v in both)
    return Rule(multiply, [a, b], DIRECT if batched and max(_batch_of(a, rank), _batch_of(b, rank)) == 1 else LEAD)


def _batch_of(value: Value, rank: int) -> int:
    return value.shape[0] if value.rank == rank else 1


def gemm(call: Call) -> Rule:
    """alpha A' B' + beta C, where ' transposes if the attribute says so."""
    a, b, c = call[0], call[1], call.get(2)
    alpha, beta = call.attribute("alpha", 1.0), call.attribute("beta", 1.0)
    a_turned, b_turned = bool(call.attribute("transA")), bool(call.attribute("transB"))
    if beta == 0:
        c = None
    simple_bias = c is None or (c.constant is not None and (c.rank < 2 or c.shape[0] == 1))
    if a.active and not a_turned and b.constant is not None and simple_bias:
        width = b.shape[0] if b_turned else b.shape[1]
        weight = b if b_turned and alpha == 1 else constant((b.constant if b_turned else b.constant.mT) * alpha)
        if c is None:
            return Rule(lambda lead, x, w: F.linear(x, w), [a, weight], ROWS)
        assert c.constant is not None
        plain = c.shape == (width,) and beta == 1
        bias = c if plain else constant((c.constant * beta).reshape(-1).expand(width).clone())
        return Rule(lambda lead, x, w, t: F.linear(x, w, t), [a, weight, bias], ROWS)

    def multiply(lead: int, x: Tensor, y: Tensor, *bias: Tensor) -> Tensor:
        z = (x.mT if a_turned else x) @ (y.mT if b_turned else y)
        z = z if alpha == 1 else z * alpha
        for t in bias:
            if lead and c is not None and c.active:
                t = t.reshape(t.shape[0], *(1,) * (2 - c.rank), *t.shape[1:])
            z = z + (t if beta == 1 else t * beta)
        return z

    return Rule(multiply, [v for v in (a, b, c) if v is not None], LEAD)


def einsum(call: Call) -> Rule:
    equation = call.attribute("equation").replace(" ", "")
    values = [v for v in call.operands if v is not None]
    inputs, arrow, output = equation.partition("->")
    if "." in equation:
        raise call.refusal(f"equation {equation!r}", "an equation without dots")
    if not arrow:
        output = "".join(sorted(letter for letter in set(inputs) - {","} if inputs.count(letter) == 1))
    free = next(
        letter for letter in "ZYXWVUTSRQPONMLKJIHGFEDCBA" + "zyxwvutsrqponmlkjihgfedcba" if letter not in equation
    )
    terms = [free + t if v.active else t for t, v in zip(inputs.split(","), values, strict=True)]
    batched = f"{','.join(terms)}->{free}{output}"
    return Rule(lambda lead, *xs: torch.einsum(batched if lead else f"{inputs}->{output}", *xs), values, LEAD)


# -- constants ---------------------------------------------------------------------------------------------------


def made(make: Callable[[Call], Tensor]) -> OperatorRule:
    """A constant: it depends on attributes, on other constants, and on shapes alone."""

    def rule(call: Call) -> Rule:
        return Rule(lambda lead, x: x, [constant(make(call))], DIRECT)

    return rule


def attribute_tensor(call: Call) -> Tensor:
    for name, value in call.node.attributes.items():
        if isinstance(value, Tensor):
            return value
        if name in ("value_float", "value_floats"):
            return torch.tensor(value, dtype=torch.float32)
        if name in ("value_int", "value_ints"):
            return torch.tensor(value, dtype=torch.int64)
    raise call.refusal("has no tensor of numbers", "value, value_float, value_floats, value_int or value_ints")


def shape_of(call: Call) -> Tensor:
    return torch.tensor(call.x.shape[slice(call.attribute("start", 0), call.attribute("end"))], dtype=torch.int64)


def constant_of_shape(call: Call) -> Tensor:
    value = call.attribute("value")
    value = torch.zeros(1) if value is None else value
    return torch.full(call.bounded(call.whole("input", 0) or []), value.item(), dtype=value.dtype)


def arange(call: Call) -> Tensor:
    tensors = [call.literal(i, name) for i, name in enumerate(("start", "limit", "delta"))]
    start, limit, delta = (t.item() for t in tensors if t is not None)
    if not delta or not all(map(math.isfinite, (start, limit, delta))):
        raise call.refusal(f"numbers from {start} to {limit} in steps of {delta}")
    call.bounded([max(math.ceil((limit - start) / delta), 0)])
    return torch.arange(start, limit, delta, dtype=call.x.dtype)


def nonzero(call: Call) -> Tensor:
    given = call.literal(0, "input")
    assert given is not None
    return given.nonzero().mT.contiguous()


def dropout(call: Call) -> Rule:
    """The identity; the mask of what is dropped is no result."""
    training = call.literal(2, "training_mode") if call.version >= 12 else None
    if training is not None and bool(training):
        raise call.refusal("is random", "training_mode false")
    return entrywise(lambda x: x)(call)


OPERATORS: dict[str, OperatorRule] = {
    # sums and products
    "Add": binary(torch.add),
    "Sub": binary(torch.sub),
    "Mul": binary(torch.mul),
    "Div": binary(divide),
    "Pow": binary(torch.pow),
    "Neg": entrywise(torch.neg),
    "Sum": variadic(torch.add),
    "Mean": variadic(torch.add, average=True),
    "MatMul": matmul,
    "Gemm": gemm,
    "Einsum": einsum,
    "CumSum": cumulative,
    "ReduceSum": reduced(lambda x, dims, keep: x.sum(dims, keepdim=keep)),
    "ReduceMean": reduced(lambda x, dims, keep: x.mean(dims, keepdim=keep)),
    # windows
    "Conv": windows.conv,
    "ConvTranspose": windows.conv_transpose,
    "AveragePool": windows.average_pool,
    "MaxPool": windows.max_pool,
    "GlobalAveragePool": lambda call: along(call, lambda lead, x: x.mean(_spatial(call, lead), True), [call.x], [2]),
    "GlobalMaxPool": lambda call: along(call, lambda lead, x: x.amax(_spatial(call, lead), True), [call.x], [2]),
    "Resize": windows.resize,
    "Upsample": windows.upsample,
    # normalisation
    "BatchNormalization": batch_norm,
    "InstanceNormalization": instance_norm,
    "LayerNormalization": layer_norm,
    "LRN": local_response_norm,
    "LpNormalization": lp_norm,
    "Dropout": dropout,
    # piecewise linear
    "Relu": entrywise(F.relu),
    "LeakyRelu": with_numbers(lambda slope: lambda x: F.leaky_relu(x, slope), ("alpha", 0.01)),
    "PRelu": prelu,
    "ThresholdedRelu": with_numbers(thresholded, ("alpha", 1.0)),
    "HardSigmoid": with_numbers(lambda a, b: lambda x: (a * x + b).clamp(0, 1), ("alpha", 0.2), ("beta", 0.5)),
    "Shrink": with_numbers(shrink, ("bias", 0.0), ("lambd", 0.5)),
    "Clip": clip,
    "Abs": entrywise(torch.abs),
    "Max": variadic(torch.maximum),
    "Min": variadic(torch.minimum),
    "ReduceMax": reduced(lambda x, dims, keep: x.amax(dims, keepdim=keep)),
    "ReduceMin": reduced(lambda x, dims, keep: x.amin(dims, keepdim=keep)),
    "ReduceL1": reduced(lambda x, dims, keep: x.abs().sum(dims, keepdim=keep)),
    # shapes
    "Identity": entrywise(lambda x: x),
    "Cast": cast,
    "CastLike": cast_like,
    "Reshape": shaped(reshaped),
    "Flatten": shaped(flattened),
    "Squeeze": shaped(squeezed),
    "Unsqueeze": shaped(unsqueezed),
    "Transpose": transpose,
    "Expand": expand,
    "Tile": tile,
    "Concat": concat,
    "Split": split,
    # a choice of entries
    "Slice": slice_,
    "Gather": gather,
    "GatherElements": gather_elements,
    "GatherND": gather_nd,
    "Scatter": scatter_elements,
    "ScatterElements": scatter_elements,
    "ScatterND": scatter_nd,
    "Pad": pad,
    "DepthToSpace": depth_to_space,
    "SpaceToDepth": space_to_depth,
    "Trilu": triangle,
    "Where": where,
    "TopK": top_k,
    # constants
    "Constant": made(attribute_tensor),
    "ConstantOfShape": made(constant_of_shape),
    "Shape": made(shape_of),
    "Size": made(lambda call: torch.tensor(math.prod(call.x.shape))),
    "Range": made(arange),
    "NonZero": made(nonzero),
    # not piecewise linear, or not continuous: the compiler refuses them, unless they act on constants
    **{
        name: entrywise(getattr(torch, name.lower()))
        for name in ("Sigmoid", "Tanh", "Exp", "Log", "Sqrt", "Sin", "Cos", "Tan", "Atan", "Erf", "Sign")
    },
    **{name: entrywise(getattr(torch, name.lower())) for name in ("Floor", "Ceil", "Round", "Reciprocal")},
    "Elu": with_numbers(lambda a: lambda x: F.elu(x, a), ("alpha", 1.0)),
    "Celu": with_numbers(lambda a: lambda x: F.celu(x, a), ("alpha", 1.0)),
    "Selu": with_numbers(
        lambda a, g: lambda x: g * (F.relu(x) + a * torch.expm1(torch.clamp(x, max=0))),
        ("alpha", 1.67326319217681884765625),
        ("gamma", 1.05070102214813232421875),
    ),
    "Gelu": with_numbers(lambda how: lambda x: F.gelu(x, approximate=how), ("approximate", "none")),  # type: ignore[arg-type]
    "Softplus": entrywise(F.softplus),
    "Softsign": entrywise(F.softsign),
    "Mish": entrywise(F.mish),
    "HardSwish": entrywise(F.hardswish),
    "Softmax": softmax(torch.softmax),
    "LogSoftmax": softmax(torch.log_softmax),
    "ReduceL2": reduced(lambda x, dims, keep: torch.linalg.vector_norm(x, dim=dims, keepdim=keep)),
    "ReduceSumSquare": reduced(lambda x, dims, keep: x.square().sum(dims, keepdim=keep)),
    "ReduceLogSumExp": reduced(lambda x, dims, keep: torch.logsumexp(x, dims, keepdim=keep)),
    "ReduceProd": reduced(product),
    "ArgMax": index_of(torch.argmax),
    "ArgMin": index_of(torch.argmin),
    "Equal": binary(torch.eq),
    "Greater": binary(torch.gt),
    "GreaterOrEqual": binary(torch.ge),
    "Less": binary(torch.lt),
    "LessOrEqual": binary(torch.le),
    "And": binary(torch.logical_and),
    "Or": binary(torch.logical_or),
    "Xor": binary(torch.logical_xor),
    "Not": entrywise(torch.logical_not),
}


def _spatial(call: Call, lead: int) -> list[int]:
    return [*range(2 + lead, call.x.rank + lead)]
