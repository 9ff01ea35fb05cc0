"""Files fetched from their address: whole and checked, and continued where an earlier attempt has ended."""

import hashlib
import http.client
from collections.abc import Callable
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from tqdm import tqdm

BLOCK = 2**20  # bytes read at once
PATIENCE = 60.0  # seconds without an answer after which a connection counts as broken


def fetch(url: str, path: Path, is_right: Callable[[Path], bool] | None) -> None:
    """Fetch the file at `url` to `path`. A terminal shows how much has arrived and how long the rest takes.

    What has arrived is in PATH.part, where the next call continues if the server can send the rest of a file (HTTP
    Range); otherwise it begins again. It becomes `path` when it is complete and `is_right` accepts it.

    is_right: whether a file has the right content. None if that is unknown: then no attempt is continued, because
        nothing would tell two versions of the file from one.

    Raises:
        OSError: no network, no space, a connection that ends early, or a file that is not right.
    """
    part = path.with_name(f"{path.name}.part")
    path.parent.mkdir(parents=True, exist_ok=True)
    if is_right is None:
        part.unlink(missing_ok=True)
    continued = part.is_file()
    _receive(url, part)
    if is_right is None or is_right(part):
        part.replace(path)
        return
    part.unlink()
    if not continued:
        raise OSError("it has another checksum there")
    fetch(url, path, is_right)  # what was there before may have been of another version


def _receive(url: str, part: Path) -> None:
    """Append to `part` what it lacks of the file at `url`, or all of the file if the server sends all of it."""
    begun = part.stat().st_size if part.is_file() else 0
    request = Request(url, headers={"User-Agent": "skipform"} | ({"Range": f"bytes={begun}-"} if begun else {}))
    try:
        response = urlopen(request, timeout=PATIENCE)
    except HTTPError as error:
        if begun and error.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE:  # nothing is lacking
            return
        raise
    with response:
        if response.status != http.client.PARTIAL_CONTENT:
            begun = 0
        length = response.headers.get("Content-Length")
        total = begun + int(length) if length else None
        with (
            part.open("ab" if begun else "wb") as file,
            tqdm(
                desc=part.stem, total=total, initial=begun, unit="B", unit_scale=True, leave=False, disable=None
            ) as bar,
        ):
            try:
                while block := response.read(BLOCK):
                    file.write(block)
                    bar.update(len(block))
            except http.client.HTTPException as error:
                raise OSError(f"the connection ended early ({type(error).__name__})") from error
    if total is not None and (received := part.stat().st_size) < total:
        raise OSError(f"the connection ended after {received:,} of {total:,} bytes; the same command continues there")


def has_digest(path: Path, checksum: str) -> bool:
    """Whether a file has this md5 sum (32 digits) or these first digits of a sha256 sum."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, algorithm(checksum)).hexdigest().startswith(checksum)


def algorithm(checksum: str) -> str:
    """The algorithm of a checksum, by its number of digits: md5 has 32."""
    return "md5" if len(checksum) == 32 else "sha256"
