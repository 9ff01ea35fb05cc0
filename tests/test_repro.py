"""`skipform repro` in a small pipeline of its own: what it runs, in which order, and how it ends."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from processes import runs

from skipform.cores import cores
from skipform.files import read_yaml
from skipform.pipeline import stages
from skipform.stages.repro import seconds_left, with_descendants

ROOT = Path(__file__).parents[1]

# a and b are independent, c reads both, d reads c; every command notes when it starts and ends.
PIPELINE = """
stages:
  a: {cmd: sh stage.sh a, deps: [one], outs: [a]}
  b: {cmd: sh stage.sh b, deps: [two], outs: [b]}
  c: {cmd: sh stage.sh c, deps: [a, b], outs: [c]}
  d: {cmd: sh stage.sh d, deps: [c], outs: [d]}
"""
STAGE = """
echo start $1 >> log
echo ${SKIPFORM_CORES-all} > cores-$1
while test -n "$WAIT_FOR" -a \\( $1 = a -o $1 = b \\) && ! grep -q "start $WAIT_FOR" log; do sleep 0.1; done
test ! -e fail-$1 && echo $1 > $1
status=$?
echo end $1 >> log
exit $status
"""


@pytest.fixture
def project(tmp_path):
    (tmp_path / "dvc.yaml").write_text(PIPELINE)
    (tmp_path / "stage.sh").write_text(STAGE)
    for name in ("one", "two"):
        (tmp_path / name).write_text(name)
    (tmp_path / ".gitignore").write_text("a\nb\nc\nd\n")
    (tmp_path / ".dvc").mkdir()  # as `dvc init --no-scm` does
    (tmp_path / ".dvc" / "config").write_text("[core]\n    no_scm = True\n")
    return tmp_path


def program(name):
    return str(Path(sys.executable).parent / name)


def repro(project, *options, **environment):
    """(exit status, stages that ran in order of their start, what was printed)"""
    (project / "log").unlink(missing_ok=True)
    command = [program("skipform"), "repro", "--jobs", "2", *options]
    paths = {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(command, cwd=project, env=os.environ | paths | environment, capture_output=True, text=True)
    log = (project / "log").read_text().split("\n") if (project / "log").exists() else []
    return done.returncode, [line for line in log if line], done.stdout + done.stderr


def test_stages_run_after_what_they_depend_on_and_only_when_out_of_date(project):
    status, log, _ = repro(project, WAIT_FOR="b")  # a ends when b has started: two at once, or never
    assert status == 0
    assert {*log[:4]} == {"start a", "start b", "end a", "end b"}
    assert log[4:] == ["start c", "end c", "start d", "end d"]
    assert repro(project)[1:] == ([], "all 4 stages are up to date\n")
    (project / "two").write_text("changed")  # the output of b stays the same, so that c and d need not run
    assert repro(project)[:2] == (0, ["start b", "end b"])
    assert len(repro(project, "--force")[1]) == 8
    assert (
        "up to date"
        in subprocess.run([program("dvc"), "repro"], cwd=project, capture_output=True, text=True, check=True).stdout
    )


def test_stages_that_run_at_once_share_the_cores_and_one_alone_has_all(project):
    repro(project, WAIT_FOR="b")
    share = str(max(1, cores() // 2))
    assert [(project / f"cores-{name}").read_text().strip() for name in "abcd"] == [share, share, "all", "all"]
    repro(project, "--force", WAIT_FOR="b", SKIPFORM_CORES="1")
    assert [(project / f"cores-{name}").read_text().strip() for name in "abcd"] == ["1"] * 4
    status, log, printed = repro(project, "--force", SKIPFORM_CORES="two")
    assert (status, log) == (2, [])
    assert printed == "skipform repro: error: SKIPFORM_CORES: 'two'; accepted: a whole number from 1, or not set\n"


def test_the_first_run_starts_from_the_times_of_another_machine(project):
    (project / "params.yaml").write_text("scale: embedded\n")
    (project / "results").mkdir()
    times = {"a": 60, "b": 60, "c": 30, "d": 30}
    (project / "results" / "seconds.json").write_text(json.dumps({"embedded": times, "paper": {"a": 1e9}}))
    status, _, printed = repro(project)
    assert status == 0
    assert "== stage 1 of 4: a, 0 min 00 s gone, about 1 min 30 s left" in printed  # two stages at once
    assert json.loads((project / "build/seconds.json").read_text()).keys() == times.keys()


def test_the_times_of_another_machine_are_corrected_by_those_of_this_one():
    assert seconds_left(["a"], {}, {}) is None
    assert seconds_left(["a", "b"], {}, {"a": 4.0, "b": 6.0}) == 10
    assert seconds_left(["b", "c"], {"a": 8.0}, {"a": 4.0, "b": 6.0, "c": 1.0}) == 14  # half as fast
    assert seconds_left(["c"], {"a": 8.0, "b": 2.0}, {}) == 5  # of a new stage nothing is known


def test_the_published_times_are_those_of_stages_that_there_are():
    times = json.loads((ROOT / "results" / "seconds.json").read_text())["embedded"]
    assert {name.partition("@")[0] for name in times} <= read_yaml(ROOT / "dvc.yaml")["stages"].keys()


def test_a_failed_stage_is_named_and_nothing_that_needs_it_runs(project):
    (project / "fail-b").write_text("")
    status, log, printed = repro(project)
    assert status == 1
    assert "stage b failed" in printed
    assert "start c" not in log
    (project / "fail-b").unlink()
    assert repro(project)[0] == 0


def test_nothing_goes_on_after_a_signal_that_is_repeated(project):
    """As where `uv run` gets the signal too, and passes it on."""
    paths = {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", "WAIT_FOR": "nothing"}
    command = [program("skipform"), "repro", "--jobs", "2"]
    with subprocess.Popen(command, cwd=project, env=os.environ | paths) as process:
        while not (project / "log").exists() or (project / "log").read_text().count("start") < 2:
            assert process.poll() is None
            time.sleep(0.01)
        started = psutil.Process(process.pid).children(recursive=True)
        while any(map(runs, started)) and process.poll() is None:
            process.send_signal(signal.SIGTERM)
        assert process.wait() in (143, -signal.SIGTERM)  # the latter: of one more signal, after the command's end
    assert not [one for one in started if runs(one)]
    status, log, _ = repro(project)
    assert (status, len(log)) == (0, 8)


@pytest.mark.parametrize(
    ("pipeline", "words"),
    [
        ("", "dvc.yaml: it has no stages; accepted: the pipeline of a checkout"),
        ("stages:\n  a: {outs: [x]}\n", "dvc dag --dot: .*validation failed"),
    ],
)
def test_a_pipeline_that_is_none_is_refused(project, pipeline, words):
    (project / "dvc.yaml").write_text(pipeline)
    status, log, printed = repro(project)
    assert (status, log) == (2, [])
    assert re.fullmatch(rf"skipform repro: error: .*{words}.*\n", printed)


def test_the_graph_is_read_from_dvc():
    graph = stages('strict digraph {\n"a";\n"b";\n"a" -> "b";\n"b" -> "c@d";\n"c@d";\n"e";\n}\n')
    assert graph == {"a": set(), "b": {"a"}, "c@d": {"b"}, "e": set()}
    assert with_descendants(graph, ["b", "unknown"]) == {"b", "c@d"}
