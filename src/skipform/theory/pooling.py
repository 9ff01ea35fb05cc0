"""Theorem 1: every pooling layer is a composition of affine maps and concatenated ReLUs.

    average of n numbers   an affine map, depth 0
    max(x, y) = relu(x - y) + y                                          (the paper prints one argument too many)
    maximum of n numbers   a tree of such pairs: n - 1 ReLUs, any depth m >= log2 n, here exactly ceil(log2 n)

The depth of the paper is an upper bound, not the least: `shallow_maximum` takes two layers for six numbers, where the
tree takes three (and 87 ReLUs, where the tree takes 5); the module `shallow` has the mathematics. A pooling layer is
one of these maxima or averages per window. Entries of a window that fall outside the input are left out of a maximum;
nothing is ever padded with -inf, for which relu(x - y) + y is NaN. The module `trees` describes the trees and `windows`
which coordinates a window reads.

c channels, shapes without the batch: (c, w), (c, h, w) or (c, d, h, w), channels first. Every constructor takes
`exact`: rational weights instead of float64.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from fractions import Fraction
from math import lcm, prod
from typing import Any

import numpy as np
from scipy import sparse

from skipform.errors import SkipformError
from skipform.theory.affine import Affine, identity, select
from skipform.theory.network import CanonicalNetwork, affine
from skipform.theory.shallow import ReluSum, pair_sum, shallow_layers
from skipform.theory.trees import Layer, Window, pair_tree
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
    """max(x_1, ..., x_n) in fewer layers than the tree: 6, 18, 54, ..., 2 3^(k-1) numbers in 2, 3, 4, ..., k layers.

    Where the tree would be deeper, five or six groups are combined in one layer, by the identities that `shallow`
    proves. The depth is never more than ceil(log3(n - 2)) + 1, the bound of arXiv 2505.14338 for n >= 4, and one less
    for 6, 12 to 18, 30 to 54 and generally 3^(k-1) + 3 to 2 3^(k-1). Not shown here: that these depths are the least;
    for 7 and 8 numbers they are not (`eight`). `certificates` writes these networks down for other programs.
    """
    _positive("shallow_maximum: n", n)
    return window_maxima([range(n)], n, shallow=True, exact=exact)


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
    layers = [{window: pair_sum(parts) for window, parts in layer.items()} for layer in tree]
    return _layered(windows, layers, in_features, exact)


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
    carried = [(row, part, weight) for row, (base, _) in enumerate(sums) for part, weight in base.items()]
    bases = [parts.setdefault(part, len(parts)) for _, part, _ in carried]
    values = np.array([coefficient for _, coefficient in reads], dtype=np.float64)
    layer = sparse.csr_array((values, (rows, columns)), shape=(len(units), len(parts)))
    weights = [weight for _, weight, _ in units] + [weight for *_, weight in carried]
    divisor = lcm(*(weight.denominator for weight in weights))
    entries = np.array([int(weight * divisor) for weight in weights], dtype=np.float64)
    outputs = [row for row, *_ in units] + [row for row, *_ in carried]
    inputs = [*range(len(units)), *(len(units) + base for base in bases)]
    readout = sparse.csr_array((entries, (outputs, inputs)), shape=(len(sums), len(units) + len(parts)))
    whole = Affine.of(readout, exact=exact)
    summed = whole * Fraction(1, divisor) if exact else Affine.of(readout / divisor)
    return CanonicalNetwork((Affine.of(layer, exact=exact),), summed)
