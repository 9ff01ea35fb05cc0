"""maraboupy 2.0.0 reads the files of both targets as the model, and what it proves of them is true.

Collected where its wheels exist (see conftest.py): CPython 3.11 on Linux, x86-64.
"""

import warnings

import numpy as np
import pytest
import torch
from verifier_models import MODELS, shape_of

from skipform.compiler import onnx_file
from skipform.compiler.rewrite import rewrite
from skipform.measure import output_range

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # it has no TensorFlow
    from maraboupy import Marabou

BOX = (-0.5, 1.0)
TARGETS = ["verifier", "perceptron"]
OPTIONS = Marabou.createOptions(verbosity=0, timeoutInSeconds=60)
BRIEF = Marabou.createOptions(verbosity=0, timeoutInSeconds=1)
# A bound and its violation lie this far, relative to 1 + |bound|, on either side of the exact one: a float32 file is
# off by 1e-5 (test_targets.py), Marabou's own tolerance is 1e-6.
MARGIN = 1e-3


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Marabou leaves a query that it cannot take in the working directory."""
    monkeypatch.chdir(tmp_path)


def read(path):
    return Marabou.read_onnx(str(path))


def write(name, target, path):
    box = BOX if target == "perceptron" else None
    onnx_file.save(rewrite(MODELS[name].float(), torch.zeros(1, *shape_of(name)), target, box=box), path)


def reached(path, sign, bound, options):
    """The input of the box at which Marabou says that sign * output_0 >= sign * bound; False if it proves that there
    is none; None if its time is up."""
    net = read(path)
    inputs = np.concatenate([v.ravel() for v in net.inputVars])
    for x in inputs:
        net.setLowerBound(x, BOX[0])
        net.setUpperBound(x, BOX[1])
    y = net.outputVars[0].ravel()[0]
    net.addInequality([y], [-sign], -sign * bound)  # -sign y <= -sign bound
    answer, values, _ = net.solve(verbose=False, options=options)
    if answer == "sat":
        return torch.tensor([values[int(x)] for x in inputs], dtype=torch.float64)
    return {"unsat": False}.get(answer)


def value_at(name, x):
    with torch.no_grad():
        return MODELS[name].double()(x.reshape(-1, *shape_of(name)))[:, 0]


# Those with four inputs, of which every proof takes seconds.
DECIDED = ["residual addition", "maximum", "clamp, relu6", "leaky relu", "prelu", "absolute value"]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", DECIDED)
def test_marabou_proves_the_exact_range(name, target, tmp_path):
    """It reaches both ends, and nothing beyond."""
    box = (torch.full(shape_of(name), bound, dtype=torch.float64) for bound in BOX)
    exact = output_range(MODELS[name].double(), *box, time_limit=60)
    assert exact.is_exact
    write(name, target, tmp_path / "net.onnx")
    for sign, end in ((-1, exact.found[0]), (1, exact.found[1])):
        step = MARGIN * (1 + abs(end))
        x = reached(tmp_path / "net.onnx", sign, end - sign * step, OPTIONS)
        assert isinstance(x, torch.Tensor), "time is up" if x is None else "a wrong proof"
        assert sign * (value_at(name, x).item() - end) >= -2 * step
        beyond = reached(tmp_path / "net.onnx", sign, end + sign * step, OPTIONS)
        assert beyond is False, "time is up" if beyond is None else "a wrong proof"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", [name for name in MODELS if name not in DECIDED])
def test_marabou_proves_nothing_false_of_the_others(name, target, tmp_path, record_property):
    """A value that some input takes is not proved out of reach, and an input that is named takes it. Where the time is
    up, nothing is proved; the report of the test says so."""
    write(name, target, tmp_path / "net.onnx")
    x = torch.rand(1000, *shape_of(name), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = value_at(name, BOX[0] + (BOX[1] - BOX[0]) * x)
    for sign, end in ((-1, y.min().item()), (1, y.max().item())):
        bound = end - sign * MARGIN * (1 + abs(end))
        answer = reached(tmp_path / "net.onnx", sign, bound, BRIEF)
        assert answer is not False, "a wrong proof"
        if answer is None:
            record_property("undecided", f"{name}, {target}: {sign} y >= {sign * bound:.4g}")
        else:
            assert sign * (value_at(name, answer).item() - bound) >= -MARGIN * (1 + abs(end))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", MODELS)
def test_marabou_reads_the_target_verifier_as_the_model(name, tmp_path):
    write(name, "verifier", tmp_path / "net.onnx")
    assert abs(value_by_marabou(tmp_path / "net.onnx", name) - value_by_torch(name)) <= READING


@pytest.mark.filterwarnings("ignore")
def test_marabou_ignores_the_padding_of_max_pooling_in_the_original_only(tmp_path):
    """Marabou's issue 614: at an input below zero it reads another value than the model has."""
    name = "padded max pooling"
    torch.onnx.export(
        MODELS[name].float(), torch.zeros(1, *shape_of(name)), tmp_path / "net.onnx", dynamo=False, opset_version=11
    )
    try:
        value = value_by_marabou(tmp_path / "net.onnx", name)
    except (AssertionError, ValueError, RuntimeError):
        return  # the sizes that it computes without the padding do not fit the next layer
    assert abs(value - value_by_torch(name)) > READING


# float32 files: 1e-5 (test_targets.py), of values below 10.
READING = 1e-4


def value_by_marabou(path, name):
    x = example(name)
    (y,) = read(path).evaluateWithMarabou([x.numpy()], f"{path}.log", OPTIONS)
    return y.ravel()[0]


def value_by_torch(name):
    return value_at(name, example(name).double()).item()


def example(name):
    return torch.randn(1, *shape_of(name), generator=torch.Generator().manual_seed(1))
