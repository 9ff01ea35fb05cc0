"""What a killed dvc leaves behind, put right.

dvc writes its lock file and its table of readers and writers in place. A kill in between leaves a part of a file, and
in the table the entries of a process that has ended; every later dvc would then fail.
"""

import fcntl
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from skipform.errors import SkipformError
from skipform.files import write_json, write_text

LOCK, COPY = Path("dvc.lock"), Path("build/dvc.lock")  # what dvc has run, and the last complete state of it
TABLE = Path(".dvc/tmp/rwlock")  # which process reads or writes which output


def recover() -> list[str]:
    """Put right what a killed dvc has left, as far as no other dvc is at work; one line for each thing done.

    A dvc.lock that is cut short is replaced by the copy, a complete one is copied. From the table of readers and
    writers the processes are removed that do not run, or are no dvc; a table that cannot be read is removed.
    """
    if not Path(".dvc").is_dir():  # dvc will say so
        return []
    with locked(TABLE.with_name("lock")) as held:  # dvc holds it while it writes dvc.lock
        done = _recover_lock() if held else []
    with locked(TABLE.with_name("rwlock.lock")) as held:
        return done + (_recover_table() if held else [])


def _recover_lock() -> list[str]:
    if copy_lock() or not LOCK.is_file():
        return []
    if not complete(copy := _text_of_copy()):
        raise SkipformError(f"{LOCK}: cut short, and there is no copy in {COPY}; `git checkout {LOCK}` brings one back")
    write_text(LOCK, copy)
    return [f"{LOCK} was cut short; it is again as in {COPY}"]


def _text_of_copy() -> str:
    return COPY.read_text(encoding="utf-8", errors="replace") if COPY.is_file() else ""


def copy_lock() -> bool:
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
    if not (ended := {pid for pid in pids if not is_dvc(pid)}):
        return []
    table["write"] = {path: info for path, info in table["write"].items() if info["pid"] not in ended}
    readers = {path: [info for info in infos if info["pid"] not in ended] for path, infos in table["read"].items()}
    table["read"] = {path: infos for path, infos in readers.items() if infos}
    write_json(TABLE, table)
    return [f"{TABLE} named a dvc that has ended (process {', '.join(map(str, sorted(ended)))}); it is removed there"]


def is_dvc(pid: int) -> bool:
    """Whether a process runs, is no zombie, and is dvc."""
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
def locked(file: Path) -> Iterator[bool]:
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
