"""Modules that tempt the compiler to return a wrong network without an error: each is rewritten right or refused.

What is refused is refused with check=False too, so not by the comparison but by the rules and the capture; what is
right is compared at batch sizes, magnitudes and kinks that the check does not use. Tolerances as in
test_compiler_rules.py: 1e-12 relative, sums of at most a few hundred products in float64.
"""

import functools

import pytest
import torch
import torch.nn.functional as F
from test_compiler_rules import Function, numbers
from torch import nn
from torch.nn.utils import parametrizations, prune

from skipform.compiler.flatten import canonical
from skipform.compiler.rewrite import rewrite
from skipform.errors import SkipformError

TOLERANCE = 1e-12
fixed = functools.cache(numbers)  # export takes no generator: every tensor is drawn before
W, V = numbers(4, 3), numbers(4, 4)
INFINITY = float("inf")


class Holder(nn.Module):
    """A function of the module itself and of tensors; tensors among the attributes are buffers."""

    def __init__(self, function, **attributes):
        super().__init__()
        self.function = function
        for name, value in attributes.items():
            plain = isinstance(value, nn.Parameter) or not isinstance(value, torch.Tensor)
            setattr(self, name, value) if plain else self.register_buffer(name, value)

    def forward(self, *inputs):
        return self.function(self, *inputs)


def points(*shapes):
    """Inputs of several batch sizes and magnitudes, and of whole numbers, where ReLUs and maxima have their kinks."""
    generator = torch.Generator().manual_seed(7)
    for batch, size in ((1, 1.0), (2, 1e4), (5, 1e-6), (16, 1.0)):
        yield [size * torch.randn(batch, *shape, generator=generator, dtype=torch.float64) for shape in shapes]
    yield [torch.randint(-2, 3, (4, *shape), generator=generator).double() for shape in shapes]
    yield [torch.zeros(3, *shape, dtype=torch.float64) for shape in shapes]


@torch.no_grad()
def assert_same(module, plain, *shapes):
    for inputs in points(*shapes):
        size = max([1.0, *(float(x.abs().max()) for x in inputs if x.numel())])  # 1: weights and bounds
        theirs, ours = (torch.utils._pytree.tree_leaves(f(*(x.clone() for x in inputs))) for f in (module, plain))
        for position, (a, b) in enumerate(zip(theirs, ours, strict=True)):
            if not isinstance(a, torch.Tensor):
                assert a == b, position
                continue
            assert (a.shape, a.dtype) == (b.shape, b.dtype), position
            if a.numel():
                assert (a.double() - b.double()).abs().max() <= TOLERANCE * max(a.double().abs().max(), size), position


# -- what is right -----------------------------------------------------------------------------------------------


def through_views(x):
    y = x + 0
    y[:, 0] += 1
    y[:, 1:].mul_(2)
    y.transpose(1, 2)[:, 0].relu_()
    y.view(x.shape[0], -1)[:, 3].fill_(5)
    y.flatten(1)[:, -2:].clamp_(0, 1)
    torch.diagonal(y, dim1=1, dim2=2).add_(1)
    y[:, [0, 2]] = y[:, [1, 3]]
    y[:, ::2] = x[:, 1::2]
    y.contiguous().add_(1)
    y.reshape(x.shape[0], -1).mul_(2)
    y.transpose(1, 2).reshape(x.shape[0], -1).add_(100)  # a copy
    y.to(x.dtype).add_(1)
    y.detach().sub_(x)
    F.relu_(y)
    return y


def einsum_is_a_view(x):
    y = x * 2
    torch.einsum("bij->bji", y).add_(1)
    return y


def swapped(x):
    y = x * 2
    y[:, 0], y[:, 1] = y[:, 1], y[:, 0]
    first, second = y.chunk(2, 1)
    first.add_(second)
    old = y[:, 0] + 0
    y.add_(1)
    return y, old, first


