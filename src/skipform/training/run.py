"""One training run: a net, a data set, a task, a seed. A run that was killed resumes after its last full epoch.

A run writes into its folder

    config.yaml           all that is needed to run it again, except where a machine keeps its data
    initial.safetensors   the net before training              final.safetensors   and after
    history.csv           per epoch and split: loss, scores    metrics.json        those of the last epoch
    provenance.json       commit, versions, hardware, times    (the only file that differs between two runs), and the
                          checksum of all this
    checksums.json        of all others but the provenance; written last, it marks the run as finished

The scores are those of the task. Scores of "train" are computed while training, from the batches of the epoch; the
others after each epoch, in evaluation mode.
"""

import csv
import io
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import torch
from lightning.pytorch import Callback, LightningDataModule, Trainer
from lightning.pytorch.loggers import Logger
from lightning.pytorch.profilers import PassThroughProfiler
from safetensors.torch import save_model
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from tqdm import tqdm

from skipform import data, nets, outputs, tasks
from skipform.arguments import Count, Factor, Range
from skipform.errors import SkipformError
from skipform.files import (
    checksum,
    digest_of,
    read_json,
    versions,
    whole,
    write_json,
    write_text,
    write_yaml,
)
from skipform.runs import CHECKED, FILES, Run
from skipform.sources import closure, fingerprint, nets_in
from skipform.tasks import Task
from skipform.training import weights
from skipform.training.epoch_logger import EpochLogger
from skipform.training.journal import Journal, is_intact, mixed

UNFINISHED_FILES = ("begun.json", "last.ckpt")  # beside them, until they are all there


def train(
    folder: Path,
    config: dict[str, Any],
    *,
    command: str,
    bar: tqdm,
    storage: Mapping[str, Any],
    open_logger: Callable[[dict[str, Any], str], Logger | None] = lambda config, fingerprint: None,
) -> dict[str, Any]:
    """Do the run that `config` describes (see config.yaml) in `folder`, and return its metrics.

    A finished run of the same fingerprint (config, sources, versions) is not repeated; an unfinished one resumes after
    its last epoch; files of another run are removed first. `bar` counts the steps still to do. `storage`: `root`
    and `download` of the data module. Of several processes the first one decides and writes, the others compute.
    """
    digest, seed = fingerprint_of(config), config["seed"]
    journal = Journal(folder / "last.ckpt", seed, bar, digest)
    trainer = build_trainer(**config["trainer"], callback=journal)
    if trainer.world_size > 1:
        trainer.strategy.setup_environment()  # from here on the processes can communicate
    leads = trainer.is_global_zero
    earlier = previous(folder, digest, journal.checkpoint, bar) if leads else (None, None)
    metrics, checkpoint = trainer.strategy.broadcast(earlier)
    if metrics:
        bar.total -= metrics["steps"] * trainer.accumulate_grad_batches
        return metrics
    net = initial(config, storage["root"])
    device = trainer.strategy.root_device.type
    if trainer.world_size > 1 and device == "cpu" and any(isinstance(m, _BatchNorm) for m in net.modules()):
        raise SkipformError(
            f"trainer.devices: {trainer.world_size} processes on a CPU, where batch norm cannot be synchronised;"
            " accepted there: a net without it, such as mlp"
        )
    if leads:
        save(net, folder / "initial.safetensors")
    module = data.build(seed, lightning=True, **config["data"] | storage)
    if leads:
        trainer.logger = open_logger(config, digest)
    task = tasks.build(net=net, optimizer=config["optimizer"], **config["task"])
    if config["trainer"]["fast"]:
        task.compile_step(channels_last=device == "cuda")
    fit(trainer, task, module, checkpoint)
    metrics = journal.metrics(config, task)
    if leads:
        if isinstance(trainer.logger, EpochLogger):
            trainer.logger.close(metrics, journal.seconds)
        write_results(folder, config, net, journal, metrics, fingerprint=digest, seed=seed, command=command)
    return metrics


def previous(folder: Path, digest: str, checkpoint: Path, bar: tqdm) -> tuple[dict[str, Any] | None, Path | None]:
    """The metrics of a finished run of this fingerprint, or the checkpoint of an unfinished one.

    If the folder holds neither, the files that a run writes are removed there, and it is marked as this run's. What is
    damaged is named in one line, and the run begins again.

    Raises:
        SkipformError: the folder holds another file than a run writes.
    """
    earlier = Run(folder)
    try:
        if earlier.is_finished() and earlier.provenance["fingerprint"] == digest:
            earlier.check()
            return earlier.metrics, None
        if (begun := folder / "begun.json").is_file() and read_json(begun) == {"fingerprint": digest}:
            if not checkpoint.is_file():
                return None, None
            if is_intact(checkpoint, digest):
                return None, checkpoint
            raise SkipformError(f"{checkpoint}: damaged, or of another run")
    except SkipformError as error:
        bar.write(f"{error}; this run begins again", file=sys.stderr)
    outputs.empty(folder, {*FILES, *UNFINISHED_FILES})
    write_json(folder / "begun.json", {"fingerprint": digest})
    return None, None


