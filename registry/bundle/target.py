"""Where a bundle is written to. A volume that counts as written is on the disk; an export goes on after the last."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Protocol

from registry.bundle.layout import END, header, padded
from registry.bundle.manifest import MANIFEST, SIGNATURE, BundleError, Volume
from registry.bundle.source import draft_of, is_one_file, partial_of


class Target(Protocol):
    """A bundle in the making. All methods raise BundleError."""

    def forget_unwritten(self, volumes: tuple[Volume, ...], written: int) -> None:
        """Go on after the first `written` of the volumes: what lies there beyond them is removed."""
        ...

    def volume(self, volume: Volume) -> contextlib.AbstractContextManager[BinaryIO]:
        """A file for the next volume; at the end of the context it is durable."""
        ...

    def finish(self, manifest: bytes, signature: bytes) -> None:
        """Add these two, and be a bundle."""
        ...


def open_target(path: Path) -> Target:
    """Make `path` ready to be written to: a folder, or one file where its name ends in .tar. Raises BundleError."""
    try:
        if is_one_file(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            return _FileTarget(path)
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable(path, error) from error
    return _FolderTarget(path)


def free_bytes(path: Path) -> int:
    """The room on the disk on which a bundle at `path` would lie."""
    try:
        return shutil.disk_usage(next(folder for folder in [path, *path.absolute().parents] if folder.exists())).free
    except OSError as error:
        raise unwritable(path, error) from error


def write_durably(path: Path, data: bytes) -> None:
    """Write or replace a file; it is whole or as before, and on the disk on return. Raises OSError."""
    partial = partial_of(path)
    with partial.open("wb") as file:
        file.write(data)
        _sync(file)
    _rename(partial, path)


def unwritable(path: Path, error: OSError) -> BundleError:
    """What to tell of a failure to write."""
    return BundleError(f"{path} cannot be written: {error.strerror or error}. Run the same command again to go on.")


class _FolderTarget:
    def __init__(self, path: Path) -> None:
        self._path = path

    def forget_unwritten(self, volumes: tuple[Volume, ...], written: int) -> None:
        for volume in volumes[:written]:
            path = self._path / volume.name
            if not path.is_file() or path.stat().st_size != volume.size:
                raise BundleError(f"{path} is gone or changed. Remove {draft_of(self._path)} to begin anew.")

    @contextlib.contextmanager
    def volume(self, volume: Volume) -> Iterator[BinaryIO]:
        path = self._path / volume.name
        partial = partial_of(path)
        try:
            with partial.open("wb") as file:
                yield file
                _sync(file)
            _rename(partial, path)
        except OSError as error:
            raise unwritable(path, error) from error

    def finish(self, manifest: bytes, signature: bytes) -> None:
        try:
            write_durably(self._path / MANIFEST, manifest)
            write_durably(self._path / SIGNATURE, signature)  # the last: without it there is no bundle
        except OSError as error:
            raise unwritable(self._path, error) from error


class _FileTarget:
    def __init__(self, path: Path) -> None:
        self._path = path
        self._partial = partial_of(path)

    def forget_unwritten(self, volumes: tuple[Volume, ...], written: int) -> None:
        end = sum(len(header(volume.name, volume.size)) + padded(volume.size) for volume in volumes[:written])
        try:
            with self._partial.open("ab") as file:
                if file.tell() < end:
                    raise BundleError(f"{self._partial} is cut off. Remove {draft_of(self._path)} to begin anew.")
                file.truncate(end)
        except OSError as error:
            raise unwritable(self._path, error) from error

    @contextlib.contextmanager
    def volume(self, volume: Volume) -> Iterator[BinaryIO]:
        try:
            with self._partial.open("ab") as file:
                file.write(header(volume.name, volume.size))
                yield file
                file.write(bytes(padded(volume.size) - volume.size))
                _sync(file)
        except OSError as error:
            raise unwritable(self._path, error) from error

    def finish(self, manifest: bytes, signature: bytes) -> None:
        try:
            with self._partial.open("ab") as file:
                for name, data in ((MANIFEST, manifest), (SIGNATURE, signature)):
                    file.write(header(name, len(data)) + data + bytes(padded(len(data)) - len(data)))
                file.write(END)
                _sync(file)
            _rename(self._partial, self._path)
        except OSError as error:
            raise unwritable(self._path, error) from error


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _rename(partial: Path, path: Path) -> None:
    partial.replace(path)
    descriptor = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
