"""The maximum of n numbers in few layers, as a certificate that another program can check, and as a table.

A certificate lists the layers of `pooling.shallow_maximum(n)`. A layer provides maxima over windows of the inputs:

    max over `window` = max over `base` + sum of weight * relu(sum of coefficient * max over part)

where base and parts are inputs, or windows of the layer before. Every term is one ReLU, so that a certificate is a
network with rational weights. If each of these equations holds for all real values of the inputs, then by induction
over the layers the network computes the maximum; each is about a few groups of inputs only (`proofs.prove_sum`).
"""

from fractions import Fraction
from typing import Any

from skipform.theory import pooling, proofs
from skipform.theory.trees import Window

# The most numbers of which each depth takes the maximum: 5 in 2 layers, 12 in 3, 30 in 4, 75 in 5.
LARGEST = (5, 12, 30, 75)


def certificate(n: int) -> dict[str, Any]:
    """The certificate of the maximum of n numbers, as it is written to JSON: weights are texts like "1/2"."""
    layers = pooling.shallow_layers([tuple(range(n))])
    return {
        "maximum_of": n,
        "layers": [
            [
                {
                    "window": list(window),
                    "base": list(base),
                    "terms": [
                        {
                            "weight": str(Fraction(weight)),
                            "relu_of": [[coefficient, list(part)] for part, coefficient in form.items()],
                        }
                        for weight, form in terms
                    ],
                }
                for window, (base, terms) in layer.items()
            ]
            for layer in layers
        ],
    }


def proved(n: int) -> bool:
    """Whether every equation of the certificate of n is proved, and its layers fit together."""
    known: set[Window] = {(i,) for i in range(n)}
    for layer in pooling.shallow_layers([tuple(range(n))]):
        for window, (base, terms) in layer.items():
            parts = {base, *(part for _, form in terms for part in form)}
            if not parts <= known or not proofs.prove_sum(window, base, terms):
                return False
        known = set(layer)
    return tuple(range(n)) in known


def maxima() -> list[dict[str, int]]:
    """For 2, 3, 4, 5 layers: the most numbers whose maximum they take by the tree of Theorem 1 (2^k), by the bound of
    arXiv 2505.14338 (3^(k-1) + 2) and here, with our number of ReLUs."""
    rows = []
    for n in LARGEST:
        network = pooling.shallow_maximum(n)
        k = network.depth
        rows.append({"layers": k, "tree": 2**k, "published": 3 ** (k - 1) + 2, "ours": n, "relus": network.relu_count})
    return rows
