"""maraboupy 2.0.0 reads the targets' files and proves of them what is true of the original.

Collected where its wheels exist (see conftest.py): CPython 3.11 on Linux, x86-64.
"""

import re
import warnings
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from verifier_models import MODELS, TWELVE, shape_of

from skipform.compiler import onnx_file
from skipform.compiler.rewrite import rewrite
from skipform.measure import output_range

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # it has no TensorFlow
    from maraboupy import Marabou

BOX = (-0.5, 1.0)
OPTIONS = Marabou.createOptions(verbosity=0, timeoutInSeconds=60)
# A bound and its violation lie this far, relative to 1 + |bound|, on either side of the exact one: a float32 file is
# off by 1e-5 (test_targets.py), Marabou's own tolerance is 1e-6.
MARGIN = 1e-3


def export(module, name, path):
    torch.onnx.export(module.float(), torch.zeros(1, *shape_of(name)), path, dynamo=False, opset_version=11)


def read(path):
    return Marabou.read_onnx(str(path))


def session_of(path):
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


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
    return output_range(module, *box)


def proves(path, exact):
    """Whether Marabou proves the exact range of output 0: it reaches both ends, and nothing beyond."""
    for sign, end in ((-1, exact.found[0]), (1, exact.found[1])):
        step = MARGIN * (1 + abs(end))
        if reaches(path, sign, end - sign * step) is not True or reaches(path, sign, end + sign * step) is not False:
            return False
    return True


def verdict(path, exact):
    """What Marabou does with a file: "proved", "wrong" or the reason why it reads it not."""
    try:
        read(path)
    except Exception as error:  # it raises what its parser happens to run into
        operation = re.search(r"Operation (\w+) not implemented", str(error))
        return f"refused: {operation[1]}" if operation else "refused"
    return "proved" if proves(path, exact) else "wrong"


@pytest.fixture(scope="module")
def verdicts(tmp_path_factory):
    """{model: verdict on the original, on the target verifier, on the target perceptron}, measured when asked for."""
    folder, known = tmp_path_factory.mktemp("marabou"), {}

    def of(name):
        if name not in known:
            exact = exact_range(name)
            assert exact.is_exact
            export(MODELS[name], name, folder / "original.onnx")
            row = [verdict(folder / "original.onnx", exact)]
            for target in ("verifier", "perceptron"):
                box = BOX if target == "perceptron" else None
                plain = rewrite(MODELS[name].float(), torch.zeros(1, *shape_of(name)), target, box=box)
                onnx_file.save(plain, folder / "net.onnx")
                row.append(verdict(folder / "net.onnx", exact))
            known[name] = row
        return known[name]

    return of


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", MODELS)
def test_marabou_reads_both_targets_and_proves_the_exact_range(name, verdicts):
    original, *rewritten = verdicts(name)
    assert rewritten == ["proved", "proved"]
    print(name, original)


@pytest.mark.filterwarnings("ignore")
def test_the_table_of_the_readme_is_what_marabou_does(verdicts):
    lines = (Path(__file__).parents[1] / "README.md").read_text().splitlines()
    table = {cells[1].strip(): cells for line in lines if len(cells := line.split("|")) == 7}
    for name in MODELS:
        given = [cell.strip() for cell in table[name][2:5]]
        assert given == verdicts(name), name
    assert set(TWELVE) <= table.keys()


@pytest.mark.filterwarnings("ignore")
def test_marabou_ignores_the_padding_of_max_pooling_and_not_that_of_ours(tmp_path):
    """Marabou's issue 614. The witness: an input whose output Marabou proves to be impossible."""
    name = "padded max pooling"
    exact = exact_range(name)
    export(MODELS[name], name, tmp_path / "original.onnx")
    onnx_file.save(rewrite(MODELS[name].float(), torch.zeros(1, *shape_of(name)), "verifier"), tmp_path / "ours.onnx")
    for path in ("original.onnx", "ours.onnx"):
        for x, value in zip(exact.at, exact.found, strict=True):
            (y,) = session_of(tmp_path / path).run(
                None, {session_of(tmp_path / path).get_inputs()[0].name: x[None].float().numpy()}
            )
            assert abs(y[0, 0] - value) <= 1e-5 * (1 + abs(value))
    assert verdict(tmp_path / "ours.onnx", exact) == "proved"
    assert verdict(tmp_path / "original.onnx", exact) != "proved"
