"""Files that are written whole or not at all, read as data that nobody vouches for, and digests of what decides them.

A file is written under a temporary name in its folder, flushed to the disk, and renamed. A process locks its temporary
files and folders as long as it lives: those that nobody locks were left by a killed one, and are removed. What is read
is checked: it is text, JSON or YAML of a reasonable size, with the keys and types that its reader needs.
"""

import errno
import fcntl
import glob
import hashlib
import json
import math
import os
import platform
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from skipform.arguments import described, typed
from skipform.errors import SkipformError, one_line, shown

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
    except Exception as error:
        full = os.strerror(errno.ENOSPC)
        if full in str(error):  # libraries raise errors of their own, which do not name the file
            raise OSError(errno.ENOSPC, full, str(path)) from error
        raise
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
    """Write `value` to `path` as indented JSON, whole or not at all; a number that is NaN or infinite is null."""
    write_text(path, json.dumps(defined(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_json_lines(path: str | Path, values: Iterable[Any]) -> None:
    """Write one line of JSON for each value to `path`, whole or not at all; see `write_json`."""
    lines = [json.dumps(defined(value), ensure_ascii=False, allow_nan=False) for value in values]
    write_text(path, "".join(f"{line}\n" for line in lines))


def defined(value: Any) -> Any:
    """The value with null for what JSON has no number for."""
    if isinstance(value, dict):
        return {key: defined(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [defined(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_yaml(path: str | Path, value: Any) -> None:
    """Write `value` to `path` as YAML, whole or not at all; `read_yaml` returns an equal value."""
    write_text(path, yaml.dump(value, Dumper=_Dumper, sort_keys=False))


def read_text(path: str | Path) -> str:
    """The text of a UTF-8 file. Raises SkipformError, one line naming the file, if it cannot be read as such."""
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise SkipformError(f"{path}: cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise SkipformError(f"{path}: byte {error.start} is not UTF-8; accepted: text in UTF-8") from None


def read_json(path: str | Path) -> Any:
    """The value of a JSON file, in which every number is finite.

    Raises:
        SkipformError: it cannot be read, or is no JSON; one line that names the file and the place.
    """
    return json_value(read_text(path), path)


def json_value(text: str, where: str | Path) -> Any:
    """The value of a JSON text, in which every number is finite. SkipformError, beginning with `where`, for another."""
    try:
        return json.loads(text, parse_constant=_finite, parse_float=_finite)
    except RecursionError:
        raise SkipformError(f"{where}: not JSON: nested too deeply") from None
    except ValueError as error:
        raise SkipformError(f"{where}: not JSON: {one_line(error)}") from None


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:20]} is no finite number")
    return number


YAML_BYTES, YAML_NODES, YAML_DEPTH = 2**20, 20_000, 40  # the largest file of the project has 2,000 nodes, 7 deep


def read_yaml(path: str | Path) -> Any:
    """The value of a YAML file: null, booleans, numbers, texts, dates, lists and mappings with distinct keys.

    As in YAML 1.2, 1e-4 is a number, and 1:30 and 0777 are none (in YAML 1.1 they are 90 and 511). Tags (!!python/name)
    are not accepted. An alias counts as often as it is used, and a file of more than YAML_BYTES bytes, YAML_NODES
    values or YAML_DEPTH levels is refused while it is being read.

    Raises:
        SkipformError: it cannot be read, or is no such YAML; one line that names the file, the line and the column.
    """
    text = read_text(path)
    if len(text) > YAML_BYTES:
        raise SkipformError(f"{path}: {len(text):,} characters; accepted: at most {YAML_BYTES:,}")
    try:
        return yaml.load(text, _Loader)
    except (yaml.YAMLError, ValueError) as error:  # ValueError: 2026-99-99 is no date
        raise SkipformError(f"{path}: not YAML: {' '.join(str(error).split())}") from None


def yaml_value(text: str) -> Any:
    """The value of a text of the command line, by the rules of `read_yaml`; the text itself if it is no such YAML."""
    try:
        return yaml.load(text, _Loader)
    except (yaml.YAMLError, ValueError):
        return text


class _Loader(yaml.SafeLoader):
    """The YAML of `read_yaml`."""

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self.depth, self.nodes = 0, 0
        self.sizes: dict[str, int] = {}  # anchor -> the number of nodes that its alias stands for

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event: Any = self.peek_event()
        anchor, before, mark = event.anchor, self.nodes, event.start_mark
        if isinstance(event, yaml.AliasEvent):
            if anchor in self.anchors and anchor not in self.sizes:
                raise yaml.MarkedYAMLError(problem=f"the value &{anchor} holds itself", problem_mark=mark)
            self.nodes += self.sizes.get(anchor, 1)
        else:
            self.nodes += 1
            if event.tag not in (None, "!"):
                raise yaml.MarkedYAMLError(problem=f"the tag {event.tag} is not accepted", problem_mark=mark)
        if self.nodes > YAML_NODES or self.depth > YAML_DEPTH:
            limit = f"{YAML_NODES:,} values" if self.nodes > YAML_NODES else f"{YAML_DEPTH} levels"
            raise yaml.MarkedYAMLError(problem=f"more than {limit}", problem_mark=mark)
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        if anchor is not None:
            self.sizes[anchor] = self.nodes - before
        return node

    def resolve(self, kind: Any, value: Any, implicit: Any) -> str:
        tag = super().resolve(kind, value, implicit)
        is_number = tag in ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
        return self.DEFAULT_SCALAR_TAG if is_number and _OLD_NUMBER.match(value) else tag

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        keys: list[Any] = [key for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for key in keys:
            if key.value in seen:
                raise yaml.MarkedYAMLError(problem=f"the key {key.value!r} twice", problem_mark=key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Writes what `_Loader` reads: the text "1e5" in quotation marks."""


_OLD_NUMBER = re.compile(r"[-+]?(0[0-9_]+$|[0-9_.]+:)")
_EXPONENT = re.compile(r"[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$")
for _kind in (_Loader, _Dumper):
    _kind.add_implicit_resolver("tag:yaml.org,2002:float", _EXPONENT, list("-+0123456789"))


def fields(value: Any, accepted: Mapping[str, Any], where: str | Path) -> dict[str, Any]:
    """A mapping that was read from a file, as it is, after checking that it has the keys `accepted` and their types.

    Raises:
        SkipformError: no mapping, a key missing or a value of another type; one line that begins with `where`.
    """
    if not isinstance(value, dict):
        kind = "nothing" if value is None else f"a {type(value).__name__}"
        raise SkipformError(f"{where}: accepted is `key: value` entries, got {kind}")
    for key, hint in accepted.items():
        if key not in value:
            raise SkipformError(f"{where}: {key} is missing; accepted: {described(hint)}")
        typed(value[key], hint, f"{where}: {key}")
    return value


def check_scale(scale: str, experiment: Path) -> None:
    """Raises SkipformError unless there is a file of this scale for an experiment's file, ../scale/<scale>.yaml."""
    folder = experiment.parent.parent / "scale"
    scales = sorted(file.stem for file in folder.glob("*.yaml"))
    if scale not in scales:
        accepted = ", ".join(scales) or f"none, for want of {folder}"
        raise SkipformError(f"unknown scale {shown(scale)}; accepted: {accepted}")


def checksum(path: Path) -> str:
    """The SHA-256 of a file's content. Raises SkipformError if it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise SkipformError(f"{path}: cannot be read: {error.strerror or error}") from None


def digest_of(value: Any) -> str:
    """The SHA-256 of a JSON value, the same for the value written to a file and read back."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


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
