"""After a kill: what dvc writes in place is put right, in one line each, and the pipeline goes on."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from skipform import pipeline, recovery
from skipform.errors import SkipformError
from skipform.stages import repro

PIPELINE = """\
stages:
  first:
    cmd: echo 1 > first
    deps: [source]
    outs: [first]
  second:
    cmd: cat first first > second
    deps: [first]
    outs: [second]
"""
# dvc, killed when it has written a part of a file: KILLED_AT is the name of the file, which time, and how many percent.
DVC = f"""\
#!{sys.executable}
import io, json, os, signal, sys
from pathlib import Path

from dvc import rwlock
from dvc.cli import main
from dvc.utils.serialize import _common

name, left, percent = os.environ.get("KILLED_AT", ". 0 0").split()
left = int(left)

def torn(write):
    def writing(data, file, **options):
        global left
        left -= Path(file.name).name == name
        if left or Path(file.name).name != name:
            return write(data, file, **options)
        text = io.StringIO()
        write(data, text, **options)
        file.write(text.getvalue()[: len(text.getvalue()) * int(percent) // 100])
        file.flush()
        os.kill(os.getpid(), signal.SIGKILL)
    return writing

dump_data = _common._dump_data
_common._dump_data = lambda path, data, *, dumper, **options: dump_data(path, data, dumper=torn(dumper), **options)
rwlock.json.dump = torn(json.dump)
sys.exit(main())
"""


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A pipeline of two stages outside any git repository, and a `dvc` on the PATH that can be killed."""
    folder, programs = tmp_path / "project", tmp_path / "programs"
    for made in (folder / ".dvc", programs):
        made.mkdir(parents=True)
    (folder / ".dvc" / "config").write_text("[core]\n    analytics = false\n    check_update = false\n")
    (folder / "dvc.yaml").write_text(PIPELINE)
    (folder / "source").write_text("source\n")
    (programs / "dvc").write_text(DVC)
    (programs / "dvc").chmod(0o755)
    monkeypatch.setenv("PATH", str(programs), prepend=os.pathsep)
    monkeypatch.setenv("DVC_SITE_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.chdir(folder)
    return folder


def test_a_pipeline_killed_while_it_writes_goes_on_with_the_same_command(project, monkeypatch, capfd):
    assert repro.main(jobs=1) == 0  # without .git, as in an archive
    expected = Path("dvc.lock").read_text().splitlines()
    # Of each dvc: dvc.lock is written at the end of a stage, the table before, while the stage has its outputs.
    for moment, begins in {
        "dvc.lock 1 50": "dvc.lock was cut short; it is again as in build/dvc.lock",
        "dvc.lock 1 0": "dvc.lock was cut short; it is again as in build/dvc.lock",
        "rwlock 14 50": ".dvc/tmp/rwlock could not be read; it is removed",
        "rwlock 14 100": ".dvc/tmp/rwlock named a dvc that has ended (process ",
    }.items():
        (project / "source").write_text(moment)
        Path("second").unlink()
        monkeypatch.setenv("KILLED_AT", moment)
        assert repro.main(jobs=1) == 1
        monkeypatch.delenv("KILLED_AT")
        done = [line for line in capfd.readouterr().err.splitlines() if line.startswith("skipform")]
        assert done[0].startswith(f"skipform: {begins}")
        assert done[1:] == ["skipform repro: dvc was killed; the same command goes on"]
        assert repro.main(jobs=1) == 0
        assert not capfd.readouterr().err
        assert Path("second").read_text() == "1\n1\n"
        changed = set(expected) ^ set(Path("dvc.lock").read_text().splitlines())
        assert all(line.startswith(("      md5:", "      size:")) for line in changed)  # those of the source


def test_what_was_killed_with_its_dvc_is_put_right_at_the_next_start(project, monkeypatch, capfd):
    assert repro.main(jobs=1) == 0
    (project / "source").write_text("other")
    environment = pipeline.environment() | {"KILLED_AT": "dvc.lock 1 50"}
    assert subprocess.run(["dvc", "repro"], env=environment, capture_output=True).returncode == -signal.SIGKILL
    capfd.readouterr()
    assert repro.main(jobs=1) == 0
    assert capfd.readouterr().err.startswith("skipform: dvc.lock was cut short")
    assert recovery.complete(Path("dvc.lock").read_text())


def test_a_lock_file_cut_anywhere_is_restored_or_lacks_lines_of_its_last_stage(project):
    assert repro.main(jobs=1) == 0
    text = Path("dvc.lock").read_text()
    for end in range(len(text)):
        Path("dvc.lock").write_text(text[:end])
        done = recovery.recover()
        if done:
            assert Path("dvc.lock").read_text() == text
        else:  # taken for a new state; dvc runs the last stage again
            assert text[:end].endswith("\n")
            assert "  second:\n    cmd: " in text[:end]
            Path("build/dvc.lock").write_text(text)
    for damaged in (b"\0" * 400, b"\xff\xfe", b"- a list\n"):
        Path("dvc.lock").write_bytes(damaged)
        assert len(recovery.recover()) == 1
        assert Path("dvc.lock").read_text() == text


def test_a_lock_file_cut_short_without_a_copy_is_refused_in_one_line(project):
    Path("dvc.lock").write_text("schema: '2.0'\nstages:\n  fi")
    with pytest.raises(SkipformError, match=r"^dvc\.lock: cut short, and there is no copy in build/dvc\.lock; `git"):
        repro.main(jobs=1)
    recovery.COPY.parent.mkdir()
    recovery.COPY.write_bytes(b"\xff")
    with pytest.raises(SkipformError, match="cut short"):
        repro.main(jobs=1)


def test_no_state_of_dvc_is_made_where_there_is_none(project):
    shutil.rmtree(".dvc")
    assert recovery.recover() == []
    assert not Path(".dvc").exists()


def entries(*pids):
    return {"/project/first": [{"pid": pid, "cmd": "dvc repro"} for pid in pids]}


def test_only_processes_that_are_dvc_and_run_stay_in_the_table(project):
    (project / "dvc").write_text("#!/bin/sh\nread line\n")
    (project / "dvc").chmod(0o755)
    zombie = subprocess.Popen([sys.executable, "-c", ""], stdout=subprocess.PIPE)
    zombie.stdout.read()  # it has ended, and nobody has waited for it
    zombie.stdout.close()
    os.waitid(os.P_PID, zombie.pid, os.WEXITED | os.WNOWAIT)
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    with subprocess.Popen([project / "dvc"], stdin=subprocess.PIPE) as running:
        try:
            while not recovery.is_dvc(running.pid):  # until it is no copy of this process any more
                assert running.poll() is None
            ended = sorted({zombie.pid, gone.pid, os.getpid()})
            recovery.TABLE.parent.mkdir(parents=True)
            both = {
                "read": entries(*ended, running.pid),
                "write": {f"/{pid}": entries(pid)["/project/first"][0] for pid in ended},
            }
            recovery.TABLE.write_text(json.dumps(both))
            (line,) = recovery.recover()
            assert f"(process {', '.join(map(str, ended))})" in line
            assert json.loads(recovery.TABLE.read_text()) == {"read": entries(running.pid), "write": {}}
            assert recovery.recover() == []
        finally:
            running.communicate(b"\n")
    zombie.wait()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"read": 1}', '{"write": {"/a": {"pid": "1"}}}', "\0\0"])
def test_a_table_that_cannot_be_read_is_removed(project, text):
    recovery.TABLE.parent.mkdir(parents=True)
    recovery.TABLE.write_text(text)
    assert recovery.recover() == [".dvc/tmp/rwlock could not be read; it is removed"]
    assert not recovery.TABLE.exists()


def test_nothing_is_put_right_while_a_dvc_is_writing(project):
    recovery.TABLE.parent.mkdir(parents=True)
    for path in (Path("dvc.lock"), recovery.TABLE):
        path.write_text("half of")
    with recovery.locked(recovery.TABLE.with_name("lock")), recovery.locked(recovery.TABLE.with_name("rwlock.lock")):
        assert recovery.recover() == []
    assert recovery.TABLE.read_text() == Path("dvc.lock").read_text() == "half of"


def test_without_dvc_the_pipeline_is_refused_in_one_line(project, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(SkipformError, match=r"^no program dvc on the PATH; accepted: "):
        repro.main(jobs=1)


@pytest.mark.parametrize("text", ["", "[]", '{"first": "x"}', "\0"])
def test_times_that_cannot_be_read_are_not_shown(project, text):
    pipeline.SECONDS.parent.mkdir(exist_ok=True)
    pipeline.SECONDS.write_text(text)
    assert pipeline.seconds_of(pipeline.read_seconds(pipeline.SECONDS)) == {}
