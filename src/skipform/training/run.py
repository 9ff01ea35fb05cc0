"""One training run in its folder: a net, a data set, a task, a seed; killed at any moment, it goes on where it was.

    config.yaml           all there is to know to run it again
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
from collections.abc import Callable
from datetime import UTC, datetime
from inspect import getfile
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from lightning.pytorch import Callback, LightningDataModule, Trainer
from lightning.pytorch.loggers import WandbLogger
from safetensors.torch import save_model
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from tqdm import tqdm

from skipform import data, nets, tasks
from skipform.errors import SkipformError
from skipform.files import fingerprint, versions, whole, write_json, write_text
from skipform.tasks import Task
from skipform.training.journal import Journal, mixed

FILES = ("config.yaml", "initial.safetensors", "final.safetensors", "history.csv", "metrics.json", "provenance.json")


def train(
    folder: Path,
    config: dict[str, Any],
    *,
    command: str,
    bar: tqdm,
    open_logger: Callable[[dict[str, Any]], WandbLogger | None] = lambda config: None,
) -> dict[str, Any]:
    """Do the run that `config` describes (see config.yaml) in `folder`, and return its metrics.

    A finished run of the same fingerprint (config, sources, versions) is kept; a begun one goes on from its last epoch;
    anything else in the folder is removed first. `bar` counts the steps still to do. Of several processes the first
    one decides and writes, the others compute.
    """
    mark, seed = fingerprinted(config), config["seed"]
    journal = Journal(folder / "last.ckpt", seed, bar)
    lightning = trainer(**config["trainer"], callback=journal)
    if lightning.world_size > 1:
        lightning.strategy.setup_environment()  # from here on they can talk
    leads = lightning.is_global_zero
    metrics, last = lightning.strategy.broadcast(found(folder, mark, journal.checkpoint) if leads else (None, None))
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
    module = data.build(seed, **config["data"])
    journal.logger = open_logger(config) if leads else None
    task = tasks.build(net, config["task"], config["optimizer"])
    if config["trainer"]["fast"]:
        task.quicken(channels_last=device == "cuda")
    fit(lightning, task, module, last)
    metrics = journal.metrics(config, task)
    if leads:
        leave(folder, config, net, journal, metrics, fingerprint=mark, seed=seed, command=command)
    return metrics


def found(folder: Path, mark: str, checkpoint: Path) -> tuple[dict[str, Any] | None, Path | None]:
    """The metrics of a finished run of this fingerprint, the checkpoint of a begun one; otherwise it begins."""
    finished, begun = folder / "provenance.json", folder / "begun.json"
    if finished.is_file() and json.loads(finished.read_text())["fingerprint"] == mark:
        return json.loads((folder / "metrics.json").read_text()), None
    if not (begun.is_file() and json.loads(begun.read_text())["fingerprint"] == mark):
        shutil.rmtree(folder, ignore_errors=True)
        write_json(begun, {"fingerprint": mark})
    return None, checkpoint if checkpoint.is_file() else None


def initial(config: dict[str, Any]) -> nn.Module:
    """The net of a run before training, which its seed alone decides."""
    torch.manual_seed(mixed(config["seed"]))
    return nets.build(**config["net"])


def fit(lightning: Trainer, task: Task, module: LightningDataModule, last: Path | None) -> None:
    """Train from the checkpoint `last`, or from the beginning."""
    try:
        lightning.fit(task, datamodule=module, ckpt_path=last, weights_only=True)
    except SystemExit as stop:  # what Lightning makes of Ctrl-C
        raise KeyboardInterrupt from stop


def leave(
    folder: Path, config: dict[str, Any], net: nn.Module, journal: Journal, metrics: dict[str, Any], **origin: Any
) -> None:
    """What a finished run leaves; its provenance comes last, and says of what origin the rest is."""
    if journal.logger:
        journal.logger.experiment.finish()
    save(net, folder / "final.safetensors")
    write_text(folder / "config.yaml", yaml.safe_dump(_plain(config), sort_keys=False))
    write_text(folder / "history.csv", _csv(journal.rows))
    write_json(folder / "metrics.json", metrics)
    write_json(folder / "provenance.json", origin | _provenance(journal.seconds))


def trainer(
    *,
    max_epochs: int,
    accelerator: Literal["auto", "cpu", "gpu", "mps"] = "auto",
    precision: Literal["32-true", "bf16-mixed", "64-true"] = "32-true",
    gradient_clip_val: float | None = None,
    fast: bool = False,
    strategy: Literal["auto", "ddp"] = "auto",
    devices: int = 1,
    num_nodes: int = 1,
    callback: Callback,
) -> Trainer:
    """Lightning's Trainer, deterministic unless fast, silent and with nothing to do per step but the step.

    Args:
        max_epochs: passes over the training images.
        accelerator: as Lightning's; auto takes a GPU where there is one.
        precision: as Lightning's.
        gradient_clip_val: largest norm of the gradient.
        fast: the step compiled (see `Task.quicken`), and the kernels that are fastest, in whatever order they sum.
        strategy, devices, num_nodes: as Lightning's. Each of the devices * num_nodes processes takes its share of every
            batch, so that data.batch_size is that of all; on GPUs batch norm is over all of them too.
    """
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # costs time for nothing
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
        logger=False,  # Journal's, once an epoch
        log_every_n_steps=1_000_000_000,
        num_sanity_val_steps=0,
        enable_checkpointing=False,  # Journal's, once an epoch, whole or not at all
        enable_progress_bar=False,  # Journal's, over all runs
        enable_model_summary=False,
    )


def save(net: nn.Module, path: Path) -> None:
    with whole(path) as beside:
        save_model(net, str(beside))


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


def fingerprinted(config: dict[str, Any]) -> str:
    """What decides the numbers of a run: its config, the sources it runs, the versions it runs on."""
    package, own = Path(__file__).parent.parent, (data.kind(config["data"]["name"]), tasks.kind(config["task"]["name"]))
    sources = [*package.glob("nets/*.py"), *(Path(getfile(found)) for found in own)]
    sources += [package / "tasks" / "task.py", package / "tasks" / "optimizer.py", package / "arguments.py"]
    sources += [package / "data" / f"{file}.py" for file in data.SHARED]
    return fingerprint(config, [*sources, Path(__file__), Path(__file__).with_name("journal.py")])


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
    """What git says of the sources in use; None where they are no git checkout or there is no git."""
    try:
        done = subprocess.run(["git", *arguments], cwd=Path(__file__).parent, capture_output=True, text=True)
    except FileNotFoundError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None
