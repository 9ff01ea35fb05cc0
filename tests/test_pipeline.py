"""The whole pipeline in a fresh copy at scale smoke: it completes, gives equal bytes twice, and reruns changes."""

import re

import pytest
from pipeline_copy import fresh_copy, made, run

pytestmark = pytest.mark.pipeline


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """A fresh copy, reproduced once."""
    folder = fresh_copy(tmp_path_factory.mktemp("fresh") / "skipform")
    run(folder, "skipform", "repro")
    return folder


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
    run(copy, "skipform", "repro", "--force")
    second = made(copy)
    assert {name for name in first | second if first.get(name) != second.get(name)} == set()
