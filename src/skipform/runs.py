"""A finished training run, read back from its folder. What the files hold is stated in training/run.py."""

import csv
import math
import os
import re
import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_model
from torch import Tensor, nn

from skipform import nets
from skipform.arguments import Range, complete
from skipform.errors import SkipformError, one_line
from skipform.files import checksum, digest_of, fields, read_json, read_text, read_yaml

if TYPE_CHECKING:
    from skipform.tasks import Task

CHECKED = ("config.yaml", "initial.safetensors", "final.safetensors", "history.csv", "metrics.json")  # by their sums
FILES = (*CHECKED, "provenance.json", "checksums.json")
LABEL = r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,99}"  # of a variant or a scale: it names a folder or a file

Block = dict[str, Any]
# What the files of a run hold at least, besides the scores.
CONFIG = {"scale": str, "variant": str, "seed": int, "net": Block, "data": Block, "task": Block, "optimizer": Block}
METRICS = {"epochs": int, "steps": int, "parameters": int, "shown": tuple[str, str], "higher": bool}
PROVENANCE = {
    "fingerprint": str,
    "command": str,
    "commit": str | None,
    "changed_since_commit": bool,
    "versions": dict[str, str],
    "hardware": Block,
    "training_seconds": Annotated[float, Range(0)],
}


@dataclass(frozen=True)
class Run:
    """The run that `skipform fit` has written to `folder`. A file is read when it is first needed, and only once.

    Everything read raises SkipformError if the run is not finished, or if a file has been changed since: one line that
    names the file. DVC stores no provenance: a run that it has brought back from its cache has none.
    """

    folder: Path

    @cached_property
    def config(self) -> dict[str, Any]:
        """Everything that is needed to do the run again: variant, seed, net, data, task, optimizer, trainer."""
        config = fields(read_yaml(path := self._intact("config.yaml")), CONFIG, path)
        for key in ("scale", "variant"):
            if not re.fullmatch(LABEL, config[key]):
                raise SkipformError(f"{path}: {key}: {config[key]!r}; accepted: letters, digits and _ . + -")
        for key in ("net", "data", "task"):
            fields(config[key], {"name": str}, f"{path}: {key}")
        return config

    @cached_property
    def metrics(self) -> dict[str, Any]:
        """The scores after the last epoch, and the numbers of epochs, steps and parameters."""
        metrics = fields(read_json(path := self._intact("metrics.json")), METRICS, path)
        score = f"test_{metrics['shown'][0]}"
        further = fields(metrics, {"further": tuple[str, ...]}, path)["further"] if "further" in metrics else ()
        scores = [score, *(f"test_{name}" for name in further), *(key for key in metrics if key.startswith(SCORES))]
        return fields(metrics, dict.fromkeys(scores, float), path)

    @cached_property
    def history(self) -> list[dict[str, float]]:
        """One row per epoch: "epoch", and the loss and the scores of every split."""
        text = read_text(path := self._intact("history.csv"))
        try:
            rows = [{key: float(value) for key, value in row.items()} for row in csv.DictReader(text.splitlines())]
        except (ValueError, TypeError, csv.Error):  # TypeError: a row of more or fewer values than the head
            rows = []
        if not rows or not all(math.isfinite(value) for row in rows for value in row.values()):
            raise SkipformError(f"{path}: not one row of finite numbers per epoch")
        return rows

    @cached_property
    def provenance(self) -> dict[str, Any]:
        """Commit, command, versions, hardware and times."""
        path = self.folder / "provenance.json"
        if self.is_finished() and not path.is_file():
            raise SkipformError(f"{path}: no such file; accepted: a run trained here, not one from DVC's cache")
        provenance = fields(read_json(path), PROVENANCE, path)
        own = provenance.pop("sha256_of_the_above", None)
        if own is not None and own != digest_of(provenance):
            raise SkipformError(f"{path}: changed since the end of its run (its checksum is in its last line)")
        return provenance

    @cached_property
    def checksums(self) -> dict[str, str]:
        """File -> the SHA-256 of its content when the run ended."""
        path = self.folder / "checksums.json"
        if not path.is_file():
            raise SkipformError(f"{self.folder}: no finished run (checksums.json) in it; `skipform fit` leaves one")
        sums = fields(read_json(path), {"sha256": dict[str, str]}, path)["sha256"]
        return fields(sums, dict.fromkeys(CHECKED, str), path)

    def is_finished(self) -> bool:
        """Whether the run has been written to its end."""
        return (self.folder / "checksums.json").is_file()

    def check(self) -> None:
        """Raises SkipformError if a file is missing, or differs from its checksum."""
        for name in CHECKED:
            self._intact(name)

    def _intact(self, name: str) -> Path:
        """The path of a file whose content is that of its checksum."""
        path = self.folder / name
        if checksum(path) != self.checksums[name]:
            raise SkipformError(f"{path}: changed since the end of its run (its checksum is in checksums.json)")
        return path

    @contextmanager
    def _naming_config(self) -> Iterator[None]:
        """Let an error about a name or an argument begin with the file that holds it."""
        try:
            yield
        except SkipformError as error:
            raise SkipformError(f"{self.folder / 'config.yaml'}: {error}") from None

    def record(self) -> dict[str, Any]:
        """What the run leaves besides weights and provenance: config, metrics, and history as column -> values."""
        columns = {key: [row[key] for row in self.history] for key in self.history[0]}
        return {"config": self.config, "metrics": self.metrics, "history": columns}

    def net(self, moment: Literal["initial", "final"] = "final") -> nn.Module:
        """A new copy of the net before or after training, in evaluation mode."""
        path = self._intact(f"{moment}.safetensors")
        with self._naming_config():
            net = nets.build(**self.config["net"])
        try:
            load_model(net, path)
        except (OSError, SafetensorError, RuntimeError) as error:  # RuntimeError: the weights of another net
            raise SkipformError(f"{path}: not the weights of its net: {one_line(error, 300)}") from None
        for name, weights in net.state_dict().items():
            if not torch.isfinite(weights).all():
                raise SkipformError(f"{path}: {name} has an entry that is NaN or infinite; accepted: finite weights")
        return net.eval()

    def task(self) -> "Task":
        """The task of the final net, in evaluation mode."""
        from skipform import data, tasks

        where = f"{self.folder / 'config.yaml'}: "
        with self._naming_config():
            kind = tasks.kind(name := self.config["task"]["name"])
            targets = data.kind(self.config["data"]["name"]).TARGETS
        if targets != kind.TARGETS:
            raise SkipformError(f"{where}task {name!r} takes {kind.TARGETS}, the data set has {targets}")
        options = {key: value for key, value in self.config["task"].items() if key != "name"}
        options = complete(kind, options, f"{where}task", skip={"net", "optimizer"})
        optimizer = complete(tasks.Optimizer, self.config["optimizer"], f"{where}optimizer")
        return tasks.build(name, self.net(), optimizer, **options).eval()

    def data(self, root: str | None = None) -> Any:
        """The data set, its files checked and read; nothing is fetched. `root`: its folder, by default `data_root`."""
        from skipform import data

        with self._naming_config():
            kind = data.kind(self.config["data"]["name"])
        where = f"{self.folder / 'config.yaml'}: data"
        block = complete(kind, self.config["data"], where, skip={"seed"} | data.LOCAL)
        module = data.build(0, **block, root=root or data_root(), download=False)
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
    """The runs of a finished experiment, FOLDER/VARIANT/seedK, in alphabetical order: those that its summary.json
    names, and none without one.

    Raises:
        SkipformError: a file of one of them is missing or damaged, or a run is in another folder than its own.
    """
    if not Path(folder, "summary.json").is_file():
        return []
    seeds = {variant: trained["seeds"] for variant, trained in read_summary(folder).items()}
    runs = [Run(path) for path in sorted(Path(folder, name, f"seed{seed}") for name in seeds for seed in seeds[name])]
    for run in runs:
        run.check()
        if run.folder.parts[-2:] != (run.config["variant"], f"seed{run.config['seed']}"):
            raise SkipformError(
                f"{run.folder}: the run of {run.config['variant']}, seed {run.config['seed']} (config.yaml);"
                " accepted: a run in the folder VARIANT/seedK that `skipform fit` wrote"
            )
    return runs


