"""Training: the task against a bare loop, and killed runs against uninterrupted ones."""

import csv
import io
import itertools
import json
import multiprocessing
import os
import re
import signal
import statistics
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from lightning.pytorch.loggers import CSVLogger
from processes import descendants
from torch import nn
from torch.nn import functional
from tqdm import tqdm

import skipform
from skipform import nets, outputs
from skipform.data.images import Images
from skipform.errors import SkipformError
from skipform.runs import FILES, Run, finished
from skipform.stages import cli, fit
from skipform.stages.measure import measure_slices
from skipform.stages.subjects import Subject
from skipform.tasks import Optimizer
from skipform.tasks.classify import Classify
from skipform.training import plan, run, tracking
from skipform.training.journal import Journal

# Dropout, crops and flips draw random numbers; batch norm and momentum carry state: all must survive a kill.
EXPERIMENT = {
    "variants": {"dense": {"name": "densenet", "depth": 7, "growth": 4, "dropout": 0.2}},
    "data": {"name": "digits", "limit": 96, "batch_size": 32, "crop": 1, "flip": True, "validation": 40},
    "optimizer": {"name": "nesterov", "lr": 0.05, "schedule": "cosine", "warmup": 2},
    "trainer": {"max_epochs": 3, "accelerator": "cpu"},
    "threads": 1,
    "wandb": "disabled",
}
DETERMINISTIC = [name for name in FILES if name != "provenance.json"]


def written(folder: Path, **over) -> list[str]:
    """The arguments of `skipform fit` for EXPERIMENT, changed by `over`, written below `folder`."""
    (folder / "survey").mkdir(parents=True, exist_ok=True)
    (folder / "scale").mkdir(exist_ok=True)
    (folder / "scale" / "embedded.yaml").write_text("")
    (folder / "survey" / "some.yaml").write_text(yaml.safe_dump(EXPERIMENT | over))
    config, out = str(folder / "survey" / "some.yaml"), str(folder / "out")
    return ["--config", config, "--scale", "embedded", "--out", out, "--workers", "1"]


def contents(out: Path) -> dict[str, bytes]:
    """Every file of a finished experiment but the provenance, by its path."""
    files = [path for path in out.rglob("*") if path.is_file() and path.name != "provenance.json"]
    return {str(path.relative_to(out)): path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def unkilled(tmp_path_factory):
    folder = tmp_path_factory.mktemp("unkilled")
    fit.main([*written(folder), "--seeds", "0", "1"])
    return folder / "out"


@given(
    steps=st.integers(1, 60),
    milestones=st.lists(st.floats(0, 1), max_size=3).map(lambda drawn: tuple(sorted(drawn))),
    decay=st.floats(0.05, 1),
)
def test_the_schedules_are_torchs(steps, milestones, decay):
    def torchs(make):
        optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
        schedule, rates = make(optimizer), []
        for _ in range(steps):
            rates.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            schedule.step()
        return rates

    lr_scheduler = torch.optim.lr_scheduler
    cosine = torchs(lambda optimizer: lr_scheduler.CosineAnnealingLR(optimizer, steps))
    # torch's recursion rounds once a step: 60 steps of 2^-53 each, and some slack
    assert [Optimizer(schedule="cosine").scale(step, steps) for step in range(steps)] == pytest.approx(
        cosine, abs=1e-13
    )
    first = [min((step for step in range(steps) if step / steps >= m), default=steps) for m in milestones]
    stairs = torchs(lambda optimizer: lr_scheduler.MultiStepLR(optimizer, first, decay))
    # a milestone at step 0 has passed before torch's scheduler first looks
    stairs = [rate * decay ** first.count(0) if first.count(0) and stairs[0] == 1 else rate for rate in stairs]
    recipe = Optimizer(schedule="multistep", milestones=tuple(milestones), decay=decay)
    ours = [recipe.scale(step, steps) for step in range(steps)]
    assert ours == pytest.approx(stairs, rel=1e-13)


@given(steps=st.integers(1, 40), warmup=st.integers(1, 40))
def test_warming_up_rises_linearly_to_the_full_rate(steps, warmup):
    rates = [Optimizer(schedule="constant", warmup=warmup).scale(step, steps) for step in range(steps)]
    assert rates == [(step + 1) / warmup if step + 1 < warmup else 1.0 for step in range(steps)]


@pytest.mark.parametrize("optimizer", ["sgd", "nesterov", "adamw"])
def test_training_through_the_task_is_the_bare_loop_bit_for_bit(optimizer, tmp_path):
    def net():
        torch.manual_seed(1)
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 10))

    through, bare = net(), net()
    data = skipform.data("digits", limit=160, batch_size=32, seed=3)
    journal = Journal(tmp_path / "last.ckpt", 3, tqdm(total=100, disable=True))
    task = Classify(through, Optimizer(name=optimizer, lr=0.01, schedule="multistep", milestones=(0.5,)))
    run.build_trainer(max_epochs=2, accelerator="cpu", callback=journal).fit(task, datamodule=data)

    batches, seen = data.train_dataloader(), []
    steps = {
        "sgd": lambda: torch.optim.SGD(bare.parameters(), 0.01, momentum=0.9, weight_decay=1e-4),
        "nesterov": lambda: torch.optim.SGD(bare.parameters(), 0.01, momentum=0.9, weight_decay=1e-4, nesterov=True),
        "adamw": lambda: torch.optim.AdamW(bare.parameters(), 0.01, weight_decay=1e-4),
    }[optimizer]()
    for batches.epoch in range(2):
        for images, labels in batches:
            for group in steps.param_groups:
                group["lr"] = 0.01 * (0.1 if batches.epoch else 1)
            steps.zero_grad()
            scores = bare(images)
            loss = functional.cross_entropy(scores, labels)
            loss.backward()
            steps.step()
            seen.append((loss.item(), int((scores.argmax(1) != labels).sum())))
    assert all(
        torch.equal(a, b) for a, b in zip(through.state_dict().values(), bare.state_dict().values(), strict=True)
    )
    last, images = seen[-5:], 160
    assert journal.rows[-1]["train_loss"] == pytest.approx(sum(loss for loss, _ in last) / 5, rel=1e-12)
    assert journal.rows[-1]["train_error"] == 100 * sum(wrong for _, wrong in last) / images


