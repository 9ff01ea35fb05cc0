"""Where runs are trained: the GPU of every worker, and options that the experiment or the machine does not take."""

import multiprocessing
import os
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml

from skipform.cores import SHARE, cores
from skipform.errors import SkipformError
from skipform.stages import cli
from skipform.training.executor import Executor
from skipform.training.launch import executor_for

# The import of the executor is done once, by the server that forks the workers, as it is for the functions that train.
SEEN = """
import os, time
from pathlib import Path
import skipform.training.executor

def seen(folder, others):
    Path(folder, str(os.getpid())).touch()
    while len(os.listdir(folder)) < others:  # until that many processes have been started
        time.sleep(0.01)
    return os.environ["CUDA_VISIBLE_DEVICES"], os.getpid()
"""


@pytest.fixture
def seen(tmp_path, monkeypatch):
    (tmp_path / "devices_seen.py").write_text(SEEN)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    import devices_seen

    yield devices_seen.seen
    del sys.modules["devices_seen"]


def test_of_two_workers_each_sees_its_own_gpu_and_every_job_is_a_new_process(seen, tmp_path):
    (tmp_path / "begun").mkdir()
    jobs = {str(k): {"folder": str(tmp_path / "begun"), "others": min(k + 1, 2)} for k in (1, 0, 3, 2)}
    executor = Executor(workers=2, devices=("3", "GPU-a7"), fresh=True)
    results = dict(executor.results(seen, jobs, tmp_path / "jobs"))
    assert {device for device, _ in results.values()} == {"3", "GPU-a7"}
    assert len({process for _, process in results.values()}) == 4
    assert results["0"][0] != results["1"][0]  # they ran at the same time


SLOW = """
import time
from pathlib import Path

def slow(log, gate):
    with Path(log).open("a") as file:
        file.write("begun ")
    while not Path(gate).exists():
        time.sleep(0.01)
    with Path(log).open("a") as file:
        file.write("ended ")
"""


def test_a_job_that_is_given_again_waits_for_the_one_that_still_runs(tmp_path, monkeypatch):
    """A cluster goes on with its jobs when the command that has submitted them is killed."""
    (tmp_path / "slow_jobs.py").write_text(SLOW)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    log, gate, jobs = tmp_path / "log", tmp_path / "gate", tmp_path / "jobs"

    def command():
        sys.path.insert(0, str(tmp_path))
        slow = import_module("slow_jobs").slow
        executor = Executor("submitit", slurm={"cluster": "local"})
        arguments = {"log": str(log), "gate": str(gate)}
        (tmp_path / "results").write_text(str(list(executor.results(slow, {"one/seed0": arguments}, jobs))))

    first, second = (multiprocessing.get_context("fork").Process(target=command) for _ in range(2))
    first.start()
    while not log.exists():
        assert first.is_alive()
        time.sleep(0.01)
    first.kill()
    first.join()
    second.start()
    while sum("Starting" in path.read_text() for path in jobs.glob("*_log.out")) < 2:
        assert second.is_alive()
        time.sleep(0.01)
    time.sleep(1)  # in which it could begin
    assert log.read_text() == "begun "
    gate.touch()
    second.join()
    assert (tmp_path / "results").read_text() == "[('one/seed0', None)]"
    assert log.read_text() == "begun ended begun ended "


LOGGING = """
import logging, os
from pathlib import Path
from skipform.training.executor import _submitit

class Handler(logging.Handler):
    def close(self):
        print("closed")

logging.getLogger().addHandler(Handler())
_submitit({"cluster": "local"}, Path("jobs"))
print(os.environ.get("SUBMITIT_LOG_LEVEL"), flush=True)
os._exit(0)  # the end of logging closes all handlers
"""


