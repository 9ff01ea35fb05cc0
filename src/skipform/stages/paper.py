"""Typeset the paper."""

import sys
from pathlib import Path

import typst

from skipform.errors import SkipformError
from skipform.files import whole
from skipform.outputs import check_file


def main(*, source: str = "paper/main.typ", output: str = "paper/paper.pdf") -> int:
    """Compile a typst source to PDF: whole or not at all, without a date, with only the typesetter's own fonts.

    Equal sources and generated data give equal bytes. An error is one line on standard error, and exit status 1.

    Args:
        source: The typst file; it reads what `skipform notebooks` has written to generated/ in the same folder.
        output: The PDF to write.
    """
    check_file(output, "--output", suffixes=[".pdf"])
    if not Path(source).is_file():
        raise SkipformError(f"{source}: no such file; accepted: a typst file, as a checkout of the project has it")
    try:
        pdf, warnings = typst.compile_with_warnings(source, root=str(Path(source).parent), ignore_system_fonts=True)
    except (typst.TypstError, RuntimeError, OSError) as error:
        message = getattr(error, "message", str(error))
        hint = " (skipform notebooks writes it)" if "generated" in message else ""
        print(f"{source}: {' '.join(message.split())}{hint}", file=sys.stderr)
        return 1
    if warnings:
        print(f"{source}: {' '.join(str(warnings[0].message).split())}", file=sys.stderr)
        return 1
    with whole(output) as temporary:
        temporary.write_bytes(pdf)
    return 0
