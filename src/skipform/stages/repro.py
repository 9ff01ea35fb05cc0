"""`skipform repro`: `dvc repro` which prints, before each stage, its number and the time left.

dvc writes its lock file and its table of readers and writers in place. What a kill leaves of them is put right first.
"""

import fcntl
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from skipform.errors import SkipformError
from skipform.files import write_json, write_text

SECONDS = Path("build/seconds.json")  # what each stage took when it last ran here
LOCK, COPY = Path("dvc.lock"), Path("build/dvc.lock")  # what dvc has run, and the last complete state of it
TABLE = Path(".dvc/tmp/rwlock")  # which process reads or writes which output


def main(*, force: bool = False) -> int:
    """Run every stage of dvc.yaml that is out of date; a stopped run continues after the last finished stage.

    Args:
        force: Run the stages that are up to date too.
    """
    if not Path("dvc.yaml").is_file():
        raise SkipformError("no dvc.yaml in this folder; run it in the top folder of the project")
    if shutil.which("dvc") is None:
        raise SkipformError("no program dvc on the PATH; accepted: `make repro`, or an active environment that has dvc")
    for line in recover():
        print(f"skipform repro: {line}", file=sys.stderr)
    names = stage_names(yaml.safe_load(Path("dvc.yaml").read_text()))
    seconds = _seconds()
    command = ["dvc", "repro", *(["--force"] if force else [])]
    left, running, since, start = set(names), "", 0.0, time.monotonic()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, bufsize=1, env=_environment()) as dvc:
        for line in dvc.stdout or ():
            started = re.match(r"(Running stage|Stage) '([^']+)'(?! is cached)", line)
            now = time.monotonic()
            if running and (started or line.startswith("Updating lock file")):
                seconds[running] = round(now - since, 1)
                write_json(SECONDS, seconds)
                running = ""
            if started and started[1] == "Running stage":
                running, since = started[2], now
                _copy_lock()  # dvc writes it again when this stage has ended
                known = f", about {_minutes(sum(seconds[n] for n in left))} left" if left <= set(seconds) else ""
                print(f"== stage {len(names) - len(left) + 1} of {len(names)}, {_minutes(now - start)} gone{known}")
            if started:
                left.discard(started[2])
            print(line, end="", flush=True)
    for line in recover():
        print(f"skipform repro: {line}", file=sys.stderr)
    if dvc.returncode < 0:
        print("skipform repro: dvc was killed; the same command goes on", file=sys.stderr)
    elif dvc.returncode:
        print(
            f"skipform repro: stage {running or '?'} failed; correct it and run the same command again", file=sys.stderr
        )
    return dvc.returncode


def recover() -> list[str]:
    """Put right what a killed dvc has left, as far as no other dvc is at work; one line for each thing done.

    A dvc.lock that is cut short is replaced by the copy, a complete one is copied. From the table of readers and
    writers the processes are removed that do not run, or are no dvc; a table that cannot be read is removed.
    """
    if not Path(".dvc").is_dir():  # dvc will say so
        return []
    with _locked(TABLE.with_name("lock")) as held:  # dvc holds it while it writes dvc.lock
        done = _recover_lock() if held else []
    with _locked(TABLE.with_name("rwlock.lock")) as held:
        return done + (_recover_table() if held else [])


def _recover_lock() -> list[str]:
    if _copy_lock() or not LOCK.is_file():
        return []
    if not complete(copy := _text_of_copy()):
        raise SkipformError(f"{LOCK}: cut short, and there is no copy in {COPY}; `git checkout {LOCK}` brings one back")
    write_text(LOCK, copy)
    return [f"{LOCK} was cut short; it is again as in {COPY}"]


def _text_of_copy() -> str:
    return COPY.read_text(encoding="utf-8", errors="replace") if COPY.is_file() else ""


def _copy_lock() -> bool:
    """Copy dvc.lock if it is complete; whether it is."""
    copy = _text_of_copy()
    try:
        text = LOCK.read_text(encoding="utf-8")
    except (FileNotFoundError, UnicodeDecodeError):
        return False
    if text != copy:
        if not complete(text, copy):
            return False
        write_text(COPY, text)
    return True


def complete(text: str, before: str = "") -> bool:
    """Whether a text is a whole dvc.lock that continues `before`: dvc accepts it, and no stages at the end are missing.

    One cut between two lines of its last stage passes: that stage is run again.
    """
    from dvc.schema import COMPILED_LOCKFILE_SCHEMA
    from dvc.utils.serialize import YAMLFileCorruptedError, parse_yaml
    from voluptuous import Invalid

    try:
        COMPILED_LOCKFILE_SCHEMA(parse_yaml(text, LOCK))
    except (YAMLFileCorruptedError, Invalid):
        return False
    stages, earlier = (re.findall(r"^  (\S.*):$", lock, re.MULTILINE) for lock in (text, before))
    return text.endswith("\n") and not (len(stages) < len(earlier) and earlier[: len(stages)] == stages)


def _recover_table() -> list[str]:
    from dvc.rwlock import SCHEMA
    from voluptuous import Invalid

    if not TABLE.is_file():
        return []
    try:
        table = SCHEMA(json.loads(TABLE.read_text(encoding="utf-8")))
    except (ValueError, RecursionError, Invalid):
        TABLE.unlink()
        return [f"{TABLE} could not be read; it is removed"]
    pids = {info["pid"] for info in table["write"].values()}
    pids |= {info["pid"] for infos in table["read"].values() for info in infos}
    if not (ended := {pid for pid in pids if not _is_dvc(pid)}):
        return []
    table["write"] = {path: info for path, info in table["write"].items() if info["pid"] not in ended}
    readers = {path: [info for info in infos if info["pid"] not in ended] for path, infos in table["read"].items()}
    table["read"] = {path: infos for path, infos in readers.items() if infos}
    write_json(TABLE, table)
    return [f"{TABLE} named a dvc that has ended (process {', '.join(map(str, sorted(ended)))}); it is removed there"]


def _is_dvc(pid: int) -> bool:
    """Whether a process runs, is no zombie, and is dvc."""
    import psutil  # dvc brings it

    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return False
        return any(Path(word).name == "dvc" for word in process.cmdline())
    except psutil.AccessDenied:
        return True
    except (psutil.NoSuchProcess, ValueError, OverflowError):
        return False


@contextmanager
def _locked(file: Path) -> Iterator[bool]:
    """Hold a lock of dvc's. Yields False if another process holds it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        held = True
    except BlockingIOError:
        held = False
    try:
        yield held
    finally:
        os.close(handle)


def _environment() -> dict[str, str]:
    """The environment for dvc. Outside a git repository, such as in an archive, a setting must tell it that."""
    here = Path.cwd()
    if any((folder / ".git").exists() for folder in (here, *here.parents)):
        return dict(os.environ)
    settings = Path("build/dvc/config")
    write_text(settings, "[core]\n    no_scm = true\n")
    return os.environ | {"DVC_SYSTEM_CONFIG_DIR": str(settings.parent.absolute())}


def _seconds() -> dict[str, float]:
    """What each stage took; nothing if that cannot be read."""
    try:
        return {name: float(value) for name, value in json.loads(SECONDS.read_text(encoding="utf-8")).items()}
    except (FileNotFoundError, ValueError, TypeError, AttributeError):
        return {}


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
