"""Every operation that the compiler knows, against torch itself, and the operations that it must refuse.

Float64 throughout: a rule reorders sums of at most a few hundred products and takes at most about ten maxima, each an
ulp of its operands, so 1e-13 relative to the largest entry leaves a hundredfold margin over 2^-53.
"""

import operator

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from skipform.compiler.rewrite import UnsupportedOperation, rewrite
from skipform.compiler.rules import NOT_PIECEWISE_LINEAR, RULES
from skipform.errors import SkipformError

AFFINE = {F.conv1d, F.conv2d, F.conv3d, F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d, F.linear}
AFFINE |= {torch.matmul, torch.einsum}
MOVES = {torch.reshape, torch.unsqueeze, torch.permute, torch.broadcast_to, operator.getitem, torch.index_select, F.pad}
TOLERANCE = 1e-13


def numbers(*shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(sum(shape)))


W, V, K = numbers(4, 3), numbers(4, 4), numbers(6, 2, 3, 3)
FORM = numbers(2, 3, 3)
PAIR, COLUMN, GRID = numbers(2, 1, 1), numbers(6, 1, 1), numbers(1, 3, 4, 2)


class Function(nn.Module):
    """A function of tensors as a module, with modules of its own."""

    def __init__(self, function, **parts):
        super().__init__()
        self.function = function
        self.parts = nn.ModuleDict(parts)

    def forward(self, *inputs):
        return self.function(*inputs, **self.parts)


def assign(x):
    x = x + 0
    x[:, 0] = 0
    x[:, 1:] += 1
    x[:, 2] = x[:, 0] - W[0, 0]
    return x


def in_place(x):
    return (2 * x).relu_().add_(x).mul_(2).clamp_(0, 1).sub_(x)


def without_gradient(x):
    with torch.no_grad():
        return x.relu() * 2


def running_statistics(norm):
    norm.running_mean.copy_(numbers(len(norm.running_mean)))
    norm.running_var.copy_(numbers(len(norm.running_var)).abs() + 0.1)
    norm.weight.data.copy_(numbers(len(norm.weight)))
    return norm.double()


def standardised(weight):
    return (weight - weight.mean((1, 2, 3), keepdim=True)) / weight.std((1, 2, 3), keepdim=True)


def rows(x):
    """For every sample and column, three of the four rows, each once."""
    return torch.tensor([[[0, 1, 2], [3, 2, 1], [1, 0, 0]]]).expand(x.shape[0], 3, 3)


