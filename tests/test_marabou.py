"""maraboupy 2.0.0 reads the files of both targets, and proves of the perceptron what is true of the original.

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
OPTIONS = Marabou.createOptions(verbosity=0, timeoutInSeconds=300)
# A bound and its violation lie this far, relative to 1 + |bound|, on either side of the exact one: a float32 file is
# off by 1e-5 (test_targets.py), Marabou's own tolerance is 1e-6.
MARGIN = 1e-3


def read(path):
    return Marabou.read_onnx(str(path))


def reaches(path, sign, bound):
    """Whether Marabou finds an input of the box with sign * output_0 >= sign * bound; None if it does not decide."""
    net = read(path)
    for x in np.concatenate([v.ravel() for v in net.inputVars]):
        net.setLowerBound(x, BOX[0])
        net.setUpperBound(x, BOX[1])
    y = net.outputVars[0].ravel()[0]
    net.addInequality([y], [-sign], -sign * bound)  # -sign y <= -sign bound
    answer, _, _ = net.solve(verbose=False, options=OPTIONS)
    return {"sat": True, "unsat": False}.get(answer)


def exact_range(name):
    module = MODELS[name].double()
    box = (torch.full(shape_of(name), bound, dtype=torch.float64) for bound in BOX)
    return output_range(module, *box, time_limit=600)


def proves(path, exact):
    """Whether Marabou proves the exact range of output 0: it reaches both ends, and nothing beyond."""
    for sign, end in ((-1, exact.found[0]), (1, exact.found[1])):
        step = MARGIN * (1 + abs(end))
        if reaches(path, sign, end - sign * step) is not True or reaches(path, sign, end + sign * step) is not False:
            return False
    return True


# Those whose proof takes seconds.
PROVED = [
    "residual addition",
    "concatenation",
    "maximum",
    "clamp, relu6",
    "leaky relu",
    "prelu",
    "absolute value",
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", PROVED)
def test_marabou_proves_the_exact_range_of_the_perceptron(name, tmp_path):
    exact = exact_range(name)
    assert exact.is_exact
    plain = rewrite(MODELS[name].float(), torch.zeros(1, *shape_of(name)), "perceptron", box=BOX)
    onnx_file.save(plain, tmp_path / "net.onnx")
    assert proves(tmp_path / "net.onnx", exact)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", MODELS)
def test_marabou_reads_the_target_verifier_as_the_model(name, tmp_path):
    onnx_file.save(rewrite(MODELS[name].float(), torch.zeros(1, *shape_of(name)), "verifier"), tmp_path / "net.onnx")
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
    with torch.no_grad():
        return MODELS[name].double()(example(name).double())[0, 0].item()


def example(name):
    return torch.randn(1, *shape_of(name), generator=torch.Generator().manual_seed(1))
