"""Where a command may write: every output is checked before any work, and only what a command has written is removed.

A folder that a command makes holds a marker, the file .skipform, which names the command and lists the files that it
writes there. A folder that holds any other file is refused, and so are the folder of another command and every output
inside a folder with a marker.
"""

import fcntl
import json
import os
import tempfile
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from skipform.errors import SkipformError
from skipform.files import TEMPORARY, original_of, write_json

MARKER = ".skipform"
WRITTEN = "written by skipform"  # in the marker, before the name of the command
WORKING = UNFINISHED, REPLACED = ".partial", ".replaced"  # endings of the folders in which a command works


def check_file(path: str | Path, option: str = "--out", *, suffixes: Collection[str]) -> None:
    """Refuse, before any work, a path to which no file with one of the `suffixes` can be written.

    An existing regular file with such a suffix may be replaced.

    Raises:
        SkipformError: names the option, the path, what stands in the way and what is accepted.
    """
    path = Path(path)
    if path.suffix not in suffixes:
        raise SkipformError(f"{option} {path}: unknown suffix {path.suffix!r}; accepted: {', '.join(suffixes)}")
    try:
        _check_place(path, option)
        if path.exists() and not path.is_file():
            raise SkipformError(f"{option} {path}: what stands there is no file; accepted: a new path, or a file")
    except OSError as error:
        raise _unwritable(path, option, error) from None


def check_folder(path: str | Path, option: str = "--out", command: str = "") -> None:
    """Refuse, before any work, a path to which no folder can be written, or that holds what `command` did not write.

    Raises:
        SkipformError: names the option, the path, what stands in the way and what is accepted.
    """
    shown, path = str(path) or "''", Path(path)
    try:
        if Path.cwd().is_relative_to(os.path.realpath(path)) or path.name == "..":
            raise SkipformError(
                f"{option} {shown}: the working directory is in that folder; accepted: a new or an empty folder"
            )
        _check_place(path, option)
        if path.exists() and not path.is_dir():
            raise SkipformError(f"{option} {shown}: a file stands there; accepted: a new or an empty folder")
        if path.is_mount():
            raise SkipformError(f"{option} {shown}: a file system is mounted there; accepted: a folder inside it")
        (written, listed) = _marker(path)
        if written not in (WRITTEN, _written(command)):
            raise SkipformError(f"{option} {shown}: {written}; accepted: a new or an empty folder")
        for file in _files(path):
            if not _is_listed(file, listed):
                raise SkipformError(
                    f"{option} {shown}: {path / file} stands there, and no command of skipform wrote it;"
                    " move it away, or give another folder"
                )
    except OSError as error:
        raise _unwritable(path, option, error) from None


def mark(folder: str | Path, files: Iterable[str], command: str = "") -> None:
    """Add to the list of what a command writes in `folder`: paths relative to it; one that ends in / is a folder with
    all it holds."""
    _, listed = _marker(Path(folder))
    write_json(Path(folder, MARKER), {_written(command): sorted(listed.union(files))})


def clear(folder: Path, keep: Collection[str] = ()) -> None:
    """Remove the files that the marker lists, but for those to `keep`, then empty folders, the marker and `folder`."""
    (written, listed), kept = _marker(folder), {*keep, MARKER}
    for file in list(_files(folder)):
        if _is_listed(file, listed) and str(file) not in kept:
            (folder / file).unlink()
    for place, _, _ in os.walk(folder, topdown=False):
        if place != str(folder) and not os.listdir(place):
            os.rmdir(place)
    if keep:
        write_json(folder / MARKER, {written: sorted(keep)})
        return
    (folder / MARKER).unlink(missing_ok=True)
    if folder.is_dir() and not os.listdir(folder):
        folder.rmdir()


def empty(folder: Path, files: Collection[str]) -> None:
    """Remove the named files of a folder without a marker, and what was half written of them.

    Raises:
        SkipformError: the folder holds another file; nothing is removed.
    """
    present = list(_files(folder))
    for file in present:
        if str(file) == MARKER or not _is_listed(file, files):
            raise SkipformError(f"{folder / file} stands there, and no run of skipform wrote it; move it away")
    for file in present:
        (folder / file).unlink()


