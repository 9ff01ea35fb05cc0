"""What is minimised and what is scored: one LightningModule per kind of target, the file name is the registry.

A task is given a net and never asks which architecture it is.
"""

from collections.abc import Mapping
from importlib import import_module
from pkgutil import iter_modules
from typing import Any

from torch import nn

from skipform.arguments import complete
from skipform.errors import SkipformError
from skipform.tasks.optimizer import Optimizer
from skipform.tasks.task import Task

SHARED = {"task", "optimizer"}  # files that the tasks share, no tasks themselves


def names() -> list[str]:
    """The tasks that an experiment file may name, in alphabetical order."""
    return sorted(module.name for module in iter_modules(__path__) if module.name not in SHARED)


def kind(name: str) -> type[Task]:
    """The class of a task: language_model -> LanguageModel."""
    if name not in names():
        raise SkipformError(f"unknown task {name!r}; accepted: {', '.join(names())}")
    return getattr(import_module(f"{__name__}.{name}"), name.title().replace("_", ""))


def build(name: str, net: nn.Module, optimizer: Optimizer | Mapping[str, Any] | None = None, **options: Any) -> Task:
    """The task `name` for `net`, a LightningModule; public as `skipform.task`.

    Args:
        name: classify, segment, detect, language_model or translate.
        net: what is trained.
        optimizer: an `Optimizer` or its arguments; stochastic gradient descent by default.
        options: arguments of the task's class, as num_classes of `Segment`.

    Raises:
        SkipformError: unknown task, unknown or missing argument; one line that names what is accepted.
    """
    task = kind(name)
    given = complete(task, options, "task", skip={"net", "optimizer"})
    if not isinstance(optimizer, Optimizer):
        optimizer = Optimizer(**complete(Optimizer, optimizer or {}, "optimizer"))
    return task(net, optimizer, **given)
