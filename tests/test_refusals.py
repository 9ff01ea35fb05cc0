"""What is refused: one line that names the thing and what is accepted, exit status 2, before any work."""

import errno
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated

import numpy as np
import pytest
import yaml

import skipform
from skipform.arguments import Range, Share, Size, typed
from skipform.errors import SkipformError, one_line, shown
from skipform.files import write_json
from skipform.stages import cli

INF, NAN = float("inf"), float("nan")

EXPERIMENT = """
variants:
  one: {name: mlp, depth: 1, width: 4}
data: {name: digits, limit: 40}
optimizer: {name: sgd, lr: 0.1}
trainer: {max_epochs: 1, accelerator: cpu}
threads: 1
wandb: disabled
"""

MODELS = """
import sys
import time
import torch
from torch import nn

def perceptron():
    return nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2))

def with_weight(value):
    net = perceptron()
    net[0].weight.data[0, 0] = float(value)
    return net

def exits():
    sys.exit(3)

def raises():
    raise KeyError("two\\nlines")

class Model(nn.Module):
    def __init__(self, forward):
        super().__init__()
        self.function = forward

    def forward(self, x):
        return self.function(x)

def exits_forward():
    return Model(lambda x: sys.exit(4))

def divides():
    return Model(lambda x: x / (1 // 0))

def branches():
    return Model(lambda x: x if x.sum() > 0 else -x)

def returns_no_number():
    return Model(lambda x: x[:, :0])

def contains_itself():
    model = perceptron()
    model.append(model)
    return model

def nothing():
    return None

class Silent(nn.Module):
    def forward(self, x):
        return None
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The working directory: an experiment at one scale, and models for MODULE:FACTORY."""
    for name in ("scale", "survey"):
        (tmp_path / "experiments" / name).mkdir(parents=True)
    (tmp_path / "experiments" / "scale" / "embedded.yaml").write_text("")
    (tmp_path / "models_to_refuse.py").write_text(MODELS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def refused(argv, capsys, status=2):
    """The one line of a command that fails."""
    assert cli.main(argv) == status
    seen = capsys.readouterr()
    assert re.fullmatch(r"[^\r\n]+\n", seen.err), seen.err
    assert len(seen.err) < 3000
    assert not seen.out
    return seen.err.removeprefix(f"skipform {argv[0]}: error: ").strip()


RANGES = {  # a line of the experiment -> what is put there, and the words of the error
    "lr: 0.1": {
        "lr: .nan": "optimizer.lr: nan; accepted: a finite number",
        "lr: .inf": "optimizer.lr: inf; accepted: a finite number",
        "lr: 0": "optimizer.lr: 0; accepted: above 0, at most",
        "lr: -1": "optimizer.lr: -1; accepted: above 0, at most",
        "lr: 0.1, weight_decay: -1": "optimizer.weight_decay: -1; accepted: 0 to",
        "lr: 0.1, momentum: 1.5": "optimizer.momentum: 1.5; accepted: 0 or more, below 1",
        "lr: 0.1, betas: [0.9, 1]": "optimizer.betas: 1; accepted: 0 or more, below 1",
        "lr: 0.1, eps: 0": "optimizer.eps: 0; accepted: above 0, at most 1",
        "lr: 0.1, warmup: -5": "optimizer.warmup: -5; accepted: 0 or more",
        "lr: 0.1, floor: 2": "optimizer.floor: 2; accepted: 0 to 1",
        "lr: 0.1, decay: -1": "optimizer.decay: -1; accepted: above 0, at most 1",
        "lr: 0.1, milestones: [0.5, 7]": "optimizer.milestones: 7; accepted: 0 to 1",
        "lr: 1" + 400 * "0": "optimizer.lr: 10+... \\(401 characters\\); accepted: a finite number",
        "lr: !!int abc": "not YAML: .*abc",
        "lr: !!timestamp abc": "not YAML: ",
    },
    "width: 4": {
        "width: 0": r"variants\.one\.width: 0; accepted: 1 to 1048576",
        "width: 10000000": r"variants\.one\.width: 10000000; accepted: 1 to 1048576",
        "width: "
        + 100_000 * "x": r"variants\.one\.width: 'x+\.\.\. \(100,002 characters\) is not accepted; accepted: int$",
        "width: null": r"variants\.one\.width: None is not accepted; accepted: int$",
    },
    "{name: mlp, depth: 1, width: 4}": {"&a {name: fcn, backbone: *a}": "holds itself"},
    "depth: 1,": {"depth: 1000000,": r"variants\.one\.depth: 1000000; accepted: 0 to 10000"},
    "max_epochs: 1,": {
        "max_epochs: 1, devices: 1000000,": r"trainer\.devices: 1000000; accepted: 1 to 64",
        "max_epochs: 1, devices: 0,": r"trainer\.devices: 0; accepted: 1 to 64",
        "max_epochs: 1, num_nodes: -1,": r"trainer\.num_nodes: -1; accepted: 1 to",
        "max_epochs: 1, gradient_clip_val: -1,": r"trainer\.gradient_clip_val: -1; accepted: above 0",
        "max_epochs: 1, gradient_clip_val: .nan,": r"trainer\.gradient_clip_val: nan; accepted: a finite number",
    },
    "threads: 1": {"threads: 100000": "threads: 100000; accepted: 0 to 256", "threads: true": "threads: True is not"},
    "optimizer: {name: sgd, lr: 0.1}": {"optimizer: null": "optimizer: accepted is `key: value` lines, got None"},
    "data: {name: digits, limit: 40}": {
        "data: null": "data: accepted is `key: value` lines, got None",
        "data: {name: [1]}": r"data\.name: unknown \[1\]; accepted: ",
        "task: null": r"data\.name: missing|task: accepted is",
    },
    "{name: digits, limit: 40}": {
        "{name: digits, limit: 40, crop: 1000}": r"data\.crop: 1000; accepted: 0 to 256",
    },
    "name: mlp, depth: 1, width: 4": {
        "name: gpt": r"variants\.one: it does not take images of shape \(1, 8, 8\): ",
        "name: mlp, depth: 10, width: 1000000": r"variants\.one: [\d,]{13,} parameters; accepted: as many as fit",
        "name: mlp, width: 0100": r"width: '0100' is not accepted; accepted: int",  # 64 in YAML 1.1
        "name: mlp, width: 1:30": r"width: '1:30' is not accepted; accepted: int",  # 90 in YAML 1.1
    },
    "  one: {": {
        f"  {300 * 'a'}: {{": "label 'a+.*accepted: .* at most 100",
        "  summary.json: {": r"label 'summary\.json'; accepted: .*none of \.json",
    },
}


@pytest.mark.parametrize(
    ("old", "new", "words"), [(old, new, words) for old, cases in RANGES.items() for new, words in cases.items()]
)
def test_a_value_that_makes_no_sense_is_refused_by_name(old, new, words, folder, capsys):
    assert old in EXPERIMENT
    file = Path("experiments/survey/some.yaml")
    file.write_text(EXPERIMENT.replace(old, new))
    line = refused(["fit", "--config", str(file)], capsys)
    assert re.search(words, line), line
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--seeds", "-1"], "seeds: -1; accepted: 0 to"),
        (["--seeds", "1", "1"], "seeds: .* one or more different"),
        (["--workers", "0"], "--workers: 0; accepted: 1 or more"),
        (["--threads", "100000"], "threads: 100000; accepted: 0 to 256"),
        (["--optimizer.lr", "-1"], r"some\.yaml \(embedded\): optimizer\.lr: -1; accepted: above 0"),
        (["--optimizer.lr", "nan"], r"optimizer\.lr: 'nan' is not accepted; accepted: float"),
        (["--optimizer.lr", ".nan"], r"optimizer\.lr: nan; accepted: a finite number"),
        (["--optimizer.lr=-.inf"], r"optimizer\.lr: -inf; accepted: a finite number"),
        (["--optimizer.lr", "1e999"], r"optimizer\.lr: inf; accepted: a finite number"),
        (["--optimizer.betas", "&a [*a]"], r"optimizer\.betas: '&a \[\*a\]' is not accepted; accepted: tuple"),
        (["--trainer.fast", "{a:"], r"trainer\.fast: '\{a:' is not accepted; accepted: bool"),
        (["--trainer.devices", "1000000"], r"trainer\.devices: 1000000; accepted: 1 to 64"),
    ],
)
def test_a_number_on_the_command_line_of_fit_has_the_same_range(argv, words, folder, capsys):
    Path("experiments/survey/some.yaml").write_text(EXPERIMENT)
    assert re.search(words, refused(["fit", "--config", "experiments/survey/some.yaml", *argv], capsys))
    assert not Path("runs").exists()