def test_two_accumulated_batches_of_16_make_the_step_of_one_batch_of_32(tmp_path):
    """To the rounding of float32 sums in another order, 1e-7 each; without batch norm, which sees single batches."""
    finals, variants = {}, {"dense": {"name": "mlp", "depth": 2, "width": 16}}
    for size, batches in ((32, 1), (16, 2)):
        folder = tmp_path / str(size)
        data = {"name": "digits", "limit": 96, "batch_size": size}
        trainer = EXPERIMENT["trainer"] | {"accumulate_grad_batches": batches}
        fit.main([*written(folder, variants=variants, data=data, trainer=trainer), "--seeds", "0"])
        finished_run = Run(folder / "out" / "dense" / "seed0")
        assert finished_run.metrics["steps"] == 9
        finals[size] = finished_run.net("final").state_dict()
    for key, tensor in finals[32].items():
        torch.testing.assert_close(finals[16][key], tensor, rtol=0, atol=1e-5)


def test_frozen_parameters_stay_as_they_were(tmp_path):
    fit.main([*written(tmp_path, variants={"built": {"name": "pooled", "pool": "relu", "width": 2}}), "--seeds", "0"])
    folder = tmp_path / "out" / "built" / "seed0"
    before, after = (Run(folder).net(moment) for moment in ("initial", "final"))
    moved = {
        name: not torch.equal(parameter, dict(after.named_parameters())[name])
        for name, parameter in before.named_parameters()
    }
    assert moved == {name: parameter.requires_grad for name, parameter in before.named_parameters()}
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["trained_parameters"] < metrics["parameters"] == sum(p.numel() for p in after.parameters())


def test_the_files_of_a_run_are_complete_and_consistent(unkilled):
    for seed in (0, 1):
        folder = unkilled / "dense" / f"seed{seed}"
        assert sorted(path.name for path in folder.iterdir()) == sorted(FILES)
        config = yaml.safe_load((folder / "config.yaml").read_text())
        metrics = json.loads((folder / "metrics.json").read_text())
        rows = list(csv.DictReader((folder / "history.csv").read_text().splitlines()))
        assert [row["epoch"] for row in rows] == ["1", "2", "3"]
        for key, value in rows[-1].items():  # the last epoch's numbers, to the last digit
            assert key == "epoch" or float(value) == metrics[key]
        assert (metrics["seed"], metrics["epochs"], metrics["steps"]) == (seed, 3, 9)
        data = Images(**config["data"], seed=seed)
        data.setup()
        net = Run(folder).net()
        for split in data.held_out:
            images, labels = data.splits[split]
            with torch.no_grad():
                wrong = int((net(images).argmax(1) != labels).sum())
            assert metrics[f"{split}_error"] == 100 * wrong / len(labels)
        provenance = json.loads((folder / "provenance.json").read_text())
        assert provenance["versions"]["torch"] == torch.__version__.partition("+")[0]
        assert {"commit", "hardware", "seed", "training_seconds", "command"} <= provenance.keys()


