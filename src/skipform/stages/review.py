"""`skipform review`: every result on one page, from the committed records and measures and what the notebooks made."""

import runpy
import sys
from pathlib import Path

from skipform.errors import SkipformError
from skipform.files import write_text
from skipform.outputs import check_file


def main(*, out: Path = Path("build/review.html"), root: Path = Path(".")) -> None:
    """Write the review page: one HTML file that loads nothing. Equal inputs give equal bytes.

    Args:
        out: The page. Its links to files of the project begin in ROOT/build.
        root: The folder that holds analysis/, experiments/, records/, measures/, results/ and paper/generated.
    """
    check_file(out, suffixes=[".html"])
    script = root / "analysis" / "review.py"
    if not script.is_file():
        raise SkipformError(f"{script}: no such file; accepted: --root with a checkout of the project")
    if not (numbers := root / "paper" / "generated" / "numbers.json").is_file():
        raise SkipformError(f"{numbers}: no such file; skipform notebooks writes it")
    sys.path.insert(0, str(script.parent))  # as for a program, which imports the files next to it
    page = runpy.run_path(str(script))["page"]()
    sys.path.remove(str(script.parent))
    write_text(out, page)
