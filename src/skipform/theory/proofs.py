"""The statements proved instance by instance: over the reals by z3, as polynomial identities by sympy.

A proof here is about given weights: z3 finds no real x at which the network and the definition differ (`prove`), or
sympy finds that two nets with symbolic weights are one polynomial in the weights, the inputs and the values of f
(`same_net`), whatever the function f. Networks must be exact. Nothing here samples inputs.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction
from functools import cache, partial
from itertools import count, cycle, pairwise, permutations
from typing import Any

import numpy as np
import sympy
import z3
from sympy.polys.domains import QQ
from sympy.polys.matrices import DomainMatrix

from skipform.errors import SkipformError
from skipform.theory.affine import Affine, Row, select
from skipform.theory.blocks import BlockNet
from skipform.theory.network import CanonicalNetwork, affine
from skipform.theory.shallow import ReluSum
from skipform.theory.skips import ProductNetwork

Definition = Callable[[np.ndarray], np.ndarray]


def prove(network: CanonicalNetwork, definition: Definition, *, seconds: float = 60) -> bool:
    """Whether network(x) = definition(x) for all real x; the definition maps (d,) solver terms to (m,) of them.

    False if z3 finds a counterexample or gives up after `seconds`.
    """
    return _valid(network, definition, lambda x: [], seconds)


def prove_maximum(network: CanonicalNetwork, *, seconds: float = 60) -> bool:
    """Whether network(x_1, ..., x_n) = max(x_1, ..., x_n) for all real x.

    Without loss of generality, each part of it checked on the weights by exact arithmetic first:
    if the network is unchanged by swapping x_i and x_{i+1} (`commutes`), x_i >= x_{i+1};
    if it adds t to its value when t is added to all inputs (`translates`), x_n = 0.
    """
    n = network.in_features
    swaps = [i for i in range(n - 1) if commutes(network, [*range(i), i + 1, i, *range(i + 2, n)])]
    shift = translates(network)

    def assumed(x: np.ndarray) -> list[Any]:
        return [x[i] >= x[i + 1] for i in swaps] + ([x[-1] == 0] if shift else [])

    return _valid(network, lambda x: np.array([greatest(x)], dtype=object), assumed, seconds)


def prove_windows(network: CanonicalNetwork, windows: Sequence[Iterable[int]], *, seconds: float = 60) -> int:
    """The number of different networks with which it is proved that output i of the network is the maximum of the
    inputs in windows[i], for every i and all real inputs; 0 if one of them is not proved.

    Each output is a network of the few coordinates on which it depends; equal ones, up to the numbers of their inputs,
    are proved once.
    """
    proved: dict[Any, bool] = {}
    rows = [a.rows() for a in network.affine_maps]
    for i, window in enumerate(windows):
        part, inputs = network_of_output(network, i, rows)
        cells = sorted({*inputs, *window})
        local = [cells.index(cell) for cell in window]
        layers = tuple(tuple(map(_key, zip(a.rows(), a.bias, strict=True))) for a in part.affine_maps)
        key = (len(cells), tuple(local), layers, tuple(map(cells.index, inputs)))
        if key not in proved:
            columns = [cells.index(cell) for cell in inputs]

            def maximum(x: np.ndarray, local: list[int] = local) -> np.ndarray:
                return np.array([greatest(x[local])], dtype=object)

            whole = affine(select(columns, len(cells), exact=True)).then(part)
            proved[key] = prove(whole, maximum, seconds=seconds)
        if not proved[key]:
            return 0
    return len(proved)


def prove_sum(window: Sequence[int], relu_sum: ReluSum) -> bool:
    """Whether the maximum over the window is this sum (`shallow.ReluSum`), for all real values of the indices.

    Indices that the same parts contain are replaced by one variable, their maximum, which may be any real number. The
    largest of the variables of a part is known in each order of the variables, so that the solver is asked about ReLUs
    of linear forms alone, in one order of each class that the symmetries of the sum make; the least variable is 0, as
    both sides grow by t with all variables. Sound: True proves it. A sum that does not grow so is not proved.
    """
    base, terms = relu_sum
    parts = list(dict.fromkeys([*base, *(part for _, form in terms for part in form)]))
    groups = {i: tuple(i in part for part in parts) for i in sorted({*window, *(i for part in parts for i in part)})}
    if set(groups) != set(window):
        return False
    numbers = {group: k for k, group in enumerate(dict.fromkeys(groups.values()))}
    local = {part: frozenset(numbers[groups[i]] for i in part) for part in parts}
    relus = [(weight, frozenset((local[part], c) for part, c in form.items())) for weight, form in terms]
    return _prove_sum(len(numbers), frozenset((local[part], weight) for part, weight in base.items()), tuple(relus))


_Maxima = frozenset[tuple[frozenset[int], Any]]  # a sum of maxima over parts: (part, coefficient)


@cache  # the same few identities occur at many windows
def _prove_sum(count: int, base: _Maxima, terms: tuple[tuple[Any, _Maxima], ...]) -> bool:
    if sum(weight for _, weight in base) != 1 or any(sum(c for _, c in form) for _, form in terms):
        return False

    def renamed(maxima: _Maxima, to: Sequence[int]) -> _Maxima:
        return frozenset((frozenset(to[i] for i in part), c) for part, c in maxima)

    relus = Counter(terms)
    orders = list(permutations(range(count)))
    symmetries = [
        p for p in orders if renamed(base, p) == base and Counter((w, renamed(f, p)) for w, f in terms) == relus
    ]
    least = {min(tuple(p[i] for i in order) for p in symmetries) for order in orders}  # one order of each class
    return all(_holds_in_order(order, base, terms) for order in least)


def _holds_in_order(order: Sequence[int], base: _Maxima, terms: Iterable[tuple[Any, _Maxima]]) -> bool:
    """_prove_sum where order[0] is the largest variable, order[1] the next, and the last one 0."""
    x = {i: z3.Real(f"x{i}") for i in order[:-1]} | {order[-1]: z3.RealVal(0)}

    def value(maxima: _Maxima) -> Any:
        return sum((z3.RealVal(str(c)) * x[min(part, key=order.index)] for part, c in maxima), start=z3.RealVal(0))

    solver = z3.Solver()
    solver.set("timeout", 60_000)
    solver.add(*(x[i] >= x[j] for i, j in pairwise(order)))
    total = value(base)
    for weight, form in terms:
        argument = value(form)
        total = total + z3.RealVal(str(weight)) * z3.If(argument > 0, argument, 0)
    solver.add(total != x[order[0]])
    return solver.check() == z3.unsat


def network_of_output(
    network: CanonicalNetwork, i: int, rows: list[list[Row]] | None = None
) -> tuple[CanonicalNetwork, list[int]]:
    """The network of output i alone, with only the ReLUs and inputs on which it depends, and these inputs in order.

    rows: the rows of all affine maps, where they are known already.
    """
    _needs_exact(network)
    rows = rows or [a.rows() for a in network.affine_maps]
    total, d = network.readout.in_features, network.in_features
    # z_k is the tail of z_L, so that a coordinate is known by its column in z_L; chosen: the rows of every map.
    needed, chosen = set(rows[-1][i]), [[i]]
    for layer, own in reversed(list(zip(network.layers, rows, strict=False))):
        start = total - layer.in_features
        first = start - layer.out_features  # the column of the first ReLU of this layer
        chosen.append(sorted(column - first for column in needed if first <= column < start))
        needed |= {start + column for unit in chosen[-1] for column in own[unit]}
    place = {column: k for k, column in enumerate(sorted(needed))}
    maps = []
    for a, own, units in zip(network.affine_maps, rows, reversed(chosen), strict=True):
        start = total - a.in_features
        above = sum(column < start for column in place)  # the ReLUs that this map does not read
        moved = [{place[start + column] - above: value for column, value in own[unit].items()} for unit in units]
        maps.append(Affine.from_rows(moved, a.bias[units], len(place) - above))
    inputs = [column - (total - d) for column in place if column >= total - d]
    return CanonicalNetwork(tuple(maps[:-1]), maps[-1]), inputs


def commutes(network: CanonicalNetwork, permutation: Sequence[int]) -> bool:
    """Whether network(x[permutation]) = network(x) for all x follows, layer by layer, from relu(-t) = relu(t) - t.

    Sound: True proves it. It carries along the affine T_k with z_k(x[permutation]) = T_k z_k(x), and looks for each
    row of A_k T_k among the rows of A_k, up to its sign. Not complete: False says nothing.
    """
    _needs_exact(network)
    moved: list[_Form] = [({int(i): 1}, 0) for i in permutation]  # T_k, row by row
    for layer in network.layers:
        own = [_form(row, constant) for row, constant in zip(layer.rows(), layer.bias, strict=True)]
        place = {_key(form): i for i, form in enumerate(own)}
        width = len(own)
        fresh: list[_Form] = []
        for form in own:
            image = _substitute(form, moved)
            opposite: _Form = ({column: -value for column, value in image[0].items()}, -image[1])
            if (same := place.get(_key(image))) is not None:
                fresh.append(({same: 1}, 0))
            elif (other := place.get(_key(opposite))) is not None:
                shifted = {column + width: value for column, value in image[0].items()}
                fresh.append(({other: 1, **shifted}, image[1]))  # relu(s) = relu(-s) + s
            else:
                return False
        moved = fresh + [({column + width: value for column, value in row.items()}, c) for row, c in moved]
    out = [_form(row, constant) for row, constant in zip(network.readout.rows(), network.readout.bias, strict=True)]
    return all(_key(_substitute(form, moved)) == _key(form) for form in out)


def translates(network: CanonicalNetwork) -> bool:
    """Whether network(x + t) = network(x) + t for all x and numbers t, because every A_k ignores t and R adds it once.

    Sound: adding t to all inputs does not change the ReLUs if the weights on x add up to 0 in each row of every A_k.
    """
    _needs_exact(network)
    d = network.in_features
    sums = [
        [sum(value for column, value in row.items() if column >= a.in_features - d) for row in a.rows()]
        for a in network.affine_maps
    ]
    return all(total == 0 for layer in sums[:-1] for total in layer) and all(total == 1 for total in sums[-1])


def greatest(terms: Iterable[Any]) -> Any:
    """max of solver terms, by the definition: the first so far, replaced by each larger one."""
    first, *rest = terms
    for term in rest:
        first = z3.If(term > first, term, first)
    return first


def least(terms: Iterable[Any]) -> Any:
    """min of solver terms, by the definition."""
    first, *rest = terms
    for term in rest:
        first = z3.If(term < first, term, first)
    return first


def prove_product(network: ProductNetwork, definition: Definition) -> bool:
    """Whether a product network equals the definition as a polynomial; in log form on positive symbols.

    sympy expands after every square, so that n factors stay polynomials of few terms.
    """
    x = np.array(sympy.symbols(f"x:{network.in_features}", positive=True), dtype=object)
    functions = {
        "square": _entrywise(lambda t: sympy.expand(sympy.expand(t) ** 2)),
        "log": _entrywise(sympy.log),
        "exp": _entrywise(sympy.exp),
    }
    wanted = definition(x).reshape(-1)
    got = network.exact()(x, functions).reshape(-1)
    return all(sympy.expand(a - b) == 0 for a, b in zip(got, wanted, strict=True))


def same_net(first: BlockNet, second: BlockNet, *, functions: int = 1) -> bool:
    """Whether two block nets with symbolic weights are the same function, whatever their activations f_1, f_2, ...

    The activation layers of a net have the `functions` activations in turn. They are unknown: the value of f_i at each
    argument, expanded, is a new symbol, the same in both nets where the arguments are the same polynomial. Then the
    outputs must be the same polynomial.
    """
    x = np.array(sympy.symbols(f"x:{first.stem[0].shape[1]}"), dtype=object)
    values: dict[Any, sympy.Symbol] = {}
    numbers = count()

    def unknown(which: int, t: Any) -> sympy.Symbol:
        key = (which, sympy.expand(t))
        if key not in values:
            values[key] = sympy.Symbol(f"f{next(numbers)}")
        return values[key]

    def activations() -> Callable[[np.ndarray], np.ndarray]:
        return in_turn([_entrywise(partial(unknown, which)) for which in range(functions)])

    one, two = first(x, activations()), second(x, activations())
    return all(sympy.expand(a - b) == 0 for a, b in zip(one, two, strict=True))


def in_turn(functions: Sequence[Callable[[np.ndarray], np.ndarray]]) -> Callable[[np.ndarray], np.ndarray]:
    """A function that is, at its first call, the first of the functions, at its second the second, and so on."""
    order = cycle(functions)
    return lambda values: next(order)(values)


def dimension_reached(net: BlockNet, points: np.ndarray) -> int:
    """The rank of the map weights -> (net(p) for p in points) at the weights of `net`, in exact arithmetic.

    Where no ReLU sits at its kink the map is smooth, and the functions of nets of this shape contain a manifold of
    that dimension. So nets of another shape with fewer weights cannot make all of these functions: the values of theirs
    lie in a semialgebraic set of at most as many dimensions as they have weights. With its ReLUs held on or off, the
    net is affine in each single weight, so that a difference quotient is the derivative; both sides must agree.

    Raises SkipformError if a ReLU changes sign under the small steps taken: the points must be in general position.
    """
    step = Fraction(1, 10**9)
    parts = [
        array
        for w in (net.stem, *(w for block in net.blocks for w in block.layers), net.readout)
        for array in w
        if array.dtype == object  # the integers of identities are not weights
    ]
    middle = net(points).reshape(-1)
    columns = []
    for array in parts:
        for index in np.ndindex(array.shape):
            weight = array[index]
            array[index] = weight + step
            above = net(points).reshape(-1)
            array[index] = weight - step
            below = net(points).reshape(-1)
            array[index] = weight
            if (above - middle != middle - below).any():
                raise SkipformError("dimension_reached: a ReLU is at its kink; points in general position are accepted")
            columns.append((above - middle) / step)
    entries = [[QQ(q.numerator, q.denominator) for q in column] for column in columns]
    return DomainMatrix(entries, (len(columns), len(middle)), QQ).rank()


def symbols(name: str, *shape: int) -> np.ndarray:
    """An array of distinct sympy symbols name_0, name_1, ..."""
    size = int(np.prod(shape))
    return np.array(sympy.symbols(f"{name}_:{size}"), dtype=object).reshape(shape)


# An affine form on z_k: its non-zero weights by coordinate, and its constant.
_Form = tuple[dict[int, Any], Any]


def _form(row: Row, constant: Any) -> _Form:
    return dict(row), constant


def _key(form: _Form) -> tuple[Any, ...]:
    return (tuple(sorted((column, value) for column, value in form[0].items() if value != 0)), form[1])


def _substitute(form: _Form, rows: list[_Form]) -> _Form:
    """The form after each coordinate i is replaced by rows[i]."""
    weights: dict[int, Any] = {}
    constant = form[1]
    for column, value in form[0].items():
        constant += value * rows[column][1]
        for inner, entry in rows[column][0].items():
            weights[inner] = weights.get(inner, 0) + value * entry
    return weights, constant


def _valid(
    network: CanonicalNetwork, definition: Definition, assumed: Callable[[np.ndarray], list[Any]], seconds: float
) -> bool:
    """Whether z3 refutes: the assumptions hold, and some output differs from its definition."""
    _needs_exact(network)
    x = np.array([z3.Real(f"x{i}") for i in range(network.in_features)], dtype=object)
    solver = z3.Solver()
    solver.set("timeout", int(1000 * seconds))
    names = count()

    def relu(t: Any) -> Any:
        """A new variable with its definition, so that terms stay as small as the network."""
        t = t if isinstance(t, z3.ExprRef) else z3.RealVal(str(t))  # a ReLU that reads nothing
        h = z3.Real(f"h{next(names)}")
        solver.add(h == z3.If(t > 0, t, 0))
        return h

    flat = CanonicalNetwork(network.layers, network.readout)
    y = flat.evaluate(x, _entrywise(relu))
    wanted = definition(x)
    solver.add(*assumed(x))
    solver.add(z3.Or([a != b for a, b in zip(y, wanted.reshape(-1), strict=True)]))
    return solver.check() == z3.unsat


def _entrywise(function: Callable[[Any], Any]) -> Callable[[np.ndarray], np.ndarray]:
    """The function entry by entry on an object array of any shape."""

    def apply(values: np.ndarray) -> np.ndarray:
        out = np.empty(values.shape, dtype=object)
        for index, value in np.ndenumerate(values):
            out[index] = function(value)
        return out

    return apply


def _needs_exact(network: CanonicalNetwork) -> None:
    if not network.is_exact:
        raise SkipformError("a proof about a float64 network; an exact one is accepted: build it with exact=True")