def test_an_unknown_scale_is_refused_before_torch_is_imported(folder):
    Path("experiments/survey/some.yaml").write_text(EXPERIMENT)
    code = (
        "import sys; from skipform.stages import cli\n"
        "assert cli.main(sys.argv[1:]) == 2\n"
        "assert 'torch' not in sys.modules\n"
    )
    command = ["fit", "--config", "experiments/survey/some.yaml"]
    for words, params in ((["--scale", "wrong"], None), ([], "scale: wrong")):
        if params:
            Path("params.yaml").write_text(params)
        done = subprocess.run(
            [sys.executable, "-c", code, *command, *words], capture_output=True, text=True, check=True
        )
        assert done.stderr == "skipform fit: error: unknown scale 'wrong'; accepted: embedded\n"


def test_seeds_of_the_shared_parameters_are_numbers(folder, capsys):
    Path("experiments/survey/some.yaml").write_text(EXPERIMENT)
    Path("params.yaml").write_text("seeds: [true]")
    line = refused(["fit", "--config", "experiments/survey/some.yaml"], capsys)
    assert re.search("seeds: .*True.* is not accepted; accepted: list", line)


MODEL = ["models_to_refuse:perceptron", "--input"]
OPTIONS = [
    ("measure x --out y --slices 0", "--slices: 0; accepted: 1 or more"),
    ("measure x --out y --batch -3", "--batch: -3; accepted: 1 or more"),
    ("measure x --out y --workers 0", "--workers: 0; accepted: 1 or more"),
    ("measure x --out y.json", "x: no finished run"),
    ("claims x --out y --margin .inf", "--margin: inf; accepted: a finite number"),
    ("claims x --out y --margin -1", "--margin: -1.0; accepted: 0 to"),
    ("examples x --out y --count 0", "--count: 0; accepted: 1 or more"),
    ("examples x --out y", "x: no finished experiment"),
    ("grammar --out y --workers 0", "--workers: 0; accepted: 1 or more"),
    ("verify --instances 0", "--instances: 0; accepted: 1 or more"),
    ("verify --seed -1", "--seed: -1; accepted: 0 to"),
    ("notebooks --kernels 0", "--kernels: 0; accepted: 1 or more"),
    ("regions x --seed -1", "--seed: -1; accepted: 0 to"),
    ("regions x --memory_gib 0", "--memory_gib: 0.0; accepted: above 0"),
    ("regions x --memory_gib .nan", "--memory_gib: nan; accepted: a finite number"),
    ("regions x --images [-1,0,1]", "--images: -1; accepted: 0 or more"),
    ("regions x --box [0,.nan,0,1]", "--box: nan; accepted: a finite number"),
    ("regions experiments", "'experiments': neither a run's folder"),
    ("regions models_to_refuse:perceptron --input 2 --box [0,1e308,0,1]", "plane: box .* sides of"),
    ("regions models_to_refuse:perceptron --input 2 --box [0,1e-300,0,1]", "plane: box .* sides of"),
    ("regions models_to_refuse:perceptron --input 2 --box [1,0,0,1]", "low s < high s|low < high"),
    ("regions models_to_refuse:perceptron --input 2 --points equal.npy", "the three points lie on one line"),
    ("regions models_to_refuse:perceptron --input 2 --points line.npy", "the three points lie on one line"),
    ("regions models_to_refuse:perceptron --input 2 --points nan.npy", "--points nan.npy: a number is NaN"),
    ('regions models_to_refuse:with_weight --input 2 --arguments {"value":"nan"}', "finite weights"),
    ('rewrite models_to_refuse:with_weight --input 1,2 --out a.onnx --arguments {"value":"inf"}', "finite weights"),
    ("rewrite models_to_refuse:exits --input 1,2 --out a.onnx", "SystemExit: 3; MODULE:FACTORY that returns"),
    (
        'regions skipform.nets:build --arguments {"name":"mlpp"} --input 1,2',
        r"'skipform\.nets:build': unknown net 'mlpp'; accepted: activation_blocks, .*, vit$",
    ),
    ("rewrite models_to_refuse:raises --input 1,2 --out a.onnx", "KeyError: .*two.*lines.*; MODULE:FACTORY"),
    ("rewrite models_to_refuse:nothing --input 1,2 --out a.onnx", "returns a NoneType; a torch.nn.Module is accepted"),
    ("rewrite models_to_refuse:Silent --input 1,2 --out a.onnx", "Silent: forward returns no tensor"),
    ("rewrite models_to_refuse:exits_forward --input 1,2 --out a.onnx", "Model: forward does not run .*SystemExit: 4"),
    ("rewrite models_to_refuse:divides --input 1,2 --out a.onnx", "Model: forward does not run .*ZeroDivisionError"),
    ("rewrite models_to_refuse:branches --input 1,2 --out a.onnx", "Model: forward branches on the values of a tensor"),
    ("rewrite models_to_refuse:returns_no_number --input 1,2 --out a.onnx", "Model: forward returns no number"),
    ("regions models_to_refuse:returns_no_number --input 2", "measure: the net returns no number"),
    ("rewrite models_to_refuse:contains_itself --input 1,2 --out a.onnx", "RecursionError.*; MODULE:FACTORY that"),
    ("rewrite models_to_refuse:perceptron --input 1,3 --out a.onnx", r"does not run on inputs of shape \(1, 3\)"),
    ("rewrite models_to_refuse:perceptron --input 99999,99999 --out a.onnx", "--input '99999,99999': at most"),
    ("rewrite models_to_refuse:perceptron --input 1,2 --out a.onnx --arguments [1]", "--arguments .*a JSON object"),
    ("rewrite models_to_refuse:perceptron --input 1,2 --out a.onnx --arguments {", "--arguments '{': not JSON"),
    (f"rewrite models_to_refuse:perceptron --input 1,2 --out a.onnx --arguments {100_000 * '['}", "nested too deeply"),
    (
        'rewrite models_to_refuse:with_weight --input 1,2 --out a.onnx --arguments {"value":NaN}',
        "NaN is no finite number",
    ),
    (f"list --root {100_000 * 'x'}", "File name too long|x{50}"),
    ("list --root absent", "--root absent: no such folder"),
    ("notebooks", r"\.: no notebooks \(analysis/\*\.py\) in it; accepted: a checkout"),
    ("sources --root experiments --out lists", "experiments: no experiments/survey in it; accepted: a checkout"),
    ("nothing", "unknown stage 'nothing'; accepted: repro, figures, compare, verify"),
    ("verif", r"unknown stage 'verif' \(did you mean verify\?\); accepted: "),
    ("verify --al", "unrecognized arguments: --al; accepted: --help, --out, --all"),
]