def initial(config: dict[str, Any], root: str) -> nn.Module:
    """The net of a run before training, which depends on its config and seed alone. root: the folder of the data, which
    holds the ImageNet weights of a backbone too."""
    torch.manual_seed(mixed(config["seed"]))
    net = nets.build(**config["net"])
    if config["backbone_weights"] == "imagenet":
        weights.load(net, config["net"], root=root)
    return net


def fit(trainer: Trainer, task: Task, module: LightningDataModule, checkpoint: Path | None) -> None:
    """Train from the checkpoint, or from the beginning."""
    try:
        trainer.fit(task, datamodule=module, ckpt_path=checkpoint, weights_only=True)
    except SystemExit as stop:  # Lightning turns Ctrl-C into this
        raise KeyboardInterrupt from stop


def write_results(
    folder: Path, config: dict[str, Any], net: nn.Module, journal: Journal, metrics: dict[str, Any], **origin: Any
) -> None:
    """Write the files of a finished run, with `origin` in its provenance; the checksums mark it as finished."""
    save(net, folder / "final.safetensors")
    write_yaml(folder / "config.yaml", _plain(config))
    write_text(folder / "history.csv", _csv(journal.rows))
    write_json(folder / "metrics.json", metrics)
    provenance = origin | _provenance(journal.seconds)
    write_json(folder / "provenance.json", provenance | {"sha256_of_the_above": digest_of(provenance)})
    write_json(folder / "checksums.json", {"sha256": {name: checksum(folder / name) for name in CHECKED}})


class NoProfiler(PassThroughProfiler):
    """Lightning's profiler that measures nothing, without the generator that Lightning's starts 60 times per step."""

    nothing: ClassVar[nullcontext[None]] = nullcontext()

    def profile(self, action_name: str) -> nullcontext[None]:  # type: ignore[override]
        return self.nothing


def build_trainer(
    *,
    max_epochs: Count,
    accelerator: Literal["auto", "cpu", "gpu", "mps"] = "auto",
    precision: Literal["32-true", "bf16-mixed", "64-true"] = "32-true",
    gradient_clip_val: Factor | None = None,
    accumulate_grad_batches: Count = 1,
    fast: bool = False,
    strategy: Literal["auto", "ddp"] = "auto",
    devices: Annotated[int, Range(1, 64)] = 1,
    num_nodes: Annotated[int, Range(1, 4096)] = 1,
    callback: Callback,
) -> Trainer:
    """Lightning's Trainer: deterministic unless `fast`, silent, and with as little overhead per step as possible.

    Args:
        max_epochs: passes over the training images.
        accelerator: as Lightning's; auto takes a GPU where there is one.
        precision: as Lightning's.
        gradient_clip_val: largest norm of the gradient.
        accumulate_grad_batches: the mean gradient of this number of batches makes one step.
        fast: the step compiled (see `Task.compile_step`), and the fastest kernels, in whatever order they sum.
        strategy, devices, num_nodes: as Lightning's. Each of the devices * num_nodes processes takes its share of every
            batch, so that data.batch_size counts all of them together; on GPUs batch norm averages over all of them.
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
        accumulate_grad_batches=accumulate_grad_batches,
        deterministic=not fast,
        benchmark=fast,
        callbacks=[callback],
        logger=False,  # `train` sets it when there is something to train
        log_every_n_steps=1_000_000_000,  # tasks log once an epoch
        num_sanity_val_steps=0,
        profiler=NoProfiler(),
        enable_progress_bar=False,  # the journal advances one bar for all runs
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
    """The value with lists in place of tuples, because YAML has no tuples."""
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


# Pathspecs of git: all files of the project but those that the pipeline itself writes while it runs.
_NOT_WRITTEN = (":/", *(f":(top,exclude){name}" for name in ("dvc.lock", "records", "measures", "scores")))


def _provenance(seconds: float) -> dict[str, Any]:
    cpu = platform.processor() or platform.machine()
    if (info := Path("/proc/cpuinfo")).is_file():
        models = [
            line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")
        ]
        cpu = models[0] if models else cpu
    # of this project: a package that was copied into another repository has no commit
    in_checkout = _git("rev-parse", "--show-prefix") == "src/skipform/training/"
    in_checkout = in_checkout and _git("ls-files", "--error-unmatch", Path(__file__).name) is not None
    return {
        "commit": _git("rev-parse", "HEAD") if in_checkout else None,
        "changed_since_commit": in_checkout
        and bool(_git("status", "--porcelain", "--untracked-files=no", "--", *_NOT_WRITTEN)),
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
    """The output of git in the folder of this file, which an installed package may have in another project's checkout;
    None without git or where git fails."""
    try:
        done = subprocess.run(["git", *arguments], cwd=Path(__file__).parent, capture_output=True, text=True)
    except FileNotFoundError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None
