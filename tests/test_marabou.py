"""maraboupy 2.0.0 reads the files of both targets as the model, and what it proves of them is true.

Collected where its wheels exist (see conftest.py): CPython 3.11 on Linux, x86-64.
"""

import signal
import sys
import warnings
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from verifier_models import MODELS, PADDED, PADDED_SHAPE, shape_of

from skipform.compiler import onnx_file
from skipform.compiler.rewrite import rewrite
from skipform.measure import output_range
from skipform.nets import build

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # it has no TensorFlow
    from maraboupy import Marabou

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))  # for the program of the README's table
import table_clients  # noqa: E402

BOX = (-0.5, 1.0)
TARGETS = ["verifier", "perceptron"]
LONG = 600  # seconds, on a loaded machine; otherwise some
BRIEF = 1
# A bound and its violation lie this far, relative to 1 + |bound|, on either side of the exact one: a float32 file is
# off by 1e-5 (test_targets.py), Marabou's own tolerance is 1e-6.
MARGIN = 1e-3


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Marabou leaves a query that it cannot take in the working directory."""
    monkeypatch.chdir(tmp_path)


def options(seconds):
    return Marabou.createOptions(verbosity=0, timeoutInSeconds=seconds)


def read(path):
    return Marabou.read_onnx(str(path))


def write(name, target, path):
    box = BOX if target == "perceptron" else None
    onnx_file.save(rewrite(MODELS[name].float(), torch.zeros(1, *shape_of(name)), target, box=box), path)


def reached(path, sign, bound, seconds, box=BOX):
    """The input of the box, of numbers or one for each input, at which Marabou says that sign * output_0 >= sign *
    bound; False if it proves that there is none; None if its time is up."""
    answer = table_clients.within(seconds + 60, lambda: solved(path, sign, bound, seconds, box))
    return torch.tensor(answer, dtype=torch.float64) if answer else answer


def solved(path, sign, bound, seconds, box):
    """The same, as a list: a tensor would be shared with a process that ends."""
    net = read(path)
    inputs = np.concatenate([v.ravel() for v in net.inputVars])
    for x, low, high in zip(inputs, *(np.broadcast_to(bound, inputs.shape) for bound in box), strict=True):
        net.setLowerBound(x, float(low))
        net.setUpperBound(x, float(high))
    y = net.outputVars[0].ravel()[0]
    net.addInequality([y], [-sign], -sign * bound)  # -sign y <= -sign bound
    answer, values, _ = net.solve(verbose=False, options=options(seconds))
    if answer == "sat":
        return [values[int(x)] for x in inputs]
    return {"unsat": False}.get(answer)


def test_who_does_not_end_in_time_is_ended():
    def deaf():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        while True:
            pass

    before = psutil.Process().children()
    assert table_clients.within(1, deaf) is None
    assert psutil.Process().children() == before
    assert table_clients.within(60, lambda: [1.5]) == [1.5]


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
        x = reached(tmp_path / "net.onnx", sign, end - sign * step, LONG)
        assert isinstance(x, torch.Tensor), "time is up" if x is None else "a wrong proof"
        assert sign * (value_at(name, x).item() - end) >= -2 * step
        beyond = reached(tmp_path / "net.onnx", sign, end + sign * step, LONG)
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
def test_marabou_proves_a_false_bound_of_padded_max_pooling_but_not_of_what_is_rewritten(tmp_path):
    """Marabou's issue 614. Only pixel (3, 3) is free, in [0, 1], and one window has it: the output reaches 1. Of the
    exported file Marabou proves that it stays below 1/2, since without the padding no window has that pixel; of ours it
    finds an input, at which the model itself is above 1/2."""
    upper = torch.zeros(PADDED_SHAPE)
    upper[0, 3, 3] = 1.0
    box, zeros = (torch.zeros(49), upper.flatten()), torch.zeros(1, *PADDED_SHAPE)
    torch.onnx.export(PADDED, zeros, tmp_path / "exported.onnx", dynamo=False, opset_version=11)
    assert reached(tmp_path / "exported.onnx", 1, 0.5, LONG, box) is False
    for target in TARGETS:
        path = tmp_path / f"{target}.onnx"
        onnx_file.save(rewrite(PADDED, zeros, target, box=(0.0, 1.0) if target == "perceptron" else None), path)
        witness = reached(path, 1, 0.5, LONG, box)
        assert isinstance(witness, torch.Tensor)
        assert ((witness >= -1e-6) & (witness <= upper.flatten() + 1e-6)).all()  # Marabou's own tolerance
        assert PADDED(witness.float().reshape(1, *PADDED_SHAPE)).item() >= 0.5 - 1e-4
        assert reached(path, 1, 1.0 + MARGIN, LONG, box) is False  # and beyond the exact maximum there is nothing


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", table_clients.MODELS)
def test_the_table_of_the_readme_is_what_marabou_answers(name):
    """Renew it with `python benchmarks/table_clients.py`."""
    assert table_clients.row(name) in (ROOT / "README.md").read_text(encoding="utf-8").splitlines()


# float32 files: 1e-5 (test_targets.py), of values below 10.
READING = 1e-4


def value_by_marabou(path, name):
    x = example(name).numpy()
    (y,) = table_clients.within(LONG + 60, lambda: read(path).evaluateWithMarabou([x], f"{path}.log", options(LONG)))
    return y.ravel()[0]


def value_by_torch(name):
    return value_at(name, example(name).double()).item()


def example(name):
    return torch.randn(1, *shape_of(name), generator=torch.Generator().manual_seed(1))


@pytest.mark.filterwarnings("ignore")
def test_marabou_refuses_the_net_of_the_robust_radii_as_exported_and_reads_what_is_rewritten(tmp_path):
    net = build("pooled", pool="max", width=2, in_channels=1).eval()
    torch.onnx.export(net, torch.zeros(1, 1, 8, 8), tmp_path / "exported.onnx", dynamo=False, opset_version=11)
    with pytest.raises(NotImplementedError, match="GlobalAveragePool"):
        read(tmp_path / "exported.onnx")
    onnx_file.save(rewrite(net, torch.zeros(1, 1, 8, 8), "verifier"), tmp_path / "rewritten.onnx")
    rewritten = read(tmp_path / "rewritten.onnx")
    assert [v.size for v in (*rewritten.inputVars, *rewritten.outputVars)] == [64, 10]
