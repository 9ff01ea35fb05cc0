"""Inputs that tempt a measure to return a wrong number without an error: each gives the right one or is refused."""

import copy
from collections.abc import Callable
from fractions import Fraction
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_measure_regions import random_net, random_point
from torch import Tensor, nn

from skipform.errors import SkipformError
from skipform.measure import bounds, functional_dimension, jacobian_rank, line, plane, reference, trajectory_length
from skipform.measure import program as programs
from skipform.theory.affine import Affine
from skipform.theory.network import CanonicalNetwork, perceptron


def net(*, bias: bool = True) -> nn.Sequential:
    torch.manual_seed(0)
    sizes = [(3, 8), (8, 8), (8, 2)]
    first, second, last = (nn.Linear(*size, bias=bias) for size in sizes)
    return nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), last).double().eval()


def points(n: int = 4) -> Tensor:
    return torch.randn(n, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


class After(nn.Module):
    """function(net(x))."""

    def __init__(self, function: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.net, self.function = net(), function
        self.eval()

    def forward(self, x: Tensor) -> Any:
        return self.function(self.net(x))


class SubtractsInPlace(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.sub_(1.0)


@pytest.mark.parametrize("scale", [1e-300, 1e-140, 1e140, 1e200])
def test_regions_without_biases_do_not_depend_on_scale_or_are_refused(scale: float) -> None:
    f, (a, b, c, _) = net(bias=False), points()
    if not 1e-144 < scale < 1e144:
        for measured in (lambda: line(f, scale * a, scale * b), lambda: plane(f, scale * a, scale * b, scale * c)):
            with pytest.raises(SkipformError, match="neither overflows nor underflows"):
                measured()
        return
    assert line(f, scale * a, scale * b).count == line(f, a, b).count
    assert plane(f, scale * a, scale * b, scale * c).count == plane(f, a, b, c).count


@pytest.mark.parametrize("scale", [1e-200, 1e-100, 1e100, 1e200])
def test_weights_that_multiply_beyond_float64_are_refused(scale: float) -> None:
    f, (a, b, _, _) = net(bias=False), points()
    with torch.no_grad():
        for weight in f.parameters():
            weight *= scale
    with pytest.raises(SkipformError, match="neither overflows nor underflows"):
        line(f, a, b)


def test_products_that_vanish_in_float64_are_no_zeros() -> None:
    f = perceptron([Affine.of([[1e-140]]), Affine.of([[1e-300]], [0.0]), Affine.of([[1.0]])])
    with pytest.raises(SkipformError, match="neither overflows nor underflows"):
        line(f, torch.tensor([-1.0]), torch.tensor([1.0]))


@pytest.mark.parametrize("scale", [1e-300, 1e-200, 1.0, 1e200, 1e300])
def test_lengths_scale_with_the_path(scale: float) -> None:
    expected, actual = (
        trajectory_length(net(bias=False), points()),
        trajectory_length(net(bias=False), scale * points()),
    )
    np.testing.assert_allclose((actual.input / scale, actual.output / scale), (expected.input, expected.output), 1e-12)


def test_ranks_in_inference_mode_are_those_outside() -> None:
    f, x = net(), points()
    expected = jacobian_rank(f, x[0]).rank, functional_dimension(f, x).rank
    with torch.inference_mode():
        assert (jacobian_rank(f, x[0].clone()).rank, functional_dimension(f, x.clone()).rank) == expected == (2, 8)


def test_a_module_that_writes_into_its_input_is_measured_at_the_given_points() -> None:
    f, plain, x = nn.Sequential(SubtractsInPlace(), net()).eval(), net(), points()
    before = x.clone()
    assert functional_dimension(f, x).singular_values == pytest.approx(
        functional_dimension(plain, x - 1).singular_values
    )
    assert jacobian_rank(f, x[0]).singular_values == pytest.approx(jacobian_rank(plain, x[0] - 1).singular_values)
    assert trajectory_length(f, x).output == pytest.approx(trajectory_length(plain, x - 1).output)
    assert line(f, x[0], x[1]).count == line(plain, x[0] - 1, x[1] - 1).count
    assert torch.equal(x, before)


def test_lengths_do_not_depend_on_the_position_of_the_batch_dimension() -> None:
    path = points()
    assert trajectory_length(After(lambda y: y.mT), path) == trajectory_length(net(), path)


def test_an_output_in_a_tuple_or_a_dictionary_is_that_output() -> None:
    x = points()
    for function in (lambda y: (y,), lambda y: {"scores": y}):
        f = After(function)
        assert line(f, x[0], x[1]).count == line(net(), x[0], x[1]).count
        assert jacobian_rank(f, x[0]).rank == 2
        assert functional_dimension(f, x).rank == 8
        assert trajectory_length(f, x) == trajectory_length(net(), x)


@pytest.mark.parametrize("function", [lambda y: (y, y), lambda y: (y, 2 * y), lambda y: None])
def test_anything_but_one_output_is_refused(function: Callable[[Tensor], Any]) -> None:
    f, x = After(function), points()
    for measured in (
        lambda: line(f, x[0], x[1]),
        lambda: plane(f, x[0], x[1], x[2]),
        lambda: jacobian_rank(f, x[0]),
        lambda: functional_dimension(f, x),
        lambda: trajectory_length(f, x),
    ):
        with pytest.raises(SkipformError, match=r"one tensor is accepted|one is accepted"):
            measured()


def test_randomness_in_forward_is_refused() -> None:
    f, x = After(lambda y: F.dropout(y, 0.5)), points()
    for measured in (lambda: jacobian_rank(f, x[0]), lambda: functional_dimension(f, x)):
        with pytest.raises(SkipformError, match="without chance"):
            measured()


@pytest.mark.parametrize("number", [float("nan"), float("inf"), 1j])
def test_points_that_are_not_finite_or_not_real_are_refused(number: complex) -> None:
    f, x = net(), points()
    bad = x * number
    for measured in (
        lambda: line(f, x[0], bad[1]),
        lambda: plane(f, x[0], x[1], bad[2]),
        lambda: jacobian_rank(f, bad[0]),
        lambda: functional_dimension(f, bad),
        lambda: trajectory_length(f, bad),
        lambda: trajectory_length(f, bad, exact=True),
    ):
        with pytest.raises(SkipformError, match="accepted"):
            measured()


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(number: float) -> None:
    module = net()
    module[0].weight.data[0, 0] = number
    matrix = np.ones((2, 3))
    matrix[0, 0] = number
    x = points()
    for f in (module, perceptron([Affine.of(matrix), Affine.of([[1.0, 1.0]])])):
        for measured in (
            lambda f=f: line(f, x[0], x[1]),
            lambda f=f: plane(f, x[0], x[1], x[2]),
            lambda f=f: jacobian_rank(f, x[0]),
            lambda f=f: functional_dimension(f, x),
            lambda f=f: trajectory_length(f, x),
        ):
            with pytest.raises(SkipformError, match=r"accepted|finite weights"):
                measured()


@pytest.mark.parametrize("entry", [Fraction(1, 10**400), Fraction(10**400)])
def test_fractions_beyond_float64_are_refused(entry: Fraction) -> None:
    f = perceptron([Affine.of([[entry]], [-entry / 2], exact=True), Affine.of([[1]], exact=True)])
    for measured in (lambda: line(f, torch.zeros(1), torch.ones(1)), lambda: functional_dimension(f, torch.ones(1, 1))):
        with pytest.raises(SkipformError, match="for float64"):
            measured()


def test_a_measure_owns_its_network_and_its_points() -> None:
    maps = Affine.of(np.eye(2), [-0.5, -0.5]), Affine.of([[1.0, 1.0]])
    canonical = perceptron(maps)
    module = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1)).double().eval()
    with torch.no_grad():
        for layer, affine in zip((module[0], module[2]), maps, strict=True):
            layer.weight.copy_(torch.from_numpy(affine.weight.toarray()))
            layer.bias.copy_(torch.from_numpy(affine.bias))
    for f in (canonical, module):
        origin, (u, v) = torch.zeros(2, dtype=torch.float64), torch.eye(2, dtype=torch.float64)
        regions = plane(f, origin, u, v)
        assert regions.count == 4
        origin += 9
        u += 1
        if isinstance(f, nn.Module):
            nn.init.zeros_(f[0].weight)
        else:
            f.layers[0].bias[:] = 7
        assert (regions.pieces, regions.maps) == (4, 4)


def test_a_layer_without_units_is_measured() -> None:
    f = nn.Sequential(nn.Linear(3, 0), nn.ReLU(), nn.Linear(0, 2)).double().eval()
    x = points()
    assert line(f, x[0], x[1]).count == 1
    regions = plane(f, x[0], x[1], x[2])
    assert (regions.count, regions.pieces, regions.maps) == (1, 1, 1)
    assert jacobian_rank(f, x[0]).rank == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_weights_in_any_dtype_are_the_numbers_that_they_are(dtype: torch.dtype) -> None:
    rounded, x = net().to(dtype), points().to(dtype)
    exact = copy.deepcopy(rounded).double()
    for given in (x, x.double(), x.mT.contiguous().mT, x.clone().requires_grad_()):
        actual, expected = line(rounded, given[0], given[1]), line(exact, x[0].double(), x[1].double())
        np.testing.assert_array_equal(actual.breakpoints, expected.breakpoints)
        assert jacobian_rank(rounded, given[0]).rank == 2


def rotated(x: Tensor) -> Tensor:
    """Of a net without weights: the constants are in float32."""
    return torch.relu(F.linear(x, torch.full((3, 3), 0.1)) + torch.tensor([0.1, 0.2, 0.3]))


def shifted(x: Tensor) -> Tensor:
    state = torch.zeros(x.shape[0], 2)
    return torch.relu(x.float() @ torch.eye(2) + state)


class Constants(nn.Module):
    def __init__(self, *layers: nn.Module, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.layers, self.function = nn.Sequential(*layers), function
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.layers(x))


@pytest.mark.parametrize("f", [Constants(function=rotated), Constants(net().float(), function=shifted)])
def test_constants_that_forward_makes_keep_their_numbers_in_float64(f: Constants) -> None:
    x = points().float()
    assert line(f, x[0], x[1]).count >= 1
    moved = programs.promoted(f)(x.double())
    assert moved.dtype == torch.float64
    if f.function is rotated:  # 0.1 is the number that float32 has for it
        exact = [torch.tensor(number).double() for number in (0.1, [0.1, 0.2, 0.3])]
        expected = torch.relu(x.double() @ exact[0].expand(3, 3).T + exact[1])
        torch.testing.assert_close(moved, expected, rtol=1e-14, atol=0)
    assert jacobian_rank(f, x[0]).rank <= 2
    assert trajectory_length(f, x).output >= 0


@pytest.mark.parametrize("rows", [2, 3, 7])
def test_blocks_of_any_size_count_the_same(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib import import_module

    nets = [(random_net(rng), rng) for rng in map(Random, range(15))]
    monkeypatch.setattr(import_module("skipform.measure.line"), "_BLOCK", rows)
    for f, rng in nets:
        a, b = random_point(rng, f.in_features), random_point(rng, f.in_features)
        expected = reference.line_regions(f, a, b)
        actual = line(f, *(torch.tensor([float(x) for x in point], dtype=torch.float64) for point in (a, b)))
        assert (actual.count, actual.pieces) == (len(expected), reference.pieces(expected))


def test_products_with_dense_and_with_sparse_layers_are_equal() -> None:
    """A layer of 255 x 256 entries is dense, one of 256 x 256 with few of them filled sparse."""
    rng = np.random.default_rng(0)
    for width in (255, 256, 257):
        weight = rng.standard_normal((width, 256)) * (rng.random((width, 256)) < 0.02)
        f = perceptron([Affine.of(weight, rng.standard_normal(width)), Affine.of(rng.standard_normal((2, width)))])
        x = torch.from_numpy(rng.standard_normal((2, 256)))
        step = programs.Program.of(f, x[0]).steps[0]
        assert (step.weight is None) == (width >= 256)
        np.testing.assert_allclose(step.apply(x)[:, :width], f.layers[0](x.numpy()), rtol=0, atol=1e-12)


@pytest.mark.parametrize("box", [(-1e-200, 1e-200, 0, 1), (-1e200, 1e200, 0, 1), (-1.7e308, 1.7e308, 0, 1), (1, 2, 3)])
def test_a_box_that_has_no_area_in_float64_is_refused(box: Any) -> None:
    with pytest.raises(SkipformError, match="box"):
        plane(net(), *points(3), box)


def test_bounds_do_not_depend_on_the_kind_of_integer_and_take_any_depth() -> None:
    assert bounds([np.int64(1000)] * 3, np.int64(30)) == bounds([1000] * 3, 30)
    assert bounds([2] * 3000, 1).serra == 3**3000  # on one dimension every layer of n units multiplies by n + 1
    for widths, inputs in (([2.5], 2), (["a"], 2), (3, 2), ([3], 2.5)):
        with pytest.raises(SkipformError, match="integers"):
            bounds(widths, inputs)  # type: ignore[arg-type]


@pytest.mark.parametrize("f", [None, nn.ReLU, lambda x: x, net().to("meta")])
def test_what_is_no_network_is_refused(f: Any) -> None:
    x = points()
    for measure, given in ((jacobian_rank, x[0]), (functional_dimension, x), (trajectory_length, x)):
        with pytest.raises(SkipformError, match="measure: "):
            measure(f, given)
    with pytest.raises(SkipformError, match="measure: "):
        line(f, x[0], x[1])


@pytest.mark.parametrize("shape", [(6,), (3, 2, 3), (0, 6), ()])
def test_a_batch_of_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    canonical = perceptron([Affine.of(np.ones((4, 6))), Affine.of(np.ones((2, 4)))])
    assert isinstance(canonical, CanonicalNetwork)
    with pytest.raises(SkipformError, match="accepted"):
        functional_dimension(canonical, torch.ones(shape))
