"""What is checked of Theorem 3, Theorem 4 and Definition 1: block nets and their converters."""

from collections.abc import Callable, Iterable
from itertools import pairwise

import numpy as np

from skipform.theory import blocks, proofs
from skipform.theory.blocks import Block, BlockNet
from skipform.theory.check import Check

# draw(name, *shape) -> entries: `Check.weights` draws Fractions, `proofs.symbols` makes symbols.
Draw = Callable[..., np.ndarray]


def addition_becomes_concatenation(check: Check) -> None:
    _converter_keeps_the_function(check, blocks.to_concatenation, "add", lengths=(1, 2), count=3)


def concatenation_becomes_addition(check: Check) -> None:
    _converter_keeps_the_function(check, blocks.to_addition, "concat", lengths=(1, 2), count=3)


def single_activations_suffice_for_concatenation(check: Check) -> None:
    _converter_keeps_the_function(check, blocks.to_single, "concat", lengths=(1, 2, 3, 4), count=2)


def single_activations_suffice_for_addition(check: Check) -> None:
    def to_single_addition(net: BlockNet) -> BlockNet:
        return blocks.to_addition(blocks.to_single(net))

    _converter_keeps_the_function(check, to_single_addition, "add", lengths=(1, 2, 3, 4), count=2)


def activations_may_differ(check: Check) -> None:
    """Theorem 3 with two activations: both conversions keep the function if the layers have f and g in turn.

    Proved for all f and g, and compared in fractions with f = relu, g(t) = t^2.
    """
    activations = (lambda t: np.where(t <= 0, t * 0, t), np.square)
    for convert, merge in ((blocks.to_concatenation, "add"), (blocks.to_addition, "concat")):
        for _ in range(max(1, check.repetitions // 4)):
            net = _block_net(check.weights, merge, 2, count=3, width=3)
            x = check.rationals(8, 2)
            first, second = (one(x, proofs.in_turn(activations)) for one in (net, convert(net)))
            check.exactly_equal(second, first)
            check.instances += 1
        for length in (1, 2):
            symbolic = _block_net(proofs.symbols, merge, length, count=2, width=2)
            check.proof(proofs.same_net(symbolic, convert(symbolic), functions=2))


def blocks_have_a_canonical_form(check: Check) -> None:
    for merge in ("concat", "add"):
        for activations in (1, 2, 3, 4):
            net = _block_net(check.weights, merge, activations, count=2, width=3)
            network = blocks.canonical(net)
            check.nets_equal(net, network)
            check.require(network.depth == 2 * activations)


def printed_weights_hold_for_every_a(check: Check) -> None:
    """Theorem 4 for L = 2 with the weights that the paper prints, whatever the affine map a in them."""

    def nets(draw: Draw) -> tuple[BlockNet, BlockNet]:
        w0, w1, u, v, a = (
            _layer(draw, name, m, d)
            for name, m, d in (("w0", 3, 2), ("w1", 2, 3), ("u", 1, 2), ("v", 1, 2), ("a", 1, 3))
        )
        double = BlockNet(blocks.eye(2), (Block((w0, w1, blocks.eye(2))),), (np.hstack([u[0], v[0]]), u[1] + v[1]))
        return double, blocks.two_activations_as_printed(w0, w1, u, v, a)

    for _ in range(check.repetitions):
        check.nets_equal(*nets(check.weights))
    check.proof(proofs.same_net(*nets(proofs.symbols)))


def inclusion_is_strict_by_slopes(check: Check) -> None:
    """The staircase has L + 1 slopes, a chain of L activations at most two: for no weights are they equal."""
    for activations in range(2, 6):
        net = blocks.staircase(activations)
        steps = np.arange(-1, activations + 1)[:, None]
        values = net(steps)[:, 0]
        check.require(len(set(np.diff(values).tolist())) == activations + 1)
        a, (u, v) = proofs.symbols("a", activations), proofs.symbols("u", 2)
        check.proof(len(blocks.chain_slopes(a, u, v)) == 2)
        check.instances += 1


def inclusion_is_strict_by_dimension(check: Check) -> None:
    """At equal widths the single blocks reach a rank above the number of weights of the L-activation block.

    The rank at some weights is a lower bound of the dimension, so weights are drawn until one is high enough.
    """
    longer = [(2, 2, 2), (3, 2, 3)] if check.thorough else []
    for d, width, activations in ((2, 1, 2), (3, 2, 2), (2, 1, 3), *longer):
        weights_of_one_block = (d + 1) * width + (activations - 1) * (width + 1) * width + width + d + 1
        largest_rank = 0
        for _ in range(20):
            net = _single_activation_net(check, d, width, activations)
            largest_rank = max(largest_rank, proofs.dimension_reached(net, check.generic(50, d)))
            if largest_rank > weights_of_one_block:
                break
        check.instances += 1
        check.proof(largest_rank > weights_of_one_block)


def _single_activation_net(check: Check, d: int, width: int, count: int) -> BlockNet:
    """`count` blocks of one activation on R^d with concatenation skips and weights in general position."""
    built, size = [], d
    for _ in range(count):
        weight, bias = check.generic(width, size), check.generic(width)
        weight[:, : size - d] = np.abs(weight[:, : size - d])  # else a later ReLU may be off everywhere
        built.append([(weight, bias), blocks.eye(width)])
        size += width
    return BlockNet.of(built, (check.generic(1, size), check.generic(1)), merge="concat")


def _converter_keeps_the_function(
    check: Check, convert: Callable[[BlockNet], BlockNet], merge: str, *, lengths: Iterable[int], count: int
) -> None:
    """On nets of `count` blocks with L activations, L in lengths; proved on two blocks of width 2 for every f."""
    for activations in lengths:
        for _ in range(max(1, check.repetitions // 4)):
            net = _block_net(check.weights, merge, activations, count=count, width=3)
            check.nets_equal(net, convert(net))
        symbolic = _block_net(proofs.symbols, merge, activations, count=2, width=2)
        check.proof(proofs.same_net(symbolic, convert(symbolic)))


def _block_net(draw: Draw, merge: str, activations: int, *, count: int, width: int) -> BlockNet:
    """A net of `count` blocks on R^2 whose weights are drawn; blocks with addition skips keep their width."""
    size, built = 2, []
    for k in range(count):
        sizes = [size] + [width] * activations + [size if merge == "add" else width]
        built.append([_layer(draw, f"w{k}{level}", m, d) for level, (d, m) in enumerate(pairwise(sizes))])
        size = size if merge == "add" else size + width
    return BlockNet.of(built, _layer(draw, "r", 1, size), merge=merge)


def _layer(draw: Draw, name: str, m: int, d: int) -> blocks.Layer:
    return draw(name, m, d), draw(name + "b", m)
