"""The order in which an epoch takes its examples: a function of seed and epoch, shared among the processes.

Letters: R processes, B examples of a batch (of all processes together), n = B / R of one process.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from skipform.errors import SkipformError


class Epochs:
    """The batches of every epoch, as indices below `count`.

    Training (`seed` given): an order that is drawn anew for each epoch, from (seed, epoch) only, and cut into full
    batches. Examples that do not fill a batch are left out of that epoch; fewer examples than a batch make one batch.
    The r-th of R processes takes the r-th of R equal parts of every batch.

    Evaluation (`seed` is None): all indices in order, of which the r-th of R processes takes every R-th, starting at r.
    The last batch may be smaller.

    Args:
        count: the number of examples.
        batch_size: B in training, n in evaluation.
        seed: determines the orders; None for evaluation.
        share: (r, R).

    Raises:
        SkipformError: a training batch cannot be shared equally.
    """

    def __init__(
        self, count: int, batch_size: int, *, seed: int | None = None, share: tuple[int, int] = (0, 1)
    ) -> None:
        self.count, self.seed, self.share, self.epoch = count, seed, share, 0
        self.batch_size = batch_size if seed is None else min(batch_size, count)
        if seed is not None and self.batch_size % share[1]:
            raise SkipformError(
                f"data.batch_size: {self.batch_size}; accepted: a multiple of {share[1]}, the number of processes"
            )

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that is iterated over next."""
        self.epoch = epoch

    @property
    def sampler(self) -> "Epochs":
        """This object: Lightning calls `loader.batch_sampler.sampler.set_epoch` at the start of every epoch."""
        return self

    def __len__(self) -> int:
        return len(self.slices()) if self.seed is None else self.count // self.batch_size

    def __iter__(self) -> Iterator[Tensor]:
        """The indices of each of this process's batches, (n,)."""
        if self.seed is None:
            indices = torch.arange(self.count)
            return (indices[part] for part in self.slices())
        return iter(self.own(self.order(self.generator())))

    def slices(self) -> list[slice]:
        """This process's batches in evaluation, as slices of the examples in order."""
        rank, world = self.share
        step = self.batch_size * world
        return [slice(first, min(first - rank + step, self.count), world) for first in range(rank, self.count, step)]

    def generator(self) -> torch.Generator:
        """A generator whose state depends on (seed, epoch) alone; the order is the first that is drawn from it."""
        mixed = np.random.SeedSequence([self.seed, self.epoch]).generate_state(1, np.uint64)  # type: ignore[arg-type]
        return torch.Generator().manual_seed(int(mixed[0] >> np.uint64(1)))

    def order(self, generator: torch.Generator) -> Tensor:
        """The indices of all processes' training batches, (batches, B): a permutation without its last part."""
        full = torch.randperm(self.count, generator=generator)[: len(self) * self.batch_size]
        return full.view(-1, self.batch_size)

    def own(self, drawn: Tensor) -> Tensor:
        """This process's part of what was drawn for all: (batches, B, ...) -> (batches, n, ...)."""
        rank, world = self.share
        return drawn.unflatten(1, (world, -1))[:, rank]


class Loader:
    """Replaces torch's DataLoader for a Trainer. A subclass turns the indices from `batch_sampler` into batches.

    torch's DataLoader fetches examples one by one and collates them on the CPU, often in other processes. The examples
    here are in memory or on the GPU, where one indexing operation makes a batch of them.
    """

    def __init__(self, batch_sampler: Epochs) -> None:
        self.batch_sampler = batch_sampler

    def __len__(self) -> int:
        """The number of batches."""
        return len(self.batch_sampler)

    def __iter__(self) -> Iterator[Any]:
        raise NotImplementedError

    @property
    def epoch(self) -> int:
        """The epoch that is iterated over next; a Trainer sets it through `batch_sampler`."""
        return self.batch_sampler.epoch

    @epoch.setter
    def epoch(self, epoch: int) -> None:
        self.batch_sampler.set_epoch(epoch)
