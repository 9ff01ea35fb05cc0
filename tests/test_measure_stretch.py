"""Break points found with values in windows alone are those found with every value at every point, ties included."""

from random import Random
from unittest import mock

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import skipform
from skipform.errors import SkipformError
from skipform.measure import Program, line, reference, stretch
from skipform.measure.cuts import KAPPA_LIMIT
from skipform.measure.line import line_of
from skipform.measure.local import local_steps
from skipform.measure.program import TOLERANCE, UNIT, SparseMap

# Each of the two locates a point up to kappa times the tolerance of a value, relative to the segment.
CLOSE = 2 * KAPPA_LIMIT * TOLERANCE * UNIT
BLOCKS = ["residual", "strided", "shortcut", "dense", "scaled", "pooled", "padded", "grouped", "difference"]


class Images(nn.Module):
    """Convolutions of small images with weights of few bits, so that ties abound, and one of the local operations."""

    def __init__(self, blocks: list[str], rng: Random, *, exact_ties: bool) -> None:
        super().__init__()
        self.blocks = blocks
        self.first = nn.Conv2d(1, 2, 3, padding=1)
        self.convolutions = nn.ModuleList()
        channels = 2
        for block in blocks:
            groups = channels if block in ("scaled", "grouped") else 1
            outer, size = (1, 3) if block == "dense" else (channels, 1 if block == "scaled" else 3)
            stride = 2 if block in ("strided", "shortcut") else 1
            outer += block == "shortcut"
            self.convolutions.append(nn.Conv2d(channels, outer, size, stride, size // 2, groups=groups))
            channels = channels + 1 if block == "dense" else outer
        self.last = nn.LazyLinear(2)
        self(torch.zeros(1, 1, 4, 5))
        with torch.no_grad():
            for parameter in self.parameters():
                numbers = [rng.choice([-2, -1, 0, 1, 2]) for _ in range(parameter.numel())]
                if parameter.ndim == 1 and exact_ties:
                    numbers = [0] * parameter.numel()
                parameter.copy_(torch.tensor(numbers, dtype=torch.float64).view_as(parameter) / 2)
                if not exact_ties:
                    parameter.add_(torch.tensor([rng.gauss(0, 0.3) for _ in numbers]).view_as(parameter))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        for block, convolution in zip(self.blocks, self.convolutions, strict=True):
            h = convolution(x)
            if block == "residual":
                h = h + x
            elif block == "difference":
                h = x - h
            elif block == "shortcut":
                h = h + F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 0, 1))
            elif block == "dense":
                h = torch.cat([x, h], 1)
            elif block == "pooled" and min(h.shape[2:]) > 1:
                h = F.max_pool2d(h, 2, 1)
            elif block == "padded":
                h = F.pad(h, (1, 0, 0, 2))
            x = torch.relu(h)
        return self.last(x.flatten(1))


def image(rng: Random) -> Tensor:
    return torch.tensor([float(rng.randint(-2, 2)) for _ in range(20)], dtype=torch.float64).view(1, 4, 5)


@given(
    blocks=st.lists(st.sampled_from(BLOCKS), max_size=3),
    seed=st.integers(0, 2**20),
    exact_ties=st.booleans(),
    block=st.sampled_from([1, 300, 1 << 22]),
)
@settings(max_examples=10)
def test_windows_give_the_break_points_that_all_values_give(blocks, seed, exact_ties, block):
    rng = Random(seed)
    net = Images(blocks, rng, exact_ties=exact_ties).double().eval()
    a, b = image(rng), image(rng)
    program = Program.of(net, a)
    assert len(local_steps(program)) == len(program.steps) - 1
    ends = torch.stack([a, b]).flatten(1)
    expected = line_of(program, ends, dense=True)
    with mock.patch.object(stretch, "BLOCK", block):
        actual = line_of(program, ends)
    assert (actual.count, actual.pieces) == (expected.count, expected.pieces)
    np.testing.assert_allclose(actual.breakpoints, expected.breakpoints, rtol=0, atol=CLOSE)


