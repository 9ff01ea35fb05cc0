"""A training run whose net is looked at between its epochs, and of which nothing else is kept."""

import copy
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn
from tqdm import tqdm

from skipform import data, tasks
from skipform.training import run
from skipform.training.experiment import Experiment
from skipform.training.journal import Journal


class Watched(Journal):
    """The journal of a run, which also calls `look` after every epoch, with its row and the net."""

    def __init__(self, checkpoint: Path, seed: int, bar: tqdm, look: Callable[[dict[str, float], nn.Module], None]):
        super().__init__(checkpoint, seed, bar)
        self.look = look

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        super().on_train_epoch_end(trainer, pl_module)
        self.look(self.rows[-1], pl_module.net)


def train(
    experiment: Experiment,
    variant: str,
    seed: int,
    storage: dict[str, Any],
    bar: tqdm,
    look: Callable[[nn.Module], dict[str, Any]],
    epochs: set[int] | None = None,
) -> dict[str, Any]:
    """Train a variant of a classifier as `skipform fit` does: its number of parameters, and for every one of the epochs
    (of all without), 0 being before training, {epoch, test_error, **look(a copy of the net in float64)}."""
    config = {"net": experiment.variants[variant], "seed": seed, "backbone_weights": experiment.backbone_weights}
    net = run.initial(config, storage["root"])
    moments: list[dict[str, Any]] = []

    def record(row: dict[str, float], net: nn.Module) -> None:
        epoch = int(row["epoch"])
        if epochs is None or epoch in epochs:
            seen = look(copy.deepcopy(net).double().eval())
            moments.append({"epoch": epoch, "test_error": row.get("test_error"), **seen})

    record({"epoch": 0}, net)
    with tempfile.TemporaryDirectory() as folder:
        trainer = run.build_trainer(
            **experiment.trainer, callback=Watched(Path(folder, "last.ckpt"), seed, bar, record)
        )
        task = tasks.build(net=net, optimizer=experiment.optimizer, **experiment.task)
        run.fit(trainer, task, data.build(seed, lightning=True, **experiment.data | storage), None)
    return {"variant": variant, "parameters": sum(p.numel() for p in net.parameters()), "moments": moments}
