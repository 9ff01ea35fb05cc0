"""Affine maps y = W x + b, sparse, over float64 or over the rationals.

One class serves both number systems: the weight is compressed by rows, its entries are float64 or `Fraction`. The
float64 maps compute through SciPy; the rational ones row by row in exact arithmetic, and their argument may hold any
numbers that multiply with a `Fraction`, a solver's symbols for instance.

d in_features, m out_features, n batch.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
from scipy import sparse

from skipform.errors import SkipformError

Row = dict[int, Fraction]


@dataclass(frozen=True, eq=False)
class Affine:
    """y = W x + b with W (m, d) stored by rows: row i holds data[indptr[i]:indptr[i + 1]] in columns indices[...]."""

    indptr: np.ndarray  # (m + 1,) int
    indices: np.ndarray  # (nonzeros,) int, ascending within a row
    data: np.ndarray  # (nonzeros,) float64, or Fraction (dtype object)
    bias: np.ndarray  # (m,) of the same kind
    in_features: int

    @staticmethod
    def of(weight: Any, bias: Any = None, *, exact: bool = False) -> "Affine":
        """The map x -> weight x + bias from a nested sequence, an array or a SciPy sparse matrix; bias 0 if absent.

        exact: every entry becomes a Fraction; a float64 becomes the rational number that it represents.
        """
        if sparse.issparse(weight):
            csr = sparse.csr_array(weight)
            csr.sum_duplicates()
            shape, indptr, indices, data = csr.shape, csr.indptr, csr.indices, csr.data
        else:
            dense = np.asarray(weight, dtype=object if exact else np.float64)
            if dense.ndim != 2:
                raise SkipformError(f"Affine.of: weight has {dense.ndim} dimensions; a matrix (m, d) is accepted")
            rows, indices = np.nonzero(dense != 0)
            shape, data = dense.shape, dense[rows, indices]
            indptr = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=shape[0]))])
        if bias is None:
            bias = [0] * shape[0]
        bias = np.asarray(bias, dtype=object if exact else np.float64)
        if bias.shape != (shape[0],):
            raise SkipformError(f"Affine.of: bias has shape {bias.shape}; the weight {shape} asks for ({shape[0]},)")
        if exact:
            data, bias = fractions(data), fractions(bias)
        else:
            data = np.asarray(data, dtype=np.float64)
        return Affine(indptr, indices, data, bias, shape[1])

    @staticmethod
    def from_rows(rows: Sequence[Row], bias: Any, in_features: int) -> "Affine":
        """The exact map whose row i is the dictionary rows[i] {column: Fraction}; zeros are dropped."""
        nonzero = [sorted((column, value) for column, value in row.items() if value != 0) for row in rows]
        indptr = np.cumsum([0, *(len(row) for row in nonzero)])
        indices = np.array([column for row in nonzero for column, _ in row], dtype=np.int64)
        data = fractions([value for row in nonzero for _, value in row])
        return Affine(indptr, indices, data, fractions(bias), in_features)

    def __repr__(self) -> str:
        return f"Affine(in_features={self.in_features}, out_features={self.out_features}, nonzeros={self.nonzeros})"

    @property
    def out_features(self) -> int:
        return len(self.bias)

    @property
    def nonzeros(self) -> int:
        """Number of stored entries of W."""
        return len(self.data)

    @property
    def is_exact(self) -> bool:
        """Whether the entries are Fractions."""
        return self.bias.dtype == object

    @property
    def columns(self) -> np.ndarray:
        """The coordinates of x that W x + b depends on, some of them several times."""
        return self.indices

    @property
    def weight(self) -> sparse.csr_array:
        """W in float64, (m, d)."""
        data = self.data.astype(np.float64)
        return sparse.csr_array((data, self.indices, self.indptr), shape=(self.out_features, self.in_features))

    def rows(self) -> list[Row]:
        """The rows of W as dictionaries {column: entry}."""
        return [
            dict(zip(self.indices[start:stop].tolist(), self.data[start:stop], strict=True))
            for start, stop in zip(self.indptr[:-1], self.indptr[1:], strict=True)
        ]

    def __call__(self, x: Any) -> np.ndarray:
        """W x + b for x (d,) or a batch (n, d): float64, or in the arithmetic of x's own entries when exact."""
        x = np.asarray(x, dtype=object if self.is_exact else np.float64)
        if x.ndim not in (1, 2) or x.shape[-1] != self.in_features:
            raise SkipformError(
                f"Affine: argument of shape {x.shape}; ({self.in_features},) or (n, {self.in_features}) is accepted"
            )
        if not self.is_exact:
            return np.asarray((self.weight @ x.T).T + self.bias)
        y = np.empty((*x.shape[:-1], self.out_features), dtype=object)
        for i, (start, stop) in enumerate(zip(self.indptr[:-1], self.indptr[1:], strict=True)):
            y[..., i] = self.bias[i]
            for column, value in zip(self.indices[start:stop], self.data[start:stop], strict=True):
                y[..., i] = y[..., i] + value * x[..., column]
        return y

    def exact(self) -> "Affine":
        """The same map over the rationals: every float64 entry as the Fraction that it represents."""
        return Affine(self.indptr, self.indices, fractions(self.data), fractions(self.bias), self.in_features)

    def float(self) -> "Affine":
        """The same map with every entry rounded to float64."""
        data, bias = self.data.astype(np.float64), self.bias.astype(np.float64)
        return Affine(self.indptr, self.indices, data, bias, self.in_features)

    def compose(self, inner: "Affine") -> "Affine":
        """x -> self(inner(x)) = (W V) x + (W c + b) with inner(x) = V x + c; exact if both are."""
        if inner.out_features != self.in_features:
            raise SkipformError(f"Affine.compose: {inner.out_features} outputs into {self.in_features} inputs")
        if not (self.is_exact and inner.is_exact):
            outer, inner = self.float(), inner.float()
            return Affine.of(outer.weight @ inner.weight, outer(inner.bias))
        inner_rows = inner.rows()
        rows = []
        for row in self.rows():
            product: Row = {}
            for middle, value in row.items():
                for column, entry in inner_rows[middle].items():
                    product[column] = product.get(column, Fraction(0)) + value * entry
            rows.append(product)
        return Affine.from_rows(rows, self(inner.bias), inner.in_features)

    def spread(self, columns: np.ndarray, in_features: int) -> "Affine":
        """The map on R^in_features that reads coordinate columns[j] where this one reads j: self(x[columns]).

        The columns must be distinct.
        """
        indices = np.asarray(columns, dtype=np.int64)[self.indices]
        # Within a row the order of the columns may change; sort by (row, column).
        row = np.repeat(np.arange(self.out_features), np.diff(self.indptr))
        order = np.lexsort((indices, row))
        return Affine(self.indptr, indices[order], self.data[order], self.bias, in_features)

    def take(self, outputs: Iterable[int]) -> "Affine":
        """The map with only the given output coordinates, in that order."""
        return select(outputs, self.out_features, exact=self.is_exact).compose(self)

    def __add__(self, other: "Affine") -> "Affine":
        """x -> self(x) + other(x)."""
        m = self.out_features
        total = select([*range(m)], m, exact=self.is_exact)
        return hstack(total, total).compose(vstack(self, other))

    def __neg__(self) -> "Affine":
        """x -> -self(x)."""
        return Affine(self.indptr, self.indices, -self.data, -self.bias, self.in_features)

    def __sub__(self, other: "Affine") -> "Affine":
        """x -> self(x) - other(x)."""
        return self + (-other)

    def __mul__(self, scalar: Any) -> "Affine":
        """x -> scalar * self(x)."""
        return Affine(self.indptr, self.indices, self.data * scalar, self.bias * scalar, self.in_features)

    __rmul__ = __mul__


