"""A torch model as an equal torch model of affine maps, ReLU, concatenation and reshapes alone."""

import operator
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from skipform.compiler import targets
from skipform.compiler.capture import CAPTURE_FAILURES, Captured, capture, examples, mutates
from skipform.compiler.check import AGREEMENT, apart
from skipform.compiler.check import check as compare
from skipform.compiler.emit import BATCH, MERGED, OTHER_BATCH, Emitter, UnsupportedOperation, where
from skipform.compiler.rules import (
    NEAREST,
    NOT_PIECEWISE_LINEAR,
    RULES,
    BatchInside,
    PaddedWithMinusInfinity,
    Unavailable,
    is_activation,
)
from skipform.compiler.sequential import read
from skipform.compiler.targets import MEMORY, Settings
from skipform.errors import SkipformError, first_line

SYMBOLS = (torch.SymInt, torch.SymFloat, torch.SymBool)
# Operations on constants that may read the batch size: it is a size of the result and nothing else.
SIZED = (
    "full",
    "zeros",
    "ones",
    "empty",
    "expand",
    "repeat",
    "new_zeros",
    "new_ones",
    "view",
    "_unsafe_view",
    "reshape",
)
SEVERAL = (1, 2, 3, 5, 8, 100)  # batch sizes at which a size of the result must be the same multiple of the batch

__all__ = ["InputShapes", "UnsupportedOperation", "operation", "rewrite"]


def rewrite(
    module: nn.Module,
    example_inputs: Any,
    target: str = "grammar",
    *,
    box: tuple[Any, Any] | None = None,
    memory: int = MEMORY,
    check: bool = True,
) -> fx.GraphModule:
    """A graph module equal to `module` in eval mode whose only operations are affine maps with constant weights
    (convolution, linear, matmul), `torch.relu`, `torch.cat`, and what moves entries (reshape, permute, slices, ...).

    An addition x + y is a concatenation and the fixed map (I I) (Theorem 2). `target` chooses another form, see
    targets/: with "keep_add" it stays `torch.add`, which is the same by Proposition 1. example_inputs: a tensor or
    tuple of tensors, batch first; the result takes any batch size, and the other sizes of the example only. Its weights
    are buffers of its own, in the dtype of the inputs: the original may be trained, moved or changed afterwards.

    box: (lower, upper), numbers or arrays of the input's shape; the inputs are known to lie between them. memory: bytes
    that the matrices of a target may take. Unless `check` is false the result is compared with `module` before it is
    returned (see check.py).

    The count of the original's operations by name is in meta["original_operations"] of the result.
    Every node that depends on the input has node.meta["batch_dim"], node.meta["val"], a tensor on the meta device, and
    node.meta["place"], which describes the operation of the original that it computes.
    Raises UnsupportedOperation for an operation that has no rule or is not piecewise linear, SkipformError for a module
    in training mode, inputs it does not take, control flow on data, InternalError if the result failed its check.
    """
    form = targets.find(target)
    inputs = examples(example_inputs)
    graph = form.rewritten(module, inputs, Settings(check, box, memory))
    return _cast(graph, inputs[0].dtype, type(module).__name__)


@torch.no_grad()
def rewrite_in_float64(
    module: nn.Module, example_inputs: Any, writer: type[Emitter] = Emitter, *, check: bool = True
) -> fx.GraphModule:
    """The grammar's form, in float64 whatever the dtype of the module and its inputs; their numbers are not rounded.

    writer: the emitter, whose steps decide how a sum, a maximum, a scale is written."""
    inputs = examples(example_inputs)
    captured = read(module, inputs) or capture(module, inputs, supported)
    emitter = writer(inputs[0].device, inputs[0].dtype)
    values: dict[fx.Node, Any] = {}
    origin: dict[fx.Node, fx.Node] = {}  # an in-place operation -> the operation whose result it writes into
    written: dict[fx.Node, Any] = {}  # an operation -> the result of its rule
    for node in captured.graph.nodes:
        if node.op == "placeholder":
            values[node] = _placeholder(emitter, captured, node, inputs)
        elif node.op == "call_function":
            arguments = fx.node.map_arg((node.args, node.kwargs), lambda n: _read(values, origin, n))
            emitter.source, emitter.place = node, where(node)
            written[node] = result = _apply(emitter, node, *arguments, lambda n: _read(values, origin, n))
            if mutates(node):
                origin[node] = origin.get(node.args[0], node.args[0])
                values[origin[node]] = result
            values[node] = result
            _compare_sizes(emitter, node, result)
            _compare_dtypes(emitter, node, [n for n in node.all_input_nodes if is_activation(values.get(n))])
        elif node.op == "output":
            flat = [_output(emitter, a, _read(values, origin, a)) for a in node.args[0]]
    outputs = pytree.tree_unflatten(list(flat), captured.outputs)
    graph = finish(emitter, outputs, [tuple(x.shape[1:]) for x in inputs], type(module).__name__)
    operations = Counter(operation(n.target) for n in captured.graph.nodes if _computes(n))
    graph.meta["original_operations"] = dict(operations)
    if check:
        compare(module, captured, graph, written, inputs)
    return graph