@pytest.mark.parametrize("level", [None, "ERROR"])
def test_submitit_leaves_the_logging_of_others_alone(level, tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "SUBMITIT_LOG_LEVEL"}
    environment |= {} if level is None else {"SUBMITIT_LOG_LEVEL": level}
    done = subprocess.run(
        [sys.executable, "-c", LOGGING], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert (done.stdout, done.returncode) == (f"{level}\n", 0), done.stderr


def experiment(accelerator="auto", devices=1, threads=0):
    trainer = {"accelerator": accelerator, "devices": devices, "num_nodes": 1}
    return SimpleNamespace(trainer=trainer, threads=threads)


@pytest.fixture
def four_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


@pytest.mark.parametrize(
    ("options", "workers", "devices"),
    [
        ({}, 4, ("0", "1", "2", "3")),
        ({"devices": (2, 0)}, 2, ("2", "0")),
        ({"devices": (1,)}, 1, ("1",)),
        ({"devices": (1, 2), "workers": 6}, 6, ("1", "2")),  # three runs share a GPU
        ({"workers": 1}, 1, ()),
    ],
)
def test_by_default_every_gpu_trains_a_run(options, workers, devices, four_gpus):
    executor = executor_for(experiment(), 9, **options)
    assert (executor.workers, executor.devices, executor.fresh) == (workers, devices, bool(devices))


def test_gpus_are_numbered_among_those_that_the_process_may_see(four_gpus, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")
    assert executor_for(experiment(), 9, devices=(1, 3)).devices == ("5", "7")


def test_on_a_cpu_the_workers_are_the_cores(four_gpus, monkeypatch):
    monkeypatch.setattr("skipform.training.launch.cores", lambda: 8)
    assert executor_for(experiment("cpu", threads=2), 9) == Executor(workers=4, forked=True, threads=2)
    assert executor_for(experiment("cpu", threads=2), 3).workers == 3
    assert executor_for(experiment("cpu"), 9).workers == 1  # with torch's own number of threads


@pytest.mark.parametrize(
    ("given", "found"),
    [(None, 3), ("1", 1), ("2", 2), ("3", 3), ("4", 3), ("0", None), ("-1", None), ("", None), ("9" * 10, None)],
)
def test_a_process_uses_the_cores_that_it_may_run_on_at_most_its_share(monkeypatch, given, found):
    monkeypatch.setattr("os.sched_getaffinity", lambda process: {0, 5, 7}, raising=False)
    monkeypatch.delenv(SHARE, raising=False)
    if given is not None:
        monkeypatch.setenv(SHARE, given)
    if found:
        assert cores() == found
    else:
        with pytest.raises(SkipformError, match=rf"^SKIPFORM_CORES: '{given}'; accepted: a whole number from 1"):
            cores()


def test_where_there_is_no_affinity_a_process_uses_all_cores(monkeypatch):
    monkeypatch.delattr("os.sched_getaffinity", raising=False)
    monkeypatch.delenv(SHARE, raising=False)
    assert cores() == (os.cpu_count() or 1)


def test_a_job_of_a_cluster_has_a_gpu_unless_it_trains_on_the_cpu():
    slurm = {"slurm_partition": "a"}
    assert executor_for(experiment(), 9, executor="submitit", slurm=slurm).slurm == {"gpus_per_node": 1, **slurm}
    assert executor_for(experiment("cpu"), 9, executor="submitit", slurm=slurm).slurm == slurm


@pytest.mark.parametrize(
    ("gpus", "trainer", "options", "says"),
    [
        (
            0,
            {},
            {"devices": (0, 1)},
            r"^--devices 0,1: no GPU is visible to torch; accepted: a machine with GPUs, or no",
        ),
        (
            4,
            {},
            {"devices": (0, 4)},
            r"^--devices 0,4; accepted: one or more different numbers of GPUs, of 0, 1, 2, 3$",
        ),
        (4, {}, {"devices": (1, 1)}, r"^--devices 1,1; accepted: one or more different"),
        (4, {}, {"devices": ()}, r"^--devices ; accepted: one or more different"),
        (4, {"accelerator": "cpu"}, {"devices": (0,)}, r"^--devices 0: trainer.accelerator cpu; accepted: runs of one"),
        (4, {"devices": 2}, {"devices": (0,)}, r"^--devices 0: 2 processes a run; accepted: runs of one process"),
        (4, {"devices": 2}, {"executor": "submitit"}, r"^trainer.devices: 2: not with --executor submitit"),
        (4, {}, {"executor": "submitit", "workers": 2}, r"^--workers: not with --executor submitit"),
        (4, {}, {"executor": "submitit", "devices": (0,)}, r"^--devices: not with --executor submitit"),
        (4, {}, {"slurm": {"slurm_partition": "a"}}, r"^--slurm: for --executor submitit"),
    ],
)
def test_what_experiment_and_machine_do_not_take_is_refused_in_one_line(gpus, trainer, options, says, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    with pytest.raises(SkipformError, match=says):
        executor_for(experiment(**trainer), 9, **options)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty working folder with one experiment."""
    content = {
        "variants": {"one": {"name": "mlp", "depth": 1, "width": 4}},
        "data": {"name": "digits", "limit": 40},
        "trainer": {"max_epochs": 1, "accelerator": "cpu"},
        "wandb": "disabled",
    }
    for name, value in {"scale/embedded.yaml": {}, "survey/some.yaml": content}.items():
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text(yaml.safe_dump(value))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("params", "argv", "says"),
    [
        ("fit: {devices: [0]}", [], "--devices 0: trainer.accelerator cpu; accepted: runs of one process on a GPU"),
        ("fit: {devices: 0}", [], "params.yaml: fit.devices: 0 is not accepted; accepted: tuple[int, ...]"),
        ("fit: {gpus: 1}", [], "params.yaml: fit: unknown key 'gpus'; accepted: executor, workers, devices, slurm"),
        ("fit: {executor: moon}", [], "fit.executor: 'moon' is not accepted; accepted: 'local' | 'submitit'"),
        ("fit: {executor: submitit}", ["--executor", "local", "--workers", "0"], "--workers: 0; accepted: 1 or more"),
        ("", ["--devices", "0,x"], "--devices: [0, 'x'] is not accepted; accepted: tuple[int, ...]"),
        ("", ["--slurm", "{a"], "--slurm: '{a' is not accepted; accepted: dict[str, Any]"),
        ("", ["--executor", "moon"], "--executor: invalid choice: 'moon'"),
    ],
)
def test_a_wrong_place_for_the_runs_is_refused_before_any_work(params, argv, says, folder, capsys):
    (folder / "params.yaml").write_text(params or "{}")
    assert cli.main(["fit", "--config", "survey/some.yaml", "--scale", "embedded", *argv]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert says in err
    assert not Path("runs").exists()