def written_to(x):
    y = torch.empty_like(x)
    torch.add(x, 1, out=y)
    z = torch.zeros_like(x)
    z[:, 1].copy_(x[:, 0])
    z[:, 0] = W[0, 0]
    return y, z, torch.select_scatter(x, x[:, 0] * 2, 1, 2), torch.slice_scatter(x, x[:, :2] * 3, 1, 0, 4, 2)


def on_itself(x):
    y = x * 2
    z = y.add_(y).sub_(y.relu())
    w = z.mul_(2)
    y.fill_(3)
    return y, z, w


def affine_maps(x):
    y, s = F.linear(x, fixed(5, 3)), x + x.relu()
    return [
        *(y, y * 2, y + 1, (y + 1) * 3, y * fixed(5) + y),
        *(s, s + x, s - x.abs(), s + s, s - (x + x.relu()), (s + 2 * (x - 3 * s)) - s),
        *(torch.add(W, x, alpha=2), torch.sub(W, x, alpha=-2), torch.rsub(x, 3, alpha=2), torch.add(x, W, alpha=0.5)),
        *(torch.addmm(fixed(3), x[:, 0], V[:3, :3], beta=-2, alpha=0.5), fixed(2, 4) @ x, fixed(4) @ x),
        *(x[:, None] @ fixed(2, 3, 5), fixed(2, 5, 4) @ x[:, None], torch.outer(x[:, 0, 0], V[0])),
        *(torch.einsum("bij,jk", x, W.T), torch.einsum("ij,bjk->kbi", fixed(2, 4), x), F.linear(x, fixed(3))),
        torch.einsum("bij,kk->b", x, V),
        torch.einsum(x, [0, 1, 2], W, [3, 2], [0, 3]),
        x.cumsum(-2) + x.cumsum(-1),
        torch.cummax(x, -1)[0] - torch.cummin(x, -2)[0],
        x * torch.ones_like(x).mean() + torch.ones_like(x).mean(0),
    ]


def convolutions(x):
    return [
        F.conv2d(x, fixed(3, 4, 2, 4), padding="same"),
        F.conv2d(x, fixed(3, 4, 2, 2), padding="same", dilation=3),
        F.conv2d(x, fixed(3, 4, 2, 2), padding=(1,), stride=(2,)),
        F.conv2d(x, fixed(8, 1, 2, 2), groups=4) * fixed(8, 1, 1) - fixed(8, 1, 1),
        F.conv_transpose2d(
            x, fixed(4, 3, 3, 2), fixed(6), (2, 3), (1, 0), output_padding=(1, 2), groups=2, dilation=(1, 2)
        ),
        F.conv_transpose2d(x, fixed(4, 2, 3, 2), groups=4) * fixed(8, 1, 1),
        F.avg_pool2d(x, (3, 2), (2, 3), (1, 1), ceil_mode=True, count_include_pad=False),
        F.avg_pool2d(x, (3, 2), (2, 3), (1, 1), ceil_mode=True, divisor_override=-3),
        F.max_pool2d(x, 3, 2, 1, dilation=3, ceil_mode=True),
        F.max_pool2d(F.pad(x, (1, 1, 1, 1), value=-INFINITY), 3, 2, 1),
        F.adaptive_max_pool2d(x, (11, 10)),
        F.adaptive_avg_pool2d(x, (11, 4)),
        F.pad(x, (1, 2, 3, 0), "circular"),
        F.pad(x, (5, 3, 0, 2), "reflect"),
        F.interpolate(x, scale_factor=(1.7, 0.6), mode="bilinear", align_corners=True),
        F.interpolate(x, scale_factor=(0.45, 2.3), mode="nearest-exact", recompute_scale_factor=True),
        F.interpolate(x, size=(1, 9), mode="bicubic"),
        F.grid_sample(
            x, (1.5 * fixed(1, 3, 4, 2)).expand(x.shape[0], -1, -1, -1), padding_mode="reflection", align_corners=True
        ),
    ]


