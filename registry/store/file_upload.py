"""One blob on its way into a folder: appended to `uploads/<digest>.part`, fsynced and renamed when it is right.

What a killed process wrote is there and is hashed again from the disk. A power cut may have left nothing where
something was said to be: the digest tells, and the file begins again.
"""

import fcntl
import hashlib
import os
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import BinaryIO

from kit.net.part_stream import Part, write_all
from kit.net.retry import check_stop
from registry.store.interface import DigestMismatch, StoreError, mismatch
from registry.store.part_size import part_size

CHUNK = 1 << 20
# The disk is kept busy from the beginning, so that the last fsync has little left to wait for.
SYNC_EVERY = 256 << 20

Failures = Callable[[str], AbstractContextManager[None]]


class FileUpload:
    """See `registry.store.interface.Upload`."""

    def __init__(
        self, path: Path, final: Path, digest: str, size: int, *,
        publish: Callable[[Path, Path], None], failures: Failures, stop: threading.Event,
    ) -> None:  # fmt: skip
        """Open `path` and hash what it holds. `publish` renames it to `final`. Raises StoreError, Cancelled."""
        self.path, self._final = path, final
        self._digest, self._size = digest, size
        self._publish, self._failures = publish, failures
        self._hasher = hashlib.sha256()
        self._unsynced = 0
        self.part_size = part_size(size)
        with failures("write to"):
            self._file: BinaryIO = self._open()
            try:
                self.done = self._taken = self._hash(stop)
            except BaseException:
                self._file.close()
                raise

    def write(self, part: Part) -> None:
        """Hash the part and append it."""
        try:
            if part.start != self._taken:
                raise ValueError(f"bytes at {part.start} are not the next part, at {self._taken}")
            self._hasher.update(part.view)
            with self._failures("write to"):
                write_all(self._file.fileno(), part.view)
                self._unsynced += len(part.view)
                if self._unsynced >= SYNC_EVERY:
                    os.fdatasync(self._file.fileno())
                    self._unsynced = 0
            self._taken += len(part.view)
        finally:
            part.release()

    def check(self) -> None:
        """Compare the digest. Raises DigestMismatch: then the file is gone."""
        got = self._hasher.hexdigest()
        if self._taken != self._size or got != self._digest:
            self.drop()
            raise DigestMismatch(mismatch(self._digest, self._size, got, self._taken))

    def finish(self) -> None:
        """Rename the file into its place if the digest is right. Raises DigestMismatch: then it is gone."""
        self.check()
        with self._failures("write to"):
            os.fchmod(self._file.fileno(), 0o444)
            os.fsync(self._file.fileno())
            self._publish(self.path, self._final)

    def drop(self) -> None:
        """Remove the file."""
        with self._failures("write to"):
            self.path.unlink(missing_ok=True)

    def __enter__(self) -> "FileUpload":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def _open(self) -> BinaryIO:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        file = self.path.open("a+b", buffering=0)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.close()
            raise StoreError(f"{self.path} is being written by another process. Wait for its end.") from error
        except BaseException:
            file.close()
            raise
        return file

    def _hash(self, stop: threading.Event) -> int:
        """Hash what is there; more than there can be is cut off. Returns how much that is."""
        if os.fstat(self._file.fileno()).st_size > self._size:
            os.ftruncate(self._file.fileno(), 0)
        done = 0
        self._file.seek(0)
        while chunk := self._file.read(CHUNK):
            check_stop(stop)
            self._hasher.update(chunk)
            done += len(chunk)
        return done
