"""Convolutions on points are torch's, and threads change no number."""

import sys

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

import skipform
from skipform.errors import SkipformError
from skipform.measure import Program, line, plane
from skipform.measure.convolution import FEWEST, conv2d

whole = st.integers


@given(data=st.data(), n=st.sampled_from([FEWEST - 1, FEWEST, FEWEST + 3]), seed=whole(0, 2**20))
@settings(max_examples=40)
def test_a_convolution_of_whole_numbers_is_exactly_torchs(data, n, seed):
    channels, out, rows, columns = (data.draw(whole(1, 4)) for _ in range(4))
    kernel = [data.draw(whole(1, 3)) for _ in range(2)]
    padding = [data.draw(whole(max(0, k - size), 2)) for k, size in zip(kernel, (rows, columns), strict=True)]
    how = {"stride": data.draw(st.sampled_from([1, 2, (2, 1), (1, 3)])), "padding": padding}
    generator = torch.Generator().manual_seed(seed)

    def numbers(*shape):
        return torch.randint(-3, 4, shape, generator=generator).double()

    x, weight = numbers(n, channels, rows, columns), numbers(out, channels, *kernel)
    bias = numbers(out) if data.draw(st.booleans()) else None
    assert torch.equal(conv2d(x, weight, bias, **how), F.conv2d(x, weight, bias, **how))


@pytest.mark.parametrize("how", [{"groups": 2}, {"dilation": 2}, {"padding": "same"}])
def test_other_convolutions_are_left_to_torch(how):
    x = torch.arange(FEWEST * 2 * 6 * 5, dtype=torch.float64).reshape(FEWEST, 2, 6, 5)
    weight = torch.ones(2, 2 // how.get("groups", 1), 3, 2, dtype=torch.float64)
    assert torch.equal(conv2d(x, weight, None, **how), F.conv2d(x, weight, None, **how))


def test_the_numbers_do_not_depend_on_the_threads(monkeypatch):
    monkeypatch.setattr("skipform.measure.cutting._BLOCK", 1 << 10)  # so that a small net has many blocks
    # By its name: skipform.measure.line is the function.
    monkeypatch.setattr(sys.modules["skipform.measure.line"], "_BLOCK", 1 << 7)
    torch.manual_seed(0)
    net = skipform.build("mlp", in_channels=2, image_size=1, depth=3, width=16, num_classes=2).eval()
    origin, (u, v) = torch.zeros(2, 1, 1), torch.eye(2).view(2, 2, 1, 1)
    program = Program.of(net, origin)
    one = line(program, -u, v + u)
    for threads in (1, 2, 3):
        shares: list[float] = []
        regions = line(program, -u, v + u, threads=threads, progress=shares.append)
        assert (regions.count, regions.pieces) == (one.count, one.pieces)
        assert regions.count > 10
        assert (regions.breakpoints == one.breakpoints).all()
        assert shares == sorted(shares)
        assert shares[-1] == 1.0
    counts = [plane(program, origin, u, v, threads=threads).count for threads in (1, 2, 3)]
    assert counts[0] == counts[1] == counts[2] > 100


@pytest.mark.parametrize("threads", [0, -1, 1.5, True])
def test_threads_are_a_whole_number_of_at_least_one(threads):
    program = Program.of(torch.nn.Linear(2, 1).eval(), torch.zeros(2))
    for measure in (
        lambda: line(program, torch.zeros(2), torch.ones(2), threads=threads),
        lambda: plane(program, torch.zeros(2), *torch.eye(2), threads=threads),
    ):
        with pytest.raises(SkipformError, match="at least 1 is accepted"):
            measure()
