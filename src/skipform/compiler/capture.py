"""Any eval-mode torch module as one graph of ATen operations, by torch.export, with the batch size left free."""

import inspect
import io
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from typing import Any

import sympy
import torch
from torch import Tensor, fx, nn
from torch._ops import OpOverload
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode
from torch.utils import _pytree as pytree

from skipform.compiler import constant_sizes
from skipform.errors import SkipformError, first_line

# What user code and torch.export raise on a module that cannot be captured: user code may raise anything, or exit.
CAPTURE_FAILURES = (Exception, SystemExit)

BATCHES = 1024  # a branch on the batch size is detected up to this batch size


@dataclass(frozen=True)
class Captured:
    """The graph of a module: its placeholders are the parameters, buffers and constants (`constants`, by placeholder
    name) and, in order, the inputs (`inputs`). `outputs` rebuilds what forward returned from a flat list."""

    graph: fx.Graph
    constants: dict[str, Tensor]
    inputs: tuple[str, ...]
    outputs: pytree.TreeSpec


def examples(example_inputs: Any) -> tuple[Tensor, ...]:
    """The example inputs as a tuple of floating-point tensors with a common batch size; else SkipformError."""
    inputs = tuple(example_inputs) if isinstance(example_inputs, (tuple, list)) else (example_inputs,)
    for position, x in enumerate(inputs):
        if not isinstance(x, Tensor):
            raise SkipformError(
                f"example input {position} is a {type(x).__name__}; a tensor or a tuple of tensors is accepted"
            )
        if not x.is_floating_point():
            raise SkipformError(
                f"example input {position} has dtype {x.dtype}; floating point is accepted "
                f"(a network of affine maps and ReLU has real inputs)"
            )
        if x.ndim < 1 or len(x) == 0:
            raise SkipformError(
                f"example input {position} has shape {tuple(x.shape)}; a batch of at least 1 is accepted"
            )
    if not inputs:
        raise SkipformError("no example inputs; a tensor or a tuple of tensors, batch first, is accepted")
    if len({len(x) for x in inputs}) != 1:
        raise SkipformError(f"example inputs of batch sizes {[len(x) for x in inputs]}; one common batch is accepted")
    if len({x.dtype for x in inputs}) != 1:
        raise SkipformError(f"example inputs of {', '.join(str(x.dtype) for x in inputs)}; one dtype is accepted")
    return inputs