def functions_of_one_entry(x):
    return [
        *(x.clamp(1, -1), torch.clamp(x, W + 1, W - 1), torch.clamp(x, None, W[:, :1]), torch.clamp(W, x, -x)),
        *(F.leaky_relu(x, 3.0), F.leaky_relu(x, -2.0), F.leaky_relu(x, 1.0)),
        *(F.softshrink(x, 0.0), F.hardtanh(x, -0.1, 0.2), F.prelu(x[:, 0], W[0]), F.prelu(x[:, 0, 0], W[0, 0])),
        *(torch.where(W > 0, 1.0, x) - torch.where(W > 0, W, x), x * (W > 0) - x.relu() * ~(W > 0)),
        x.masked_fill(W > 0, -1e9),
    ]


def moves(x):
    return [
        *(x.roll((1, -2), (1, 2)), x[:, [-1, -2, 0]]),
        *(x[:, :, [0, 0, 2, -1]], x[:, [[0, 1], [2, 3]], [[0], [2]]], x[:, None, ..., None, 1:-1:2]),
        *(x.tril(-1) + x.triu(2), x.diagonal(1, 1, 2), torch.diag_embed(x, 1, -3, -2), x.repeat_interleave(3, -1)),
        *(*x.split([1, 3], 1), *x.tensor_split(2, 2), torch.stack(x.unbind(2)[::-1], -2), x.movedim((0, 1), (1, 2))),
        *(x.view(-1, 3).view(-1, 4, 3).mean(1), x.narrow(-1, -3, 2), x[:, :1].squeeze(1), x.tile(2), x[:, 4:]),
    ]


RIGHT = {
    "views": (through_views, (4, 3)),
    "an einsum that is a view": (einsum_is_a_view, (4, 3)),
    "swapped": (swapped, (4, 3)),
    "written to": (written_to, (4, 3)),
    "written to by itself": (on_itself, (4, 3)),
    "affine maps": (affine_maps, (4, 3)),
    "convolutions and pools": (convolutions, (4, 8, 9)),
    "functions of one entry": (functions_of_one_entry, (4, 3)),
    "moves": (moves, (4, 3)),
    "nothing": (lambda x: [x, x, x[:, 3:], torch.cat([x[:, 3:], x], 1), torch.zeros(0).double()], (3,)),
    "empty inputs": (lambda x: x.relu().sum(1), (0,)),
    "one number": (lambda x: (2 * x).abs().clamp(0, 1) - 1, ()),
    "constants": (lambda x: {"a": (W, [W.T, None, 3]), "b": W.expand(x.shape[0], 4, 3), "c": torch.tensor(True)}, (3,)),
    "several outputs": (lambda x: (x * 0, x - x, (-x.abs()).relu(), 1e300 * (1e-300 * x.relu())), (3,)),
    "whole numbers": (lambda x: (x.relu(), torch.tensor([1, 2])), (3,)),
    "cancellation": (lambda x: ((x + 1e8) - 1e8 - x) * 1e-8, (3,)),
    "wide ranges": (lambda x: [((x * 1e200).relu() * 1e-200), (x * 1e-308).relu() * 1e-10], (3,)),
    "masks of -1e9": (lambda x: x.masked_fill(W > 0, -1e9).amax(1) * 1e-9, (4, 3)),
}


@pytest.mark.parametrize("name", RIGHT)
def test_aliasing_and_odd_arguments_are_rewritten_exactly(name):
    function, shape = RIGHT[name]
    module = Function(function).eval()
    module(numbers(2, *shape))
    assert_same(module, rewrite(module, numbers(2, *shape)), shape)


def hooked(register, hook):
    network = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 4)).double()
    register(network)(hook)
    return network


def tripled(module, inputs, output):
    return 3 * output


def doubled_in_place(module, inputs, output):
    output.mul_(2)