@pytest.mark.parametrize("blocks", [["residual"], ["pooled"], ["shortcut"]], ids="-".join)
def test_pieces_of_images_are_those_of_rational_arithmetic(blocks):
    for seed in range(3):
        rng = Random(seed)
        net = Images(blocks, rng, exact_ties=True).double().eval()
        a, b = image(rng), image(rng)
        exact = skipform.canonical(net, a[None]).exact()
        expected = reference.line_regions(exact, a.flatten().tolist(), b.flatten().tolist())
        assert line(net, a, b).pieces == reference.pieces(expected)


@pytest.mark.parametrize(
    ("name", "size", "rest"),
    [("resnet", {"depth": 8}, 1), ("preact", {"depth": 8}, 1), ("densenet", {"depth": 10, "growth": 4}, 1)],
)
def test_all_steps_of_a_convolutional_net_but_the_last_are_local(name, size, rest):
    torch.manual_seed(0)
    net = skipform.build(name, num_classes=3, **size).eval()
    a, b = torch.randn(2, 3, 8, 8)
    program = Program.of(net, a)
    assert len(local_steps(program)) == len(program.steps) - rest
    ends = torch.stack([a, torch.lerp(a, b, 0.2)]).flatten(1).double()
    expected, actual = line_of(program, ends, dense=True), line_of(program, ends)
    assert actual.count == expected.count > 30
    assert actual.pieces == expected.pieces
    np.testing.assert_allclose(actual.breakpoints, expected.breakpoints, rtol=0, atol=CLOSE)


def test_threads_and_the_size_of_a_stretch_change_no_count():
    rng = Random(1)
    net = Images(["residual", "strided", "residual"], rng, exact_ties=False).double().eval()
    a, b = 3 * image(rng), 3 * image(rng)
    one = line(net, a, b)
    assert one.count > 10
    with mock.patch.object(stretch, "BLOCK", 400):
        for threads in (1, 2):
            shares: list[float] = []
            regions = line(net, a, b, threads=threads, progress=shares.append)
            assert (regions.count, regions.pieces) == (one.count, one.pieces)
            np.testing.assert_allclose(regions.breakpoints, one.breakpoints, rtol=0, atol=CLOSE)
            assert len(shares) > 1
            assert shares == sorted(shares)
            assert shares[-1] == 1.0


def test_the_device_is_the_cpu_unless_another_is_given_and_one_without_numbers_is_refused():
    rng = Random(2)
    net = Images(["residual"], rng, exact_ties=False).double().eval()
    a, b = image(rng), image(rng)
    np.testing.assert_array_equal(line(net, a, b, device="cpu").breakpoints, line(net, a, b).breakpoints)
    for device in ("meta", "tpu", 1.5):
        with pytest.raises(SkipformError, match=r"line: device=.*cpu or cuda is accepted") as caught:
            line(net, a, b, device=device)
        assert "\n" not in str(caught.value)


def test_a_program_on_another_device_leaves_no_constant_behind():
    rng = Random(3)
    program = Program.of(Images(["shortcut", "dense"], rng, exact_ties=False).double().eval(), image(rng))
    moved, state = program.to(torch.device("meta")), torch.empty(2, 20, dtype=torch.float64, device="meta")
    for step in moved.steps:
        constants = [value for value in step.apply.constants.values() if isinstance(value, Tensor)]
        assert {value.device.type for value in constants} <= {"meta"}
        state = step.apply(state)
        assert (state.device.type, state.shape) == ("meta", (2, step.width))


@given(st.integers(0, 2**20))
@settings(max_examples=10)
def test_a_sparse_step_of_torch_is_that_of_scipy(seed):
    from scipy import sparse

    generator = np.random.default_rng(seed)
    matrix = sparse.random_array((7, 5), density=0.3, rng=generator, dtype=np.float64)
    bias, carried = torch.from_numpy(generator.integers(-3, 4, 7).astype(float)), torch.tensor([1, 3])
    matrix.data = generator.integers(-3, 4, len(matrix.data)).astype(float)  # whose products are exact
    state = torch.from_numpy(generator.integers(-3, 4, (4, 5)).astype(float))
    step = SparseMap(matrix, bias, carried)
    assert torch.equal(step.to(torch.device("cpu"))(state), step(state))
