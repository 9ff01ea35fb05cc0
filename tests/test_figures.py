"""`skipform figures` in a small pipeline of its own: weights in DVC's cache, records in the repository."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from skipform.stages.figures import out_of_date

PIPELINE = """
stages:
  fit: {cmd: sh stage.sh fit, deps: [experiment], outs: [runs, record: {cache: false}]}
  measure: {cmd: sh stage.sh measure, deps: [runs], outs: [measure: {cache: false}]}
  notebooks: {cmd: sh stage.sh notebooks, deps: [record, measure, analysis], outs: [drawn]}
  review: {cmd: sh stage.sh review, deps: [record, drawn], outs: [page]}
  paper: {cmd: sh stage.sh paper, deps: [drawn], outs: [paper.pdf]}
"""
STAGE = """
echo $1 >> log
case $1 in
  fit) mkdir -p runs; cp experiment runs/weights; cp experiment record; echo $$ > runs/provenance.json ;;
  measure) cp runs/weights measure ;;
  notebooks) cat record measure analysis > drawn ;;
  review) cat record drawn > page ;;
  paper) cp drawn paper.pdf ;;
esac
"""


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """A project whose pipeline has run, committed to git."""
    made = tmp_path_factory.mktemp("ran")
    (made / "dvc.yaml").write_text(PIPELINE)
    (made / "stage.sh").write_text(STAGE)
    (made / ".dvcignore").write_text("provenance.json\n")
    for name in ("experiment", "analysis"):
        (made / name).write_text(f"{name}\n")
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run([*git, "init", "-q"], cwd=made, check=True)
    subprocess.run([program("dvc"), "init", "-q"], cwd=made, check=True)
    (made / ".gitignore").write_text("/runs\n/drawn\n/page\n/paper.pdf\n/log\n/build\n")
    assert skipform(made, "repro", "--jobs", "1")[0] == 0
    for command in (["add", "-A"], ["commit", "-q", "-m", "all"]):
        subprocess.run([*git, *command], cwd=made, check=True)
    return made


@pytest.fixture
def clone(ran, tmp_path):
    """A clone of the project, in which its pipeline has run elsewhere: without weights, cache, figures or paper. Beside
    it a copy of the project, `made`."""
    shutil.copytree(ran, tmp_path / "made")
    subprocess.run(["git", "clone", "-q", str(tmp_path / "made"), str(tmp_path / "clone")], check=True)
    return tmp_path / "clone"


def program(name):
    return str(Path(sys.executable).parent / name)


def run(folder, *words):
    paths = {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    command = [program("skipform"), *words]
    return subprocess.run(command, cwd=folder, env=os.environ | paths, capture_output=True, text=True)


def skipform(folder, *words):
    """(exit status, stages that ran, standard error)"""
    (folder / "log").unlink(missing_ok=True)
    done = run(folder, *words)
    log = (folder / "log").read_text().split() if (folder / "log").exists() else []
    return done.returncode, log, done.stderr


def test_figures_are_drawn_in_a_fresh_clone_without_training(clone):
    assert skipform(clone, "figures")[:2] == (0, ["notebooks", "review", "paper"])
    assert (clone / "paper.pdf").read_bytes() == (clone.parent / "made" / "paper.pdf").read_bytes()
    assert not (clone / "runs").exists()
    changed = subprocess.run(["git", "status", "--porcelain"], cwd=clone, capture_output=True, text=True, check=True)
    assert changed.stdout == ""


def test_the_last_line_says_where_the_figures_are(clone):
    printed = run(clone, "figures").stdout
    assert printed.splitlines()[-1] == "written: drawn, page, paper.pdf"
    assert "dvc push" not in printed  # there is nowhere to push to


def test_a_changed_analysis_is_drawn(clone):
    (clone / "analysis").write_text("changed\n")
    assert skipform(clone, "figures")[:2] == (0, ["notebooks", "review", "paper"])
    assert "changed" in (clone / "paper.pdf").read_text()


def test_records_of_other_sources_are_refused(clone):
    for file, stage in (("experiment", "fit"), ("measure", "measure"), ("record", "fit")):
        before = (clone / file).read_text()
        for content in ("changed\n", None):
            if content is None:
                (clone / file).unlink()
            else:
                (clone / file).write_text(content)
            status, log, error = skipform(clone, "figures")
            assert (status, log) == (2, [])
            assert f"1 stages are out of date ({stage})" in error
            assert error.count("\n") == 1
        (clone / file).write_text(before)


@pytest.mark.parametrize(
    ("entries", "out"),
    [
        ([{"changed outs": {"runs/a": "deleted"}}], False),
        ([{"changed outs": {"runs/a": "not in cache"}}], False),
        ([{"changed deps": {"runs/a": "deleted"}}, {"changed outs": {"runs/b": "deleted"}}], False),
        ([{"changed deps": {"runs": "deleted"}}], False),
        ([{"changed outs": {"records/a": "deleted"}}], True),
        ([{"changed deps": {"src/a.py": "deleted"}}], True),
        ([{"changed outs": {"runs/a": "modified"}}], True),
        ([{"changed deps": {"params.yaml": {"seeds": "modified"}}}], True),
        (["changed command"], True),
    ],
)
def test_a_stage_is_out_of_date_unless_only_weights_are_missing(entries, out):
    outs = ["runs/a", "runs/b", "records/a"]
    assert out_of_date({"fit": entries, "paper": entries}, outs, ["records", "analysis"]) == ["fit"] * out


def test_equal_trainings_leave_equal_outputs_although_their_times_differ(clone):
    made = clone.parent / "made"
    lock = (made / "dvc.lock").read_bytes()
    times = (made / "runs" / "provenance.json").read_bytes()
    assert skipform(made, "repro", "--jobs", "1", "--force")[:2] == (
        0,
        ["fit", "measure", "notebooks", "review", "paper"],
    )
    assert (made / "runs" / "provenance.json").read_bytes() != times
    assert (made / "dvc.lock").read_bytes() == lock
    shutil.rmtree(made / "runs")
    assert skipform(made, "repro", "--jobs", "1")[:2] == (0, [])  # DVC takes the weights from its cache
    assert [path.name for path in (made / "runs").iterdir()] == ["weights"]
