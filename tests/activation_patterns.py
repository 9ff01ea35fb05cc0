"""The affine maps of a canonical network, one for every choice of active ReLUs: an oracle for exact optimisation."""

import itertools
from collections.abc import Iterator

import numpy as np

from skipform.theory.network import CanonicalNetwork


def affine_pieces(network: CanonicalNetwork) -> Iterator[tuple[np.ndarray, ...]]:
    """(signs, limits, weight, bias) of every pattern: where signs x <= limits, the network is weight x + bias."""
    d = network.in_features
    for pattern in itertools.product([0, 1], repeat=network.relu_count):
        state, offset = np.eye(d), np.zeros(d)  # z_k = state x + offset
        signs, limits, active = [np.zeros((0, d))], [np.zeros(0)], list(pattern)
        for a in network.layers:
            on = np.array([active.pop(0) for _ in range(a.out_features)], dtype=float)
            t, c = a.weight @ state, a.weight @ offset + a.bias
            sign = np.where(on, -1.0, 1.0)  # on: -t x <= c; off: t x <= -c
            signs.append(sign[:, None] * t)
            limits.append(-sign * c)
            state, offset = np.vstack([on[:, None] * t, state]), np.concatenate([on * c, offset])
        weight, bias = network.readout.weight @ state, network.readout.weight @ offset + network.readout.bias
        yield np.vstack(signs), np.concatenate(limits), weight, bias
