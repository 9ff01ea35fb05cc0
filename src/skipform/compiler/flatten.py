"""A rewritten model as a canonical network: explicit sparse affine maps A_0, ..., A_{L-1}, R.

Every tensor of the rewritten graph is an affine function of the state (x; all earlier ReLUs). The graph is walked once
and every tensor is stored as that function, a sparse matrix with one row for each of its entries; a ReLU adds its rows
to its layer and opens as many new coordinates. A ReLU stands in the earliest layer it can (one after the last ReLU
its tensor depends on), so the depth L is the longest chain of ReLUs.

d entries of the input, m rows (entries of a tensor), N coordinates of the final state.
"""

import math
import operator
from collections import Counter
from collections.abc import Callable, Iterator, Sequence, Set
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy import sparse
from torch import Tensor, fx, nn

from skipform.compiler.capture import examples, in_dtype_of
from skipform.compiler.check import (
    AGREEMENT,
    Evaluation,
    agree,
    batch_dim,
    deviations,
    first_difference,
    from_rows,
    output_nodes,
    rows,
    samples,
    tensors,
)
from skipform.compiler.emit import BATCH, CONVOLUTIONS, TRANSPOSED
from skipform.compiler.rewrite import rewrite_in_float64
from skipform.compiler.targets import MEMORY
from skipform.compiler.targets.keep_add import AddingEmitter
from skipform.errors import SkipformError
from skipform.theory.affine import Affine
from skipform.theory.convolved import Convolved, Geometry, before_of, convolution_matrix, per_axis
from skipform.theory.network import CanonicalNetwork

ENTRY = 16  # bytes of one stored entry: a float64 and its column
MOVES = (
    torch.reshape,
    torch.unsqueeze,
    torch.permute,
    torch.broadcast_to,
    operator.getitem,
    torch.index_select,
    F.pad,
    torch.cat,
)


@dataclass(frozen=True)
class Structure:
    """What the canonical network of a rewritten graph looks like, without its matrices.

    depth L; widths n_0..n_{L-1}, ReLUs per layer; carried[k], k = 0..L, the coordinates of z_k that A_k, ..., R still
    read, counted by whole tensors (an upper bound: a slice counts as all of its tensor); operations by name;
    entries, an upper bound on the stored entries of A_0, ..., R and of the largest map on the way to them.
    """

    depth: int
    widths: tuple[int, ...]
    relu_count: int
    carried: tuple[int, ...]
    operations: dict[str, int]
    entries: int
    largest: int


def structure(graph: fx.GraphModule, convolutions: Set[fx.Node] = frozenset()) -> Structure:
    """Depth, widths and carried state of the canonical network of a rewritten module (`rewrite`), in milliseconds.

    convolutions: convolutions whose matrices are not made (`convolutions_of`)."""
    levels: dict[fx.Node, int] = {}  # ReLU layers below the tensor
    reads: dict[fx.Node, frozenset[fx.Node]] = {}  # the inputs and ReLUs that the tensor is an affine function of
    entries: dict[fx.Node, float] = {}
    first: dict[fx.Node, int] = {}  # the k of the first z_k that holds the coordinates
    last: dict[fx.Node, int] = {}  # the last layer that reads them
    stored, largest = 0.0, 0.0
    for node in graph.graph.nodes:
        sources = [n for n in node.all_input_nodes if "batch_dim" in n.meta]
        if node.op == "placeholder" or node.target is torch.relu:
            layer = levels[sources[0]] if sources else -1
            for base in reads[sources[0]] if sources else ():
                last[base] = max(last.get(base, 0), layer)
            stored += entries[sources[0]] if sources else 0
            levels[node] = first[node] = layer + 1
            reads[node], entries[node] = frozenset([node]), entries_of(node)
        elif sources:
            levels[node] = max(levels[n] for n in sources)
            reads[node] = frozenset().union(*(reads[n] for n in sources))
            if node in convolutions:
                entries[node] = entries[sources[0]] + constant_of(graph, node.args[1]).numel()
            else:
                entries[node] = _entries(graph, node, sources, entries, sum(map(entries_of, reads[node])))
            if node.op != "output":
                largest = max(largest, entries[node])
    depth = max(first.values(), default=0)
    output = next(n for n in reversed(graph.graph.nodes) if n.op == "output")
    for base in reads.get(output, ()):
        last[base] = depth
    stored += sum(entries[n] for n in output.all_input_nodes if n in entries)
    relus = [node for node in first if node.op != "placeholder"]
    widths = tuple(sum(entries_of(n) for n in relus if first[n] == k) for k in range(1, depth + 1))
    carried = tuple(sum(entries_of(n) for n in first if first[n] <= k <= last.get(n, -1)) for k in range(depth + 1))
    names = Counter(getattr(n.target, "__name__", str(n.target)) for n in graph.graph.nodes if n.op == "call_function")
    return Structure(depth, widths, sum(widths), carried, dict(names), int(stored), int(largest))


