"""What is minimised and what is scored: one LightningModule per kind of target, the file name is the registry.

A task is given a net, never builds one, and never asks which architecture it is.
"""

from collections.abc import Mapping
from importlib import import_module
from pkgutil import iter_modules
from typing import Any

from torch import nn

from skipform.errors import SkipformError
from skipform.tasks.optimizer import Optimizer
from skipform.tasks.task import Task

WORDS = {"task", "optimizer"}  # shared by the tasks, not tasks themselves


def names() -> list[str]:
    """The tasks that an experiment file may name, in alphabetical order."""
    return sorted(module.name for module in iter_modules(__path__) if module.name not in WORDS)


def kind(name: str) -> type[Task]:
    """The class of a task: language_model -> LanguageModel."""
    if name not in names():
        raise SkipformError(f"unknown task {name!r}; accepted: {', '.join(names())}")
    return getattr(import_module(f"{__name__}.{name}"), name.title().replace("_", ""))


def build(net: nn.Module, task: Mapping[str, Any], optimizer: Mapping[str, Any]) -> Task:
    """The task of a {"name": NAME, ...} block for `net`, minimised as the `optimizer` block says."""
    own = {key: value for key, value in task.items() if key != "name"}
    return kind(task["name"])(net, Optimizer(**optimizer), **own)
