"""The data sets: one class per kind of data, one file each. SETS in that file lists the sets that the class reads.

    images.py   masks.py   boxes.py   text.py   translation.py      the kinds
    module.py   epochs.py   source.py   fetch.py   scenes.py        what they share
    catalogue.py                                                    size, licence and home of the sets that are fetched

This package is also the public function of that name: skipform.data("cifar10", root="data") is a data module for any
Lightning Trainer. The classes themselves need no Lightning, so that a finished run is measured without importing it.
"""

import sys
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import import_module
from pkgutil import iter_modules
from types import ModuleType
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from skipform.arguments import checked
from skipform.errors import SkipformError

if TYPE_CHECKING:
    from skipform.data.epochs import Loader

SHARED = {"module", "epochs", "source", "fetch", "catalogue", "scenes", "borders"}  # files that are not kinds of data
LOCAL = {"root", "download"}  # where this machine keeps the files: arguments that are not part of a run's config


class Data(Protocol):
    """The interface of a kind of data, on which stages and tasks rely.

    A kind whose examples are token sequences also has text(tokens (n, t)) -> list of n strings.
    """

    TARGETS: ClassVar[str]  # what comes with an input: labels, masks, boxes, text or pairs; a task takes one of these
    name: str  # of the set

    def __init__(self, name: str, *, root: str = "data", download: bool = False, seed: int = 0, **rest: Any) -> None:
        """Check the arguments; no file is touched. The examples do not depend on `root`, `download` and `seed`."""

    @staticmethod
    def states(name: str, **arguments: Any) -> dict[str, Any]:
        """The arguments of nets and tasks that the set determines (in_channels, num_classes, ...); reads no file."""

    def prepare_data(self) -> None:
        """Check or fetch the files: SkipformError, one line, names the first that is missing or altered."""

    def setup(self, stage: Any = None) -> None:
        """Read the files and fill `splits`."""

    @property
    def splits(self) -> Mapping[str, Any]:
        """The examples of "train", "test" and, where there is one, "validation"."""

    @property
    def held_out(self) -> Sequence[str]:
        """The splits that are not trained on, in the order of `val_dataloader`; the last one is "test"."""

    def train_dataloader(self) -> "Loader":
        """Full batches in an order that depends on (seed, epoch) alone.

        A Trainer chooses the epoch with `batch_sampler.sampler.set_epoch`.
        """

    def val_dataloader(self) -> "Sequence[Loader]":
        """The held-out splits, each example once and in order."""

    def test_dataloader(self) -> "Loader":
        """The test split, each example once and in order."""


def kinds() -> list[type[Data]]:
    """The class of every kind of data, in alphabetical order."""
    files = sorted(module.name for module in iter_modules(__path__) if module.name not in SHARED)
    return [getattr(import_module(f"{__name__}.{file}"), file.title()) for file in files]


def sets() -> dict[str, type[Data]]:
    """The name of every set -> the class that reads it."""
    return {name: reader for reader in kinds() for name in import_module(reader.__module__).SETS}


def kind(name: str) -> type[Data]:
    """The class that reads a set."""
    if name not in (known := sets()):
        raise SkipformError(f"unknown data set {name!r}; accepted: {', '.join(known)}")
    return known[name]


@cache
def for_lightning(reader: type[Data]) -> type[Any]:
    """A kind of data as a LightningDataModule: the same class, with Lightning's part of a data module added."""
    from lightning.pytorch import LightningDataModule

    return type(reader.__name__, (reader, LightningDataModule), {"__doc__": reader.__doc__})


def build(seed: int, *, lightning: bool = False, **block: Any) -> Any:
    """The `Data` of a {"name": SET, argument: value, ...} block; if `lightning` is true, also a LightningDataModule.

    Raises:
        SkipformError: unknown set or argument, or a value that is not accepted.
    """
    reader = kind(block["name"])
    given = checked(reader, block | {"seed": seed}, "data")
    return (for_lightning(reader) if lightning else reader)(**given)


class _DataPackage(ModuleType):
    """A module that can be called. Importing the package binds the name `skipform.data`, which has to be the public
    function of that name as well."""

    def __call__(self, name: str, *, seed: int = 0, **arguments: Any) -> Any:
        """The set `name` as a LightningDataModule; see the kinds for the arguments.

        Raises:
            SkipformError: unknown set or argument, or a value that is not accepted.
        """
        return build(seed, lightning=True, name=name, **arguments)


sys.modules[__name__].__class__ = _DataPackage
