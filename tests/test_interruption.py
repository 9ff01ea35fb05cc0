"""Ctrl-C, SIGTERM and `kill -9`, of a command or of one of its processes: one line, no process left, and the same
command ends as one that nobody disturbed."""

import json
import multiprocessing
import os
import re
import signal
import sys
import threading
import time
from importlib import import_module
from multiprocessing import forkserver, resource_tracker
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import yaml
from processes import runs
from sklearn.datasets import load_digits

from skipform.stages import cli
from skipform.training import launch
from skipform.training.experiment import accepted
from skipform.training.journal import Journal

EXPERIMENT = {
    "variants": {"net": {"name": "mlp", "depth": 2, "width": 8}},
    "data": {"name": "digits", "limit": 64, "batch_size": 32},
    "optimizer": {"name": "sgd", "lr": 0.05, "schedule": "cosine"},
    "trainer": {"max_epochs": 7, "accelerator": "cpu", "strategy": "ddp", "devices": 2},
    "threads": 1,
    "wandb": "disabled",
}
# who gets which signal -> the exit status of the command, and its line
GOES_ON = "; run the same command again to go on"
ENDS = {
    ("command", signal.SIGTERM): (143, f"terminated{GOES_ON}"),
    ("all", signal.SIGTERM): (143, f"terminated{GOES_ON}"),
    ("all", signal.SIGINT): (130, f"interrupted{GOES_ON}"),
    ("worker", signal.SIGKILL): (2, "error: a worker was killed"),
    ("command", signal.SIGKILL): (-signal.SIGKILL, None),
}


def end(who, number, command, worker):
    """Send the signal to the process of the command, to a worker of it, or, as a terminal does, to all."""
    if who == "all":
        os.killpg(command, number)
    else:
        os.kill({"command": command, "worker": worker}[who], number)


def until(true, process):
    """Wait for what the running process is about to do."""
    while not (value := true()):
        assert runs(process), "it has ended too early"
        time.sleep(0.005)
    return value


def until_ended(processes):
    """Wait until all of them have ended; a zombie has."""
    for process in processes:
        while runs(process):
            time.sleep(0.005)


def training(folder):
    (folder / "survey").mkdir(parents=True)
    (folder / "scale").mkdir()
    (folder / "scale" / "embedded.yaml").write_text("")
    (folder / "survey" / "some.yaml").write_text(yaml.safe_dump(EXPERIMENT))
    config, out = str(folder / "survey" / "some.yaml"), str(folder / "out")
    return ["fit", "--config", config, "--scale", "embedded", "--seeds", "0", "--out", out]


@pytest.fixture(autouse=True, scope="module")
def imported():
    """What `fit` imports when it reads an experiment and its data, so that the forked processes need not."""
    accepted()
    load_digits()


def in_child(argv, errors, output=Path(os.devnull)):
    """A process of its own session that runs a command; its standard error and output go to files."""

    def main():
        os.setsid()
        signal.signal(signal.SIGINT, signal.default_int_handler)  # which nohup, a shell's & and some CI ignore
        # As in a new process: without what other tests may have started from this one.
        vars(forkserver._forkserver).update(vars(forkserver.ForkServer()))
        vars(resource_tracker._resource_tracker).update(vars(resource_tracker.ResourceTracker()))
        sys.stderr, sys.stdout = errors.open("w", buffering=1), output.open("w", buffering=1)
        for file, number in ((sys.stdout, 1), (sys.stderr, 2)):
            os.dup2(file.fileno(), number)
        sys.exit(cli.main(argv))

    process = multiprocessing.get_context("fork").Process(target=main)
    process.start()
    return process


def test_a_training_on_two_devices_that_is_ended_in_every_way_ends_with_the_same_bytes(tmp_path, monkeypatch):
    begin, waits, gates = Journal.on_train_epoch_start, tmp_path / "waits", set()

    def waiting(self, trainer, pl_module):  # the second of the two; the first one then waits for it in a sum
        if trainer.global_rank == 1 and trainer.current_epoch in gates:
            waits.with_suffix(".new").write_text(str(os.getpid()))
            waits.with_suffix(".new").rename(waits)
            threading.Event().wait()
        begin(self, trainer, pl_module)

    monkeypatch.setattr(Journal, "on_train_epoch_start", waiting)
    ended, errors = training(tmp_path / "ended"), tmp_path / "errors"
    for epoch, ((who, number), (status, line)) in enumerate(ENDS.items(), 1):
        gates.add(epoch)
        process = in_child(ended, errors)
        command = psutil.Process(process.pid)
        until(waits.exists, command)
        workers = command.children(recursive=True)
        assert len(workers) == 2
        end(who, number, process.pid, int(waits.read_text()))
        process.join()
        until_ended(workers)
        assert process.exitcode == status
        assert re.fullmatch(rf"skipform fit: {line}[^\n]*\n" if line else "", errors.read_text())
        assert not (tmp_path / "ended" / "out").exists()
        waits.unlink()
        gates.remove(epoch)
    (history,) = (tmp_path / "ended" / "out.partial").rglob("last.ckpt")
    for argv in (ended, training(tmp_path / "undisturbed")):
        process = in_child(argv, errors)
        process.join()
        assert (process.exitcode, errors.read_text()) == (0, "")
    assert not history.exists()
    first, second = (
        {
            path.relative_to(tmp_path / side): path.read_bytes()
            for path in (tmp_path / side / "out").rglob("*")
            if path.is_file() and path.name != "provenance.json"
        }
        for side in ("ended", "undisturbed")
    )
    assert first == second
    assert not (tmp_path / "ended" / "out.partial").exists()


