"""What workers on one port tell each other, in memory that they share: a board for each, written by nobody else.

Made before the workers are forked. A board has notices, each replaced as a whole; a reader that comes in the middle of
that, or after a worker that died in the middle, finds none. Besides, a board has one number that may be read at any
time: how many connections the worker has.
"""

import mmap
import struct
from enum import Enum
from zlib import crc32

KB = 1024
_HEADER = struct.Struct("=qII")
# The number that stands for a worker that takes no connections: not up yet, ending, or dead.
CLOSED = -1


class StateUpdate(Enum):
    """The notices of a board, with the room that each has in bytes."""

    NOW = ("now", 128 * KB)
    METRICS = ("metrics", 2048 * KB)

    def __init__(self, _name: str, room: int) -> None:
        self.room = room


_OFFSETS: dict[StateUpdate, int] = {}
_SIZE = 8
for _notice in StateUpdate:
    _OFFSETS[_notice] = _SIZE
    _SIZE += _notice.room


class SharedSlots:
    """The boards of all workers. Pages that nobody writes to take no memory."""

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self._memory = mmap.mmap(-1, workers * _SIZE)
        self._numbers = memoryview(self._memory)
        for worker in range(workers):
            self.set_connections(worker, CLOSED)

    def connections(self, worker: int) -> int:
        """How many connections a worker has, or CLOSED."""
        at = worker * _SIZE
        return int.from_bytes(self._numbers[at : at + 8], "little", signed=True)

    def set_connections(self, worker: int, count: int) -> None:
        """Tell it. The worker itself does, and who starts it again when it has died."""
        at = worker * _SIZE
        self._numbers[at : at + 8] = count.to_bytes(8, "little", signed=True)

    def write(self, worker: int, notice: StateUpdate, data: bytes) -> bool:
        """Replace a notice; False when it is too long, and then there is none."""
        at = worker * _SIZE + _OFFSETS[notice]
        fits = len(data) + _HEADER.size <= notice.room
        version = _HEADER.unpack_from(self._memory, at)[0] + 1
        # A reader that finds a checksum that does not fit has come too early.
        _HEADER.pack_into(self._memory, at, version, 0, 1)
        if fits:
            begin = at + _HEADER.size
            self._memory[begin : begin + len(data)] = data
            _HEADER.pack_into(self._memory, at, version, len(data), crc32(data))
        return fits

    def version(self, worker: int, notice: StateUpdate) -> int:
        """A number that changes whenever the notice is replaced."""
        version: int = _HEADER.unpack_from(self._memory, worker * _SIZE + _OFFSETS[notice])[0]
        return version

    def read(self, worker: int, notice: StateUpdate) -> bytes:
        """The notice, or nothing where there is none at the moment."""
        at = worker * _SIZE + _OFFSETS[notice]
        _, length, checksum = _HEADER.unpack_from(self._memory, at)
        begin = at + _HEADER.size
        data = self._memory[begin : begin + length]
        return data if crc32(data) == checksum else b""
