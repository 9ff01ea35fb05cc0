"""Prove certificates of maxima in few layers, exactly and completely: python check.py max5.json max12.json ...

Each equation is max(window) = max(base) + sum of weight * relu(sum of c * max(part)). Indices in the same parts act as
one variable. In each order of the variables, with gaps g >= 0 and the last one 0, all maxima are linear in g. The ReLUs
cut the cone g >= 0 into cones on which both sides are linear, so that they are equal if they are on the cones' rays.
"""

import json
import sys
from fractions import Fraction
from itertools import permutations
from pathlib import Path


def dot(a, b):
    return sum(x * y for x, y in zip(a, b, strict=True))


def sign(x):
    return (x > 0) - (x < 0)


def meeting(f, p, q):
    a, b = dot(f, p), -dot(f, q)
    return tuple((b * x + a * y) / (a + b) for x, y in zip(p, q, strict=True))


def holds(count, base, terms):
    dim = count - 1
    for order in permutations(range(count)):
        at = {part: [int(k >= min(map(order.index, part))) for k in range(dim)] for _, f in terms for _, part in f}
        forms = [tuple(sum(c * at[part][k] for c, part in form) for k in range(dim)) for _, form in terms]
        walls = [tuple(Fraction(i == k) for i in range(dim)) for k in range(dim)]
        cones = [list(walls)]  # each by its rays; the first is g >= 0
        for f in forms:
            parts = []
            for rays in cones:
                up, down, flat = ([r for r in rays if sign(dot(f, r)) == s] for s in (1, -1, 0))
                # Neighbours lie in dim - 2 common walls; where f changes its sign between two of them, a ray begins.
                pairs = [(p, q) for p in up for q in down if sum(dot(w, p) == dot(w, q) == 0 for w in walls) >= dim - 2]
                new = [meeting(f, p, q) for p, q in pairs]
                parts += [up + flat + new, down + flat + new] if up and down else [rays]
            cones, walls = parts, [*walls, f]
        first = [int(k >= min(map(order.index, base))) for k in range(dim)]
        for ray in {ray for rays in cones for ray in rays}:
            if dot(first, ray) + sum(w * max(dot(f, ray), 0) for (w, _), f in zip(terms, forms, strict=True)) != sum(
                ray
            ):
                return False
    return all(sum(c for c, _ in form) == 0 for _, form in terms)  # so both sides grow by t with all variables


for path in sys.argv[1:]:
    data, proved, relus = json.loads(Path(path).read_text()), {}, 0
    known = {(i,) for i in range(data["maximum_of"])}
    for layer in data["layers"]:
        for entry in layer:
            window, base = tuple(entry["window"]), tuple(entry["base"])
            terms = [(Fraction(t["weight"]), [(c, tuple(p)) for c, p in t["relu_of"]]) for t in entry["terms"]]
            parts, relus = [base, *(part for _, form in terms for _, part in form)], relus + len(terms)
            assert set(parts) <= known, window
            assert set(window) == {i for part in parts for i in part}, window
            groups = list(dict.fromkeys(tuple(i in part for part in parts) for i in window))
            local = {part: tuple(k for k, g in enumerate(groups) if g[parts.index(part)]) for part in parts}
            key = (len(groups), local[base], tuple((w, tuple((c, local[p]) for c, p in form)) for w, form in terms))
            proved[key] = proved[key] if key in proved else holds(*key)
            assert proved[key], window
        known = {tuple(entry["window"]) for entry in layer}
    assert tuple(range(data["maximum_of"])) in known
    print(f"{path}: proved, the maximum of {data['maximum_of']} in {len(data['layers'])} layers, {relus} ReLUs")
