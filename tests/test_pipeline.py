"""The whole pipeline in a fresh copy at scale smoke: it completes, gives equal bytes twice, and reruns changes."""

import hashlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]

pytestmark = pytest.mark.pipeline


def run(folder, *command):
    # The programs of this environment, the source of the copy.
    env = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(folder / "src"),
        "WANDB_MODE": "offline",
    }
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-6000:]}"
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """The tracked and the new files of the checkout, as a repository of its own at scale smoke, reproduced once."""
    folder = tmp_path_factory.mktemp("fresh") / "skipform"
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    ).stdout
    for name in filter(None, listed.decode().split("\0")):
        if (ROOT / name).exists():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    params = yaml.safe_load((folder / "params.yaml").read_text()) | {
        "scale": "smoke",
        "seeds": [0, 1],
        "claims": {"seeds": [0, 1]},
    }
    (folder / "params.yaml").write_text(yaml.safe_dump(params))
    run(folder, "git", "init", "-q")
    run(folder, "dvc", "repro")
    return folder


def made(folder):
    """Digest of every figure, table, number, notebook and page that the pipeline leaves for a reader."""
    paths = [p for name in ("paper", "measures", "build") for p in sorted((folder / name).rglob("*")) if p.is_file()]
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in paths}


def rerun(folder):
    """The stages that `dvc repro` would run now."""
    return set(re.findall(r"Running stage '([^']+)'", run(folder, "dvc", "repro", "--dry")))


def test_the_pipeline_ends_in_a_paper(copy):
    assert (copy / "paper" / "paper.pdf").read_bytes().startswith(b"%PDF")
    assert not rerun(copy)


def test_metrics_and_plots_can_be_shown_offline(copy):
    shown = run(copy, "dvc", "metrics", "show")
    assert "resnet" in shown
    run(copy, "dvc", "plots", "show", "--out", "build/plots")
    assert (copy / "build" / "plots" / "index.html").stat().st_size > 0


def test_a_touched_architecture_reruns_its_own_stages_and_what_follows(copy):
    source = copy / "src" / "skipform" / "nets" / "resnet.py"
    source.write_text(source.read_text() + "\n# touched\n")
    stages = set(re.findall(r"Running stage '([^']+)'", run(copy, "dvc", "repro")))
    backbones = {"fit_beyond@fpn", "fit_beyond@detr"}  # FPN and DETR use a ResNet as backbone
    assert {name for name in stages if "@" in name} == {"fit@resnet", "measure@resnet"} | backbones
    assert "notebooks" in stages
    assert "theorems" not in stages


def test_two_forced_runs_are_byte_identical(copy):
    first = made(copy)
    run(copy, "dvc", "repro", "--force")
    second = made(copy)
    assert {name for name in first | second if first.get(name) != second.get(name)} == set()
