"""Shared memory for worker state: one single-writer slot per worker.

Created before the workers are forked. A slot holds updates, each replaced as a whole: a reader that comes during the
write, or after a worker that crashed during it, finds none. It also holds one number that can be read at any time: the
worker's connection count.
"""

import mmap
import struct
from enum import Enum
from zlib import crc32

KB = 1024
# Length and checksum of an update.
_HEADER = struct.Struct("=II")
# The connection count of a worker that accepts none: starting, stopping, or crashed.
CLOSED = -1


class StateUpdate(Enum):
    """The updates of a slot, with the offset and the space of each in bytes."""

    NOW = (8, 128 * KB)
    METRICS = (8 + 128 * KB, 2048 * KB)

    def __init__(self, offset: int, space: int) -> None:
        self.offset = offset
        self.space = space


_SIZE = StateUpdate.METRICS.offset + StateUpdate.METRICS.space


class SharedSlots:
    """The slots of all workers. Pages that are never written use no memory."""

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self._memory = mmap.mmap(-1, workers * _SIZE)
        self._numbers = memoryview(self._memory)
        for worker in range(workers):
            self.set_connections(worker, CLOSED)

    def connections(self, worker: int) -> int:
        """Return a worker's connection count, or CLOSED."""
        at = worker * _SIZE
        return int.from_bytes(self._numbers[at : at + 8], "little", signed=True)

    def set_connections(self, worker: int, count: int) -> None:
        """Publish a worker's connection count. Called by that worker, and by the supervisor once it has ended."""
        at = worker * _SIZE
        self._numbers[at : at + 8] = count.to_bytes(8, "little", signed=True)

    def write(self, worker: int, update: StateUpdate, data: bytes) -> bool:
        """Replace an update. Returns False if `data` is too long; then there is none."""
        at = worker * _SIZE + update.offset
        fits = len(data) + _HEADER.size <= update.space
        # A wrong checksum marks the update as incomplete.
        _HEADER.pack_into(self._memory, at, 0, 1)
        if fits:
            begin = at + _HEADER.size
            self._memory[begin : begin + len(data)] = data
            _HEADER.pack_into(self._memory, at, len(data), crc32(data))
        return fits

    def read(self, worker: int, update: StateUpdate) -> bytes:
        """Return the update, or nothing if there is none at the moment."""
        at = worker * _SIZE + update.offset
        length, checksum = _HEADER.unpack_from(self._memory, at)
        begin = at + _HEADER.size
        data = self._memory[begin : begin + length]
        return data if crc32(data) == checksum else b""
