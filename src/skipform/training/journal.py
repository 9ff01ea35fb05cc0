"""The callback of a training run: a row per epoch, the checkpoint after it, the progress bar."""

import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import WandbLogger
from torch import Tensor
from tqdm import tqdm

from skipform.files import whole
from skipform.tasks import Task


class Journal(Callback):
    """The run's memory: a row per epoch, the checkpoint after it, and the seed before it.

    Every epoch starts from a random state that depends on (seed, epoch) alone, so an epoch after a restart is the same
    as one without. Losses stay on the device until the epoch's end.
    """

    def __init__(self, checkpoint: Path, seed: int, bar: tqdm) -> None:
        self.checkpoint, self.seed, self.bar = checkpoint, seed, bar
        self.rows: list[dict[str, float]] = []
        self.steps, self.seconds, self.since = 0, 0.0, time.monotonic()
        self.seen: dict[str, list[dict[str, Any]]] = {}  # split -> what each batch's step returned
        self.logger: WandbLogger | None = None

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows, "steps": self.steps, "seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.rows, self.steps, self.seconds = state_dict["rows"], state_dict["steps"], state_dict["seconds"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.since = time.monotonic()
        self.bar.total -= self.steps
        for row in self.rows:  # an offline W&B run cannot be resumed: the new one gets the past too
            self._log(row)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        others = [trainer.global_rank] if trainer.global_rank else []  # whose dropout differs
        torch.manual_seed(mixed(self.seed, trainer.current_epoch, *others))
        trainer.train_dataloader.epoch = trainer.current_epoch  # type: ignore[union-attr]
        self.seen = {}

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        self.seen.setdefault("train", []).append(outputs)
        self.bar.update()

    def on_validation_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0) -> None:
        split = trainer.datamodule.held_out[dataloader_idx]
        self.seen.setdefault(split, []).append(outputs)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        self.close(trainer, pl_module)
        keep(trainer, self.checkpoint)

    def close(self, trainer: Trainer, task: Task) -> None:
        """The epoch's row."""
        row: dict[str, float] = {"epoch": trainer.current_epoch + 1}
        for split, batches in self.seen.items():
            column = {key: _column(batches, key) for key in batches[0]}
            sizes = column.pop("size")
            units = int(_summed(trainer, sizes.sum()))
            row[f"{split}_loss"] = _summed(trainer, (column.pop("loss") * (sizes / units)).sum())
            row |= {f"{split}_{key}": 100 * _summed(trainer, of.sum()) / units for key, of in column.items()}
            row |= {f"{split}_{key}": score for key, score in task.scores(split).items()}
        self.steps += len(self.seen["train"])
        self.seconds += time.monotonic() - self.since
        self.since = time.monotonic()
        self.rows.append(row)
        name, unit = task.SHOWN
        shown = row.get(f"test_{name}")
        self.bar.set_postfix_str("" if shown is None else f"test {spoken(name)} {shown:.2f} {unit}", refresh=False)
        self._log(row)

    def metrics(self, config: dict[str, Any], task: Task) -> dict[str, Any]:
        """What is said of the whole run: the last epoch's row, and what it is of."""
        parameters = list(task.net.parameters())
        return {
            "variant": config["variant"],
            "seed": config["seed"],
            "epochs": len(self.rows),
            "steps": self.steps,
            "shown": list(task.SHOWN),
            "higher": task.HIGHER,
            "parameters": sum(p.numel() for p in parameters),
            "trained_parameters": sum(p.numel() for p in parameters if p.requires_grad),
            **{key: value for key, value in self.rows[-1].items() if key != "epoch"},
        }

    def _log(self, row: dict[str, float]) -> None:
        if self.logger:
            self.logger.log_metrics(row, step=int(row["epoch"]))


def keep(trainer: Trainer, checkpoint: Path) -> None:
    """What a killed run goes on from."""
    with whole(checkpoint) if trainer.is_global_zero else nullcontext(checkpoint) as beside:
        trainer.save_checkpoint(beside)  # all take part, the first one writes


def spoken(name: str) -> str:
    """A score's name as text: mean_iou -> mean iou."""
    return name.replace("_", " ")


def _column(batches: list[dict[str, Any]], key: str) -> Tensor:
    """One of the numbers that the steps returned, of all batches, in float64; here the host waits for the device."""
    return torch.stack([torch.as_tensor(batch[key]) for batch in batches]).double().cpu()


def _summed(trainer: Trainer, value: Tensor) -> float:
    """The sum of a scalar over all processes."""
    if trainer.world_size > 1:
        value = trainer.strategy.reduce(value.to(trainer.strategy.root_device), reduce_op="sum")
    return value.item()


def mixed(*numbers: int) -> int:
    """One seed from several, without the patterns that sums and products of them have."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))
