"""What all tasks share: the optimiser, the compiled step, and the numbers that an epoch leaves."""

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torchmetrics import MetricCollection

from skipform.tasks.optimizer import Optimizer

Numbers = dict[str, Any]


class Task(LightningModule):
    """A net, its loss and its scores. A task says

    TARGETS   the kind of data it takes (the data class's TARGETS)
    SHOWN     the score that is shown first, without its split, and the unit
    HIGHER    whether more of it is better

    and `step`. Nothing is logged: who trains collects what the steps return, on the device, and waits for the device
    once an epoch.
    """

    TARGETS: ClassVar[str]
    SHOWN: ClassVar[tuple[str, str]]
    HIGHER: ClassVar[bool] = True

    def __init__(self, net: nn.Module, optimizer: Optimizer) -> None:
        super().__init__()
        self.net, self.recipe = net, optimizer
        self.fused = False
        self.stepped: Callable[..., Numbers] = self.step  # compiled by `quicken`
        self.gathered: dict[str, MetricCollection] = {}  # split -> what torchmetrics has seen of it in this epoch

    def step(self, *batch: Any) -> Numbers:
        """{"loss": the mean over the batch, "size": of how many units, **counts}.

        Each count is a tensor; over an epoch it becomes 100 times its sum over the sum of sizes, a percentage.
        """
        raise NotImplementedError

    def forward(self, *batch: Any) -> Numbers:
        return self.step(*batch)

    def evaluate(self, split: str, *batch: Any) -> Numbers:
        """The step in evaluation mode; a task with torchmetrics shows them the batch here (see `metric`)."""
        return self.stepped(*batch)

    def metrics(self) -> MetricCollection:
        """Fresh torchmetrics for one split; none unless a task says so."""
        return MetricCollection({})

    def metric(self, split: str) -> MetricCollection:
        """The torchmetrics of a split, on the net's device."""
        if split not in self.gathered:
            self.gathered[split] = self.metrics().to(self.device)
        return self.gathered[split]

    def scores(self, split: str) -> dict[str, float]:
        """What the torchmetrics of a split say of the epoch, as percentages; they then forget it."""
        if split not in self.gathered:
            return {}
        found = self.gathered.pop(split).compute()
        return {name: 100 * float(value) for name, value in found.items()}

    def examples(self, *batch: Any) -> dict[str, Tensor | list[str]]:
        """What a page can show of a batch: inputs, targets and predictions by name, one entry an example."""
        raise NotImplementedError

    def quicken(self, *, channels_last: bool, backend: str = "inductor") -> None:
        """From now on the same steps with less work for the host: one compiled graph of net, loss and counts (on a GPU
        replayed as a CUDA graph) and the optimiser's step in one kernel.

        channels_last: how images lie in memory, which tensor cores like. Not on a CPU: torch 2.11 there writes beyond
            its memory in convolutions of a few channels that lie so.
        backend: of torch.compile; another than inductor compiles without CUDA graphs.
        """
        torch.compiler.reset()  # another net's graphs count towards the limit after which torch gives up compiling
        if channels_last:
            self.net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        mode = "reduce-overhead" if backend == "inductor" else None
        graph = torch.compile(self.step, fullgraph=True, dynamic=False, backend=backend, mode=mode)

        def stepped(*batch: Tensor) -> Numbers:
            torch.compiler.cudagraph_mark_step_begin()
            if channels_last:
                batch = tuple(x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x for x in batch)
            # a CUDA graph writes its next results over these
            return {key: x.clone() if isinstance(x, Tensor) else x for key, x in graph(*batch).items()}

        self.fused, self.stepped = True, stepped

    def training_step(self, batch: Any, batch_idx: int = 0) -> Numbers:
        return self.stepped(*batch)

    def validation_step(self, batch: Any, batch_idx: int = 0, dataloader_idx: int = 0) -> Numbers:
        return self.evaluate(self.trainer.datamodule.held_out[dataloader_idx], *batch)  # type: ignore[attr-defined]

    def configure_optimizers(self) -> Any:
        return self.recipe.build(self.net, int(self.trainer.estimated_stepping_batches), fused=self.fused)