def in_dtype_of(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The inputs in the dtype of the module's weights."""
    weights = (*module.parameters(), *module.buffers())
    dtype = next((w.dtype for w in weights if w.is_floating_point()), inputs[0].dtype)
    return tuple(x.to(dtype) for x in inputs)


def capture(module: nn.Module, example_inputs: Any, supported: Callable[[Any], bool]) -> Captured:
    """Export `module` at the shapes of the example inputs, the first dimension of all inputs left free. An operation
    that is not `supported` is decomposed where torch has a decomposition.

    Raises SkipformError for a module in training mode, inputs that it does not take, control flow on data, or a
    forward that fixes the batch size.
    """
    inputs = examples(example_inputs)
    name = type(module).__name__
    for path, part in module.named_modules():
        if part.training:
            raise SkipformError(f"{name}: {path or 'the module'} is in training mode; call .eval() first")
    # Export takes a dimension of size 1 for a fixed one, so a single example is doubled.
    # One tensor given as two inputs would be captured as one input, so all are copied.
    given, inputs = inputs, tuple(torch.cat((x, x)) if len(x) == 1 else x.clone() for x in inputs)
    free = tuple({0: torch.export.Dim.DYNAMIC} for _ in inputs)
    try:
        parameters = inspect.signature(module.forward).parameters.values()
        variadic = any(p.kind is p.VAR_POSITIONAL for p in parameters)
        with torch.no_grad(), _torch_silenced():
            program = torch.export.export(module, inputs, dynamic_shapes=(free,) if variadic else free, strict=False)
            if not _plain(program.graph):
                program = _run_decompositions(program, _unannounced_views(program.graph))
            program = _decomposed(program, supported)
            _name_operations(module, program.graph)
    except CAPTURE_FAILURES as error:
        if isinstance(error, SkipformError):  # the model's own
            raise
        raise SkipformError(_explain(name, given, error)) from None
    signature = program.graph_signature
    tensors = {**program.state_dict, **program.constants}
    constants = {spec.arg.name: tensors[spec.target] for spec in signature.input_specs if spec.target is not None}
    constant_sizes.resolve(program.graph, constants)
    _same_for_every_batch(name, program.graph)
    mutated = {**signature.buffers_to_mutate, **signature.parameters_to_mutate}
    if mutated:
        written = ", ".join(mutated.values())
        raise SkipformError(f"{name}: forward writes to {written}; a network without memory is accepted")
    if signature.user_inputs_to_mutate:
        # A ReLU in place on the input: the overwritten inputs come first in the output and are not part of the result.
        output = program.graph.output_node()
        output.args = (tuple(output.args[0][len(signature.user_inputs_to_mutate) :]),)
    if not any(isinstance(result, fx.Node) for result in program.graph.output_node().args[0]):
        raise SkipformError(f"{name}: forward returns no tensor; at least one is accepted")
    users = tuple(spec.arg.name for spec in signature.input_specs if spec.kind == InputKind.USER_INPUT)
    return Captured(program.graph, constants, users, program.call_spec.out_spec)


def _name_operations(module: nn.Module, graph: fx.Graph) -> None:
    """Give the operations of a module that has a `title`, as a node of an ONNX file has, this name in errors."""
    titles = {
        path: part.title for path, part in module.named_modules() if isinstance(getattr(part, "title", None), str)
    }
    for node in graph.nodes if titles else ():
        for path, _ in (node.meta.get("nn_module_stack") or {}).values():
            if path in titles:
                node.meta["title"] = titles[path]


@contextmanager
def _torch_silenced() -> Iterator[None]:
    """Silence torch, which prints a traceback for inputs that do not fit, and the graph so far for a branch on the
    values of a tensor, before it raises the error."""
    names = ("torch._subclasses.fake_tensor", "torch.fx.experimental.symbolic_shapes")
    loggers = [logging.getLogger(name) for name in names]
    before = [logger.disabled for logger in loggers]
    for logger in loggers:
        logger.disabled = True
    try:
        with redirect_stderr(io.StringIO()):
            yield
    finally:
        for logger, disabled in zip(loggers, before, strict=True):
            logger.disabled = disabled


def _run_decompositions(program: ExportedProgram, table: dict[Any, Callable[..., Any]]) -> ExportedProgram:
    """program.run_decompositions(table), which also decomposes softshrink, whatever the table, by comparisons of the
    input: its rule could not act. So softshrink(x, c) is written x - clamp(x, -c, c) before, which is the same."""
    for node in program.graph.nodes:
        if node.target is torch.ops.aten.softshrink.default:
            x, bound = node.args[0], node.args[1] if len(node.args) > 1 else 0.5
            with program.graph.inserting_before(node):
                clamped = program.graph.call_function(torch.ops.aten.clamp.default, (x, -bound, bound))
            clamped.meta = {**node.meta}
            node.target, node.args = torch.ops.aten.sub.Tensor, (x, clamped)
    return program.run_decompositions(table)


def _decomposed(program: ExportedProgram, supported: Callable[[Any], bool]) -> ExportedProgram:
    """The program with torch's own decompositions of the operations that have no rule."""
    computing = [
        n
        for n in program.graph.nodes
        if isinstance(n.target, OpOverload) and isinstance(n.meta.get("val"), (Tensor, tuple, list))
    ]
    without_rule = {n.target for n in computing if not supported(n.target)}
    if not without_rule:
        return program
    known = torch.export.default_decompositions()
    table = {target: known[target] for target in without_rule if target in known}
    return _run_decompositions(program, table) if table else program


def _same_for_every_batch(name: str, graph: fx.Graph) -> None:
    """Raise SkipformError if the export took a branch that some batch of up to BATCHES samples would not take. The
    export records no guard for its assumption of at least two samples: the check covers that."""
    sizes: list[Any] = [
        d for node in graph.nodes for x in _tensors(node) for d in x.shape if isinstance(d, torch.SymInt)
    ]
    guards = sizes[0].node.shape_env.guards if sizes else []
    size = sympy.Symbol("batch", integer=True, positive=True)
    for guard in guards:
        holds = guard.expr.subs(dict.fromkeys(guard.expr.free_symbols, size))
        if holds is sympy.true:  # such as that two inputs have the same batch size
            continue
        for batch in range(1, BATCHES + 1):
            if not holds.subs(size, batch):
                raise SkipformError(
                    f"{name}: forward branches on the batch size (a batch of {batch} takes another branch than the"
                    " example); one that works for every batch size is accepted"
                )


def _plain(graph: fx.Graph) -> bool:
    """Whether every operation can be read as a function: no submodules, and in-place operations only on fresh results
    that nothing else views. Otherwise export's own functionalisation is needed, which takes as long as the export."""
    sharing: dict[int, list[fx.Node]] = {}  # the operations whose results lie in the same memory
    for node in graph.nodes:
        if node.op == "get_attr":
            return False
        for memory in _memory(node):
            sharing.setdefault(memory, []).append(node)
    for node in graph.nodes:
        if not mutates(node):
            continue
        target = node.args[0] if node.args else None
        if not isinstance(target, fx.Node) or not node.target._schema.arguments[0].is_write:  # out=...
            return False
        if target.op == "placeholder" or (aliases(target) and not mutates(target)):
            return False
        if any(aliases(user) and not mutates(user) for user in target.users):
            return False
        if any(sum(not mutates(other) for other in sharing[memory]) > 1 for memory in _memory(target)):
            return False
    return True


def _unannounced_views(graph: fx.Graph) -> dict[Any, Callable[..., Any]]:
    """Decompositions of the operations that return a view of their argument though their schema does not say so (einsum
    of one tensor, dropout in eval mode): functionalisation trusts the schema."""
    targets = {
        node.target
        for node in graph.nodes
        if isinstance(node.target, OpOverload)
        and not any(argument.alias_info is not None for argument in node.target._schema.arguments)
        and (
            node.target._schema.name.endswith("dropout")
            or any(memory in _memory(source) for source in node.all_input_nodes for memory in _memory(node))
        )
    }
    known = torch.export.default_decompositions() if targets else {}
    return {target: known[target] for target in targets if target in known}


def _tensors(node: fx.Node) -> list[Tensor]:
    return [x for x in pytree.tree_leaves(node.meta.get("val")) if isinstance(x, Tensor)]


def _memory(node: fx.Node) -> set[int]:
    """The storages of the tensors that the operation returns, by address; they live as long as the graph."""
    return {x.untyped_storage()._cdata for x in _tensors(node) if x.layout == torch.strided}


def mutates(node: fx.Node) -> bool:
    """Whether the operation writes into its first argument."""
    schema = getattr(node.target, "_schema", None)
    return schema is not None and any(argument.is_write for argument in schema.arguments)


def aliases(node: fx.Node) -> bool:
    """Whether the result may share memory with an argument."""
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        return True
    return schema.name.endswith("dropout") or any(argument.alias_info is not None for argument in schema.arguments)


def _explain(name: str, inputs: tuple[Tensor, ...], error: BaseException) -> str:
    """One line on why the export failed."""
    first = first_line(error)
    shapes = ", ".join(str(tuple(x.shape)) for x in inputs)
    if isinstance(error, GuardOnDataDependentSymNode) or "data-dependent" in str(error):
        return f"{name}: forward branches on the values of a tensor ({first}); control flow on shapes only is accepted"
    if "Constraints violated" in str(error) or "marked as dynamic but" in str(error):
        return f"{name}: forward fixes the batch size ({first}); one that works for every batch size is accepted"
    return f"{name}: forward does not run on inputs of shape {shapes}, batch first: {type(error).__name__}: {first}"
