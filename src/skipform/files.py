"""Files that are written whole or not at all, and digests of what decides their content.

A file is written under a temporary name in its folder, flushed to the disk, and renamed. A process locks its temporary
files and folders as long as it lives: those that nobody locks were left by a killed one, and are removed.
"""

import fcntl
import glob
import hashlib
import json
import os
import platform
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

TEMPORARY = ".skipform."  # in every temporary name: .NAME.skipform.RANDOM


@contextmanager
def whole(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path to write to; on success it becomes `path`, on any error it is removed."""
    path = Path(path)
    temporary, handle = _temporary(path)
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        # mkstemp makes the file private; the finished one gets the permissions any new file has.
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        temporary.replace(path)
    finally:
        os.close(handle)
        temporary.unlink(missing_ok=True)


@contextmanager
def temporary_folder(path: str | Path) -> Iterator[Path]:
    """Yield a new folder next to `path`, which is removed at the end."""
    temporary, handle = _temporary(Path(path), folder=True)
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        os.close(handle)


def original_of(temporary: Path) -> Path | None:
    """The path for which `whole` has made a temporary file of this name, or None for any other name."""
    match = re.fullmatch(rf"\.(.+){re.escape(TEMPORARY)}\w{{8}}(\.[^.]*)?", temporary.name)
    return temporary.with_name(match[1]) if match else None


def _temporary(path: Path, folder: bool = False) -> tuple[Path, int]:
    """A new temporary file or folder next to `path`, and a handle that locks it until it is closed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(path)
    while True:
        prefix = f".{path.name}{TEMPORARY}"
        if folder:
            name = tempfile.mkdtemp(dir=path.parent, prefix=prefix)
            handle = os.open(name, os.O_RDONLY)
        else:
            handle, name = tempfile.mkstemp(dir=path.parent, prefix=prefix, suffix=path.suffix)
        with suppress(OSError):  # a file system without locks: then nothing counts as abandoned there
            fcntl.flock(handle, fcntl.LOCK_EX)
        if os.path.exists(name):  # else another process took it for abandoned before it was locked
            return Path(name), handle
        os.close(handle)


def _remove_abandoned(path: Path) -> None:
    """Remove the temporary files and folders for `path` that nobody locks."""
    for temporary in path.parent.glob(f".{glob.escape(path.name)}{TEMPORARY}*"):
        with suppress(OSError):  # another process writes it, or has just renamed it
            handle = os.open(temporary, os.O_RDONLY | os.O_NOFOLLOW)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(temporary) if temporary.is_dir() else temporary.unlink()
            finally:
                os.close(handle)


def write_text(path: str | Path, text: str) -> None:
    """Write `text` to `path`, whole or not at all."""
    with whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | Path, value: Any) -> None:
    """Write `value` to `path` as indented JSON, whole or not at all."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


# The packages whose version may change a number.
PACKAGES = (
    "skipform",
    "torch",
    "torchvision",
    "lightning",
    "torchmetrics",
    "numpy",
    "scikit-learn",
    "babel",
    "safetensors",
)


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that compute."""
    return {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}


def fingerprint(value: Any, sources: Iterable[Path]) -> str:
    """A digest of what decides a result: a JSON value (its configuration), the sources, the versions."""
    digest = hashlib.sha256(json.dumps([value, versions()], sort_keys=True).encode())
    for source in sorted(sources):
        digest.update(source.read_bytes())
    return digest.hexdigest()
