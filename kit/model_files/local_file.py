"""A model file on disk: appended to, hashed while it is written, resumed from what is there."""

import os
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future
from pathlib import Path

from kit.hub.listing import RemoteFile
from kit.net.part_stream import Part, write_all
from kit.net.retry import check_stop

CHUNK = 1 << 20
# Larger parts are hashed in another thread while they are written; smaller ones are still in the processor's cache.
INLINE_HASH_BYTES = 1 << 20
# Write-back to the disk starts after so many bytes, to leave little for the last fsync.
SYNC_BYTES = 64 << 20

OnBytes = Callable[[int, int], None]
"""Gets the number of new bytes, and of all bytes of the file so far."""


class DigestMismatch(Exception):
    """The content does not have the promised digest."""


class LocalFile:
    """See `kit.hub.file_download.Sink`. A context manager."""

    def __init__(
        self, path: Path, file: RemoteFile, on_bytes: OnBytes,
        *, hashing: Executor, syncing: Executor, stop: threading.Event,
    ) -> None:  # fmt: skip
        """Open `path` and hash what it holds. Raises OSError, Cancelled."""
        self._path = path
        self._remote = file
        self._on_bytes = on_bytes
        self._hashing = hashing
        self._syncing = syncing
        self._hasher = file.hasher()
        self._sync: Future[None] | None = None
        self.done = 0
        self._file = path.open("a+b", buffering=0)
        try:
            self._file.seek(0)
            while chunk := self._file.read(CHUNK):
                check_stop(stop)
                self._hasher.update(chunk)
                self._advance(len(chunk))
        except BaseException:
            self._file.close()
            raise

    def write(self, part: Part) -> None:
        """Append and hash the part, and release it."""
        count = len(part.view)
        try:
            if count > INLINE_HASH_BYTES:
                hashed = self._hashing.submit(self._hasher.update, part.view)
                try:
                    write_all(self._file.fileno(), part.view)
                finally:
                    hashed.result()
            else:
                self._hasher.update(part.view)
                write_all(self._file.fileno(), part.view)
        finally:
            part.release()
        self._advance(count)
        if (self.done - count) // SYNC_BYTES != self.done // SYNC_BYTES:
            self._start_sync()

    def finish(self) -> None:
        """Verify the digest and sync the file. Raises DigestMismatch: then the file is removed."""
        if self.done != self._remote.size or not self._remote.matches(self._hasher):
            self._path.unlink()
            raise DigestMismatch
        if self._sync is not None:
            self._sync.result()
        os.fsync(self._file.fileno())

    def __enter__(self) -> "LocalFile":
        return self

    def __exit__(self, *_: object) -> None:
        if self._sync is not None:
            self._sync.exception()
        self._file.close()

    def _advance(self, count: int) -> None:
        self.done += count
        self._on_bytes(count, self.done)

    def _start_sync(self) -> None:
        if self._sync is not None:
            if not self._sync.done():
                return
            self._sync.result()
        self._sync = self._syncing.submit(os.fdatasync, self._file.fileno())
