"""How many activations the skips of a network bypass: the axis of Theorem 4, read off the captured graph.

A merge is an operation on two or more different results that depend on the same input: a sum, difference, product,
quotient, concatenation, maximum or minimum; sums of sums are one merge. Its fork is the last result that all of them
depend on, and its skip bypasses as many activations as lie on that path from the fork to the merge which has the most.
"""

from typing import Any

from torch import Tensor, fx, nn

from skipform.compiler.capture import capture

# Operations of ATen. Softmax and max pooling are none: they do not act coordinate by coordinate.
ACTIVATIONS = {
    *("relu", "leaky_relu", "prelu", "elu", "celu", "selu", "gelu", "silu", "mish", "softplus"),
    *("hardtanh", "relu6", "hardswish", "sigmoid", "tanh"),
}
MERGES = {"add", "sub", "mul", "div", "cat", "maximum", "minimum"}


def bypassed(module: nn.Module, example_inputs: Any) -> list[int]:
    """The numbers of activations that the skips of the module bypass, without repetition, in ascending order; empty if
    it has no skip. Raises SkipformError as `capture` does."""
    captured = capture(module, example_inputs, supported=lambda target: True)
    ancestors: dict[fx.Node, int] = {}  # of each node that depends on an input, itself included: bits, by position
    nodes: list[fx.Node] = []
    numbers = set()
    for node in captured.graph.nodes:
        bits = 0
        for source in node.all_input_nodes:
            bits |= ancestors.get(source, 0)
        if not _is_real(node) or not (bits or node.name in captured.inputs):
            continue  # a mask, a size, or computed from the parameters alone
        ancestors[node] = bits | 1 << len(nodes)
        nodes.append(node)
        if _name(node) not in MERGES or _is_part(node):
            continue
        merged = [source for source in _merged(node) if source in ancestors]
        common = ancestors[node] if len(merged) > 1 else 0
        for source in merged:
            common &= ancestors[source]
        if common:
            numbers.add(_most_activations(nodes, common.bit_length() - 1))
    return sorted(numbers)


def _most_activations(nodes: list[fx.Node], fork: int) -> int:
    """The most activations on a path from the node at position `fork` to the last node, after the first."""
    most = {nodes[fork]: 0}
    for node in nodes[fork + 1 :]:
        before = [most[source] for source in node.all_input_nodes if source in most]
        if before:
            most[node] = max(before) + (_name(node) in ACTIVATIONS)
    return most[nodes[-1]]


def _merged(node: fx.Node) -> list[fx.Node]:
    """What a merge reads, with what the merges that are parts of it read in place of these."""
    return list(
        dict.fromkeys(
            inner
            for source in node.all_input_nodes
            for inner in (_merged(source) if _name(source) == _name(node) and _is_part(source) else [source])
        )
    )


def _is_part(node: fx.Node) -> bool:
    """Whether the only reader of the node is an operation of the same name."""
    return len(node.users) == 1 and _name(next(iter(node.users))) == _name(node)


def _is_real(node: fx.Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, list | tuple) or (isinstance(value, Tensor) and value.is_floating_point())


def _name(node: fx.Node) -> str:
    """The name of an operation of ATen, without its overload and the mark of an operation in place."""
    schema = getattr(node.target, "_schema", None)
    return "" if schema is None else schema.name.removeprefix("aten::").rstrip("_")
