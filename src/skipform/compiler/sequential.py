"""A chain of torch's own layers as a graph of ATen operations, read from the modules themselves.

torch.export takes 50 to 100 ms even for a perceptron, many times what measuring it takes. What an `nn.Sequential` does
needs no tracing: `read` writes down the operations that capture.py would find, or nothing where it cannot be sure.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv
from torch.nn.modules import module as torch_module
from torch.utils import _pytree as pytree

from skipform.compiler.capture import CAPTURE_FAILURES, Captured
from skipform.compiler.emit import BATCH

A = torch.ops.aten


class Call(NamedTuple):
    """What one module does: an operation of ATen, its arguments after the input, and its result on the meta device."""

    operation: Any
    arguments: tuple[Any, ...]
    result: Tensor


class Layer(NamedTuple):
    """How a type of modules is read: the numbers of dimensions that the input x may have, and a module's call on it,
    or None where the module is not read."""

    dims: range
    call: Callable[[Any, Tensor], Call | None]


def _same_shape(operation: Any, *names: str) -> Callable[[Any, Tensor], Call | None]:
    """An operation on every entry, whose arguments are attributes of the module."""
    return lambda part, x: Call(operation, tuple(getattr(part, name) for name in names), x)


def _linear(part: Any, x: Tensor) -> Call | None:
    if x.shape[-1] != part.weight.shape[1]:
        return None
    # torch computes the shape of a linear layer with its bias on the meta device in a millisecond of Python.
    return Call(A.linear.default, (part.weight, part.bias), x.new_empty((*x.shape[:-1], len(part.weight))))


def _batch_norm(part: Any, x: Tensor) -> Call | None:
    statistics = part.running_mean, part.running_var
    if any(s is None for s in statistics) or len(statistics[0]) != x.shape[1]:
        return None
    return Call(A.batch_norm.default, (part.weight, part.bias, *statistics, False, 0.1, part.eps, False), x)


def _run(operation: Any, x: Tensor, *arguments: Any) -> Call:
    """The call, with the shape that torch computes on the meta device."""
    return Call(operation, arguments, operation(x, *(a.to("meta") if isinstance(a, Tensor) else a for a in arguments)))


def _convolution(plain: Any, same: Any) -> Callable[[Any, Tensor], Call | None]:
    def call(part: Any, x: Tensor) -> Call | None:
        if part.padding_mode != "zeros":
            return None
        operation, padding = (same, part.padding) if isinstance(part.padding, str) else (plain, [*part.padding])
        return _run(operation, x, part.weight, part.bias, [*part.stride], padding, [*part.dilation], part.groups)

    return call


def _max_pool(operation: Any) -> Callable[[Any, Tensor], Call | None]:
    def call(part: Any, x: Tensor) -> Call | None:
        if part.return_indices:
            return None
        sizes = map(_listed, (part.kernel_size, part.stride, part.padding, part.dilation))
        return _run(operation, x, *sizes, part.ceil_mode)

    return call


def _average_pool(operation: Any) -> Callable[[Any, Tensor], Call | None]:
    def call(part: Any, x: Tensor) -> Call | None:
        sizes = map(_listed, (part.kernel_size, part.stride, part.padding))
        divisor = getattr(part, "divisor_override", None)
        return _run(operation, x, *sizes, part.ceil_mode, part.count_include_pad, *([divisor] if divisor else []))

    return call


def _flatten(part: Any, x: Tensor) -> Call | None:
    return _run(A.flatten.using_ints, x, part.start_dim, part.end_dim) if part.start_dim > 0 else None


def _listed(value: Any) -> list[int]:
    return [value] if isinstance(value, int) else [*value]


ANY, FLAT, ROW, IMAGE, VOLUME = range(1, 9), range(2, 9), range(3, 4), range(4, 5), range(5, 6)  # numbers of dimensions
VIEWS = (A.flatten.using_ints, A.dropout.default)  # whose result may be the input itself
LAYERS: dict[type[nn.Module], Layer] = {
    nn.Linear: Layer(FLAT, _linear),
    nn.ReLU: Layer(ANY, _same_shape(A.relu.default)),  # in place or not: nothing else reads its input
    nn.Dropout: Layer(ANY, _same_shape(A.dropout.default, "p", "training")),
    nn.Flatten: Layer(FLAT, _flatten),
    nn.Conv1d: Layer(ROW, _convolution(A.conv1d.default, A.conv1d.padding)),
    nn.Conv2d: Layer(IMAGE, _convolution(A.conv2d.default, A.conv2d.padding)),
    nn.Conv3d: Layer(VOLUME, _convolution(A.conv3d.default, A.conv3d.padding)),
    nn.BatchNorm1d: Layer(range(2, 4), _batch_norm),
    nn.BatchNorm2d: Layer(IMAGE, _batch_norm),
    nn.BatchNorm3d: Layer(VOLUME, _batch_norm),
    nn.MaxPool1d: Layer(ROW, _max_pool(A.max_pool1d.default)),
    nn.MaxPool2d: Layer(IMAGE, _max_pool(A.max_pool2d.default)),
    nn.MaxPool3d: Layer(VOLUME, _max_pool(A.max_pool3d.default)),
    nn.AvgPool1d: Layer(ROW, _average_pool(A.avg_pool1d.default)),
    nn.AvgPool2d: Layer(IMAGE, _average_pool(A.avg_pool2d.default)),
    nn.AvgPool3d: Layer(VOLUME, _average_pool(A.avg_pool3d.default)),
}


def read(module: nn.Module, inputs: tuple[Tensor, ...]) -> Captured | None:
    """The graph of a module made of torch's own layers in a row (the types in LAYERS, Identity, Sequential, nested), in
    eval mode; None for any other, and for one that does not take the inputs.

    A module whose behaviour its type does not tell (hooks, a forward or other method of its own, a subclass, a
    parametrization) is none of these, and neither is one whose weights are not those of the dtype and device of the
    inputs.
    """
    parts = list(_parts(module))
    if len(inputs) != 1 or not all(_is_plain(part) for _, part in parts) or _has_global_hooks():
        return None
    (x,), graph = inputs, fx.Graph()
    constants: dict[str, Tensor] = {}
    placeholders: dict[int, fx.Node] = {}  # by the id of the tensor: one that is shared is one placeholder
    for path, part in parts:
        for name, tensor in (*part.named_parameters(recurse=False), *part.named_buffers(recurse=False)):
            if tensor.is_floating_point() and (tensor.dtype, tensor.device) != (x.dtype, x.device):
                return None
            if id(tensor) not in placeholders:
                placeholders[id(tensor)] = node = graph.placeholder("_".join(["p", *path.split("."), name]))
                constants[node.name], node.meta["val"] = tensor, tensor.detach().to("meta")
    source = node = graph.placeholder("input")
    source.name = "input"  # as torch's layers call it; a graph of its own would avoid the name of a builtin
    batch, sample = _batch(), torch.empty(BATCH, *x.shape[1:], dtype=x.dtype, device="meta")
    node.meta["val"] = value = torch.empty((batch, *x.shape[1:]), dtype=x.dtype, device="meta")
    for path, part in parts:
        if type(part) in (nn.Sequential, nn.Identity):
            continue
        layer = LAYERS[type(part)]
        try:
            call = layer.call(part, sample) if sample.ndim in layer.dims else None
        except CAPTURE_FAILURES:  # torch.export says what is wrong
            return None
        if getattr(part, "inplace", False) and (node is source or node.target in VIEWS):  # it would change the input
            return None
        if call is None or any(isinstance(a, Tensor) and id(a) not in placeholders for a in call.arguments):
            return None
        if call.result.shape != sample.shape:
            value = torch.empty((batch, *call.result.shape[1:]), dtype=x.dtype, device="meta")
        sample = call.result
        arguments = _without_defaults(call)
        node = graph.call_function(call.operation, (node, *(placeholders.get(id(a), a) for a in arguments)))
        node.meta["val"], node.meta["nn_module_stack"] = value, {path: (path, type(part))}
    if node is source:
        return None
    graph.output((node,))
    return Captured(graph, constants, (source.name,), pytree.tree_structure(x))


def _parts(module: nn.Module, path: str = "") -> Iterator[tuple[str, nn.Module]]:
    """The module and what it applies one after another, by path; a Sequential comes before its parts."""
    yield path, module
    if type(module) is nn.Sequential:
        for name, part in module._modules.items():
            yield from _parts(part, f"{path}.{name}" if path else name)


def _is_plain(part: nn.Module) -> bool:
    """Whether the type of the module says what it does."""
    known = type(part) in (nn.Sequential, nn.Identity) or type(part) in LAYERS
    hooks = part._forward_hooks or part._forward_pre_hooks or part._backward_hooks or part._backward_pre_hooks
    own = any(callable(getattr(type(part), name, None)) for name in vars(part))  # a method that the instance replaces
    return known and not (part.training or hooks or own)


def _without_defaults(call: Call) -> list[Any]:
    """The arguments without the last ones that are the defaults of the operation, as torch.export writes them."""
    arguments = list(call.arguments)
    for argument in reversed(call.operation._schema.arguments[1 : 1 + len(arguments)]):
        last, default = arguments[-1], argument.default_value if argument.has_default_value() else ...
        if isinstance(last, Tensor) or last not in (default, [default] * (argument.N or 0)):
            break
        arguments.pop()
    return arguments


def _has_global_hooks() -> bool:
    return bool(torch_module._global_forward_hooks or torch_module._global_forward_pre_hooks)


def _batch() -> torch.SymInt:
    """A batch size that is left free."""
    from torch._dynamo.source import ConstantSource  # takes a second to load, with what torch.export needs too

    shapes = ShapeEnv()
    symbol = shapes.create_symbol(BATCH, ConstantSource("batch"), dynamic_dim=DimDynamic.DYNAMIC)
    return shapes.create_symintnode(symbol, hint=BATCH)