def replace(new: Path, folder: Path) -> None:
    """Let `new` become `folder`. What `folder` was before is removed afterwards; see `recover`."""
    before = folder.with_name(folder.name + REPLACED)
    if folder.exists():
        folder.rename(before)
    new.rename(folder)
    clear(before)


def recover(folder: Path) -> None:
    """Finish or undo a `replace` that was killed."""
    before = folder.with_name(folder.name + REPLACED)
    if before.exists() and not folder.exists():
        before.rename(folder)
    clear(before)


@contextmanager
def alone(folder: Path, command: str) -> Iterator[None]:
    """Lock a folder: two processes that write to it would spoil the results of both. A kill unlocks it."""
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise SkipformError(
            f"{folder}: another `skipform {command}` is writing there; give one of them another --out"
        ) from None
    else:
        yield
    finally:
        os.close(handle)


@contextmanager
def work_folder(out: str | Path, command: str) -> Iterator[Path]:
    """Check the JSON file `out`, and yield OUT.partial, locked, to store parts of it.

    The folder is removed at the end; after an error only if nothing is stored there.
    """
    check_file(out, suffixes=[".json"])
    folder = Path(f"{out}{UNFINISHED}")
    check_folder(folder)
    with alone(folder, command):
        try:
            yield folder
            clear(folder)
        finally:
            if all(str(file) == MARKER for file in _files(folder)):
                clear(folder)


def _check_place(path: Path, option: str) -> None:
    """What holds for files and folders alike. Raises OSError where nothing can be written."""
    for link in (path, *path.absolute().parents):
        if link.is_symlink() and (link == path or not link.exists()):
            raise SkipformError(f"{option} {path}: {link} is a symbolic link; accepted: the path that it leads to")
    parent = Path(os.path.realpath(path.parent))
    above = (parent, *parent.parents)
    for folder in above:
        if (folder / MARKER).is_file():
            raise SkipformError(f"{option} {path}: {folder} is the output of one command; accepted: a path outside it")
    existing = next(folder for folder in above if folder.exists())
    if not existing.is_dir():
        raise SkipformError(f"{option} {path}: {existing} is a file; accepted: a path in a folder")
    # The longest name that may be needed is looked up: that fails if it is too long.
    (existing / f".{path.name}{UNFINISHED}{TEMPORARY}12345678{path.suffix}").exists()
    with tempfile.TemporaryFile(dir=existing) as file:  # without a name, where the system can do so
        file.write(bytes(2**16))  # a full disk still takes empty files
        file.flush()
        os.fsync(file.fileno())


def _unwritable(path: Path, option: str, error: OSError) -> SkipformError:
    return SkipformError(f"{option} {path}: {error.strerror}; accepted: a path that can be written")


def _files(folder: Path) -> Iterator[Path]:
    """The files and symbolic links below a folder, relative to it, in order. Raises OSError if one cannot be read."""

    def fail(error: OSError) -> None:
        raise error

    if not folder.exists():
        return
    for place, folders, files in os.walk(folder, onerror=fail):
        folders.sort()
        links = [name for name in folders if Path(place, name).is_symlink()]
        for name in sorted([*files, *links]):
            yield Path(place, name).relative_to(folder)


def _written(command: str) -> str:
    return f"{WRITTEN} {command}".strip()


def _marker(folder: Path) -> tuple[str, set[str]]:
    """The content of the marker: who wrote the folder, and the list of its files, empty without a marker."""
    marker = folder / MARKER
    if not marker.is_file():
        return WRITTEN, set()
    try:
        ((written, files),) = json.loads(marker.read_text(encoding="utf-8")).items()
        return written, {str(Path(file)) + "/" * file.endswith("/") for file in files}
    except (ValueError, TypeError, AttributeError):
        raise SkipformError(f"{marker}: no list of what skipform wrote; move {folder} away") from None


def _is_listed(file: Path, listed: Collection[str]) -> bool:
    """Whether a file is in the list, is the marker, or is a temporary file of one of these."""
    if str(file) in listed or str(file) == MARKER or any(f"{folder}/" in listed for folder in file.parents):
        return True
    original = original_of(file)
    return original is not None and _is_listed(original, listed)
