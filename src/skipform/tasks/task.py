"""The base of all tasks: the steps of a LightningModule, the logging of an epoch, the optimiser, the compiled step."""

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any, ClassVar

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torchmetrics import MetricCollection

from skipform import nets
from skipform.errors import SkipformError
from skipform.tasks.optimizer import Optimizer

Numbers = dict[str, Any]


class Task(LightningModule):
    """A net with its loss and its scores, which any Lightning Trainer trains on any loader of its kind of batches.

    Logged at the end of every epoch are `train/loss`, `val/loss`, `test/loss` and, in percent unless the task says
    otherwise, its scores: `train/error`, `val/error`, ... Those of `train` are computed while training, from the
    batches of the epoch, the others in evaluation mode. Within an epoch the numbers stay on the device.

    Validation loaders are logged as `val`, `val_1`, `val_2`, ... in their order. A data module may name the splits that
    they hold in `held_out`; "validation" is then logged as `val`, "test" as `test`.

    `load_from_checkpoint(path)` needs only the checkpoint if the net comes from `skipform.build`; other nets have to be
    given: load_from_checkpoint(path, net=net).

    A task defines `step` and

        TARGETS             the kind of data it takes (the TARGETS of a data module)
        MAIN_SCORE          the score that tables show, without its split, and its unit
        HIGHER_IS_BETTER    whether a higher score is better
        FURTHER_SCORES      other scores, in percent, that tables show as well; none by default

    Args:
        net: the net; or, as in a checkpoint, the {"name": NAME, argument: value, ...} block that describes it.
        optimizer: how the loss is minimised, an `Optimizer` or its arguments.
    """

    TARGETS: ClassVar[str]
    MAIN_SCORE: ClassVar[tuple[str, str]]
    HIGHER_IS_BETTER: ClassVar[bool] = True
    FURTHER_SCORES: ClassVar[tuple[str, ...]] = ()

    def __init__(self, net: nn.Module | Mapping[str, Any], optimizer: Optimizer | Mapping[str, Any]) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=["net", "optimizer"])  # the arguments of the subclass
        self.net = net if isinstance(net, nn.Module) else _rebuilt(net)
        self.optimizer = optimizer if isinstance(optimizer, Optimizer) else Optimizer(**optimizer)
        self.save_hyperparameters({"net": nets.description(self.net), "optimizer": asdict(self.optimizer)})
        self.fused = False
        self.run_step: Callable[..., Numbers] = self.step  # or what `compile_step` made of it
        self._batches: dict[str, list[Numbers]] = {}  # split -> what `step` returned for each batch of this epoch
        self._metrics: dict[str, MetricCollection] = {}  # split -> its torchmetrics in this epoch

    def __setattr__(self, name: str, value: Any) -> None:
        # Lightning writes this name 50 times per step, each time past torch's search for parameters and modules.
        if name == "_current_fx_name":
            self.__dict__[name] = value
        else:
            super().__setattr__(name, value)

    def step(self, *batch: Any) -> Numbers:
        """{"loss": the mean over the batch, "size": the number of units (inputs, pixels, tokens) in it, **counts}.

        Each count is a tensor; over an epoch it becomes a percentage, 100 times its sum over the sum of the sizes.
        """
        raise NotImplementedError

    def evaluate(self, split: str, *batch: Any) -> Numbers:
        """The step in evaluation mode. A task with torchmetrics updates them here (see `metric`)."""
        return self.run_step(*batch)

    def predict(self, inputs: Any, targets: Any = None) -> Any:
        """The predictions for a batch of inputs: classes, boxes or tokens. Most tasks do not read the targets."""
        raise NotImplementedError

    def examples(self, *batch: Any) -> dict[str, Tensor | list[str]]:
        """Inputs, targets and predictions of a batch by name, with one entry per example, for display."""
        raise NotImplementedError

    def metrics(self) -> MetricCollection:
        """New torchmetrics for one split; none by default."""
        return MetricCollection({})

    def metric(self, split: str) -> MetricCollection:
        """The torchmetrics of a split in this epoch, on the net's device."""
        if split not in self._metrics:
            self._metrics[split] = self.metrics().to(self.device)
        return self._metrics[split]

    def scores(self, split: str) -> dict[str, float]:
        """The values of a split's torchmetrics, in percent; the torchmetrics are then discarded."""
        if split not in self._metrics:
            return {}
        values = self._metrics.pop(split).compute()
        return {name: 100 * float(value) for name, value in values.items()}

    def forward(self, *inputs: Any) -> Any:
        """The net's output."""
        return self.net(*inputs)

    def training_step(self, batch: Any, batch_idx: int = 0) -> Tensor:
        return self._collect("train", self.run_step(*batch))

    def validation_step(self, batch: Any, batch_idx: int = 0, dataloader_idx: int = 0) -> Tensor:
        split = self._validation_split(dataloader_idx)
        return self._collect(split, self.evaluate(split, *batch))

    def test_step(self, batch: Any, batch_idx: int = 0, dataloader_idx: int = 0) -> Tensor:
        split = _numbered("test", dataloader_idx)
        return self._collect(split, self.evaluate(split, *batch))

    def predict_step(self, batch: Any, batch_idx: int = 0, dataloader_idx: int = 0) -> Any:
        """Predictions for a batch of inputs; or of inputs and targets, as the other steps take it."""
        return self.predict(*batch) if isinstance(batch, list | tuple) else self.predict(batch)

    def on_train_epoch_start(self) -> None:
        self._discard(training=True)

    def on_train_epoch_end(self) -> None:
        self._log_epoch(training=True)

    def on_validation_epoch_start(self) -> None:
        self._discard(training=False)

    def on_validation_epoch_end(self) -> None:
        self._log_epoch(training=False)

    def on_test_epoch_start(self) -> None:
        self._discard(training=False)

    def on_test_epoch_end(self) -> None:
        self._log_epoch(training=False)

    def configure_optimizers(self) -> Any:
        steps = self.trainer.estimated_stepping_batches
        if math.isinf(steps) and self.optimizer.schedule not in ("constant", "inverse_sqrt"):
            raise SkipformError(
                f"schedule {self.optimizer.schedule!r} needs to know when training ends: Trainer(max_epochs=...);"
                " accepted without it: constant, inverse_sqrt"
            )
        return self.optimizer.build(self.net, steps, fused=self.fused)

    def compile_step(self, *, channels_last: bool, backend: str = "inductor") -> None:
        """Compile the step, with less work for the host: net, loss and counts become one graph (on a GPU replayed as a
        CUDA graph), and the optimiser's step one kernel. (`compile` is torch's own method, of `forward` alone.)

        channels_last: the memory format of images, which suits tensor cores. Not for a CPU: there torch 2.11 writes
            out of bounds in convolutions of few channels in this format.
        backend: that of torch.compile; CUDA graphs are used only with inductor.
        """
        torch.compiler.reset()  # graphs of earlier nets count towards torch's limit of recompilations
        if channels_last:
            self.net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        mode = "reduce-overhead" if backend == "inductor" else None
        graph = torch.compile(self.step, fullgraph=True, dynamic=False, backend=backend, mode=mode)

        def compiled(*batch: Tensor) -> Numbers:
            torch.compiler.cudagraph_mark_step_begin()
            if channels_last:
                batch = tuple(x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x for x in batch)
            # a CUDA graph writes its next results into the same memory
            return {key: x.clone() if isinstance(x, Tensor) else x for key, x in graph(*batch).items()}

        self.fused, self.run_step = True, compiled

    def _validation_split(self, dataloader_idx: int) -> str:
        held_out = getattr(getattr(self.trainer, "datamodule", None), "held_out", None)
        if held_out is None:
            return _numbered("val", dataloader_idx)
        return "val" if held_out[dataloader_idx] == "validation" else held_out[dataloader_idx]

    def _collect(self, split: str, numbers: Numbers) -> Tensor:
        """Store the numbers of a batch until the epoch ends; return the loss."""
        loss = numbers["loss"]
        numbers["loss"] = loss.detach()
        self._batches.setdefault(split, []).append(numbers)
        return loss

    def _discard(self, *, training: bool) -> None:
        """Remove the numbers of an epoch that was broken off: those of training, or those of evaluation."""
        for split in [*self._batches, *self._metrics]:
            if (split == "train") == training:
                self._batches.pop(split, None)
                self._metrics.pop(split, None)

    def _log_epoch(self, *, training: bool) -> None:
        """Log the loss and the scores of training, or of the held-out splits; here the host waits for the device.

        All processes compute the same float64 numbers over the batches of all.
        """
        for split in [split for split in self._batches if (split == "train") == training]:
            batches = self._batches.pop(split)
            columns = {key: _column(batches, key) for key in batches[0]}
            sizes, losses = columns.pop("size"), columns.pop("loss")
            units = int(self._total(sizes))
            values = {"loss": self._total(losses * (sizes / units))}
            values |= {key: 100 * self._total(counts) / units for key, counts in columns.items()}
            values |= self.scores(split)
            for key, value in values.items():
                self.log(f"{split}/{key}", torch.tensor(value, dtype=torch.float64), batch_size=1)

    def _total(self, values: Tensor) -> float:
        """The sum of one number per batch, over the batches of all processes."""
        total = values.sum()
        if self.trainer.world_size > 1:
            total = self.trainer.strategy.reduce(total.to(self.trainer.strategy.root_device), reduce_op="sum")
        return total.item()


def _numbered(split: str, dataloader_idx: int) -> str:
    return f"{split}_{dataloader_idx}" if dataloader_idx else split


def _column(batches: list[Numbers], key: str) -> Tensor:
    """One of the numbers of every batch, in float64 on the CPU."""
    return torch.stack([torch.as_tensor(batch[key]) for batch in batches]).cpu().double()


def _rebuilt(description: Mapping[str, Any] | None) -> nn.Module:
    """The net of a checkpoint, before its weights are loaded."""
    if description is None:
        raise SkipformError(
            "net: the checkpoint does not say how the net was built, for it was not built by skipform.build;"
            " give the net: load_from_checkpoint(path, net=...)"
        )
    return nets.build(**description)
