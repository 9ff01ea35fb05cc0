"""The maximum in few layers: over five or six groups of numbers, from maxima over two of the groups.

    five groups    7 ReLUs     if k layers take m numbers, k + 1 take 2 m + floor(m / 2): 5, 12, 30, 75 in 2, 3, 4, 5
    six groups    72 ReLUs     if k layers take m numbers, m even, k + 1 take 3 m: 2 3^(k-1) in k, so 6, 18, 54, 162

`shallow_layers` makes each window by the fewest ReLUs that its layers allow: the tree of Theorem 1, five groups, six
groups. `pooling.shallow_maximum` is the network, `certificates` writes it down for other programs. The module `eight`
takes more numbers in as many layers, with many more ReLUs.
"""

from collections.abc import Iterable, Sequence
from fractions import Fraction
from itertools import combinations, pairwise, permutations

from skipform.theory.trees import Window, disjoint_parts

Weight = Fraction | int
Form = dict[Window, int]  # part -> coefficient: a sum of maxima over parts, which are known one layer earlier
# The maximum over a window as a sum of maxima over parts, and of weight * relu(form).
ReluSum = tuple[dict[Window, Weight], list[tuple[Weight, Form]]]


def shallow_depth(n: int) -> int:
    """Layers that `shallow_layers` takes for n numbers: the least k with n <= 2 3^(k-1), or 0 for one number."""
    k, most = 0, 1
    while most < n:
        k, most = k + 1, 3 * most if most > 1 else 2
    return k


def shallow_layers(windows: Iterable[Window]) -> list[dict[Window, ReluSum]]:
    """The layers, the one that reads the input first: window -> how its maximum is made."""
    wanted = list(windows)
    made = []
    for k in range(shallow_depth(max(map(len, wanted))), 0, -1):
        made.append({window: _sum(window, k) for window in wanted})
        sums = made[-1].values()
        read = [part for _, terms in sums for _, form in terms for part in form]
        wanted = list(dict.fromkeys([*read, *(part for base, _ in sums for part in base)]))
    return made[::-1]


def pair_sum(parts: Sequence[Window]) -> ReluSum:
    """relu(left - right) + right for two parts; a single part, or one paired with itself, is carried along."""
    left, right = parts[0], parts[-1]
    return {right: 1}, [(1, {left: 1, right: -1})] if left != right else []


def five_group_sum(groups: Sequence[Window]) -> ReluSum:
    """The maximum over five groups, of which the last is e, from maxima over two of them.

    Theorem (ours). For all reals x1, x2, x3, x4, e, with a = max(x1, x2), b = max(x3, x4), xi' = max(xi, e),

        max(x1, x2, x3, x4, e) = e + 1/2 [ (a + b - 2e)+ + (a - x3')+ + (a - x4')+ + (b - x1')+ + (b - x2')+
                                           - (a + b - x3' - x4')+ - (a + b - x1' - x2')+ ],        t+ = relu(t).

    Proof. Both sides grow by t with all arguments; let e = 0, M = max(a, b, 0), c = min(x3', x4'), d = min(x1', x2').
    The larger of x3', x4' is b+, so max(a, x3') + max(a, x4') = M + max(a, c), and M + max(b, d) for the other two.
    With (p - q)+ = max(p, q) - q the bracket is
        2M + max(a, c) + max(b, d) + (a + b)+ - max(a + b, b+ + c) - max(a + b, a+ + d),
    and all but 2M cancels. a, b >= 0: the last two are b + max(a, c) and a + max(b, d), and (a + b)+ = a + b.
    a >= 0 > b: c = 0, and the terms are a + d + (a + b)+ - (a + b)+ - (a + d). b >= 0 > a: the same, exchanged.
    a, b < 0: c = d = 0, and all are 0.

    For single numbers: two layers of 6 + 7 ReLUs.
    """
    one, two, three, four, e = groups
    a, b, half = one + two, three + four, Fraction(1, 2)
    terms: list[tuple[Weight, Form]] = [(half, {a: 1, b: 1, e: -2})]
    terms += [(half, {top: 1, part + e: -1}) for top, part in ((a, three), (a, four), (b, one), (b, two))]
    terms += [(-half, {a: 1, b: 1, u + e: -1, v + e: -1}) for u, v in ((three, four), (one, two))]
    return {e: 1}, terms


