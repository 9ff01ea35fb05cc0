"""Run the notebooks of analysis/: their results go to paper/generated/, the executed pages to build/notebooks/."""

import asyncio
import os
import sys
from pathlib import Path
from typing import Any

import jupytext
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError
from nbclient.util import ensure_async
from nbconvert import HTMLExporter
from nbformat import NotebookNode, writes
from tqdm import tqdm

from skipform import outputs
from skipform.arguments import Count
from skipform.errors import SkipformError, one_line
from skipform.files import read_json, read_text, temporary_folder, write_json, write_text


class NotebookFailed(RuntimeError):
    """A notebook stopped: one line naming the notebook, the cell and the error."""


class _Loop(asyncio.SelectorEventLoop):
    """An event loop that leaves Ctrl-C and SIGTERM as they are: nbclient would end its kernel and wait for ever."""

    def add_signal_handler(self, sig: int, callback: Any, *args: Any) -> None:  # type: ignore[override]
        raise RuntimeError  # which nbclient expects

    def remove_signal_handler(self, sig: int) -> bool:
        return False


def main(*, only: list[str] | None = None, kernels: Count = 2, root: str = ".") -> int:
    """Execute the percent-format notebooks of `root`/analysis.

    Figures, tables and numbers go to `root`/paper/generated, each notebook to `root`/build/notebooks as .ipynb and as
    one HTML file. If a notebook fails, nothing is replaced. Equal inputs give equal bytes.

    Args:
        only: Names of the notebooks to run (all when not given); the files of the others stay as they are.
        kernels: The number of notebooks that run at the same time.
        root: The folder that holds analysis/, runs/ and measures/.
    """
    notebooks = read_all(Path(root) / "analysis")
    if not notebooks:
        raise SkipformError(f"{root}: no notebooks (analysis/*.py) in it; accepted: a checkout of the project")
    if unknown := [name for name in only or () if name not in notebooks]:
        raise SkipformError(f"unknown notebook {unknown[0]!r} in {root}/analysis; there are: {', '.join(notebooks)}")
    css = read_text(Path(root, "analysis", "page.css"))
    chosen = {name: notebook for name, notebook in notebooks.items() if not only or name in only}
    generated, pages = Path(root, "paper", "generated"), Path(root, "build", "notebooks")
    for folder in (generated, pages):
        outputs.check_folder(folder, "output", "notebooks")
    outputs.recover(generated)
    with temporary_folder(generated) as temporary:
        new = temporary / generated.name
        new.mkdir()
        try:
            with asyncio.Runner(loop_factory=_Loop) as runner:
                runner.run(_execute_all(chosen, Path(root) / "analysis", new, kernels))
        except NotebookFailed as failure:
            print(failure, file=sys.stderr)
            return 1
        texts = {name: (writes(notebook) + "\n", _html(name, notebook, css)) for name, notebook in chosen.items()}
        made = sorted(file.name + "/" * file.is_dir() for file in new.iterdir())
        if only:
            outputs.mark(generated, [*made, "numbers.json"], "notebooks")
            for name in made:
                (new / name).replace(generated / name)
            join_numbers(generated, list(notebooks))
        else:
            join_numbers(new, list(notebooks))
            outputs.mark(new, [*made, "numbers.json"], "notebooks")
            outputs.replace(new, generated)
    outputs.mark(pages, [f"{name}{ending}" for name in chosen for ending in (".ipynb", ".html")], "notebooks")
    for name, (notebook, html) in texts.items():
        write_text(pages / f"{name}.ipynb", notebook)
        write_text(pages / f"{name}.html", html)
    return 0


def read_all(folder: Path) -> dict[str, NotebookNode]:
    """The notebooks of a folder by name: every .py file in percent format; the id of a cell is its position."""
    notebooks = {}
    for path in sorted(folder.glob("*.py")):
        if "# %%" not in (text := read_text(path)):
            continue
        notebook = jupytext.reads(text, fmt="py:percent")
        for place, cell in enumerate(notebook.cells):
            cell["id"] = f"cell-{place}"
        notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
        notebooks[path.stem] = notebook
    return notebooks


def join_numbers(generated: Path, names: list[str]) -> None:
    """Write numbers.json: the numbers of each notebook under its name, for the paper and for `dvc metrics`."""
    parts = [file for name in names if (file := generated / f"{name}.json").is_file()]
    write_json(generated / "numbers.json", {file.stem: read_json(file) for file in parts})


async def _execute_all(notebooks: dict[str, NotebookNode], folder: Path, generated: Path, kernels: int) -> None:
    """Run every notebook in place, `kernels` at a time; the first failure stops all."""
    room = asyncio.Semaphore(kernels)
    environment = {**os.environ, "SKIPFORM_GENERATED": str(generated.resolve()), "PYTHONDONTWRITEBYTECODE": "1"}
    cells = sum(cell.cell_type == "code" for notebook in notebooks.values() for cell in notebook.cells)
    with tqdm(total=cells, desc="notebooks", unit="cell", leave=False, disable=None) as bar:

        async def execute(name: str, notebook: NotebookNode) -> None:
            def advance(**_: Any) -> None:
                bar.set_postfix_str(name)
                bar.update()

            client = NotebookClient(
                notebook,
                timeout=None,
                shutdown_kernel="immediate",  # a kernel that is asked to stop writes to our standard error
                record_timing=False,  # equal runs must give equal notebooks
                extra_arguments=["--log-level=ERROR"],
                resources={"metadata": {"path": str(folder)}},
                on_cell_complete=advance,
            )
            async with room:
                try:
                    await client.async_execute(env=environment)
                    notebook.metadata["language_info"].pop("version")  # the same bytes with Python 3.11.2 and 3.11.7
                except CellExecutionError as error:
                    raise NotebookFailed(_one_line(name, notebook, f"{error.ename}: {error.evalue}")) from error
                except DeadKernelError as error:
                    if asyncio.current_task().cancelling():  # type: ignore[union-attr]
                        raise asyncio.CancelledError from None  # nbclient takes being cancelled for a dead kernel
                    raise NotebookFailed(_one_line(name, notebook, "the kernel died")) from error
                finally:
                    # nbclient forgets a kernel that was still starting when another notebook failed
                    if client.km is not None and client.km.has_kernel:
                        await ensure_async(client.km.shutdown_kernel(now=True))

        await asyncio.gather(*(execute(name, notebook) for name, notebook in notebooks.items()))


def _one_line(name: str, notebook: NotebookNode, error: str) -> str:
    """One line that names the notebook, the cell that failed (the last one that began) and the error."""
    code = [(place, cell) for place, cell in enumerate(notebook.cells) if cell.cell_type == "code"]
    place, cell = next((pair for pair in reversed(code) if pair[1].execution_count or pair[1].outputs), code[0])
    first = cell.source.strip().splitlines()[0]
    return f"notebook analysis/{name}.py, cell {place} ({first!r}): {one_line(error)}"


def _html(name: str, notebook: NotebookNode, css: str) -> str:
    """The executed notebook as one HTML page that loads nothing from the network."""
    body, _ = HTMLExporter(template_name="basic").from_notebook_node(notebook)
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{name}</title>'
    return f'<!doctype html>\n<html lang="en"><head>{head}<style>\n{css}</style></head><body>\n{body}</body></html>\n'
