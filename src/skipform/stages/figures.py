"""`skipform figures`: all that readers see, drawn from the committed records and measures. Nothing is trained."""

from pathlib import Path
from typing import Any

from skipform.errors import SkipformError
from skipform.files import fields, read_text
from skipform.pipeline import prepare, reproduce, status

DRAWN = ("notebooks", "review", "paper")  # the stages that read records/ and measures/ alone
MISSING = ("deleted", "not in cache")  # what DVC calls a file that is not here


def main() -> int:
    """Draw all figures, tables and numbers, execute the notebooks, write the review page and typeset the paper, from
    records/ and measures/.

    These files are part of the repository, so that this takes minutes and reads no weights. They have to belong to the
    sources, experiments and params.yaml at hand, as DVC says.
    """
    from dvc.utils.serialize import parse_yaml  # dvc.lock is longer than files that people write, see `read_yaml`

    prepare()
    lock = fields(parse_yaml(read_text("dvc.lock"), "dvc.lock"), {"stages": dict}, "dvc.lock")["stages"]
    paths = {
        kind: [entry["path"] for name, stage in lock.items() if name in names for entry in stage.get(kind, ())]
        for kind, names in (("outs", lock), ("deps", DRAWN))
    }
    if changed := out_of_date(status(), paths["outs"], paths["deps"]):
        shown = f"{', '.join(changed[:5])}{', ...' if len(changed) > 5 else ''}"
        raise SkipformError(
            f"records/ and measures/ belong to other sources, experiments or params.yaml: {len(changed)} stages are out"
            f" of date ({shown}); `skipform repro` renews them, `git checkout` brings back what belongs together"
        )
    for name in DRAWN:
        if code := reproduce(name, force=True, alone=True).status:
            return code
    print("written:", ", ".join(entry["path"] for name in DRAWN for entry in lock[name].get("outs", ())))
    return 0


def out_of_date(status: dict[str, Any], outs: list[str], needed: list[str]) -> list[str]:
    """The stages but for DRAWN that have changed. A missing output, such as weights, is no change unless it is needed.

    status: what `dvc status --json` prints: stage -> [{"changed outs": {path: "modified", ...}, ...}, ...]. outs: the
    outputs of all stages. needed: what the stages of DRAWN read.
    """

    def is_change(path: str, state: Any) -> bool:
        is_output = any(Path(out).is_relative_to(path) for out in outs)
        is_needed = any(Path(path).is_relative_to(other) for other in needed)
        return state not in MISSING or not is_output or is_needed

    changed = []
    for stage, entries in status.items():
        groups = [paths for entry in entries if isinstance(entry, dict) for paths in entry.values()]
        otherwise = any(not isinstance(entry, dict) for entry in entries)  # "changed command"
        if otherwise or any(is_change(path, state) for paths in groups for path, state in paths.items()):
            changed.append(stage)
    return [stage for stage in changed if stage not in DRAWN]
