"""Prove certificates of maxima in few layers, exactly and completely: python check.py max5.json max8.json ...

max(window) = sum of weight * max(part) + sum of weight * relu(sum of c * max(part)), or the mean of this over all
orders of the window. Indices in the same parts act as one variable. Both sides grow with all variables; let the least
be 0. In an order of the variables each maximum is one of them, and a ReLU reads a linear form t of the gaps between
them. If t changes its sign, relu(t) = (t + |t|) / 2, else t or 0. Both sides are equal if and only if the weights of
|t| cancel for all t with one kernel and the linear rest is the largest variable.
"""

import json
import sys
from collections import Counter
from fractions import Fraction
from itertools import accumulate, combinations, permutations
from math import factorial, gcd
from pathlib import Path


def holds(count, base, mean, relus):
    cases, terms = Counter(), [(weight, ((1, part),)) for weight, part in base] + list(relus)
    for case, order in enumerate(permutations(range(count))):
        for k, (_, form) in enumerate(terms):
            word = [0] * count  # the coefficients of the variables, the largest first; order[i] is the rank of i
            for c, part in form:
                word[min(order[i] for i in part)] += c
            cases[0 if mean else case, k, tuple(word)] += 1
    linear, kinks = Counter(), Counter()
    for (case, k, word), times in cases.items():
        sums, weight = list(accumulate(word)), terms[k][0] * times  # t is the sum of the sums, each times a gap
        if min(sums) < 0 < max(sums):
            scale = gcd(*word) if next(filter(None, word)) > 0 else -gcd(*word)
            kinks[case, tuple(c // scale for c in word)] += weight * abs(scale)
        for i, c in enumerate(word[:-1]):
            linear[case, i] += weight * c * (max(sums) > 0) / (2 if min(sums) < 0 else 1)
    unit = [factorial(count) if mean else 1, *[0] * count][: count - 1]  # the largest variable
    grow = sum(weight for weight, _ in base) == 1 and not any(sum(c for c, _ in form) for _, form in relus)
    return grow and not any(kinks.values()) and all([linear[n, i] for i in range(count - 1)] == unit for n, *_ in cases)


for path in sys.argv[1:] or sys.exit("usage: python check.py max5.json max8.json ..."):
    data, proved, relus, means = json.loads(Path(path).read_text()), {}, 0, 0
    known = {(i,) for i in range(data["maximum_of"])}
    for layer in data["layers"]:
        for entry in layer:
            window, mean = tuple(entry["window"]), entry.get("mean_over_orders", False)
            base = [(Fraction(weight), tuple(part)) for weight, part in entry["base"]]
            terms = [(Fraction(t["weight"]), [(c, tuple(p)) for c, p in t["relu_of"]]) for t in entry["terms"]]
            relus, means = relus + len(terms) * (not mean), means + len(terms) * mean
            parts = [part for form in (base, *(form for _, form in terms)) for _, part in form]
            if mean:  # every image of a part is needed, and every index is a variable
                parts = [image for size in {len(part) for part in parts} for image in combinations(window, size)]
            assert set(parts) <= known, window
            assert set(window) == {i for part in parts for i in part}, window
            groups = list(dict.fromkeys(tuple(i in part for part in parts) for i in window))
            local = {part: tuple(k for k, g in enumerate(groups) if g[parts.index(part)]) for part in parts}
            key = (len(groups), tuple((w, local[p]) for w, p in base), mean)
            key += (tuple((w, tuple((c, local[p]) for c, p in form)) for w, form in terms),)
            proved[key] = proved[key] if key in proved else holds(*key)
            assert proved[key], window
        known = {tuple(entry["window"]) for entry in layer}
    assert tuple(range(data["maximum_of"])) in known
    text = f"{relus} ReLUs" + f" and the means of {means} over all orders" * (means > 0)
    print(f"{path}: proved, the maximum of {data['maximum_of']} in {len(data['layers'])} layers, {text}")