def convolutions_of(graph: fx.GraphModule) -> frozenset[fx.Node]:
    """The convolutions that are a whole layer: only a ReLU reads them, and no other ReLU stands in its layer."""
    levels: dict[fx.Node, int] = {}
    layers: dict[int, list[fx.Node]] = {}
    for node in graph.graph.nodes:
        sources = [n for n in node.all_input_nodes if "batch_dim" in n.meta]
        levels[node] = max((levels[n] for n in sources), default=0)
        if node.target is torch.relu:
            layers.setdefault(levels[node], []).append(sources[0])
            levels[node] += 1
    whole = (parts[0] for parts in layers.values() if len(parts) == 1)
    return frozenset(node for node in whole if node.target in CONVOLUTIONS.values() and len(node.users) == 1)


def shape_of(node: fx.Node) -> tuple[int, ...]:
    """The shape of the tensor for a batch of one sample."""
    shape = list(node.meta["val"].shape)
    if "batch_dim" in node.meta:
        shape[node.meta["batch_dim"]] //= BATCH
    return tuple(shape)


def entries_of(node: fx.Node) -> int:
    return math.prod(shape_of(node))


def _entries(
    graph: fx.GraphModule, node: fx.Node, sources: Sequence[fx.Node], of: dict[fx.Node, float], cap: int
) -> float:
    """An upper bound on the stored entries of the tensor's matrix."""
    if node.op == "output":
        return 0.0
    if node.target in (torch.cat, torch.add):
        return sum(of[n] for n in sources)
    per_row = of[sources[0]] / entries_of(sources[0])
    weights = [constant_of(graph, n) for n in node.all_input_nodes if n.op == "get_attr"]
    if node.target not in MOVES and weights:
        weight = max(weights, key=Tensor.numel)  # the other one is the bias
        per_row *= float(torch.count_nonzero(weight)) / max(_weight_rows(node, weight), 1)
    return entries_of(node) * min(per_row, cap)


def constant_of(graph: fx.GraphModule, node: Any) -> Tensor:
    return graph.get_buffer(node.target)


def _weight_rows(node: Any, weight: Tensor) -> int:
    """How many output rows share the weight's entries: its output channels, or the rows of a matrix."""
    if node.target in TRANSPOSED.values():
        return weight.shape[1] * node.kwargs.get("groups", 1)
    if node.target in CONVOLUTIONS.values() or node.target is F.linear:
        return len(weight)
    return math.prod(weight.shape[:-1])


def canonical(
    module: nn.Module, example_inputs: Any, memory: int = MEMORY, *, explicit: bool = False, check: bool = True
) -> CanonicalNetwork:
    """The canonical network of a piecewise linear torch module in eval mode, in float64.

    example_inputs as for `rewrite`; several inputs (and outputs) are flattened and concatenated, and then the
    network is over flat vectors. The matrix of a convolution has one row for each pixel. A network whose matrices would
    take more than `memory` bytes keeps each layer that is a convolution as such (`theory.convolved`), without a matrix;
    one that takes more even so, or at once if `explicit`, is refused before any is built.

    Unless `check` is false, the rewritten module is compared with the original and the network with both, and
    InternalError is raised if they differ.
    """
    inputs = in_dtype_of(module, examples(example_inputs))
    graph = rewrite_in_float64(module, inputs, AddingEmitter, check=check)
    return canonical_of(graph, type(module).__name__, memory, explicit=explicit, check=check)


def canonical_of(
    graph: fx.GraphModule, name: str, memory: int = MEMORY, *, explicit: bool = False, check: bool = True
) -> CanonicalNetwork:
    """The canonical network of a module of that name from its rewritten graph, with additions, in float64; the rest as
    in `canonical`."""
    convolutions: frozenset[fx.Node] = frozenset()
    shape = structure(graph)
    if not explicit and _bytes_of(shape) > memory:
        convolutions = convolutions_of(graph)
        shape = structure(graph, convolutions)
    needed = _bytes_of(shape)
    if needed > memory:
        sizes = ", ".join(str(shape_of(n)[1:]) for n in graph.graph.nodes if n.op == "placeholder")
        raise SkipformError(
            f"{name}: its affine maps on inputs of {sizes} "
            f"may take {needed / 2**30:.3g} GiB; memory={memory / 2**30:.3g} GiB is accepted (smaller inputs, or more)"
        )
    flattening = _Flattening(graph, shape, convolutions)
    network = flattening.network()
    if check:
        _compare(flattening, network)
    return network