def _cast(graph: fx.GraphModule, dtype: torch.dtype, name: str) -> fx.GraphModule:
    """The same graph in another dtype. Raises SkipformError if a weight is too large for it."""
    if dtype == torch.float64:
        return graph
    graph.to(dtype)
    for buffer in graph.buffers():
        if not bool(buffer.isfinite().all()):
            raise SkipformError(f"{name}: a rewritten weight is too large for {dtype}; float64 is accepted")
    for node in graph.graph.nodes:
        value = node.meta.get("val")
        if isinstance(value, Tensor) and value.is_floating_point():
            node.meta["val"] = value.to(dtype)
    return graph


class InputShapes:
    """A forward pre-hook: the rewritten network is valid for any batch size and the other sizes of its example only."""

    def __init__(self, shapes: Sequence[tuple[int, ...]]):
        self.shapes = [tuple(shape) for shape in shapes]

    def __call__(self, module: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> None:
        for position, (x, shape) in enumerate(zip((*args, *named.values()), self.shapes, strict=False)):
            if tuple(x.shape[1:]) != shape:
                accepted = ", ".join(map(str, ("b", *shape)))
                raise SkipformError(f"input {position} has shape {tuple(x.shape)}; rewritten for ({accepted})")


def operation(target: Any) -> str:
    """The name of an operation in the table of rules: 'add' for aten.add_.Tensor, 'torchvision::nms' for others."""
    schema = getattr(target, "_schema", None)
    if schema is None:
        return getattr(target, "__name__", str(target))
    space, _, name = schema.name.partition("::")
    if any(argument.is_write for argument in schema.arguments):
        name = name.rstrip("_")
    return name if space == "aten" else schema.name


def _computes(node: fx.Node) -> bool:
    return node.op == "call_function" and isinstance(node.meta.get("val"), (Tensor, tuple, list))


def supported(target: Any) -> bool:
    """Whether the operation has a rule, or an entry in NOT_PIECEWISE_LINEAR; others may be decomposed."""
    name = operation(target)
    return name in RULES or name in NOT_PIECEWISE_LINEAR


def _read(values: dict[fx.Node, Any], origin: dict[fx.Node, fx.Node], node: Any) -> Any:
    return values[origin.get(node, node)] if isinstance(node, fx.Node) else node


def _placeholder(emitter: Emitter, captured: Captured, node: fx.Node, inputs: Sequence[Tensor]) -> Any:
    if node.name in captured.inputs:
        return emitter.input(node.name, inputs[captured.inputs.index(node.name)])
    value = captured.constants[node.name]
    return value.double() if value.is_floating_point() else value


def _apply(emitter: Emitter, node: Any, args: Any, kwargs: Any, read: Callable[[fx.Node], Any]) -> Any:
    """The result of one operation of the original: computed if constant, else by its rule. read: node -> its value."""
    if node.target is operator.getitem:
        return args[0][args[1]]
    value = node.meta.get("val")
    if value is None or isinstance(value, (torch.SymInt, torch.SymFloat, torch.SymBool, int, float, bool)):
        return value  # sizes, and the assertions of export on them
    flat = pytree.tree_leaves((args, kwargs))
    for leaf in flat:
        if isinstance(leaf, Unavailable):
            raise emitter.unsupported(f"uses {leaf.what}, which is not continuous", "the value itself")
    name = operation(node.target)
    _no_batch_size(emitter, node.target, args, kwargs)
    if not any(map(is_activation, flat)):
        try:
            return _constant(emitter, node, read)
        except CAPTURE_FAILURES as error:
            if isinstance(error, SkipformError):
                raise
            raise emitter.unsupported(f"does not run on constants ({first_line(error)})") from None
    if name not in RULES:
        if name in NOT_PIECEWISE_LINEAR:
            raise emitter.unsupported("is not piecewise linear", NOT_PIECEWISE_LINEAR[name])
        raise emitter.unsupported("has no rewriting rule", NEAREST.get(name))
    if any(isinstance(leaf, PaddedWithMinusInfinity) for leaf in flat) and not name.startswith("max_pool"):
        raise emitter.unsupported("takes entries of -inf; only a max pooling may follow that padding")
    if any(isinstance(leaf, BatchInside) for leaf in flat) and name not in (
        "linear",
        "view",
        "_unsafe_view",
        "reshape",
    ):
        raise emitter.unsupported(f"{MERGED}; only a linear layer and a reshape may follow that")
    try:
        return emitter.rules.get(name, RULES[name])(emitter, *args, **kwargs)
    except CAPTURE_FAILURES as error:
        if isinstance(error, SkipformError):
            raise
        raise emitter.unsupported(f"in this form has no rewriting rule ({first_line(error)})") from None


def _no_batch_size(emitter: Emitter, target: Any, args: Any, kwargs: Any) -> None:
    """Raise if the batch size is a number that the operation computes with, and no size of its result."""
    schema = getattr(target, "_schema", None)
    named = dict(zip((a.name for a in schema.arguments), args, strict=False)) | kwargs if schema else {}
    for name, value in named.items():
        symbolic = any(isinstance(leaf, SYMBOLS) for leaf in pytree.tree_leaves(value))
        if symbolic and name not in ("size", "shape", "sizes", "repeats", "dims", "end"):
            raise emitter.unsupported("computes with the batch size, or a number read from a tensor")


def _constant(emitter: Emitter, node: Any, read: Callable[[fx.Node], Any]) -> Any:
    """An operation on constants, in float64. One that is shaped like the batch becomes the rows of one sample, which
    must be the same for every sample and batch size; one that draws random numbers is refused."""
    if _is_random(node):
        raise emitter.unsupported("draws random numbers", "a buffer that holds them")
    name, value = operation(node.target), node.meta["val"]
    sized = any(isinstance(n.meta.get("val"), SYMBOLS) for n in node.all_input_nodes)
    shaped = any(map(_of_batch, (value, *(n.meta.get("val") for n in node.all_input_nodes))))
    if sized and not (shaped and name in SIZED):
        raise emitter.unsupported("computes with the batch size")

    def computed(batch: int) -> list[Any]:
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: _at_batch(n.meta.get("val"), read(n), batch))
        if mutates(node):
            args = (args[0].clone(), *args[1:])  # the module's own tensors must not change
        results = pytree.tree_leaves(node.target(*args, **kwargs))
        if "empty" in name:
            results = [result.zero_() for result in results]
        return [r.double() if isinstance(r, Tensor) and r.is_floating_point() else r for r in results]

    leaves, structure = pytree.tree_flatten(value)
    rows = [_row(result, like) for result, like in zip(computed(1), leaves, strict=True)]
    for batch in (BATCH, OTHER_BATCH) if shaped else ():
        for row, result, like in zip(rows, computed(batch), leaves, strict=True):
            if isinstance(row, Tensor) and not _equal(_at_batch(like, row, batch), result):
                raise emitter.unsupported("makes a constant that differs between samples or batch sizes")
    return pytree.tree_unflatten(rows, structure)


