"""The README is true: its Python session, its commands and its files."""

import csv
import doctest
import io
import re
import shlex
import subprocess
from contextlib import redirect_stdout
from pathlib import Path

import onnx
import pytest
from onnx import helper

from skipform.stages import cli

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^\$ (\S.*?)\s*(?:#.*)?$", README, flags=re.MULTILINE)


def test_the_python_session_runs_as_printed(tmp_path, monkeypatch):
    import torch

    monkeypatch.chdir(tmp_path)  # it writes a picture
    torch.manual_seed(0)
    failed, tried = doctest.testfile(str(ROOT / "README.md"), module_relative=False, optionflags=doctest.ELLIPSIS)
    assert tried > 0
    assert failed == 0


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("make ")])
def test_make_knows_every_target_shown(command):
    done = subprocess.run([*command.split(), "--dry-run"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def perceptron():
    """Any ONNX file: y = relu(x) of four numbers."""
    x, y = (helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, 4]) for name in "xy")
    return helper.make_model(helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "net", [x], [y]))


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("skipform ")])
def test_every_program_call_runs(command, tmp_path, monkeypatch):
    """In a scratch folder that holds the experiments, at scale smoke, with small inputs."""
    for name in ("experiments", "params.yaml", "src", "analysis", "paper", "dvc.yaml"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    arguments = shlex.split(command)[1:]
    if arguments[0] == "fit":
        # Scale paper needs CIFAR-10; what is shown of it must be accepted all the same.
        small = ["--scale", "smoke", "--seeds", "0", "--workers", "1"]
        arguments = [a for a in arguments if a not in ("--data.download", "true")] + small
    if arguments[0] == "evaluate":
        options = ["--scale", "smoke", "--seeds", "0", "--workers", "1", "--wandb", "disabled"]
        assert cli.main(["fit", "--config", "survey/resnet", *options]) == 0
    if "model.onnx" in arguments:
        onnx.save(perceptron(), "model.onnx")
    if arguments[0] == "data":  # nothing is fetched here; at scale smoke nothing is missing
        arguments = ["data", "--scale", "smoke"]
    assert cli.main(arguments) == 0


def test_the_table_of_results_is_that_of_the_published_numbers():
    rows = csv.DictReader((ROOT / "results" / "embedded.csv").read_text().splitlines())
    published = {
        (row["experiment"], f"{row['test_middle']} ({row['test_low']} to {row['test_high']})"): row for row in rows
    }
    shown = re.findall(
        r"^\| `(\w+)` \| (.*), (.*) \| (.*) \| (.*) \| `skipform fit --config survey/(\w+)` \|$", README, re.M
    )
    assert len(shown) == 9
    for net, score, unit, without, skips, config in shown:
        for variant, number in (("without", without), ("with", skips)):
            row = published[net, number]
            assert (row["score"].replace("_", " "), row["unit"]) == (score, unit)
            assert (row["variant"] in ("plain", "none", "no_skips", "no-laterals")) == (variant == "without")
        assert config == net


def test_the_picture_of_regions_is_that_of_the_session(tmp_path, monkeypatch):
    """paper/regions.svg; renew it with the command of this test."""
    net = '{"name": "mlp", "in_channels": 2, "image_size": 1, "depth": 3, "width": 16}'
    command = ["regions", "skipform.nets:build", "--arguments", net, "--input", "2,1,1", "--box", "[-2, 2, -2, 2]"]
    monkeypatch.chdir(tmp_path)
    assert cli.main([*command, "-o", "regions.svg"]) == 0
    drawn, committed = (
        re.findall(r"<path d=\"([^\"]*)\"", path.read_text())
        for path in (Path("regions.svg"), ROOT / "paper/regions.svg")
    )
    assert len(drawn) == len(committed)
    for path, other in zip(drawn, committed, strict=True):
        one, two = ([float(x) for x in re.findall(r"-?[\d.]+", text)] for text in (path, other))
        assert one == pytest.approx(two, abs=1e-4)  # of a point; another CPU rounds differently


def test_every_stage_explains_itself():
    for stage in cli.STAGES:
        printed = io.StringIO()
        with redirect_stdout(printed), pytest.raises(SystemExit) as exit_:
            cli.main([stage, "--help"])
        assert exit_.value.code == 0
        assert printed.getvalue().startswith(f"usage: skipform {stage}")


def test_every_file_named_exists():
    named = re.findall(r"`((?:src|analysis|experiments|paper)/[^` ]*)`", README)
    read = [
        f"src/skipform/{path}"
        for path in re.findall(r"`((?:theory|compiler|measure|nets|tasks|data)/\w[^` ]*)`", README)
    ]
    for target in [*re.findall(r"\]\(([^)#:]+)\)", README), *named, *read]:
        assert (ROOT / target).exists(), target