def tied():
    network = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3)).double()
    network[2].weight = network[0].weight
    network[4].weight = nn.Parameter(network[0].weight.detach().T)
    return network.append(network[0])


def pruned():
    network = nn.Sequential(nn.Linear(3, 4), nn.ReLU()).double()
    prune.l1_unstructured(network[0], "weight", 0.5)
    return network


MODULES = {
    "hook": lambda: hooked(lambda n: n.register_forward_hook, tripled),
    "hook on a part": lambda: hooked(lambda n: n[0].register_forward_hook, tripled),
    "hook in place": lambda: hooked(lambda n: n[0].register_forward_hook, doubled_in_place),
    "pre-hook": lambda: hooked(lambda n: n.register_forward_pre_hook, lambda module, inputs: (3 * inputs[0],)),
    "weight norm": lambda: parametrizations.weight_norm(nn.Linear(3, 4).double()),
    "weight norm, hook": lambda: nn.Sequential(nn.utils.weight_norm(nn.Linear(3, 4).double()), nn.ReLU()),
    "spectral norm": lambda: parametrizations.spectral_norm(nn.Linear(3, 4).double()),
    "spectral norm, hook": lambda: nn.Sequential(nn.utils.spectral_norm(nn.Linear(3, 4).double()), nn.ReLU()),
    "orthogonal": lambda: parametrizations.orthogonal(nn.Linear(3, 4).double()),
    "pruned": pruned,
    "tied weights": tied,
    "quantised weights": lambda: Holder(lambda s, x: F.linear(x, 0.1 * s.w.double()), w=(10 * W).to(torch.int8)),
}


@pytest.mark.filterwarnings("ignore:The tensor attribute .* was assigned during export:UserWarning")
@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated:FutureWarning")
@pytest.mark.parametrize("name", MODULES)
def test_the_rewritten_network_is_independent_of_the_original_and_leaves_it_alone(name):
    torch.manual_seed(0)
    module = MODULES[name]().eval()
    x = numbers(5, 3)
    with torch.no_grad():
        before = module(x)
    plain = rewrite(module, x)
    assert_same(module, plain, (3,))
    with torch.no_grad():
        assert torch.equal(module(x), before)
        after = plain(x)
        for weight in (*module.parameters(), *module.buffers()):
            weight.fill_(7)
        module.float()
        assert torch.equal(plain(x), after)


def test_a_tensor_given_twice_is_two_inputs():
    module = Function(lambda x, y: x - 2 * y.relu()).eval()
    x = numbers(2, 3)
    assert_same(module, rewrite(module, (x, x)), (3,), (3,))
    assert_same(module, rewrite(module, (x, x[:])), (3,), (3,))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_a_network_of_coarse_numbers_is_rewritten_in_them(dtype):
    """Half a digit per layer: both round each of two layers to `dtype`, in another order."""
    torch.manual_seed(0)
    layers = nn.Conv1d(2, 4, 3), nn.BatchNorm1d(4), nn.ReLU(), nn.Flatten(), nn.Linear(28, 3)
    module = nn.Sequential(*layers).to(dtype).eval()
    x = numbers(5, 2, 9).to(dtype)
    with torch.no_grad():
        plain = rewrite(module, x)
        expected, actual = module(x), plain(x)
    assert actual.dtype == dtype
    assert (expected - actual).abs().max() <= 16 * torch.finfo(dtype).eps * expected.abs().max()


@pytest.mark.parametrize(
    "function",
    [lambda x: F.softshrink(x, 0.3) + W.frac()[0], lambda x: F.softshrink(x.add_(1))],
    ids=["a constant without a rule", "an input written to"],
)
def test_softshrink_has_its_rule_where_torch_decomposes_the_module(function):
    module = Function(function).eval()
    assert_same(module, rewrite(module, numbers(2, 3), check=False), (3,))


