"""The rewritten graph under construction: the operations that it may contain, and the steps that all rules consist of.

Operations (`call_function` nodes): convolutions, `linear` and `matmul` with constant weights, `torch.relu`,
`torch.cat`, and operations that only move entries: reshape, unsqueeze, permute, slices, index_select, expand, zero
padding.

Steps:   scale      s * x + t entry by entry: a depthwise convolution, or folded into the affine map before it
         combine    sum of c_i x_i: a concatenation, then the fixed map (c_1 I  c_2 I  ...)      (Proposition 1)
         maximum    max(x, y) = relu(x - y) + y                                                   (Theorem 1)
         window_max a tree of maxima, of depth ceil(log2 n), over windows that may overlap

b batch; every tensor that depends on the input has the batch in one dimension, `node.meta["batch_dim"]`, written -1 in
the sizes below. `node.meta["val"]` is the tensor on the meta device, for a batch of BATCH.
"""

import itertools
import math
import operator
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from skipform.errors import SkipformError
from skipform.theory.trees import Window, half_tree, tree_depth

BATCH, OTHER_BATCH = 2, 3  # the batch is the dimension in which shapes for these two batch sizes differ
MERGED = "merges the batch into another dimension that comes before it"
CONVOLUTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
TRANSPOSED = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


class UnsupportedOperation(SkipformError):
    """An operation without a rule, or one that is not piecewise linear. One line names it, its place and its shape."""


