"""The compiler on both sides of every size at which it goes another way."""

import pytest
import torch
import torch.nn.functional as F
from random_modules import run
from torch import nn

from skipform.compiler.flatten import canonical
from skipform.compiler.rewrite import rewrite
from skipform.measure.program import Program


class Function(nn.Module):
    """A function of x and of stored tensors."""

    def __init__(self, function, *tensors):
        super().__init__()
        self.function, self.weights = function, nn.ParameterList([nn.Parameter(t) for t in tensors])
        self.eval()

    def forward(self, x):
        return self.function(x, *self.weights)


def whole_numbers(*shape, seed=0):
    """-1, 0 and 1, so that every sum below 2^53 is exact."""
    return torch.randint(-1, 2, shape, generator=torch.Generator().manual_seed(seed)).double()


def assert_exact(module, x):
    """The rewriting, the canonical network and both programs give the module's own numbers."""
    with torch.no_grad():
        expected = module(x).flatten(1)
        network = canonical(module, x[:1], check=False)
        assert torch.equal(rewrite(module, x[:1], check=False)(x).flatten(1), expected)
        assert torch.equal(torch.as_tensor(network(x)).flatten(1), expected)
        assert torch.equal(run(Program.of(module, x[0], check=False), x), expected)
        assert torch.equal(run(Program.of(network, x[0], check=False), x), expected)


@pytest.mark.parametrize("rows", [64, 65])  # formerly only constants of at most 4,096 entries were compared by content
def test_constants_of_4096_entries_and_more(rows):
    w = [whole_numbers(64, rows, seed=k) for k in range(3)]
    assert_exact(
        Function(lambda x, a, b, c: torch.cat([x @ a, x @ b.flip(0), x @ (2 * c)], 1).relu(), *w), whole_numbers(3, 64)
    )


@pytest.mark.parametrize("size", [1, 7, 8, 9])  # a key holds the first 8 entries
def test_constants_that_differ_after_the_first_entries(size):
    a = torch.ones(size, dtype=torch.float64)
    b, c = a.clone(), torch.cat([a, a])
    b[-1] = 2
    function = Function(
        lambda x, a, b, c: torch.cat([(x + a).relu(), (x + b).relu(), (torch.cat([x, x], 1) + c).relu()], 1), a, b, c
    )
    assert_exact(function, whole_numbers(3, size))


@pytest.mark.parametrize(
    "indices", [[2, 1, 0], [3, 2, 1, 0], [0, 2, 4, 1, 3, 5], [5, 0, 3, 1], [4, 4, 4], [1, 1, 1, 1]]
)
def test_three_runs_of_indices_are_slices_and_four_a_selection(indices):
    assert_exact(Function(lambda x, i=tuple(indices): x[:, list(i)].relu()), whole_numbers(3, 6))


@pytest.mark.parametrize("stride", [1, 2, 3])  # windows of 3 that share halves, some, none
@pytest.mark.parametrize("window", [2, 3, 4, 5, 7, 8, 9])
def test_windows_of_a_maximum_on_both_sides_of_their_rules(window, stride):
    x = torch.randint(-9, 10, (2, 2, 11), generator=torch.Generator().manual_seed(window)).double()
    assert_exact(Function(lambda x: torch.max_pool1d(x, window, stride)), x)


@pytest.mark.parametrize("entries", [4096, 4097])  # 4096^2 = 2^24: one block of unit vectors, or two
def test_an_affine_map_read_off_in_one_block_and_in_two(entries):
    w = whole_numbers(entries)
    module, x = Function(lambda x, w: x @ w, w), whole_numbers(2, entries, seed=1)
    with torch.no_grad():
        assert torch.equal(torch.as_tensor(canonical(module, x[:1], check=False)(x)).flatten(), module(x))


@pytest.mark.parametrize("width", [255, 256])  # 256^2 = 2^16: a step is dense below, sparse from there
def test_a_step_of_a_program_is_dense_or_sparse(width):
    assert_exact(Function(lambda x, b: (2 * x + b).relu() - x, whole_numbers(width)), whole_numbers(3, width, seed=1))


# -- many large constants ----------------------------------------------------------------------------------------


class Deep(nn.Module):
    """20 square matrices, each reached through another view; values stay whole numbers below 2^53."""

    def __init__(self, seed, n):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        sparse = [torch.zeros(n, n + 2).double() for _ in range(20)]
        for w in sparse:
            place = torch.randperm(n, generator=generator)
            w[torch.arange(n), place + 1] = torch.randint(1, 3, (n,), generator=generator).double()
        self.matrices = nn.ParameterList([nn.Parameter(w) for w in sparse])
        self.eval()

    def forward(self, x):
        for k, w in enumerate(self.matrices):
            w = w[:, 1:-1]
            x = torch.relu([x @ w, x @ w.T, x @ w.flip(0), nn.functional.linear(x, w), x @ w.flip(1).T][k % 5]) - x
        return x


