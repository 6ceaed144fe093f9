"""Read access to a bundle: a folder of files, or one tar file with the same files as members.

The headers of the tar file must be exactly those that `target` writes, so that no byte is unverified.
"""

import contextlib
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Protocol

from registry.bundle.layout import END, header, padded
from registry.bundle.manifest import MANIFEST, SIGNATURE, BundleError, volume_name

CHUNK = 1 << 20
FILE_SUFFIX = ".tar"


class BundleSource(Protocol):
    """Files of a bundle. Methods raise BundleError."""

    where: str

    def size(self, name: str) -> int | None:
        """Return the size of a file; None if it does not exist."""

    def open(self, name: str) -> contextlib.AbstractContextManager[BinaryIO]:
        """Open a file of the bundle, positioned at its first byte."""


def open_source(path: Path) -> BundleSource:
    """Open the bundle at `path`. Raises BundleError if it does not exist or is unfinished."""
    unfinished = "Its export is not finished: run it again."
    if not path.exists():
        hint = f" {unfinished}" if partial_of(path).exists() else ""
        raise BundleError(f"There is no bundle at {path}.{hint}")
    source: BundleSource = _FolderSource(path) if path.is_dir() else _FileSource(path)
    for name in (MANIFEST, SIGNATURE):
        if source.size(name) is None:
            hint = unfinished if draft_of(path).exists() else "Copy every file of the bundle."
            raise BundleError(f"{source.where} has no {name}. {hint}")
    return source


def read_small_file(source: BundleSource, name: str, max_bytes: int) -> bytes:
    """Read a file of at most `max_bytes`. Raises BundleError."""
    size = source.size(name)
    if size is None or size > max_bytes:
        raise BundleError(f"{name} in {source.where} is missing or larger than {max_bytes} bytes.")
    with source.open(name) as file:
        data = file.read(size)
    if len(data) != size:
        raise BundleError(f"{name} in {source.where} is truncated.")
    return data


def is_one_file(path: Path) -> bool:
    """Return whether a bundle written to `path` is one file."""
    return path.name.endswith(FILE_SUFFIX) and not path.is_dir()


def draft_of(path: Path) -> Path:
    """Return the path of the draft manifest of an unfinished export."""
    return path.with_name(path.name + ".unfinished.json") if is_one_file(path) else path / "unfinished.json"


def partial_of(path: Path) -> Path:
    """Return the path to which a file is written before it is renamed."""
    return path.with_name(path.name + ".partial")


class _FolderSource:
    def __init__(self, path: Path) -> None:
        self.where = str(path)
        self._path = path

    def size(self, name: str) -> int | None:
        with reading(self._path / name), contextlib.suppress(FileNotFoundError):
            return (self._path / name).stat().st_size
        return None

    @contextlib.contextmanager
    def open(self, name: str) -> Iterator[BinaryIO]:
        path = self._path / name
        with reading(path), path.open("rb") as file:
            yield file


class _FileSource:
    def __init__(self, path: Path) -> None:
        self.where = str(path)
        self._path = path
        self._members = self._read_members()

    def size(self, name: str) -> int | None:
        return self._members[name][1] if name in self._members else None

    @contextlib.contextmanager
    def open(self, name: str) -> Iterator[BinaryIO]:
        with self.open_at(self._members[name][0]) as file:
            yield file

    @contextlib.contextmanager
    def open_at(self, at: int) -> Iterator[BinaryIO]:
        """Open the file at offset `at`."""
        with reading(self._path), self._path.open("rb") as file:
            file.seek(at)
            yield file

    def _read_members(self) -> dict[str, tuple[int, int]]:
        """Return name -> (offset, size). Raises BundleError unless all other bytes are as `_FileTarget` writes them."""
        try:
            with tarfile.open(self._path, "r:") as outer:
                found = [(member.name, member.size) for member in outer]
        except (tarfile.TarError, OSError, ValueError) as error:
            raise self._invalid(str(error)) from error
        expected = [volume_name(number) for number in range(1, len(found) - 1)] + [MANIFEST, SIGNATURE]
        if [name for name, _ in found] != expected:
            raise self._invalid("the members are not volumes, manifest and signature")
        members: dict[str, tuple[int, int]] = {}
        at = 0
        with self.open_at(0) as file:
            for name, size in found:
                head = header(name, size)
                if file.read(len(head)) != head:
                    raise self._invalid(f"header of {name}")
                members[name] = (at + len(head), size)
                at += len(head) + padded(size)
                file.seek(at - (padded(size) - size))
                if file.read(padded(size) - size).strip(b"\0"):
                    raise self._invalid(f"padding after {name}")
            if file.read(len(END) + 1) != END:
                raise self._invalid("end of the archive")
        return members

    def _invalid(self, part: str) -> BundleError:
        return BundleError(
            f"{self.where} is not a bundle, or was changed or truncated ({part}). Copy it again from its origin."
        )


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Convert OSError to BundleError."""
    try:
        yield
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {error.strerror or error}.") from error
