"""Compiled kernels, stored on disk between processes until one of their sources changes.

numba recompiles a kernel when its own file changes, and only then: one that calls a kernel of another file would go on
with the old one. So the compiled code is stored in a folder named by the content of all the files that hold kernels.
"""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba

_HERE = Path(__file__).parent
_SETTINGS: Any = numba.config
SOURCES = tuple(
    _HERE / f"{name}.py" for name in ("kernel", "cuts", "mesh", "states", "chords", "meetings", "faces", "windows")
)


def folder(sources: tuple[Path, ...] = SOURCES) -> Path:
    """The folder of kernels compiled from these sources: below NUMBA_CACHE_DIR if it is set, else in the folder of this
    package's bytecode (or, where that is not writable, where numba stores what it compiles for the user)."""
    content = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()
    return Path(_SETTINGS.CACHE_DIR or _HERE / "__pycache__") / f"kernels-{content[:16]}"


_FOLDER = folder()


def kernel(function: Callable[..., Any]) -> Callable[..., Any]:
    """`numba.njit` without the interpreter's lock and with IEEE division, its compiled code in `folder`."""
    before, _SETTINGS.CACHE_DIR = _SETTINGS.CACHE_DIR, str(_FOLDER)
    try:
        return numba.njit(cache=True, nogil=True, error_model="numpy")(function)
    finally:
        _SETTINGS.CACHE_DIR = before
