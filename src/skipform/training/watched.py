"""Trainings whose nets are looked at between their epochs, and of which nothing else is kept."""

import copy
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn
from tqdm import tqdm

from skipform import data, tasks
from skipform.errors import SkipformError
from skipform.runs import data_root
from skipform.training import plan, run
from skipform.training.executor import configure_process
from skipform.training.experiment import Experiment, read
from skipform.training.journal import Journal

Look = Callable[[nn.Module], dict[str, Any]]


@dataclass(frozen=True)
class Watched:
    """An experiment whose nets classify images, one seed, and its data, which are read."""

    experiment: Experiment
    seed: int
    storage: dict[str, Any]
    data: Any
    batches: int  # of an epoch

    @classmethod
    def of(cls, config: Path, scale: str, seed: int) -> "Watched":
        """What the file states at a scale, checked. Raises SkipformError for another task."""
        experiment, storage = read(config, scale), {"root": data_root(), "download": False}
        if experiment.task["name"] != "classify":
            raise SkipformError(f"{config}: task.name: {experiment.task['name']!r}; accepted: classify")
        configure_process(1)  # such nets are too small for more, and sums must not depend on the number of cores
        batches = plan.check(config, experiment, storage)
        module = data.build(seed, **experiment.data | storage)
        module.prepare_data()
        module.setup()
        return cls(experiment, seed, storage, module, batches)

    @property
    def epochs(self) -> int:
        return self.experiment.trainer["max_epochs"]

    def train(self, look: Look, epochs: set[int] | None = None) -> list[dict[str, Any]]:
        """Train every variant as `skipform fit` does: its name, its number of parameters, and its moments, for each of
        the epochs (all without), 0 being before training: {epoch, test_error, **look(a copy of the net in float64)}."""
        with plan.progress_bar(len(self.experiment.variants) * self.batches * self.epochs) as bar:
            return [self._train(variant, look, epochs or {*range(self.epochs + 1)}, bar)
                    for variant in self.experiment.variants]  # fmt: skip

    def _train(self, variant: str, look: Look, epochs: set[int], bar: tqdm) -> dict[str, Any]:
        bar.set_description(variant)
        experiment, moments = self.experiment, []
        block = {"net": experiment.variants[variant], "backbone_weights": experiment.backbone_weights}
        net = run.initial(block | {"seed": self.seed}, self.storage["root"])

        def record(row: dict[str, float], net: nn.Module) -> None:
            if (epoch := int(row["epoch"])) in epochs:
                seen = look(copy.deepcopy(net).double().eval())
                moments.append({"epoch": epoch, "test_error": row.get("test_error"), **seen})

        record({"epoch": 0}, net)
        with tempfile.TemporaryDirectory() as folder:
            journal = _Journal(Path(folder, "last.ckpt"), self.seed, bar, record)
            trainer = run.build_trainer(**experiment.trainer, callback=journal)
            task = tasks.build(net=net, optimizer=experiment.optimizer, **experiment.task)
            run.fit(trainer, task, data.build(self.seed, lightning=True, **experiment.data | self.storage), None)
        return {"variant": variant, "parameters": sum(p.numel() for p in net.parameters()), "moments": moments}


class _Journal(Journal):
    """The journal of a run, which also records its row and the net after every epoch."""

    def __init__(
        self, checkpoint: Path, seed: int, bar: tqdm, record: Callable[[dict[str, float], nn.Module], None]
    ) -> None:
        super().__init__(checkpoint, seed, bar)
        self.record = record

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        super().on_train_epoch_end(trainer, pl_module)
        self.record(self.rows[-1], pl_module.net)
