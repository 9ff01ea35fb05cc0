"""The blocks that nets share, and special properties of single nets."""

import math
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from skipform import nets
from skipform.nets.blocks import Gated, Merge, ZeroPadded
from skipform.nets.densenet import Checkpointed
from skipform.nets.fractalnet import FractalNet, Join
from skipform.nets.pooled import MaximumByReLU

KERAS = {  # the merge layers' definitions, entry by entry
    "add": lambda x, y: x + y,
    "subtract": lambda x, y: x - y,
    "multiply": lambda x, y: x * y,
    "average": lambda x, y: (x + y) / 2,
    "maximum": max,
    "minimum": min,
}


@given(
    kind=st.sampled_from(sorted(KERAS)), values=st.lists(st.tuples(*[st.integers(-9, 9)] * 2), min_size=1, max_size=8)
)
def test_a_merge_is_its_keras_definition_entry_by_entry(kind, values):
    x, y = (torch.tensor(column, dtype=torch.float64)[None] for column in zip(*values, strict=True))
    expected = [KERAS[kind](a, b) for a, b in values]
    assert Merge(kind, len(values), nn.Linear)(x, y).squeeze(0).tolist() == expected


def test_a_concatenating_net_starts_as_the_adding_one():
    torch.manual_seed(0)
    added = nets.build("resnet", depth=8, width=4).double().eval()
    torch.manual_seed(0)
    concatenated = nets.build("resnet", depth=8, width=4, skip="concat").double().eval()
    weights = concatenated.state_dict() | added.state_dict()
    concatenated.load_state_dict(weights)
    x = torch.randn(2, 3, 9, 9, dtype=torch.float64)
    assert torch.equal(concatenated(x), added(x))  # x + y and 1 x + 1 y, other terms 0: no rounding apart


def test_the_plain_twin_has_the_same_weights_and_no_skip():
    torch.manual_seed(0)
    residual = nets.build("resnet", depth=8, width=4)
    torch.manual_seed(0)
    plain = nets.build("resnet", depth=8, width=4, skip="none")
    assert all(torch.equal(a, b) for a, b in zip(residual.parameters(), plain.parameters(), strict=True))
    block = plain.stages[0][0]
    x = torch.randn(2, 4, 8, 8)
    assert torch.equal(block(x), torch.relu(block.branch(x)))


@given(h=st.integers(1, 7), w=st.integers(1, 7), stride=st.integers(1, 3), extra=st.integers(0, 3))
def test_the_zero_padded_shortcut_keeps_every_sth_pixel_and_adds_zeros(h, w, stride, extra):
    x = torch.randn(2, 3, h, w)
    y = ZeroPadded(3, 3 + extra, stride)(x)
    assert y.shape == (2, 3 + extra, math.ceil(h / stride), math.ceil(w / stride))
    assert all(
        torch.equal(y[:, :3, i, j], x[:, :, i * stride, j * stride])
        for i in range(y.shape[2])
        for j in range(y.shape[3])
    )
    assert not y[:, 3:].any()


class Constant(nn.Module):
    def __init__(self, value: float):
        super().__init__()
        self.value = value

    def forward(self, x: Tensor) -> Tensor:
        return torch.full_like(x, self.value)


def test_the_highway_is_a_convex_mean_of_branch_and_shortcut():
    x = torch.randn(5, 3, dtype=torch.float64)
    for t in (0.0, 0.25, 1.0):
        actual = Gated(nn.ReLU(), nn.Identity(), Constant(t))(x)
        torch.testing.assert_close(
            actual, t * torch.relu(x) + (1 - t) * x, rtol=0, atol=1e-15
        )  # entries of size 1: ulps


@pytest.mark.parametrize(("body", "bias", "depth"), [("convolution", -2.0, 19), ("block", -6.0, 8)])
def test_a_highways_gates_start_at_the_bias_they_are_given(body, bias, depth):
    net = nets.build("highway", depth=depth, width_factor=0.25, body=body, gate_bias=bias)
    gates = [module.gate for module in net.modules() if isinstance(module, Gated)]
    assert gates
    assert all(bool((gate[-2].bias == bias).all()) for gate in gates)


def test_stochastic_depth_grows_linearly_to_its_last_block():
    net = nets.build("resnet", depth=14, width=4, stochastic_depth=0.5)
    rates = [module.p for module in net.modules() if isinstance(module, StochasticDepth)]
    assert rates == [0.5 * block / 6 for block in range(1, 7)]
    net.eval()
    twin = nets.build("resnet", depth=14, width=4).eval()
    twin.load_state_dict(net.state_dict())
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(net(x), twin(x))


