"""Outputs: a bad place is refused in one line before any work, and nothing is removed that no command has written."""

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from skipform import files, outputs
from skipform.errors import SkipformError
from skipform.files import checksum
from skipform.runs import CHECKED, summary_of
from skipform.stages import cli, fit, notebooks, verify

EXPERIMENT = {
    "variants": {"plain": {"name": "mlp", "depth": 1, "width": 4}},
    "data": {"name": "digits", "limit": 64, "batch_size": 32},
    "trainer": {"max_epochs": 1, "accelerator": "cpu"},
    "threads": 1,
    "wandb": "disabled",
}
FILES = {  # command -> the option that names its output, and the suffix
    "verify": ("--out", ".json"),
    "grammar": ("--out", ".json"),
    "measure runs": ("--out", ".json"),
    "claims runs": ("--out", ".json"),
    "rewrite torch.nn:ReLU --input 1,4": ("-o", ".onnx"),
    "regions torch.nn:ReLU --input 2": ("-o", ".svg"),
    "publish": ("--out", ".csv"),
    "paper": ("--output", ".pdf"),
}


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """A working directory with all that may stand in the way of an output."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    Path("file").write_text("mine")
    Path("folder.json").mkdir()
    Path("full").mkdir()
    Path("full/mine.txt").write_text("mine")
    Path("elsewhere").mkdir()
    Path("link").symlink_to("elsewhere")
    Path("nowhere").symlink_to("absent")
    os.mkfifo("pipe.json")
    outputs.mark("run", ["summary.json"])
    (folder / "experiments").mkdir()
    (folder / "scale").mkdir()
    Path("scale/embedded.yaml").write_text("")
    Path("experiments/some.yaml").write_text(yaml.safe_dump(EXPERIMENT))
    return folder


def state(folder):
    """All there is in a folder, with its content."""
    return {path: path.read_bytes() if path.is_file() else path.is_symlink() for path in sorted(folder.rglob("*"))}


def refused(command, capsys, place):
    """The one line in which a command is refused, before it writes anything."""
    before = state(place.parent)
    assert cli.main(command) == 2
    output = capsys.readouterr()
    assert output.out == ""
    (line,) = output.err.splitlines()
    assert state(place.parent) == before
    return line


def training(out):
    return ["fit", "--config", "experiments/some.yaml", "--scale", "embedded", "--workers", "1", f"--out={out}"]


FOLDERS = {
    "": "the working directory is in that folder",
    ".": "the working directory is in that folder",
    "..": "the working directory is in that folder",
    "/": "the working directory is in that folder",
    "full/..": "the working directory is in that folder",
    "file": "a file stands there",
    "file/run": "file is a file",
    "full": "full/mine.txt stands there, and no command of skipform wrote it",
    "link": "link is a symbolic link",
    "nowhere/run": "nowhere is a symbolic link",
    "run/other": "run is the output of one command",
    "x" * 300: "File name too long",
    "/proc/none": "a path that can be written",
}


@pytest.mark.parametrize("out", FOLDERS)
@pytest.mark.parametrize("command", ["fit", "examples"])
def test_a_folder_that_is_no_place_for_output_is_refused(command, out, capsys, place):
    words = training(out) if command == "fit" else ["examples", "runs", f"--out={out}"]
    assert FOLDERS[out] in refused(words, capsys, place)


@pytest.mark.parametrize("ending", [".partial", ".replaced"])
def test_the_folders_in_which_a_training_works_are_checked_and_not_for_naming(ending, capsys, place):
    assert f"accepted: another ending than {ending}" in refused(training(f"new{ending}"), capsys, place)
    Path(f"new{ending}").mkdir()
    Path(f"new{ending}/mine.txt").write_text("mine")
    assert f"new{ending}/mine.txt stands there" in refused(training("new"), capsys, place)


@pytest.mark.parametrize("name", ["grammar", "measure runs", "claims runs"])
def test_the_folder_in_which_measurements_are_stored_is_checked(name, capsys, place):
    leave_run(place / "runs")
    Path("out.json.partial").mkdir()
    Path("out.json.partial/mine.json").write_text("mine")
    assert "out.json.partial/mine.json stands there" in refused([*name.split(), "--out", "out.json"], capsys, place)


def leave_run(folder):
    """As much of a finished run of `classify` as is looked at before it is measured."""
    run = folder / "plain" / "seed0"
    run.mkdir(parents=True)
    keys = {"fingerprint": "f", "command": "", "commit": "", "training_seconds": 0.0, "hardware": {}, "versions": {}}
    (run / "provenance.json").write_text(json.dumps(keys | {"changed_since_commit": False}))
    metrics = {"epochs": 1, "steps": 1, "parameters": 1, "shown": ["error", "%"], "higher": False, "test_error": 1.0}
    (run / "metrics.json").write_text(json.dumps(metrics))
    (folder / "summary.json").write_text(json.dumps({"plain": summary_of([0], [metrics])}))
    blocks = {"net": {"name": "any"}, "data": {"name": "any"}, "task": {"name": "classify"}, "optimizer": {}}
    (run / "config.yaml").write_text(json.dumps({"scale": "smoke", "variant": "plain", "seed": 0} | blocks))
    for name in ("initial.safetensors", "final.safetensors"):
        (run / name).write_text("")
    (run / "history.csv").write_text("epoch,train_loss\n1,1.0\n")
    sums = {name: checksum(run / name) for name in CHECKED}
    (run / "checksums.json").write_text(json.dumps({"sha256": sums}))


@pytest.mark.parametrize("command", FILES)
def test_a_place_where_no_file_can_be_written_is_refused(command, capsys, place):
    option, suffix = FILES[command]
    Path(f"folder{suffix}").mkdir(exist_ok=True)
    Path(f"link{suffix}").symlink_to(f"target{suffix}")
    if suffix != ".json":
        os.mkfifo(f"pipe{suffix}")
    for out, reason in {
        "": "unknown suffix ''; accepted: ",
        "..": "unknown suffix ''; accepted: ",
        "out.txt": "unknown suffix '.txt'; accepted: ",
        f"folder{suffix}": "what stands there is no file",
        f"pipe{suffix}": "what stands there is no file",
        f"link{suffix}": "is a symbolic link",
        f"file/out{suffix}": "file is a file",
        f"run/out{suffix}": "run is the output of one command",
        f"{'x' * 300}{suffix}": "File name too long",
        f"/proc/none{suffix}": "a path that can be written",
    }.items():
        assert reason in refused(
            [*command.split(), f"--out={out}" if option == "-o" else f"{option}={out}"], capsys, place
        )


def test_an_unwritable_folder_is_refused(capsys, place, monkeypatch):
    def denied(**_):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(outputs.tempfile, "TemporaryFile", denied)  # the superuser may write anywhere
    assert "Permission denied" in refused(["verify", "--out", "out.json"], capsys, place)
    assert "Permission denied" in refused(training("new"), capsys, place)


def test_a_full_disk_is_refused_before_any_work_and_leaves_what_there_is(capsys, place, monkeypatch):
    def full(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    Path("out.json").write_text("{}")
    monkeypatch.setattr(os, "fsync", full)
    assert "No space left on device" in refused(["verify", "--out", "out.json"], capsys, place)
    assert "No space left on device" in refused(training("new"), capsys, place)
    with pytest.raises(OSError, match="No space left"):
        files.write_text("out.json", "other")
    assert Path("out.json").read_text() == "{}"
    assert sorted(path.name for path in place.glob(".*")) == []


def test_regions_replaces_its_own_table_and_no_other(capsys, place):
    command = ["regions", "torch.nn:ReLU", "--input", "2", "-o", "data.svg"]
    Path("data.csv").write_text("mine,1\n")
    assert "data.csv: the table of regions would replace it" in refused(command, capsys, place)
    Path("data.csv").unlink()
    assert cli.main(command) == 0
    table = Path("data.csv").read_bytes()
    assert cli.main(command) == 0
    assert Path("data.csv").read_bytes() == table


def test_a_training_replaces_what_it_wrote_and_refuses_what_was_added(capsys, place):
    assert cli.main([*training("new"), "--seeds", "0", "1"]) == 0
    assert cli.main([*training("new"), "--seeds", "0"]) == 0
    assert [path.name for path in Path("new/plain").iterdir()] == ["seed0"]
    assert not [path for path in place.iterdir() if path.name.startswith("new.")]
    capsys.readouterr()
    for mine in ("new/notes.txt", "new/plain/seed0/plot.png", "new/.hidden", "new/plain/seed1/metrics.json"):
        Path(mine).parent.mkdir(exist_ok=True)
        Path(mine).write_text("mine")
        assert f"--out new: {mine} stands there" in refused(training("new"), capsys, place)
        Path(mine).unlink()
    Path("new/.skipform").write_text("{")
    assert "new/.skipform: no list of what skipform wrote" in refused(training("new"), capsys, place)


@pytest.mark.parametrize("command", ["fit", "examples"])
def test_the_folder_of_another_command_is_refused(command, capsys, place):
    outputs.mark("other", ["one.csv"], "notebooks")
    Path("other/one.csv").write_text("1")
    words = training("other") if command == "fit" else ["examples", "runs", "--out=other"]
    assert "--out other: written by skipform notebooks; accepted: a new or an empty folder" in refused(
        words, capsys, place
    )
    outputs.mark("earlier", ["one.csv"])  # of an earlier version, which did not name the command
    outputs.check_folder("earlier", command=command)


def test_a_marker_removes_nothing_outside_its_folder(place):
    outputs.mark("folder", ["../file", str(place / "full/mine.txt"), "link/mine.txt", "a"])
    Path("folder/a").write_text("a")
    Path("elsewhere/mine.txt").write_text("mine")
    Path("folder/link").symlink_to(place / "elsewhere")
    outputs.clear(Path("folder"))
    assert not Path("folder/a").exists()
    assert Path("folder/link/mine.txt").read_text() == Path("file").read_text() == "mine"
    assert Path("full/mine.txt").exists()


class Killed(BaseException):
    pass


@pytest.mark.parametrize("moment", range(8))
def test_a_folder_is_replaced_whole_whenever_it_is_killed(moment, place, monkeypatch):
    for name, text in (("out", "old"), ("out.partial", "new")):
        outputs.mark(name, ["one", "two"])
        for file in ("one", "two"):
            Path(name, file).write_text(text)
    seen = 0

    def dying(function):
        def doing(*arguments, **options):
            nonlocal seen
            seen += 1
            if seen > moment:
                raise Killed
            return function(*arguments, **options)

        return doing

    with monkeypatch.context() as patch:
        for name in ("rename", "unlink", "rmdir"):
            patch.setattr(Path, name, dying(getattr(Path, name)))
        try:
            outputs.replace(Path("out.partial"), Path("out"))
        except Killed:
            pass
        else:
            assert moment > 5  # two renames, three files, the folder
    outputs.recover(Path("out"))
    texts = {Path("out", name).read_text() for name in ("one", "two")}
    assert texts == ({"old"} if Path("out.partial").exists() else {"new"})
    assert not Path("out.replaced").exists()


def killed(code):
    """Run Python code that kills itself."""
    done = subprocess.run([sys.executable, "-c", f"import os, signal\n{code}\nos.kill(os.getpid(), signal.SIGKILL)"])
    assert done.returncode == -signal.SIGKILL


def test_what_a_killed_process_left_half_written_goes_with_the_next_write(place):
    killed(
        "from skipform.files import *; w = whole('out.json'); w.__enter__(); t = temporary_folder('out'); t.__enter__()"
    )
    mine = [Path(".out.json.mine"), Path(".out.json.original.json")]
    for path in mine:
        path.write_text("mine")
    assert len(list(place.glob(".out*.skipform.*"))) == 2
    with files.whole("out.json") as other, files.temporary_folder("out") as folder:
        files.write_text("out.json", "first")  # one that another process is writing stays
        with files.temporary_folder("out"):
            assert sorted(place.glob(".out.json.skipform.*")) == [place / other]
            assert place / folder in place.glob(".out.skipform.*")
        other.write_text("second")
    assert Path("out.json").read_text() == "second"
    assert sorted(place.glob(".out*")) == sorted(place / path for path in mine)


def test_a_killed_training_leaves_nothing_that_the_next_one_refuses_or_keeps(place):
    killed(
        f"from skipform.stages import fit; from skipform.training import run\n"
        f"from skipform.files import whole\n"
        f"def dying(path, text): w = whole(path); w.__enter__(); os.kill(os.getpid(), signal.SIGKILL)\n"
        f"run.write_text = dying\nfit.main({training('new')[1:]!r})"
    )
    assert list(Path("new.partial").rglob("*.skipform.*"))
    fit.main(training("new")[1:])
    assert sorted(str(path.relative_to("new")) for path in Path("new").rglob("*") if path.is_file()) == sorted(
        [outputs.MARKER, "summary.json", *(f"plain/seed0/{name}" for name in fit_files())]
    )
    assert not [path for path in place.iterdir() if path.name.startswith("new.")]


def fit_files():
    from skipform.runs import FILES

    return FILES


def test_killed_notebooks_leave_nothing_for_good_and_others_files_stay(place, capsys):
    Path("analysis").mkdir()
    Path("analysis/page.css").write_text("")
    notebook = (
        "# %%\nimport os\nfrom pathlib import Path\nPath(os.environ['SKIPFORM_GENERATED'], 'one.csv').write_text('1')\n"
    )
    Path("analysis/one.py").write_text(notebook)
    killed("from skipform.files import temporary_folder; t = temporary_folder('paper/generated'); t.__enter__()")
    assert len(list(Path("paper").glob(".generated.*"))) == 1
    assert notebooks.main(root=".") == 0
    assert [path.name for path in Path("paper").iterdir()] == ["generated"]
    assert sorted(path.name for path in Path("paper/generated").iterdir()) == [".skipform", "numbers.json", "one.csv"]
    Path("analysis/two.py").write_text(f"{notebook}Path(os.environ['SKIPFORM_GENERATED'], 'folder').mkdir()\n")
    assert notebooks.main(root=".") == notebooks.main(root=".", only=["one"]) == notebooks.main(root=".") == 0
    Path("analysis/page.css").rename("page.css")
    assert "analysis/page.css: cannot be read" in refused(["notebooks"], capsys, place)
    Path("page.css").rename("analysis/page.css")
    Path("paper/generated/mine.csv").write_text("mine")
    assert "paper/generated/mine.csv stands there" in refused(["notebooks"], capsys, place)


def test_no_temporary_folder_of_wandb_is_left_by_workers_or_by_the_process_after_a_killed_one(place, monkeypatch):
    Path("temporary").mkdir()
    monkeypatch.setenv("TMPDIR", str(place / "temporary"))
    code = (
        "import multiprocessing, os; from pathlib import Path\n"
        "from skipform.training.tracking import import_wandb\n"
        "def killed(): import_wandb(); os.kill(os.getpid(), 9)\n"
        "for target, code, left in ((killed, -9, 1), (import_wandb, 0, 0)):\n"
        "    process = multiprocessing.get_context('fork').Process(target=target)\n"
        "    process.start(); process.join(); assert process.exitcode == code\n"
        "    assert len(list(Path('temporary').glob('.wandb-*.skipform.*/*wandb-media'))) == left\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert not list(Path("temporary").rglob("*wandb*"))


def test_two_commands_into_one_file_are_refused(place):
    with (
        outputs.work_folder("out.json", "measure"),
        pytest.raises(
            SkipformError, match=r"another `skipform grammar` is writing there; give one of them another --out"
        ),
        outputs.work_folder("out.json", "grammar"),
    ):
        pass
    assert not Path("out.json.partial").exists()


def test_an_output_named_by_a_program_is_checked_too(place):
    with pytest.raises(SkipformError, match="unknown suffix"):
        verify.main(out=Path("out"))
