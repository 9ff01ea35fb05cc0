"""Theorem 3 and Theorem 4: converters between block nets, on fractions and on torch weights."""

from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from skipform.errors import SkipformError
from skipform.nets import activation_blocks
from skipform.theory import blocks, proofs, rounding
from skipform.theory.blocks import Block, BlockNet


def rationals(generator, *shape):
    """Fractions from -3 to 3, many of them zero or equal."""
    entries = [Fraction(int(p), int(q)) for p, q in generator.integers([-6, 1], [7, 4], (int(np.prod(shape)), 2))]
    return np.array(entries, dtype=object).reshape(shape)


def layer(generator, m, d):
    return rationals(generator, m, d), rationals(generator, m)


@st.composite
def block_nets(draw, merges=("concat", "add", "projection")):
    """A net whose blocks differ in length, width and skip, on one to three numbers; and an input."""
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    size = draw(st.integers(1, 3))
    x = rationals(generator, size)
    built = []
    for _ in range(draw(st.integers(0, 3))):
        merge = draw(st.sampled_from(merges))
        activations = draw(st.integers(1, 3))
        out = size if merge == "add" else draw(st.integers(1, 2))
        sizes = [size, *(draw(st.integers(1, 2)) for _ in range(activations)), out]
        shortcut = {"concat": None, "add": blocks.eye(size), "projection": layer(generator, out, size)}[merge]
        built.append(Block(tuple(layer(generator, m, d) for d, m in pairwise(sizes)), shortcut))
        size = size + out if merge == "concat" else out
    return BlockNet(blocks.eye(len(x)), tuple(built), layer(generator, 2, size)), x


def units(net):
    return [len(w[1]) for block in net.blocks for w in block.layers[:-1]]


@settings(max_examples=40, deadline=None)
@given(block_nets())
def test_every_skip_becomes_a_concatenation_skip_with_the_same_relus(case):
    net, x = case
    converted = blocks.to_concatenation(net)
    assert all(block.shortcut is None for block in converted.blocks)
    assert units(converted) == units(net)
    assert (converted(x) == net(x)).all()


@settings(max_examples=40, deadline=None)
@given(block_nets())
def test_every_skip_becomes_an_identity_addition_skip_with_the_same_relus(case):
    net, x = case
    converted = blocks.to_addition(net)
    for block in converted.blocks:
        weight, bias = block.shortcut
        assert (weight == np.eye(len(weight))).all()
        assert not bias.any()
    assert units(converted) == units(net)
    assert (converted(x) == net(x)).all()


@settings(max_examples=40, deadline=None)
@given(block_nets())
def test_blocks_of_l_activations_embed_into_l_blocks_of_one_each(case):
    net, x = case
    single = blocks.to_single(net)
    assert [block.activations for block in single.blocks] == [1] * sum(block.activations for block in net.blocks)
    assert units(single) == units(net)
    assert (single(x) == net(x)).all()
    assert (blocks.to_addition(single)(x) == net(x)).all()


@settings(max_examples=40, deadline=None)
@given(block_nets())
def test_every_block_net_is_a_canonical_network(case):
    net, x = case
    network = blocks.canonical(net)
    assert network.is_exact
    assert network.depth == sum(block.activations for block in net.blocks)
    assert list(network.widths) == units(net)
    assert (network(x) == net(x)).all()


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_the_printed_weights_of_theorem_4_work_for_every_a(seed):
    generator = np.random.default_rng(seed)
    w0, w1, u, v, a = (layer(generator, m, d) for m, d in ((2, 2), (2, 2), (1, 2), (1, 2), (1, 2)))
    x = rationals(generator, 2)
    relu = lambda t: np.where(t <= 0, t * 0, t)  # noqa: E731
    wanted = u[0] @ relu(w1[0] @ relu(w0[0] @ x + w0[1]) + w1[1]) + u[1] + v[0] @ x + v[1]
    assert (blocks.two_activations_as_printed(w0, w1, u, v, a)(x) == wanted).all()


@pytest.mark.parametrize("activations", [2, 3, 4, 6])
def test_the_inclusion_of_theorem_4_is_strict(activations):
    """The staircase of L single blocks has L + 1 slopes; one block of L activations of width one has at most two."""
    steps = np.arange(-2, activations + 2)[:, None]
    slopes = np.diff(blocks.staircase(activations)(steps)[:, 0])
    assert set(slopes.tolist()) == set(range(activations + 1))
    generator = np.random.default_rng(activations)
    grid = np.linspace(-20, 20, 4001)[:, None]
    for _ in range(20):
        w = generator.normal(size=(activations + 2, 2))
        chain = [(row[:1, None], row[1:]) for row in w[:-1]]
        net = BlockNet(blocks.eye(1), (Block(tuple(chain), blocks.eye(1)),), (w[-1:, :1], w[-1, 1:]))
        slopes = np.diff(net(grid)[:, 0]) / 0.01
        distinct = slopes[np.abs(np.diff(slopes, prepend=np.inf)) < 1e-6]  # grid cells without a breakpoint
        assert len(np.unique(np.round(distinct, 5))) <= 2


