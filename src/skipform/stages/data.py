"""Name the data sets and ImageNet weights that the experiments need and that are missing, or fetch them.

    skipform data                                 what is missing at the scale of params.yaml, all of it at once
    skipform data --download                      fetch it, except what is fetched by name only (COCO: 20 GB)
    skipform data coco2017 --download             fetch one set

The files are in SKIPFORM_DATA, or ./data. What has arrived is checked; an interrupted download is continued by the same
command. At the scales smoke and embedded nothing is needed: their data come with installed packages. Exit status 2 if a
set is missing, after all that are have been listed with size, licence, source and the command that fetches them.
"""

import argparse
import hashlib
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from skipform import shipped
from skipform.errors import SkipformError
from skipform.files import fields, read_yaml, write_json
from skipform.outputs import check_file
from skipform.stages.cli import not_understood
from skipform.training.inventory import Needed, named, needed

EXPERIMENTS = ["experiments/survey", "experiments/claims"]  # of the pipeline


def main(argv: list[str]) -> None:
    options = _options(argv)
    scale, root = options.scale or _scale(Path("params.yaml")), options.root or _root()
    if options.out is not None:
        check_file(options.out, suffixes=[".json"])
    files = [file for folder in options.experiments for file in _experiments(Path(folder))]
    wanted = needed(files, scale, root)
    if options.names:
        wanted = {name: wanted.get(name) or named(name, root) for name in options.names}
    missing = {name: damaged for name, one in wanted.items() if (damaged := one.damaged(root))}
    if options.download:
        for name in [name for name in missing if name in options.names or not wanted[name].entry.by_name]:
            wanted[name].prepare(root)
            print(f"{name}: fetched and checked, in {root}", flush=True)
            del missing[name]
    if missing:
        _print_table([wanted[name] for name in missing], missing, scale, root)
        commands = " and ".join(_commands([wanted[name] for name in missing], options))
        raise SkipformError(f"missing or damaged: {', '.join(missing)}; fetch them with {commands}")
    if options.out is not None:
        write_json(options.out, {"scale": scale, "sets": {name: record(one, root) for name, one in wanted.items()}})
    print(
        f"scale {scale}: {', '.join(wanted)} in {root}" if wanted else f"scale {scale}: no data set has to be fetched"
    )


def record(one: Needed, root: str) -> dict[str, Any]:
    """The number of files of a set and a digest of their names and checksums; the same on every machine."""
    sums = "".join(f"{checksum} {file}\n" for file, checksum in sorted(one.checksums(root).items()))
    return {"files": sums.count("\n"), "sha256": hashlib.sha256(sums.encode()).hexdigest()}


def _print_table(sets: list[Needed], missing: dict[str, dict[Path, str]], scale: str, root: str) -> None:
    """Print what is missing: its size, licence and source, and the experiments that need it."""
    heads = ("data set", "size", "state", "licence", "source")
    rows = [
        (one.name, _bytes(one.entry.size), _state(missing[one.name]), one.entry.licence, one.entry.home) for one in sets
    ]
    widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]
    print(f"needed at scale {scale}, and not in the folder {root} (SKIPFORM_DATA names another one):\n")
    for row in (heads, *rows):
        print("  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    print()
    for one in (one for one in sets if one.experiments):
        print(f"  {one.name.ljust(widths[0])}  for {', '.join(dict.fromkeys(one.experiments))}")
    print(flush=True)


def _commands(sets: list[Needed], options: argparse.Namespace) -> list[str]:
    """The commands that fetch the sets, each with the size of what it fetches: one for all that were asked for by name;
    otherwise one for all that may be fetched without it, and one for each of the others."""
    groups = [(options.names, sets)]
    if not options.names:
        together = [one for one in sets if not one.entry.by_name]
        alone = [one for one in sets if one.entry.by_name]
        groups = [([], together)] * bool(together) + [([one.name], [one]) for one in alone]
    given = ["--scale", options.scale] if options.scale and options.scale != _scale(Path("params.yaml")) else []
    given += ["--root", options.root] if options.root else []
    given += ["--experiments", *options.experiments] if options.experiments != EXPERIMENTS else []
    return [
        f"`{shlex.join(['skipform', 'data', *names, *given, '--download'])}`"
        f" ({_bytes(sum(one.entry.size for one in some))})"
        for names, some in groups
    ]


def _state(damaged: dict[Path, str]) -> str:
    """In a few words, what is wrong with these files."""
    states = list(damaged.values())
    if set(states) == {"missing"}:
        return "missing"
    return ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))


def _bytes(size: int) -> str:
    """A size in words: 170 MB, 2.0 GB."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{max(1, round(size / 1e6))} MB"


def _experiments(folder: Path) -> Iterable[Path]:
    if not folder.is_dir():  # outside a checkout, experiments/survey is the folder where skipform is installed
        folder = shipped.root() / folder
    if not (files := sorted(folder.glob("*.yaml"))):
        raise SkipformError(f"--experiments {folder}: no experiment file (*.yaml) in it")
    return files


def _scale(params: Path) -> str:
    """The scale of a params.yaml; embedded where there is none."""
    if not params.is_file():
        return "embedded"
    return fields(read_yaml(params), {"scale": str}, params)["scale"]


def _root() -> str:
    from skipform.runs import data_root

    return data_root()


def _options(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="skipform data",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        exit_on_error=False,
    )
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help="a set, or weights/MODEL; by default all that is needed"
    )
    parser.add_argument("--download", action="store_true", help="fetch what is missing or damaged")
    parser.add_argument("--scale", help="by default that of params.yaml, or embedded")
    parser.add_argument("--root", metavar="DIR", help="the folder of the data; by default SKIPFORM_DATA, or ./data")
    parser.add_argument(
        "--out", metavar="FILE", help="a JSON file for the number and a digest of the files of each set"
    )
    parser.add_argument(
        "--experiments",
        nargs="+",
        metavar="DIR",
        default=EXPERIMENTS,
        help="the folders of the experiments; by default those of the pipeline",
    )
    try:
        options, unknown = parser.parse_known_args(argv)
        if unknown:
            raise argparse.ArgumentError(None, f"unrecognized arguments: {' '.join(unknown)}")
    except argparse.ArgumentError as error:
        raise not_understood(error, parser) from None
    return options