def test_records_are_what_the_files_of_the_runs_hold(unkilled, tmp_path, monkeypatch, capsys):
    records = tmp_path / "records" / "some.jsonl"
    words = [*written(tmp_path), "--seeds", "0", "1", "--records", str(records)]
    fit.main(words)
    lines = [json.loads(line) for line in records.read_text().splitlines()]
    runs = [Run(unkilled / "dense" / f"seed{seed}") for seed in (0, 1)]
    assert [line["config"] for line in lines] == [run.config for run in runs]
    assert [line["metrics"] for line in lines] == [run.metrics for run in runs]
    assert [pd.DataFrame(line["history"]).to_dict("records") for line in lines] == [run.history for run in runs]
    monkeypatch.setattr(fit, "_summarise", lambda *_: 1 / 0)  # nothing is trained when the file is refused
    assert cli.main(["fit", *words[:-1], "records.csv"]) == 2
    assert "--records records.csv: unknown suffix '.csv'; accepted: .jsonl" in capsys.readouterr().err


def test_sources_that_the_pipeline_does_not_write_count_as_changed(tmp_path, monkeypatch):
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b"]
    names = ("src/skipform/training/run.py", "dvc.lock", "records/a.jsonl", "measures/a.json")
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("before")
    for words in (["init", "-q"], ["add", "-A"], ["commit", "-q", "-m", "all"]):
        subprocess.run([*git, *words], cwd=tmp_path, check=True)
    monkeypatch.setattr(run, "__file__", str(tmp_path / names[0]))
    changed = []
    for name in reversed(names):
        (tmp_path / name).write_text("after")
        changed.append(run._provenance(1.0)["changed_since_commit"])
    assert changed == [False, False, False, True]


