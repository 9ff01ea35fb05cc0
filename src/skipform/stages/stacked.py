"""Several seeds of one net in one process: K runs whose tensors are stacked, and one step for all of them.

Every parameter and buffer has one dimension more, the first, which counts the runs. `vmap` makes the step of one net
the step of K, and the sum of their losses is minimised: the gradient of each is its own, and the optimisers, which work
number by number, do to each what they would do to it alone. A device that one small net cannot fill has K times the
work in a kernel.

Each run has its own initial net, order of the data and crops, and leaves its own folder, as in run.py: what it would
leave alone, but for rounding. Held-out data is seen by one net after the other.
"""

from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.loggers import WandbLogger
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap
from tqdm import tqdm

from skipform import data, tasks
from skipform.errors import SkipformError
from skipform.stages import run
from skipform.stages.experiment import Experiment
from skipform.tasks import Task

Config = dict[str, Any]
Logger = Callable[[Config], WandbLogger | None]


def train(
    folders: list[Path], configs: list[Config], *, command: str, bar: tqdm, open_logger: Logger = lambda config: None
) -> list[dict[str, Any]]:
    """Do the runs that `configs` describe, alike but for their seeds, in `folders`, and return their metrics.

    Finished, they are kept; begun, all go on from their last epoch.
    """
    seeds, trainer = [config["seed"] for config in configs], configs[0]["trainer"]
    mark = run.fingerprinted(configs[0] | {"seed": seeds}, Path(__file__))
    journals = Journals(folders[0] / "last.ckpt", [run.Journal(folders[0], seed, bar) for seed in seeds])
    lightning = run.trainer(**trainer, callback=journals)
    finished = [metrics for folder in folders if (metrics := run.found(folder, mark, journals.checkpoint)[0])]
    if len(finished) == len(folders):
        bar.total -= sum(metrics["steps"] for metrics in finished)
        return finished
    each, module = [], Stack([data.build(config["seed"], **config["data"]) for config in configs])
    for folder, config, journal in zip(folders, configs, journals.each, strict=True):
        net = run.initial(config)
        run.save(net, folder / "initial.safetensors")
        each.append(tasks.build(net, config["task"], config["optimizer"]))
        journal.logger = open_logger(config)
    task = Stacked(each)
    if trainer["fast"]:
        task.quicken(channels_last=False)  # the channels of all nets are one tensor's
    run.fit(lightning, task, module, journals.checkpoint if journals.checkpoint.is_file() else None)
    task.part()
    done = []
    for folder, config, journal, own in zip(folders, configs, journals.each, each, strict=True):
        done.append(journal.metrics(config, own))
        origin = {"fingerprint": mark, "seed": config["seed"], "stacked": seeds, "command": command}
        run.leave(folder, config, own.net, journal, done[-1], **origin)
    return done


class Stacked(Task):
    """K tasks of one kind as one. A batch is a tuple of theirs, of the same shapes."""

    def __init__(self, each: list[Task]) -> None:
        one, (parameters, buffers) = deepcopy(each[0]), stack_module_state(each)
        for name, tensor in _tensors(one).items():
            tensor.data = (parameters | buffers)[name].detach()
        super().__init__(one, one.recipe)
        self.each = tuple(each)  # for held-out data alone: not modules of this one

    def step(self, *batch: Tensor) -> dict[str, Any]:
        """{"loss": what is minimised, the sum; "each KEY": KEY of every task, (K,)}."""

        def one(state: dict[str, Tensor], *batch: Tensor) -> dict[str, Tensor]:
            found = functional_call(self.net, state, batch)
            return {key: torch.as_tensor(value) for key, value in found.items()}

        found = vmap(one)(_tensors(self.net), *batch)
        return {"loss": found["loss"].sum(), **{f"each {key}": value for key, value in found.items()}}

    def training_step(self, batch: Any, batch_idx: int = 0) -> dict[str, Any]:
        return self.stepped(*stacked(batch))

    def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None) -> None:
        """Each run's gradient by itself, as torch clips one."""
        if gradient_clip_val is None:
            return
        gradients = [p.grad for p in self.net.parameters() if p.grad is not None]  # (K, ...) each
        norm = torch.stack([g.flatten(1).norm(dim=1) for g in gradients]).norm(dim=0)  # (K,)
        scale = (gradient_clip_val / (norm + 1e-6)).clamp(max=1)
        for g in gradients:
            g.mul_(scale.view(-1, *[1] * (g.dim() - 1)))

    def on_validation_start(self) -> None:
        self.part()

    def part(self) -> None:
        """Give each task what is its own."""
        whole = _tensors(self.net)
        for k, task in enumerate(self.each):
            task.eval().to(self.device).trainer = self.trainer
            for name, one in _tensors(task).items():
                one.data = whole[name].detach()[k].clone()

    def validation_step(self, batch: Any, batch_idx: int = 0, dataloader_idx: int = 0) -> dict[str, Any]:
        own = (task.validation_step(one, batch_idx, dataloader_idx) for task, one in zip(self.each, batch, strict=True))
        return {"each": list(own)}

    def configure_optimizers(self) -> Any:
        steps = int(self.trainer.estimated_stepping_batches)
        net: Any = self.net.net  # whose parameters have the names that the recipe knows
        return self.recipe.build(net, steps, fused=self.fused, stacked=True)


