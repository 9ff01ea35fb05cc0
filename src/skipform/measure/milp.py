"""A network over a box as a mixed-integer linear program (Tjeng, Xiao, Tedrake 2019), for HiGHS.

    h = relu(t), l <= t <= u:     h >= 0,  h >= t,  h <= u a,  h <= t - l (1 - a),     a in {0, 1}

a is fixed where l >= 0 or u <= 0. The variables are the coordinates of z_L, then the a of the other ReLUs. A layer of a
`PooledNetwork` may take maxima instead, t_i over the window of one:

    h = max t_i, l_i <= t_i <= u_i:     h >= t_i,  h <= t_i + (u - l_i) (1 - a_i),  sum a_i = 1,     a_i in {0, 1}

with u the greatest u_i; no t_i is read with u_i below the greatest l_i, and none needs an a_i if it is the only one.
"""

from dataclasses import dataclass
from typing import Any

import highspy
import numpy as np
from scipy import sparse

from skipform.measure.pooled import PooledNetwork
from skipform.measure.relaxation import Range
from skipform.theory.affine import Affine
from skipform.theory.network import CanonicalNetwork


@dataclass(frozen=True)
class Encoding:
    """below <= matrix v <= above, low <= v <= high, v the coordinates of z_L and then `switches` numbers in {0, 1}."""

    matrix: sparse.csr_array
    below: np.ndarray
    above: np.ndarray
    low: np.ndarray
    high: np.ndarray
    switches: int

    def least(self, readout: Affine, weights: np.ndarray) -> highspy.HighsLp:
        """The program whose objective is weights . y, y = readout z_L."""
        cost = np.concatenate([weights @ readout.weight, np.zeros(self.switches)])
        return self._lp(cost, float(weights @ readout.bias))

    def nearest(self, readout: Affine, x: np.ndarray, least: float, most: float) -> highspy.HighsLp:
        """The program whose objective is the largest distance e of a coordinate of the input from that of x, between
        `least` and `most`, among the inputs with readout z_L <= 0. e is the last variable."""
        d, columns = len(x), self.matrix.shape[1]
        start = columns - self.switches - d
        inputs = sparse.csr_array((np.ones(d), (np.arange(d), start + np.arange(d))), shape=(d, columns))
        output = sparse.csr_array(
            (readout.data, readout.indices, readout.indptr), shape=(readout.out_features, columns)
        )
        e = np.repeat([0.0, -1.0, 1.0, 0.0], [len(self.below), d, d, readout.out_features])
        matrix = sparse.hstack([sparse.vstack([self.matrix, inputs, inputs, output]), e[:, None]], format="csr")
        free, whole = np.full(d, np.inf), np.full(readout.out_features, np.inf)
        return Encoding(
            matrix,
            np.concatenate([self.below, -free, x, -whole]),
            np.concatenate([self.above, x, free, -readout.bias]),
            np.append(self.low, least),
            np.append(self.high, most),
            self.switches,
        )._lp(np.append(np.zeros(columns), 1.0), 0.0, last=1)

    def _lp(self, cost: np.ndarray, offset: float, last: int = 0) -> highspy.HighsLp:
        """last: the number of variables that follow the switches."""
        lp, matrix = highspy.HighsLp(), self.matrix
        lp.num_row_, lp.num_col_ = matrix.shape
        lp.a_matrix_.format_ = highspy.MatrixFormat.kRowwise
        lp.a_matrix_.start_, lp.a_matrix_.index_, lp.a_matrix_.value_ = matrix.indptr, matrix.indices, matrix.data
        lp.row_lower_, lp.row_upper_, lp.col_lower_, lp.col_upper_ = self.below, self.above, self.low, self.high
        lp.col_cost_, lp.offset_ = cost, offset
        kinds = highspy.HighsVarType
        real = [kinds.kContinuous] * (matrix.shape[1] - self.switches - last)
        lp.integrality_ = real + [kinds.kInteger] * self.switches + [kinds.kContinuous] * last
        return lp


