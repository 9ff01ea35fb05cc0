"""`skipform repro`: `dvc repro` which prints, before each stage, its number and the time left."""

import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from skipform.errors import SkipformError
from skipform.files import read_json, read_yaml, write_json

SECONDS = Path("build/seconds.json")  # what each stage took when it last ran here


def main(*, force: bool = False) -> int:
    """Run every stage of dvc.yaml that is out of date; a stopped run continues after the last finished stage.

    Args:
        force: Run the stages that are up to date too.
    """
    if not Path("dvc.yaml").is_file():
        raise SkipformError("no dvc.yaml in this folder; run it in the top folder of the project")
    names = stage_names(read_yaml("dvc.yaml"))
    seconds = _seconds()
    command = ["dvc", "repro", *(["--force"] if force else [])]
    left, running, since, start = set(names), "", 0.0, time.monotonic()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, bufsize=1) as dvc:
        for line in dvc.stdout or ():
            started = re.match(r"(Running stage|Stage) '([^']+)'(?! is cached)", line)
            now = time.monotonic()
            if running and (started or line.startswith("Updating lock file")):
                seconds[running] = round(now - since, 1)
                write_json(SECONDS, seconds)
                running = ""
            if started and started[1] == "Running stage":
                running, since = started[2], now
                known = f", about {_minutes(sum(seconds[n] for n in left))} left" if left <= set(seconds) else ""
                print(f"== stage {len(names) - len(left) + 1} of {len(names)}, {_minutes(now - start)} gone{known}")
            if started:
                left.discard(started[2])
            print(line, end="", flush=True)
    if dvc.returncode:
        print(
            f"skipform repro: stage {running or '?'} failed; correct it and run the same command again", file=sys.stderr
        )
    return dvc.returncode


def _seconds() -> dict[str, float]:
    """Stage -> seconds when it last ran here. They only say how much time is left: a damaged file counts as none."""
    try:
        seconds = read_json(SECONDS)
    except SkipformError:
        return {}
    numbers = isinstance(seconds, dict) and all(type(value) in (int, float) for value in seconds.values())
    return seconds if numbers else {}


def stage_names(pipeline: dict[str, Any]) -> list[str]:
    """The stages of a dvc.yaml, those of a foreach one by one ("fit@resnet")."""
    known = {key: value for block in pipeline.get("vars", []) for key, value in block.items()}
    names = []
    for name, stage in pipeline["stages"].items():
        items = stage.get("foreach")
        if isinstance(items, str):
            items = known[items.removeprefix("${").removesuffix("}")]
        names += [name] if items is None else [f"{name}@{item}" for item in items]
    return names


def _minutes(seconds: float) -> str:
    return f"{int(seconds) // 60} min {int(seconds) % 60:02d} s"
