"""`skipform costs`: write into the experiment files what their training takes at scale paper, by an estimate."""

import re
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

from skipform.errors import SkipformError
from skipform.files import read_text, write_text

if TYPE_CHECKING:
    from skipform.training.experiment import Experiment

FOLDERS = ("survey", "claims", "gpu", "cpu")


def main(*, root: Path = Path("experiments")) -> None:
    """Renew the last sentence under # Cost of every experiment file: the time, memory and disk of one seed at scale
    paper. A measured time, and any time on a CPU, stays as it is.

    Args:
        root: The folder of the experiments.
    """
    from skipform.training.experiment import read

    files = [file for folder in FOLDERS for file in sorted(root.glob(f"{folder}/*.yaml")) if file.stem != "table"]
    if not files:
        raise SkipformError(f"{root}: no experiment files in it; accepted: the folder experiments of the project")
    for file in files:
        write_text(file, renewed(file, read(file, "paper")))


def renewed(file: Path, experiment: "Experiment") -> str:
    """The text of an experiment file with its estimates for scale paper renewed."""
    from skipform.training.cost import HEADING, estimate, sentence, text_of

    text = read_text(file)
    if not HEADING.search(text):
        raise SkipformError(f"{file}: no line that begins with # Cost; accepted: an introduction with one")
    others, _, before = text_of(file).partition("paper")
    measured = re.match(r" \(1 seed\): ([^;]*);", before)
    cost = estimate(experiment)
    if measured is None and not cost.on_gpu:
        raise SkipformError(
            f"{file}: Cost: accepted on a CPU: `paper (1 seed): TIME of a CPU, measured;`, got {before}"
        )
    lines = [part for part in (others, sentence("paper", cost, measured and measured[1])) if part]
    wrapped = [line for part in lines for line in textwrap.wrap(part, 108, break_on_hyphens=False)]
    return HEADING.sub(lambda _: "# Cost      " + "\n#           ".join(wrapped), text, count=1)
