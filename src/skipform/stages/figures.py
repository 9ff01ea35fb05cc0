"""`skipform figures`: all that readers see, drawn from the committed records and measures. Nothing is trained."""

import re

from skipform.errors import SkipformError
from skipform.pipeline import ask, prepare, reproduce

DRAWN = ("notebooks", "paper")  # the stages that read records/ and measures/ alone


def main() -> int:
    """Draw all figures, tables and numbers, execute the notebooks and typeset the paper, from records/ and measures/.

    These files are part of the repository, so that this takes minutes and reads no weights. They have to belong to the
    sources, experiments and params.yaml at hand, as DVC says.
    """
    prepare()
    if changed := [name for name in out_of_date() if name not in DRAWN]:
        shown = f"{', '.join(changed[:5])}{', ...' if len(changed) > 5 else ''}"
        raise SkipformError(
            f"records/ and measures/ belong to other sources, experiments or params.yaml: {len(changed)} stages are out"
            f" of date ({shown}); `skipform repro` renews them, `git checkout` brings back what belongs together"
        )
    for name in DRAWN:
        if status := reproduce(name, force=True, alone=True).status:
            return status
    return 0


def out_of_date() -> list[str]:
    """The stages that would run although a missing output, such as weights, counts as the one in dvc.lock."""
    return re.findall(r"Running stage '([^']+)'", ask("repro", "--allow-missing", "--dry"))
