"""Prove certificates of maxima in few layers, exactly and completely: python check.py max5.json max8.json ...

Each equation is max(window) = sum of weight * max(part) + sum of weight * relu(sum of c * max(part)), or the mean of
its right side over all orders of the variables. Indices in the same parts act as one variable. In an order of the
variables each maximum is one of them, so that a ReLU reads a linear form t of the gaps >= 0 between them. If t changes
its sign there, relu(t) = (t + |t|) / 2; else relu(t) is t or 0. Both sides are equal if and only if the weights of |t|
cancel for all t with one kernel, and the linear rest is the largest variable.
"""

import json
import sys
from collections import Counter
from fractions import Fraction
from itertools import accumulate, combinations, permutations
from math import gcd
from pathlib import Path


def word(form, order):
    """The coefficients of the variables, the largest first, in a sum of maxima; order[i] is the rank of variable i."""
    coefficients = [0] * len(order)
    for c, part in form:
        coefficients[min(order[i] for i in part)] += c
    return tuple(coefficients)


def is_maximum(base, relus):
    """Whether base (a word) + sum of weight * relu(word), relus [(word, weight)], is the largest variable, in order."""
    linear, kinks = list(base), Counter()
    for form, weight in relus:
        sums = list(accumulate(form))  # the form is the sum of these, each times the gap after its variable
        assert sums[-1] == 0  # so that both sides grow by t with all variables
        if max(sums) <= 0:
            continue
        if min(sums) < 0:
            scale = gcd(*form) if next(c for c in form if c) > 0 else -gcd(*form)
            kinks[tuple(c // scale for c in form)] += weight * abs(scale)
            weight /= 2
        linear = [x + weight * c for x, c in zip(linear, form, strict=True)]
    return linear == [1] + [0] * (len(base) - 1) and not any(kinks.values())


def holds(count, base, terms, mean):
    orders = list(permutations(range(count)))
    if not mean:
        return all(is_maximum(word(base, o), [(word(form, o), weight) for weight, form in terms]) for o in orders)
    total = [Fraction(sum(column), len(orders)) for column in zip(*(word(base, o) for o in orders), strict=True)]
    relus = []
    for weight, form in terms:
        times = Counter(word(form, o) for o in orders)
        relus += [(image, weight * n / len(orders)) for image, n in times.items()]
    return is_maximum(total, relus)


for path in sys.argv[1:]:
    data, proved, relus, means = json.loads(Path(path).read_text()), {}, 0, 0
    known = {(i,) for i in range(data["maximum_of"])}
    for layer in data["layers"]:
        for entry in layer:
            window, mean = tuple(entry["window"]), entry.get("mean_over_orders", False)
            base = [(Fraction(weight), tuple(part)) for weight, part in entry["base"]]
            terms = [(Fraction(t["weight"]), [(c, tuple(p)) for c, p in t["relu_of"]]) for t in entry["terms"]]
            parts = [part for form in (base, *(form for _, form in terms)) for _, part in form]
            if mean:  # every image of a part is needed, and every index is a variable
                parts = [image for size in {len(part) for part in parts} for image in combinations(window, size)]
            relus, means = relus + len(terms) * (not mean), means + len(terms) * mean
            assert set(parts) <= known, window
            assert set(window) == {i for part in parts for i in part}, window
            groups = list(dict.fromkeys(tuple(i in part for part in parts) for i in window))
            local = {part: tuple(k for k, g in enumerate(groups) if g[parts.index(part)]) for part in parts}
            named = [(weight, tuple((c, local[part]) for c, part in form)) for weight, form in terms]
            key = (len(groups), tuple((w, local[part]) for w, part in base), tuple(named), mean)
            proved[key] = proved[key] if key in proved else holds(*key)
            assert proved[key], window
        known = {tuple(entry["window"]) for entry in layer}
    assert tuple(range(data["maximum_of"])) in known
    text = f"{relus} ReLUs" + f" and the means of {means} over all orders" * (means > 0)
    print(f"{path}: proved, the maximum of {data['maximum_of']} in {len(data['layers'])} layers, {text}")
