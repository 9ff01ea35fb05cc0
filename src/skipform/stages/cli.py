"""The command line: `skipform STAGE ...`; a stage is a file of this folder, imported when it is the one asked for.

Whatever goes wrong is one line on standard error: see EXIT_STATUSES.
"""

import argparse
import ast
import inspect
import json
import os
import select
import shlex
import signal
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_origin, get_type_hints

import skipform
from skipform import arguments
from skipform.arguments import typed
from skipform.errors import InternalError, SkipformError, one_line, shown
from skipform.files import yaml_value

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

STAGES = {
    "repro": "run the pipeline: every stage of dvc.yaml that is out of date",
    "figures": "draw the figures, tables and pages of the paper from the committed records; train nothing",
    "compare": "compare the numbers committed in git with those that this machine has found",
    "verify": "check the statements of the paper and print them as a table; exit 1 if one fails",
    "grammar": "rewrite the architectures of the survey and count what they become",
    "data": "name the data sets that the experiments need and that are missing, or fetch them",
    "fit": "train what an experiment file describes",
    "gpu_table": "train the rows of experiments/gpu/table.yaml on one GPU, as many as the time allows",
    "evaluate": "compute the scores of a trained net again, on the examples that it was not trained on",
    "measure": "measure the expressive power of trained networks",
    "claims": "decide the comparisons of an experiment file: by scores, regions on a plane, ranks, exact copies",
    "verdicts": "print the claims, their comparisons and their verdicts: holds, does not hold, open",
    "probe": "measure trained networks for a claim about learning: gradients, lesions, the loss around them, cost",
    "explore": "train a few small nets and draw their regions on one plane, for the explorer of the review page",
    "examples": "show trained networks a few held-out inputs, for the notebooks",
    "pieces": "count the affine pieces of every architecture while it trains, epoch by epoch",
    "radii": "find the exact robust radius of ten digits under a small net with max pooling, in two encodings",
    "rewrite": "rewrite a torch model into affine maps, ReLU and concatenation",
    "regions": "count and draw the linear regions of a network on a plane",
    "bound": "find the exact range of an output of a network over a box of inputs",
    "list": "list the networks, data sets and experiments there are, or what the experiments take at a scale",
    "scores": "write scores and learning curves for `dvc metrics` and `dvc plots`, from the records and measures",
    "publish": "copy the summaries of finished runs into results/",
    "notebooks": "execute the analysis: figures, tables, numbers",
    "review": "write the review page: every result on one page, which opens from disk",
    "paper": "typeset the paper",
    "dashboard": "make a workspace and a report in Weights & Biases, a section per claim and per task",
    "costs": "renew what the experiment files state about time, memory and disk at scale paper",
    "sources": "write which sources decide what each stage of the pipeline writes, with their digests",
}

# Stages whose results are logged to Weights & Biases, in a checkout; `fit` logs its own runs while it trains.
LOGGED = (
    "verify",
    "grammar",
    "measure",
    "probe",
    "claims",
    "explore",
    "radii",
    "pieces",
    "examples",
    "regions",
    "notebooks",
    "paper",
)

EXIT_STATUSES = """exit status:
  0         done
  1         the result is negative: a statement fails, a file is out of date, a notebook or a stage stops
  2         refused, or stopped by something outside skipform, such as a full disk
  70        a defect of skipform; the message names the file that holds the traceback
  130, 143  interrupted by Ctrl-C, ended by SIGTERM
  141       what reads the output, such as `head`, has ended"""

# What libraries raise for a wrong file, a machine without room or a wrong request: module -> exception. A library that
# is not imported has raised nothing.
EXPECTED = {
    "yaml": "YAMLError",
    "argparse": "ArgumentError",
    "safetensors": "SafetensorError",
    "torch": "OutOfMemoryError",
    "lightning.fabric.utilities.exceptions": "MisconfigurationException",
    "wandb.errors": "Error",
    "ruamel.yaml.error": "YAMLError",
}


STDOUT = 1


class Terminated(BaseException):
    """SIGTERM has arrived."""


