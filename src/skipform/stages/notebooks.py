"""Run the notebooks of analysis/: their results go to paper/generated/, the executed pages to build/notebooks/."""

import asyncio
import html
import os
import re
import sys
from pathlib import Path
from typing import Any

import jupytext
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError
from nbclient.util import ensure_async
from nbconvert import HTMLExporter
from nbformat import NO_CONVERT, NotebookNode, read, writes
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
    one HTML file, which index.html lists. If a notebook fails, nothing is replaced. Equal inputs give equal bytes.

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
    names = [f"{name}{ending}" for name in chosen for ending in (".ipynb", ".html")]
    outputs.mark(pages, [*names, "index.html"], "notebooks")
    for name, (notebook, page) in texts.items():
        write_text(pages / f"{name}.ipynb", notebook)
        write_text(pages / f"{name}.html", page)
    executed = {path.stem: read(path, NO_CONVERT) for path in sorted(pages.glob("*.ipynb")) if path.stem in notebooks}
    write_text(pages / "index.html", _index(executed, css))
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


FOLDED = """{%- extends 'basic/index.html.j2' -%}
{%- block input -%}<details class="code"><summary>code</summary>{{ super() }}</details>{%- endblock input -%}"""


def _html(name: str, notebook: NotebookNode, css: str) -> str:
    """The executed notebook as one HTML page that loads nothing from the network; its code is folded."""
    body, _ = HTMLExporter(raw_template=FOLDED).from_notebook_node(notebook)
    return _page(name, css, f'<p><a href="index.html">All notebooks</a></p>\n{body}')


def _page(title: str, css: str, body: str) -> str:
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{title}</title>'
    return f'<!doctype html>\n<html lang="en"><head>{head}<style>\n{css}</style></head><body>\n{body}</body></html>\n'


def _index(notebooks: dict[str, NotebookNode], css: str) -> str:
    """The page that lists the executed notebooks: title, first sentence, and first picture or table of each."""
    entries = []
    for name, notebook in notebooks.items():
        title, sentence = _introduction(notebook)
        link, picture = html.escape(f"{name}.html"), _first_picture(notebook)
        text = f'<h2><a href="{link}">{html.escape(title or name)}</a></h2><p>{html.escape(sentence)}</p>'
        entries.append(
            f'<article><a class="preview" href="{link}" tabindex="-1">{picture}</a><div>{text}</div></article>\n'
        )
    return _page("The notebooks", css, f'<h1>The notebooks</h1>\n<div class="index">\n{"".join(entries)}</div>')


def _introduction(notebook: NotebookNode) -> tuple[str, str]:
    """The title of a notebook, and the first sentence below it without its marks of emphasis."""
    first = notebook.cells[0].source if notebook.cells and notebook.cells[0].cell_type == "markdown" else ""
    title, _, rest = first.partition("\n")
    paragraph = " ".join(rest.strip().partition("\n\n")[0].split()).replace("**", "").replace("`", "")
    sentence = re.match(r".*?[.:](?= [A-Z]|$)", paragraph)
    text = sentence[0] if sentence else paragraph
    return title.lstrip("# ").strip(), f"{text[:-1]}." if text.endswith(":") else text


def _first_picture(notebook: NotebookNode) -> str:
    """The first picture of an executed notebook, else its first table, as HTML; nothing if it has neither."""
    shown = [output.data for cell in notebook.cells for output in cell.get("outputs", ()) if "data" in output]
    for data in shown:
        if "image/png" in data:
            return f'<img alt="" src="data:image/png;base64,{data["image/png"].strip()}">'
    tables = [re.search(r"<table.*</table>", data["text/html"], re.DOTALL) for data in shown if "text/html" in data]
    return next((f"<div>{table[0]}</div>" for table in tables if table), "")