@pytest.mark.parametrize(("command", "words"), OPTIONS, ids=[command[:60] for command, _ in OPTIONS])
def test_an_argument_that_makes_no_sense_is_refused(command, words, folder, capsys):
    points = np.array([[0.0, 0.0], [1.0, 1.0], [2.0, 2.0]])
    np.save("line.npy", points)
    np.save("equal.npy", np.ones((3, 2)))
    np.save("nan.npy", points * NAN)
    before = sorted(folder.rglob("*"))
    line = refused(command.split(" "), capsys)
    assert re.search(words, line), line
    assert [path for path in sorted(folder.rglob("*")) if "__pycache__" not in path.parts] == before
    assert not Path("a.onnx").exists()
    assert not Path("regions.svg").exists()


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("fit --config experiments/survey/resnet.yaml", "resnet.yaml: no such experiment file; .*a checkout of the"),
        ("notebooks", r"\.: no notebooks .*; accepted: a checkout of the project"),
        ("repro", "no dvc.yaml in this folder; accepted: the top folder of a checkout"),
        ("paper", "paper/main.typ: no such file; accepted: .*a checkout of the project"),
        ("sources", r"\.: no experiments/survey in it; accepted: a checkout"),
        ("gpu_table --minutes 30", "table.yaml: no such file; a checkout of the project has"),
        ("publish", "runs/survey: no finished runs .*`skipform fit` writes them"),
        ("examples runs/survey --out out", "runs/survey: no finished experiment .*`skipform fit` writes them"),
        (
            "claims runs/claims/pooling --out out.json",
            "runs/claims/pooling: no finished runs .*`skipform fit` writes them",
        ),
    ],
)
def test_outside_a_checkout_a_command_says_in_one_line_what_it_needs(command, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert re.search(words, refused(command.split(), capsys))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: skipform.build("mlp", width=0), r"net 'mlp'\.width: 0; accepted: 1 to 1048576"),
        (lambda: skipform.build("vit", dropout=NAN), r"net 'vit'\.dropout: nan; accepted: a finite number"),
        (lambda: skipform.build("unet", levels=1000), r"net 'unet'\.levels: 1000; accepted: 0 to 16"),
        (
            lambda: skipform.task("classify", skipform.build("mlp"), {"lr": INF}),
            r"optimizer\.lr: inf; accepted: a finite",
        ),
        (
            lambda: skipform.task("segment", skipform.build("mlp"), num_classes=0),
            r"task\.num_classes: 0; accepted: 1 to",
        ),
        (lambda: skipform.data("digits", batch_size=-1), r"data\.batch_size: -1; accepted: 1 or more"),
        (lambda: skipform.data("digits", seed=-1), r"data\.seed: -1; accepted: 0 to"),
        (lambda: skipform.data("digits", limit=True), r"data\.limit: True is not accepted; accepted: int \| None"),
    ],
)
def test_the_package_refuses_what_the_command_line_refuses(call, words):
    with pytest.raises(SkipformError, match=words):
        call()


