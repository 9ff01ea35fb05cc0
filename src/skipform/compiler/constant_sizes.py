"""Sizes that torch.export leaves open though the weights fix them: how many entries a constant mask chooses.

The export gives x[:, mask] and repeat_interleave(x, counts) a size of their own name, since the values of a tensor are
unknown to it. Where the mask or the counts depend on no input, their values are there, and the size is a number.
"""

from collections.abc import Callable
from typing import Any

import sympy
import torch
from torch import Tensor, fx
from torch._subclasses import FakeTensor
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols
from torch.utils import _pytree as pytree

# Operation -> its arguments that decide how many entries the result has.
DECIDING: dict[str, Callable[[fx.Node], Any]] = {
    "aten::index": lambda node: node.args[1],
    "aten::repeat_interleave": lambda node: node.args[1] if len(node.args) > 1 else (),
    "aten::nonzero": lambda node: node.args[0],
}


def resolve(graph: fx.Graph, constants: dict[str, Tensor]) -> None:
    """Replace, in node.meta["val"] of all nodes, the open sizes that constants decide by numbers. constants: the values
    of placeholders, by name. What an input decides stays open."""
    known: dict[sympy.Symbol, int] = {}
    fixed = False
    for node in graph.nodes:
        decides = DECIDING.get(getattr(getattr(node.target, "_schema", None), "name", ""))
        if decides is None:
            continue
        if free_unbacked_symbols(node.meta["val"]) - known.keys():
            _decide(node, decides(node), constants, known)
        fixed = fixed or _with_numbers(node.meta["val"], known) is not node.meta["val"]
    for node in graph.nodes if fixed else ():
        node.meta["val"] = pytree.tree_map(lambda value: _with_numbers(value, known), node.meta.get("val"))


def _decide(node: Any, deciding: Any, constants: dict[str, Tensor], known: dict[sympy.Symbol, int]) -> None:
    """Add the open sizes of this node's result to the known ones, if the arguments that decide it are constant."""
    values: dict[fx.Node, Any] = {}
    try:
        fx.node.map_arg(deciding, lambda n: _value(n, constants, values))
    except LookupError:
        return

    def value(n: fx.Node) -> Any:
        """Of a tensor that depends on an input only the shape matters."""
        like = n.meta["val"]
        return values[n] if n in values else torch.zeros([_number(d, known) for d in like.shape], dtype=like.dtype)

    args, kwargs = fx.node.map_arg((node.args, node.kwargs), value)
    result = node.target(*args, **kwargs)
    for size, number in zip(node.meta["val"].shape, result.shape, strict=True):
        if isinstance(size, torch.SymInt) and size.node.expr in free_unbacked_symbols(node.meta["val"]):
            known[size.node.expr] = number


def _value(node: Any, constants: dict[str, Tensor], values: dict[fx.Node, Any]) -> Any:
    """The value of a node that depends on no input and no chance, and is not written to; else LookupError."""
    if node not in values:
        if node.op == "placeholder":
            values[node] = constants[node.name]
        elif torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()) or any(
            schema.arguments[0].is_write for n in (node, *node.users) if (schema := getattr(n.target, "_schema", None))
        ):
            raise LookupError
        else:
            args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: _value(n, constants, values))
            values[node] = node.target(*args, **kwargs)
    return values[node]


def _number(size: Any, known: dict[sympy.Symbol, int]) -> int:
    """A size for a batch of two samples."""
    if not isinstance(size, torch.SymInt):
        return size
    expression = size.node.expr.subs(known)
    return int(expression.subs(dict.fromkeys(expression.free_symbols, 2)))


def _with_numbers(value: Any, known: dict[sympy.Symbol, int]) -> Any:
    """The value with known sizes put in; where an operation after it fixed a size, the export knows the number too."""
    if isinstance(value, FakeTensor):
        sizes = [_with_numbers(size, known) for size in value.shape]
        if all(new is old for new, old in zip(sizes, value.shape, strict=True)):
            return value
        with value.fake_mode:
            return torch.empty(sizes, dtype=value.dtype, device=value.device)
    if isinstance(value, torch.SymInt):
        expression = value.node.expr.subs(known) if known else value.node.expr
        if expression.is_Integer:
            return int(expression)
        if known and expression != value.node.expr:
            return value.node.shape_env.create_symintnode(expression, hint=None)
    return value
