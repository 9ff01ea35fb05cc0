"""The README is true: its Python session, its commands and its files."""

import doctest
import io
import re
import shlex
import subprocess
from contextlib import redirect_stdout
from pathlib import Path

import pytest

from skipform.stages import cli

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^\$ (\S.*?)\s*(?:#.*)?$", README, flags=re.MULTILINE)


def test_the_python_session_runs_as_printed():
    import torch

    torch.manual_seed(0)
    failed, tried = doctest.testfile(str(ROOT / "README.md"), module_relative=False, optionflags=doctest.ELLIPSIS)
    assert tried > 0
    assert failed == 0


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("make ")])
def test_make_knows_every_target_shown(command):
    done = subprocess.run([*command.split(), "--dry-run"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


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
    if arguments[0] == "data":  # nothing is fetched here; at scale smoke nothing is missing
        arguments = ["data", "--scale", "smoke"]
    assert cli.main(arguments) == 0


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
