"""Theorem 1: every pooling layer is a composition of affine maps and concatenated ReLUs.

    average of n numbers   an affine map, depth 0
    max(x, y) = relu(x - y) + y                                          (the paper prints one argument too many)
    maximum of n numbers   a tree of such pairs: n - 1 ReLUs, any depth m >= log2 n, here exactly ceil(log2 n)

The depth of the paper is an upper bound, not the least: `shallow_maximum` takes two layers for five numbers, where the
tree takes three (and 13 ReLUs, where the tree takes 4). A pooling layer is one of these maxima or averages per window.
Entries of a window that fall outside the input are left out of a maximum; nothing is ever padded with -inf, for which
relu(x - y) + y is NaN. The module `trees` describes the trees and `windows` which coordinates a window reads.

c channels, shapes without the batch: (c, w), (c, h, w) or (c, d, h, w), channels first. Every constructor takes
`exact`: rational weights instead of float64.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from fractions import Fraction
from itertools import pairwise
from math import prod
from typing import Any

import numpy as np
from scipy import sparse

from skipform.errors import SkipformError
from skipform.theory.affine import Affine, identity, select
from skipform.theory.network import CanonicalNetwork, affine
from skipform.theory.trees import Layer, Window, disjoint_parts, pair_tree
from skipform.theory.windows import Grid, Size


def average(n: int, *, exact: bool = False) -> CanonicalNetwork:
    """(x_1 + ... + x_n) / n: a perceptron of depth 0 (Theorem 1)."""
    _positive("average: n", n)
    return affine(_means([range(n)], [n], n, exact))


def maximum(n: int, *, depth: int | None = None, exact: bool = False) -> CanonicalNetwork:
    """max(x_1, ..., x_n) with n - 1 ReLUs in `depth` layers, ceil(log2 n) unless more are asked for (Theorem 1).

    There are only n - 1 ReLUs: of more layers than that, the first ones are empty. Raises SkipformError if `depth` is
    less than ceil(log2 n).
    """
    _positive("maximum: n", n)
    return window_maxima([range(n)], n, depth=depth, exact=exact)


def minimum(n: int, *, exact: bool = False) -> CanonicalNetwork:
    """min(x_1, ..., x_n) = -max(-x_1, ..., -x_n), with the depth and the ReLUs of the maximum."""
    _positive("minimum: n", n)
    return negated(maximum(n, exact=exact))


def negated(network: CanonicalNetwork) -> CanonicalNetwork:
    """x -> -f(-x), which turns a maximum into a minimum."""
    flipped = affine(-identity(network.in_features, exact=network.is_exact)).then(network)
    return CanonicalNetwork(flipped.layers, -flipped.readout, network.input_shape, network.output_shape)


def shallow_maximum(n: int, *, exact: bool = False) -> CanonicalNetwork:
    """max(x_1, ..., x_n) in fewer layers than the tree: 5, 12, 30, 75, ... numbers in 2, 3, 4, 5, ... layers.

    Where the tree would be deeper, five groups are combined by the identity proved at `_five_part_sum`, with 7 ReLUs
    and one layer. The depth is ceil(log3(n - 2)) + 1 for 4 <= n <= 11, the bound of arXiv 2505.14338; it is one less
    for n = 12 and 30, and more from n = 76 on, where our groups grow by 5/2 a layer and theirs by 3. Not shown here:
    that these depths are the least, for instance that two layers cannot take six numbers. `certificates` writes these
    networks down for other programs.
    """
    _positive("shallow_maximum: n", n)
    return window_maxima([range(n)], n, shallow=True, exact=exact)


def shallow_depth(n: int) -> int:
    """The depth of `shallow_maximum`: the least k with n <= m_k, m_0 = 1, m_{k+1} = 2 m_k + floor(m_k / 2)."""
    depth, most = 0, 1
    while most < n:
        depth, most = depth + 1, 2 * most + most // 2
    return depth


def depth_bound(n: int) -> int:
    """ceil(log3(n - 2)) + 1 for n >= 4: layers that suffice for the maximum of n numbers (arXiv 2505.14338)."""
    power, depth = 1, 1
    while power < n - 2:
        power, depth = 3 * power, depth + 1
    return depth


# ---------------------------------------------------------------------------------------------------------------------
# Pooling layers


def max_pool(
    input_shape: Sequence[int],
    window: Size,
    *,
    stride: Size | None = None,
    padding: Size | str = 0,
    dilation: Size = 1,
    ceil_mode: bool = False,
    shallow: bool = False,
    exact: bool = False,
) -> CanonicalNetwork:
    """Max pooling of an input (c, *spatial) with one to three spatial dimensions; one tree of ReLUs per window.

    window, stride (default: the window), dilation: an integer or one per dimension. padding: integers as in torch,
    'valid', or 'same' as in Keras (ceil(size / stride) outputs, the odd cell of padding at the end). ceil_mode as in
    torch: windows that start inside the input and leave it count. shallow: `shallow_maximum` in each window.

    Depth: ceil(log2 of the largest window). ReLUs: at most the cells of each window inside the input, minus one, since
    windows that overlap may share parts of their trees.
    Raises SkipformError for sizes that do not fit and for a window that lies wholly outside the input.
    """
    grid = Grid.of("max_pool", input_shape, window, stride, padding, dilation, ceil_mode)
    network = window_maxima(grid.windows(), prod(grid.input_shape), shallow=shallow, exact=exact)
    return _shaped(network, grid.input_shape, grid.output_shape)


def average_pool(
    input_shape: Sequence[int],
    window: Size,
    *,
    stride: Size | None = None,
    padding: Size | str = 0,
    ceil_mode: bool = False,
    count_include_pad: bool | None = None,
    divisor: int | None = None,
    exact: bool = False,
) -> CanonicalNetwork:
    """Average pooling of an input (c, *spatial) with one to three spatial dimensions: depth 0.

    window, stride, padding, ceil_mode: as in `max_pool`. Each sum is divided by `divisor`, or by the number of cells in
    the window, with the padding's zeros if count_include_pad, which is torch's default. Cells beyond the padding, which
    ceil_mode reaches, never count. For 'same' the default is what Keras computes on torch: padding that is even in all
    dimensions is left out, any other repeats the edge, and counts. count_include_pad=False leaves it out always, as
    Keras does on TensorFlow and JAX.
    """
    repeat_edge = padding == "same" and count_include_pad is None
    grid = Grid.of("average_pool", input_shape, window, stride, padding, 1, ceil_mode, repeat_edge=repeat_edge)
    windows = grid.windows()
    if divisor is not None:
        _positive("average_pool: divisor", divisor)
        counts = [divisor] * len(windows)
    elif count_include_pad or (count_include_pad is None and padding != "same"):
        counts = grid.padded_counts()
    else:
        counts = [len(cells) for cells in windows]
    network = affine(_means(windows, counts, prod(grid.input_shape), exact))
    return _shaped(network, grid.input_shape, grid.output_shape)


def global_max_pool(input_shape: Sequence[int], *, shallow: bool = False, exact: bool = False) -> CanonicalNetwork:
    """The maximum over all spatial positions: (c, *spatial) -> (c,), depth ceil(log2(prod(spatial)))."""
    pooled = max_pool(input_shape, tuple(input_shape)[1:], shallow=shallow, exact=exact)
    return _shaped(pooled, tuple(input_shape), (input_shape[0],))


def global_average_pool(input_shape: Sequence[int], *, exact: bool = False) -> CanonicalNetwork:
    """The mean over all spatial positions: (c, *spatial) -> (c,), depth 0."""
    pooled = average_pool(input_shape, tuple(input_shape)[1:], exact=exact)
    return _shaped(pooled, tuple(input_shape), (input_shape[0],))


def adaptive_max_pool(
    input_shape: Sequence[int], output_size: Size, *, shallow: bool = False, exact: bool = False
) -> CanonicalNetwork:
    """Max pooling to a given output size: position i of m reads cells c of s, i s / m - 1 < c < (i + 1) s / m."""
    grid = Grid.adaptive("adaptive_max_pool", input_shape, output_size)
    network = window_maxima(grid.windows(), prod(grid.input_shape), shallow=shallow, exact=exact)
    return _shaped(network, grid.input_shape, grid.output_shape)


def adaptive_average_pool(input_shape: Sequence[int], output_size: Size, *, exact: bool = False) -> CanonicalNetwork:
    """Average pooling to a given output size, over the windows of `adaptive_max_pool`: depth 0."""
    grid = Grid.adaptive("adaptive_average_pool", input_shape, output_size)
    windows = grid.windows()
    network = affine(_means(windows, [len(cells) for cells in windows], prod(grid.input_shape), exact))
    return _shaped(network, grid.input_shape, grid.output_shape)


def _positive(name: str, value: int) -> None:
    if value < 1:
        raise SkipformError(f"{name} = {value}; a positive integer is accepted")


def _shaped(network: CanonicalNetwork, input_shape: tuple[int, ...], output_shape: tuple[int, ...]) -> CanonicalNetwork:
    return CanonicalNetwork(network.layers, network.readout, input_shape, output_shape)


# ---------------------------------------------------------------------------------------------------------------------
# Averages and maxima over windows of coordinates


def _means(windows: Sequence[Any], counts: Sequence[int], in_features: int, exact: bool) -> Affine:
    """x -> (sum of x over windows[j]) / counts[j] for each j; a window may hold a coordinate several times."""
    if exact:
        rows = [
            {int(cell): Fraction(times, count) for cell, times in Counter(cells).items()}
            for cells, count in zip(windows, counts, strict=True)
        ]
        return Affine.from_rows(rows, [0] * len(rows), in_features)
    sizes = [len(cells) for cells in windows]
    values = np.repeat(1 / np.asarray(counts, dtype=np.float64), sizes)
    columns = np.concatenate([np.asarray(cells) for cells in windows])
    indptr = np.cumsum([0, *sizes])
    return Affine.of(sparse.csr_array((values, columns, indptr), shape=(len(sizes), in_features)))


def window_maxima(
    windows: Iterable[Iterable[int]],
    in_features: int,
    *,
    depth: int | None = None,
    shallow: bool = False,
    exact: bool = False,
) -> CanonicalNetwork:
    """x -> max of x over windows[j], for each j, by `trees.pair_tree`, or in fewer layers if shallow.

    A maximum that several windows need is computed once.
    """
    wanted = [tuple(map(int, window)) for window in windows]
    if shallow:
        return _layered(wanted, shallow_layers(wanted), in_features, exact)
    return tree_maxima(wanted, pair_tree(wanted, depth), in_features, exact=exact)


def tree_maxima(
    windows: Sequence[Window], tree: Sequence[Layer], in_features: int, *, exact: bool = False
) -> CanonicalNetwork:
    """x -> max of x over windows[j], for each j, by a tree as the module `trees` describes it."""
    layers = [{window: _pair_sum(parts) for window, parts in layer.items()} for layer in tree]
    return _layered(windows, layers, in_features, exact)


# (base, [(weight, {part: coefficient})]): the maximum over a window as base + sum of weight * relu(sum of coefficient *
# part), where the base and the parts stand for maxima that are known one layer earlier.
ReluSum = tuple[Window, list[tuple[float, dict[Window, int]]]]


def _pair_sum(parts: tuple[Window, ...]) -> ReluSum:
    """relu(left - right) + right for a pair; a single part, or one that is paired with itself, is carried along."""
    left, right = parts[0], parts[-1]
    return right, [(1.0, {left: 1, right: -1})] if left != right else []


def shallow_layers(windows: Iterable[Window]) -> list[dict[Window, ReluSum]]:
    """The layers of `shallow_maximum`, the one that reads the input first: window -> how its maximum is made."""
    wanted = list(windows)
    layers = []
    for k in range(shallow_depth(max(map(len, wanted))), 0, -1):
        layers.append({window: _five_part_sum(window, k) for window in wanted})
        sums = layers[-1].values()
        read = [part for _, terms in sums for _, form in terms for part in form]
        wanted = list(dict.fromkeys([*read, *(base for base, _ in sums)]))
    return layers[::-1]


def _five_part_sum(window: Window, layers: int) -> ReluSum:
    """The maximum over a window, known after `layers` layers, from maxima over parts of it, known one layer earlier.

    A pair as in `trees.pair_tree` where the tree can finish in time; otherwise five parts, as follows.

    Theorem (ours). For all reals x1, x2, x3, x4, e, with a = max(x1, x2), b = max(x3, x4), xi' = max(xi, e),

        max(x1, x2, x3, x4, e) = e + 1/2 [ (a + b - 2e)+ + (a - x3')+ + (a - x4')+ + (b - x1')+ + (b - x2')+
                                           - (a + b - x3' - x4')+ - (a + b - x1' - x2')+ ],        t+ = relu(t).

    Proof. Both sides grow by t with all arguments; let e = 0, M = max(a, b, 0), c = min(x3', x4'), d = min(x1', x2').
    The larger of x3', x4' is b+, so max(a, x3') + max(a, x4') = M + max(a, c), and M + max(b, d) for the other two.
    With (p - q)+ = max(p, q) - q the bracket is
        2M + max(a, c) + max(b, d) + (a + b)+ - max(a + b, b+ + c) - max(a + b, a+ + d),
    and all but 2M cancels. a, b >= 0: the last two are b + max(a, c) and a + max(b, d), and (a + b)+ = a + b.
    a >= 0 > b: c = 0, and the terms are a + d + (a + b)+ - (a + b)+ - (a + d). b >= 0 > a: the same, exchanged.
    a, b < 0: c = d = 0, and all are 0.

    Each of the five may be the maximum of a group. Only maxima over two groups are needed a layer earlier, so if m
    numbers take k layers, 2m + floor(m / 2) of them take k + 1. For single numbers: five in two layers, 6 + 7 ReLUs.
    """
    size = len(window)
    if size <= 2**layers:
        return _pair_sum(disjoint_parts(window, largest_left=2 ** (layers - 1)))
    rest = size - size // 5
    ends = [0, (rest // 2 + 1) // 2, rest // 2, rest // 2 + (rest - rest // 2 + 1) // 2, rest]
    one, two, three, four = (window[start:stop] for start, stop in pairwise(ends))
    e = window[rest:]
    a, b = one + two, three + four
    terms: list[tuple[float, dict[Window, int]]] = [(0.5, {a: 1, b: 1, e: -2})]
    terms += [(0.5, {top: 1, part + e: -1}) for top, part in ((a, three), (a, four), (b, one), (b, two))]
    terms += [(-0.5, {a: 1, b: 1, u + e: -1, v + e: -1}) for u, v in ((three, four), (one, two))]
    return e, terms


def _layered(
    windows: Sequence[Window], layers: Sequence[dict[Window, ReluSum]], in_features: int, exact: bool
) -> CanonicalNetwork:
    """The maxima over the windows, layer by layer; from the outputs down, so that a layer makes only what is read."""
    wanted = list(windows)
    networks = []
    for layer in reversed(layers):
        parts: dict[Window, int] = {}
        networks.append(_one_layer([layer[window] for window in wanted], parts, exact))
        wanted = list(parts)
    network = affine(select((index for (index,) in wanted), in_features, exact=exact))
    for one_layer in reversed(networks):
        network = network.then(one_layer)
    return network


def _one_layer(sums: list[ReluSum], parts: dict[Window, int], exact: bool) -> CanonicalNetwork:
    """One layer: the maxima over the parts -> the sums; enters in `parts` which coordinate each part is."""
    units = [(row, weight, form) for row, (_, terms) in enumerate(sums) for weight, form in terms]
    reads = [(part, coefficient) for _, _, form in units for part, coefficient in form.items()]
    rows = np.repeat(np.arange(len(units)), [len(form) for _, _, form in units])
    columns = [parts.setdefault(part, len(parts)) for part, _ in reads]
    bases = [parts.setdefault(base, len(parts)) for base, _ in sums]
    values = np.array([coefficient for _, coefficient in reads], dtype=np.float64)
    layer = sparse.csr_array((values, (rows, columns)), shape=(len(units), len(parts)))
    summed = sparse.csr_array(
        ([weight for _, weight, _ in units], ([row for row, _, _ in units], np.arange(len(units)))),
        shape=(len(sums), len(units)),
        dtype=np.float64,
    )
    ones = np.ones(len(sums))
    carried = sparse.csr_array((ones, (np.arange(len(sums)), bases)), shape=(len(sums), len(parts)))
    readout = sparse.hstack([summed, carried], format="csr")
    return CanonicalNetwork((Affine.of(layer, exact=exact),), Affine.of(readout, exact=exact))
