"""`skipform repro`: the stages of dvc.yaml that are out of date, two at once, with the time left.

DVC says which stages there are and which are out of date, and runs each of them (`dvc repro --single-item`). Plain
`dvc repro` does the same one stage at a time: it takes longer, for a stage imports, reads and writes on one core.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import NamedTuple

import psutil

from skipform.errors import SkipformError
from skipform.files import fields, read_json, read_yaml, write_json, write_text
from skipform.recovery import recover

SECONDS = Path("build/seconds.json")  # what each stage took when it last ran here
FIRST = "data"  # runs before all others, which do not depend on it: without the data nothing is begun
Graph = dict[str, set[str]]  # stage -> the stages whose outputs it reads


def main(*, force: bool = False, jobs: int = 0) -> int:
    """Run every stage of dvc.yaml that is out of date; a stopped run continues after the last finished stages.

    Args:
        force: Run the stages that are up to date too.
        jobs: Stages that run at once; by default 2 where the scale trains on the CPU, otherwise 1.
    """
    if not Path("dvc.yaml").is_file():
        raise SkipformError("no dvc.yaml in this folder; run it in the top folder of the project")
    if shutil.which("dvc") is None:
        raise SkipformError("no program dvc on the PATH; accepted: `make repro`, or an active environment that has dvc")
    _recover()
    with ThreadPoolExecutor() as pool:
        changed = pool.submit(_ask, "status", "--json")
        graph = stages(_ask("dag", "--dot"))
    out_of_date = set(graph) if force else with_descendants(graph, json.loads(changed.result()))
    if not out_of_date:
        print(f"all {len(graph)} stages are up to date")
        return 0
    return _run(graph, out_of_date, jobs or default_jobs(), force)


def stages(dot: str) -> Graph:
    """The stages and what they depend on, from what `dvc dag --dot` prints."""
    graph: Graph = {name: set() for name in re.findall(r'^"([^"]+)";', dot, re.MULTILINE)}
    for before, after in re.findall(r'^"([^"]+)" -> "([^"]+)";', dot, re.MULTILINE):
        graph[after].add(before)
    return graph


def with_descendants(graph: Graph, names: Iterable[str]) -> set[str]:
    """The named stages and all that depend on them."""
    stages = set(names) & set(graph)
    while more := {name for name, before in graph.items() if before & stages} - stages:
        stages |= more
    return stages


def default_jobs() -> int:
    """2 where the scale of params.yaml trains on the CPU; an accelerator is one stage's alone."""
    scale = fields(read_yaml("params.yaml"), {"scale": str}, "params.yaml")["scale"]
    file = f"experiments/scale/{scale}.yaml"
    trainer = fields(read_yaml(file), {"trainer": dict}, file)["trainer"]
    return 2 if trainer.get("accelerator") == "cpu" else 1


def _run(graph: Graph, left: set[str], jobs: int, force: bool) -> int:
    """Run the stages `left`, each after those that it depends on; the exit status of the first that fails."""
    seconds = _seconds()
    waiting, start, failed = [name for name in graph if name in left], time.monotonic(), 0
    running: dict[Future[Outcome], str] = {}
    with ThreadPoolExecutor(jobs) as pool:
        try:
            while running or (waiting and not failed):
                ready = [] if failed else [name for name in waiting if not graph[name] & left]
                ready = [FIRST] if FIRST in ready else [] if FIRST in running.values() else ready
                for name in ready[: jobs - len(running)]:
                    waiting.remove(name)
                    known = (
                        f", about {_minutes(sum(seconds[n] for n in left) / jobs)} left" if left <= set(seconds) else ""
                    )
                    gone = _minutes(time.monotonic() - start)
                    print(
                        f"== stage {len(graph) - len(waiting)} of {len(graph)}: {name}, {gone} gone{known}", flush=True
                    )
                    running[pool.submit(_reproduce, name, force, jobs == 1)] = name
                for done in wait(running, return_when=FIRST_COMPLETED).done:
                    name, outcome = running.pop(done), done.result()
                    print(outcome.output, end="", flush=True)
                    if outcome.status:
                        failed = failed or outcome.status
                        if outcome.status < 0:
                            continue
                        print(
                            f"skipform repro: stage {name} failed; correct it and run the same command again",
                            file=sys.stderr,
                        )
                        continue
                    left.remove(name)
                    if outcome.ran:
                        seconds[name] = outcome.seconds
                        write_json(SECONDS, seconds)
        except BaseException:  # Ctrl-C, say: no stage goes on alone
            for process in psutil.Process().children(recursive=True):
                process.terminate()
            raise
        finally:
            _recover()
    if failed < 0:
        print("skipform repro: dvc was killed; the same command goes on", file=sys.stderr)
    return failed


def _recover() -> None:
    """Put right what a killed dvc has left, and say so."""
    for line in recover():
        print(f"skipform repro: {line}", file=sys.stderr)


class Outcome(NamedTuple):
    """What became of a stage."""

    status: int
    ran: bool  # or it was up to date, as its dependencies are the same after all
    seconds: float
    output: str


def _reproduce(name: str, force: bool, alone: bool) -> Outcome:
    """Run one stage. Its output is printed as it comes if it runs alone; otherwise it is returned."""
    # Another stage may hold DVC's lock for a moment, while it takes the digests of its outputs.
    command = ["dvc", "--wait-for-lock", "repro", "--single-item", *(["--force"] if force else []), name]
    start, lines = time.monotonic(), []
    errors = None if alone else subprocess.STDOUT
    environment = _environment()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, bufsize=1, env=environment) as dvc:
        for line in dvc.stdout or ():
            lines.append(line)
            if alone:
                print(line, end="", flush=True)
    output = "".join(lines)
    ran = "Running stage" in output
    return Outcome(dvc.returncode, ran, round(time.monotonic() - start, 1), "" if alone else output)


def _ask(*arguments: str) -> str:
    """What DVC prints to `dvc ARGUMENTS`."""
    command = ["dvc", "--wait-for-lock", *arguments]
    answer = subprocess.run(command, capture_output=True, text=True, env=_environment())
    if answer.returncode:
        reason = answer.stderr.strip().splitlines() or [f"exit status {answer.returncode}"]
        raise SkipformError(f"dvc {' '.join(arguments)}: {reason[-1]}")
    return answer.stdout


def _environment() -> dict[str, str]:
    """The environment for dvc. Outside a git repository, such as in an archive, a setting must tell it that."""
    here = Path.cwd()
    if any((folder / ".git").exists() for folder in (here, *here.parents)):
        return dict(os.environ)
    settings = Path("build/dvc/config")
    write_text(settings, "[core]\n    no_scm = true\n")
    return os.environ | {"DVC_SYSTEM_CONFIG_DIR": str(settings.parent.absolute())}


def _seconds() -> dict[str, float]:
    """Stage -> seconds when it last ran here. They only say how much time is left: a damaged file counts as none."""
    try:
        seconds = read_json(SECONDS)
    except SkipformError:
        return {}
    numbers = isinstance(seconds, dict) and all(type(value) in (int, float) for value in seconds.values())
    return seconds if numbers else {}


def _minutes(seconds: float) -> str:
    return f"{int(seconds) // 60} min {int(seconds) % 60:02d} s"