def test_a_finished_run_is_measured_without_lightning(unkilled, tmp_path):
    command = [
        "measure",
        str(unkilled),
        "--out",
        str(tmp_path / "out.json"),
        "--slices",
        "1",
        "--batch",
        "2",
        "--workers",
        "1",
    ]
    code = (
        f"import sys; from skipform.stages import cli; assert cli.main({command}) == 0\n"
        "print([m for m in ('lightning', 'torchmetrics', 'torchvision', 'wandb') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert json.loads((tmp_path / "out.json").read_text())["rows"]


def test_a_finished_run_is_read_back_as_it_was_left(unkilled):
    runs = finished(unkilled)
    assert [trained.folder for trained in runs] == [unkilled / "dense" / f"seed{seed}" for seed in (0, 1)]
    for trained in runs:
        assert trained.config == yaml.safe_load((trained.folder / "config.yaml").read_text())
        assert [row["epoch"] for row in trained.history] == [1, 2, 3]
        assert all(trained.metrics[key] == value for key, value in trained.history[-1].items() if key != "epoch")
        task, data, final = trained.task(), trained.data(), trained.net().state_dict()
        assert not task.training
        assert all(torch.equal(value, final[name]) for name, value in task.net.state_dict().items())
        images, labels = data.splits["test"]
        with torch.no_grad():
            wrong = int((task.net(images).argmax(1) != labels).sum())
        assert trained.metrics["test_error"] == 100 * wrong / len(labels)
        assert trained.data(root="elsewhere").root == "elsewhere"
        assert trained.config["data"].keys().isdisjoint({"root", "download"})
        with pytest.raises(SkipformError, match="a net of task 'classify'; accepted: detect"):
            trained.of_task("detect")


def test_the_summary_is_median_and_range_over_the_seeds(unkilled):
    summary = json.loads((unkilled / "summary.json").read_text())["dense"]
    runs = [json.loads((unkilled / "dense" / f"seed{seed}" / "metrics.json").read_text()) for seed in (0, 1)]
    for key in ("train_loss", "train_error", "validation_error", "test_loss", "test_error"):
        values = [metrics[key] for metrics in runs]
        assert summary[key] == {"middle": statistics.median(values), "low": min(values), "high": max(values)}
    assert runs[0]["test_loss"] != runs[1]["test_loss"]
    assert summary["seeds"] == [0, 1]


def test_a_run_killed_by_sigkill_ends_with_the_same_bytes(tmp_path):
    longer = [*written(tmp_path, trainer={"max_epochs": 9, "accelerator": "cpu"}), "--seeds", "0", "1"]
    work = tmp_path / "out.partial" / "dense"
    with started_and_stopped_in_epoch(9 + 4, longer, tmp_path) as process:  # the fourth of the second seed
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
    assert not (tmp_path / "out").exists()
    assert not (work / "seed1" / "checksums.json").exists()
    finished = (work / "seed0" / "provenance.json").read_bytes()
    assert len(torch.load(work / "seed1" / "last.ckpt", weights_only=True)["callbacks"]["Journal"]["rows"]) == 3
    with pytest.MonkeyPatch.context() as patch:
        again = counting_epochs(patch)
        fit.main(longer)
    assert again == list(range(3, 9))  # of the second seed only, from where it was
    assert (tmp_path / "out" / "dense" / "seed0" / "provenance.json").read_bytes() == finished
    resumed = contents(tmp_path / "out")
    fit.main(longer)
    assert contents(tmp_path / "out") == resumed
    assert not (tmp_path / "out.partial").exists()


@contextmanager
def started_and_stopped_in_epoch(number: int, arguments: list[str], folder: Path, processes: int = 1):
    """`fit` in a process of its own, as soon as all processes that train have begun this epoch, counted from 1 over
    their runs, where they wait for ever."""
    begin, begun = Journal.on_train_epoch_start, itertools.count(1)

    def stopped(self, trainer, pl_module):
        if next(begun) == number:
            (folder / f"stopped{os.getpid()}").touch()
            threading.Event().wait()
        begin(self, trainer, pl_module)

    def main():
        signal.signal(signal.SIGINT, signal.default_int_handler)  # which nohup, a shell's & and some CI ignore
        fit.main(arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Journal, "on_train_epoch_start", stopped)
        process = multiprocessing.get_context("fork").Process(target=main)
        process.start()
    while len(list(folder.glob("stopped*"))) < processes:
        assert process.is_alive()
        time.sleep(0.005)
    yield process


def counting_epochs(patch: pytest.MonkeyPatch) -> list[int]:
    """The epochs trained from now on, as they come."""
    epochs: list[int] = []
    begin = Journal.on_train_epoch_start

    def counted(self, trainer, pl_module):
        epochs.append(trainer.current_epoch)
        begin(self, trainer, pl_module)

    patch.setattr(Journal, "on_train_epoch_start", counted)
    return epochs


def test_runs_in_parallel_processes_write_the_same_bytes_and_count_every_step(tmp_path, unkilled, monkeypatch):
    bar = tqdm(total=18, file=io.StringIO())  # 2 seeds of 3 epochs of 3 steps
    monkeypatch.setattr(plan, "progress_bar", lambda *_, **__: bar)
    fit.main([*written(tmp_path), "--seeds", "0", "1", "--workers", "2"])
    assert contents(tmp_path / "out") == contents(unkilled)
    assert bar.n == bar.total == 18


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT], ids=["killed", "interrupted"])
def test_workers_end_with_the_process_that_started_them_and_the_next_one_resumes(end, tmp_path):
    longer = [*written(tmp_path, trainer={"max_epochs": 9, "accelerator": "cpu"}), "--seeds", "0", "1", "--workers"]
    with started_and_stopped_in_epoch(4, [*longer, "2"], tmp_path, processes=2) as process:
        os.kill(process.pid, end)
        process.join()
    with alone_at_last(tmp_path / "out.partial"):
        for seed in (0, 1):
            checkpoint = torch.load(tmp_path / "out.partial" / "dense" / f"seed{seed}" / "last.ckpt")
            assert len(checkpoint["callbacks"]["Journal"]["rows"]) == 3
    assert not (tmp_path / "out").exists()
    with pytest.MonkeyPatch.context() as patch:
        again = counting_epochs(patch)
        fit.main([*longer, "1"])
    assert again == [*range(3, 9), *range(3, 9)]
    resumed = contents(tmp_path / "out")
    fit.main([*longer, "2"])
    assert contents(tmp_path / "out") == resumed


@contextmanager
def alone_at_last(work: Path):
    """Lock the work folder as soon as no other process holds it; workers hold it together with their parent process."""
    for _ in range(10_000):
        try:
            with outputs.alone(work, "fit"):
                yield
            return
        except SkipformError:
            time.sleep(0.01)
    raise TimeoutError(work)


