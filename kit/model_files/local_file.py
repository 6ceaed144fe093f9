"""A downloaded file on disk: appended to, hashed while it is written, resumed from what an interrupted process left."""

import fcntl
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Self

from kit.hub.listing import RemoteFile
from kit.net.part_stream import Part, write_all
from kit.net.retry import check_stop

CHUNK = 1 << 20
# Larger parts are hashed in another thread while they are written; smaller ones are still in the processor's cache.
INLINE_HASH_BYTES = 1 << 20
# Write-back to the disk starts after so many bytes, to leave little for the last fsync.
SYNC_BYTES = 64 << 20

OnBytes = Callable[[int, int], None]
"""Gets the number of bytes just hashed, and of all so far."""


class DigestMismatch(Exception):
    """The content does not have the promised size or digest; the message has both."""


class LocalFile:
    """A sink (see `kit.hub.file_download`) that appends to the file at `path`. A context manager."""

    def __init__(
        self, path: Path, file: RemoteFile, stop: threading.Event, on_bytes: OnBytes = lambda _count, _done: None
    ) -> None:
        """Open and lock the file, and hash its content.

        Raises BlockingIOError if another process writes it, OSError, Cancelled.
        """
        self._path = path
        self.done = 0
        self._remote = file
        self._on_bytes = on_bytes
        self._hasher = file.hasher()
        self._sync: Future[None] | None = None
        self._threads = ThreadPoolExecutor(2, thread_name_prefix="local-file")
        self._file = path.open("a+b", buffering=0)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(self._file.fileno()).st_size > file.size:
                self._file.truncate(0)
            self._file.seek(0)
            while chunk := self._file.read(CHUNK):
                check_stop(stop)
                self._hasher.update(chunk)
                self._advance(len(chunk))
        except BaseException:
            self._file.close()
            raise

    def write(self, part: Part) -> None:
        """Append and hash the next part, and release it. Raises OSError."""
        count = len(part.view)
        try:
            if part.start != self.done:
                raise ValueError(f"the part at byte {part.start} is not the next part, at {self.done}")
            if count > INLINE_HASH_BYTES:
                hashed = self._threads.submit(self._hasher.update, part.view)
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
        """Verify the digest and sync the file. Raises DigestMismatch: then the file is removed; OSError."""
        if self.done != self._remote.size or not self._remote.matches(self._hasher):
            self._path.unlink()
            raise DigestMismatch(
                f"expected {self._remote.digest} of {self._remote.size} bytes, "
                f"got {self._hasher.hexdigest()} of {self.done}"
            )
        if self._sync is not None:
            self._sync.result()
        os.fsync(self._file.fileno())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._threads.shutdown()
        self._file.close()

    def _advance(self, count: int) -> None:
        self.done += count
        self._on_bytes(count, self.done)

    def _start_sync(self) -> None:
        if self._sync is not None:
            if not self._sync.done():
                return
            self._sync.result()
        self._sync = self._threads.submit(os.fdatasync, self._file.fileno())