def fractions(values: Any) -> np.ndarray:
    """An object array of Fractions from numbers of any kind, exactly: Fraction(float) is the rational it represents."""
    values = np.asarray(values, dtype=object)
    out = np.empty(values.shape, dtype=object)
    for index, value in np.ndenumerate(values):
        out[index] = (
            value if isinstance(value, Fraction) else Fraction(value.item() if hasattr(value, "item") else value)
        )
    return out


def identity(features: int, *, exact: bool = False) -> Affine:
    """x -> x on R^features."""
    return select(range(features), features, exact=exact)


def select(coordinates: Iterable[int], in_features: int, *, exact: bool = False) -> Affine:
    """x -> (x_i for i in coordinates) from R^in_features."""
    indices = np.fromiter(coordinates, dtype=np.int64)
    m = len(indices)
    one, zero = np.ones(m), np.zeros(m)
    if exact:
        one, zero = fractions(one), fractions(zero)
    return Affine(np.arange(m + 1), indices, one, zero, in_features)


def vstack(*maps: Affine) -> Affine:
    """x -> (f_1(x); f_2(x); ...): concatenation of maps of one argument."""
    if len({f.in_features for f in maps}) != 1:
        raise SkipformError(f"vstack: maps of {[f.in_features for f in maps]} inputs; the same number is accepted")
    maps = _alike(maps)
    offsets = np.cumsum([0, *(f.nonzeros for f in maps)])
    indptr = np.concatenate([[0], *(f.indptr[1:] + offset for f, offset in zip(maps, offsets, strict=False))])
    indices = np.concatenate([f.indices for f in maps])
    data, bias = np.concatenate([f.data for f in maps]), np.concatenate([f.bias for f in maps])
    return Affine(indptr, indices, data, bias, maps[0].in_features)


def block_diagonal(*maps: Affine) -> Affine:
    """(x_1; x_2; ...) -> (f_1(x_1); f_2(x_2); ...): the block-diagonal map diag(f_1, f_2, ...)."""
    offsets = np.cumsum([0, *(f.in_features for f in maps)])
    total = int(offsets[-1])
    return vstack(
        *(f.spread(np.arange(f.in_features) + offset, total) for f, offset in zip(maps, offsets, strict=False))
    )


def hstack(*maps: Affine) -> Affine:
    """(x_1; x_2; ...) -> f_1(x_1) + f_2(x_2) + ...: the row of blocks (f_1 f_2 ...) of Proposition 1."""
    if len({f.out_features for f in maps}) != 1:
        raise SkipformError(f"hstack: maps of {[f.out_features for f in maps]} outputs; the same number is accepted")
    maps = _alike(maps)
    offsets = np.cumsum([0, *(f.in_features for f in maps)])
    row = np.concatenate([np.repeat(np.arange(f.out_features), np.diff(f.indptr)) for f in maps])
    indices = np.concatenate([f.indices + offset for f, offset in zip(maps, offsets, strict=False)])
    data = np.concatenate([f.data for f in maps])
    order = np.lexsort((indices, row))
    m = maps[0].out_features
    indptr = np.concatenate([[0], np.cumsum(np.bincount(row, minlength=m))])
    bias = sum((f.bias for f in maps[1:]), start=maps[0].bias)
    return Affine(indptr, indices[order], data[order], bias, int(offsets[-1]))


def _alike(maps: tuple[Affine, ...]) -> tuple[Affine, ...]:
    """All exact if all are exact, else all float64."""
    return maps if all(f.is_exact for f in maps) else tuple(f.float() for f in maps)
