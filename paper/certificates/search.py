"""Search for maxima in two layers, by linear algebra: python search.py 3 8 (three minutes; `--weights` needs SciPy).

With m_ij = max(x_i, x_j) and m_ii = x_i, let F(d) be the linear combinations of means over all orders of x_1, ... of

    relu(sum of at most d of the m_ij - sum of as many others).

This program decides whether F(d) contains the maximum of n numbers. On x_1 >= ... >= x_n each ReLU reads a linear form
t, relu(t) = (t + |t|) / 2 if t changes its sign there, and the |t| with different kernels are linearly independent
modulo linear functions. So a mean is a vector: the weight of each |t|, and what is linear. The rank is computed modulo
a prime: if the maximum is not in the span modulo the prime, it is not in F(d), or only with weights that the prime
divides the denominator of.
"""

from argparse import ArgumentParser
from collections import Counter, defaultdict
from itertools import accumulate, combinations, combinations_with_replacement, pairwise, permutations
from math import comb, factorial, gcd

import numpy as np

PRIME = 2**31 - 1


def renamed(graph, names):
    return tuple(sorted(tuple(sorted((names[i], names[j]))) for i, j in graph))


def graphs(d):
    """Graphs of d edges, loops and double edges among them, up to isomorphism; vertices 0, 1, ..."""
    found = {()}
    for _ in range(d):
        larger = set()
        for graph in found:
            size = 1 + max((i for edge in graph for i in edge), default=-1)
            for i, j in combinations_with_replacement(range(size + 2), 2):
                edges = (*graph, (i, j))
                used = sorted({i for edge in edges for i in edge})
                larger.add(min(renamed(edges, dict(zip(used, p, strict=True))) for p in permutations(range(len(used)))))
        found = larger
    return sorted(found)


def pairs(d, n):
    """Two graphs of d edges each without a common edge, on at most n vertices in all, up to isomorphism."""
    for first in graphs(d):
        size = 1 + max(i for edge in first for i in edge)
        same = [p for p in permutations(range(size)) if renamed(first, p) == first]
        found = set()
        edges = combinations_with_replacement(range(min(n, size + 2 * d)), 2)
        for second in combinations_with_replacement(sorted(edges), d) if size <= n else ():
            new = sorted({i for edge in second for i in edge if i >= size})
            if set(first) & set(second) or new != list(range(size, size + len(new))):
                continue
            canonical = min(renamed(second, (*p, *q)) for p in same for q in permutations(new))
            if canonical not in found:
                found.add(canonical)
                yield first, canonical, size + len(new)


def words(first, second, size):
    """The linear forms that the ReLU reads, over all orders of its `size` numbers from the largest down: a Counter of
    (coefficients that are not 0, how many zeros lie before, between and after them)."""
    coefficients = Counter(first)
    coefficients.subtract(second)
    states = {tuple(sorted(coefficients.items())): Counter({((), (0,)): 1})}
    for left in range(size, 0, -1):
        following = defaultdict(Counter)
        for edges, forms in states.items():  # edges both of whose ends are smaller than all numbers so far
            ends = {i for edge, _ in edges for i in edge}
            choices = [(edges, 0, left - len(ends))] if left > len(ends) else []
            for i in ends:
                rest = tuple(item for item in edges if i not in item[0])
                choices.append((rest, sum(c for edge, c in edges if i in edge), 1))
            for rest, c, ways in choices:
                for (form, zeros), times in forms.items():
                    key = ((*form, c), (*zeros, 0)) if c else (form, (*zeros[:-1], zeros[-1] + 1))
                    following[rest][key] += times * ways
        states = following
    return states[()]