class Emitter:
    """A graph under construction, in float64. Equal calls become one node; constants become buffers."""

    rules: ClassVar[dict[str, Callable[..., Any]]] = {}  # by name of the operation, in place of those of the table

    def __init__(self, device: torch.device, dtype: torch.dtype = torch.float64):
        self.graph = fx.Graph()
        self.root = nn.Module()
        self.device, self.dtype = device, dtype  # dtype: of the inputs
        self.source: Any = None  # fx.Node: the operation of the original that is being rewritten
        self.place = ""  # its name, module, source line and shape, as `where` describes them
        self.readers: dict[fx.Node, int] = {}  # how many operations of the original read this result
        self._written: dict[Any, fx.Node] = {}
        self._constants: dict[Any, list[fx.Node]] = {}  # by dtype, shape and first entries
        self._numbers = itertools.count()

    # -- nodes ---------------------------------------------------------------------------------------------------

    @property
    def first_input(self) -> fx.Node:
        """Any activation: `spread` needs one for its map 0 x + value."""
        return next(node for node in self.graph.nodes if node.op == "placeholder")

    def input(self, name: str, x: Tensor) -> fx.Node:
        """A placeholder shaped like the example x (b, ...)."""
        node = self.graph.placeholder(name)
        node.meta["val"] = torch.empty(BATCH, *x.shape[1:], dtype=torch.float64, device="meta")
        node.meta["probe"] = torch.empty(OTHER_BATCH, *x.shape[1:], dtype=torch.float64, device="meta")
        node.meta["batch_dim"] = 0
        return node

    def constant(self, value: Tensor) -> fx.Node:
        """A buffer of the rewritten module: numbers in float64, or indices. Two constants with equal entries share
        one buffer. It is a copy, so a later change of the original's weights does not change the rewritten module.
        """
        value = value.detach().to(self.device).contiguous()
        if value.is_floating_point():
            value = value.double()
            if value.numel() and not bool(torch.stack(value.aminmax()).isfinite().all()):
                raise self.unsupported("has a constant that is not finite", "finite weights")
        key = (value.dtype, tuple(value.shape), tuple(value.flatten()[:8].tolist()))
        alike = self._constants.setdefault(key, [])
        for node in alike:
            if torch.equal(self._value(node), value):
                return node
        name = f"constant_{next(self._numbers)}"
        self.root.register_buffer(name, value.clone())
        node = self.graph.get_attr(name)
        node.meta["val"] = node.meta["probe"] = value.to("meta")
        alike.append(node)
        return node

    def emit(self, target: Callable[..., Any], *args: Any, **kwargs: Any) -> fx.Node:
        """One call; tensors among the arguments become constants. Raises if the samples of the batch would mix."""
        args, kwargs = fx.node.map_aggregate((args, kwargs), lambda a: self.constant(a) if isinstance(a, Tensor) else a)
        key = (target, _frozen(args), _frozen(kwargs))
        if key not in self._written:
            node = self.graph.call_function(target, args, kwargs)
            node.meta["place"] = self.place
            for name in ("val", "probe"):
                a, k = fx.node.map_arg((args, kwargs), lambda n: n.meta[name])  # noqa: B023
                node.meta[name] = _shaped(target, *a, **k)
            varying = _varying_dims(node.meta["val"].shape, node.meta["probe"].shape)
            if len(varying) != 1:
                raise self.unsupported("mixes the samples of the batch")
            node.meta["batch_dim"] = varying[0]
            self._written[key] = node
        return self._written[key]

    def unsupported(self, reason: str, nearest: str | None = None) -> UnsupportedOperation:
        """The error for the operation that is being rewritten."""
        hint = f"; nearest supported: {nearest}" if nearest else ""
        return UnsupportedOperation(f"{where(self.source)}: {reason}{hint}")

    # -- shapes --------------------------------------------------------------------------------------------------

    def sizes(self, x: fx.Node) -> list[int]:
        """The sizes of x, -1 for the batch."""
        sizes = list(x.meta["val"].shape)
        sizes[x.meta["batch_dim"]] = -1
        return sizes

    def reshape(self, x: fx.Node, sizes: Sequence[int]) -> fx.Node:
        sizes = tuple(sizes)
        if sizes == tuple(self.sizes(x)):
            return x
        batch = sizes.index(-1)
        if math.prod(sizes[:batch]) != math.prod(self.sizes(x)[: x.meta["batch_dim"]]):
            raise self.unsupported(MERGED)
        return self.emit(torch.reshape, x, sizes)

    def permute(self, x: fx.Node, order: Sequence[int]) -> fx.Node:
        return x if list(order) == [*range(len(order))] else self.emit(torch.permute, x, tuple(order))

    def batch_first(self, x: fx.Node) -> fx.Node:
        batch = x.meta["batch_dim"]
        return self.permute(x, [batch, *(d for d in range(x.meta["val"].ndim) if d != batch)])

    def batch_to(self, x: fx.Node, dim: int) -> fx.Node:
        """Move the batch from the front to `dim`."""
        rest = [*range(1, x.meta["val"].ndim)]
        return self.permute(x, [*rest[:dim], 0, *rest[dim:]])

    def expand(self, x: fx.Node, sizes: Sequence[int]) -> fx.Node:
        """Repeat along new leading dimensions and dimensions of size 1."""
        sizes = tuple(sizes)
        if sizes == tuple(self.sizes(x)):
            return x
        if len(sizes) - sizes.index(-1) != x.meta["val"].ndim - x.meta["batch_dim"]:
            raise self.unsupported("pairs the batch with another dimension")
        return self.emit(torch.broadcast_to, x, sizes)

    def slice(self, x: fx.Node, dim: int, start: int, stop: int, step: int = 1) -> fx.Node:
        if (start, stop, step) == (0, x.meta["val"].shape[dim], 1):
            return x
        self.not_batch(x, dim)
        return self.emit(operator.getitem, x, (*(slice(None),) * dim, slice(start, stop, step)))

    def take(self, x: fx.Node, dim: int, indices: Sequence[int]) -> fx.Node:
        """x at the given indices along dim: slices if the indices form at most three arithmetic progressions, else an
        index_select."""
        runs = _runs(indices) or [(0, 0, 1)]
        if len(runs) > 3:
            self.not_batch(x, dim)
            return self.emit(torch.index_select, x, dim, torch.tensor(indices))
        parts = [self.slice(x, dim, *run) for run in runs]
        return self.cat(parts, dim)

    def cat(self, xs: Sequence[fx.Node], dim: int) -> fx.Node:
        return xs[0] if len(xs) == 1 else self.emit(torch.cat, tuple(xs), dim)

    def not_batch(self, x: fx.Node, *dims: int) -> None:
        if x.meta["batch_dim"] in dims:
            raise self.unsupported("acts along the batch dimension")

    # -- affine maps ---------------------------------------------------------------------------------------------

    def linear(self, x: fx.Node, weight: Tensor, bias: Tensor | None = None) -> fx.Node:
        """x W^T + b along the last dimension."""
        self.not_batch(x, x.meta["val"].ndim - 1)
        return self.emit(F.linear, x, weight, bias)

    def along(self, x: fx.Node, dim: int, matrix: Tensor) -> fx.Node:
        """matrix (m, n) applied along dimension dim of size n."""
        self.not_batch(x, dim)
        if dim == x.meta["val"].ndim - 1:
            return self.linear(x, matrix)
        if x.meta["batch_dim"] > dim:
            batch = x.meta["batch_dim"]
            return self.batch_to(self.along(self.batch_first(x), dim + 1, matrix), batch)
        sizes = self.sizes(x)
        flat = self.reshape(x, [*sizes[: dim + 1], math.prod(sizes[dim + 1 :])])
        y = self.emit(torch.matmul, matrix, flat)
        return self.reshape(y, [*sizes[:dim], len(matrix), *sizes[dim + 1 :]])

    def convolution(
        self, x: fx.Node, weight: Tensor, bias: Tensor | None, transposed: bool = False, **how: Any
    ) -> fx.Node:
        rank = weight.ndim - 2
        if x.meta["val"].ndim != rank + 2 or x.meta["batch_dim"] != 0:
            raise self.unsupported("convolves along the batch dimension")
        return self.emit((TRANSPOSED if transposed else CONVOLUTIONS)[rank], x, weight, bias, **how)

    def scale(self, x: fx.Node, s: Tensor | float, t: Tensor | float) -> fx.Node:
        """s * x + t with s and t broadcast to the size of x."""
        s, t = (torch.as_tensor(v, dtype=torch.float64, device=self.device) for v in (s, t))
        if bool((s == 1).all()) and not bool(t.any()):
            return x
        ndim = x.meta["val"].ndim
        s, t = (v.reshape((1,) * (ndim - v.ndim) + v.shape) for v in (s, t))
        folded = self._fold(x, s, t)
        return folded if folded is not None else self._scaled(x, s, t)

    def _scaled(self, x: fx.Node, s: Tensor, t: Tensor) -> fx.Node:
        """s * x + t, as many dimensions each as x, where no layer before takes it: a convolution of one entry, channel
        by channel."""
        batch, ndim = x.meta["batch_dim"], x.meta["val"].ndim
        if batch != 0:
            s, t = s.movedim(batch, 0), t.movedim(batch, 0)
            return self.batch_to(self.scale(self.batch_first(x), s, t), batch)
        sizes = self.sizes(x)
        varies = [d for d in range(1, ndim) if s.shape[d] > 1 or t.shape[d] > 1]
        last = max([1, *varies])
        s, t = (v.expand(1, *v.shape[1 : last + 1], *(1,) * (ndim - last - 1)) for v in (s, t))
        full = (1, *sizes[1 : last + 1], *(1,) * (ndim - last - 1))
        s, t = s.expand(full).flatten(), t.expand(full).flatten()
        if last > 1 or ndim not in (3, 4, 5):
            flat = [-1, len(s), math.prod(sizes[last + 1 :])]
            x = self.reshape(x, flat)
        rank = x.meta["val"].ndim - 2
        y = self.convolution(x, s.reshape(-1, 1, *(1,) * rank), t if bool(t.any()) else None, groups=len(s))
        return self.reshape(y, sizes)

    def _fold(self, x: Any, s: Tensor, t: Tensor) -> fx.Node | None:
        """s * (W x + b) + t = (s W) x + (s b + t), if no other operation reads W x + b and s, t vary only along the
        output channels. None if that does not hold."""
        transposed = x.target in TRANSPOSED.values()
        convolution = transposed or x.target in CONVOLUTIONS.values()
        if not (convolution or x.target is F.linear) or x.users or self.readers.get(x, 0) > 1:
            return None
        channel = 1 if convolution else x.meta["val"].ndim - 1
        if any(size > 1 for v in (s, t) for d, size in enumerate(v.shape) if d != channel):
            return None
        inner, weight, bias, *rest = (*x.args, None)[:3] if len(x.args) < 3 else x.args
        channels = x.meta["val"].shape[channel]
        s, t = s.flatten().expand(channels), t.flatten().expand(channels)
        w = self._value(weight).double()
        if transposed:  # weight (in, out/groups, ...): output channel = group * out/groups + column
            groups = x.kwargs.get("groups", 1)
            grouped = w.reshape(groups, -1, *w.shape[1:]) * s.reshape(groups, 1, -1, *(1,) * (w.ndim - 2))
            w = grouped.reshape(w.shape)
        else:
            w = w * s.reshape(-1, *(1,) * (w.ndim - 1))
        if self._underflows(w, self._value(weight)):
            return None
        b = t if bias is None else self._value(bias).double() * s + t
        return self.emit(x.target, inner, w, b, *rest, **x.kwargs)

    def _underflows(self, product: Tensor, weight: Tensor) -> bool:
        """Whether the largest entry of an output channel is a normal number in `weight`, but no longer in the product,
        in the dtype of the inputs: a later operation may make it large again."""
        tiny = torch.finfo(self.dtype).tiny
        after, before = (v.abs().flatten(1).amax(1) if v.numel() else v.flatten() for v in (product, weight))
        return bool(((after < tiny) & (after > 0) & (before >= tiny)).any())

    def _value(self, constant: Any) -> Tensor:
        return self.root.get_buffer(constant.target)

    def combine(self, xs: Sequence[fx.Node], coefficients: Sequence[float], *, merge: bool = True) -> fx.Node:
        """sum of coefficients[i] * xs[i], tensors of one size: cat, then the fixed map (c_1 I  c_2 I  ...).

        With `merge`, a term that is itself a sum and that no other operation reads is replaced by its terms, so that
        a + b + c is one concatenation.
        """
        terms = [(x, float(c)) for x, c in zip(xs, coefficients, strict=True)]
        if not all(math.isfinite(c) for _, c in terms):
            raise self.unsupported("has a constant that is not finite", "finite weights")
        if merge:
            terms = [(y, d) for x, c in terms for y, d in self._terms(x, c)]
        if len(terms) == 1:
            return self.scale(terms[0][0], terms[0][1], 0.0)
        return self._sum(terms)

    def _sum(self, terms: Sequence[tuple[fx.Node, float]]) -> fx.Node:
        """The sum of c x over two or more terms (x, c)."""
        x = terms[0][0]
        batch, sizes = x.meta["batch_dim"], self.sizes(x)
        state = self._stacked([y for y, _ in terms])
        state = self.reshape(state, [*sizes[: batch + 1], len(terms), math.prod(sizes[batch + 1 :])])
        y = self.emit(torch.matmul, torch.tensor([[c for _, c in terms]], dtype=torch.float64), state)
        y = self.reshape(y, sizes) if y.meta["val"].shape != x.meta["val"].shape else y
        y.meta["terms"] = terms
        return y

    def _stacked(self, xs: Sequence[fx.Node]) -> fx.Node:
        """Tensors of one size along a new dimension behind the batch."""
        dim = xs[0].meta["batch_dim"] + 1
        return self.cat([self.emit(torch.unsqueeze, x, dim) for x in xs], dim)

    def _terms(self, x: fx.Node, c: float) -> list[tuple[fx.Node, float]]:
        """c x as a sum of multiples of its terms, unless another operation reads x or a coefficient would underflow."""
        terms = [(y, c * d) for y, d in x.meta.get("terms", ())]
        if not terms or x.users or self.readers.get(x, 0) > 1:
            return [(x, c)]
        tiny = torch.finfo(self.dtype).tiny
        underflows = any(abs(d) < tiny <= abs(c) and b for (_, d), (_, b) in zip(terms, x.meta["terms"], strict=True))
        return [(x, c)] if underflows else terms

    def spread(self, value: Tensor, sizes: Sequence[int], like: fx.Node) -> fx.Node:
        """The constant `value` for every sample: the affine map 0 x + value. sizes holds -1 for the batch."""
        like = self.batch_first(like)
        like = self.reshape(like, [-1, math.prod(self.sizes(like)[1:])])
        batch = list(sizes).index(-1)
        value = value.expand([1 if d == -1 else d for d in sizes]).movedim(batch, 0)
        flat = value.double().flatten()
        y = self.linear(self.slice(like, 1, 0, 1), torch.zeros(len(flat), 1), flat)
        return self.batch_to(self.reshape(y, [-1, *value.shape[1:]]), batch)

    # -- relu and maxima -----------------------------------------------------------------------------------------

    def relu(self, x: fx.Node) -> fx.Node:
        return self.emit(torch.relu, x)

    def maximum(self, x: fx.Node, y: fx.Node) -> fx.Node:
        """max(x, y) = relu(x - y) + y, tensors of one size. Exact where x <= y; else within an ulp of the larger."""
        gap = self.relu(self.combine([x, y], [1, -1], merge=False))
        return self.combine([gap, y], [1, 1], merge=False)

    def window_max(self, x: fx.Node, dim: int, windows: Sequence[Window]) -> fx.Node:
        """Along dim, the maximum over each window of indices, by the tree `half_tree`; all windows have n indices,
        which may repeat. Every layer of the tree is one `maximum`, so the depth is ceil(log2 n)."""
        tree = half_tree(windows)
        if not tree:
            return self.take(x, dim, [i for (i,) in windows])
        first = sorted({part for parts in tree[0].values() if len(parts) == 2 for part in parts})
        level, place = self.take(x, dim, [i for (i,) in first]), {window: i for i, window in enumerate(first)}
        for k, layer in enumerate(tree):
            # The windows that a layer carries unchanged are single indices: the next layer reads them from x.
            made = windows if k == len(tree) - 1 else [window for window, parts in layer.items() if len(parts) == 2]
            left, right = ([layer[window][side] for window in made] for side in (0, 1))
            a = self.take(level, dim, [place[window] for window in left])
            if right[0] in place:
                b = self.take(level, dim, [place[window] for window in right])
            else:
                b = self.take(x, dim, [i for (i,) in right])
            level, place = self.maximum(a, b), {window: i for i, window in enumerate(made)}
        return level

    def box_max(self, x: fx.Node, windows: dict[int, list[Window]]) -> fx.Node:
        """The maximum over boxes: windows[dim] as in window_max, dims adjacent. One dimension after the other if
        that has the depth ceil(log2 n), n the entries of a box; else the dimensions are merged into one."""
        lengths = [len(w[0]) for w in windows.values()]
        if sum(map(tree_depth, lengths)) == tree_depth(math.prod(lengths)):
            for dim, along in windows.items():
                x = self.window_max(x, dim, along)
            return x
        self.not_batch(x, *windows)
        sizes, dims = self.sizes(x), [*windows]
        before, after = sizes[: dims[0]], sizes[dims[-1] + 1 :]
        index = torch.arange(math.prod(sizes[d] for d in dims)).reshape([sizes[d] for d in dims])
        for axis, d in enumerate(dims):  # outer product of the windows, one axis at a time
            index = index.movedim(2 * axis, 0)[torch.tensor(windows[d])].movedim((0, 1), (2 * axis, 2 * axis + 1))
        count = len(dims)
        index = index.permute(*range(0, 2 * count, 2), *range(1, 2 * count, 2)).flatten(count).flatten(0, count - 1)
        boxes = [tuple(row) for row in index.tolist()]
        x = self.reshape(x, [*before, math.prod(sizes[d] for d in dims), *after])
        return self.reshape(self.window_max(x, dims[0], boxes), [*before, *(len(windows[d]) for d in dims), *after])