SCORES = ("train_", "validation_", "test_")  # what the names of scores begin with


def summary_of(seeds: list[int], runs: list[dict[str, Any]]) -> dict[str, Any]:
    """The middle (median), the lowest and the highest of every number in the metrics of the runs, one run per seed."""
    keys = [key for key in runs[0] if key.startswith(SCORES)]
    values = {key: [metrics[key] for metrics in runs] for key in keys}
    return {
        "seeds": seeds,
        "parameters": runs[0]["parameters"],
        **{key: runs[0][key] for key in ("epochs", "shown", "higher", "further") if key in runs[0]},
        **{key: _spread(numbers) for key, numbers in values.items()},
    }


def further(summary: dict[str, Any]) -> list[str]:
    """What tables show besides the score of a variant: "pixel_error 6.11 %", the middle over the seeds of test data."""
    middles = {name: summary[f"test_{name}"]["middle"] for name in summary.get("further", ())}
    return [f"{name} undefined" if x is None else f"{name} {x:.2f} %" for name, x in middles.items()]


def _spread(numbers: list[float | None]) -> dict[str, float | None]:
    """Median, minimum and maximum; null where one of the numbers is undefined."""
    if not all(number is not None and math.isfinite(number) for number in numbers):
        return dict.fromkeys(("middle", "low", "high"))
    return {"middle": statistics.median(numbers), "low": min(numbers), "high": max(numbers)}  # type: ignore[type-var]


def read_summary(folder: str | Path) -> dict[str, dict[str, Any]]:
    """Variant -> `summary_of` its runs, as it stands in FOLDER/summary.json.

    Raises:
        SkipformError: there is none, or it is not the summary of the runs in the folder; one line that names the file.
    """
    path = Path(folder, "summary.json")
    summary = read_json(path)
    if not isinstance(summary, dict) or not summary or not all(re.fullmatch(LABEL, variant) for variant in summary):
        raise SkipformError(f"{path}: accepted is {{variant: summary, ...}}, as `skipform fit` writes it")
    for variant, trained in summary.items():
        seeds = fields(trained, {"seeds": tuple[int, ...]}, f"{path}: {variant}")["seeds"]
        runs = [Run(path.parent / variant / f"seed{seed}").metrics for seed in seeds]
        if not runs or any(run.keys() != runs[0].keys() for run in runs) or trained != summary_of(seeds, runs):
            raise SkipformError(f"{path}: {variant}: not the summary of its runs' metrics.json")
    return summary