def vector(forms, n):
    """The mean over all orders of n numbers, times a factor: ({kernel: weight of |t|}, the coefficients of x)."""
    kinks, linear = Counter(), [0] * n
    for (form, zeros), times in forms.items():
        sums = list(accumulate(form))
        if not form or max(sums) <= 0:
            continue
        scale = gcd(*form) if form[0] > 0 else -gcd(*form)
        kernel = tuple(c // scale for c in form)
        for places in combinations(range(n), len(form)):
            ways = times
            for gap, (before, after) in zip(zeros, pairwise((-1, *places, n)), strict=True):
                ways *= comb(after - before - 1, gap)
            if ways and min(sums) < 0:
                kinks[kernel, places] += ways * abs(scale)
            for i, c in zip(places, form, strict=True):
                linear[i] += ways * c * (1 if min(sums) < 0 else 2)
    return kinks, linear


def rank(rows):
    """The rank of all rows but the last, modulo the prime, and whether the last one is in their span."""
    rows, found = rows % PRIME, 0
    for column in range(rows.shape[1]):
        places = np.flatnonzero(rows[found:-1, column])
        if len(places):
            rows[[found, found + places[0]]] = rows[[found + places[0], found]]
            rows[found] = rows[found] * pow(int(rows[found, column]), -1, PRIME) % PRIME
            below = found + 1 + np.flatnonzero(rows[found + 1 :, column])
            rows[below] = (rows[below] - rows[below, column][:, None] * rows[found] % PRIME) % PRIME
            found += 1
    return found, not rows[-1].any()


def weights(relus, means, kinks, n):
    """Weights that give the maximum, with few ReLUs: linear programming over the means as they are."""
    from scipy.optimize import linprog

    sizes = [n, comb(n, 2), *(2 * factorial(n) // factorial(n - size) for *_, size in relus)]
    matrix = np.array([[k[kink] for kink in kinks] + x for k, x in means], dtype=float) / np.array(sizes)[:, None]
    cost = np.array([0, 0, *(factorial(n) / factorial(n - size) for *_, size in relus)])
    wanted = np.array([0] * len(kinks) + [1] + [0] * (n - 1))
    both = np.vstack([matrix, -matrix])
    solution = linprog(np.tile(cost / cost.max(), 2), A_eq=both.T, b_eq=wanted, bounds=(0, None)).x
    names = ["mean of the numbers", "mean of m_ij", *(f"{first} - {second}" for first, second, _ in relus)]
    for name, weight in zip(names, solution[: len(names)] - solution[len(names) :], strict=True):
        if abs(weight) > 1e-9:
            print(f"{weight:12.6f}  {name}")


if __name__ == "__main__":
    parser = ArgumentParser(description="Whether F(d) contains the maximum of n numbers.")
    parser.add_argument("d", type=int, choices=range(1, 4), help="maxima on each side of a ReLU")
    parser.add_argument("n", type=int, choices=range(2, 11), help="numbers")
    parser.add_argument("--weights", action="store_true", help="print weights that give the maximum")
    arguments = parser.parse_args()
    d, n = arguments.d, arguments.n
    relus = {}
    for edges in range(1, d + 1):
        for first, second, size in pairs(edges, n):
            forms = words(first, second, size)
            relus.setdefault((size, frozenset(forms.items())), (first, second, size))
    means = [(Counter(), [1] * n), (Counter(), [n - 1 - i for i in range(n)])]  # of the x_i, of the m_ij
    means += [vector(Counter(dict(forms)), n) for _, forms in relus]
    kinks = sorted({kink for k, _ in means for kink in k})
    rows = [[k[kink] % PRIME for kink in kinks] + [c % PRIME for c in x] for k, x in means]
    rows.append([0] * len(kinks) + [1] + [0] * (n - 1))
    found, inside = rank(np.array(rows, dtype=np.int64))
    verb = "contains" if inside else "does not contain"
    print(f"F({d}) {verb} the maximum of {n} numbers: {len(relus)} ReLUs, {len(kinks)} kernels, rank {found}")
    if inside and arguments.weights:
        weights(list(relus.values()), means, kinks, n)
