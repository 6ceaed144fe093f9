"""Where a bundle lies: a folder with its files, or one tar file with the same files as its members.

In the one file, too, no byte goes unchecked: its own headers must be those that this module writes.
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


class Place(Protocol):
    """A bundle to read from. Raises BundleError for what cannot be read."""

    where: str

    def size(self, name: str) -> int | None:
        """The size of a file of the bundle; None when it is not there."""
        ...

    def open(self, name: str) -> contextlib.AbstractContextManager[BinaryIO]:
        """The file that holds a file of the bundle, at its first byte."""
        ...


def open_place(path: Path) -> Place:
    """The bundle at `path`. Raises BundleError when there is none, or it is not finished."""
    if not path.exists():
        hint = " It is not finished: run the export again." if partial_of(path).exists() else ""
        raise BundleError(f"There is no bundle at {path}.{hint}")
    place: Place = _Folder(path) if path.is_dir() else _File(path)
    for name in (MANIFEST, SIGNATURE):
        if place.size(name) is None:
            draft = draft_of(path)
            hint = (
                "Its export is not finished: run it again." if draft.exists() else "Bring it here, or give the bundle."
            )
            raise BundleError(f"{place.where} has no {name}. {hint}")
    return place


def read_small(place: Place, name: str, most: int) -> bytes:
    """The content of a file of at most `most` bytes. Raises BundleError."""
    size = place.size(name)
    if size is None or size > most:
        raise BundleError(f"{name} in {place.where} is missing, or is too large to be one.")
    with place.open(name) as file:
        data = file.read(size)
    if len(data) != size:
        raise BundleError(f"{name} in {place.where} ends too early.")
    return data


def is_one_file(path: Path) -> bool:
    """Whether a bundle to be written at `path` is to be one file."""
    return path.name.endswith(FILE_SUFFIX) and not path.is_dir()


def draft_of(path: Path) -> Path:
    """Where the manifest of an unfinished export is kept."""
    return path.with_name(path.name + ".unfinished.json") if is_one_file(path) else path / "unfinished.json"


def partial_of(path: Path) -> Path:
    """Where a file is written until it is whole."""
    return path.with_name(path.name + ".partial")


class _Folder:
    def __init__(self, path: Path) -> None:
        self.where = str(path)
        self._path = path

    def size(self, name: str) -> int | None:
        try:
            found = (self._path / name).stat()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise _unreadable(self._path / name, error) from error
        return found.st_size

    @contextlib.contextmanager
    def open(self, name: str) -> Iterator[BinaryIO]:
        path = self._path / name
        try:
            with path.open("rb") as file:
                yield file
        except OSError as error:
            raise _unreadable(path, error) from error


class _File:
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
        """The one file, from byte `at` on."""
        try:
            with self._path.open("rb") as file:
                file.seek(at)
                yield file
        except OSError as error:
            raise _unreadable(self._path, error) from error

    def _read_members(self) -> dict[str, tuple[int, int]]:
        """name -> (first byte, size). Raises BundleError unless all else is as `FileTarget` writes it."""
        try:
            with tarfile.open(self._path, "r:") as outer:
                found = [(member.name, member.size) for member in outer]
        except (tarfile.TarError, OSError, ValueError) as error:
            raise self._broken(str(error)) from error
        expected = [volume_name(number) for number in range(1, len(found) - 1)] + [MANIFEST, SIGNATURE]
        if [name for name, _ in found] != expected:
            raise self._broken("its members are not volumes, manifest and signature")
        members: dict[str, tuple[int, int]] = {}
        at = 0
        with self.open_at(0) as file:
            for name, size in found:
                head = header(name, size)
                if file.read(len(head)) != head:
                    raise self._broken(f"the header of {name}")
                members[name] = (at + len(head), size)
                at += len(head) + padded(size)
                file.seek(at - (padded(size) - size))
                if file.read(padded(size) - size).strip(b"\0"):
                    raise self._broken(f"after {name}")
            if file.read(len(END) + 1) != END:
                raise self._broken("its end")
        return members

    def _broken(self, what: str) -> BundleError:
        return BundleError(
            f"{self.where} is no bundle, or was changed or cut off ({what}). Copy it again from where it was made."
        )


def _unreadable(path: Path, error: OSError) -> BundleError:
    return BundleError(f"{path} cannot be read: {error.strerror or error}.")