def test_maps_are_not_folded_where_the_product_underflows():
    module = Function(lambda x: (((x * 1e20).relu() * 1e-25) * 1e-25).relu() * 1e25).eval()
    x = torch.full((2, 3), 1e18)
    assert torch.allclose(rewrite(module, x, check=False)(x), module(x), rtol=1e-5, atol=0.0)


# -- what is refused, without the check --------------------------------------------------------------------------


def first_row_written(x):
    z = torch.zeros_like(x)
    z[0] = 1
    return x + z


def clamped_in_forward(module, x):
    with torch.no_grad():
        module.w.clamp_(min=0)
    return F.linear(x, module.w)


REFUSED = {
    # the batch size
    "a size in a sum": (Function(lambda x: torch.add(x, x.relu(), alpha=x.shape[0])), "batch size"),
    "a size in a product": (Function(lambda x: torch.addmm(x[:, :1], x, W.T[:, :], beta=x.shape[0])), "batch size"),
    "a size as a constant": (Function(lambda x: x + torch.full_like(x, x.shape[0])), "batch size"),
    "a size in new_full": (Function(lambda x: x + x.new_full((x.shape[0], 3), x.shape[0])), "batch size"),
    "a size in full": (Function(lambda x: x + torch.full((x.shape[0], 3), x.shape[0]).double()), "batch size"),
    "a size as a shift": (Function(lambda x: x.roll(x.shape[0], 1)), "batch size"),
    "a size as an output": (Function(lambda x: (x, x.shape[0])), "batch size"),
    "an output of twice the batch": (Function(lambda x: (x, x.new_zeros(2 * x.shape[0], 3))), "batch size"),
    "an output of one more": (Function(lambda x: (x, x.new_ones(x.shape[0] + 1, 3))), "batch size"),
    "a branch above 4": (Function(lambda x: 2 * x if x.shape[0] > 4 else x), "a batch of 5"),
    "a branch below 4": (Function(lambda x: 2 * x if x.shape[0] < 4 else x), "a batch of 4"),
    "a branch at 7": (Function(lambda x: x if x.shape[0] == 7 else 2 * x), "a batch of 7"),
    "a branch on even": (Function(lambda x: x if x.shape[0] % 2 == 0 else 2 * x), "a batch of 1"),
    "the first four": (Function(lambda x: x[: min(x.shape[0], 4)]), "batch"),
    "squeeze": (Function(lambda x: x[:, :1].squeeze()), "batch of 1"),
    "squeeze of the batch": (Function(lambda x: x.squeeze(0)), "batch dimension"),
    "a row of zeros written": (Function(first_row_written), "differs between samples"),
    "a sum of ones": (Function(lambda x: x * torch.ones_like(x).sum()), "batch sizes"),
    "ones counted": (Function(lambda x: x + torch.ones_like(x).cumsum(0)), "differs between samples"),
    "ones multiplied": (Function(lambda x: x * (torch.ones_like(x).T @ torch.ones_like(x))[0]), "batch sizes"),
    "a sample in two places": (Function(lambda x: x + x.sort(0).values), "sort"),
    # numbers that are not real, or coarser
    "bits": (Function(lambda x: x.view(torch.int64)), "int64"),
    "complex": (Holder(lambda s, x: (x * s.c).abs(), c=torch.complex(W[0], W[0])), "complex128"),
    "a sum of integers": (Function(lambda x: x.sum(1, dtype=torch.int64)), "int64"),
    "a coarser mean": (Function(lambda x: x.mean(1, dtype=torch.float32)), "float32"),
    "a coarser copy": (Function(lambda x: x.half().double()), "float16"),
    "a step": (Function(lambda x: (x > 0) * x), "gt"),
    # memory
    "a parameter written": (Holder(clamped_in_forward, w=nn.Parameter(W.clone())), "writes to w"),
    "a buffer written": (Holder(lambda s, x: x * s.w.mul_(0.5), w=W[0].clone()), "writes to w"),
    # numbers that are not finite
    "infinite bounds": (Function(lambda x: x.clamp(-INFINITY, 1.0)), "not finite"),
    "a bound that is no number": (Function(lambda x: x.clamp(min=float("nan"))), "not finite"),
    "an infinite slope": (Function(lambda x: F.leaky_relu(x, INFINITY)), "not finite"),
    "weights that are no numbers": (Holder(lambda s, x: F.linear(x, s.w), w=W * float("nan")), "not finite"),
    "a window of padding": (
        Function(lambda x: F.max_pool1d(F.pad(x[:, None], (5, 0), value=-INFINITY), 2)),
        "lies in the padding",
    ),
    # the rest
    "a negative circular padding": (Function(lambda x: F.pad(x[:, None], (-1, 1), "circular")), "negative"),
    "an entry read off": (Holder(lambda s, x: x + x.new_full((3,), s.k.item()), k=W[0, 0].clone()), "full"),
    "an entry read off for the batch": (
        Holder(lambda s, x: x + torch.full((x.shape[0], 3), s.k.item()).double(), k=W[0, 0].clone()),
        "full",
    ),
    "a traced module": (torch.jit.trace(nn.Linear(3, 4).double(), numbers(2, 3)), "does not run"),
    "a module without weights": (nn.Linear(3, 4, device="meta").double(), "meta"),
    "a draw": (Function(lambda x: x + torch.rand(3)), "random"),
    "an antialiased image of width 1": (
        Function(lambda x: F.interpolate(x[:, None, :, None], (2, 1), mode="bilinear", antialias=True)),
        "wrongly",
    ),
    "a division that rounds": (Function(lambda x: torch.div(x, 2, rounding_mode="floor")), "rounded"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_would_be_wrong_for_some_input_is_refused_in_one_line_before_any_check(name):
    module, words = REFUSED[name]
    with pytest.raises(SkipformError) as error:
        rewrite(module.eval(), numbers(3, 3) if name == "a branch at 7" else numbers(2, 3), "keep_add", check=False)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_sizes_given_by_name_are_compared_with_the_example():
    plain = rewrite(nn.MaxPool2d(2).eval(), torch.ones(2, 1, 4, 4))
    (name,) = (node.name for node in plain.graph.nodes if node.op == "placeholder")
    with pytest.raises(SkipformError, match="rewritten for"):
        plain(**{name: torch.ones(2, 1, 6, 6)})


def dropout_is_a_view(x):
    y = x * 2
    v = F.dropout(y, 0.5, False)
    v.add_(1)
    return y, v


def test_memory_that_export_does_not_see_is_what_the_check_is_for():
    def counted(module, x):
        module.calls += 1
        return x * module.calls

    with pytest.raises(SkipformError, match="captured"):
        rewrite(Holder(counted, calls=0).eval(), numbers(2, 3))
    with pytest.raises(SkipformError, match="captured"):
        rewrite(Function(lambda x: 2 * x if x.shape[0] == 1 else x).eval(), numbers(2, 3))
    with pytest.raises(SkipformError, match="captured"):
        rewrite(Function(dropout_is_a_view).eval(), numbers(2, 3))


@pytest.mark.parametrize("name", ["whole numbers", "convolutions and pools", "nothing"])
def test_the_canonical_network_has_the_same_outputs_end_to_end(name):
    function, shape = RIGHT[name]
    module = Function(function).eval()
    module(numbers(2, *shape))
    network = canonical(module, numbers(2, *shape))
    x = numbers(3, *shape)
    leaves = torch.utils._pytree.tree_leaves(module(x))
    rows = [
        y.flatten(1) if y.ndim and len(y) == 3 else y.flatten().expand(3, -1)
        for y in leaves
        if isinstance(y, torch.Tensor)
    ]
    actual = network(x if network.input_shape else x.flatten(1)).flatten(1)
    assert (torch.cat([y.double() for y in rows], 1) - actual).abs().max() <= TOLERANCE * 10