def where(node: fx.Node | None) -> str:
    """'gelu at blocks.0.act (model.py:31) on shape (b, 8, 16)' for an operation of a captured graph."""
    if node is None:
        return "the graph"
    name = getattr(node.target, "_schema", None)
    text = name.name.split("::")[-1] if name else getattr(node.target, "__name__", str(node.target))
    modules = list((node.meta.get("nn_module_stack") or {}).values())
    if "title" in node.meta:
        text += f" at {node.meta['title']}"
    elif modules:
        path, kind = modules[-1]
        text += f" at {path or 'the module itself'} ({getattr(kind, '__name__', str(kind)).split('.')[-1]})"
    line = _line(node.meta.get("stack_trace") or "")
    if line and "title" not in node.meta:
        text += f" in {line}"
    operands = [a.meta["val"] for a in node.all_input_nodes if isinstance(a.meta.get("val"), Tensor)]
    if operands:
        shape = ", ".join("b" if isinstance(d, torch.SymInt) else str(d) for d in operands[0].shape)
        text += f" on shape ({shape})"
    return text


def _line(trace: str) -> str:
    """file:line of the innermost frame outside torch."""
    frames = [f.strip() for f in trace.splitlines() if f.strip().startswith("File ")]
    outside = [f for f in frames if "/torch/" not in f] or frames
    if not outside:
        return ""
    file, line, *_ = outside[-1].removeprefix("File ").split(", ")
    return f"{file.strip(chr(34)).rsplit('/', 1)[-1]}:{line.removeprefix('line ')}"


