"""A finished training run, read back from its folder. What the files hold is stated in training/run.py."""

import csv
import json
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml
from safetensors.torch import load_model
from torch import Tensor, nn

from skipform import nets
from skipform.errors import SkipformError

if TYPE_CHECKING:
    from skipform.tasks import Task


@dataclass(frozen=True)
class Run:
    """The run that `skipform fit` has written to `folder`. A file is read when it is first needed, and only once."""

    folder: Path

    @cached_property
    def config(self) -> dict[str, Any]:
        """Everything that is needed to do the run again: variant, seed, net, data, task, optimizer, trainer."""
        return yaml.safe_load((self.folder / "config.yaml").read_text(encoding="utf-8"))

    @cached_property
    def metrics(self) -> dict[str, Any]:
        """The scores after the last epoch, and the numbers of epochs, steps and parameters."""
        return json.loads((self.folder / "metrics.json").read_text())

    @cached_property
    def history(self) -> list[dict[str, float]]:
        """One row per epoch: "epoch", and the loss and the scores of every split."""
        with (self.folder / "history.csv").open(newline="") as file:
            return [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]

    @cached_property
    def provenance(self) -> dict[str, Any]:
        """Commit, command, versions, hardware, times."""
        return json.loads((self.folder / "provenance.json").read_text())

    def net(self, moment: Literal["initial", "final"] = "final") -> nn.Module:
        """A new copy of the net before or after training, in evaluation mode."""
        net = nets.build(**self.config["net"])
        load_model(net, self.folder / f"{moment}.safetensors")
        return net.eval()

    def task(self) -> "Task":
        """The task of the final net, in evaluation mode."""
        from skipform import tasks

        return tasks.build(net=self.net(), optimizer=self.config["optimizer"], **self.config["task"]).eval()

    def data(self, root: str | None = None) -> Any:
        """The data set, its files checked and read; nothing is fetched. `root`: its folder, by default `data_root`."""
        from skipform import data

        module = data.build(0, **self.config["data"] | {"root": root or data_root(), "download": False})
        module.prepare_data()
        module.setup()
        return module

    def test_images(self, root: str | None = None) -> Tensor:
        """The test images of a run of task classify, (N, c, h, w), in float64."""
        return self.data(root).splits["test"][0].double()

    def of_task(self, name: str) -> "Run":
        """This run. Raises SkipformError if its task is not `name`."""
        if self.config["task"]["name"] != name:
            raise SkipformError(f"{self.folder}: a net of task {self.config['task']['name']!r}; accepted: {name}")
        return self


def data_root() -> str:
    """The folder in which this machine keeps its data: SKIPFORM_DATA, or ./data. It is no part of a run."""
    return os.environ.get("SKIPFORM_DATA") or "data"


def finished(folder: str | Path) -> list[Run]:
    """The finished runs of an experiment's folder, FOLDER/VARIANT/seedK, in alphabetical order."""
    return [Run(path.parent) for path in sorted(Path(folder).glob("*/seed*/provenance.json"))]
