"""One training run in its folder: a net, a data set, a task, a seed; killed at any moment, it is resumed where it was.

    config.yaml           all that is needed to run it again, except where a machine keeps its data
    initial.safetensors   the net before training              final.safetensors   and after
    history.csv           per epoch and split: loss, scores    metrics.json        after the last epoch, never the best
    provenance.json       commit, versions, hardware, times    (the only file that differs between two runs)

Scores are the task's, percentages. Those of "train" are taken while training, in the epoch's own batches; the others
after each epoch, in evaluation mode.
"""

import csv
import io
import json
import os
import platform
import shutil
import subprocess
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import torch
import yaml
from lightning.pytorch import Callback, LightningDataModule, Trainer
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.profilers import PassThroughProfiler
from safetensors.torch import save_model
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from tqdm import tqdm

from skipform import data, nets, tasks
from skipform.arguments import Count, Factor, Range
from skipform.errors import SkipformError
from skipform.files import fingerprint, versions, whole, write_json, write_text
from skipform.sources import closure, nets_in
from skipform.tasks import Task
from skipform.training.journal import Journal, mixed

FILES = ("config.yaml", "initial.safetensors", "final.safetensors", "history.csv", "metrics.json", "provenance.json")


def train(
    folder: Path,
    config: dict[str, Any],
    *,
    command: str,
    bar: tqdm,
    storage: Mapping[str, Any],
    open_logger: Callable[[dict[str, Any]], WandbLogger | None] = lambda config: None,
) -> dict[str, Any]:
    """Do the run that `config` describes (see config.yaml) in `folder`, and return its metrics.

    A finished run of the same fingerprint (config, sources, versions) is kept; an unfinished one is resumed after its
    last epoch; anything else in the folder is removed first. `bar` counts the steps still to do. `storage`: `root` and
    `download` of the data module. Of several processes the first one decides and writes, the others compute.
    """
    digest, seed = fingerprint_of(config), config["seed"]
    journal = Journal(folder / "last.ckpt", seed, bar)
    lightning = trainer(**config["trainer"], callback=journal)
    if lightning.world_size > 1:
        lightning.strategy.setup_environment()  # from here on the processes can communicate
    leads = lightning.is_global_zero
    earlier = previous(folder, digest, journal.checkpoint) if leads else (None, None)
    metrics, checkpoint = lightning.strategy.broadcast(earlier)
    if metrics:
        bar.total -= metrics["steps"]
        return metrics
    net = initial(config)
    device = lightning.strategy.root_device.type
    if lightning.world_size > 1 and device == "cpu" and any(isinstance(m, _BatchNorm) for m in net.modules()):
        raise SkipformError(
            f"trainer.devices: {lightning.world_size} processes on a CPU, where batch norm cannot be synchronised;"
            " accepted there: a net without it, such as mlp"
        )
    if leads:
        save(net, folder / "initial.safetensors")
    module = data.build(seed, lightning=True, **config["data"] | storage)
    if leads:
        lightning.logger = open_logger(config)
    task = tasks.build(net=net, optimizer=config["optimizer"], **config["task"])
    if config["trainer"]["fast"]:
        task.compile_step(channels_last=device == "cuda")
    fit(lightning, task, module, checkpoint)
    metrics = journal.metrics(config, task)
    if leads:
        if isinstance(lightning.logger, WandbLogger):
            lightning.logger.experiment.finish()
        write_results(folder, config, net, journal, metrics, fingerprint=digest, seed=seed, command=command)
    return metrics


def previous(folder: Path, digest: str, checkpoint: Path) -> tuple[dict[str, Any] | None, Path | None]:
    """The metrics of a finished run of this fingerprint, or the checkpoint of an unfinished one.

    If the folder holds neither, it is emptied and marked as this run's.
    """
    finished, begun = folder / "provenance.json", folder / "begun.json"
    if finished.is_file() and json.loads(finished.read_text())["fingerprint"] == digest:
        return json.loads((folder / "metrics.json").read_text()), None
    if not (begun.is_file() and json.loads(begun.read_text())["fingerprint"] == digest):
        shutil.rmtree(folder, ignore_errors=True)
        write_json(begun, {"fingerprint": digest})
    return None, checkpoint if checkpoint.is_file() else None


def initial(config: dict[str, Any]) -> nn.Module:
    """The net of a run before training, which depends on its config and seed alone."""
    torch.manual_seed(mixed(config["seed"]))
    return nets.build(**config["net"])


