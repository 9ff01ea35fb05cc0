"""The captured graph of a module as a diagram: operations as nodes, the flow of data as edges.

Every operation of the graph that computes with the input is one node, with three exceptions. What hands its only
argument on unchanged (dropout in eval mode, a slice of everything) is left out. A call of a module that is named in
`whole` is one node, whatever happens inside. A concatenation of concatenations is one concatenation of their operands:
so a dense block shows that every layer reads all earlier ones. Nothing from which no output is reached is shown.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from skipform.compiler.capture import capture

LABELS = {
    "batch_norm": "batch norm",
    "cat": "concat",
    "layer_norm": "layer norm",
    "max_pool2d": "max pool",
    "relu": "ReLU",
    "scaled_dot_product_attention": "attention",
    "upsample_nearest2d": "upsample",
}
CONVOLUTIONS = {"conv1d": "conv", "conv2d": "conv", "conv3d": "conv", "conv_transpose2d": "up-conv"}
UNCHANGED = {"alias", "clone", "contiguous", "detach", "dropout", "feature_dropout", "slice", "to"}


@dataclass(frozen=True)
class Node:
    """operation: "input", "output", "module" or the name of an operation of ATen. size: the shape of its result without
    the batch; of an output, of what it returns. groups: of a convolution, else 1."""

    operation: str
    label: str
    size: tuple[int, ...]
    groups: int = 1


@dataclass(frozen=True)
class Diagram:
    """nodes: in an order in which they can be computed. edges: (i, j) where node j reads the result of node i."""

    nodes: tuple[Node, ...]
    edges: tuple[tuple[int, int], ...]


def diagram(module: nn.Module, example_inputs: Any, whole: Mapping[str, str] | None = None) -> Diagram:
    """The diagram of a module in eval mode. Raises SkipformError as `capture` does.

    whole: pattern of the paths of submodules, such as "down.*", that are drawn as one node -> its label; with an empty
        label it is called after the operations inside. Of nested modules the outermost counts.
    """
    captured = capture(module, example_inputs, supported=lambda target: True)
    nodes: list[Node] = []
    reads: list[list[int]] = []  # of every node
    place: dict[fx.Node, int] = {}  # the node that computes a result of the graph
    calls: dict[str, int] = {}  # of modules that are drawn whole
    inside: dict[int, list[str]] = {}  # the labels of what happens in them
    axis: dict[int, int] = {}  # of concatenations

    def add(node: Node, sources: list[int]) -> int:
        nodes.append(node)
        reads.append(list(dict.fromkeys(sources)))
        return len(nodes) - 1

    for step in captured.graph.nodes:
        if step.name in captured.inputs:
            place[step] = add(Node("input", step.name, _size(step)), [])
            continue
        sources = [place[source] for source in step.all_input_nodes if source in place]
        if step.op != "call_function" or not sources or not _is_real(step):
            continue  # a parameter, a size, a mask, or computed from the parameters alone
        name = _name(step)
        operation = Node(name, _label(step), _size(step), _groups(step))
        call, label = _call(step, whole or {})
        if call in calls:
            k = place[step] = calls[call]
            reads[k] = list(dict.fromkeys([*reads[k], *(source for source in sources if source != k)]))
            nodes[k] = Node("module", label, operation.size)
        elif call:
            k = place[step] = calls[call] = add(Node("module", label, operation.size), sources)
        elif name in ("getitem", "") or (name in UNCHANGED and _size(step) == nodes[sources[0]].size):
            place[step] = sources[0]
        elif name == "cat":
            dim = step.args[1] if len(step.args) > 1 else 0
            parts = [part for k in sources for part in (reads[k] if axis.get(k) == dim else [k])]
            place[step] = add(operation, parts)
            axis[place[step]] = dim
        else:
            place[step] = add(operation, sources)
        if call and name not in (*UNCHANGED, "getitem", ""):
            inside.setdefault(calls[call], []).append(operation.label)
    for k, labels in inside.items():
        if not nodes[k].label:
            nodes[k] = Node("module", ", ".join(labels), nodes[k].size)
    results = [x for x in pytree.tree_leaves(captured.graph.output_node().args) if isinstance(x, fx.Node)]
    for name, result in zip(_output_names(captured.outputs), results, strict=True):
        if result in place:
            add(Node("output", name, nodes[place[result]].size), [place[result]])
    return _without_dead_ends(nodes, reads)


def _without_dead_ends(nodes: list[Node], reads: list[list[int]]) -> Diagram:
    """The inputs, and the nodes from which an output is reached."""
    alive = {k for k, node in enumerate(nodes) if node.operation in ("input", "output")}
    for k in reversed(range(len(nodes))):
        if k in alive:
            alive.update(reads[k])
    number = {k: i for i, k in enumerate(sorted(alive))}
    edges = [(number[source], number[k]) for k in sorted(alive) for source in reads[k]]
    return Diagram(tuple(nodes[k] for k in sorted(alive)), tuple(sorted(edges)))


def _call(step: fx.Node, whole: Mapping[str, str]) -> tuple[str, str]:
    """The outermost call of a module around an operation that is drawn whole, and its label; else two empty texts."""
    for call, (path, _) in (step.meta.get("nn_module_stack") or {}).items():
        for pattern, label in whole.items():
            if fnmatchcase(path.split("@")[0], pattern):
                return call, label
    return "", ""


def _output_names(spec: pytree.TreeSpec) -> list[str]:
    """The keys of the outputs where forward returns a dictionary, else "output" for each."""
    leaves, _ = pytree.tree_flatten_with_path(pytree.tree_unflatten(range(spec.num_leaves), spec))
    return [path[-1].key if path and isinstance(path[-1], pytree.MappingKey) else "output" for path, _ in leaves]


def _name(step: fx.Node) -> str:
    """The name of an operation of ATen, without its overload and the mark of an operation in place."""
    schema = getattr(step.target, "_schema", None)
    return getattr(step.target, "__name__", "") if schema is None else schema.name.removeprefix("aten::").rstrip("_")


def _label(step: fx.Node) -> str:
    """What a diagram calls an operation: of a convolution with its kernel, such as "conv 3×3"."""
    name = _name(step)
    if name not in CONVOLUTIONS:
        return LABELS.get(name, name.replace("_", " "))
    weight = step.args[1]
    kernel = weight.meta["val"].shape[2:] if isinstance(weight, fx.Node) else ()
    groups = f", {_groups(step)} groups" if _groups(step) > 1 else ""
    return f"{CONVOLUTIONS[name]} {'×'.join(map(str, kernel))}{groups}"


def _groups(step: fx.Node) -> int:
    """The groups of a convolution, its seventh argument; 1 for everything else."""
    groups: Any = step.args[6] if _name(step) in CONVOLUTIONS and len(step.args) > 6 else 1
    return int(groups)


def _is_real(step: fx.Node) -> bool:
    value = step.meta.get("val")
    return isinstance(value, list | tuple) or (isinstance(value, Tensor) and value.is_floating_point())


def _size(step: fx.Node) -> tuple[int, ...]:
    value = step.meta.get("val")
    return tuple(value.shape[1:]) if isinstance(value, Tensor) else ()
