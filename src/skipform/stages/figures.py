"""`skipform figures`: all that readers see, drawn from the committed records and measures. Nothing is trained."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from skipform.errors import SkipformError
from skipform.files import fields, read_yaml
from skipform.pipeline import ask, prepare, reproduce

DRAWN = ("notebooks", "paper")  # the stages that read records/ and measures/ alone
MISSING = ("deleted", "not in cache")  # what DVC calls a file that is not here


def main() -> int:
    """Draw all figures, tables and numbers, execute the notebooks and typeset the paper, from records/ and measures/.

    These files are part of the repository, so that this takes minutes and reads no weights. They have to belong to the
    sources, experiments and params.yaml at hand, as DVC says.
    """
    prepare()
    if changed := out_of_date(json.loads(ask("status", "--json")), read_by(DRAWN)):
        shown = f"{', '.join(changed[:5])}{', ...' if len(changed) > 5 else ''}"
        raise SkipformError(
            f"records/ and measures/ belong to other sources, experiments or params.yaml: {len(changed)} stages are out"
            f" of date ({shown}); `skipform repro` renews them, `git checkout` brings back what belongs together"
        )
    for name in DRAWN:
        if status := reproduce(name, force=True, alone=True).status:
            return status
    return 0


def read_by(stages: Iterable[str]) -> list[str]:
    """The files and folders that the stages depend on, as dvc.yaml names them."""
    pipeline = fields(read_yaml("dvc.yaml"), {"stages": dict}, "dvc.yaml")["stages"]
    return [path for name in stages for path in fields(pipeline, {name: dict}, "dvc.yaml: stages")[name]["deps"]]


def out_of_date(status: dict[str, Any], needed: Iterable[str]) -> list[str]:
    """The stages but for DRAWN that have changed, where a missing file, such as weights, is no change unless `needed`.

    status: what `dvc status --json` prints: stage -> [{"changed outs": {path: "modified", ...}, ...}, ...].
    """

    def counts(path: str, state: Any) -> bool:
        return state not in MISSING or any(Path(path).is_relative_to(other) for other in needed)

    changed = []
    for stage, entries in status.items():
        named = [(path, state) for entry in entries if isinstance(entry, dict) for paths in entry.values()
                 for path, state in paths.items()]  # fmt: skip
        otherwise = any(not isinstance(entry, dict) for entry in entries)  # "changed command"
        if stage not in DRAWN and (otherwise or any(counts(path, state) for path, state in named)):
            changed.append(stage)
    return changed
