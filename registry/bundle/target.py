"""Write access to a bundle, folder or tar file. Finished volumes are durable, so that an export can resume."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Protocol

from kit.net.part_stream import fsync_folder
from registry.bundle.layout import END, header, padded
from registry.bundle.manifest import MANIFEST, SIGNATURE, BundleError, Volume
from registry.bundle.source import draft_of, is_one_file, partial_of


class BundleTarget(Protocol):
    """An unfinished bundle. Methods raise BundleError."""

    def truncate(self, volumes: tuple[Volume, ...], written: int) -> None:
        """Check the first `written` volumes and discard everything after them."""

    def volume(self, volume: Volume) -> contextlib.AbstractContextManager[BinaryIO]:
        """Open the file of the next volume; it is durable at the end of the context."""

    def finish(self, manifest: bytes, signature: bytes) -> None:
        """Write manifest and signature; the bundle is complete."""


def open_target(path: Path) -> BundleTarget:
    """Prepare `path` for writing: one file if the name ends in .tar, else a folder. Raises BundleError."""
    one_file = is_one_file(path)
    with writing(path):
        (path.parent if one_file else path).mkdir(parents=True, exist_ok=True)
    return _FileTarget(path) if one_file else _FolderTarget(path)


def free_bytes(path: Path) -> int:
    """Return the free bytes of the file system of `path`."""
    with writing(path):
        return shutil.disk_usage(next(folder for folder in [path, *path.absolute().parents] if folder.exists())).free


def write_durably(path: Path, data: bytes) -> None:
    """Write or replace a file atomically and durably. Raises OSError."""
    with _replacing(path) as file:
        file.write(data)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Convert OSError to BundleError."""
    try:
        yield
    except OSError as error:
        raise BundleError(
            f"{path} cannot be written: {error.strerror or error}. Run the same command again to resume."
        ) from error


class _FolderTarget:
    def __init__(self, path: Path) -> None:
        self._path = path

    def truncate(self, volumes: tuple[Volume, ...], written: int) -> None:
        for volume in volumes[:written]:
            path = self._path / volume.name
            if not path.is_file() or path.stat().st_size != volume.size:
                raise BundleError(f"{path} is missing or changed. Remove {draft_of(self._path)} to start again.")

    @contextlib.contextmanager
    def volume(self, volume: Volume) -> Iterator[BinaryIO]:
        path = self._path / volume.name
        with writing(path), _replacing(path) as file:
            yield file

    def finish(self, manifest: bytes, signature: bytes) -> None:
        with writing(self._path):
            write_durably(self._path / MANIFEST, manifest)
            write_durably(self._path / SIGNATURE, signature)  # last: only with it the bundle is complete


class _FileTarget:
    def __init__(self, path: Path) -> None:
        self._path = path
        self._partial = partial_of(path)

    def truncate(self, volumes: tuple[Volume, ...], written: int) -> None:
        end = sum(len(header(volume.name, volume.size)) + padded(volume.size) for volume in volumes[:written])
        with writing(self._path), self._partial.open("ab") as file:
            if file.tell() < end:
                raise BundleError(f"{self._partial} is truncated. Remove {draft_of(self._path)} to start again.")
            file.truncate(end)

    @contextlib.contextmanager
    def volume(self, volume: Volume) -> Iterator[BinaryIO]:
        with writing(self._path), self._partial.open("ab") as file:
            file.write(header(volume.name, volume.size))
            yield file
            file.write(bytes(padded(volume.size) - volume.size))
            _sync(file)

    def finish(self, manifest: bytes, signature: bytes) -> None:
        with writing(self._path):
            with self._partial.open("ab") as file:
                for name, data in ((MANIFEST, manifest), (SIGNATURE, signature)):
                    file.write(header(name, len(data)) + data + bytes(padded(len(data)) - len(data)))
                file.write(END)
                _sync(file)
            _rename(self._partial, self._path)


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[BinaryIO]:
    """Write a file that appears at `path`, durably, at the end of the context."""
    partial = partial_of(path)
    with partial.open("wb") as file:
        yield file
        _sync(file)
    _rename(partial, path)


def _rename(partial: Path, path: Path) -> None:
    partial.replace(path)
    fsync_folder(path.parent)
