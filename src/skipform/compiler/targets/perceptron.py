"""The perceptron of Definition 1: a chain Gemm, ReLU, Gemm, ..., without any skip, made of the canonical network.

The numbers that a later layer still reads are carried through the ReLUs between:

    a ReLU's value h              is not negative: relu(h) = h
    an input x with x >= lower    x - lower is not negative
    an input x without a bound    x = relu(x) - relu(-x), two numbers

Several inputs are one, concatenated in their order; each of several outputs has a last Gemm of its own.

d inputs.
"""

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from scipy import sparse
from torch import Tensor, fx, nn

from skipform.compiler.check import compare_forms, output_nodes
from skipform.compiler.emit import Emitter
from skipform.compiler.flatten import canonical_of, entries_of, shape_of
from skipform.compiler.rewrite import finish, rewrite_in_float64
from skipform.compiler.targets import Settings, bounds_of
from skipform.compiler.targets.keep_add import AddingEmitter
from skipform.errors import SkipformError
from skipform.theory.affine import Affine
from skipform.theory.network import CanonicalNetwork, perceptron


def rewritten(module: nn.Module, inputs: tuple[Tensor, ...], settings: Settings) -> fx.GraphModule:
    """A graph of linear and relu, with a flatten before and a reshape after them where input or output is no vector,
    and a concatenation before them where there are several inputs.

    With a box it equals the module inside the box only. Raises SkipformError if its dense weights would take more than
    the memory.
    """
    graph, chained = _of(module, inputs, settings)
    needed = 8 * sum((a.in_features + 1) * a.out_features for a in _maps(chained))
    if needed > settings.memory:
        raise SkipformError(
            f"{type(module).__name__}: as a perceptron of widths {_widths(chained)} its dense weights take"
            f" {needed / 2**30:.3g} GiB; memory={settings.memory / 2**30:.3g} GiB is accepted (smaller inputs, or more;"
            " the command writes a sparse .safetensors)"
        )
    e = Emitter(inputs[0].device, inputs[0].dtype)
    parts = [e.input(n.name, n.meta["val"]) for n in graph.graph.nodes if n.op == "placeholder"]
    h = e.cat([x if x.meta["val"].ndim == 2 else e.emit(torch.flatten, x, 1) for x in parts], 1)
    *hidden, last = _maps(chained)
    for a in hidden:
        h = e.relu(_linear(e, h, a.weight, a.bias))
    values: dict[fx.Node, fx.Node] = {}
    start = 0
    for output in output_nodes(graph.graph):
        rows = slice(start, start + entries_of(output))
        start = rows.stop
        y = _linear(e, h, last.weight[rows], last.bias[rows])
        values[output] = e.reshape(y, [-1, *shape_of(output)[1:]])
    outputs = fx.node.map_arg(graph.graph.output_node().args[0], values.__getitem__)
    plain = finish(e, outputs, [tuple(x.shape[1:]) for x in inputs], type(module).__name__)
    plain.meta["original_operations"] = graph.meta["original_operations"]
    if settings.check:
        compare_forms(graph, plain, settings.box)
    return plain


def network(module: nn.Module, inputs: tuple[Tensor, ...], settings: Settings) -> CanonicalNetwork:
    """The same chain as sparse matrices: a canonical network each of whose layers reads only the layer before."""
    return _of(module, inputs, settings)[1]


def _of(module: nn.Module, inputs: tuple[Tensor, ...], settings: Settings) -> tuple[fx.GraphModule, CanonicalNetwork]:
    """The rewritten module and its chain."""
    graph = rewrite_in_float64(module, inputs, AddingEmitter, check=settings.check)
    if any(output.meta.get("batch_dim") != 0 for output in output_nodes(graph.graph)):
        raise SkipformError("target perceptron: an output has no batch in its first dimension; batch first is accepted")
    lower = None
    if settings.box is not None:
        lower = np.concatenate([bounds_of(settings.box, x.shape[1:])[0].ravel() for x in inputs])
    canonical = canonical_of(graph, type(module).__name__, settings.memory, explicit=True, check=settings.check)
    return graph, chain(canonical, lower)


