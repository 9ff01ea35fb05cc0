"""The tasks: a loss and its scores as a LightningModule, one file per kind of target. The file name is its name.

A task takes any net of the right inputs and outputs and does not depend on its architecture.
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

SHARED = {"task", "optimizer"}  # files that are not tasks


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
        net: the net to train.
        optimizer: an `Optimizer` or its arguments; stochastic gradient descent by default.
        options: arguments of the task's class, such as num_classes of `Segment`.

    Raises:
        SkipformError: unknown task, unknown or missing argument; one line that names what is accepted.
    """
    task = kind(name)
    given = complete(task, options, "task", skip={"net", "optimizer"})
    if not isinstance(optimizer, Optimizer):
        optimizer = Optimizer(**complete(Optimizer, optimizer or {}, "optimizer"))
    return task(net, optimizer, **given)
