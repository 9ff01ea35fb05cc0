"""The compiler's check of its result: every kind of defect is found and named, and rounding is not mistaken for one."""

import pytest
import torch
import torch.nn.functional as F
from test_compiler_models import randomised
from test_compiler_rules import Function, numbers
from torch import nn

from skipform.compiler import check, flatten
from skipform.compiler.emit import Emitter
from skipform.compiler.flatten import canonical
from skipform.compiler.rewrite import rewrite
from skipform.compiler.rules import RULES
from skipform.errors import InternalError
from skipform.measure import program
from skipform.measure.program import Program


class Net(nn.Module):
    """Every operation that is sabotaged below, followed by others that could hide it."""

    def __init__(self):
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Linear(12, 3)
        self.register_buffer("order", torch.tensor([5, 0, 3, 1, 2, 4]))

    def forward(self, x):
        x = F.leaky_relu(self.norm(self.first(x)), 0.1)
        x = torch.cat([x.index_select(1, self.order), torch.relu(x) * 1.5], 1)
        return self.last(x)


def net():
    torch.manual_seed(0)
    return randomised(Net()).double()


LEAKY, SELECT, CAT = RULES["leaky_relu"], RULES["index_select"], RULES["cat"]
SABOTAGED = {  # the linear map with 3 outputs: the other one is folded into the batch norm, which is then named
    "a wrong slope": ("leaky_relu", lambda e, x, slope: LEAKY(e, x, slope + 0.01)),
    "a wrong index": ("index_select", lambda e, x, dim, index: SELECT(e, x, dim, index.roll(1))),
    "a wrong buffer": (
        "linear",
        lambda e, x, weight, bias: e.linear(x, weight.flip(1) if len(weight) == 3 else weight, bias),
    ),
    "a forgotten bias": ("linear", lambda e, x, weight, bias: e.linear(x, weight, None if len(weight) == 3 else bias)),
    "swapped channels": ("cat", lambda e, tensors, dim: CAT(e, tensors[::-1], dim)),
    "mixed samples": ("relu", lambda e, x: e.emit(torch.flip, e.relu(x), (0,))),
    "an error of 1e-9": ("mul", lambda e, x, y: e.scale(x, y * (1 + 1e-9), 0.0)),
}


@pytest.mark.parametrize("defect", SABOTAGED)
def test_a_wrong_rule_is_named(defect, monkeypatch):
    name, rule = SABOTAGED[defect]
    monkeypatch.setitem(RULES, name, rule)
    module, x = net(), numbers(2, 6)
    with pytest.raises(InternalError, match=f"^{name} at .*differs by"):
        rewrite(module, x)
    with pytest.raises(InternalError, match=f"^{name} at "):
        canonical(module, x)
    with pytest.raises(InternalError, match=f"^{name} at "):
        Program.of(module, x[0])
    assert not torch.allclose(rewrite(module, x, check=False)(x), module(x), rtol=0, atol=1e-10)


def test_a_fold_that_forgets_the_bias_is_named(monkeypatch):
    fold = Emitter._fold
    monkeypatch.setattr(Emitter, "_fold", lambda self, x, s, t: fold(self, x, s, 0 * t))
    with pytest.raises(InternalError, match=r"^batch_norm at norm"):
        rewrite(net(), numbers(2, 6))


@pytest.mark.parametrize("relative", [1e-9, 0.5])
def test_a_wrong_matrix_of_the_canonical_network_is_named(relative, monkeypatch):
    matrix = flatten.matrix_of

    def wrong(graph, node, source):
        fixed, constant = matrix(graph, node, source)
        return fixed * (1 + relative), constant

    monkeypatch.setattr(flatten, "matrix_of", wrong)
    module, x = net(), numbers(2, 6)
    with pytest.raises(InternalError, match="differs by"):
        canonical(module, x)
    canonical(module, x, check=False)


def test_a_wrong_step_of_a_program_is_named(monkeypatch):
    module, x = net(), numbers(6)
    network = canonical(module, x[None])
    step, segment = program._affine_step, program.Segment.__call__
    monkeypatch.setattr(program, "_affine_step", lambda a, carried: step(a.compose(scaled(a.in_features)), carried))
    monkeypatch.setattr(program.Segment, "__call__", lambda self, state: segment(self, state) * (1 + 1e-9))
    with pytest.raises(InternalError, match="step 0 of a canonical network"):
        Program.of(network, x)
    with pytest.raises(InternalError, match="differs by"):
        Program.of(module, x)
    Program.of(network, x, check=False)
    Program.of(module, x, check=False)