def chain(network: CanonicalNetwork, lower: np.ndarray | None = None) -> CanonicalNetwork:
    """An equal network each of whose layers reads the layer before it only: w_L . relu . w_{L-1} . ... . relu . w_0,
    for inputs x >= lower, (d,); for all inputs without.

    Its layers have the ReLUs of the network's layers that are read at all, and what later layers read of the numbers
    before: one number for each ReLU and, with a bound, for each input; two for each input without. No layer can do with
    fewer of them.
    """
    total = network.readout.in_features  # coordinates are counted in z_L, of which z_k is the tail
    live, later = [], []  # for each map, from the last to the first: rows that are read, coordinates read afterwards
    needed = np.arange(-network.out_features, 0)  # the output stands before z_L
    for a in reversed(network.affine_maps):
        start = total - a.in_features
        rows = np.flatnonzero(np.isin(np.arange(start - a.out_features, start), needed))
        live.append(rows)
        later.append(needed)
        needed = np.union1d(needed, a.weight[rows].indices + start)
    # The coordinates `held` of z_L are decode @ h + shift, h the numbers of the last layer; at first, the inputs.
    held, width = np.arange(total - network.in_features, total), network.in_features
    decode, shift = sparse.eye_array(width, format="csr"), np.zeros(width)
    maps = []
    for k, (a, rows, after) in enumerate(zip(network.affine_maps, live[::-1], later[::-1], strict=True)):
        start = total - a.in_features
        own = a.weight[rows]
        columns = np.searchsorted(held, own.indices + start)
        own = sparse.csr_array((own.data, columns, own.indptr), shape=(len(rows), len(held)))
        weight, bias = own @ decode, own @ shift + a.bias[rows]
        old = np.flatnonzero(np.isin(held, after))
        carry, offset, decode, shift = _carry(k, decode[old], shift[old], lower, old)
        maps.append(Affine.of(sparse.vstack([weight, carry], format="csr"), np.concatenate([bias, offset])))
        decode = sparse.block_diag([sparse.eye_array(len(rows)), decode], format="csr")
        shift = np.concatenate([np.zeros(len(rows)), shift])
        held = np.concatenate([rows + start - a.out_features, held[old]])
    return replace(perceptron(maps), input_shape=network.input_shape, output_shape=network.output_shape)


def _carry(
    k: int, decode: sparse.csr_array, shift: np.ndarray, lower: np.ndarray | None, old: np.ndarray
) -> tuple[Any, np.ndarray, sparse.csr_array, np.ndarray]:
    """How layer k carries the coordinates decode @ h + shift of the layer before: as relu(carry @ h + offset), of which
    they are the last two, (matrix, shift)."""
    count, width = decode.shape
    eye = sparse.eye_array(count, format="csr")
    if k > 0:  # numbers that a ReLU made
        used = np.unique(decode.indices)
        return sparse.eye_array(width, format="csr")[used], np.zeros(len(used)), decode[:, used], shift
    if lower is not None:
        return decode, -lower[old], eye, lower[old]
    both = sparse.vstack([decode, -decode], format="csr")
    return both, np.zeros(2 * count), sparse.hstack([eye, -eye], format="csr"), shift


def _linear(e: Emitter, h: fx.Node, weight: sparse.csr_array, bias: np.ndarray) -> fx.Node:
    return e.linear(h, torch.from_numpy(weight.toarray()), torch.from_numpy(bias))


def _maps(chained: CanonicalNetwork) -> list[Affine]:
    """w_0, ..., w_L: the maps without the columns of older layers."""
    first, *others = chained.affine_maps
    widths = (chained.in_features, *chained.widths)
    return [first, *(Affine(a.indptr, a.indices, a.data, a.bias, n) for a, n in zip(others, widths[1:], strict=True))]


def _widths(chained: CanonicalNetwork) -> str:
    return ", ".join(f"{n:,}" for n in chained.widths[:8]) + (", ..." if chained.depth > 8 else "")