@given(
    size=st.integers(1, 4), c=st.integers(1, 3), h=st.integers(4, 9), w=st.integers(4, 9), seed=st.integers(0, 2**31)
)
def test_the_relu_maximum_is_the_maximum_and_has_log2_layers(size, c, h, w, seed):
    pool = MaximumByReLU(c, size, trainable=False)
    x = torch.randint(
        -3, 4, (2, c, h, w), generator=torch.Generator().manual_seed(seed)
    ).float()  # integers: no rounding
    assert torch.equal(pool(x), F.max_pool2d(x, size)) if size > 1 else torch.equal(pool(x), x)
    assert len(pool.difference) == math.ceil(math.log2(size**2))


def test_only_the_trainable_construction_of_the_maximum_trains():
    frozen, free = (nets.build("pooled", width=4, pool=pool) for pool in ("relu", "relu-trainable"))
    free.load_state_dict(frozen.state_dict())
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(frozen(x), free(x))
    built = [key for key, p in free.named_parameters() if ".difference." in key or ".carry." in key]
    assert [key for key, p in frozen.named_parameters() if not p.requires_grad] == built
    assert all(p.requires_grad for p in free.parameters())


def test_checkpointing_changes_neither_gradients_nor_statistics():
    plain, thrifty = (
        nets.build("densenet", depth=10, growth=4, bottleneck=True, compression=0.5, memory_efficient=m).double()
        for m in (False, True)
    )
    assert any(isinstance(module, Checkpointed) for module in thrifty.modules())
    thrifty.load_state_dict(plain.state_dict())
    x = torch.randn(4, 3, 8, 8, dtype=torch.float64)
    for net in (plain, thrifty):
        net.train()
        net(x).square().sum().backward()
    for (key, a), (_, b) in zip(plain.state_dict().items(), thrifty.state_dict().items(), strict=True):
        assert torch.equal(a, b), key
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(plain.parameters(), thrifty.parameters(), strict=True))


def fractal(**arguments) -> FractalNet:
    torch.manual_seed(0)
    net = nets.build("fractalnet", blocks=2, columns=3, width=4, **arguments).double()
    net.train()
    with torch.no_grad():
        for _ in range(20):
            net(torch.randn(8, 3, 8, 8, dtype=torch.float64))
    return net.eval()


def test_a_fractal_block_is_the_papers_recursion_with_meeting_joins_made_one():
    net = fractal()

    def ends(columns: nn.ModuleList, c: int, z: Tensor, step: int) -> list[Tensor]:
        """What arrives at the join where column c's convolution, begun at `step`, ends: conv(z), then f_{C-1} of it."""
        own = columns[c][step >> (len(columns) - 1 - c)](z)
        if c == len(columns) - 1:
            return [own]
        inner = ends(columns, c + 1, z, step)
        half = 2 ** (len(columns) - 2 - c)
        return [own, *ends(columns, c + 1, sum(inner) / len(inner), step + half)]

    x = z = torch.randn(3, 3, 8, 8, dtype=torch.float64)
    for block in net.blocks:
        last = [F.max_pool2d(end, 2) for end in ends(block.columns, 0, z, 0)]
        z = sum(last) / len(last)
    torch.testing.assert_close(net(x), net.head(z), rtol=1e-12, atol=1e-12)  # the same sums, a few ulp


@pytest.mark.parametrize("column", [0, 1, 2])
def test_a_mini_batch_that_follows_a_column_sees_that_plain_net(column):
    net = fractal(global_ratio=1.0)
    x = torch.randn(4, 3, 8, 8, dtype=torch.float64)
    z = x
    for block in net.blocks:
        z = block(z, torch.tensor(column))
    torch.testing.assert_close(net.head(z), net.column(column)(x), rtol=1e-12, atol=1e-12)
    convolutions = [m for m in net.column(column).modules() if isinstance(m, nn.Conv2d)]
    assert len(convolutions) == 2 * 2**column


@given(drop=st.floats(0, 1), columns=st.integers(2, 4), seed=st.integers(0, 2**31))
def test_local_drop_path_keeps_at_least_one_column_and_averages_what_it_keeps(drop, columns, seed):
    torch.manual_seed(seed)
    values = [torch.full((16, 1, 1, 1), 2.0**j) for j in range(columns)]
    join = Join(0, drop)
    means_drawn = [join(values, torch.tensor(-1)).flatten() for _ in range(16)]
    assert all(bool((mean == mean[0]).all()) for mean in means_drawn)  # drawn once for a mini-batch
    actual = torch.stack(means_drawn)[:, 0]
    subsets = [[2.0**j for j in range(columns) if kept >> j & 1] for kept in range(1, 2**columns)]
    means = torch.tensor([sum(subset) / len(subset) for subset in subsets])
    assert all(bool(torch.isclose(means, value, rtol=1e-6).any()) for value in actual)  # float32
    if drop == 0:
        assert bool(torch.isclose(actual, means[-1], rtol=1e-6).all())