def test_a_training_in_workers_that_is_terminated_with_them_ends_in_one_line(tmp_path, monkeypatch):
    def waiting(self, trainer, pl_module):
        (tmp_path / f"waits{os.getpid()}").touch()
        threading.Event().wait()

    monkeypatch.setattr(Journal, "on_train_epoch_start", waiting)
    one_device = [*training(tmp_path / "ended"), "--seeds", "0", "1", "--workers", "2", "--trainer.devices", "1"]
    process = in_child(one_device, tmp_path / "errors")
    command = psutil.Process(process.pid)
    until(lambda: len(list(tmp_path.glob("waits*"))) == 2, command)
    workers = command.children(recursive=True)
    end("all", signal.SIGTERM, process.pid, None)
    process.join()
    until_ended(workers)
    assert (process.exitcode, (tmp_path / "errors").read_text()) == (143, f"skipform fit: terminated{GOES_ON}\n")


# Cell 3 and cell 4 wait for the gate; every cell leaves a line in a log when it begins. The import is done once, by the
# server that forks the workers, as it is for the functions that measure.
CELLS = """
import os, time
from pathlib import Path
import skipform.training.executor

def cell(number, folder):
    with Path(folder, "log").open("a") as file:
        file.write(f"{number} {os.getpid()}\\n")
    while number in (3, 4) and not Path(folder, "gate").exists():
        time.sleep(0.005)
    return number**2
"""


@pytest.fixture
def grid(tmp_path, monkeypatch):
    """Starts a command that computes the cells in a grid and prints the results; 3 and 4 wait until there is a file
    `gate`."""
    (tmp_path / "cells.py").write_text(CELLS)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.chdir(tmp_path)

    def start(executor, numbers):
        (tmp_path / "log").unlink(missing_ok=True)

        def main(**_):
            sys.path.insert(0, str(tmp_path))
            cells = [{"number": number, "folder": str(tmp_path)} for number in numbers]
            slurm = {"cluster": "local"} if executor == "submitit" else None  # a stand-in: jobs in local processes
            options = {"digest": "", "title": "test", "executor": executor, "workers": 2, "slurm": slurm}
            print(launch.run_grid(import_module("cells").cell, cells, tmp_path / "partial", **options))

        monkeypatch.setattr(cli, "import_module", lambda _: SimpleNamespace(main=main))
        return in_child(["list"], tmp_path / "errors", tmp_path / "output")

    return start


def begun(folder):
    """The cells that have begun: number -> process."""
    lines = (folder / "log").read_text().splitlines() if (folder / "log").exists() else []
    return {int(number): int(pid) for number, pid in map(str.split, lines)}


def ended_at_the_gate(process, who, number, folder, *, waiting, stored):
    """End a grid when the cells `waiting` wait and `stored` results are stored; what it has written to standard error,
    as soon as none of its processes runs any more."""
    command = psutil.Process(process.pid)
    until(lambda: begun(folder).keys() >= waiting and len(list(folder.glob("partial/[!.]*.json"))) >= stored, command)
    workers = command.children(recursive=True)
    end(who, number, process.pid, begun(folder)[3])
    process.join()
    until_ended(workers)
    assert (folder / "output").read_text() == ""
    return (folder / "errors").read_text()


def test_a_grid_that_is_ended_in_every_way_goes_on_with_the_missing_cells(grid, tmp_path):
    expected = {0, 1, 2, 3, 4}
    for (who, number), (status, line) in list(ENDS.items())[1:]:  # the first one: below
        process = grid("local", range(6))
        errors = ended_at_the_gate(process, who, number, tmp_path, waiting={3, 4}, stored=3)
        assert process.exitcode == status
        # of a killed process, Python's own resource tracker says that it cleans up
        assert re.fullmatch(rf"skipform list: {line}[^\n]*\n" if line else "(.*resource_tracker.*\n)*", errors), errors
        assert begun(tmp_path).keys() == expected
        expected = {3, 4}
    (tmp_path / "gate").touch()
    process = grid("local", range(6))
    process.join()
    assert (process.exitcode, (tmp_path / "errors").read_text()) == (0, "")
    assert json.loads((tmp_path / "output").read_text()) == [0, 1, 4, 9, 16, 25]
    assert begun(tmp_path).keys() == {3, 4, 5}


def test_the_jobs_of_a_grid_on_a_cluster_are_cancelled_when_it_is_ended(grid, tmp_path):
    process = grid("submitit", [2, 3])
    errors = ended_at_the_gate(process, "command", signal.SIGTERM, tmp_path, waiting={3}, stored=1)
    assert process.exitcode == 143
    assert [line for line in errors.splitlines() if line.startswith("skipform")] == [
        f"skipform list: terminated{GOES_ON}"
    ]
    (tmp_path / "gate").touch()
    process = grid("submitit", [2, 3])
    process.join()
    assert json.loads((tmp_path / "output").read_text()) == [4, 9]
    assert begun(tmp_path).keys() == {3}