def _bytes_of(shape: Structure) -> int:
    """Bytes that are needed at once to make the maps."""
    return ENTRY * (shape.entries + 3 * shape.largest)


def _compare(flattening: "_Flattening", network: CanonicalNetwork) -> None:
    """Raise InternalError, naming the first operation whose matrix is wrong, unless the network computes what the
    rewritten module does on three samples (see check.py)."""
    graph = flattening.graph
    points = samples([shape_of(n)[1:] for n in flattening.inputs])
    outputs = [rows(y, batch_dim(n)) for y, n in zip(tensors(graph(*points)), output_nodes(graph.graph), strict=True)]
    expected = torch.cat([y.expand(3, -1) for y in outputs], 1)
    given = replace(network, input_shape=None, output_shape=None)(torch.cat([x.reshape(3, -1) for x in points], 1))
    if not agree(expected, given, 0, AGREEMENT):
        original = Evaluation(graph.graph, points, graph).values
        allowed = deviations(graph.graph, points, original, graph)
        again = _Flattening(graph, flattening.shape, flattening.convolutions)
        first_difference(again.values_at(original), original, allowed)


class _Flattening:
    """The walk over a rewritten graph; columns are numbered in the order in which coordinates appear."""

    def __init__(self, graph: fx.GraphModule, shape: Structure, convolutions: Set[fx.Node]):
        self.graph, self.shape, self.convolutions = graph, shape, convolutions
        inputs = [n for n in graph.graph.nodes if n.op == "placeholder"]
        self.inputs = inputs
        self.in_features = sum(map(entries_of, inputs))
        self.columns = self.in_features + shape.relu_count
        self.opened = 0  # columns in use
        self.layers: list[list[tuple[int, fx.Node, sparse.csr_array, np.ndarray]]] = [[] for _ in range(shape.depth)]
        self.levels: dict[fx.Node, int] = {}

    def network(self) -> CanonicalNetwork:
        leaves = output_nodes(self.graph.graph)
        values = {node: affine for node, *affine in self._matrices() if node in leaves}
        matrix = sparse.vstack([values[n][0] for n in leaves], format="csr")
        return self._assemble(matrix, np.concatenate([values[n][1] for n in leaves]), leaves)

    def values_at(self, original: dict[fx.Node, Tensor]) -> Iterator[tuple[str, fx.Node, Tensor]]:
        """(place, node, value) of every operation by its matrix, with the `original` values of inputs and ReLUs."""
        state = np.zeros((self.columns, 3))
        for node, matrix, bias in self._matrices():
            if node.op == "placeholder" or node.target is torch.relu:
                state[matrix.indices] = rows(original[node], node.meta["batch_dim"]).T.numpy()
            elif node.op == "call_function":
                value = torch.from_numpy(matrix @ state + bias[:, None]).T
                target: Any = node.target
                if node in self.convolutions:
                    image = value.reshape(len(value), *shape_of(node.all_input_nodes[0])[1:])
                    constants = [constant_of(self.graph, a) for a in node.args[1:] if a is not None]
                    value = target(image, *constants, **node.kwargs).flatten(1)
                yield node.meta["place"], node, from_rows(value, original[node], node.meta["batch_dim"])

    def _matrices(self) -> Iterator[tuple[fx.Node, sparse.csr_array, np.ndarray]]:
        """Every node of the graph as an affine function of the coordinates opened so far."""
        values: dict[fx.Node, tuple[sparse.csr_array, np.ndarray]] = {}
        last = {n: node for node in self.graph.graph.nodes for n in node.all_input_nodes}
        for node in self.graph.graph.nodes:
            if node.op == "get_attr":
                constant = constant_of(self.graph, node).double().numpy()  # an output may be a tensor of integers
                values[node] = self._zero(constant.size), constant.ravel()
                yield node, *values[node]
            elif node.op != "output":
                sources = [n for n in node.all_input_nodes if "batch_dim" in n.meta]
                self.levels[node] = max((self.levels[n] for n in sources), default=0)
                values[node] = self._value(node, sources, values)
                yield node, *values[node]
                for n in sources:
                    if last[n] is node:
                        del values[n]

    def _value(self, node: Any, sources: Sequence[fx.Node], values: dict[fx.Node, Any]) -> Any:
        if node.op == "placeholder":
            return self._open(entries_of(node))
        if node.target is torch.relu:
            self.layers[self.levels[node]].append((self.opened, sources[0], *values[sources[0]]))
            self.levels[node] += 1
            return self._open(entries_of(node))
        if node in self.convolutions:  # the image that is convolved
            return values[sources[0]]
        if node.target is torch.add:
            (a, b), (c, d) = (values[n] if isinstance(n, fx.Node) else n for n in node.args[:2])
            alpha = node.kwargs.get("alpha", 1)
            return a + alpha * c, b + alpha * d
        if node.target in MOVES:
            return self._moved(node, sources, values)
        matrix, bias = values[sources[0]]
        fixed, constant = matrix_of(self.graph, node, sources[0])
        return fixed @ matrix, fixed @ bias + constant

    def _open(self, count: int) -> tuple[sparse.csr_array, np.ndarray]:
        """The next `count` coordinates."""
        indices = np.arange(self.opened, self.opened + count)
        self.opened += count
        ones = sparse.csr_array((np.ones(count), indices, np.arange(count + 1)), shape=(count, self.columns))
        return ones, np.zeros(count)

    def _zero(self, rows: int) -> sparse.csr_array:
        return sparse.csr_array((rows, self.columns))

    def _moved(self, node: Any, sources: Sequence[fx.Node], values: dict[fx.Node, Any]) -> Any:
        rows = moved_rows(self.graph, node, sources)
        parts = [values[n] for n in sources]
        matrix, bias = parts[0] if len(parts) == 1 else _stacked(parts)
        if len(rows) == len(bias) and np.array_equal(rows, np.arange(len(rows))):
            return matrix, bias
        if rows.min(initial=0) < 0:
            matrix, bias = _stacked([(matrix, bias), (self._zero(1), np.zeros(1))])
        return matrix[rows], bias[rows]

    def _assemble(self, matrix: sparse.csr_array, bias: np.ndarray, outputs: Sequence[fx.Node]) -> CanonicalNetwork:
        """Columns renumbered as in z_k = (newest layer; ...; x), where a coordinate has a fixed distance to the end."""
        to_end = np.zeros(self.columns, dtype=np.int64)
        size = self.in_features
        to_end[:size] = np.arange(size, 0, -1)
        layers: list[Affine] = []
        for parts in self.layers:
            rows = _affine(*_stacked([(matrix, bias) for *_, matrix, bias in parts]), to_end, size)
            layers.append(self._convolved(parts[0][1], rows) if parts[0][1] in self.convolutions else rows)
            size += layers[-1].out_features
            top = size
            for start, source, *_ in parts:
                count = entries_of(source)
                to_end[start : start + count] = np.arange(top, top - count, -1)
                top -= count
        readout = _affine(matrix, bias, to_end, size)
        one_in, one_out = len(self.inputs) == 1, len(outputs) == 1 and outputs[0].meta.get("batch_dim") == 0
        return CanonicalNetwork(
            tuple(layers),
            readout,
            shape_of(self.inputs[0])[1:] if one_in else None,
            shape_of(outputs[0])[1:] if one_out else None,
        )

    def _convolved(self, node: Any, image: Affine) -> Convolved:
        """The convolution `node` of an image."""
        weight, *bias = (constant_of(self.graph, a).numpy() for a in node.args[1:] if a is not None)
        window, how = weight.shape[2:], node.kwargs
        dilation = how.get("dilation", 1)
        geometry = Geometry(
            image=shape_of(node.args[0])[1:],
            places=shape_of(node)[2:],
            stride=per_axis(how.get("stride", 1), len(window)),
            before=before_of(how.get("padding", 0), dilation, window),
            dilation=per_axis(dilation, len(window)),
            groups=how.get("groups", 1),
        )
        return Convolved(weight, bias[0] if bias else np.zeros(len(weight)), image, geometry)


