"""The pipeline of dvc.yaml, asked and run through DVC's own commands."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from skipform import recovery
from skipform.cores import SHARE
from skipform.errors import SkipformError, one_line
from skipform.files import read_json, write_text

Graph = dict[str, set[str]]  # stage -> the stages whose outputs it reads
SECONDS = Path("build/seconds.json")  # stage -> what it took when it last ran here
PUBLISHED = Path("results/seconds.json")  # scale -> the same for all stages, on the machine that made the records
SOURCES = "sources"  # the stage that tells which others a change of a source concerns
ADVICE = "Use `dvc push`"  # which dvc gives after every stage; this pipeline has no remote storage


def prepare() -> None:
    """Put right what a killed dvc has left, and say so. Raises SkipformError where there is no pipeline, or no dvc."""
    if not Path("dvc.yaml").is_file():
        raise SkipformError("no dvc.yaml in this folder; accepted: the top folder of a checkout of the project")
    if shutil.which("dvc") is None:
        raise SkipformError("no program dvc on the PATH; accepted: `make repro`, or an active environment that has dvc")
    recover()


def status() -> dict[str, Any]:
    """What `dvc status --json` prints, after the lists of sources on which the stages depend have been renewed.

    Raises:
        SkipformError: a stage cannot be read, or the sources of an experiment cannot be found.
    """
    changed: dict[str, Any] = json.loads(ask("status", "--json"))
    if SOURCES not in changed:
        return changed
    if reproduce(SOURCES, force=False, alone=True).status:
        raise SkipformError(f"stage {SOURCES} failed; correct it and run the same command again")
    changed = json.loads(ask("status", "--json"))
    return changed


def recover() -> None:
    """Put right what a killed dvc has left, and say so."""
    for line in recovery.recover():
        print(f"skipform: {line}", file=sys.stderr)


def stages(dot: str) -> Graph:
    """The stages and what they depend on, from what `dvc dag --dot` prints."""
    graph: Graph = {name: set() for name in re.findall(r'^"([^"]+)";', dot, re.MULTILINE)}
    for before, after in re.findall(r'^"([^"]+)" -> "([^"]+)";', dot, re.MULTILINE):
        graph[after].add(before)
    return graph


class Outcome(NamedTuple):
    """What became of a stage."""

    status: int
    ran: bool  # or it was up to date, as its dependencies are the same after all
    seconds: float
    output: str


def reproduce(name: str, force: bool, alone: bool, share: int | None = None) -> Outcome:
    """Run one stage. Its output is printed as it comes if it runs alone; otherwise it is returned.

    share: the number of cores that it may use, where others run beside it.
    """
    # Another stage may hold DVC's lock for a moment, while it takes the digests of its outputs.
    command = ["dvc", "--wait-for-lock", "repro", "--single-item", *(["--force"] if force else []), name]
    start, lines = time.monotonic(), []
    errors = None if alone else subprocess.STDOUT
    variables = environment() | ({} if share is None else {SHARE: str(share)})
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, bufsize=1, env=variables) as dvc:
        for line in dvc.stdout or ():
            if line.startswith(ADVICE):
                continue
            lines.append(line)
            if alone:
                print(line, end="", flush=True)
    output = "".join(lines)
    ran = "Running stage" in output
    return Outcome(dvc.returncode, ran, round(time.monotonic() - start, 1), "" if alone else output)


def end_all() -> None:
    """End all processes that this one has started, and what these have started, whatever signal arrives meanwhile."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
    try:
        for process in psutil.Process().children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                process.terminate()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def seconds_of(value: Any) -> dict[str, float]:
    """Stage -> seconds, as SECONDS holds it. They only say how much time is left: a damaged value counts as none."""
    numbers = isinstance(value, dict) and all(type(number) in (int, float) and number > 0 for number in value.values())
    return value if numbers else {}


def read_seconds(path: Path) -> dict[str, Any]:
    """The content of SECONDS or PUBLISHED; nothing where the file is missing or damaged."""
    try:
        value = read_json(path)
    except SkipformError:
        return {}
    return value if isinstance(value, dict) else {}


def ask(*arguments: str) -> str:
    """What DVC prints to `dvc ARGUMENTS`."""
    command = ["dvc", "--wait-for-lock", *arguments]
    answer = subprocess.run(command, capture_output=True, text=True, env=environment())
    if answer.returncode:
        reason = one_line(answer.stderr, 1000) if answer.stderr.strip() else f"exit status {answer.returncode}"
        raise SkipformError(f"dvc {' '.join(arguments)}: {reason}")
    return answer.stdout


def environment() -> dict[str, str]:
    """The environment for dvc. Outside a git repository, such as in an archive, a setting must tell it that."""
    here = Path.cwd()
    if any((folder / ".git").exists() for folder in (here, *here.parents)):
        return dict(os.environ)
    settings = Path("build/dvc/config")
    write_text(settings, "[core]\n    no_scm = true\n")
    return os.environ | {"DVC_SYSTEM_CONFIG_DIR": str(settings.parent.absolute())}