def main(argv: list[str] | None = None) -> int:
    """Run one stage. An error is one line on standard error and an exit status of EXIT_STATUSES."""
    if argv is None:
        argv = sys.argv[1:]
        if not sys.warnoptions:  # what libraries warn about is for who develops with them
            warnings.simplefilter("ignore")
            os.environ["PYTHONWARNINGS"] = "ignore"  # for workers and other programs
    if not argv or argv[0] in ("-h", "--help"):
        print(_usage())
        return 0 if argv else 2
    if argv[0] == "--version":
        print(f"skipform {skipform.__version__}")
        return 0
    stage, *rest = argv
    try:
        with _terminable():
            status = _run(stage, rest)
            sys.stdout.flush()  # a pipe that is closed shows here at the latest
            return status
    except KeyboardInterrupt:
        status, line = 130, "interrupted; run the same command again to go on"
    except Terminated:
        status, line = 143, "terminated; run the same command again to go on"
    except Exception as error:
        if isinstance(error, BrokenPipeError) and _has_no_reader():
            return 141
        if (text := _outside(error)) is not None:
            status, line = 2, f"error: {one_line(text)}"
        else:
            status, line = 70, f"error: {_defect(error, argv)}"
    _clear_bars()
    print(f"skipform {stage[:80]}: {line}", file=sys.stderr)
    return status


def _has_no_reader() -> bool:
    """Whether standard output is a pipe that nobody reads any more. Then the rest goes nowhere: Python would name the
    pipe once more at its end."""
    poll = select.poll()
    poll.register(STDOUT, 0)  # 0: errors alone
    if not poll.poll(0):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), STDOUT)
    return True


def _run(stage: str, argv: list[str]) -> int:
    if stage not in STAGES:
        close = get_close_matches(stage, STAGES, n=1)
        hint = f" (did you mean {close[0]}?)" if close else ""
        raise SkipformError(f"unknown stage {shown(stage)}{hint}; accepted: {', '.join(STAGES)}")
    # `fit` reads its own command line: what it accepts depends on the nets, the data and the tasks there are. So does
    # `data`, which takes any number of names.
    options: dict[str, Any] = {"argv": argv} if stage in ("fit", "data") else _options(stage, argv)
    start = time.monotonic()
    status = import_module(f"skipform.stages.{stage}").main(**options) or 0
    if stage in LOGGED and not status:
        from skipform.training import stage_runs

        stage_runs.log(stage, options, time.monotonic() - start)
    return status


@contextmanager
def _terminable() -> Iterator[None]:
    """Let the first SIGTERM raise Terminated, so that what is half done is cleaned up, as it is after Ctrl-C.

    A second one, such as that which `uv run` passes on, does not end the cleaning up.
    """
    terminated = False

    def terminate(number: int, frame: Any) -> None:
        nonlocal terminated
        if not terminated:
            terminated = True
            raise Terminated

    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) is signal.SIG_IGN:
        yield
        return
    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _outside(error: Exception) -> str | None:
    """The message of an error whose cause is not a defect of skipform; None for any other."""
    if isinstance(error, OSError) and error.strerror:
        name = f"{one_line(str(error.filename), 200)}: " if error.filename is not None else ""
        return f"{name}{error.strerror}"
    if isinstance(error, MemoryError) or "can't allocate memory" in str(error):
        return f"out of memory ({one_line(error, 200)})"
    known = tuple(getattr(sys.modules[module], name) for module, name in EXPECTED.items() if module in sys.modules)
    kinds = (SkipformError, InternalError, OSError, UnicodeError, json.JSONDecodeError, *known)
    return one_line(error) if isinstance(error, kinds) else None


def _defect(error: Exception, argv: list[str]) -> str:
    """The message of an error that should not happen, after its traceback has been written to a file."""
    text = "".join(traceback.format_exception(error))
    where = "".join(f" in {frame.name}" for frame in traceback.extract_tb(error.__traceback__)[-1:])
    what = f"{type(error).__name__}{where}: {one_line(error, 300)}; this is a defect of skipform"
    try:
        with tempfile.NamedTemporaryFile("w", prefix="skipform-", suffix=".txt", delete=False) as file:
            file.write(f"skipform {skipform.__version__}: {shlex.join(['skipform', *argv])}\n\n{text}")
    except OSError:
        print(text, file=sys.stderr)
        return f"{what}, please report it with the traceback above"
    return f"{what}, please report it with the file {file.name}, which holds the command and the traceback"


def _clear_bars() -> None:
    """Remove the progress bars that an error has left on the screen."""
    if "tqdm" in sys.modules:
        for bar in list(getattr(sys.modules["tqdm"].tqdm, "_instances", ())):
            bar.leave = False
            bar.close()


