"""skipform verify: every statement of the paper, checked three ways and kept apart.

error    the largest difference to the definition in float64 on random inputs, relative to the largest value of the
         batch (absolute where that is below 1); it must stay within the bound that `theory.rounding` derives for it
exact    equality on random rational inputs, with ties, in fractions
proved   no real input is an exception: z3 over the reals, sympy for polynomial identities (`theory.proofs`)
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from functools import partial
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from skipform.stages.files import write_json
from skipform.theory import blocks, pooling, proofs, rounding, skips
from skipform.theory.affine import Affine, fractions
from skipform.theory.blocks import Block, BlockNet
from skipform.theory.network import CanonicalNetwork
from skipform.theory.skips import ProductNetwork
from skipform.theory.trees import tree_depth


@dataclass
class Check:
    """What is found while one statement is checked. The generator draws weights, sizes and inputs."""

    generator: np.random.Generator
    instances_wanted: int
    everything: bool
    instances: int = 0
    max_error: float | None = None
    exact: bool | None = None
    proved: bool | None = None
    within: bool = True
    facts: list[bool] = field(default_factory=list)

    def fact(self, true: bool) -> None:
        """Something that must hold besides equality: a depth, a count, an inequality."""
        self.facts.append(true)

    def proof(self, proved: bool) -> None:
        self.proved = proved and self.proved is not False

    @property
    def holds(self) -> bool:
        return self.within and self.exact is not False and self.proved is not False and all(self.facts)

    def equal(self, build: Callable[..., CanonicalNetwork], definition: Callable[[np.ndarray], np.ndarray]) -> None:
        """One network, built for float64 and for fractions, against its definition on a batch (8, d) of inputs."""
        network = build(exact=False)
        x = self.rationals(8, network.in_features)
        shaped = x.reshape(8, *(network.input_shape or (network.in_features,)))
        wanted = definition(x).reshape(8, -1)
        self._exactly(build(exact=True)(shaped).reshape(8, -1), wanted)
        got = network(shaped.astype(np.float64)).numpy().reshape(8, -1)
        self._within(got, wanted, rounding.network_bound(network, x.astype(np.float64)))

    def product(self, network: ProductNetwork, definition: Callable[[np.ndarray], np.ndarray], *, logs: bool) -> None:
        """A product network against its definition; in log form on positive inputs and in float64 only."""
        x = self.rationals(8, network.in_features)
        if logs:
            x = np.abs(x) + np.array(Fraction(1, 12))
        wanted = definition(x).reshape(8, -1)
        got = network(x.astype(np.float64)).reshape(8, -1)
        if not logs:
            self._exactly(network.exact()(x).reshape(8, -1), wanted)
        bound = rounding.product_bound(network, x.astype(np.float64)).reshape(8, -1)
        self._within(got, wanted, bound)

    def same(self, one: BlockNet, two: BlockNet | CanonicalNetwork) -> None:
        """Two nets with Fraction weights: equal on fractions, and within the sum of their bounds in float64."""
        x = self.rationals(8, one.stem[0].shape[1])
        self._exactly(two(x), one(x))
        first, second = as_floats(one), two.float() if isinstance(two, CanonicalNetwork) else as_floats(two)
        real = x.astype(np.float64)
        bound = rounding.block_bound(first, real)
        if isinstance(second, BlockNet):
            self._within(second(real), first(real), bound + rounding.block_bound(second, real))
        else:
            self._within(second(real).numpy(), first(real), bound + rounding.network_bound(second, real))

    def weights(self, name: str, *shape: int) -> np.ndarray:
        """Random Fractions for the weights of that name; `proofs.symbols` gives symbols for them in the same way."""
        return self.rationals(*shape)

    def rationals(self, *shape: int) -> np.ndarray:
        """Random Fractions with denominators up to 12, many of them equal."""
        numerators, denominators = self.generator.integers(-24, 25, shape), self.generator.integers(1, 13, shape)
        return np.vectorize(lambda p, q: Fraction(int(p), int(q)), otypes=[object])(numerators, denominators)

    def generic(self, *shape: int) -> np.ndarray:
        """Random Fractions from -2 to 2 with denominator 997, fine enough to be in general position."""
        return np.vectorize(lambda p: Fraction(int(p), 997), otypes=[object])(
            self.generator.integers(-1994, 1995, shape)
        )

    def _exactly(self, got: np.ndarray, wanted: np.ndarray) -> None:
        self.exact = bool((got == wanted).all()) and self.exact is not False

    def _within(self, got: np.ndarray, wanted: np.ndarray, bound: np.ndarray) -> None:
        self.instances += 1
        error = np.abs((fractions(got) - fractions(wanted)).astype(np.float64))
        size = max(1.0, float(np.abs(wanted.astype(np.float64)).max()))
        self.max_error = max(self.max_error or 0.0, float(error.max()) / size)
        self.within = self.within and bool((error <= bound).all())


def as_floats(net: BlockNet) -> BlockNet:
    """The net with float64 weights."""

    def rounded(w: blocks.Layer) -> blocks.Layer:
        return w[0].astype(np.float64), w[1].astype(np.float64)

    parts = tuple(Block(tuple(map(rounded, b.layers)), b.shortcut and rounded(b.shortcut)) for b in net.blocks)
    return BlockNet(rounded(net.stem), parts, rounded(net.readout))


def random_net(draw: Callable[..., np.ndarray], merge: str, activations: int, *, count: int, width: int) -> BlockNet:
    """A net of `count` blocks on R^2, weights from draw(name, *shape); addition blocks keep their width."""
    size, built = 2, []
    for k in range(count):
        sizes = [size] + [width] * activations + [size if merge == "add" else width]
        built.append([_layer(draw, f"w{k}{level}", m, d) for level, (d, m) in enumerate(pairwise(sizes))])
        size = size if merge == "add" else size + width
    return BlockNet.of(built, _layer(draw, "r", 1, size), merge=merge)


def _layer(draw: Callable[..., np.ndarray], name: str, m: int, d: int) -> blocks.Layer:
    return draw(name, m, d), draw(name + "b", m)


# ---------------------------------------------------------------------------------------------------------------------
# The statements. Each takes a Check and reports to it.


def average_is_affine(check: Check) -> None:
    for n in [*range(1, 10), *check.generator.integers(10, 40, check.instances_wanted).tolist()]:
        check.equal(partial(pooling.average, n), _mean)
        check.fact(pooling.average(n).depth == 0)
    for n in range(1, 10):
        check.proof(proofs.prove(pooling.average(n, exact=True), _mean))


def maximum_is_a_tree(check: Check) -> None:
    for n in [*range(1, 10), *check.generator.integers(10, 40, check.instances_wanted).tolist()]:
        check.equal(partial(pooling.maximum, n), _maximum)
        network = pooling.maximum(n)
        check.fact(network.depth == int(np.ceil(np.log2(n))) and network.relu_count == n - 1)
    for n in range(1, 17 if check.everything else 10):
        check.proof(proofs.prove(pooling.maximum(n, exact=True), _greatest))


def maximum_has_every_larger_depth(check: Check) -> None:
    for n in range(2, 10 if check.everything else 7):
        for depth in range(tree_depth(n), n + 2):
            check.equal(partial(pooling.maximum, n, depth=depth), _maximum)
            network = pooling.maximum(n, depth=depth, exact=True)
            check.fact(network.depth == depth)
            check.proof(proofs.prove(network, _greatest))


def maximum_of_five_has_depth_two(check: Check) -> None:
    for _ in range(check.instances_wanted):
        check.equal(partial(pooling.shallow_maximum, 5), _maximum)
    network = pooling.shallow_maximum(5, exact=True)
    check.fact(network.widths == (6, 7) and pooling.depth_bound(5) == 2 and tree_depth(5) == 3)
    check.proof(proofs.prove(network, _greatest))


def maximum_is_shallower_than_the_tree(check: Check) -> None:
    for n in range(4, 10):
        check.equal(partial(pooling.shallow_maximum, n), _maximum)
        network = pooling.shallow_maximum(n, exact=True)
        check.fact(network.depth == pooling.depth_bound(n))
        check.proof(proofs.prove_maximum(network))


def maximum_of_twelve_has_depth_three(check: Check) -> None:
    for n in (5, 12, 30):
        for _ in range(max(1, check.instances_wanted // 8)):
            check.equal(partial(pooling.shallow_maximum, n), _maximum)
    check.fact([pooling.shallow_maximum(n).depth for n in (5, 12, 30, 75)] == [2, 3, 4, 5])
    # The step from m to 2m + floor(m / 2) is the identity for five, whose proof is that of the row above; its instances
    # for larger n are proved one by one where the solver can.
    check.proof(proofs.prove(pooling.shallow_maximum(5, exact=True), _greatest))
    for n in (10, 11, 12) if check.everything else ():
        check.proof(proofs.prove_maximum(pooling.shallow_maximum(n, exact=True), seconds=600))


def max_pooling_is_a_forest(check: Check) -> None:
    for rank in (1, 2, 3):
        for shape, options in _poolings(check, rank):
            check.equal(
                partial(pooling.max_pool, shape, **options), partial(_naive_pool, shape=shape, pick=max, **options)
            )
        shape = (2, *[4] * rank)
        check.equal(partial(pooling.global_max_pool, shape), partial(_per_channel, of=_maximum))
    for options in ({"stride": 2, "padding": 1}, {"stride": 1, "dilation": 2}, {"stride": 2, "padding": "same"}):
        network = pooling.max_pool((1, 5, 5), 3, exact=True, **options)
        check.proof(proofs.prove(network, partial(_by_cells, cells=_cells(network, 5, **options), of=proofs.greatest)))


def average_pooling_is_affine(check: Check) -> None:
    for rank in (1, 2, 3):
        for shape, options in _poolings(check, rank):
            del options["dilation"]
            check.equal(
                partial(pooling.average_pool, shape, count_include_pad=False, **options),
                partial(_naive_pool, shape=shape, pick=_plain_mean, **options),
            )
        shape = (2, *[4] * rank)
        check.equal(partial(pooling.global_average_pool, shape), partial(_per_channel, of=_mean))
    for options in ({"stride": 2, "padding": 1}, {"stride": 2, "padding": "same"}):
        network = pooling.average_pool((1, 5, 5), 3, count_include_pad=False, exact=True, **options)
        check.fact(network.depth == 0)
        check.proof(proofs.prove(network, partial(_by_cells, cells=_cells(network, 5, **options), of=_plain_mean)))


def merges(
    merge: Callable[..., CanonicalNetwork],
    counts: Iterable[int],
    definition: Callable[[Any], Any],
    symbolic: Callable[[Any], Any],
    *,
    deep: bool = False,
) -> Callable[[Check], None]:
    """Merges of n tensors (2, 3), n in counts; the definitions act on the first axis. deep: a tree, else depth 0."""

    def run(check: Check) -> None:
        for n in counts:
            for _ in range(max(1, check.instances_wanted // 8)):
                check.equal(partial(merge, *[(2, 3)] * n), partial(_across, n=n, of=definition))
            network = merge(*[(1,)] * n, exact=True)
            check.fact(network.depth == (tree_depth(n) if deep else 0))
            check.proof(proofs.prove(network, lambda x: _one(symbolic(x))))

    return run


def concatenation_reorders(check: Check) -> None:
    for axis, shapes in ((0, ((2, 3), (1, 3))), (1, ((2, 3), (2, 1), (2, 2))), (-1, ((2,), (3,)))):
        definition = partial(_concatenated, shapes=shapes, axis=axis)
        for _ in range(check.instances_wanted // 4 + 1):
            check.equal(partial(skips.concatenate, *shapes, axis=axis), definition)
        check.proof(proofs.prove(skips.concatenate(*shapes, axis=axis, exact=True), definition))


def product(form: str) -> Callable[[Check], None]:
    def run(check: Check) -> None:
        for n in range(2, 10):
            network = skips.multiply(*[(2,)] * n, form=form)
            check.product(network, partial(_across, n=n, of=partial(np.prod, axis=0)), logs=form == "log")
            check.fact(network.depth == (2 if form == "log" else tree_depth(n)))
            check.proof(proofs.prove_product(network, partial(_product_of, n)))

    return run


def dot(form: str) -> Callable[[Check], None]:
    def run(check: Check) -> None:
        network = skips.dot((2, 3), (3, 4), axes=(2, 1), form=form)
        for _ in range(check.instances_wanted):
            check.product(network, _matrix_product, logs=form == "log")
        check.proof(proofs.prove_product(network, _matrix_product))

    return run


def division_is_not_linear(check: Check) -> None:
    at_midpoint, mean_of_ends = skips.division_witness()
    check.instances = 1
    check.exact = at_midpoint != mean_of_ends


def splitting_and_joining(check: Check) -> None:
    for _ in range(check.instances_wanted):
        first, second, m = check.generator.integers(1, 6, 3).tolist()
        weight, bias = check.rationals(m, first + second), check.rationals(m)
        w = Affine.of(weight, bias, exact=True)
        u, v = skips.split(w, first)
        x = check.rationals(8, first + second)
        check._exactly(u(x[:, :first]) + v(x[:, first:]), w(x))
        check._exactly(skips.join(u, v)(x), w(x))
        real = x.astype(np.float64)
        got = u.float()(real[:, :first]) + v.float()(real[:, first:])
        bound = rounding.gamma(first + second + 3) * (
            np.abs(real) @ np.abs(w.weight.toarray()).T + abs(bias).astype(float)
        )
        check._within(got, w(x), bound)
    a, b = proofs.symbols("a", 2), proofs.symbols("b", 3)
    weight, bias = proofs.symbols("w", 2, 5), proofs.symbols("c", 2)
    joined = weight @ np.concatenate([a, b]) + bias
    apart = (weight[:, :2] @ a + bias) + weight[:, 2:] @ b
    check.proof(all((one - two).expand() == 0 for one, two in zip(joined, apart, strict=True)))


def converter(
    convert: Callable[[BlockNet], BlockNet], merges: Iterable[str], lengths: Iterable[int], count: int
) -> Callable[[Check], None]:
    def run(check: Check) -> None:
        for merge in merges:
            for activations in lengths:
                for _ in range(max(1, check.instances_wanted // 4)):
                    net = random_net(check.weights, merge, activations, count=count, width=3)
                    check.same(net, convert(net))
                symbolic = random_net(proofs.symbols, merge, activations, count=2, width=2)
                check.proof(proofs.same_net(symbolic, convert(symbolic)))

    return run


def canonical_form_of_blocks(check: Check) -> None:
    for merge in ("concat", "add"):
        for activations in (1, 2, 3, 4):
            net = random_net(check.weights, merge, activations, count=2, width=3)
            network = blocks.canonical(net)
            check.same(net, network)
            check.fact(network.depth == 2 * activations)


def theorem_4_as_printed(check: Check) -> None:
    def nets(draw: Callable[..., np.ndarray]) -> tuple[BlockNet, BlockNet]:
        w0, w1, u, v, a = (
            _layer(draw, name, m, d)
            for name, m, d in (("w0", 3, 2), ("w1", 2, 3), ("u", 1, 2), ("v", 1, 2), ("a", 1, 3))
        )
        double = BlockNet(blocks.eye(2), (Block((w0, w1, blocks.eye(2))),), (np.hstack([u[0], v[0]]), u[1] + v[1]))
        return double, blocks.two_activations_as_printed(w0, w1, u, v, a)

    for _ in range(check.instances_wanted):
        check.same(*nets(check.weights))
    check.proof(proofs.same_net(*nets(proofs.symbols)))


def theorem_4_is_strict(check: Check) -> None:
    """The staircase has L + 1 slopes, a chain of L activations at most two: for no weights are they equal."""
    for activations in range(2, 6):
        net = blocks.staircase(activations)
        steps = np.arange(-1, activations + 1)[:, None]
        values = net(steps)[:, 0]
        check.fact(len(set(np.diff(values).tolist())) == activations + 1)
        a, (u, v) = proofs.symbols("a", activations), proofs.symbols("u", 2)
        check.proof(len(blocks.chain_slopes(a, u, v)) == 2)
        check.instances += 1


def theorem_4_is_strict_by_dimension(check: Check) -> None:
    """At equal widths the single blocks reach a rank above the number of weights of the L-activation block.

    The rank at some weights is a lower bound of the dimension, so weights are drawn until one is high enough.
    """
    for d, width, activations in (
        (2, 1, 2),
        (3, 2, 2),
        (2, 1, 3),
        *([(2, 2, 2), (3, 2, 3)] if check.everything else []),
    ):
        weights_of_one_block = (d + 1) * width + (activations - 1) * (width + 1) * width + width + d + 1
        reached = 0
        for _ in range(20):
            built, size = [], d
            for _ in range(activations):
                weight, bias = check.generic(width, size), check.generic(width)
                weight[:, : size - d] = np.abs(weight[:, : size - d])  # keeps the later ReLUs from being off everywhere
                built.append([(weight, bias), blocks.eye(width)])
                size += width
            net = BlockNet.of(built, (check.generic(1, size), check.generic(1)), merge="concat")
            reached = max(reached, proofs.dimension_reached(net, check.generic(50, d)))
            if reached > weights_of_one_block:
                break
        check.instances += 1
        check.proof(reached > weights_of_one_block)


def rounding_stays_within_the_bound(check: Check) -> None:
    for _ in range(check.instances_wanted):
        scale = 2.0 ** check.generator.integers(-60, 60, (2, 1000))
        x, y = check.generator.normal(size=(2, 1000)) * scale
        got = np.maximum(x - y, 0) + y
        error = np.abs((fractions(got) - fractions(np.maximum(x, y))).astype(np.float64))
        check.instances += 1
        check.within = check.within and bool((error <= rounding.pair_bound(x, y)).all())
        relative = error / np.maximum(np.abs(x), np.abs(y))
        check.max_error = max(check.max_error or 0.0, float(relative.max()))


# ---------------------------------------------------------------------------------------------------------------------
# The definitions, on arrays whose last axis is the input, of Fractions or of solver terms


def _one(term: Any) -> np.ndarray:
    return np.array([term], dtype=object)


def _maximum(x: np.ndarray) -> np.ndarray:
    return x.max(-1)


def _mean(x: np.ndarray) -> np.ndarray:
    return x.sum(-1, keepdims=True) / x.shape[-1]


def _difference(values: Any) -> Any:
    return values[0] - values[1]


def _plain_mean(values: Any) -> Any:
    return sum(values) / len(values)


def _greatest(x: np.ndarray) -> np.ndarray:
    return _one(proofs.greatest(x))


def _product_of(n: int, x: np.ndarray) -> np.ndarray:
    return x.reshape(n, -1).prod(0)


def _per_channel(x: np.ndarray, of: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """`of` over all positions of each of two channels."""
    return of(x.reshape(len(x), 2, -1))


def _across(x: np.ndarray, n: int, of: Callable[[Any], Any]) -> Any:
    """`of` applied to the n merged tensors, first axis."""
    return of(np.moveaxis(x.reshape(len(x), n, -1), 1, 0))


def _concatenated(x: np.ndarray, shapes: tuple[tuple[int, ...], ...], axis: int) -> np.ndarray:
    """The tensors laid end to end in x, one input or a batch, concatenated along an axis counted without the batch."""
    ends = np.cumsum([0, *map(prod, shapes)])
    parts = [x[..., a:b].reshape(-1, *shape) for (a, b), shape in zip(pairwise(ends), shapes, strict=True)]
    return np.concatenate(parts, axis=axis + 1 if axis >= 0 else axis)


def _matrix_product(x: np.ndarray) -> np.ndarray:
    """(2, 3) times (3, 4), one input or a batch."""
    pairs = zip(x[..., :6].reshape(-1, 2, 3), x[..., 6:].reshape(-1, 3, 4), strict=True)
    return np.stack([a @ b for a, b in pairs])


def _poolings(check: Check, rank: int) -> Iterator[tuple[tuple[int, ...], dict[str, Any]]]:
    """Random (shape, options) that max_pool accepts."""
    draw = check.generator.integers
    for _ in range(max(1, check.instances_wanted // 4)):
        window = int(draw(2, 4 if rank < 3 else 3))
        shape = (2, *draw(5, 8 if rank < 3 else 6, rank).tolist())
        yield (
            shape,
            {
                "window": window,
                "stride": int(draw(1, 4)),
                "padding": int(draw(0, window // 2 + 1)),
                "dilation": int(draw(1, 3)) if rank < 3 else 1,
                "ceil_mode": bool(draw(0, 2)),
            },
        )


def _naive_pool(
    x: np.ndarray,
    shape: tuple[int, ...],
    window: int,
    stride: int,
    padding: int,
    ceil_mode: bool,
    pick: Callable[[list[Any]], Any],
    dilation: int = 1,
) -> np.ndarray:
    """Pooling as it is defined: walk over every position, look at every cell, leave out those outside."""
    outs = []
    for size in shape[1:]:
        room = size + 2 * padding - dilation * (window - 1) - 1
        positions = -(-room // stride) + 1 if ceil_mode else room // stride + 1
        outs.append(positions - (ceil_mode and (positions - 1) * stride >= size + padding))
    images = x.reshape(-1, *shape)
    result = np.empty((len(images), shape[0], *outs), dtype=object)
    for where in np.ndindex(*outs):
        cells = []
        for offset in np.ndindex(*(window,) * len(outs)):
            cell = tuple(i * stride - padding + j * dilation for i, j in zip(where, offset, strict=True))
            if all(0 <= i < size for i, size in zip(cell, shape[1:], strict=True)):
                cells.append(cell)
        for n, c in np.ndindex(len(images), shape[0]):
            result[(n, c, *where)] = pick([images[(n, c, *cell)] for cell in cells])
    return result


def _cells(
    network: CanonicalNetwork, size: int, *, stride: int, padding: int | str = 0, dilation: int = 1
) -> list[list[int]]:
    """For each output of a window of 3 on (1, size, size), its cells inside the input, by the definition."""
    total = (
        max((-(-size // stride) - 1) * stride + 2 * dilation + 1 - size, 0) if padding == "same" else 2 * int(padding)
    )
    cells = []
    for _, *where in np.ndindex(*(network.output_shape or ())):
        rows, columns = (
            [p for j in range(3) if 0 <= (p := i * stride - total // 2 + j * dilation) < size] for i in where
        )
        cells.append([r * size + c for r in rows for c in columns])
    return cells


def _by_cells(x: np.ndarray, cells: list[list[int]], of: Callable[[Any], Any]) -> np.ndarray:
    return np.array([of(x[window]) for window in cells], dtype=object)


STATEMENTS: list[tuple[str, str, Callable[[Check], None], str | None]] = [
    ("Theorem 1", "average of n = affine, depth 0", average_is_affine, None),
    ("Theorem 1", "max of n = ReLU tree of depth ceil(log2 n)", maximum_is_a_tree, "3: max(x, y) = relu(x - y) + y"),
    ("Theorem 1", "max of n in any depth m >= log2 n", maximum_has_every_larger_depth, None),
    ("Theorem 1", "max pooling 1-D to 3-D, global", max_pooling_is_a_forest, "4: never padded with -inf"),
    ("Theorem 1", "average pooling 1-D to 3-D, global", average_pooling_is_affine, None),
    ("Depth", "max of 5 in 2 layers", maximum_of_five_has_depth_two, "5: ceil(log2 n) is not the least depth"),
    (
        "Depth",
        "max of 5, 12, 30, 75 in 2, 3, 4, 5 layers",
        maximum_of_twelve_has_depth_three,
        "5: ceil(log2 n) is not the least depth",
    ),
    (
        "Depth",
        "max of n = 4..9 in ceil(log3(n - 2)) + 1 layers",
        maximum_is_shallower_than_the_tree,
        "5: ceil(log2 n) is not the least depth",
    ),
    ("Theorem 2", "addition skip = concatenation, affine", merges(skips.add, range(1, 10), sum, sum), None),
    (
        "Theorem 2",
        "subtraction skip = concatenation, affine",
        merges(skips.subtract, [2], _difference, _difference),
        "1: the paper prints division",
    ),
    (
        "Theorem 2",
        "average skip = concatenation, affine",
        merges(skips.average, range(1, 10), _plain_mean, _plain_mean),
        None,
    ),
    ("Theorem 2", "division is not affine (witness)", division_is_not_linear, "1: the paper prints division"),
    (
        "Theorem 2",
        "maximum skip = relu(x - y) + y",
        merges(skips.maximum, range(2, 10), partial(np.max, axis=0), proofs.greatest, deep=True),
        None,
    ),
    (
        "Theorem 2",
        "minimum skip = y - relu(y - x)",
        merges(skips.minimum, range(2, 10), partial(np.min, axis=0), proofs.least, deep=True),
        None,
    ),
    ("Theorem 2", "product by log and exp, x > 0", product("log"), "2: positive inputs only"),
    ("Theorem 2", "product by squares, all x", product("squares"), "2: positive inputs only"),
    ("Keras", "dot by log and exp, x > 0", dot("log"), None),
    ("Keras", "dot by squares, all x", dot("squares"), None),
    ("Keras", "concatenate along any axis", concatenation_reorders, None),
    ("Proposition 1", "w . (a; b) = u . a + v . b, both ways", splitting_and_joining, None),
    (
        "Theorem 3",
        "addition to concatenation, many layers",
        converter(blocks.to_concatenation, ("add",), (1, 2), 3),
        None,
    ),
    (
        "Theorem 3",
        "concatenation to addition, many layers",
        converter(blocks.to_addition, ("concat",), (1, 2), 3),
        None,
    ),
    (
        "Theorem 4",
        "L-activation block in L single ones, concatenation",
        converter(blocks.to_single, ("concat",), (1, 2, 3, 4), 2),
        None,
    ),
    (
        "Theorem 4",
        "L-activation block in L single ones, addition",
        converter(lambda net: blocks.to_addition(blocks.to_single(net)), ("add",), (1, 2, 3, 4), 2),
        None,
    ),
    ("Theorem 4", "the printed weights for L = 2, any a", theorem_4_as_printed, None),
    ("Theorem 4", "the inclusion is strict (staircase)", theorem_4_is_strict, "6: the proof shows inclusion only"),
    (
        "Theorem 4",
        "the inclusion is strict (dimension, equal widths)",
        theorem_4_is_strict_by_dimension,
        "6: the proof shows inclusion only",
    ),
    ("Definition 1", "every block net has a canonical form", canonical_form_of_blocks, None),
    (
        "Rounding",
        "fl(relu(x - y) + y) within its bound (relative)",
        rounding_stays_within_the_bound,
        "4: error bound in float64",
    ),
]


def constructors() -> list[dict[str, Any]]:
    """Every pooling and merge under its Keras name, on a small input: depth, widths, ReLUs."""
    one, two, three = (4, 8), (4, 8, 8), (4, 8, 8, 8)
    built: list[tuple[str, str, str, CanonicalNetwork | ProductNetwork]] = []
    for rank, shape in enumerate((one, two, three), start=1):
        built += [
            ("pooling", f"MaxPooling{rank}D", f"window 2, {shape}", pooling.max_pool(shape, 2)),
            ("pooling", f"AveragePooling{rank}D", f"window 2, {shape}", pooling.average_pool(shape, 2)),
            ("pooling", f"GlobalMaxPooling{rank}D", f"{shape}", pooling.global_max_pool(shape)),
            ("pooling", f"GlobalAveragePooling{rank}D", f"{shape}", pooling.global_average_pool(shape)),
        ]
    for rank, shape in enumerate((one, two, three), start=1):
        built += [
            ("adaptive", f"AdaptiveMaxPooling{rank}D", f"to 5, {shape}", pooling.adaptive_max_pool(shape, 5)),
            ("adaptive", f"AdaptiveAveragePooling{rank}D", f"to 5, {shape}", pooling.adaptive_average_pool(shape, 5)),
        ]
    built += [
        (
            "pooling",
            "MaxPooling2D",
            f"window 3, stride 2, padding 1, {two}",
            pooling.max_pool(two, 3, stride=2, padding=1),
        ),
        (
            "pooling",
            "MaxPooling2D, shallow",
            f"window 3, stride 2, padding 1, {two}",
            pooling.max_pool(two, 3, stride=2, padding=1, shallow=True),
        ),
    ]
    for name, merge in (
        ("Add", skips.add),
        ("Average", skips.average),
        ("Maximum", skips.maximum),
        ("Minimum", skips.minimum),
        ("Concatenate", skips.concatenate),
    ):
        built += [("merge", name, f"{n} inputs (4,)", merge(*[(4,)] * n)) for n in (2, 3, 9)]
    built.append(("merge", "Subtract", "2 inputs (4,)", skips.subtract((4,), (4,))))
    for form in ("log", "squares"):
        built += [
            ("merge", f"Multiply, {form}", f"{n} inputs (4,)", skips.multiply(*[(4,)] * n, form=form))
            for n in (2, 3, 9)
        ]
        built.append(("merge", f"Dot, {form}", "2 inputs (4,)", skips.dot((4,), (4,), axes=1, form=form)))
    return [
        {
            "kind": kind,
            "name": name,
            "instance": instance,
            "depth": network.depth,
            "widths": list(network.widths),
            "relu_count": network.relu_count if isinstance(network, CanonicalNetwork) else None,
            "activations": sorted(set(network.activations))
            if isinstance(network, ProductNetwork)
            else ["relu"] * (network.depth > 0),
        }
        for kind, name, instance, network in built
    ]


def main(*, out: Path | None = None, all: bool = False, instances: int = 20, seed: int = 0) -> int:
    """Check every statement of the paper and print one row for each; exit 1 if one fails.

    Args:
        out: JSON file for the rows and the table of all constructors.
        all: also run the proofs and instances that take longer.
        instances: random instances of each statement, where there is a choice.
        seed: of the random instances.
    """
    rows: list[dict[str, Any]] = []
    print(f"{'item':<14}{'statement':<52}{'instances':>10}{'max error':>11}  {'exact':<6}{'proved':<7}")
    for number, (item, statement, run, erratum) in enumerate(
        tqdm(STATEMENTS, desc="verify", leave=False, disable=None)
    ):
        check = Check(np.random.default_rng([seed, number]), instances, all)
        run(check)
        rows.append(
            {
                "item": item,
                "statement": statement,
                "instances": check.instances,
                "max_error": check.max_error,
                "exact": check.exact,
                "proved": check.proved,
                "holds": check.holds,
                "erratum": erratum,
            }
        )
        error = "-" if check.max_error is None else f"{check.max_error:.1e}"
        words = {True: "yes", False: "NO", None: "-"}
        failed = "" if check.holds else "  FAILS"
        verdict = f"{words[check.exact]:<6}{words[check.proved]:<7}{failed}"
        tqdm.write(f"{item:<14}{statement:<52}{check.instances:>10}{error:>11}  {verdict}")
    if out is not None:
        write_json(out, {"statements": rows, "constructors": constructors()})
    return 0 if {row["holds"] for row in rows} == {True} else 1
