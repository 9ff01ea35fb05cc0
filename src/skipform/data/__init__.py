"""The data sets: one LightningDataModule per kind of data, one file each; the sets it knows are its SETS.

A kind says

    TARGETS            what comes with an input: labels, masks, boxes, text, pairs
    states(**block)    what nets and tasks are told of a set before any file is read: in_channels, num_classes, ...
"""

from importlib import import_module
from pkgutil import iter_modules
from typing import Any

from lightning.pytorch import LightningDataModule

from skipform.errors import SkipformError

WORDS = {"scenes"}  # shared by kinds of data, not a kind itself


def kinds() -> list[type[LightningDataModule]]:
    """The class of every file, in alphabetical order."""
    files = sorted(module.name for module in iter_modules(__path__) if module.name not in WORDS)
    return [getattr(import_module(f"{__name__}.{file}"), file.title().replace("_", "")) for file in files]


def sets() -> dict[str, Any]:
    """The name of every set -> the class that reads it."""
    return {name: found for found in kinds() for name in import_module(found.__module__).SETS}


def kind(name: str) -> Any:
    """The class that reads a set."""
    if name not in (known := sets()):
        raise SkipformError(f"unknown data set {name!r}; accepted: {', '.join(known)}")
    return known[name]


def build(seed: int, **block: Any) -> Any:
    """The data module of a {"name": SET, ...} block."""
    return kind(block["name"])(**block, seed=seed)