def _options(stage: str, argv: list[str]) -> dict[str, Any]:
    """The arguments of a stage's `main`, read from the command line; its docstring is the help."""
    from jsonargparse import ArgumentError

    run = declaration(stage)
    hints, parameters = get_type_hints(run, include_extras=True), inspect.signature(run).parameters
    positional = [name for name, parameter in parameters.items() if parameter.kind is not parameter.KEYWORD_ONLY]
    required = [name for name, parameter in parameters.items() if parameter.default is parameter.empty]
    needed = [name.upper() if name in positional else f"--{name} {name.upper()}" for name in required]
    description, _, _ = (inspect.getdoc(run) or "").partition("\n\nArgs:\n")
    usage = " ".join([f"skipform {stage}", *needed, "[options]"])
    parser = new_parser(usage=usage, description=description, allow_abbrev=False)
    parser.add_function_arguments(run, as_group=False, as_positional=True)
    for action in (action for action in parser._actions if action.dest in hints):
        hint = hints[action.dest]
        action.help = option_help(action.help or "", hint, parameters[action.dest].default)
        action.metavar = {bool: "[true|false]"}.get(hint, action.dest.upper())
        if get_origin(hint) is Literal:
            action.metavar = "|".join(get_args(hint))
        action.option_strings = [word for word in action.option_strings if not word.endswith("+")]  # that append
    # A yes-or-no option may stand alone: --all is --all=true.
    switches = {f"--{name}" for name, parameter in parameters.items() if parameter.annotation is bool}
    following = [*argv[1:], ""]
    argv = [
        f"{word}=true" if word in switches and after not in ("true", "false") else word
        for word, after in zip(argv, following, strict=False)
    ]
    try:
        options = parser.parse_args(["--out" if word == "-o" else word for word in argv])
    except ArgumentError as error:
        raise not_understood(error, parser) from None
    given = parser.instantiate_classes(options).as_dict()
    return {name: typed(x, hints[name], name if name in positional else f"--{name}") for name, x in given.items()}


def new_parser(**options: Any) -> "ArgumentParser":
    """A parser that raises ArgumentError, and that reads values by the rules for files: its own YAML crashes on a value
    of many levels."""
    from jsonargparse import ArgumentParser, set_loader

    set_loader("yaml", yaml_value)
    return ArgumentParser(exit_on_error=False, formatter_class=argparse.RawDescriptionHelpFormatter, **options)


def option_help(text: str, hint: Any, default: Any = None) -> str:
    """What --help says of an option: its text, the range of its values and its default."""
    notes = ranges_in(hint)
    if not any(default is nothing for nothing in (None, False, inspect.Parameter.empty)):
        notes.append(f"by default {default}")
    note = f" ({'; '.join(notes)})" if notes else ""
    return f"{text.removesuffix('.')}{note}".replace("%", "%%")


def ranges_in(hint: Any) -> list[str]:
    """The ranges of the numbers in a type, in words: list[Annotated[int, Range(0)]] -> ["0 or more"]."""
    own = [str(entry) for entry in getattr(hint, "__metadata__", ())]
    return own + [text for part in get_args(hint) if part not in own for text in ranges_in(part)]


def declaration(stage: str) -> Callable[..., int | None]:
    """The `main` of a stage without its body: parameters, annotations, docstring.

    A stage imports torch at its top, which takes seconds. To answer --help or to refuse an option, only this much of
    the file is executed, so the annotations of `main` have to do with built-in types, Any, Annotated, Literal, Path and
    what arguments.py defines.
    """
    file = Path(__file__).with_name(f"{stage}.py")
    tree = ast.parse(file.read_text(encoding="utf-8"))
    (main,) = (node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "main")
    main.body = main.body[:1]  # the docstring
    names = vars(arguments) | {"Annotated": Annotated, "Any": Any, "Literal": Literal, "Path": Path}
    names["__name__"] = __name__
    exec(compile(ast.Module([main], []), file, "exec"), names)
    return names["main"]


def not_understood(error: Exception, parser: argparse.ArgumentParser) -> SkipformError:
    """The parser's message in one line; for a missing argument or an unknown option, with those that are accepted."""
    message = one_line(error, 400)
    missing = "the following arguments are required: "
    if message.startswith(missing):
        return SkipformError(f"missing: {message.removeprefix(missing)}; accepted: {parser.usage}")
    options = [
        option
        for action in parser._actions
        for option in action.option_strings
        if option.startswith("--") and option != "--print_shtab"
    ]
    return SkipformError(f"{message}; accepted: {', '.join(options)}" if "unrecognized" in message else message)


def _usage() -> str:
    width = max(map(len, STAGES))
    lines = [f"  {name:{width}}  {sentence}" for name, sentence in STAGES.items()]
    return "\n".join(["usage: skipform STAGE [options]      skipform STAGE --help", "", *lines, "", EXIT_STATUSES])


if __name__ == "__main__":
    sys.exit(main())
