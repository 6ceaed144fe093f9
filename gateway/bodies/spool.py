"""Spool for uploads: in memory while they are small, else in an unlinked file, within a shared quota.

A client's part of the quota is limited as its part of the memory budget is: `gateway.bodies.memory_budget`.
"""

import errno
import os
import tempfile
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from gateway.bodies.memory_budget import Allocation, Client, Pool, Share
from kit.errors import ApiError, PayloadTooLarge

MB = 1024 * 1024
# Uploads up to this size stay in memory.
MAX_IN_MEMORY = MB
# Size of the pieces in which an upload is read.
PIECE = 256 * 1024
# Retry-After when there is no space, in seconds.
RETRY_AFTER_S = 10


class SpoolFull(ApiError):
    """No space for an upload."""

    status = 507
    type = "service_unavailable"
    code = "spool_full"

    def __init__(self, message: str) -> None:
        super().__init__(message, headers={"Retry-After": str(RETRY_AFTER_S)})


class Spool:
    """The disk space shared by all uploads in flight."""

    def __init__(self, folder: Path | None, quota: int, max_upload: int) -> None:
        """`quota` and `max_upload`, the largest upload, are in bytes."""
        self._folder = folder
        self._pool = Pool(quota, max_upload)
        self._shares: weakref.WeakKeyDictionary[Client, Share] = weakref.WeakKeyDictionary()

    @property
    def available(self) -> int:
        """How many bytes of the quota are free."""
        return self._pool.free

    def open(self) -> IO[bytes]:
        """Create an unlinked file, which is freed when it is closed or this process ends."""
        try:
            return tempfile.TemporaryFile(buffering=0, dir=self._folder)
        except OSError as error:
            raise SpoolFull(f"The gateway cannot spool this upload: {error.strerror}. Check SPOOL_DIR.") from error

    def reserve(self, count: int, client: Client) -> None:
        """Reserve `count` bytes of the quota. Raises SpoolFull if it or the client's share does not permit it."""
        share = self._shares.setdefault(client, Share(self._pool))
        if share.try_take(count):
            return
        if self._pool.free < count:
            raise SpoolFull("Too many uploads in flight (SPOOL_QUOTA_MB). Try again in a moment.")
        raise SpoolFull(
            "This client's uploads in flight fill its share of the spool (SPOOL_QUOTA_MB). "
            "Try again when one of them has ended."
        )

    def free(self, count: int, client: Client) -> None:
        """Return `count` bytes to the quota."""
        if count:
            self._shares[client].give(count)


class Upload:
    """The bytes of one upload, with constant memory: the base of bodies that are forwarded as forms."""

    def __init__(self, limit: int, spool: Spool, memory: Allocation) -> None:
        """`memory` counts what is not in the file, and names the client."""
        self.size = 0
        self._limit = limit
        self._spool = spool
        self._allocation = memory
        self._memory = bytearray()
        self._file: IO[bytes] | None = None
        self._reserved = 0

    def add(self, data: bytes) -> None:
        """Store the next piece. Raises PayloadTooLarge or SpoolFull."""
        self.size += len(data)
        if self.size > self._limit:
            raise too_large(self._limit, "MAX_UPLOAD_MB")
        if self._file is None:
            if self.size <= MAX_IN_MEMORY and self._allocation.try_grow(len(data)):
                self._memory += data
                return
            self._file = self._spool.open()
            self._write(self._memory)
            self._free_memory()
        self._write(data)

    def _write(self, data: bytes | bytearray) -> None:
        assert self._file is not None
        self._spool.reserve(len(data), self._allocation.client)
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
        """Yield the bytes from `start` up to `end` in pieces."""
        while start < end:
            count = min(PIECE, end - start)
            if self._file is None:
                yield bytes(self._memory[start : start + count])
            else:
                yield os.pread(self._file.fileno(), count, start)
            start += count

    def close(self) -> None:
        """Free memory, file and quota."""
        self._free_memory()
        if self._file is not None:
            self._file.close()
            self._file = None
        self._spool.free(self._reserved, self._allocation.client)
        self._reserved = 0

    def _free_memory(self) -> None:
        self._allocation.shrink(len(self._memory))
        self._memory = bytearray()


def too_large(limit: int, setting: str) -> PayloadTooLarge:
    """Return the 413 for a body over `limit` bytes, which `setting` configures."""
    return PayloadTooLarge(f"The body is larger than {limit // MB} MB. {setting} of the gateway is the limit.")
