"""The callback of a training run: it writes the run's history and checkpoint, and seeds every epoch.

A checkpoint is a file of torch.save, followed by the SHA-256 of it and of the fingerprint of its run: torch itself
does not notice an altered byte.
"""

import hashlib
import math
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from torch import Tensor
from tqdm import tqdm

from skipform.errors import SkipformError
from skipform.files import whole
from skipform.tasks import Task

# The name of a split in what a task logs -> its name in the files, in the order of the files.
SPLITS = {"train": "train", "val": "validation", "test": "test"}


class Journal(Checkpoint):
    """A row per epoch of what the task has logged, the checkpoint after the epoch, and the seed before it.

    Every epoch starts from a random state that depends on (seed, epoch) alone, so an epoch after a restart is the same
    as without one. Lightning calls a `Checkpoint` at the end of an epoch after the task, which logs its scores then.
    """

    def __init__(self, checkpoint: Path, seed: int, bar: tqdm, fingerprint: str = "") -> None:
        self.checkpoint, self.seed, self.bar, self.fingerprint = checkpoint, seed, bar, fingerprint
        self.rows: list[dict[str, float]] = []
        self.losses: list[Tensor] = []  # of this epoch's steps, on the device
        self.steps, self.seconds, self.since = 0, 0.0, time.monotonic()

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows, "steps": self.steps, "seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.rows, self.steps, self.seconds = state_dict["rows"], state_dict["steps"], state_dict["seconds"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.since = time.monotonic()
        self.bar.total -= self.steps * trainer.accumulate_grad_batches
        for row in self.rows:  # an offline W&B run cannot be resumed, so the new one also receives the earlier epochs
            for logger in trainer.loggers:
                logger.log_metrics(logged(row), step=int(row["epoch"]))

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.losses = []
        others = [trainer.global_rank] if trainer.global_rank else []  # dropout differs between the processes
        torch.manual_seed(mixed(self.seed, trainer.current_epoch, *others))

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        self.bar.update()
        self.losses.append(outputs["loss"].detach())

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._count_epochs(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        self._count_epochs(trainer, pl_module)
        row = written(trainer.current_epoch + 1, {key: float(value) for key, value in trainer.callback_metrics.items()})
        self._check_losses(row, pl_module)
        self.steps = trainer.global_step
        self.seconds += time.monotonic() - self.since
        self.since = time.monotonic()
        self.rows.append(row)
        name, unit = pl_module.MAIN_SCORE
        score = row.get(f"test_{name}")
        self.bar.set_postfix_str("" if score is None else f"test {label_of(name)} {score:.2f} {unit}", refresh=False)
        save_checkpoint(trainer, self.checkpoint, self.fingerprint)

    def _check_losses(self, row: dict[str, float], task: Task) -> None:
        """Raise SkipformError for a loss that is NaN or infinite, before anything of the epoch is written."""
        wrong = [key for key, value in row.items() if key.endswith("_loss") and not math.isfinite(value)]
        if not wrong:
            return
        # `train_loss` is over all processes: this one's own losses may all be finite
        steps = (~torch.stack(self.losses).isfinite()).nonzero()
        batches = int(steps[0]) + 1 if len(steps) else len(self.losses)
        step = self.steps + math.ceil(batches / task.trainer.accumulate_grad_batches)
        raise SkipformError(
            f"{self.checkpoint.parent}: the training diverges: {wrong[0]} is {row[wrong[0]]}"
            f" in epoch {int(row['epoch'])}, step {step}, with optimizer.lr {task.optimizer.lr:g};"
            " accepted: what keeps the loss finite, such as a smaller lr, a longer warmup or gradient_clip_val"
        )

    def metrics(self, config: dict[str, Any], task: Task) -> dict[str, Any]:
        """The content of metrics.json: the scores of the last epoch, and the run that they belong to."""
        parameters = list(task.net.parameters())
        return {
            "variant": config["variant"],
            "seed": config["seed"],
            "epochs": len(self.rows),
            "steps": self.steps,
            "shown": list(task.MAIN_SCORE),
            "higher": task.HIGHER_IS_BETTER,
            **({"further": list(task.FURTHER_SCORES)} if task.FURTHER_SCORES else {}),
            "parameters": sum(p.numel() for p in parameters),
            "trained_parameters": sum(p.numel() for p in parameters if p.requires_grad),
            **{key: value for key, value in self.rows[-1].items() if key != "epoch"},
        }

    def _count_epochs(self, trainer: Trainer, task: LightningModule) -> None:
        """Let loggers count in epochs: Lightning takes a logged "step" for the number of the step."""
        if trainer.loggers:
            task.log("step", torch.tensor(float(trainer.current_epoch + 1)))


def written(epoch: int, metrics: dict[str, float]) -> dict[str, float]:
    """The row of history.csv for what a task has logged: "val/error" becomes "validation_error"."""
    row: dict[str, float] = {"epoch": epoch}
    for ours, theirs in SPLITS.items():
        names = [key.removeprefix(f"{ours}/") for key in metrics if key.startswith(f"{ours}/")]
        row |= {f"{theirs}_{name}": metrics[f"{ours}/{name}"] for name in names}
    return row


def logged(row: dict[str, float]) -> dict[str, float]:
    """The metrics of a row as the task logged them; the inverse of `written`."""
    names = {theirs: ours for ours, theirs in SPLITS.items()}
    parts = {key: key.partition("_") for key in row if key != "epoch"}
    return {f"{names[split]}/{name}": row[key] for key, (split, _, name) in parts.items()}


def save_checkpoint(trainer: Trainer, path: Path, fingerprint: str) -> None:
    """Write what a killed run of this fingerprint is resumed from."""
    with whole(path) if trainer.is_global_zero else nullcontext(path) as temporary:
        trainer.save_checkpoint(temporary)  # all processes take part, the first one writes
        if trainer.is_global_zero:
            with temporary.open("r+b") as file:
                content = file.read()
                file.write(_digest(content, fingerprint))


def is_intact(checkpoint: Path, fingerprint: str) -> bool:
    """Whether a file is, byte for byte, a checkpoint that a run of this fingerprint has written."""
    content = checkpoint.read_bytes()
    size = len(content) - DIGEST
    return size > 0 and content[size:] == _digest(content[:size], fingerprint)


DIGEST = hashlib.sha256().digest_size


def _digest(content: bytes, fingerprint: str) -> bytes:
    return hashlib.sha256(fingerprint.encode() + content).digest()


def label_of(name: str) -> str:
    """A score's name as text: mean_iou -> mean iou."""
    return name.replace("_", " ")


def mixed(*numbers: int) -> int:
    """One seed from several numbers, without the patterns that sums and products of them have."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))
