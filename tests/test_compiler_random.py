"""Random modules made of every operation in the table of rules, against the modules themselves.

A run draws 315 functions, FUNCTIONS of them in a module, a function being a chain or graph of 1 to 6 operations.
The draws are the same at every run; conftest.py says how to have fresh ones.

Tolerance. Half of the modules are whole: their weights and inputs are small whole numbers and every division is by a
power of 2, so that all sums are exact whatever their order, and the rewritten module must give the same numbers, in
float64 and float32. Where that does not hold (1/3, a square root, numbers above 2^53 or 2^24, normal weights) the
difference has a bound. Let a step be Lipschitz with constant g in the largest entry (its largest row sum of absolute
weights; the test knows it), M_in and M_out the largest entries before and after, T the number of entries of the largest
tensor that it sums over, u the unit roundoff. Each of its at most T + 8 roundings is of a number of at most
2 g M_in + M_out, so that errors e obey, from e = 0 at the inputs,

    e_out <= g e_in + (T + 8) u (2 g M_in + M_out)

and two evaluations differ by at most 2 e_out at the end. The oracle is the module in float64.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, reject, settings
from hypothesis import strategies as st
from random_modules import GENERATORS, UNREACHED, assert_within, inputs_of, leaves, modules, run
from torch import nn

from skipform.compiler.flatten import canonical
from skipform.compiler.rewrite import rewrite
from skipform.compiler.rules import RULES
from skipform.compiler.targets.grammar import StrictEmitter
from skipform.errors import SkipformError
from skipform.measure.program import Program

MODULES = 45


def test_every_operation_of_the_table_has_a_generator_or_a_reason():
    assert set(RULES) == set(GENERATORS) | set(UNREACHED)


@pytest.mark.parametrize("part", range(5))
def test_every_generator_reaches_the_rule_of_its_name(part, monkeypatch):
    reached = set()

    def watched(name, rule):
        return lambda *args, **how: (reached.add(name), rule(*args, **how))[1]

    for table in (RULES, StrictEmitter.rules):  # the target has rules of its own
        for name, rule in table.items():
            monkeypatch.setitem(table, name, watched(name, rule))
    names = sorted(GENERATORS)[part::5]

    def draw(chosen):
        @settings(max_examples=2)
        @given(modules(len(chosen), 2, [[name] for name in chosen]))
        def every_operation(drawn):
            module, _, sizes, whole = drawn
            inputs = inputs_of(sizes, 2, whole)
            plain = rewrite(module, inputs, check=False)
            with torch.no_grad():
                assert_within(leaves(module(*inputs)), leaves(plain(*inputs)), module.bounds(inputs, 2.0**-53, whole))

        every_operation()

    draw(names)
    for name in sorted(set(names) - reached):  # torch.export decomposes some next to an operation that has no pure form
        draw([name])
    assert reached >= set(names), set(names) - reached


class Indexing(nn.Module):
    def __init__(self, name):
        super().__init__()
        self.name = name

    def forward(self, x):
        return {"take": torch.take, "take_along_dim": lambda x, i: torch.take_along_dim(x, i[None], 1)}[self.name](
            x, torch.tensor([0, 1])
        )


@pytest.mark.parametrize(("name", "words"), [("take", "take"), ("take_along_dim", "fixes the batch size")])
def test_what_no_generator_reaches_is_refused(name, words):
    with pytest.raises(SkipformError, match=words):
        rewrite(Indexing(name).eval(), torch.zeros(2, 2))


def unless_refused(make: Callable[..., Any], *args: Any, **how: Any) -> Any:
    """make(...), or another example: where another size of the module makes torch compare it with the batch, the export
    takes a branch on the batch size, and the module is refused (about one module in a hundred)."""
    try:
        return make(*args, **how)
    except SkipformError as error:
        if "branches on the batch size" not in str(error):
            raise
        reject()


@settings(max_examples=MODULES)
@given(modules(), st.integers(1, 3), st.booleans(), st.sampled_from(["grammar", "keep_add"]), st.booleans())
def test_random_modules_equal_their_rewriting(drawn, batch, single, target, check):
    double, float32, sizes, whole = drawn
    module = float32 if single else double
    dtype, unit = (torch.float32, 2.0**-24) if single else (torch.float64, 2.0**-53)
    example = tuple(x.to(dtype) for x in inputs_of(sizes, batch, whole))
    plain = unless_refused(rewrite, module, example, target, check=check)
    for other in (1, 4):
        inputs = inputs_of(sizes, other, whole)
        inputs = tuple(x.to(dtype).double() for x in inputs)
        with torch.no_grad():
            expected, given = leaves(double(*inputs)), leaves(plain(*(x.to(dtype) for x in inputs)))
            assert_within(expected, given, double.bounds(inputs, unit, whole))


@settings(max_examples=MODULES // 3)
@given(modules(2), st.booleans())
def test_random_modules_equal_their_canonical_network(drawn, check):
    module, _, sizes, whole = drawn
    example = inputs_of(sizes, 1, whole)
    network = unless_refused(canonical, module, example, check=check)
    with torch.no_grad():
        for seed in (1, 2):
            inputs = tuple(x[:1] for x in inputs_of(sizes, seed, whole))
            x = inputs[0] if len(inputs) == 1 else torch.cat([x.reshape(1, -1) for x in inputs], 1)
            given = torch.as_tensor(network(x))
            expected = [y.flatten() for y in leaves(module(*inputs))]
            pieces = given.flatten().split([len(y) for y in expected])
            assert_within(expected, list(pieces), module.bounds(inputs, 2.0**-53, whole))


@settings(max_examples=MODULES // 3)
@given(modules(1, 1), st.booleans())
def test_random_modules_equal_their_program(drawn, check):
    module, _, sizes, whole = drawn
    points = inputs_of(sizes, 3, whole)
    program = unless_refused(Program.of, module, points[0][0], check=check)
    with torch.no_grad():
        (expected,) = leaves(module(*points))
        batch = next(d for d, n in enumerate(module(*inputs_of(sizes, 41, whole)).shape) if n == 41)
        assert_within(
            [expected.movedim(batch, 0).reshape(3, -1)],
            [run(program, points[0])],
            module.bounds(points, 2.0**-53, whole),
        )
