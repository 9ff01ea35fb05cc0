"""The maximum of n numbers in few layers, as a certificate that another program can check, and as a table.

A certificate lists the layers of `pooling.shallow_maximum(n)`. A layer provides maxima over windows of the inputs:

    max over `window` = sum of weight * max over part + sum of weight * relu(sum of coefficient * max over part)

where the first sum is the `base` and parts are inputs, or windows of the layer before. Every term is one ReLU, so that
a certificate is a network with rational weights. If each of these equations holds for all real values of the inputs,
then by induction over the layers the network computes the maximum; each is about a few groups of inputs only
(`proofs.prove_sum`). In the certificate of eight numbers the last equation is `mean_over_orders`: its right side is the
mean over all orders of the inputs, so that each term stands for as many ReLUs as it has different images (`eight`).
"""

from fractions import Fraction
from itertools import combinations
from typing import Any

from skipform.theory import eight, proofs
from skipform.theory.shallow import Form, ReluSum, Weight, pair_sum, shallow_layers
from skipform.theory.trees import Window

FIVE = (5, 12, 30, 75)  # the most numbers that 2, 3, 4, 5 layers take by five groups, or fewer, in each layer
SIX = (6, 18, 54, 162)  # and by six groups
CERTIFIED = (*FIVE, *SIX[:2], 8)


def certificate(n: int) -> dict[str, Any]:
    """The certificate of the maximum of n numbers, as it is written to JSON: weights are texts like "1/2"."""
    if n == 8:
        pairs: dict[Window, ReluSum] = {pair: pair_sum([(i,) for i in pair]) for pair in combinations(range(8), 2)}
        layers = [_written(pairs), [{"window": list(range(8)), "mean_over_orders": True} | _sides(_mean_of_eight())]]
    else:
        layers = [_written(layer) for layer in shallow_layers([tuple(range(n))])]
    return {"maximum_of": n, "layers": layers}


def _mean_of_eight() -> ReluSum:
    terms: list[tuple[Weight, Form]] = []
    for weight, plus, minus in eight.TERMS:
        terms.append((weight, dict.fromkeys(plus, 1) | dict.fromkeys(minus, -1)))
    return {(0, 1): 1}, terms


def _written(layer: dict[Window, ReluSum]) -> list[dict[str, Any]]:
    return [{"window": list(window)} | _sides(relu_sum) for window, relu_sum in layer.items()]


def _sides(relu_sum: ReluSum) -> dict[str, Any]:
    base, terms = relu_sum
    return {
        "base": [[str(Fraction(weight)), list(part)] for part, weight in base.items()],
        "terms": [
            {"weight": str(Fraction(weight)), "relu_of": [[c, list(part)] for part, c in form.items()]}
            for weight, form in terms
        ],
    }


def proved(n: int) -> bool:
    """Whether every equation of the certificate of n is proved, and its layers fit together."""
    if n == 8:
        return eight.proved()
    known: set[Window] = {(i,) for i in range(n)}
    for layer in shallow_layers([tuple(range(n))]):
        for window, relu_sum in layer.items():
            base, terms = relu_sum
            parts = {*base, *(part for _, form in terms for part in form)}
            if not parts <= known or not proofs.prove_sum(window, relu_sum):
                return False
        known = set(layer)
    return tuple(range(n)) in known


def maxima() -> list[dict[str, int]]:
    """For 2, 3, 4, 5 layers: the most numbers whose maximum they take by the tree of Theorem 1 (2^k), by the bound of
    arXiv 2505.14338 (3^(k-1) + 2), and here by five, six and eight groups, with our ReLUs."""
    return [
        {
            "layers": k,
            "tree": 2**k,
            "published": 3 ** (k - 1) + 2,
            "five": FIVE[k - 2],
            "five_relus": _relus(FIVE[k - 2]),
            "six": SIX[k - 2],
            "six_relus": _relus(SIX[k - 2]),
            "eight": 2 * 4 ** (k - 1),
            "eight_relus": eight.relu_count(k),
        }
        for k in range(2, 6)
    ]


def _relus(n: int) -> int:
    return sum(len(terms) for layer in shallow_layers([tuple(range(n))]) for _, terms in layer.values())