def fit(lightning: Trainer, task: Task, module: LightningDataModule, checkpoint: Path | None) -> None:
    """Train from the checkpoint, or from the beginning."""
    try:
        lightning.fit(task, datamodule=module, ckpt_path=checkpoint, weights_only=True)
    except SystemExit as stop:  # Lightning turns Ctrl-C into this
        raise KeyboardInterrupt from stop


def write_results(
    folder: Path, config: dict[str, Any], net: nn.Module, journal: Journal, metrics: dict[str, Any], **origin: Any
) -> None:
    """Write the files of a finished run. Its provenance, with `origin` in it, comes last and marks it as finished."""
    save(net, folder / "final.safetensors")
    write_text(folder / "config.yaml", yaml.safe_dump(_plain(config), sort_keys=False))
    write_text(folder / "history.csv", _csv(journal.rows))
    write_json(folder / "metrics.json", metrics)
    write_json(folder / "provenance.json", origin | _provenance(journal.seconds))


class NoProfiler(PassThroughProfiler):
    """Lightning's profiler that measures nothing, without the generator it would start some 60 times per step."""

    nothing: ClassVar[nullcontext[None]] = nullcontext()

    def profile(self, action_name: str) -> nullcontext[None]:  # type: ignore[override]
        return self.nothing


def trainer(
    *,
    max_epochs: Count,
    accelerator: Literal["auto", "cpu", "gpu", "mps"] = "auto",
    precision: Literal["32-true", "bf16-mixed", "64-true"] = "32-true",
    gradient_clip_val: Factor | None = None,
    fast: bool = False,
    strategy: Literal["auto", "ddp"] = "auto",
    devices: Annotated[int, Range(1, 64)] = 1,
    num_nodes: Annotated[int, Range(1, 4096)] = 1,
    callback: Callback,
) -> Trainer:
    """Lightning's Trainer, deterministic unless fast, silent and with nothing to do in a step but the step.

    Args:
        max_epochs: passes over the training images.
        accelerator: as Lightning's; auto takes a GPU where there is one.
        precision: as Lightning's.
        gradient_clip_val: largest norm of the gradient.
        fast: the step compiled (see `Task.compile_step`), and the fastest kernels, in whatever order they sum.
        strategy, devices, num_nodes: as Lightning's. Each of the devices * num_nodes processes takes its share of every
            batch, so that data.batch_size is that of all together; on GPUs batch norm is over all of them too.
    """
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # it only costs time
    return Trainer(
        max_epochs=max_epochs,
        accelerator=accelerator,
        strategy=strategy,
        devices=devices,
        num_nodes=num_nodes,
        sync_batchnorm=devices * num_nodes > 1,
        precision=precision,
        gradient_clip_val=gradient_clip_val,
        deterministic=not fast,
        benchmark=fast,
        callbacks=[callback],
        logger=False,  # `train` sets it, when it is known that there is something to train
        log_every_n_steps=1_000_000_000,  # tasks log once an epoch
        num_sanity_val_steps=0,
        profiler=NoProfiler(),
        enable_progress_bar=False,  # the journal has one over all runs
        enable_model_summary=False,
    )


def save(net: nn.Module, path: Path) -> None:
    """Write the weights of the net."""
    with whole(path) as temporary:
        save_model(net, str(temporary))


def _csv(rows: list[dict[str, float]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[-1], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _plain(value: Any) -> Any:
    """Tuples as lists, for YAML has no tuples."""
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, list | tuple) else value


def fingerprint_of(config: dict[str, Any]) -> str:
    """The digest of what decides the numbers of a run: its config, the sources it runs, the versions it runs on."""
    modules = ["skipform.training.run", data.kind(config["data"]["name"]).__module__]
    modules += [
        tasks.kind(config["task"]["name"]).__module__,
        *(f"skipform.nets.{net}" for net in nets_in(config["net"])),
    ]
    return fingerprint(config, closure(modules))


def _provenance(seconds: float) -> dict[str, Any]:
    cpu = platform.processor() or platform.machine()
    if (info := Path("/proc/cpuinfo")).is_file():
        models = [
            line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")
        ]
        cpu = models[0] if models else cpu
    return {
        "commit": _git("rev-parse", "HEAD"),
        "changed_since_commit": bool(_git("status", "--porcelain", "--untracked-files=no")),
        "versions": versions(),
        "hardware": {
            "system": f"{platform.system()} {platform.machine()}",
            "cpu": cpu,
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        },
        "training_seconds": round(seconds, 3),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _git(*arguments: str) -> str | None:
    """What git reports of the sources in use; None without git or where they are no checkout."""
    try:
        done = subprocess.run(["git", *arguments], cwd=Path(__file__).parent, capture_output=True, text=True)
    except FileNotFoundError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None
