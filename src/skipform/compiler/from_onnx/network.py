"""The graph of an ONNX file as a torch module whose batch size is free: shapes made literal, constants folded."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from skipform.compiler.from_onnx.file import NUMBERS, File, Node
from skipform.compiler.from_onnx.operation import Call, Operation, Rule, Shape, Value, held, in_front
from skipform.compiler.from_onnx.operators import OPERATORS
from skipform.errors import SkipformError, first_line, shown


@dataclass
class Step:
    """A node that depends on the input."""

    title: str
    rule: Rule
    results: list[Value]


@dataclass
class Trace:
    """A file at literal sizes of its inputs. steps: what the outputs need, in order."""

    inputs: list[Value]
    steps: list[Step] = field(default_factory=list)
    outputs: list[Value] = field(default_factory=list)


def trace(file: File, shapes: Sequence[Shape]) -> Trace:
    """The operations of the file for inputs of these shapes. What does not depend on their numbers is computed, in the
    types of the file. Raises SkipformError, naming the node, for an operator without a rule or shapes that do not fit.
    """
    inputs = [Value(name, shape, file.dtype) for name, shape in zip(file.inputs, shapes, strict=True)]
    values = {value.name: value for value in inputs}
    values |= {name: Value(name, tuple(t.shape), t.dtype, t) for name, t in file.constants.items()}
    traced, folded = Trace(inputs), 0
    for node in file.nodes:
        place = f"{file.path}: {title(node)}"
        operands = [_read(values, place, name) for name in node.inputs]
        results, step = _apply(node, operands, place)
        folded += sum(math.prod(v.shape) for v in results if v.constant is not None)
        if folded > NUMBERS:
            raise SkipformError(f"{place}: the constants computed so far have more than {NUMBERS:,} numbers")
        for value in results:
            if value.name in values and value.name:
                raise SkipformError(f"{place}: makes {shown(value.name)} again; one node for every tensor is accepted")
            values[value.name] = value
        if step is not None:
            traced.steps.append(step)
    for name in file.outputs:
        output = _read(values, f"{file.path}: the graph", name)
        if output is None:
            raise SkipformError(f"{file.path}: an output without a name")
        traced.outputs.append(output)
    needed = {id(value) for value in traced.outputs}
    kept = []
    for step in reversed(traced.steps):
        if any(id(value) in needed for value in step.results):
            kept.append(step)
            needed |= {id(value) for value in step.rule.operands}
    traced.steps = kept[::-1]
    return traced


def title(node: Node) -> str:
    return f"{shown(node.name)} ({node.operator})"


def _read(values: dict[str, Value], place: str, name: str) -> Value | None:
    if not name:
        return None
    if name not in values:
        raise SkipformError(f"{place}: reads {shown(name)}, which no input, initializer or node before it makes")
    return values[name]


def _apply(node: Node, operands: list[Value | None], place: str) -> tuple[list[Value], Step | None]:
    """The results of a node; the step that computes them, None if they are constants."""
    if node.operator not in OPERATORS:
        raise SkipformError(f"{place}: an operator without a translation; accepted: {', '.join(sorted(OPERATORS))}")
    call = Call(node, operands, place)
    try:
        rule = OPERATORS[node.operator](call)
        fixed = all(value.constant is not None for value in rule.operands)
        metas = rule.function(0, *(value.meta() for value in rule.operands))
        metas = metas if isinstance(metas, tuple) else (metas,)
        for meta in metas:
            call.bounded(meta.shape)
        results = [Value(name, tuple(meta.shape), meta.dtype) for name, meta in zip(node.outputs, metas, strict=False)]
        if fixed:
            with torch.no_grad():
                tensors = rule.function(0, *(value.constant for value in rule.operands))
            for value, tensor in zip(results, tensors if isinstance(tensors, tuple) else (tensors,), strict=False):
                value.constant = tensor
            return results, None
    except SkipformError:
        raise
    except (RuntimeError, ValueError, TypeError, IndexError, KeyError, ArithmeticError, NotImplementedError) as error:
        shapes = ", ".join(str(value.shape) for value in operands if value is not None)
        raise SkipformError(f"{place}: does not run on shapes {shapes or 'none'} ({first_line(error)})") from None
    rule.shapes = tuple(value.shape for value in results)
    return results, Step(title(node), rule, results)


class OnnxNetwork(nn.Module):
    """An ONNX file as a module. Its operations are named after the nodes of the file, its parameters after the
    initializers. forward takes and returns tensors in the order of the file, their first dimension is the batch: it
    stands for the first size, 1, of the file's inputs if they are `batched`, else it comes in front of their sizes."""

    def __init__(self, traced: Trace, dtype: torch.dtype, batched: bool):
        super().__init__()
        self.batched = batched
        self.input_shapes = [value.shape for value in traced.inputs]
        self.operations = nn.ModuleList(Operation(step.title, step.rule) for step in traced.steps)
        names: dict[int, str] = {}  # of every value
        used = [value for step in traced.steps for value in step.rule.operands] + traced.outputs
        for value in used:
            if value.constant is None or id(value) in names:
                continue
            name = names[id(value)] = self._free_name(value.name)
            if value.constant.is_floating_point():
                self.register_parameter(name, nn.Parameter(value.constant.to(dtype)))
            else:
                self.register_buffer(name, value.constant)
        self.constants = {*names.values()}
        for position, value in enumerate([*traced.inputs, *(v for step in traced.steps for v in step.results)]):
            names[id(value)] = f"{position}"
        self.sources = [names[id(value)] for value in traced.inputs]
        self.program = [
            ([names[id(v)] for v in step.rule.operands], [names[id(v)] for v in step.results]) for step in traced.steps
        ]
        self.results = [(names[id(value)], value.shape, value.active) for value in traced.outputs]
        self.eval()

    def _free_name(self, name: str) -> str:
        """A name for a parameter: that of the initializer with '_' for what cannot be part of one."""
        plain = "".join(c if c.isalnum() else "_" for c in name) or "constant"
        plain, number = f"w_{plain}", 1
        while hasattr(self, plain if number == 1 else f"{plain}_{number}"):
            number += 1
        return plain if number == 1 else f"{plain}_{number}"

    def forward(self, *inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
        if not self.batched:
            inputs = tuple(held(x, shape) for x, shape in zip(inputs, self.input_shapes, strict=True))
        outputs = self._run(inputs, on_the_file=False)
        for i, (_, shape, active) in enumerate(self.results):
            y = outputs[i] if active else held(outputs[i].expand(inputs[0].shape[0], *shape), shape)
            outputs[i] = y if self.batched else in_front(y, shape)
        return outputs[0] if len(outputs) == 1 else tuple(outputs)

    def on_the_file(self, *inputs: Tensor) -> list[Tensor]:
        """What the file computes, on tensors of its own shapes."""
        return self._run(inputs, on_the_file=True)

    def _run(self, inputs: Sequence[Tensor], on_the_file: bool) -> list[Tensor]:
        values: dict[str, Tensor] = {name: getattr(self, name) for name in self.constants}
        values |= dict(zip(self.sources, inputs, strict=True))
        for operation, (operands, results) in zip(self.operations, self.program, strict=True):
            assert isinstance(operation, Operation)
            apply = operation.on_the_file if on_the_file else operation
            computed = apply(*(values[name] for name in operands))
            values |= dict(zip(results, computed, strict=False))
        return [values[name] for name, _, _ in self.results]
