"""The maximum of eight numbers in two layers, as a mean over all orders of the numbers.

Theorem (ours). With m_ij = max(x_i, x_j) and t+ = relu(t),

    max(x_1, ..., x_8) = mean of m_ij over all pairs i < j
                         + mean over all 8! orders of the x of the sum of w (m_ab + ... - m_cd - ...)+ over TERMS.

So eight groups need maxima over two of them: if k layers take m numbers, m even, k + 1 layers take 4 m. Hence k layers
take 2 4^(k-1): 2, 8, 32, 128.

Proof. The right side does not depend on the order of the x; let x_1 >= ... >= x_8. Then m_ij = x_min(i,j), and every
ReLU is that of a linear form t = sum of c_i x_i with sum c_i = 0, that is, of the sum of the partial sums of c, each
times a gap x_i - x_(i+1) >= 0. If no partial sum is negative, t+ = t; if none is positive, t+ = 0; otherwise
t+ = (t + |t|) / 2. `proved` adds up, in fractions, the weights of |t| for all t with the same kernel, which cancel, and
what is linear, which is x_1.

TERMS were found by linear programming over all forms of one to three maxima m_ij, no two equal, on each side, with the
number of ReLUs as the cost.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from fractions import Fraction
from functools import cache
from itertools import accumulate, combinations, permutations
from math import comb, gcd

from skipform.theory.affine import Affine, Row
from skipform.theory.network import CanonicalNetwork
from skipform.theory.trees import Window

Pair = Window  # (i, j), i < j
Term = tuple[Fraction, tuple[Pair, ...], tuple[Pair, ...]]  # the weight and the pairs with sign + and -, from 0 on


def term(weight: str, plus: str, minus: str) -> Term:
    first, second = (tuple((int(pair[0]) - 1, int(pair[1]) - 1) for pair in text.split()) for text in (plus, minus))
    return Fraction(weight), first, second


TERMS = [
    term("13/5", "12", "34"),
    term("24/5", "12 13", "14 56"),
    term("-4/5", "12 13", "45 46"),
    term("-2/5", "12 13", "45 67"),
    term("-4", "12 34", "13 56"),
    term("-3/10", "12 34", "56 78"),
    term("4/5", "12 13 14", "15 16 78"),
    term("-4/5", "12 13 14", "15 56 78"),
    term("-2/5", "12 13 14", "15 67 68"),
    term("-1/15", "12 13 14", "56 57 58"),
    term("2/5", "12 13 14", "56 57 68"),
    term("6/5", "12 13 24", "15 26 78"),
    term("-6/5", "12 13 24", "15 67 68"),
    term("-12/5", "12 13 45", "14 16 78"),
    term("12/5", "12 13 45", "14 46 78"),
    term("-4/5", "12 13 45", "14 56 78"),
    term("2/5", "12 13 45", "14 67 68"),
    term("-12/5", "12 13 45", "16 24 78"),
    term("1", "12 13 45", "16 47 48"),
    term("-2", "12 13 45", "16 47 58"),
    term("6/5", "12 13 45", "24 67 68"),
    term("-2/5", "12 34 56", "13 24 78"),
    term("2", "12 34 56", "13 25 78"),
    term("1", "12 34 56", "13 57 68"),
]


def proved(n: int = 8, terms: Sequence[Term] = TERMS) -> bool:
    """Whether the theorem holds for n numbers with these terms: for all real x, by exact arithmetic."""
    linear = [Fraction(n - 1 - i, comb(n, 2)) for i in range(n)]  # the mean of m_ij
    kinks: dict[tuple[int, ...], Fraction] = defaultdict(Fraction)  # kernel, as its normal -> weight of |form|
    for weight, plus, minus in terms:
        for word, frequency in _words(n, plus, minus).items():
            share = weight * frequency
            low, high = min(accumulate(word)), max(accumulate(word))
            if low < 0 < high:
                share /= 2
                length = gcd(*word) * (1 if next(filter(None, word)) > 0 else -1)
                kinks[tuple(c // length for c in word)] += share * abs(length)
            if high > 0:
                linear = [total + share * c for total, c in zip(linear, word, strict=True)]
    return not any(kinks.values()) and linear == [1] + [0] * (n - 1)


def _used(plus: Sequence[Pair], minus: Sequence[Pair]) -> int:
    return 1 + max(i for pair in (*plus, *minus) for i in pair)


@cache
def _words(n: int, plus: Sequence[Pair], minus: Sequence[Pair]) -> dict[tuple[int, ...], Fraction]:
    """The form of a term in all orders: its coefficients of x_1 >= ... >= x_n -> the part of the orders that has it."""
    words: Counter[tuple[int, ...]] = Counter()
    for order in permutations(range(n), _used(plus, minus)):  # x_(order[i]) is the number i of the term
        word = [0] * n
        for sign, pairs in ((1, plus), (-1, minus)):
            for i, j in pairs:
                word[min(order[i], order[j])] += sign
        words[tuple(word)] += 1
    return {word: Fraction(times, words.total()) for word, times in words.items()}


def relu_count(k: int) -> int:
    """ReLUs of the network for 2 4^(k-1) numbers in k layers: of the last, and of the maxima over two groups."""
    return 1 if k == 1 else _relus_of_last_layer() + comb(8, 2) * relu_count(k - 1)


@cache
def _relus_of_last_layer() -> int:
    return sum(len(_images(8, plus, minus)) for _, plus, minus in TERMS)


def maximum_of_eight(*, exact: bool = False) -> CanonicalNetwork:
    """The network of the theorem: 28 ReLUs and 185,290. Takes about 10 s and 1.1 GiB."""
    return network_of(8, TERMS, exact=exact)


def _images(n: int, plus: Sequence[Pair], minus: Sequence[Pair]) -> list[frozenset[tuple[Pair, int]]]:
    """The different forms of a term in all orders of n numbers: m_ij and their signs."""
    signed = [(pair, 1) for pair in plus] + [(pair, -1) for pair in minus]
    orders = permutations(range(n), _used(plus, minus))
    forms = (frozenset((_sorted(order[i], order[j]), sign) for (i, j), sign in signed) for order in orders)
    return list(dict.fromkeys(forms))


def network_of(n: int, terms: Sequence[Term], *, exact: bool) -> CanonicalNetwork:
    """relu(x_i - x_j) for all pairs i < j, which gives m_ij = relu(x_i - x_j) + x_j; then every different ReLU once."""
    pairs = list(combinations(range(n), 2))
    relus: dict[frozenset[tuple[Pair, int]], Fraction] = {}
    for weight, plus, minus in terms:
        images = _images(n, plus, minus)
        relus |= dict.fromkeys(images, weight / len(images))  # two terms have no image in common

    def of_first_layer(maxima: Iterable[tuple[Pair, Fraction | int]]) -> Row:
        """A sum of m_ij as a row on z_1 = (relu(x_i - x_j); x)."""
        row: Row = defaultdict(Fraction)
        for (i, j), weight in maxima:
            row[place[i, j]] += weight
            row[len(pairs) + j] += weight
        return row

    place = {pair: k for k, pair in enumerate(pairs)}
    first = Affine.from_rows([{i: Fraction(1), j: Fraction(-1)} for i, j in pairs], [0] * len(pairs), n)
    second = Affine.from_rows([of_first_layer(form) for form in relus], [0] * len(relus), first.out_features + n)
    mean = of_first_layer((pair, Fraction(1, len(pairs))) for pair in pairs)
    readout = dict(enumerate(relus.values())) | {len(relus) + column: weight for column, weight in mean.items()}
    network = CanonicalNetwork((first, second), Affine.from_rows([readout], [0], len(relus) + second.in_features))
    return network if exact else network.float()


def _sorted(i: int, j: int) -> Pair:
    return (i, j) if i < j else (j, i)