def encode(network: CanonicalNetwork | PooledNetwork, box: Range, ranges: list[Range]) -> Encoding:
    """ranges: of the arguments of each layer's ReLUs or maxima."""
    total = network.readout.in_features
    low, high = np.zeros(total), np.empty(total)
    low[total - network.in_features :], high[total - network.in_features :] = box.low, box.high
    windows = network.windows if isinstance(network, PooledNetwork) else (0,) * len(network.layers)
    parts: list[_Rows] = []
    stop = total - network.in_features  # where the coordinates of the next layer end in z_L
    for a, t, window in zip(network.layers, ranges, windows, strict=True):
        own = np.arange(stop - a.out_features // max(window, 1), stop)
        part = (_maxima if window else _relus)(a, t, own, total)
        low[own], high[own] = part.low, part.high
        parts.append(part)
        stop = int(own[0]) if len(own) else stop
    count = sum(part.switches.shape[1] for part in parts)
    switches = sparse.block_diag([part.switches for part in parts]) if parts else sparse.csr_array((0, 0))
    values = sparse.vstack([part.values for part in parts]) if parts else sparse.csr_array((0, total))
    return Encoding(
        sparse.csr_array(sparse.hstack([values, switches])),
        np.concatenate([[], *(part.below for part in parts)]),
        np.concatenate([[], *(part.above for part in parts)]),
        np.concatenate([low, np.zeros(count)]),
        np.concatenate([high, np.ones(count)]),
        count,
    )


@dataclass(frozen=True)
class _Rows:
    """below <= values z_L + switches a <= above of one layer, and the range of its coordinates."""

    values: Any
    switches: Any
    below: np.ndarray
    above: np.ndarray
    low: np.ndarray
    high: np.ndarray


def _matrix(entries: np.ndarray, rows: np.ndarray, columns: np.ndarray, shape: tuple[int, int]) -> sparse.csr_array:
    return sparse.csr_array((entries, (rows, columns)), shape=shape)


def _arguments(a: Affine, total: int) -> sparse.csr_array:
    """The weight of a map on z_k as one on z_L, of which z_k is the tail."""
    return sparse.csr_array((a.data, a.indices + total - a.in_features, a.indptr), shape=(a.out_features, total))


def _relus(a: Affine, t: Range, own: np.ndarray, total: int) -> _Rows:
    gap = _matrix(np.ones(len(own)), np.arange(len(own)), own, (len(own), total)) - _arguments(a, total)  # h - t + b
    cut = np.flatnonzero((t.low < 0) & (t.high > 0))
    n = len(cut)
    unit = _matrix(np.ones(n), np.arange(n), own[cut], (n, total))
    switches = [np.zeros((len(own), n)), np.diag(-t.low[cut]), np.diag(-t.high[cut])]
    return _Rows(
        sparse.vstack([gap, gap[cut], unit]),  # h - t + b;  h - t + b - l a <= b - l;  h - u a <= 0
        sparse.csr_array(np.vstack(switches)),
        np.concatenate([np.where(t.high <= 0, -np.inf, a.bias), np.full(2 * n, -np.inf)]),
        np.concatenate([np.where(t.low >= 0, a.bias, np.inf), a.bias[cut] - t.low[cut], np.zeros(n)]),
        np.zeros(len(own)),
        t.high.clip(0),
    )


def _maxima(a: Affine, t: Range, own: np.ndarray, total: int) -> _Rows:
    low, high = t.low.reshape(len(own), -1), t.high.reshape(len(own), -1)
    least, most = low.max(1), high.max(1)
    read = high >= least[:, None]  # the others are never the maximum
    row, _ = np.nonzero(read)
    candidates = np.flatnonzero(read)
    gap = _matrix(np.ones(len(candidates)), np.arange(len(candidates)), own[row], (len(candidates), total))
    gap = sparse.csr_array(gap - _arguments(a, total)[candidates])  # h - t_i + b_i
    open_ = read.sum(1) > 1
    cut = np.flatnonzero(open_[row])  # of the candidates those with an a_i
    windows, place = np.unique(row[cut], return_inverse=True)
    n, slack = len(cut), most[row[cut]] - t.low[candidates[cut]]
    choice = _matrix(np.ones(n), place, np.arange(n), (len(windows), n))
    bias = a.bias[candidates]
    return _Rows(
        sparse.vstack([gap, gap[cut], sparse.csr_array((len(windows), total))]),
        # h - t_i + b_i;  h - t_i + b_i + (u - l_i) a_i <= b_i + u - l_i;  sum a_i = 1
        sparse.vstack([sparse.csr_array((len(candidates), n)), sparse.diags_array(slack), choice]),
        np.concatenate([bias, np.full(n, -np.inf), np.ones(len(windows))]),
        np.concatenate([np.where(open_[row], np.inf, bias), bias[cut] + slack, np.ones(len(windows))]),
        least,
        most,
    )