def test_many_large_constants_in_many_modules_in_a_row():
    x = whole_numbers(3, 256)
    for seed in range(6):
        module = Deep(seed, 256)
        with torch.no_grad():
            expected = module(x)
            assert torch.equal(rewrite(module, x, check=False)(x), expected)
            if seed < 2:
                assert torch.equal(torch.as_tensor(canonical(module, x, check=False)(x)), expected)
                assert torch.equal(run(Program.of(module, x[0], check=False), x), expected)


AVERAGES = {  # kernel, sizes, further arguments: whether it is the matrix of a band of rows
    "a band of 256 entries": ((2, 2), (4, 128), {}, True),
    "a band of 260": ((2, 2), (4, 130), {}, False),
    "windows of 3 x 2": ((3, 2), (6, 8), {}, True),
    "windows of whole columns": ((6, 1), (6, 5), {}, True),
    "another divisor": ((2, 2), (6, 8), {"divisor_override": 8}, True),
    "a row left over": ((2, 2), (7, 8), {}, False),
    "a column left over": ((2, 2), (6, 9), {}, False),
    "windows that overlap": ((2, 2), (6, 8), {"stride": 1}, False),
    "padding": ((2, 2), (6, 8), {"padding": 1}, False),
}


@pytest.mark.parametrize("case", AVERAGES)
def test_an_average_is_the_matrix_of_a_band_or_a_convolution(case):
    kernel, size, further, band = AVERAGES[case]
    module, x = Function(lambda x: F.avg_pool2d(x, kernel, **further)), 12 * whole_numbers(3, 2, *size)
    plain = rewrite(module, x[:1])
    assert (F.linear in {node.target for node in plain.graph.nodes}) == band
    # At most six products with one rounded factor, and their sums: a dozen roundings of numbers up to 12.
    torch.testing.assert_close(plain(x), module(x), rtol=0, atol=1e-14)
    unbatched = Function(lambda x: F.avg_pool2d(x[:, 0], kernel, **further))  # the channels are the batch
    torch.testing.assert_close(rewrite(unbatched, x[:1])(x), unbatched(x), rtol=0, atol=1e-14)


def columns(*slices):
    """x (b, 2, 6, 3) -> its parts along the third dimension."""
    return lambda x: [x[:, :, s] for s in slices]


BATCHES = {"the batch behind": 2, "the batch behind what is halved": 3, "the batch last": 3}  # dimensions; else 0
PARTS = {  # of x, and whether they make up x, so that their sum needs no concatenation
    "two by turns": (columns(slice(0, 6, 2), slice(1, 6, 2)), True),
    "three by turns": (columns(slice(0, 6, 3), slice(1, 6, 3), slice(2, 6, 3)), True),
    "two halves": (columns(slice(0, 3), slice(3, 6)), True),
    "three blocks": (columns(slice(0, 2), slice(2, 4), slice(4, 6)), True),
    "six entries": (columns(*(slice(k, k + 1) for k in range(6))), True),
    "halves of the channels": (lambda x: x.chunk(2, 1), True),
    "the last dimension": (lambda x: [x[..., k : k + 1] for k in range(3)], True),
    "the batch behind": (lambda x: x.permute(1, 2, 0, 3).chunk(2, 1), True),
    "the batch behind what is halved": (lambda x: x.permute(3, 1, 2, 0)[:2].chunk(2, 0), True),
    "the batch last": (lambda x: x.permute(3, 2, 1, 0).chunk(3, 1), True),
    "the other way round": (columns(slice(3, 6), slice(0, 3)), False),
    "blocks that overlap": (columns(slice(0, 4), slice(2, 6)), False),
    "the first two of three": (columns(slice(0, 2), slice(2, 4)), False),
    "blocks with a gap": (columns(slice(0, 2), slice(4, 6)), False),
    "the first two of three by turns": (columns(slice(0, 6, 3), slice(1, 6, 3)), False),
    "two entries of three": (lambda x: [x[..., :1], x[..., 1:2]], False),
    "one part twice": (columns(slice(0, 3), slice(0, 3)), False),
    "along two dimensions": (lambda x: [x[:, :1, :3], x[:, 1:, 3:]], False),
    "of two tensors": (lambda x: [x[:, :, :3], x.relu()[:, :, 3:]], False),
}


@pytest.mark.parametrize("case", PARTS)
def test_a_sum_of_parts_is_concatenated_unless_they_make_up_a_tensor(case):
    parts, whole = PARTS[case]

    def function(x):
        first, *others = parts(x)
        for k, part in enumerate(others):
            first = torch.add(first, part, alpha=k + 2)
        return first.relu().movedim(BATCHES.get(case, 0), 0)

    module, x = Function(function), whole_numbers(3, 2, 6, 3)
    assert_exact(module, x)
    assert (torch.cat not in {node.target for node in rewrite(module, x[:1]).graph.nodes}) == whole