def moved_rows(graph: fx.GraphModule, node: Any, sources: Sequence[fx.Node]) -> np.ndarray:
    """Where the entries of a node of MOVES come from: positions in the concatenated entries of its sources, -1 for a
    zero. It is the operation on row numbers from 1, 0 for zeros."""
    starts = np.cumsum([1, *map(entries_of, sources)])
    numbers = {
        n: torch.arange(start, start + entries_of(n)).reshape(shape_of(n))
        for n, start in zip(sources, starts, strict=False)
    }
    args, kwargs = fx.node.map_arg(
        (node.args, node.kwargs), lambda n: numbers[n] if n in numbers else constant_of(graph, n)
    )
    return node.target(*args, **kwargs).flatten().numpy() - 1


def _stacked(parts: Sequence[tuple[sparse.csr_array, np.ndarray]]) -> tuple[sparse.csr_array, np.ndarray]:
    return sparse.vstack([m for m, _ in parts], format="csr"), np.concatenate([b for _, b in parts])


def _affine(matrix: sparse.csr_array, bias: np.ndarray, to_end: np.ndarray, size: int) -> Affine:
    matrix = sparse.csr_array((matrix.data, size - to_end[matrix.indices], matrix.indptr), shape=(len(bias), size))
    matrix.sort_indices()
    matrix.eliminate_zeros()
    return Affine(matrix.indptr, matrix.indices, matrix.data, bias, size)