@pytest.mark.parametrize(
    ("value", "hint", "accepted"),
    [
        (0.5, Share, True),
        (1, Share, True),
        (1.0000001, Share, False),
        (NAN, Share, False),
        (0, Annotated[float, Range(above=0)], False),
        (1, Annotated[float, Range(0, below=1)], False),
        ([1, 2**20], tuple[Size, ...], True),
        ([1, 0], tuple[Size, ...], False),
        (None, Size | None, True),
        (0, Size | None, False),
        ({"a": -1}, dict[str, Share], False),
        (NAN, float, False),
    ],
)
def test_a_range_is_checked_wherever_it_stands_in_a_type(value, hint, accepted):
    if accepted:
        typed(value, hint, "x")
    else:
        with pytest.raises(SkipformError, match=r"^x: .*; accepted: [^\n]+$"):
            typed(value, hint, "x")


@pytest.mark.parametrize(
    ("words", "numbers"),
    [
        ("0 to 1", Range(0, 1)),
        ("1 or more", Range(1)),
        ("above 0", Range(above=0)),
        ("0 or more, below 1", Range(0, below=1)),
        ("above 0, at most 2", Range(above=0, most=2)),
    ],
)
def test_a_range_says_what_it_holds(words, numbers):
    assert repr(numbers) == words


