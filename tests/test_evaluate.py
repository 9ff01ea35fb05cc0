"""`skipform evaluate`: the scores of a run are found again, and weights of another net are refused."""

import re
import shutil

import pytest

from skipform.runs import Run
from skipform.stages import cli


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a run of experiments/survey/mlp.yaml."""
    out = tmp_path_factory.mktemp("evaluate") / "mlp"
    options = ["--scale", "smoke", "--seeds", "0", "--workers", "1", "--wandb", "disabled", "--out", str(out)]
    assert cli.main(["fit", "--config", "experiments/survey/mlp.yaml", *options]) == 0
    return next(path for path in sorted(out.iterdir()) if path.is_dir()) / "seed0"


def scores(output, key):
    """The numbers of the row that begins with `key`."""
    (row,) = re.findall(rf"^{key} +(.*)$", output, re.MULTILINE)
    return [float(number) for number in re.findall(r"[\d.]+", row)]


def test_the_scores_of_a_run_are_those_of_its_metrics(trained, capsys):
    assert cli.main(["evaluate", str(trained)]) == 0
    now, then = scores(capsys.readouterr().out, "test error")
    assert now == then == pytest.approx(Run(trained).metrics["test_error"], abs=5e-5)  # four decimals


def test_weights_are_evaluated_with_the_net_of_their_run_or_of_an_experiment(trained, tmp_path, capsys):
    assert cli.main(["evaluate", str(trained / "final.safetensors")]) == 0
    own = scores(capsys.readouterr().out, "test error")
    weights = shutil.copy(trained / "final.safetensors", tmp_path / "weights.safetensors")
    command = ["evaluate", str(weights), "--config", "survey/mlp", "--scale", "smoke"]
    assert cli.main([*command, "--variant", trained.parent.name]) == 0
    assert scores(capsys.readouterr().out, "test error") == own


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere"], "nowhere: no such file or folder; accepted: a run's folder, or a .safetensors file"),
        (["FOLDER"], "no finished run in it"),
        (["weights.safetensors"], "which net has these weights"),
        (["weights.safetensors", "--config", "survey/nope"], "survey/nope: no such experiment; accepted: "),
        (["weights.safetensors", "--config", "survey/mlp", "--variant", "nope"], "--variant 'nope'; accepted: "),
        (["weights.safetensors", "--config", "survey/vgg", "--scale", "smoke"], "not the weights of vgg"),
    ],
)
def test_what_has_no_scores_is_refused_in_one_line(arguments, words, trained, tmp_path, capsys):
    weights = shutil.copy(trained / "final.safetensors", tmp_path / "weights.safetensors")
    places = {"FOLDER": str(tmp_path), "weights.safetensors": str(weights)}
    assert cli.main(["evaluate", *(places.get(word, word) for word in arguments)]) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("skipform evaluate: error: ")
    assert words in line