def stacked(batches: tuple[tuple[Any, ...], ...]) -> list[Tensor]:
    """((x1, y1, ...), (x2, y2, ...), ...) -> [x, y, ...], in which the first dimension counts the batches."""
    try:
        return [torch.stack(parts) for parts in zip(*batches, strict=True)]
    except (RuntimeError, TypeError) as failure:
        raise SkipformError(f"trainer.stacked: batches that are not alike: {str(failure).splitlines()[0]}") from failure


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def check(experiment: Experiment, batch: tuple[Any, ...], where: str) -> None:
    """SkipformError if the runs of one of its nets cannot be stacked; nothing is computed."""
    if experiment.trainer["devices"] * experiment.trainer["num_nodes"] > 1:
        raise SkipformError(f"{where}: trainer.stacked: true; accepted with it: devices: 1, num_nodes: 1")
    examples = [x.to("meta") for x in stacked((batch, batch))]
    for label, block in experiment.variants.items():
        with torch.device("meta"):
            both = [tasks.build(run.build(block), experiment.task, experiment.optimizer) for _ in range(2)]
        try:
            Stacked(both).step(*examples)
        except (RuntimeError, ValueError) as failure:
            said = str(failure).splitlines()[0]
            why = "it draws random numbers, for each run its own" if "random" in said else said
            raise SkipformError(f"{where}: trainer.stacked: variants.{label} cannot be stacked: {why}") from failure


class Stack(LightningDataModule):
    """K data modules as one: each batch is the tuple of theirs."""

    def __init__(self, each: list[LightningDataModule]) -> None:
        super().__init__()
        self.each = each

    def __getattr__(self, name: str) -> Any:  # what they have in common
        return getattr(self.each[0], name)

    def prepare_data(self) -> None:
        self.each[0].prepare_data()

    def setup(self, stage: str) -> None:
        for module in self.each:
            module.trainer = self.trainer
            module.setup(stage)

    def train_dataloader(self) -> "Abreast":
        return Abreast([module.train_dataloader() for module in self.each])

    def val_dataloader(self) -> "list[Abreast]":
        return [Abreast(loaders) for loaders in zip(*(module.val_dataloader() for module in self.each), strict=True)]


class Abreast:
    """K loaders, side by side."""

    def __init__(self, each: Any) -> None:
        self.each = each

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name == "epoch":
            for loader in self.each:
                loader.epoch = value

    def __len__(self) -> int:
        return len(self.each[0])

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        return zip(*self.each, strict=True)


class Journals(Callback):
    """K journals, and one checkpoint for all of them."""

    def __init__(self, checkpoint: Path, each: list[run.Journal]) -> None:
        self.checkpoint, self.each = checkpoint, each

    def state_dict(self) -> dict[str, Any]:
        return {"each": [journal.state_dict() for journal in self.each]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for journal, state in zip(self.each, state_dict["each"], strict=True):
            journal.load_state_dict(state)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for journal in self.each:
            journal.on_train_start(trainer, pl_module)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for journal in self.each:
            journal.on_train_epoch_start(trainer, pl_module)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        found = {key.removeprefix("each "): value for key, value in outputs.items() if key != "loss"}
        for k, journal in enumerate(self.each):
            own = {key: value[k] for key, value in found.items()}
            journal.on_train_batch_end(trainer, pl_module, own, batch, batch_idx)

    def on_validation_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0) -> None:
        for journal, own in zip(self.each, outputs["each"], strict=True):
            journal.on_validation_batch_end(trainer, pl_module, own, batch, batch_idx, dataloader_idx)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        for journal, task in zip(self.each, pl_module.each, strict=True):
            journal.close(trainer, task)
        run.keep(trainer, self.checkpoint)