def test_two_single_blocks_reach_more_dimensions_than_one_double_block_has_weights():
    """On R^2 at width one: 12 weights less two scalings of ReLUs make 10 dimensions, against 9 weights."""
    generator = np.random.default_rng(2)

    def generic(*shape):
        return np.vectorize(lambda p: Fraction(int(p), 97))(generator.integers(-200, 201, shape))

    points = generic(60, 2)
    first, second = (generic(1, 2), generic(1)), (abs(generic(1, 3)), generic(1))
    single = BlockNet.of([[first, blocks.eye(1)], [second, blocks.eye(1)]], (generic(1, 4), generic(1)), merge="concat")
    assert proofs.dimension_reached(single, points) == 10
    middle = generic(1, 1), generic(1)
    double = BlockNet.of([[first, middle, blocks.eye(1)]], (generic(1, 3), generic(1)), merge="concat")
    weights = sum(array.size for pair in (first, middle, double.readout) for array in pair)
    assert proofs.dimension_reached(double, points) <= weights == 9


@pytest.mark.parametrize("skip", ["concat", "add"])
@pytest.mark.parametrize("activations", [1, 2, 3])
def test_trained_torch_weights_convert_both_ways(skip, activations):
    """The nets of `nets.activation_blocks`, read into blocks, converted, and written into the other kind of net."""
    shape = {"blocks": 2, "activations": activations, "width": 5, "num_classes": 4}
    options = {"in_channels": 1, "image_size": 3, **shape}
    torch.manual_seed(0)
    module = activation_blocks.build(**options, skip=skip).double()
    x = torch.randn(16, 1, 3, 3, dtype=torch.float64)
    net = read(module, skip)
    if skip == "concat":
        other = activation_blocks.build(**options, skip="add").double()
    else:  # a concatenation net has no stem: it starts from the state
        other = activation_blocks.build(in_channels=len(net.stem[1]), image_size=1, **shape).double()
    converted = blocks.to_addition(net) if skip == "concat" else blocks.to_concatenation(net)
    write(converted, other, "add" if skip == "concat" else "concat")
    flat = x.flatten(1)
    state = flat if skip == "concat" else module[1](flat)
    wanted = module(x).detach().numpy()
    got = other(state[:, :, None, None] if skip == "add" else x).detach().numpy()
    # Two nets, each within the bound of theory.rounding.
    bound = rounding.block_bound(net, flat.numpy()) + rounding.block_bound(converted, flat.numpy())
    assert (np.abs(got - wanted) <= bound).all()


def read(module, skip):
    """BlockNet of an activation_blocks net."""
    linears = [[m for m in child.modules() if isinstance(m, torch.nn.Linear)] for child in module]
    linears = [group for group in linears if group]
    stem = linears.pop(0)[0] if skip == "add" else None
    *inner, (readout,) = linears
    ends = [[] if skip == "add" else [blocks.eye(group[-1].out_features)] for group in inner]
    return BlockNet.of([a + b for a, b in zip(inner, ends, strict=True)], readout, merge=skip, stem=stem)


def write(net, module, skip):
    """Copy the weights of a BlockNet into an activation_blocks net of the same shape."""
    maps = [net.stem] if skip == "add" else []
    maps += [w for block in net.blocks for w in (block.layers if skip == "add" else block.layers[:-1])]
    linears = [m for m in module.modules() if isinstance(m, torch.nn.Linear)]
    for linear, (weight, bias) in zip(linears, [*maps, net.readout], strict=True):
        with torch.no_grad():
            linear.weight.copy_(torch.from_numpy(np.asarray(weight, dtype=np.float64)))
            linear.bias.copy_(torch.from_numpy(np.asarray(bias, dtype=np.float64)))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: BlockNet.of([], blocks.eye(2), merge="mean"), "merge 'mean'; 'concat' or 'add'"),
        (lambda: BlockNet.of([[blocks.eye(2)]], blocks.eye(2), merge="add"), "block 0 has 1 affine maps; at least 2"),
        (lambda: BlockNet.of([[blocks.eye(2)] * 2], blocks.eye(2), merge="concat"), "the readout has weight"),
        (
            lambda: BlockNet(blocks.eye(2), (Block((blocks.eye(2),) * 2, blocks.eye(3)),), blocks.eye(2)),
            "the shortcut of block 0 has weight",
        ),
    ],
)
def test_blocks_that_do_not_chain_are_refused_in_one_line(build, message):
    with pytest.raises(SkipformError, match=message) as error:
        build()
    assert "\n" not in str(error.value)
