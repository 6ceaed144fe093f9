"""A resumable upload into a folder: appended to `uploads/<digest>.part`, fsynced and renamed once verified.

Resuming hashes the file from the disk again, so data lost in a power cut is noticed by its digest.
"""

import fcntl
import hashlib
import os
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from kit.net.part_stream import Part, write_all
from kit.net.retry import check_stop
from registry.store.interface import StoreError, Upload
from registry.store.part_size import part_size

CHUNK = 1 << 20
# Flush regularly, so that the final fsync is short.
SYNC_EVERY = 256 << 20

Failures = Callable[[str], AbstractContextManager[None]]


class FileUpload(Upload):
    """See `registry.store.interface.Upload`."""

    def __init__(
        self, path: Path, final: Path, digest: str, size: int, *,
        publish: Callable[[Path, Path], None], failures: Failures, stop: threading.Event,
    ) -> None:  # fmt: skip
        """Open `path` and hash its content. `publish` renames it to `final`. Raises StoreError, Cancelled."""
        super().__init__(digest, size)
        self._path, self._final = path, final
        self._rename, self._failures = publish, failures
        self._unsynced = 0
        self.part_size = part_size(size)
        with failures("write to"):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("a+b", buffering=0)
            try:
                self._lock()
                self.done = self._position = self._hash_file(stop)
            except BaseException:
                self._file.close()
                raise

    def _write(self, part: Part) -> None:
        with self._failures("write to"):
            write_all(self._file.fileno(), part.view)
            self._unsynced += len(part.view)
            if self._unsynced >= SYNC_EVERY:
                os.fdatasync(self._file.fileno())
                self._unsynced = 0
        part.release()

    def _publish(self) -> None:
        with self._failures("write to"):
            os.fchmod(self._file.fileno(), 0o444)
            os.fsync(self._file.fileno())
            self._rename(self._path, self._final)

    def drop(self) -> None:
        """Remove the file."""
        with self._failures("write to"):
            self._path.unlink(missing_ok=True)

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise StoreError(f"{self._path} is in use by another process. Wait until it ends.") from error

    def _hash_file(self, stop: threading.Event) -> int:
        """Hash the file, which is truncated first if it is too long. Returns its length."""
        if os.fstat(self._file.fileno()).st_size > self._size:
            os.ftruncate(self._file.fileno(), 0)
        self._hasher = hasher = hashlib.sha256()
        self._file.seek(0)
        while chunk := self._file.read(CHUNK):
            check_stop(stop)
            hasher.update(chunk)
        return self._file.tell()
