"""The command line: `skipform STAGE ...`; a stage is a file of this folder, imported when it is the one asked for."""

import argparse
import ast
import inspect
import sys
from collections.abc import Callable
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import skipform
from skipform.errors import InternalError, SkipformError

STAGES = {
    "repro": "run the pipeline: every stage of dvc.yaml that is out of date",
    "verify": "check the statements of the paper and print them as a table; exit 1 if one fails",
    "grammar": "rewrite the architectures of the survey and count what they become",
    "fit": "train what an experiment file describes",
    "measure": "measure the expressive power of trained networks",
    "claims": "measure trained networks for the claims of the abstract: regions on a plane, ranks, exact copies",
    "examples": "show trained networks a few held-out inputs, for the notebooks",
    "rewrite": "rewrite a torch model into affine maps, ReLU and concatenation",
    "regions": "count and draw the linear regions of a network on a plane",
    "list": "list the networks, data sets and experiments there are",
    "publish": "copy the summaries of finished runs into results/",
    "notebooks": "execute the analysis: figures, tables, numbers",
    "paper": "typeset the paper",
    "derive": "renew the dependencies of the pipeline's stages on the sources",
}


def main(argv: list[str] | None = None) -> int:
    """Run one stage; a SkipformError or an InternalError becomes one line and exit status 2."""
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in ("-h", "--help"):
        print(_usage())
        return 0 if argv else 2
    if argv[0] == "--version":
        print(f"skipform {skipform.__version__}")
        return 0
    stage, *rest = argv
    try:
        if stage not in STAGES:
            close = get_close_matches(stage, STAGES, n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise SkipformError(f"unknown stage {stage!r}{hint} Accepted: {', '.join(STAGES)}")
        # `fit` reads its own command line: what it accepts depends on the nets, the data and the tasks there are.
        arguments: dict[str, Any] = {"argv": rest} if stage == "fit" else _options(stage, rest)
        return import_module(f"skipform.stages.{stage}").main(**arguments) or 0
    except (SkipformError, InternalError) as error:
        print(f"skipform {stage}: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"skipform {stage}: interrupted; run the same command again to go on", file=sys.stderr)
        return 130


def _options(stage: str, argv: list[str]) -> dict[str, Any]:
    """The arguments of a stage's `main`, read from the command line; its docstring is the help."""
    from jsonargparse import ArgumentError, ArgumentParser

    run = declaration(stage)
    parser = ArgumentParser(prog=f"skipform {stage}", description=inspect.getdoc(run), exit_on_error=False)
    parser.add_function_arguments(run, as_positional=True)
    # A yes-or-no option may stand alone: --all is --all=true.
    switches = {
        f"--{name}" for name, parameter in inspect.signature(run).parameters.items() if parameter.annotation is bool
    }
    following = [*argv[1:], ""]
    argv = [
        f"{word}=true" if word in switches and after not in ("true", "false") else word
        for word, after in zip(argv, following, strict=False)
    ]
    try:
        options = parser.parse_args(["--out" if word == "-o" else word for word in argv])
    except ArgumentError as error:
        raise not_understood(error, parser) from None
    return parser.instantiate_classes(options).as_dict()


def declaration(stage: str) -> Callable[..., int | None]:
    """The `main` of a stage without its body: parameters, annotations, docstring.

    A stage imports torch at its top, which takes seconds. To answer --help or to refuse an option, only this much of
    the file is executed, so the annotations of `main` have to do with built-in types, Any, Literal and Path.
    """
    file = Path(__file__).with_name(f"{stage}.py")
    tree = ast.parse(file.read_text(encoding="utf-8"))
    (main,) = (node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "main")
    main.body = main.body[:1]  # the docstring
    names: dict[str, Any] = {"Any": Any, "Literal": Literal, "Path": Path, "__name__": __name__}
    exec(compile(ast.Module([main], []), file, "exec"), names)
    return names["main"]


def not_understood(error: Exception, parser: argparse.ArgumentParser) -> SkipformError:
    """The parser's message in one line; if it is about an unknown option, with the options that the parser knows."""
    message = " ".join(str(error).split())
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
    return "\n".join(["usage: skipform STAGE [options]      skipform STAGE --help", "", *lines])