# name -> (shape of one input, function -> tensors); one export each, so that the file stays quick
CASES = {
    "convolution": (
        (4, 8, 9),
        lambda x: [
            F.conv2d(x, K[:4], stride=2, padding=1, dilation=2, groups=2),
            F.conv2d(x, K[:4, :1].repeat(1, 4, 1, 1), padding="same"),
            F.conv2d(x, K[:, :1].repeat(1, 4, 1, 1)[..., :2], K[:, 0, 0, 0], padding="same"),
            F.conv2d(x, standardised(K[:, :1].repeat(1, 4, 1, 1) * W[None, :, :1, None])),
            F.conv_transpose2d(x, K[:4], stride=2, padding=1, output_padding=1, groups=2),
            F.conv_transpose2d(x, K[:4], dilation=2) * PAIR + 1,
            F.conv1d(x[:, :2, 0], K[:, :, 0]),
            F.conv_transpose1d(x[:, :, 0], K[:4, :, 0], stride=3),
        ],
    ),
    "convolution in 3d": (
        (2, 3, 4, 5),
        lambda x: [F.conv3d(x, K[:4, :1, None, :2].repeat(1, 2, 2, 1, 1)), F.conv_transpose3d(x, K[:2, :, None])],
    ),
    "sums and products": (
        (4, 3),
        lambda x: [
            x - 2 * x.flip(1),
            torch.sub(x, x.relu(), alpha=3),
            (3 - x) / 2 + x * 4 - 1,
            -x * W + V[:, :1] - x / W[0, 0],
            x * torch.arange(12).reshape(4, 3),
            x + x.mean(1, keepdim=True),
            x + x.relu() + (2 * x).relu() + (-x).relu(),
            torch.lerp(x, x.relu(), 0.3),
            torch.addcmul(x, W, W, value=2),
            torch.rsub(x, W),
            torch.where(W > 0, x, 0.0) + torch.where(W > 0, x, 2 * x) + x.masked_fill(W > 0, 3.0),
            x.new_ones(x.shape[0], 4, 3) + x,
            F.dropout(x, 0.5, False).contiguous().clone().to(torch.float64),
        ],
    ),
    "matrices": (
        (3, 3),
        lambda x: [
            x @ W.T,
            W @ x,
            x @ W[0],
            torch.matmul(x, W[:3, 0])[..., None],
            torch.einsum("bij,jk->bik", x, W.T),
            torch.einsum("...ij,kj->...ki", x, V[:, :3]),
            torch.einsum("bii->bi", x),
            torch.bmm(x, x.new_ones(x.shape[0], 3, 2)),
            torch.addmm(V[0], x[:, 0], W.T, beta=0.5, alpha=2),
            torch.baddbmm(x, x, x.new_ones(x.shape[0], 3, 3)),
            torch.tensordot(x, W, ([2], [1])),
            F.linear(x, W, V[0]),
            x.cumsum(1) + x.tril(),
        ],
    ),
    "reductions": (
        (3, 4, 5),
        lambda x: [
            x.mean(1) + x.sum((1, 3)).unsqueeze(-1),
            x.sum((1, 2, 3)),
            x.mean(-1, keepdim=True),
            x.amax((2, 3)),
            x.amin(1, keepdim=True),
            x.max(1)[0] + x.min(dim=1).values,
            x.max(dim=3).values,
            torch.cummax(x, 2).values + torch.cummin(x, 2).values,
            torch.linalg.vector_norm(x, 1, dim=2),
            torch.linalg.vector_norm(x, float("inf"), dim=(1, 2)),
        ],
    ),
    "pieces": (
        (5, 6, 7),
        lambda x: [
            torch.stack([x, 2 * x, torch.ones_like(x)], -1),
            torch.cat(x.chunk(3, 1)[::-1], 1) + torch.cat(list(x.split([1, 4], 1))[::-1], 1),
            sum(x.unbind(1)),
            x[:, 1:, ::2, -3:],
            x[:, 0] + x[:, -1] + x.select(1, 2),
            x[:, [2, 0, 0, 1, 3]],
            x[:, torch.tensor([0, 1]), :, torch.tensor([3, 4])],
            x[:, None, :, None],
            x.narrow(2, 1, 3),
            x.index_select(3, torch.tensor([6, 0, 3])),
            torch.gather(x, 3, torch.arange(2).expand(x.shape[0], 5, 6, 2)),
            torch.cat([x, torch.zeros(x.shape[0], 2, 6, 7, dtype=x.dtype), V[:1, :1].expand(x.shape[0], 1, 6, 7)], 1),
            x.unfold(2, 3, 2),
            F.unfold(x, 3, padding=1),
            F.fold(x.flatten(2)[:, :4, :12], (4, 5), 2),
        ],
    ),
    "constant factors": (
        (4, 3),
        lambda x: [
            torch.cross(x, W.expand_as(x), dim=2),
            torch.tensordot(x, W, ([1, 2], [0, 1])),
            torch.inner(x, W),
            F.bilinear(x, W.expand(x.shape[0], 4, 3), FORM, V[0, :2]),
            x.T.permute(2, 1, 0) + x.positive() + x.nan_to_num() + x**1,
            x.nansum(1) + x.nanmean(1),
            x.hsplit(2)[1],
            torch.dsplit(x, 3)[0],
            torch.norm(x, 1, 2) + torch.norm(x, float("inf"), 2) + F.pairwise_distance(x, 2 * x, 1),
            torch.narrow_copy(x, 1, 1, 2),
        ],
    ),
    "constant places": (
        (4, 3),
        lambda x: [
            x.scatter(1, rows(x), 2 * x),
            x.scatter(-2, rows(x), 5.0) + x.scatter(2, rows(x)[:, :, :1] // 2, x),
            x.new_zeros(x.shape[0], 5, 3).scatter(1, rows(x), x),
            x.scatter(1, rows(x), W[None].expand(x.shape[0], -1, -1)),
            x.scatter_add(1, torch.zeros_like(rows(x)), 2 * x) + x.scatter_add(1, rows(x), x.relu()),
            x.scatter_add(1, rows(x), W[None].expand(x.shape[0], -1, -1)),
            x.permute(1, 0, 2).scatter_add(2, rows(x).permute(1, 0, 2) // 2, x.permute(1, 0, 2)),
            x.index_add(1, torch.tensor([2, 2, 0]), x[:, :3], alpha=3),
            x.index_copy(1, torch.tensor([2, 0]), x[:, 1:3]) + x.index_fill(2, torch.tensor([2, 0]), 3.0),
            x.topk(1, 1).values + x.topk(1, -1, largest=False).values,
            torch.softmax(V, -1) @ x,
            F.pixel_shuffle(x[:, :, :, None], 2),
        ],
    ),
    "shapes": (
        (6, 4),
        lambda x: [
            x.view(x.shape[0], 2, 3, 4).permute(0, 3, 1, 2).reshape(-1, 24).unflatten(1, (4, 6)),
            x.reshape(-1, 4).relu().reshape(x.shape[0], 6, 4),
            (x.permute(1, 0, 2) * 2 + COLUMN).permute(1, 0, 2).relu(),
            x.transpose(0, 2).maximum(V[:, :1, None]) + x.transpose(0, 2),
            x.unsqueeze(1).expand(-1, 3, -1, -1) * 1.5,
            x[:, :1].squeeze(1).unsqueeze(2),
            x.repeat(1, 2, 3) + x.tile(1, 2, 3),
            x.repeat_interleave(2, 1),
            x.movedim(1, 2).swapaxes(1, 2).mT + 0,
            x.roll(1, 1) + x.flip(1, 2) + torch.rot90(x, 2, (1, 2)),
            torch.channel_shuffle(x, 2),
            F.pixel_shuffle(x[:, :4, :, None], 2) + F.pixel_unshuffle(x[:, None], 2)[:, :1, :2, :2].repeat(1, 1, 4, 1),
            assign(x),
            in_place(x),
            without_gradient(x),
        ],
    ),
    "padding": (
        (3, 4, 5),
        lambda x: [
            F.pad(x, (1, 2, 0, 1), mode="reflect"),
            F.pad(x, (2, 0, 1, 1), mode="replicate"),
            F.pad(x, (1, 2, 0, 1), mode="circular"),
            F.pad(x, (2, 0, 1, -1)),
            F.pad(x, (1, 2, -1, 1), value=3.0),
            F.pad(x, (0, 0, 0, 0, 1, 1), value=-1.0),
        ],
    ),
    "interpolation": (
        (3, 6, 5),
        lambda x: [
            F.interpolate(x, scale_factor=2),
            F.interpolate(x, size=(7, 3)),
            F.interpolate(x, size=(7, 3), mode="nearest-exact"),
            F.interpolate(x[:, :, 0], scale_factor=1.7),
            F.interpolate(x, size=(7, 3), mode="bilinear"),
            F.interpolate(x, scale_factor=1.5, mode="bilinear", align_corners=True),
            F.interpolate(x, scale_factor=(1.3, 2.2), mode="bilinear"),
            F.interpolate(x, size=(3, 4), mode="bilinear", antialias=True),
            F.interpolate(x, scale_factor=(1.3, 2.2), mode="bicubic"),
            F.interpolate(x[:, :, 0], scale_factor=1.3, mode="linear"),
            F.interpolate(x[:, None], scale_factor=(1.3, 1, 2), mode="trilinear"),
            F.grid_sample(x, GRID.expand(x.shape[0], -1, -1, -1), align_corners=False),
        ],
    ),
    "average pooling": (
        (3, 8, 7),
        lambda x: [
            F.avg_pool2d(x, 3, 2, 1),
            F.avg_pool2d(x, 3, 2, 1, ceil_mode=True, count_include_pad=False),
            F.avg_pool2d(x, 3, 2, 1, ceil_mode=True),
            F.avg_pool2d(x, (3, 2), 2, (1, 0), divisor_override=5, ceil_mode=True),
            F.avg_pool1d(x[:, :, 0], 3, 2, 1, count_include_pad=False),
            F.avg_pool3d(x[:, None], 2, 2, 1),
            F.adaptive_avg_pool2d(x, (3, 5)),
            F.adaptive_avg_pool2d(x, (1, None)),
            F.adaptive_avg_pool1d(x[:, :, 0], 1),
            F.adaptive_avg_pool3d(x[:, None], (2, 3, 4)),
        ],
    ),
    "max pooling": (
        (2, 8, 7),
        lambda x: [
            F.max_pool2d(x, 2),
            F.max_pool2d(x, 3, 2, 1),
            F.max_pool2d(x, 3, 2, ceil_mode=True),
            F.max_pool2d(x, 3, 1, 1, dilation=2),
            F.max_pool2d(x, 5, 1, 2),
            F.max_pool2d(x, (3, 5), (1, 3), (1, 2), dilation=(1, 1)),
            F.max_pool2d(x, 13, 1, 6),
            F.max_pool2d(F.pad(x, (0, 1, 1, 1), value=float("-inf")), 3, 2),
            F.max_pool1d(x[:, :, 0], 3, 2, 1),
            F.max_pool3d(x[:, None], 3, 2, 1),
            F.adaptive_max_pool2d(x, (3, 5)),
            F.adaptive_max_pool1d(x[:, :, 0], 2) + F.adaptive_max_pool1d(x[:, :, 0], 1),
            nn.MaxPool2d(2, return_indices=True)(x)[0],
        ],
    ),
    "functions of one entry": (
        (4, 3),
        lambda x: [
            x.clamp(-0.5, 0.7) + x.clamp(min=0.1) + x.clamp(max=0.2),
            x.clamp(0.5, -0.5),
            F.relu6(x * 5) + F.hardtanh(x) + F.hardsigmoid(4 * x) + F.softshrink(x, 0.3),
            torch.clamp(x, W - 1, W + 1) + torch.clamp(x, -x, 2 * x),
            F.leaky_relu(x, 0.2) + F.prelu(x, W[:, 0]) + F.prelu(x, W[0, 0]) + F.rrelu(x),
            x.abs() + F.threshold(x, 0.2, 0.2),
        ],
    ),
    "maxima": (
        (4, 3),
        lambda x: [
            torch.maximum(x, x.flip(1)),
            torch.min(x, 2 * x) + torch.minimum(W, x),
            torch.maximum(x, W[0, 0]),
            torch.maximum(*x.chunk(2, 1)),
            torch.maximum(x[:, :, None], x[:, None, :]),
        ],
    ),
}
MODULES = {
    "batch norm": Function(
        lambda x, conv, a, b, c: [
            c(b(a(conv(x)))),
            a(x.relu()),
            b(F.conv_transpose2d(x, K[:4, :2].repeat(1, 2, 1, 1))),
        ],
        conv=nn.Conv2d(4, 4, 3, bias=False).double(),
        **{name: running_statistics(nn.BatchNorm2d(4)) for name in "abc"},
    ),
    "batch norm of features": Function(
        lambda x, linear, norm, wide: [norm(linear(x.flatten(1))), wide(x.flatten(2))],
        linear=nn.Linear(4 * 25, 5).double(),
        norm=running_statistics(nn.BatchNorm1d(5)),
        wide=running_statistics(nn.BatchNorm1d(4)),
    ),
    "instance norm": Function(
        lambda x, norm: norm(x), norm=running_statistics(nn.InstanceNorm2d(4, affine=True, track_running_stats=True))
    ),
}


def assert_plain(graph, target="grammar"):
    for node in graph.graph.nodes:
        if node.op != "call_function":
            assert node.op in ("placeholder", "get_attr", "output"), node.format_node()
            continue
        operands = [n for n in node.all_input_nodes if "batch_dim" in n.meta]
        if target == "keep_add" and node.target is torch.add:
            continue
        assert node.target in AFFINE | MOVES | {torch.relu, torch.cat}, node.format_node()
        assert node.target is torch.cat or len(operands) == 1, node.format_node()
        batch = node.meta["val"].shape[node.meta["batch_dim"]]
        assert batch % 2 == 0, node.format_node()


def assert_equal(expected, actual, tolerance=TOLERANCE):
    flat = torch.utils._pytree.tree_leaves
    for position, (a, b) in enumerate(zip(flat(expected), flat(actual), strict=True)):
        assert a.shape == b.shape, position
        assert (a - b).abs().max() <= tolerance * a.abs().max().clamp(min=1.0), position


@pytest.mark.parametrize(
    ("name", "target"),
    [
        *((name, "grammar") for name in CASES),
        *((name, "keep_add") for name in ("sums and products", "max pooling", "maxima")),
    ],
)
def test_only_affine_relu_concat_remain(name, target):
    shape, function = CASES[name]
    module = Function(function).eval()
    plain = rewrite(module, numbers(1, *shape), target)
    assert_plain(plain, target)
    for batch in (1, 3):
        x = numbers(batch, *shape)
        assert_equal(module(x), plain(x))


@pytest.mark.parametrize("name", MODULES)
def test_normalisation_in_eval_mode_is_affine(name):
    module = MODULES[name].eval()
    plain = rewrite(module, numbers(1, 4, 5, 5))
    assert_plain(plain)
    assert_equal(module(numbers(3, 4, 5, 5)), plain(numbers(3, 4, 5, 5)))


def test_batch_norm_after_a_convolution_costs_nothing():
    block = nn.Sequential(nn.Conv2d(3, 4, 3), running_statistics(nn.BatchNorm2d(4)), nn.ReLU()).double().eval()
    targets = [n.target for n in rewrite(block, numbers(1, 3, 5, 5)).graph.nodes if n.op == "call_function"]
    assert targets == [F.conv2d, torch.relu]


def test_several_inputs_and_nested_outputs():
    module = Function(lambda x, y: {"sum": x + y, "both": (x.relu(), [y, W])}).eval()
    plain = rewrite(module, (numbers(1, 4, 3), numbers(1, 4, 1)))
    x, y = numbers(5, 4, 3), numbers(5, 4, 1)
    result = plain(x, y)
    assert_equal(module(x, y), result)
    assert set(result) == {"sum", "both"}


def test_equal_results_are_computed_once_and_dead_ones_not_at_all():
    module = Function(lambda x: (x.relu() + x.relu(), x.abs())[0]).eval()
    relus = [n for n in rewrite(module, numbers(1, 4)).graph.nodes if n.target is torch.relu]
    assert len(relus) == 1


def test_max_pooling_never_sees_infinity():
    x = numbers(1, 2, 6, 6)
    plain = rewrite(Function(lambda x: F.max_pool2d(x, 3, 2, 1)).eval(), x)
    assert torch.equal(plain(torch.full_like(x, 7.0)), torch.full((1, 2, 3, 3), 7.0, dtype=x.dtype))
    for buffer in plain.buffers():
        assert buffer.isfinite().all()


@pytest.mark.parametrize("window", [2, 3, (2, 3), 4, (3, 5), 5])
def test_max_pooling_is_as_shallow_as_theorem_1_says(window):
    from skipform.compiler.flatten import structure

    height, width = (window, window) if isinstance(window, int) else window
    plain = rewrite(nn.MaxPool2d(window, 1).eval(), numbers(1, 1, 7, 7))
    assert structure(plain).depth == (height * width - 1).bit_length()


class Gated(nn.Module):
    def __init__(self):
        super().__init__()
        self.gate = nn.Sequential(nn.Linear(3, 3), nn.GELU())

    def forward(self, x):
        return self.gate(x)


REFUSED = {  # what a message must name
    "gelu": (Gated(), ["gelu at gate.1 (GELU)", "(b, 4, 3)", "relu", "test_compiler_rules.py:"]),
    "silu": (nn.SiLU(), ["silu", "hardtanh"]),
    "layer_norm": (nn.LayerNorm(3), ["layer_norm", "batch_norm"]),
    "softmax": (nn.Softmax(-1), ["softmax"]),
    "sigmoid": (nn.Sigmoid(), ["sigmoid", "hardsigmoid"]),
    "product": (Function(lambda x: x * x.relu()), ["mul", "product of two activations"]),
    "attention": (Function(lambda x: x @ x.mT), ["matmul", "product of two activations"]),
    "quotient": (Function(lambda x: 1 / x), ["reciprocal"]),
    "computed kernel": (Function(lambda x: F.conv1d(V[None], x)), ["conv1d", "product"]),
    "index": (Function(lambda x: x.max(1).indices), ["max", "index"]),
    "argmax": (Function(lambda x: x.argmax(1)), ["argmax", "amax"]),
    "indices": (Function(lambda x: F.max_pool1d(x, 2, return_indices=True)[1]), ["max_pool1d_with_indices"]),
    "comparison": (Function(lambda x: torch.where(x > 0, x, 2 * x)), ["gt", "maximum"]),
    "jump": (Function(lambda x: F.threshold(x, 0.5, 0.0)), ["threshold", "jumps"]),
    "random": (Function(lambda x: F.dropout(x)), ["dropout", "random"]),
    "batch statistics": (Function(lambda x: F.batch_norm(x, None, None, training=True)), ["batch_norm", "eval mode"]),
    "image statistics": (nn.InstanceNorm1d(4), ["instance_norm"]),
    "topk": (Function(lambda x: x.topk(2, 1).values), ["topk", "2 largest entries", "amax"]),
    "kthvalue": (Function(lambda x: x.kthvalue(2, 1).values), ["kthvalue", "no rewriting rule; nearest", "amax"]),
    "normalised dot": (Function(lambda x: (F.normalize(x, dim=1) * x).sum(1)), ["linalg_vector_norm", "order 2"]),
    "bilinear form": (Function(lambda x: F.bilinear(x, x, FORM)), ["bilinear", "product", "constant fac"]),
    "euclidean norm": (Function(lambda x: torch.norm(x, 2, 1)), ["norm", "order 2"]),
    "power": (Function(lambda x: x**2), ["pow", "abs"]),
    "cosine": (Function(lambda x: F.cosine_similarity(x, 2 * x)), ["cosine_similarity", "constant weights"]),
    "remainder": (Function(lambda x: x % 1), ["remainder", "clamp"]),
    "masked select": (Function(lambda x: x.masked_select(W > 0)), ["masked_select", "x[:, mask]"]),
    "unpooling": (
        Function(lambda x: F.max_unpool1d(*F.max_pool1d(x, 2, return_indices=True), 2)),
        ["index of a maximum"],
    ),
    "merged batch": (Function(lambda x: x.transpose(0, 1).reshape(-1, 3).relu()), ["relu", "merges the batch"]),
    "merged batch returned": (Function(lambda x: x.transpose(0, 1).reshape(-1, 3)), ["reshape", "merges the batch"]),
    "scatter twice": (
        Function(lambda x: x.scatter(1, torch.zeros_like(rows(x)), x)),
        ["scatter", "more than once", "scatter_add"],
    ),
    "no rule": (Function(lambda x: x.sort(1).values), ["sort", "no rewriting rule"]),
    "mixed batch": (Function(lambda x: x + x.flip(0)), ["flip", "batch"]),
    "mean over the batch": (Function(lambda x: x - x.mean(0)), ["mean", "batch"]),
    "one sample": (Function(lambda x: x[0]), ["select", "batch"]),
    "batch size as a number": (Function(lambda x: x / x.shape[0]), ["div", "batch size"]),
    "minus infinity": (Function(lambda x: F.pad(x, (1, 1), value=float("-inf")).relu()), ["relu", "-inf"]),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_piecewise_linear_is_refused_by_name_place_and_shape(name):
    module, words = REFUSED[name]
    with pytest.raises(UnsupportedOperation) as error:
        rewrite(module.double().eval(), numbers(2, 4, 3))
    message = str(error.value)
    assert "\n" not in message
    for word in words:
        assert word in message


def branching(x):
    return x.relu() if x.sum() > 0 else -x


@pytest.mark.parametrize(
    ("module", "inputs", "words"),
    [
        (nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)), torch.ones(1, 3), "training mode"),
        (nn.Sequential(nn.Linear(3, 3).eval(), nn.Dropout()).eval().append(nn.Dropout()), torch.ones(1, 3), "2 is in"),
        (nn.Linear(3, 3).eval(), torch.ones(1, 4), "(1, 4)"),
        (nn.Linear(3, 3).eval(), (torch.ones(1, 3), torch.ones(1, 3)), "does not run"),
        (nn.Linear(3, 3).eval(), torch.ones(1, 3, dtype=torch.int64), "floating point"),
        (nn.Linear(3, 3).eval(), "x", "a tensor or a tuple of tensors"),
        (nn.Linear(3, 3).eval(), (), "no example inputs"),
        (nn.Linear(3, 3).eval(), torch.ones(0, 3), "at least 1"),
        (Function(torch.add).eval(), (torch.ones(1, 3), torch.ones(2, 3)), "one common batch"),
        (Function(branching).eval(), torch.ones(1, 3), "branches on the values"),
        (Function(lambda x: x.view(2, 12)).eval(), torch.ones(2, 4, 3), "fixes the batch size"),
    ],
)
def test_a_model_that_cannot_be_captured_is_refused_in_one_line(module, inputs, words):
    with pytest.raises(SkipformError) as error:
        rewrite(module, inputs)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_a_rewritten_model_refuses_other_sizes_than_its_example():
    plain = rewrite(nn.MaxPool2d(3, 2, 1).eval(), torch.ones(1, 2, 6, 6))
    with pytest.raises(SkipformError, match=r"rewritten for \(b, 2, 6, 6\)"):
        plain(torch.ones(1, 2, 8, 8))


def test_the_two_tables_are_disjoint():
    assert not set(RULES) & set(NOT_PIECEWISE_LINEAR)
