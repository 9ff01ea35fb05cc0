"""Without a checkout: the experiments are in the wheel, and are listed and found by name."""

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from skipform import shipped
from skipform.errors import SkipformError
from skipform.runs import Run

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder with the files of the wheel, as pyproject.toml places them."""
    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    site = tmp_path_factory.mktemp("site")
    for source in wheel["only-include"]:
        prefix = next(prefix for prefix in wheel["sources"] if source.startswith(prefix))
        place = source.replace(prefix, wheel["sources"][prefix], 1).strip("/")
        shutil.copytree(ROOT / source, site / place, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
    return site


# One command after another, in one process, because each would import torch and Lightning.
COMMANDS = """
import sys
from skipform.stages.cli import main
for command in sys.argv[1:]:
    print("$", command)
    if main(command.split()):
        sys.exit(1)
"""


def run(installed, folder, *commands):
    """What each of the commands prints."""
    command, variables = [sys.executable, "-c", COMMANDS, *commands], {"PYTHONPATH": str(installed)}
    done = subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return re.split(r"^\$ .*\n", done.stdout, flags=re.MULTILINE)[1:]


def test_an_installed_package_lists_the_experiments_and_what_they_take(installed, tmp_path):
    printed, at_scale_paper = run(installed, tmp_path, "list", "list --scale paper")
    names = printed.partition("experiments:\n")[2].split()
    assert {"survey/resnet", "claims/pooling"} < set(names)
    assert at_scale_paper.count("survey/") == 22


def test_a_name_stands_for_the_experiment_here_or_where_skipform_is_installed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert shipped.experiment_file("survey/resnet").samefile(ROOT / "experiments/survey/resnet.yaml")
    own = tmp_path / "experiments/survey/mine.yaml"
    own.parent.mkdir(parents=True)
    own.touch()
    assert shipped.experiment_file("survey/mine").samefile(own)
    assert shipped.experiment_file(str(own)).samefile(own)
    with pytest.raises(SkipformError, match="survey/resnet: no such experiment; accepted: a file, or a name"):
        shipped.experiment_file("survey/resnet")  # experiments/ of the working directory is the one that counts


def test_an_installed_package_trains_an_experiment_by_its_name(installed, tmp_path):
    options = "--scale smoke --seeds 0 --workers 1 --wandb disabled"
    run(installed, tmp_path, f"fit --config survey/mlp {options}", "data --scale embedded")
    (one, *_) = sorted((tmp_path / "runs/survey/mlp").glob("*/seed0"))
    assert Run(one).provenance["commit"] is None  # the package is in no repository of its own
