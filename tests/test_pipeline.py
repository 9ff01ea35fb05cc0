"""The whole pipeline in a fresh copy at scale smoke: it completes, gives equal bytes twice, and reruns changes. Three
nets in a copy at scale paper, with small stand-ins of their data sets."""

import re
import subprocess

import pytest
from pipeline_copy import environment, fresh_copy, made, run
from rehearsal import rehearsal

from skipform.files import read_yaml

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


def test_a_clone_without_weights_draws_the_same_paper(copy, tmp_path):
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b"]
    for words in (["add", "-A"], ["commit", "-q", "--allow-empty", "-m", "all"]):
        run(copy, *git, *words)
    run(copy, *git, "clone", "-q", str(copy), str(clone := tmp_path / "clone"))
    run(clone, "skipform", "figures")
    assert not (clone / "runs").exists()
    assert (clone / "paper" / "paper.pdf").read_bytes() == (copy / "paper" / "paper.pdf").read_bytes()
    assert not run(clone, "git", "status", "--porcelain")


def test_metrics_and_plots_can_be_shown_offline(copy):
    shown = set(re.findall(r"^scores/metrics/survey/(\S+)\.json", run(copy, "dvc", "metrics", "show"), re.MULTILINE))
    experiments = {path.stem: read_yaml(path) for path in (copy / "experiments/survey").glob("*.yaml")}
    assert len(experiments) == 22
    assert shown == {f"{net}/{variant}" for net, file in experiments.items() for variant in file["variants"]}
    run(copy, "dvc", "plots", "show", "--out", "build/plots")
    page = (copy / "build" / "plots" / "index.html").read_text()
    assert all(f'"filename": "scores/curves/survey/{net}.csv"' in page for net in experiments)


def test_every_dvc_command_of_the_readme_runs(copy):
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b"]
    for words in (["add", "-A"], *[["commit", "-q", "--allow-empty", "-m", "all"]] * 2):
        run(copy, *git, *words)
    commands = re.findall(r"^\$ (dvc .*?) *(?:#.*)?$", (copy / "README.md").read_text(), re.MULTILINE)
    assert len(commands) == 6
    for command in commands:
        run(copy, *command.split())


def test_a_changed_net_reruns_its_own_stages_and_what_follows_and_a_changed_comment_none(copy):
    source = copy / "src" / "skipform" / "nets" / "resnet.py"
    text = source.read_text()
    source.write_text(text + "\n# touched\n")
    assert "stages are up to date" in run(copy, "skipform", "repro")  # but for the list of sources
    source.write_text(text + "\nTOUCHED = True\n")
    stages = set(re.findall(r"Running stage '([^']+)'", run(copy, "skipform", "repro")))
    survey = {name for name in stages if re.match("(fit|measure)@", name)}
    backbones = {f"{stage}@{net}" for stage in ("fit", "measure") for net in ("fpn", "detr")}  # ResNets too
    assert survey == {"fit@resnet", "measure@resnet"} | backbones
    assert {"fit_claim@degradation", "claim@degradation"} <= stages  # plain and residual ResNets
    assert "notebooks" in stages
    assert not {"theorems", "explore"} & stages


def test_two_forced_runs_are_byte_identical(copy):
    first = made(copy)
    run(copy, "skipform", "repro", "--force")
    second = made(copy)
    assert {name for name in first | second if first.get(name) != second.get(name)} == set()


def test_three_nets_at_scale_paper_train_on_stand_ins_and_are_measured(tmp_path, monkeypatch):
    """`make rehearsal` does the same with every net and every stage."""
    monkeypatch.setenv("SKIPFORM_DATA", "data")
    copy = rehearsal(tmp_path / "skipform")
    run(copy, "dvc", "repro", "fit@mlp", "fit@fpn", "fit@transformer", "measure@mlp")
    assert (copy / "runs" / "survey" / "fpn" / "summary.json").is_file()
    assert (copy / "runs" / "survey" / "transformer" / "summary.json").is_file()
    assert (copy / "measures" / "survey" / "mlp.json").is_file()
    assert not (copy / "build" / "data.json").exists()  # of these stages none needs all data sets


def test_the_pipeline_at_scale_paper_stops_at_its_first_stage_and_names_all_data_sets(tmp_path):
    copy = fresh_copy(tmp_path / "skipform", scale="paper", seeds=[0])
    env = environment(copy) | {"SKIPFORM_DATA": "data"}
    done = subprocess.run(["dvc", "repro"], cwd=copy, env=env, capture_output=True, text=True)
    assert done.returncode != 0
    assert set(re.findall(r"Running stage '([^']+)'", done.stdout)) == {"sources", "data"}
    for name in ("cifar10", "coco2017", "isbi2012", "multi30k", "tiny_shakespeare", "voc2012", "weights/vgg16"):
        assert f"\n  {name} " in done.stdout
    assert not (copy / "runs").exists()