@pytest.mark.parametrize(
    ("name", "value", "accepted"),
    [
        ("WANDB_MODE", "loud", "accepted: online, offline, shared, disabled$"),
        ("WANDB_MODE", "auto", "accepted: online, offline, shared, disabled$"),
        ("WANDB_CONSOLE", "loud", "W&B: Input should be 'auto', 'off'"),
        ("WANDB_SILENT", "loud", "W&B: Input should be a valid boolean"),
        ("WANDB_TAGS", "a,,b", "W&B: Value error, Tag at index 1 is empty"),
        ("WANDB_PROJECT", "a/b", "W&B: Invalid project name"),
    ],
)
def test_a_variable_that_wandb_does_not_accept_is_refused_before_work(tmp_path, monkeypatch, name, value, accepted):
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv(name, value)
    with pytest.raises(SkipformError, match=f"^{name}: '{value}'; {accepted}"):
        fit.main([*written(tmp_path, wandb="auto"), "--seeds", "0", "--workers", "1"])
    assert not list(tmp_path.glob("out*"))


def test_an_error_in_a_worker_is_the_same_one_line(tmp_path, monkeypatch):
    two = [*written(tmp_path, wandb="auto"), "--seeds", "0", "1", "--workers", "2"]
    monkeypatch.setattr(Journal, "on_train_start", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    with pytest.raises(SkipformError, match=r"^a worker was killed in dense/seed[01], perhaps"):
        fit.main([*two, "--wandb", "disabled"])
    with pytest.raises(SkipformError, match=r"^--workers: 0; accepted: 1 or more"):
        fit.main([*two, "--workers", "0"])


def test_a_process_for_every_gpu_writes_the_same_bytes(tmp_path, monkeypatch):
    """The processes find no GPU, whatever this one believes, and train on the CPU."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1,-2")
    trainer = EXPERIMENT["trainer"] | {"accelerator": "auto", "max_epochs": 1}
    one, several = (written(tmp_path / name, trainer=trainer) for name in ("one", "several"))
    fit.main([*one, "--seeds", "0", "1"])
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    fit.main([*without_workers(several), "--seeds", "0", "1", "--devices", "1,0"])
    assert contents(tmp_path / "several" / "out") == contents(tmp_path / "one" / "out")


CLUSTER = ["--executor", "submitit", "--slurm", "{cluster: local}"]  # submitit's stand-in for one: local processes


def test_the_jobs_of_a_cluster_write_the_same_bytes_and_count_every_step(tmp_path, unkilled, monkeypatch):
    bar = tqdm(total=18, file=io.StringIO())  # 2 seeds of 3 epochs of 3 steps
    monkeypatch.setattr(plan, "progress_bar", lambda *_, **__: bar)
    fit.main([*without_workers(written(tmp_path)), "--seeds", "0", "1", *CLUSTER])
    assert contents(tmp_path / "out") == contents(unkilled)
    assert bar.n == bar.total == 18


def test_a_killed_job_of_a_cluster_is_named_with_its_log_and_resumed_to_the_same_bytes(tmp_path):
    longer = [*written(tmp_path, trainer={"max_epochs": 9, "accelerator": "cpu"}), "--seeds", "0"]
    arguments = [*without_workers(longer), *CLUSTER]
    train, waits, errors = plan.train, tmp_path / "waits", tmp_path / "errors"

    def stopped(*given, **options):  # submitit hands it to the job with all that it contains
        begin = Journal.on_train_epoch_start

        def waiting(self, trainer, pl_module):
            if trainer.current_epoch == 3:
                waits.touch()
                threading.Event().wait()
            begin(self, trainer, pl_module)

        Journal.on_train_epoch_start = waiting
        return train(*given, **options)

    def main():
        sys.stderr = errors.open("w", buffering=1)
        plan.train = stopped
        sys.exit(cli.main(["fit", *arguments]))

    first = multiprocessing.get_context("fork").Process(target=main)
    first.start()
    while not waits.exists():
        assert first.is_alive()
        time.sleep(0.01)
    (job,) = descendants(first.pid, "submitit.core._submit")
    job.kill()
    first.join()
    assert first.exitcode == 2
    line = r"^skipform fit: error: dense/seed0: job \d+ ended .* killed; its log: (\S+);"
    assert Path(re.search(line, errors.read_text(), re.MULTILINE)[1]).is_file()
    checkpoint = tmp_path / "out.partial" / "dense" / "seed0" / "last.ckpt"
    assert len(torch.load(checkpoint, weights_only=True)["callbacks"]["Journal"]["rows"]) == 3
    fit.main(arguments)
    resumed = contents(tmp_path / "out")
    fit.main([*longer, "--out", str(tmp_path / "unkilled")])
    assert resumed == contents(tmp_path / "unkilled")


def without_workers(arguments: list[str]) -> list[str]:
    at = arguments.index("--workers")
    return [*arguments[:at], *arguments[at + 2 :]]


class Killed(BaseException):
    pass


def test_a_run_killed_before_or_after_any_file_ends_with_the_same_bytes(tmp_path, unkilled, monkeypatch):
    expected = {path: content for path, content in contents(unkilled).items() if path.startswith("dense/seed0")}
    replace, moment = Path.replace, 0
    while True:  # killed around the 1st, 2nd ... rename, until there is none left to be killed at
        seen, folder = 0, tmp_path / str(moment)

        def dying(self, target, moment=moment):
            nonlocal seen
            seen += 1
            if seen == moment // 2 + 1 and moment % 2:
                raise Killed
            replace(self, target)
            if seen == moment // 2 + 1:
                raise Killed

        arguments = [*written(folder), "--seeds", "0"]
        with monkeypatch.context() as patch:
            patch.setattr(Path, "replace", dying)
            try:
                fit.main(arguments)
            except Killed:
                assert not (folder / "out").exists()
            else:
                break
        fit.main(arguments)
        actual = contents(folder / "out")
        for name in ("summary.json", outputs.MARKER):
            actual.pop(name)
        assert actual == expected
        moment += 1
    assert moment >= 2 * (len(FILES) + 3)  # every file, and a checkpoint an epoch


def test_an_interrupted_training_reports_it_and_resumes_later(tmp_path, unkilled, monkeypatch):
    checkpoint = Journal.on_train_epoch_end

    def interrupted(self, trainer, pl_module):
        checkpoint(self, trainer, pl_module)
        raise KeyboardInterrupt

    before = signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patch:
        patch.setattr(Journal, "on_train_epoch_end", interrupted)
        with pytest.raises(KeyboardInterrupt):
            fit.main([*written(tmp_path), "--seeds", "0", "1"])
    signal.signal(signal.SIGINT, before)  # Lightning, about to exit, ignores it
    fit.main([*written(tmp_path), "--seeds", "0", "1"])
    assert contents(tmp_path / "out") == contents(unkilled)


def test_a_half_done_run_is_resumed_after_its_data_have_moved(tmp_path, unkilled, monkeypatch):
    checkpoint = Journal.on_train_epoch_end

    def dying(self, trainer, pl_module):
        checkpoint(self, trainer, pl_module)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "on_train_epoch_end", dying)
        with pytest.raises(Killed):
            fit.main([*written(tmp_path), "--seeds", "0", "--data.root", "here"])
    with pytest.MonkeyPatch.context() as patch:
        again = counting_epochs(patch)
        fit.main([*written(tmp_path), "--seeds", "0", "--data.root", "there", "--data.download", "true"])
    assert again == [1, 2]
    expected = contents(unkilled)
    assert all(content == expected[path] for path, content in contents(tmp_path / "out").items() if "seed0" in path)


def test_an_unfinished_run_of_another_experiment_is_not_resumed(tmp_path, unkilled, monkeypatch):
    checkpoint = Journal.on_train_epoch_end

    def dying(self, trainer, pl_module):
        checkpoint(self, trainer, pl_module)
        raise Killed

    other = written(
        tmp_path,
        optimizer=EXPERIMENT["optimizer"] | {"lr": 0.01},
        variants=EXPERIMENT["variants"] | {"x": {"name": "mlp"}},
    )
    with monkeypatch.context() as patch:
        patch.setattr(Journal, "on_train_epoch_end", dying)
        with pytest.raises(Killed):
            fit.main([*other, "--seeds", "0"])
    assert (tmp_path / "out.partial" / "dense" / "seed0" / "last.ckpt").exists()
    fit.main([*written(tmp_path), "--seeds", "0", "1"])
    assert contents(tmp_path / "out") == contents(unkilled)


def test_the_old_folder_is_replaced_whole(tmp_path, unkilled):
    stale = tmp_path / "out" / "gone" / "seed7" / "metrics.json"
    stale.parent.mkdir(parents=True)
    stale.write_text("{}")
    outputs.mark(tmp_path / "out", ["gone/seed7/metrics.json"])
    fit.main([*written(tmp_path), "--seeds", "0", "1"])
    assert contents(tmp_path / "out") == contents(unkilled)


def test_two_trainings_into_one_folder_are_refused(tmp_path):
    with (
        outputs.alone(tmp_path / "out.partial", "fit"),
        pytest.raises(SkipformError, match=r"another `skipform fit` is writing"),
    ):
        fit.main(written(tmp_path))


@pytest.mark.parametrize(
    ("environment", "lines", "expected"),
    [
        ({}, None, False),
        ({"WANDB_API_KEY": "k" * 40}, None, True),
        ({}, "machine api.wandb.ai login user password secret", True),
        ({}, "machine elsewhere.org login user password secret", False),
        ({"WANDB_BASE_URL": "https://elsewhere.org/"}, "machine elsewhere.org login user password secret", True),
        ({}, "not a netrc", False),
    ],
)
def test_a_key_is_looked_for_where_wandb_keeps_it(environment, lines, expected, tmp_path, monkeypatch):
    for name in ("WANDB_API_KEY", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    if lines:
        (tmp_path / "netrc").write_text(lines)
    assert (tracking.key() is not None) is expected


def test_without_a_key_wandb_keeps_its_run_here_and_asks_nothing(tmp_path, monkeypatch, capfd):
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setattr(sys, "stdin", None)
    monkeypatch.setattr(tracking, "ANSWER_WITHIN", 600.0)
    fit.main([*written(tmp_path, wandb="auto"), "--seeds", "0", "1", "--workers", "2"])
    assert len(list((tmp_path / "wandb").glob("offline-run-*/*.wandb"))) == 2
    assert "wandb" not in "".join(capfd.readouterr())


def test_with_a_key_but_no_network_wandb_keeps_its_run_here_and_says_so_in_a_line(tmp_path, monkeypatch, capfd):
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # nothing answers at port 9
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setattr(tracking, "ANSWER_WITHIN", 600.0)  # also of the process that writes a run; of a loaded machine
    monkeypatch.setenv(tracking.UNREACHED, "")  # so that it is removed after this test
    monkeypatch.delenv(tracking.UNREACHED)
    fit.main([*written(tmp_path, wandb="auto"), "--seeds", "0", "1", "--workers", "2"])  # no worker asks again
    assert len(list((tmp_path / "wandb").glob("offline-run-*/*.wandb"))) == 2
    (line,) = (line for line in "".join(capfd.readouterr()).splitlines() if "W&B" in line or "wandb" in line)
    assert line.startswith("W&B is not reached, so runs are logged offline: ")


def test_a_logger_counts_in_epochs_and_after_a_restart_is_given_those_before_it(tmp_path, unkilled, monkeypatch):
    checkpoint, loggers = Journal.on_train_epoch_end, []

    def dying(self, trainer, pl_module):
        checkpoint(self, trainer, pl_module)
        raise Killed

    def opened(mode, file, config, fingerprint):
        loggers.append(CSVLogger(tmp_path, name=f"log{len(loggers)}"))
        return loggers[-1]

    monkeypatch.setattr(tracking, "logger", opened)
    with monkeypatch.context() as patch:
        patch.setattr(Journal, "on_train_epoch_end", dying)
        with pytest.raises(Killed):
            fit.main([*written(tmp_path), "--seeds", "0"])
    fit.main([*written(tmp_path), "--seeds", "0"])
    with (Path(loggers[-1].log_dir) / "metrics.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    with (unkilled / "dense" / "seed0" / "history.csv").open(newline="") as file:
        history = list(csv.DictReader(file))
    for column in history[0].keys() - {"epoch"}:
        split, _, name = column.partition("_")
        key = f"{ {'validation': 'val'}.get(split, split) }/{name}"
        values = {line["step"]: float(line[key]) for line in lines if line[key]}
        assert values == {row["epoch"]: float(row[column]) for row in history}


@pytest.mark.parametrize(
    ("block", "precision"),
    [
        ({"name": "resnet", "depth": 8, "width": 8, "in_channels": 1}, "32-true"),
        ({"name": "fractalnet", "blocks": 1, "width": 8, "drop_path": 0.3, "in_channels": 1}, "64-true"),
    ],
    ids=["resnet", "fractalnet"],
)
def test_training_on_the_fast_path_is_training_on_the_plain_one_but_for_rounding(block, precision, tmp_path):
    def trained(fast):
        torch.manual_seed(1)
        net = nets.build(**block)
        journal = Journal(tmp_path / "last.ckpt", 3, tqdm(total=100, disable=True))
        task = Classify(net, Optimizer(name="nesterov", lr=0.01, schedule="cosine", warmup=2))
        if fast:  # all of it but the code that inductor writes, which needs a compiler of C++ and half a minute
            task.compile_step(channels_last=True, backend="aot_eager")
        trainer = run.build_trainer(max_epochs=1, accelerator="cpu", precision=precision, fast=fast, callback=journal)
        trainer.fit(task, datamodule=skipform.data("digits", limit=96, batch_size=32, crop=1, flip=True, seed=3))
        return net, journal.rows[0]

    (plain, expected), (quick, actual) = trained(fast=False), trained(fast=True)
    # Three steps of some 20 layers. Sums of a few thousand terms in another order differ by their square root, about
    # 2^6 roundings, a layer; batch norms of small deviation and the steps after the first multiply that: 2^14 in all.
    bound = 2.0**14 * torch.finfo(torch.float64 if precision == "64-true" else torch.float32).eps
    assert actual == pytest.approx(expected, rel=bound)  # losses, and the errors, which are whole numbers of images
    for (name, a), b in zip(plain.state_dict().items(), quick.state_dict().values(), strict=True):
        assert (a - b).abs().max() <= bound * max(1.0, float(a.abs().max())), name


def test_two_processes_train_as_one_with_the_same_batches(tmp_path):
    net = {"net": {"name": "mlp", "depth": 2, "width": 16, "skip": "concat"}}
    one, two = written(tmp_path / "one", variants=net), written(tmp_path / "two", variants=net)
    fit.main([*one, "--seeds", "0"])
    fit.main([*two, "--seeds", "0", "--trainer.strategy", "ddp", "--trainer.devices", "2"])
    assert contents(tmp_path / "two" / "out").keys() == contents(tmp_path / "one" / "out").keys()
    assert not (tmp_path / "two" / "out.partial").exists()
    expected, actual = (
        json.loads((tmp_path / side / "out" / "net" / "seed0" / "metrics.json").read_text()) for side in ("one", "two")
    )
    # The mean of two halves' means is that of the whole but for rounding: 9 steps of 3 layers, 2^10 roundings at most.
    bound = 2.0**10 * torch.finfo(torch.float32).eps
    assert all(actual.pop(key) == expected.pop(key) for key in ("variant", "shown", "higher"))
    assert actual == pytest.approx(expected, rel=bound)
    finals = [Run(tmp_path / side / "out" / "net" / "seed0").net().state_dict() for side in ("one", "two")]
    for name, value in finals[0].items():
        assert torch.allclose(value, finals[1][name], rtol=0, atol=bound), name


def test_several_processes_refuse_what_they_cannot_do_alike_in_one_line(tmp_path):
    several = [*written(tmp_path), "--trainer.devices", "2"]
    with pytest.raises(SkipformError, match=r"trainer\.devices: 2 processes on a CPU, where batch norm cannot"):
        fit.main([*several, "--seeds", "0"])
    with pytest.raises(SkipformError, match=r"trainer\.num_nodes: 2; start the same command on every node with srun"):
        fit.main([*several, "--trainer.num_nodes", "2"])


def test_a_net_with_gates_is_measured_without_regions_and_the_others_with():
    torch.manual_seed(0)
    images, arguments = torch.rand(2, 1, 8, 8, dtype=torch.float64), {"in_channels": 1, "depth": 8, "width": 8}
    for kind, regions in (("exclusive", False), ("identity", True)):
        net = nets.build("shortcuts", kind=kind, **arguments).double().eval()
        (row,) = measure_slices(Subject(net, images, classifier=True), slices=1)
        assert (row["line_reason"] is None) == regions
        assert [row[key] is not None for key in ("line_regions", "line_pieces")] == [regions] * 2
        assert 0 < row["jacobian_rank"] <= row["output_dim"] == 10
        assert 0 < row["feature_rank"] <= row["feature_dim"] == 32


def test_the_commit_is_that_of_the_sources_and_not_of_the_project_around_an_installed_package(tmp_path, monkeypatch):
    assert run._provenance(0.0)["commit"] == run._git("rev-parse", "HEAD")
    installed = tmp_path / "site-packages" / "run.py"
    installed.parent.mkdir()
    installed.write_text("")
    identity = ["-c", "user.name=x", "-c", "user.email=x"]
    for words in (["init", "-q"], [*identity, "commit", "-q", "--allow-empty", "-m", "of another project"]):
        subprocess.run(["git", *words], cwd=tmp_path, check=True)
    monkeypatch.setattr(run, "__file__", str(installed))
    assert run._git("rev-parse", "HEAD")
    assert run._provenance(0.0)["commit"] is None
    assert run._provenance(0.0)["changed_since_commit"] is False
