"""A canonical network over a box as a mixed-integer linear program (Tjeng, Xiao, Tedrake 2019), for HiGHS.

    h = relu(t), l <= t <= u:     h >= 0,  h >= t,  h <= u a,  h <= t - l (1 - a),     a in {0, 1}

a is fixed where l >= 0 or u <= 0. The variables are the coordinates of z_L, then the a of the other ReLUs.
"""

import highspy
import numpy as np
from scipy import sparse

from skipform.measure.relaxation import Range
from skipform.theory.network import CanonicalNetwork


def program(network: CanonicalNetwork, box: Range, ranges: list[Range], weights: np.ndarray) -> highspy.HighsLp:
    """The program whose objective is weights . y, y the output; ranges: of the arguments of each layer's ReLUs."""
    total = network.readout.in_features
    low, high = np.zeros(total), np.empty(total)
    low[total - network.in_features :], high[total - network.in_features :] = box.low, box.high
    rows, below, above, switches = [], [], [], 0
    count = sum(int(((t.low < 0) & (t.high > 0)).sum()) for t in ranges)
    for a, t in zip(network.layers, ranges, strict=True):
        start = total - a.in_features
        own = np.arange(start - a.out_features, start)
        high[own] = t.high.clip(0)
        gap = sparse.csr_array((np.ones(len(own)), (np.arange(len(own)), own)), shape=(len(own), total + count))
        gap -= sparse.csr_array((a.data, a.indices + start, a.indptr), shape=gap.shape)  # h - t + b
        cut = np.flatnonzero((t.low < 0) & (t.high > 0))
        column = total + switches + np.arange(len(cut))
        switches += len(cut)

        def switch(factor: np.ndarray) -> sparse.csr_array:
            return sparse.csr_array((factor, (np.arange(len(cut)), column)), shape=(len(cut), gap.shape[1]))  # noqa: B023

        upper = gap[cut] + switch(-t.low[cut])  # h - t + b - l a <= b - l
        unit = sparse.csr_array((np.ones(len(cut)), (np.arange(len(cut)), own[cut])), shape=upper.shape)
        rows += [gap, upper, unit + switch(-t.high[cut])]
        below += [np.where(t.high <= 0, -np.inf, a.bias), np.full(2 * len(cut), -np.inf)]
        above += [np.where(t.low >= 0, a.bias, np.inf), a.bias[cut] - t.low[cut], np.zeros(len(cut))]
    lp = highspy.HighsLp()
    matrix = sparse.vstack(rows, format="csr") if rows else sparse.csr_array((0, total))
    lp.num_row_, lp.num_col_ = matrix.shape
    lp.a_matrix_.format_ = highspy.MatrixFormat.kRowwise
    lp.a_matrix_.start_, lp.a_matrix_.index_, lp.a_matrix_.value_ = matrix.indptr, matrix.indices, matrix.data
    lp.row_lower_, lp.row_upper_ = np.concatenate([[], *below]), np.concatenate([[], *above])
    lp.col_lower_ = np.concatenate([low, np.zeros(count)])
    lp.col_upper_ = np.concatenate([high, np.ones(count)])
    lp.col_cost_ = np.concatenate([weights @ network.readout.weight, np.zeros(count)])
    lp.offset_ = float(weights @ network.readout.bias)
    kinds = highspy.HighsVarType
    lp.integrality_ = [kinds.kContinuous] * total + [kinds.kInteger] * count
    return lp
