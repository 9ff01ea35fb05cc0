"""Which files decide what a stage computes: the sources that it imports, directly or through others.

Imports are read from the files, not executed, so that this costs milliseconds. A module that is chosen by name while a
stage runs (a net, a kind of data, a task) is in no import statement: the caller adds what a configuration names.
What a stage depends on (`skipform sources`) and the fingerprints of unfinished runs are both computed here.
"""

import ast
import hashlib
import tokenize
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

from skipform.files import digest_of, versions

PACKAGE = Path(__file__).parent
# No number depends on these: names for the prompt, texts of errors, the command line, W&B, and this file.
WITHOUT_NUMBERS = {
    "skipform",
    "skipform.errors",
    "skipform.stages.cli",
    "skipform.training.tracking",
    "skipform.training.epoch_logger",
    "skipform.sources",
}


def closure(modules: Iterable[str]) -> list[Path]:
    """The files of the given modules ("skipform.stages.fit") and of all modules of this package that they import, with
    the packages around them, in alphabetical order; those of WITHOUT_NUMBERS left out."""
    waiting, seen = list(modules), set[str]()
    while waiting:
        module = waiting.pop()
        if module not in seen | WITHOUT_NUMBERS:
            seen.add(module)
            waiting += [module.rpartition(".")[0], *_imports(_file(module))]
    return sorted(path for module in seen if not _is_empty(path := _file(module)))


def imports_of(path: Path) -> list[Path]:
    """The closure of a file outside the package, such as a notebook, without itself."""
    return closure(_imports(path))


def nets_in(block: Any) -> Iterator[str]:
    """The nets that a {name: NAME, argument: value, ...} block names, nested ones too."""
    if isinstance(block, dict) and "name" in block:
        yield block["name"]
        for value in block.values():
            yield from nets_in(value)


def fingerprint(value: Any, sources: Iterable[Path]) -> str:
    """A digest of what decides a result: a JSON value (its configuration), the versions, the sources."""
    return digest_of([value, versions(), [digest(path) for path in sorted(sources)]])


@cache
def digest(path: Path) -> str:
    """The SHA-256 of the statements in a source: of its text without comments, docstrings and empty lines.

    The text, not the parsed program, which differs between versions of Python.
    """
    with tokenize.open(path) as file:
        lines = file.read().split("\n")
    with path.open("rb") as file:
        tokens = list(tokenize.tokenize(file.readline))
    left_out = set[int]()
    for token in tokens:
        row, column = token.start[0] - 1, token.start[1]
        if token.type == tokenize.COMMENT:
            lines[row] = lines[row][:column].rstrip()
        elif token.type == tokenize.NL and not lines[row].strip():  # an empty line, but none of a string
            left_out.add(row)
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if (docstring := _docstring(node)) is not None:
            start, end = docstring.lineno - 1, (docstring.end_lineno or 0) - 1
            around = lines[start][: docstring.col_offset] + lines[end].encode()[docstring.end_col_offset :].decode()
            if not around.strip():
                left_out |= {*range(start, end + 1)}
    text = "\n".join(line for row, line in enumerate(lines) if row not in left_out)
    return hashlib.sha256(text.encode()).hexdigest()


def _docstring(node: ast.AST) -> ast.Expr | None:
    """The docstring of a module, class or function; None for any other node, and where there is none."""
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        match node.body:
            case [ast.Expr(value=ast.Constant(value=str())) as first, *_]:
                return first
    return None


@cache
def _is_empty(path: Path) -> bool:
    """Whether a file has nothing but a docstring."""
    body = ast.parse(path.read_text(encoding="utf-8")).body
    return all(isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) for node in body)


def _file(module: str) -> Path:
    path = PACKAGE.joinpath(*module.split(".")[1:])
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


@cache
def _imports(path: Path) -> tuple[str, ...]:
    """The modules of this package that a file imports, at its top or inside a function; not those for types alone."""
    names: list[str] = []
    waiting: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            waiting += node.orelse
        elif isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        else:
            waiting += ast.iter_child_nodes(node)
    return tuple(name for name in names if name.split(".")[0] == "skipform" and _file(name).is_file())