def matrix_of(graph: fx.GraphModule, node: Any, source: fx.Node) -> tuple[sparse.csr_array, np.ndarray]:
    """The affine operation `node` as a sparse matrix and a constant, over the entries of one sample of `source`."""
    arguments = [constant_of(graph, a) if isinstance(a, fx.Node) and a.op == "get_attr" else a for a in node.args]
    shape, rows = shape_of(source), entries_of(node)
    target: Any = node.target
    if target is F.linear:
        weight, bias = arguments[1], arguments[2] if len(arguments) > 2 else None
        repeats = math.prod(shape[:-1])
        matrix = sparse.kron(sparse.eye_array(repeats), sparse.csr_array(weight.numpy()), format="csr")
        return matrix, np.zeros(rows) if bias is None else np.tile(bias.numpy(), repeats)
    if target is torch.matmul and isinstance(arguments[0], Tensor) and arguments[0].ndim == 2 and len(shape) > 1:
        inner = sparse.kron(sparse.csr_array(arguments[0].numpy()), sparse.eye_array(shape[-1]))
        return sparse.kron(sparse.eye_array(math.prod(shape[:-2])), inner, format="csr"), np.zeros(rows)
    if target in CONVOLUTIONS.values() or target in TRANSPOSED.values():
        weight, bias = arguments[1], arguments[2] if len(arguments) > 2 else None
        how: dict[str, Any] = dict(node.kwargs)
        how.pop("output_padding", None)
        how["padding"] = before_of(how.get("padding", 0), how.get("dilation", 1), weight.shape[2:])
        if target in TRANSPOSED.values():  # the transpose of the convolution from its outputs to its inputs
            matrix = convolution_matrix(shape_of(node)[1:], weight.numpy(), shape[2:], **how).T.tocsr()
        else:
            matrix = convolution_matrix(shape[1:], weight.numpy(), shape_of(node)[2:], **how)
        if shape[0] > 1:
            matrix = sparse.kron(sparse.eye_array(shape[0]), matrix, format="csr")
        places = math.prod(shape_of(node)[2:])
        constant = np.zeros(rows) if bias is None else np.tile(np.repeat(bias.numpy(), places), shape[0])
        return matrix, constant
    return _probed(target, arguments, dict(node.kwargs), node, source)


def _probed(
    target: Callable[..., Tensor], arguments: Sequence[Any], how: dict[str, Any], node: fx.Node, source: fx.Node
) -> tuple[sparse.csr_array, np.ndarray]:
    """Any other affine operation, from its values on the unit vectors, passed as a batch."""
    shape, batch, after = shape_of(source), source.meta["batch_dim"], node.meta["batch_dim"]
    count = math.prod(shape)

    def images(samples: Tensor) -> Tensor:  # samples x entries -> samples x rows
        x = samples.reshape(len(samples), *shape).movedim(0, batch).flatten(batch, batch + 1)
        y = target(*fx.node.map_arg(arguments, lambda n: x if n is source else n), **how)
        return y.unflatten(after, (len(samples), -1)).movedim(after, 0).flatten(1)

    constant = images(torch.zeros(1, count, dtype=torch.float64))[0]
    block = max(1, 2**24 // max(count, len(constant)))
    columns = [
        sparse.csr_array((images(unit) - constant).T.numpy())
        for unit in torch.eye(count, dtype=torch.float64).split(block)
    ]
    return sparse.hstack(columns, format="csr"), constant.numpy()