def six_group_sum(groups: Sequence[Window]) -> ReluSum:
    """The maximum over six groups from maxima over two of them, m_ij = max(x_i, x_j).

    Theorem (ours). Let the six reals be three pairs of partners, i' the partner of i, and t+ = relu(t). Then

        12 max = sum of m_ij                                        i and j are no partners                         12
                 + sum of 2 (m_ii' - m_jk)+                         i, i' one pair, j and k from the others         12
                 + sum of (m_ij + m_ij' - m_ik - m_i'k')+           i, j, k from different pairs, here and below    24
                 - sum of (m_ij + m_i'j' - m_ik - m_jk')+                                                           24
                 - sum of 1/2 (m_ij + m_ij' - m_i'k - m_i'k')+                                                      12

    where every different term is taken once; right: how many there are.

    Proof. Both sides grow by t with all arguments and are unchanged by the 48 permutations that map pairs to pairs.
    That leaves 15 orders of the numbers. In each order every m_ij is one of the numbers, so that every ReLU is that of
    one linear form; where forms change their sign within the order, those with equal kernels have weights that cancel,
    and the linear rest is the largest number. `proofs.prove_sum` and paper/certificates/check.py compute this.

    For single numbers: two layers of 15 + 72 ReLUs. Found by mixed-integer programming over the ReLUs of one or two
    maxima less as many others, with these symmetries and few ReLUs.
    """
    partner = (1, 0, 3, 2, 5, 4)
    symmetries = [p for p in permutations(range(6)) if all(p[partner[i]] == partner[p[i]] for i in range(6))]

    def maximum(i: int, j: int) -> Window:
        return groups[min(i, j)] + groups[max(i, j)]

    def images(plus: Sequence[tuple[int, int]], minus: Sequence[tuple[int, int]]) -> list[Form]:
        """The different forms that the symmetries make of this one: the maxima in `plus` less those in `minus`."""
        different: dict[frozenset[tuple[Window, int]], Form] = {}
        for p in symmetries:
            form: Form = {maximum(p[i], p[j]): 1 for i, j in plus}
            form |= {maximum(p[i], p[j]): -1 for i, j in minus}
            different.setdefault(frozenset(form.items()), form)
        return list(different.values())

    base: dict[Window, Weight] = {
        maximum(i, j): Fraction(1, 12) for i, j in combinations(range(6), 2) if partner[i] != j
    }
    terms: list[tuple[Weight, Form]] = [(Fraction(1, 6), form) for form in images([(0, 1)], [(2, 4)])]
    terms += [(Fraction(1, 12), form) for form in images([(0, 2), (0, 3)], [(0, 4), (1, 5)])]
    terms += [(Fraction(-1, 12), form) for form in images([(0, 2), (1, 3)], [(0, 4), (2, 5)])]
    terms += [(Fraction(-1, 24), form) for form in images([(0, 2), (0, 3)], [(1, 4), (1, 5)])]
    return base, terms


def _sum(window: Window, k: int) -> ReluSum:
    """The maximum over a window, known after k layers, from maxima known after k - 1, with as few ReLUs as we can."""
    size = len(window)
    if size <= 2**k:
        return pair_sum(disjoint_parts(window, largest_left=2 ** (k - 1)))
    if size <= 5 * 3 ** (k - 2):
        rest = size - size // 5
        left = rest // 2
        ends = [0, (left + 1) // 2, left, left + (rest - left + 1) // 2, rest, size]
        return five_group_sum([window[start:stop] for start, stop in pairwise(ends)])
    return six_group_sum([window[size * i // 6 : size * (i + 1) // 6] for i in range(6)])