def scaled(n):
    from skipform.theory.affine import identity

    one = identity(n)
    return type(one)(one.indptr, one.indices, one.data * (1 + 1e-9), one.bias, one.in_features)


@pytest.mark.parametrize(("times", "passes"), [(0.5, True), (2.0, False)])
def test_a_difference_passes_up_to_its_bound(times, passes):
    expected = torch.tensor([[1.0, -4.0], [0.5, 0.25]], dtype=torch.float64)
    for sample, largest in ((0, 4.0), (1, 0.5)):  # relative to the largest entry of its own sample
        other = expected.clone()
        other[sample, 1] += times * check.AGREEMENT * largest
        assert check.agree(expected, other, 0, check.AGREEMENT) is passes
    other = expected.clone()
    other[0, 0] += times * 0.125
    assert check.agree(expected, other, 0, check.AGREEMENT, torch.tensor([0.125, 0.0], dtype=torch.float64)) is passes


@pytest.mark.parametrize(("times", "passes"), [(0.5, True), (2.0, False)])
def test_a_rule_that_is_off_by_half_the_bound_passes_and_by_twice_does_not(times, passes, monkeypatch):
    factor = 1 + times * check.AGREEMENT
    monkeypatch.setitem(RULES, "mul", lambda e, x, y: e.scale(x, y * factor, 0.0))
    module, x = Function(lambda x: x * 1.0 + 0).eval(), numbers(2, 4)
    monkeypatch.setattr(check, "ALLOWED", 0.0)  # the bound for agreement alone
    if passes:
        rewrite(module, x)
    else:
        with pytest.raises(InternalError, match=r"^mul "):
            rewrite(module, x)


def test_infinities_and_nan_are_equal_to_themselves_alone():
    x = torch.tensor([[torch.inf, torch.nan, 1.0]], dtype=torch.float64)
    assert check.agree(x, x.clone(), 0, check.AGREEMENT)
    for changed in ([-torch.inf, torch.nan, 1.0], [torch.inf, 1.0, 1.0], [torch.inf, torch.nan, torch.nan]):
        assert not check.agree(x, torch.tensor([changed], dtype=torch.float64), 0, check.AGREEMENT)


def deep(layers=50, width=12):
    torch.manual_seed(1)
    parts = [part for _ in range(layers) for part in (nn.Linear(width, width), nn.LeakyReLU(0.5))]
    return nn.Sequential(*parts)


LEGITIMATE = {
    "cancellation": Function(lambda x: ((x * 1e8 + x.flip(1)) - x * 1e8) * 1e4),
    "very different sizes": Function(lambda x: torch.maximum(x * 1e8, x.flip(1) * 1e-8)),
    "differences of large maxima": Function(lambda x: torch.maximum(x + 1e9, x.flip(1)) - 1e9),
    "fifty layers": deep(),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", LEGITIMATE)
def test_rounding_is_no_defect(name, dtype):
    module, x = LEGITIMATE[name].to(dtype).eval(), numbers(2, 12).to(dtype)
    rewrite(module, x)
    canonical(module, x)
    Program.of(module, x[0])


class Fixed(nn.Module):
    """Tensors of the forward's own dtype: they do not follow a promotion of the weights to float64."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 3)

    def forward(self, x):
        y = self.linear(x) @ torch.full((3, 3), 0.1)
        return torch.cat([y, torch.full_like(y, torch.finfo(x.dtype).min)], 1)


def test_a_forward_that_makes_tensors_of_its_own_dtype_is_compared_in_that_dtype():
    torch.manual_seed(0)
    x = torch.randn(4, 3)
    module = Fixed().eval()
    # two sums of three products each, in float32, of entries below 10: at most 8 roundings of 2^-24
    torch.testing.assert_close(rewrite(module, x)(x), module(x), rtol=0, atol=8 * 2**-24 * 10)


def test_a_module_that_works_in_place_on_its_input_is_compared_at_the_points_it_was_given():
    class InPlace(nn.Module):
        def forward(self, x):
            return x.mul_(2).relu_()

    for dtype in (torch.float32, torch.float64):
        x = torch.randn(4, 3, dtype=dtype)
        torch.testing.assert_close(rewrite(InPlace().eval(), x.clone())(x), (2 * x).relu(), rtol=0, atol=0)
