"""The records that trainings leave: one line of JSON per run, with its config, its metrics and its history."""

import math
from pathlib import Path
from typing import Any

from skipform.errors import SkipformError
from skipform.files import fields, json_value, read_text

Record = dict[str, Any]
RECORD = {"config": dict, "metrics": dict, "history": dict}


def read(path: Path) -> list[Record]:
    """The records of one experiment, in the order of the file.

    Raises:
        SkipformError: a line that is no record; one line that names the file and the line.
    """
    places = ((f"{path}, line {number}", line) for number, line in enumerate(read_text(path).splitlines(), 1))
    return [fields(json_value(line, where), RECORD, where) for where, line in places]


def numbers(record: Record, measures: list[str]) -> dict[str, Any]:
    """Variant, seed and every number in the metrics of a run, and of the measures those of `reached`."""
    config, metrics = record["config"], record["metrics"]
    plain = {key: value for key, value in metrics.items() if isinstance(value, int | float) and key != "higher"}
    return {
        "variant": config["variant"],
        "seed": config["seed"],
        "when": "final",
        "copy": None,
        **plain,
        **{measure: reached(record, measure) for measure in measures if "_to " in measure},
    }


def reached(record: Record, measure: str) -> float:
    """The number of epochs, "epochs_to LOSS", or of optimiser steps, "steps_to LOSS", after which the training loss is
    LOSS or less for the first time, at the end of an epoch; infinite for a run that never reaches it.

    Raises:
        SkipformError: LOSS is no number above 0.
    """
    unit, _, text = measure.partition("_to ")
    try:
        loss = float(text)
    except ValueError:
        loss = math.nan
    if not 0 < loss < math.inf:
        raise SkipformError(f"{measure}: accepted: {unit}_to LOSS, with a loss above 0")
    losses = record["history"]["train_loss"]
    epochs = next((k for k, value in enumerate(losses, 1) if value is not None and value <= loss), math.inf)
    return epochs if unit == "epochs" else epochs * record["metrics"]["steps"] / record["metrics"]["epochs"]