def test_the_help_of_a_stage_shows_the_ranges(capsys):
    with pytest.raises(SystemExit):
        cli.main(["measure", "--help"])
    assert "1 or more" in capsys.readouterr().out


def test_long_values_are_cut():
    assert len(shown("x" * 100_000)) < 100
    assert len(one_line("y " * 100_000)) < 2100
    assert shown(10**5000) == "a number of more than 4,300 digits"


def test_a_training_that_diverges_stops_and_is_no_result(folder, capsys):
    file = Path("experiments/survey/some.yaml")
    wrong = yaml.safe_load(EXPERIMENT)
    wrong["optimizer"] |= {"lr": 1e6, "schedule": "constant"}
    wrong["data"] |= {"batch_size": 8}
    wrong["trainer"] |= {"max_epochs": 20}
    file.write_text(yaml.safe_dump(wrong))
    line = refused(["fit", "--config", str(file), "--workers", "1", "--seeds", "0"], capsys)
    words = (
        r"one/seed0: the training diverges: train_loss is (nan|inf) in epoch \d+, step \d+, with optimizer.lr 1e\+06"
    )
    assert re.search(words, line), line
    assert not Path("runs/survey/some").exists()
    assert not list(Path("runs").rglob("checksums.json"))


def test_json_has_null_where_a_number_is_undefined(tmp_path):
    write_json(tmp_path / "some.json", {"a": [NAN, INF, 1.5], "b": (-INF,), "c": 1})
    assert json.loads((tmp_path / "some.json").read_text()) == {"a": [None, None, 1.5], "b": [None], "c": 1}


class Stage:
    """A stage whose `main` raises."""

    def __init__(self, error):
        self.error = error

    def main(self, **_):
        raise self.error