def _shaped(target: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """target(*args, **kwargs) on the meta device, where torch runs a ReLU and a bias in a millisecond of Python."""
    if target is torch.relu:
        return args[0]
    if target is F.linear and len(args) == 3:
        return F.linear(args[0], args[1])
    return target(*args, **kwargs)


def _varying_dims(one: Sequence[int], other: Sequence[int]) -> list[int]:
    """The dimensions in which two shapes differ."""
    return [d for d, (m, n) in enumerate(zip(one, other, strict=True)) if m != n]


def _runs(indices: Sequence[int]) -> list[tuple[int, int, int]]:
    """The indices as (start, stop, step) runs with step > 0, greedily."""
    steps = {j - i for i, j in itertools.pairwise(indices)}
    if len(steps) == 1 and min(steps) > 0:
        return [(indices[0], indices[-1] + 1, min(steps))]
    runs, i = [], 0
    while i < len(indices):
        j = i + 1
        step = indices[j] - indices[i] if j < len(indices) and indices[j] > indices[i] else 1
        while j < len(indices) and indices[j] - indices[j - 1] == step:
            j += 1
        if j - i == 2 and step > 1:  # two indices with a gap are no slice: the second one may begin a longer run
            j, step = i + 1, 1
        runs.append((indices[i], indices[j - 1] + 1, step))
        i = j
    return runs


def _frozen(argument: Any) -> Any:
    if isinstance(argument, (tuple, list)):
        return tuple(map(_frozen, argument))
    if isinstance(argument, dict):
        return tuple((k, _frozen(v)) for k, v in argument.items())
    if isinstance(argument, slice):
        return (slice, argument.start, argument.stop, argument.step)
    return (type(argument), argument)