def test_a_fractal_layer_drops_entries_between_its_convolution_and_batch_norm():
    net = nets.build("fractalnet", blocks=2, columns=1, width=4, dropout=0.1)
    layers = [[*block.columns[0][0]] for block in net.blocks]
    assert [[type(layer) for layer in layer_list] for layer_list in layers] == [
        [nn.Conv2d, nn.Dropout, nn.BatchNorm2d, nn.ReLU]
    ] * 2
    assert [layer_list[1].p for layer_list in layers] == [0.0, 0.1]


def test_a_dense_layer_drops_after_every_convolution():
    """As in the authors' code: after both convolutions of a bottleneck, and after the one of a transition."""
    net = nets.build("densenet", depth=16, growth=4, bottleneck=True, compression=0.5, dropout=0.2)
    layers = [type(module) for module in net.modules() if not [*module.children()]]
    after = [b for a, b in pairwise(layers) if a is nn.Conv2d]
    assert after.count(nn.Dropout) == len(after) - 1  # not after the stem


def test_the_fields_of_the_32_layer_highway_net_alternate():
    net = nets.build("highway", depth=32)
    fields = [m.kernel_size[0] for stage in net.stages for m in stage.modules() if isinstance(m, nn.Conv2d)]
    assert len(fields) == 3 * (1 + 2 * 9)
    body = [fields[1 + 19 * s + 2 * i] for s in range(3) for i in range(9)]  # H; T has the same field
    assert body == ([1, 3] * 4 + [1]) * 3


def test_addition_blocks_copy_concatenation_blocks():
    """Theorem 3: v lifts x to (x; 0; 0), u_k writes B_k into its own slot, w reads the slots."""
    torch.manual_seed(0)
    p, d, sizes = 5, 12, {"in_channels": 3, "image_size": 2, "width": 5, "num_classes": 4}
    source = nets.build("activation_blocks", skip="concat", **sizes).double()
    copy = nets.build("activation_blocks", skip="add", **sizes).double()
    one, two = source[1].branch[0], source[2].branch[0]  # reads x; reads (B_1; x)
    order = [
        *range(d + p, d + 2 * p),
        *range(d, d + p),
        *range(d),
    ]  # where (B_2; B_1; x) lies in the state (x; B_1; B_2)
    eye = torch.eye(d + 2 * p, dtype=torch.float64)
    with torch.no_grad():
        for parameter in copy.parameters():
            parameter.zero_()
        copy[1].weight.copy_(eye[:, :d])
        for k, (block, layer) in enumerate(((copy[2], one), (copy[3], two))):
            first, last = block.branch[0], block.branch[2]
            first.weight[:, order[-layer.in_features :]] = layer.weight
            first.bias.copy_(layer.bias)
            last.weight.copy_(eye[:, d + k * p : d + (k + 1) * p])
        copy[4].weight[:, order] = source[3].weight
        copy[4].bias.copy_(source[3].bias)
    x = torch.randn(50, 3, 2, 2, dtype=torch.float64)
    # the same products, summed in another order: below 40 terms of size 1, an ulp each
    torch.testing.assert_close(copy(x), source(x), rtol=0, atol=1e-13)


def test_two_single_activation_blocks_contain_one_double_block():
    """Theorem 4, L = 2: w_0 = w_0', w_1 = diag(w_1', w_0'), w_2 = (u', a, -a, v')."""
    torch.manual_seed(0)
    sizes = {"in_channels": 3, "image_size": 2, "num_classes": 4}
    p, q, d = 5, 3, 12
    double = nets.build("activation_blocks", blocks=1, activations=2, width=(p, q), **sizes).double()
    single = nets.build("activation_blocks", blocks=2, activations=1, width=(p, q + p), **sizes).double()
    w0, w1, w2 = double[1].branch[0], double[1].branch[2], double[2]
    a = torch.randn(4, p, dtype=torch.float64)
    with torch.no_grad():
        single[1].branch[0].load_state_dict(w0.state_dict())
        one = single[2].branch[0]  # reads (relu w_0 x; x)
        one.weight.copy_(torch.block_diag(w1.weight, w0.weight))
        one.bias.copy_(torch.cat((w1.bias, w0.bias)))
        u, v = w2.weight.split((q, d), 1)
        single[3].weight.copy_(torch.cat((u, a, -a, v), 1))  # reads (relu w_1' relu w_0' x; relu w_0' x; relu w_0 x; x)
        single[3].bias.copy_(w2.bias)
    x = torch.randn(50, 3, 2, 2, dtype=torch.float64)
    torch.testing.assert_close(single(x), double(x), rtol=0, atol=1e-13)  # below 40 terms of size 1, an ulp each