@pytest.mark.parametrize(
    ("error", "status", "words"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "a/b"), 2, "error: a/b: No space left on device"),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "dvc"), 2, "error: dvc: No such file"),
        (yaml.YAMLError("while\nscanning"), 2, "error: while scanning"),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"), 2, "error: 'utf-8' codec can't decode"),
        (json.JSONDecodeError("Expecting value", "x", 0), 2, "error: Expecting value"),
        (MemoryError(), 2, "error: out of memory"),
        (KeyboardInterrupt(), 130, "interrupted; run the same command again"),
        (cli.Terminated(), 143, "terminated; run the same command again"),
    ],
)
def test_what_is_no_defect_is_one_line(error, status, words, monkeypatch, capsys):
    monkeypatch.setattr(cli, "import_module", lambda _: Stage(error))
    assert cli.main(["list"]) == status
    line = capsys.readouterr().err
    assert re.match(rf"skipform list: {re.escape(words)}[^\n]*\n$", line), line


def test_a_defect_says_so_and_leaves_its_traceback_in_a_file(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(cli, "import_module", lambda _: Stage(KeyError("surprise")))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert cli.main(["list", "--root", "x y"]) == 70
    line = capsys.readouterr().err
    (file,) = tmp_path.iterdir()
    assert re.match(r"skipform list: error: KeyError in main: 'surprise'; this is a defect of skipform", line), line
    assert line.count("\n") == 1
    assert str(file) in line
    assert "skipform list --root 'x y'" in file.read_text()
    assert "Traceback" in file.read_text()


def test_the_statuses_are_in_the_help(capsys):
    assert cli.main(["--help"]) == 0
    assert "70" in capsys.readouterr().out


def test_a_reader_that_has_seen_enough_ends_the_command_in_silence():
    with subprocess.Popen(
        [sys.executable, "-m", "skipform", "list"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        process.stdout.close()
        assert (process.stderr.read(), process.wait()) == (b"", 141)


def test_a_pipe_that_breaks_elsewhere_is_an_error(monkeypatch, capsys):
    def broken(name, argv):
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    monkeypatch.setattr(cli, "_run", broken)
    assert cli.main(["list"]) == 2
    assert capsys.readouterr().err == "skipform list: error: Broken pipe\n"


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("measure", "missing: folder, out; accepted: skipform measure FOLDER --out OUT [options]"),
        ("measure runs", "missing: out; accepted: skipform measure FOLDER --out OUT [options]"),
        ("regions", "missing: source; accepted: skipform regions SOURCE [options]"),
        ("fit", "--config FILE is missing; accepted: an experiment file, or its name, such as survey/resnet"),
    ],
)
def test_what_is_missing_on_a_command_line_is_named_with_the_whole_of_it(command, words, capsys):
    assert refused(command.split(), capsys) == words


@pytest.mark.parametrize(("sent", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_a_command_with_one_line(sent, status, tmp_path):
    # the stage tells that it runs, with a progress bar on the screen, and waits
    code = (
        "import signal, sys, time\n"
        "from tqdm import tqdm\n"
        "from skipform.stages import cli\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a parent under nohup or & ignores it
        "class Stage:\n"
        "    def main(**_):\n"
        "        for _ in tqdm([1], file=sys.stdout):\n"
        "            print('runs', file=sys.stdout, flush=True)\n"
        "            time.sleep(600)\n"
        "cli.import_module = lambda _: Stage\n"
        "sys.exit(cli.main(['list']))\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=-1, stderr=-1, text=True, cwd=tmp_path) as process:
        while "runs" not in process.stdout.readline():
            assert process.poll() is None
        os.kill(process.pid, sent)
        error = process.communicate()[1]
    assert process.returncode == status
    assert re.fullmatch(r"skipform list: (interrupted|terminated); run the same command again to go on\n", error)


@pytest.mark.parametrize(("sent", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_running_notebooks_with_one_line_and_leaves_nothing(sent, status, tmp_path):
    (tmp_path / "analysis").mkdir()
    (tmp_path / "analysis" / "page.css").write_text("")
    (tmp_path / "analysis" / "slow.py").write_text(
        "# %%\nimport time\nfrom pathlib import Path\nPath('began').touch()\ntime.sleep(600)\n"
    )
    code = (
        "import signal, sys\n"
        "from skipform.stages import cli\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a parent under nohup or & ignores it
        "sys.exit(cli.main(['notebooks']))\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stderr=-1, text=True, cwd=tmp_path) as process:
        while not (tmp_path / "analysis" / "began").exists():
            assert process.poll() is None
            time.sleep(0.05)
        os.kill(process.pid, sent)
        error = process.communicate()[1]
    assert process.returncode == status
    assert re.fullmatch(r"skipform notebooks: (interrupted|terminated); run the same command again to go on\n", error)
    assert not list((tmp_path / "paper").iterdir())
