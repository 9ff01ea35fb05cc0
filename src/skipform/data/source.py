"""The files of a data set: where they are, whether they are intact, and how they are fetched."""

import gzip
import hashlib
import tarfile
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory

from skipform.data.fetch import algorithm, fetch, has_digest
from skipform.errors import SkipformError

# No network, no space, another checksum, a file or an archive that cannot be unpacked.
FAILURES = (OSError, RuntimeError, EOFError, zlib.error, tarfile.TarError, zipfile.BadZipFile)


def sums(name: str) -> dict[str, str]:
    """File -> checksum of a set, from NAME.md5 or NAME.sha256 in this folder, which `md5sum -c` or `sha256sum -c` can
    check inside the folder of the set."""
    (file,) = (path for path in Path(__file__).parent.glob(f"{name}.*") if path.suffix in (".md5", ".sha256"))
    lines = file.read_text(encoding="utf-8").splitlines()
    return {path: checksum for checksum, path in (line.split(maxsplit=1) for line in lines)}


class Source:
    """Files below a folder, each of which can be fetched from its own address.

    Args:
        folder: where the files are.
        checksums: file, as a path below `folder` -> the md5 (32 digits) or sha256 sum of its content, or the first
            digits of the latter; None if it is unknown, and then any file that is not empty counts as intact.
        url: the address of a file without its name.
        archive: a tar of the same files, from which those are read that are not in the folder.
    """

    def __init__(
        self, folder: Path, checksums: Mapping[str, str | None], url: str, *, archive: Path | None = None
    ) -> None:
        self.folder, self.checksums, self.url, self.archive = folder, checksums, url, archive

    def prepare(self, *, download: bool, command: str) -> None:
        """Check every file, and fetch the damaged ones if `download` is true.

        Raises:
            SkipformError: one line that names the first damaged file, and, without `download`, `command`, the Python
                statement that would fetch it.
        """
        if not (damaged := self.damaged()):
            return
        file, state = next(iter(damaged.items()))
        if not download:
            raise SkipformError(
                f"{self.folder / file}: {state}; mend it with --data.download true,"
                f' or with: python -c "import skipform; {command}"'
            )
        self.fetch(damaged)
        for file, state in self.damaged().items():
            raise SkipformError(f"{self.folder / file}: {state} at {self.url} too")

    def damaged(self) -> dict[str, str]:
        """The files that are not intact -> "missing", or "altered or cut short"."""
        self.__dict__.pop("members", None)  # a fetched archive may have other members
        return {
            file: "altered or cut short" if self.exists(file) else "missing"
            for file in self.checksums
            if not self.exists(file) or not self.is_intact(file)
        }

    def exists(self, file: str) -> bool:
        return (self.folder / file).is_file() or file in self.members

    def is_intact(self, file: str) -> bool:
        """Whether a file that exists has the right content."""
        if checksum := self.checksums[file]:
            return digest(self.read(file), checksum) == checksum
        path = self.folder / file
        return (path.stat().st_size if path.is_file() else self.members[file].size) > 0

    def read(self, file: str) -> bytes:
        """The content of a file that exists; b"" if it is in an archive that ends before the file does."""
        path = self.folder / file
        if path.is_file():
            return path.read_bytes()
        member = self.members[file]
        try:
            with tarfile.open(self.archive) as tar:
                return tar.extractfile(member).read()  # type: ignore[union-attr]
        except tarfile.ReadError:
            return b""

    @cached_property
    def members(self) -> dict[str, tarfile.TarInfo]:
        """The files in the archive; if it was cut short, those before its end."""
        members: dict[str, tarfile.TarInfo] = {}
        if self.archive and self.archive.is_file():
            try:
                with tarfile.open(self.archive) as tar:
                    for member in tar:
                        members[member.name] = member
            except tarfile.TarError:  # it was cut short, or is no tar
                return members
        return members

    def fetch(self, files: Iterable[str]) -> None:
        """Fetch the files one by one; discard a file that arrives with another checksum."""
        for file in files:
            self._download(self.url + file, file)

    def _download(self, url: str, file: str) -> None:
        path, checksum = self.folder / file, self.checksums[file]

        def is_right(part: Path) -> bool:
            try:
                return digest(self.unpacked(part.read_bytes()), checksum or "") == checksum
            except (gzip.BadGzipFile, EOFError, zlib.error):
                return False

        try:
            fetch(url, path, is_right if checksum else None)
        except FAILURES as error:
            raise SkipformError(f"{path}: could not be fetched from {url}: {error}") from error

    def unpacked(self, content: bytes) -> bytes:
        """The bytes of a file that its checksum is of: its content, unless a subclass decompresses it."""
        return content


class ArchiveSource(Source):
    """Files that are fetched together, in one archive (zip, tar, tar.gz).

    Args:
        url: the address of the archive.
        md5: its md5 sum, if known.
        inside: the folder of the archive that corresponds to `folder`. Only its subfolders that hold files of the set
            are unpacked.
    """

    def __init__(
        self,
        folder: Path,
        checksums: Mapping[str, str | None],
        url: str,
        *,
        md5: str | None = None,
        inside: str = "",
        archive: Path | None = None,
    ) -> None:
        super().__init__(folder, checksums, url, archive=archive)
        self.md5, self.inside = md5, inside

    def fetch(self, files: Iterable[str]) -> None:
        """Fetch the archive and move its files into the folder.

        The archive is removed afterwards, unless it existed before or files are read from it.
        """
        from torchvision.datasets.utils import extract_archive

        archive, md5 = self.folder / Path(self.url).name, self.md5
        present = md5 is not None and archive.is_file() and has_digest(archive, md5)
        folders = {Path(file).parts[0] for file in self.checksums}
        try:
            if not present:
                fetch(self.url, archive, None if md5 is None else lambda part: has_digest(part, md5))
            with TemporaryDirectory(dir=self.folder) as unpacked:
                extract_archive(str(archive), unpacked)
                inside = Path(unpacked, self.inside)
                for path in [path for folder in folders for path in (inside / folder).rglob("*") if path.is_file()]:
                    target = self.folder / path.relative_to(inside)
                    target.parent.mkdir(parents=True, exist_ok=True)
                    path.replace(target)
        except FAILURES as error:
            first = self.folder / next(iter(files))
            raise SkipformError(f"{first}: could not be fetched from {self.url}: {error}") from error
        if not present and archive != self.archive:
            archive.unlink()


def digest(content: bytes, like: str) -> str:
    """The md5 sum of the content if `like` has 32 digits, otherwise as many first digits of its sha256 sum."""
    return hashlib.new(algorithm(like), content).hexdigest()[: len(like)]
