"""Theorem 2, Proposition 1 and Theorem 3: every skip connection, and every merge layer, in the grammar.

    addition, subtraction, average     concatenation skip, then an affine map                    (Theorem 2)
    maximum, minimum                   concatenation skip, then one layer of relu(x - y) + y     (Theorem 2)
    product                            concatenation skip, then log, affine, exp, affine         (Theorem 2), or squares

Three corrections. The paper lists division among the linear skips; division is not linear (`division_witness`), and the
argument holds for subtraction. The product through logarithms holds for positive numbers only; for others it raises
here, and xy = ((x + y)^2 - (x - y)^2) / 4 is the form that holds everywhere. The
paper counts two layers for the maximum skip; by Definition 1 and Theorem 1 it has one.

A merge takes tensors of given shapes (without the batch), flattened and concatenated into one argument. Shapes that
differ broadcast as in NumPy and Keras. When all shapes are equal the network's input_shape is (n, *shape).
`exact`: rational weights instead of float64.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import prod
from typing import Any

import numpy as np

from skipform.errors import SkipformError
from skipform.theory.affine import Affine, Row, block_diagonal, fractions, hstack, identity, select, vstack
from skipform.theory.network import CanonicalNetwork, affine, parallel
from skipform.theory.pooling import negated, window_maxima

Shape = tuple[int, ...]


# ---------------------------------------------------------------------------------------------------------------------
# Proposition 1


def join(u: Affine, v: Affine) -> Affine:
    """The w with w(a; b) = u(a) + v(b), w = (u v) (Proposition 1); the biases add."""
    return hstack(u, v)


def split(w: Affine, first: int) -> tuple[Affine, Affine]:
    """The (u, v) with w(a; b) = u(a) + v(b), a of `first` coordinates (Proposition 1); u takes the bias."""
    if not 0 <= first <= w.in_features:
        raise SkipformError(f"split: {first} coordinates of {w.in_features}; 0 to {w.in_features} are accepted")
    left = [{c: value for c, value in row.items() if c < first} for row in w.exact().rows()]
    right = [{c - first: value for c, value in row.items() if c >= first} for row in w.exact().rows()]
    u = Affine.from_rows(left, w.exact().bias, first)
    v = Affine.from_rows(right, [0] * w.out_features, w.in_features - first)
    return (u, v) if w.is_exact else (u.float(), v.float())


# ---------------------------------------------------------------------------------------------------------------------
# Merges, piecewise linear


def add(*shapes: Shape, exact: bool = False) -> CanonicalNetwork:
    """x_1 + ... + x_n: depth 0 (Theorem 2)."""
    return _linear("add", shapes, [Fraction(1)] * len(shapes), exact)


def subtract(*shapes: Shape, exact: bool = False) -> CanonicalNetwork:
    """x_1 - x_2: depth 0 (Theorem 2, which prints division)."""
    if len(shapes) != 2:
        raise SkipformError(f"subtract: {len(shapes)} inputs; exactly 2 are accepted")
    return _linear("subtract", shapes, [Fraction(1), Fraction(-1)], exact)


def average(*shapes: Shape, exact: bool = False) -> CanonicalNetwork:
    """(x_1 + ... + x_n) / n: depth 0 (Theorem 2)."""
    return _linear("average", shapes, [Fraction(1, max(len(shapes), 1))] * len(shapes), exact)


def maximum(*shapes: Shape, shallow: bool = False, exact: bool = False) -> CanonicalNetwork:
    """max(x_1, ..., x_n) entry by entry: n - 1 ReLUs per entry, depth ceil(log2 n) (Theorem 2).

    shallow: fewer layers and more ReLUs, by `pooling.shallow_maximum`.
    """
    shape, sources = _broadcast("maximum", shapes)
    windows = sources.T  # one window per entry: that entry of each input
    network = window_maxima(list(windows), sum(map(prod, shapes)), shallow=shallow, exact=exact)
    return _shaped(network, shapes, shape)


def minimum(*shapes: Shape, shallow: bool = False, exact: bool = False) -> CanonicalNetwork:
    """min(x_1, ..., x_n) entry by entry: -max(-x_1, ..., -x_n)."""
    return negated(maximum(*shapes, shallow=shallow, exact=exact))


def concatenate(*shapes: Shape, axis: int = -1, exact: bool = False) -> CanonicalNetwork:
    """(x_1; ...; x_n) along `axis`, counted without the batch: a reordering of coordinates, depth 0."""
    if not shapes:
        raise SkipformError("concatenate: no inputs; at least 1 is accepted")
    try:
        merged = np.concatenate(_indexed(shapes), axis=axis)
    except ValueError as error:
        raise SkipformError(f"concatenate: shapes {list(shapes)} along axis {axis}: {error}") from None
    total = sum(map(prod, shapes))
    return _shaped(affine(select(merged.reshape(-1), total, exact=exact)), shapes, merged.shape)


def skip(block_: CanonicalNetwork, merge: CanonicalNetwork) -> CanonicalNetwork:
    """The skip connection x -> merge(B(x); x): concatenation skip first, then the merge (Theorem 2)."""
    through = affine(identity(block_.in_features, exact=block_.is_exact))
    return parallel(block_, through).then(merge)


def _linear(name: str, shapes: Sequence[Shape], weights: list[Fraction], exact: bool) -> CanonicalNetwork:
    """sum_i weights[i] x_i, entry by entry."""
    shape, sources = _broadcast(name, shapes)
    rows: list[Row] = []
    for places in sources.T.tolist():
        rows.append(dict(zip(places, weights, strict=True)))
    sum_ = Affine.from_rows(rows, [0] * len(rows), sum(map(prod, shapes)))
    return _shaped(affine(sum_ if exact else sum_.float()), shapes, shape)


def _indexed(shapes: Sequence[Shape]) -> list[np.ndarray]:
    """For each input, an array of its shape holding where its entries stand in the concatenated argument."""
    offsets = np.cumsum([0, *map(prod, shapes)])
    return [np.arange(prod(s)).reshape(s) + offset for s, offset in zip(shapes, offsets, strict=False)]


def _broadcast(name: str, shapes: Sequence[Shape]) -> tuple[Shape, np.ndarray]:
    """The common shape, and for each input i and output entry e the coordinate sources[i, e] it reads."""
    if not shapes:
        raise SkipformError(f"{name}: no inputs; at least 1 is accepted")
    try:
        arrays = np.broadcast_arrays(*_indexed(shapes))
    except ValueError:
        raise SkipformError(f"{name}: shapes {list(shapes)}; shapes that broadcast together are accepted") from None
    return arrays[0].shape, np.stack([array.reshape(-1) for array in arrays])


def _shaped(network: CanonicalNetwork, shapes: Sequence[Shape], output_shape: Shape) -> CanonicalNetwork:
    input_shape = (len(shapes), *shapes[0]) if len(set(shapes)) == 1 else None
    return CanonicalNetwork(network.layers, network.readout, input_shape, output_shape)


# ---------------------------------------------------------------------------------------------------------------------
# Products, which are not piecewise linear


@dataclass(frozen=True, eq=False)
class ProductNetwork:
    """y = w_m . f_m . w_{m-1} . ... . f_1 . w_0 with each f one of log, exp, square: a perceptron of Definition 1.

    It acts on (d,) or (n, d); float64, and for squares also Fractions or a solver's symbols.
    Raises SkipformError for the logarithm of a number that is not positive (erratum to Theorem 2).
    """

    maps: tuple[Affine, ...]
    activations: tuple[str, ...]
    output_shape: Shape

    @property
    def depth(self) -> int:
        """The number of activation layers."""
        return len(self.activations)

    @property
    def widths(self) -> tuple[int, ...]:
        """Units in each activation layer."""
        return tuple(w.out_features for w in self.maps[:-1])

    @property
    def in_features(self) -> int:
        return self.maps[0].in_features

    @property
    def out_features(self) -> int:
        return self.maps[-1].out_features

    def exact(self) -> "ProductNetwork":
        """The same network over the rationals; its squares are then exact, its logarithms are not defined."""
        return ProductNetwork(tuple(w.exact() for w in self.maps), self.activations, self.output_shape)

    def __call__(self, x: Any, functions: dict[str, Callable[[np.ndarray], np.ndarray]] | None = None) -> np.ndarray:
        """y for x (d,) or (n, d); `functions` replaces the activations by name, for symbolic arguments."""
        named: dict[str, Callable[[np.ndarray], np.ndarray]] = {
            "log": _log,
            "exp": np.exp,
            "square": lambda t: t * t,
            **(functions or {}),
        }
        y = self.maps[0](fractions(x) if self.maps[0].is_exact and functions is None else x)
        for w, activation in zip(self.maps[1:], self.activations, strict=True):
            y = w(named[activation](y))
        return y.reshape(*y.shape[:-1], *self.output_shape)


def multiply(*shapes: Shape, form: str = "squares", exact: bool = False) -> ProductNetwork:
    """x_1 x_2 ... x_n entry by entry.

    form 'log': exp(log x_1 + ... + log x_n), two activation layers, for positive numbers only (Theorem 2).
    form 'squares': a tree of xy = ((x + y)^2 - (x - y)^2) / 4, ceil(log2 n) layers, for all numbers.
    """
    shape, sources = _broadcast("multiply", shapes)
    total = sum(map(prod, shapes))
    factors = [select(places, total, exact=exact) for places in sources]
    if form == "log":
        return _log_product(factors, identity(prod(shape), exact=exact), shape)
    _known_form("multiply", form)
    maps, activations = [], []
    inner = vstack(*factors)
    size, count = prod(shape), len(factors)
    while count > 1:
        outer, left = _square_level(count, size, exact)
        maps.append(outer.compose(inner))
        activations.append("square")
        inner, count = left, (count + 1) // 2
    return ProductNetwork((*maps, inner), tuple(activations), shape)


def dot(
    first: Shape,
    second: Shape,
    *,
    axes: int | tuple[int, int],
    normalize: bool = False,
    form: str = "squares",
    exact: bool = False,
) -> ProductNetwork:
    """sum_k x_..k.. y_..k.. along one axis of each tensor, counted as in Keras with the batch as axis 0.

    The output has the remaining axes of x, then those of y; with none left it is (1,), as in Keras.
    form as in `multiply`, 'log' for positive entries only. normalize=True of Keras, a quotient by norms, is not a
    product and is refused.
    """
    if normalize:
        raise SkipformError("dot: normalize=True divides by norms, which is no product; False is accepted")
    a, b = (axes, axes) if isinstance(axes, int) else axes
    for name, axis, shape in (("first", a, first), ("second", b, second)):
        if not 1 <= (axis if axis >= 0 else axis + len(shape) + 1) <= len(shape):
            raise SkipformError(f"dot: axis {axis} of the {name} input {shape}; 1 to {len(shape)} are accepted")
    left, right = _indexed((first, second))
    left = np.moveaxis(left, a - 1 if a > 0 else a, -1)
    right = np.moveaxis(right, b - 1 if b > 0 else b, -1)
    if left.shape[-1] != right.shape[-1]:
        raise SkipformError(
            f"dot: {left.shape[-1]} entries against {right.shape[-1]} along axes {axes}; as many of each"
        )
    outer = (*left.shape[:-1], *right.shape[:-1])
    length = left.shape[-1]
    x = (
        left.reshape(-1, 1, length).repeat(prod(right.shape[:-1]), axis=1).reshape(-1)
    )  # (entries of the output * length,)
    y = right.reshape(1, -1, length).repeat(prod(left.shape[:-1]), axis=0).reshape(-1)
    total, outputs = prod(first) + prod(second), prod(outer)
    sums = Affine.from_rows(
        [dict.fromkeys(range(i * length, (i + 1) * length), Fraction(1)) for i in range(outputs)], [0] * outputs, len(x)
    )
    sums = sums if exact else sums.float()
    factors = [select(places, total, exact=exact) for places in (x, y)]
    shape = outer or (1,)
    if form == "log":
        return _log_product(factors, sums, shape)
    _known_form("dot", form)
    squares, product_ = _square_level(2, len(x), exact)
    return ProductNetwork((squares.compose(vstack(*factors)), sums.compose(product_)), ("square",), shape)


def quotient(*shapes: Shape) -> ProductNetwork:
    """x_1 / x_2 = exp(log x_1 - log x_2) for positive numbers: where division really belongs (erratum to Theorem 2)."""
    shape, sources = _broadcast("quotient", shapes)
    if len(shapes) != 2:
        raise SkipformError(f"quotient: {len(shapes)} inputs; exactly 2 are accepted")
    x, y = (select(places, sum(map(prod, shapes))) for places in sources)
    one = identity(prod(shape))
    return ProductNetwork((vstack(x, y), join(one, -one), one), ("log", "exp"), shape)


def division_witness() -> tuple[Fraction, Fraction]:
    """(f(m), (f(a) + f(b)) / 2) for f(x, y) = x / y, a = (1, 1), b = (1, 3) and their midpoint m = (1, 2).

    An affine map would make the two equal; they are 1/2 and 2/3. So division is not a concatenation skip followed by an
    affine map, as Theorem 2 has it.
    """
    return Fraction(1, 2), (Fraction(1, 1) + Fraction(1, 3)) / 2


def _log_product(factors: list[Affine], readout: Affine, shape: Shape) -> ProductNetwork:
    """readout(exp(sum of logs)): w_0 gathers the factors, w_1 = (I I ...) adds their logarithms."""
    one = identity(factors[0].out_features, exact=readout.is_exact)
    return ProductNetwork((vstack(*factors), hstack(*[one] * len(factors)), readout), ("log", "exp"), shape)


def _square_level(count: int, size: int, exact: bool) -> tuple[Affine, Affine]:
    """w, v with v(square(w(x_1; ...; x_count))) = (x_1 x_2; x_3 x_4; ...), the last alone if count is odd, times 1."""
    one = identity(size, exact=True)
    ones = Affine.from_rows([{}] * size, [1] * size, size)
    quarter = join(one * Fraction(1, 4), one * Fraction(-1, 4))
    pair = vstack(join(one, one), join(one, -one))  # (x; y) -> (x + y; x - y)
    single = vstack(one + ones, one - ones)  # x -> (x + 1; x - 1)
    w = block_diagonal(*[pair] * (count // 2), *[single] * (count % 2))
    v = block_diagonal(*[quarter] * ((count + 1) // 2))
    return (w, v) if exact else (w.float(), v.float())


def _log(values: np.ndarray) -> np.ndarray:
    if values.dtype == object:
        raise SkipformError("the log form of a product has no exact value; form 'squares' is accepted")
    if not (values > 0).all():
        raise SkipformError(f"log of {values.min():g} in a product; positive numbers, or form 'squares', are accepted")
    return np.log(values)


def _known_form(name: str, form: str) -> None:
    if form != "squares":
        raise SkipformError(f"{name}: form {form!r}; 'squares' or 'log' is accepted")
