"""Rewritten models as files: ONNX under onnxruntime, torch.export, and the command that writes them."""

import os
import subprocess
import sys

import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from test_compiler_models import randomised
from test_compiler_rules import Function
from torch import nn

from skipform.compiler.flatten import canonical
from skipform.compiler.rewrite import rewrite
from skipform.compiler.rules import RULES
from skipform.stages import cli
from skipform.stages import rewrite as stage
from skipform.stages.rewrite import export
from skipform.theory.network import CanonicalNetwork

ONNX = {"Conv", "Gemm", "MatMul", "Relu", "Concat", "Reshape", "Unsqueeze", "Slice", "Transpose", "Gather", "Expand"}
ONNX |= {"Pad"}  # zeros around the entries, as the shortcuts of the CIFAR nets have


class Small(nn.Module):
    """A convolution, batch norm, max pooling, a zero-padded shortcut, an average and an affine readout."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.MaxPool2d(3, 2, 1))
        self.block = nn.Sequential(nn.BatchNorm2d(4), nn.ReLU6(), nn.Conv2d(4, 6, 3, 2, 1))
        self.readout = nn.Linear(6, 5)

    def forward(self, x):
        x = self.stem(x)
        x = self.block(x) + F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 1, 1))
        return self.readout(x.mean((2, 3)))


@pytest.mark.filterwarnings("ignore")
def test_onnx_holds_only_affine_relu_concat_and_runs_for_any_batch(tmp_path):
    model = randomised(Small())
    plain = rewrite(model, torch.zeros(1, 3, 16, 16))
    export(plain, (torch.zeros(1, 3, 16, 16),), tmp_path / "net.onnx")
    assert {node.op_type for node in onnx.load(tmp_path / "net.onnx").graph.node} <= ONNX
    session = onnxruntime.InferenceSession(tmp_path / "net.onnx", providers=["CPUExecutionProvider"])
    for batch in (1, 5):
        x = torch.randn(batch, 3, 16, 16)
        with torch.no_grad():
            expected = model(x)
        (actual,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        assert (torch.from_numpy(actual) - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_the_command_writes_a_file_and_prints_a_summary(tmp_path, capsys):
    out = tmp_path / "net.safetensors"
    arguments = '{"in_channels": 1, "image_size": 2, "width": 8, "num_classes": 3}'
    options = ["--input", "1,1,2,2", "--arguments", arguments, "--out", str(out)]
    assert cli.main(["rewrite", "skipform.nets.mlp:build", *options]) == 0
    printed = capsys.readouterr().out
    for word in ("operations", "ReLUs", "layers", "difference", "written"):
        assert word in printed
    assert CanonicalNetwork.load(out).out_features == 3


def test_the_command_writes_a_program_that_torch_loads(tmp_path):
    out = tmp_path / "net.pt2"
    assert cli.main(["rewrite", "torch.nn:ReLU", "--input", "1,4", "--out", str(out)]) == 0
    x = torch.randn(3, 4)
    assert torch.equal(torch.export.load(out).module()(x), x.relu())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["torch.nn:GELU", "--input", "1,4", "--out", "net.onnx"], "gelu"),
        (["torch.nn:ReLU", "--input", "1,x", "--out", "net.onnx"], "--input '1,x'"),
        (["torch.nn:ReLU", "--input", "0,4", "--out", "net.onnx"], "at least 1"),
        (["torch.nn:ReLU", "--input", "1,4", "--out", "net.txt"], ".safetensors"),
        (["torch.nn:Nothing", "--input", "1,4", "--out", "net.onnx"], "MODULE:FACTORY"),
        (["nowhere:f", "--input", "1,4", "--out", "net.onnx"], "MODULE:FACTORY"),
        (["torch:eye", "--arguments", '{"n": 2}', "--input", "1,4", "--out", "net.onnx"], "returns a Tensor"),
    ],
)
def test_the_command_refuses_in_one_line_and_leaves_no_file(arguments, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["rewrite", *arguments]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
    assert words in line
    assert list(tmp_path.iterdir()) == []


LINEAR = ["torch.nn:Linear", "--arguments", '{"in_features": 4, "out_features": 3}', "--input", "1,4"]


@pytest.mark.parametrize(("dtype", "bound"), [("float64", 1e-12), ("float32", 2**29 * 1e-12)])
def test_the_command_writes_a_file_up_to_its_bound_and_none_above(dtype, bound, tmp_path, monkeypatch, capsys):
    difference = stage._difference

    def differing(by):
        def measured(model, plain, inputs):
            return bound * by if inputs[0].dtype == getattr(torch, dtype) else difference(model, plain, inputs)

        return measured

    out = tmp_path / "net.safetensors"
    monkeypatch.setattr(stage, "_difference", differing(2.0))
    assert cli.main(["rewrite", *LINEAR, "--out", str(out)]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
    assert f"Linear: rewritten, it differs by {2 * bound:.1e} in {dtype}" in line
    monkeypatch.setattr(stage, "_difference", differing(float("nan")))
    assert cli.main(["rewrite", *LINEAR, "--out", str(out)]) == 2
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(stage, "_difference", differing(0.5))
    assert cli.main(["rewrite", *LINEAR, "--out", str(out)]) == 0
    assert f"{bound / 2:.1e} in {dtype}" in capsys.readouterr().out


def test_the_command_exits_2_in_one_line_where_a_rule_is_wrong(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(RULES, "linear", lambda e, x, weight, bias=None: e.linear(x, weight, None))
    assert cli.main(["rewrite", *LINEAR, "--out", str(tmp_path / "net.pt2")]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
    assert "linear at the module itself (Linear)" in line
    assert "defect of skipform" in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_difference_is_relative_to_the_largest_output_and_nan_is_not_lost(dtype):
    x = torch.tensor([[1.0, -8.0]], dtype=dtype)
    one, other = (Function(lambda x, t=t: [x * 0, x, x + t]) for t in (0.0, 2.0))
    assert stage._difference(one, one, [x]) == 0
    assert stage._difference(one, other, [x]) == 2 / 8
    for outputs in ([0.0, float("nan"), 0.0], [0.0, 0.0, float("nan")]):
        lost = Function(lambda x, outputs=outputs: [y + t for y, t in zip(one(x), outputs, strict=True)])
        assert stage._difference(one, lost, [x]) != stage._difference(one, lost, [x])


def write(folder):
    """Everything that a rewritten network is written to, from one module and one seed."""
    folder.mkdir()
    torch.manual_seed(0)
    model, x = randomised(Small()), torch.zeros(1, 3, 8, 8)
    plain = rewrite(model, x)
    (folder / "code").write_text(plain.code)
    (folder / "buffers").write_bytes(b"".join(n.encode() + b.numpy().tobytes() for n, b in plain.named_buffers()))
    canonical(model, x).save(folder / "net.safetensors")
    for suffix in (".onnx", ".pt2"):
        export(plain, (x,), folder / f"net{suffix}")


@pytest.mark.filterwarnings("ignore")
def test_rewriting_twice_and_in_two_processes_writes_the_same_bytes(tmp_path):
    write(tmp_path / "first")
    write(tmp_path / "second")
    code = "import sys, pathlib, test_compiler_export as test; test.write(pathlib.Path(sys.argv[1]))"
    environment = {**os.environ, "PYTHONHASHSEED": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", code, tmp_path / "third"], env=environment, check=True, capture_output=True)
    names = {path.name for path in (tmp_path / "first").iterdir()}
    assert names == {"code", "buffers", "net.safetensors", "net.onnx", "net.pt2"}
    for name in names:
        assert len({path.read_bytes() for path in tmp_path.glob(f"*/{name}")}) == 1, name
        assert len([*tmp_path.glob(f"*/{name}")]) == 3
