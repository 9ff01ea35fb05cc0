"""What the kinds of data share: arguments that are checked, files that are prepared, loaders for every split."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch

from skipform.data.epochs import Loader
from skipform.data.source import Source
from skipform.errors import SkipformError


class DataModule:
    """One data set, without Lightning; `skipform.data.for_lightning` makes a LightningDataModule of it for a Trainer.

    A kind of data adds `SETS`, `TARGETS`, `states`, `splits`, and

    setup       fills the splits
    sources     the files that the set is read from
    loader      the batches of a split

    Args:
        name: the set.
        accepted: the names of the sets that this kind reads.
        root: the folder in which this machine keeps its data.
        download: whether `prepare_data` fetches files that are missing or altered.
        seed: determines the order of every epoch and everything else that is random in it.
    """

    TARGETS: ClassVar[str]
    trainer: Any = None  # the Trainer that uses this data set; Lightning sets it

    def __init__(self, name: str, accepted: Iterable[str], *, root: str, download: bool, seed: int) -> None:
        super().__init__()  # LightningDataModule's, where there is one
        if name not in accepted:
            raise SkipformError(f"unknown data set {name!r}; accepted: {', '.join(accepted)}")
        self.name: str = name
        self.root, self.download, self.seed = root, download, seed

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r}, root={self.root!r}, seed={self.seed})"

    @property
    def held_out(self) -> list[str]:
        """The splits that are not trained on, in the order of `val_dataloader`; the last one is "test"."""
        return ["test"]

    def sources(self) -> Iterator[Source]:
        """The files of the set; none if it comes with an installed package. A source may need the ones before it."""
        yield from ()

    def arguments(self) -> dict[str, Any]:
        """The arguments, other than name, root and download, that determine which files are needed."""
        return {}

    def prepare_data(self) -> None:
        """Check every file, or fetch those that are missing or altered if `download` is true.

        Raises:
            SkipformError: names the first file that is missing or altered, or that cannot be fetched.
        """
        options = "".join(f", {key}={value!r}" for key, value in self.arguments().items())
        command = f"skipform.data({self.name!r}, root={self.root!r}{options}, download=True).prepare_data()"
        for source in self.sources():
            source.prepare(download=self.download, command=command)

    def loader(self, split: str, *, training: bool = False) -> Loader:
        """The batches of a split: all of it in order, or epochs of training. Several processes share every batch."""
        raise NotImplementedError

    def train_dataloader(self) -> Loader:
        return self.loader("train", training=True)

    def val_dataloader(self) -> Sequence[Loader]:
        """The held-out splits, in the order of `held_out`."""
        return [self.loader(split) for split in self.held_out]

    def test_dataloader(self) -> Loader:
        return self.loader("test")

    def predict_dataloader(self) -> Loader:
        """The batches of the test split, targets too."""
        return self.loader("test")

    @property
    def share(self) -> tuple[int, int]:
        """The number of this process and the number of processes."""
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    @property
    def device(self) -> torch.device:
        """The device that trains. The examples are stored there, so that no batch has to be copied to it."""
        return self.trainer.strategy.root_device if self.trainer else torch.device("cpu")

    @property
    def folder(self) -> Path:
        return Path(self.root)