def _is_random(node: Any) -> bool:
    """Whether the operation draws random numbers: dropout does in training mode only, attention for a positive rate."""
    if torch.Tag.nondeterministic_seeded not in getattr(node.target, "tags", ()):
        return False
    given = {a.name: a.default_value for a in node.target._schema.arguments if a.has_default_value()} | node.kwargs
    given |= dict(zip((a.name for a in node.target._schema.arguments), node.args, strict=False))
    return given.get("train") is not False and given.get("dropout_p", 1.0) > 0  # train=None trains


def _of_batch(value: Any) -> bool:
    """Whether a dimension of a tensor of the original depends on the batch size."""
    return any(isinstance(d, torch.SymInt) for v in pytree.tree_leaves(value) if isinstance(v, Tensor) for d in v.shape)


def _row(result: Any, like: Any) -> Any:
    """The entries of one sample along every dimension that depends on the batch size in `like`; one entry if all of
    them are equal. result: for a batch of one."""
    for dim, size in enumerate(like.shape if isinstance(result, Tensor) else ()):
        if isinstance(size, torch.SymInt):
            first = result.narrow(dim, 0, 1)
            result = first if torch.equal(first.expand_as(result), result) else result
    return result


def _at_batch(like: Any, value: Any, batch: int) -> Any:
    """A constant shaped like `like`, or a size, for a batch of that many samples."""
    if isinstance(value, torch.SymInt):
        return _size(value, batch)
    if isinstance(value, Tensor) and isinstance(like, Tensor):
        sizes = tuple(_size(d, batch) for d in like.shape)
        if sizes != tuple(value.shape):
            return value.repeat([n // max(m, 1) for n, m in zip(sizes, value.shape, strict=True)])
    return value


def _size(size: Any, batch: int) -> int:
    """A size of the original for a batch of that many samples."""
    if not isinstance(size, torch.SymInt):
        return size
    expression = size.node.expr
    return batch if expression.is_Symbol else int(expression.subs(dict.fromkeys(expression.free_symbols, batch)))


def _equal(one: Tensor, other: Tensor) -> bool:
    """Whether shapes and entries are equal, NaN to NaN, but for rounding: a product of matrices sums in another order
    for another batch size."""
    gap, size = apart(one, other, None)
    return one.shape == other.shape and bool(gap <= (AGREEMENT * size if one.is_floating_point() else 0))


def _compare_sizes(emitter: Emitter, node: fx.Node, result: Any) -> None:
    """Raise if a rule's result has another shape than the original. Records how many operations read the result."""
    pairs = [(result, node.meta.get("val"))]
    if isinstance(result, (tuple, list)):
        pairs = [*zip(result, node.meta["val"], strict=False)]
    for new, value in pairs:
        if isinstance(new, fx.Node) and isinstance(value, Tensor):
            expected = [d if isinstance(d, int) else -1 for d in value.shape]
            if expected != emitter.sizes(new):
                raise emitter.unsupported(f"was rewritten to sizes {emitter.sizes(new)} instead of {expected}")
            dim = new.meta["batch_dim"]
            multiple = new.meta["val"].shape[dim] // BATCH
            if any(_size(value.shape[dim], batch) != multiple * batch for batch in SEVERAL):
                raise emitter.unsupported("has another size than its rewritten form for some batch sizes")
            emitter.readers[new] = max(emitter.readers.get(new, 0), len(node.users))


def _compare_dtypes(emitter: Emitter, node: fx.Node, activations: Sequence[fx.Node]) -> None:
    """Raise if the result of an operation on activations is not real, or of a coarser dtype: both are casts."""
    values = [v for n in (node, *activations) for v in [n.meta.get("val")] if isinstance(v, Tensor)]
    if activations and len(values) > len(activations):
        after, *before = (v.dtype for v in values)
        if not after.is_floating_point or any(torch.finfo(after).eps > torch.finfo(b).eps for b in before):
            raise emitter.unsupported(f"makes {after} of {before[0]}", "one dtype throughout")


def _output(emitter: Emitter, argument: Any, value: Any) -> Any:
    if isinstance(value, BatchInside):
        emitter.source = argument
        raise emitter.unsupported(MERGED)
    if isinstance(value, (Unavailable, PaddedWithMinusInfinity)):
        emitter.source = argument.args[0] if argument.target is operator.getitem else argument
        what = value.what if isinstance(value, Unavailable) else "entries of -inf"
        raise emitter.unsupported(f"returns {what}, which no network of affine maps and ReLU has")
    emitter.source = argument if isinstance(argument, fx.Node) else None
    if isinstance(value, SYMBOLS):
        raise emitter.unsupported("returns the batch size")
    if isinstance(value, Tensor):
        sizes = [d if isinstance(d, int) else -1 for d in argument.meta["val"].shape]
        if -1 not in sizes:
            return emitter.constant(value)
        value = emitter.spread(value, sizes, emitter.first_input)
        _compare_sizes(emitter, argument, value)
    return value


def finish(emitter: Emitter, outputs: Any, shapes: Sequence[tuple[int, ...]], name: str) -> fx.GraphModule:
    """The graph module of an emitter's graph: dead operations and buffers dropped. shapes: of one sample of each
    input."""
    emitter.graph.output(outputs)
    emitter.graph.eliminate_dead_code()
    for node in emitter.graph.nodes:
        for key in ("probe", "terms"):
            node.meta.pop(key, None)
    used = {node.target for node in emitter.graph.nodes if node.op == "get_attr"}
    root = nn.Module()
    for position, node in enumerate(n for n in emitter.graph.nodes if n.op == "get_attr" and n.target in used):
        constant = emitter.root.get_buffer(node.target)
        node.target = f"constant_{position}"
        root.register_buffer(node.target, constant)
    rewritten = fx.GraphModule(root, emitter.graph, class_name=f"{name}Rewritten")
    rewritten.register_forward_pre_hook(InputShapes(shapes), with_kwargs=True)
    return rewritten.eval()
