"""Uploads on their way: in memory while they are small, else in an unlinked file, within a quota that all share."""

import errno
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from kit.errors import ApiError, PayloadTooLarge

MB = 1024 * 1024
# An upload up to this size stays in memory.
IN_MEMORY = MB
# How much of a spooled upload is read and written at a time.
PIECE = 256 * 1024
# For how long a client is asked to wait when there is no room, in seconds: uploads take their time.
RETRY_AFTER_S = 10


class SpoolFull(ApiError):
    """No room for an upload on its way."""

    status = 507
    type = "service_unavailable"
    code = "spool_full"

    def __init__(self, message: str) -> None:
        super().__init__(message, headers={"Retry-After": str(RETRY_AFTER_S)})


class Spool:
    """The disk space that all uploads on their way share."""

    def __init__(self, folder: Path | None, quota: int) -> None:
        self._folder = folder
        self._left = quota

    def open(self) -> IO[bytes]:
        """A new file without a name: it goes when it is closed, whatever happens to this process."""
        try:
            return tempfile.TemporaryFile(buffering=0, dir=self._folder)
        except OSError as error:
            raise SpoolFull(f"The gateway cannot keep this upload: {error.strerror}. Check SPOOL_DIR.") from error

    def reserve(self, count: int) -> None:
        """Take `count` bytes of the quota. Raises SpoolFull."""
        if count > self._left:
            raise SpoolFull("Too many uploads are on their way (SPOOL_QUOTA_MB). Try again in a moment.")
        self._left -= count

    def free(self, count: int) -> None:
        """Give `count` bytes back."""
        self._left += count

    @property
    def left(self) -> int:
        """Bytes of the quota that are free."""
        return self._left


class Upload:
    """One upload's bytes. Its memory does not grow with its size."""

    def __init__(self, limit: int, spool: Spool) -> None:
        self.size = 0
        self._limit = limit
        self._spool = spool
        self._memory = bytearray()
        self._file: IO[bytes] | None = None
        self._reserved = 0

    def count(self, data: bytes) -> None:
        """Take note of the next piece before anything reads it. Raises PayloadTooLarge."""
        self.size += len(data)
        if self.size > self._limit:
            raise too_large(self._limit, "MAX_UPLOAD_MB")

    def keep(self, data: bytes) -> None:
        """Keep the piece that was counted last. Raises SpoolFull."""
        if self._file is not None:
            self._write(data)
            return
        self._memory += data
        if len(self._memory) > IN_MEMORY:
            self._file = self._spool.open()
            self._write(bytes(self._memory))
            self._memory.clear()

    def _write(self, data: bytes) -> None:
        assert self._file is not None
        self._spool.reserve(len(data))
        self._reserved += len(data)
        view = memoryview(data)
        try:
            while view:
                view = view[self._file.write(view) :]
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise
            raise SpoolFull("The gateway's disk is full (SPOOL_DIR). Free some space.") from error

    def read(self, start: int, end: int) -> Iterator[bytes]:
        """The bytes from `start` up to `end`, in pieces."""
        while start < end:
            count = min(PIECE, end - start)
            if self._file is None:
                yield bytes(self._memory[start : start + count])
            else:
                yield os.pread(self._file.fileno(), count, start)
            start += count

    def close(self) -> None:
        """Free memory, file and quota."""
        self._memory = bytearray()
        if self._file is not None:
            self._file.close()
            self._file = None
        self._spool.free(self._reserved)
        self._reserved = 0


def too_large(limit: int, setting: str) -> PayloadTooLarge:
    """The 413 for a body over `limit` bytes, which `setting` moves."""
    return PayloadTooLarge(f"The body is larger than {limit // MB} MB. {setting} of the gateway moves the limit.")
