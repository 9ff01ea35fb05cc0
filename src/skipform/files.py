"""Files that are written whole or not at all, and digests of what decides their content.

A file is written under a temporary name in its folder, flushed to the disk, and renamed.
"""

import hashlib
import json
import math
import os
import platform
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any


@contextmanager
def whole(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path to write to; on success it becomes `path`, on any error it is removed."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=path.suffix)
    os.close(handle)
    temporary = Path(name)
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
        temporary.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write `text` to `path`, whole or not at all."""
    with whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | Path, value: Any) -> None:
    """Write `value` to `path` as indented JSON, whole or not at all; a number that is NaN or infinite is null."""
    write_text(path, json.dumps(_defined(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def _defined(value: Any) -> Any:
    """The value with null for what JSON has no number for."""
    if isinstance(value, dict):
        return {key: _defined(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_defined(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


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
