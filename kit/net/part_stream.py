"""Large files in parts: several fetched at once, yielded in order, in memory that is bounded over all files together.

A part's memory is reserved before its fetch begins, in the order of the file: the first missing part always has memory,
so every file makes progress, however small the budget.
"""

import mmap
import os
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Executor, Future, wait
from pathlib import Path

from kit.net.retry import check_stop

POLL_S = 0.2


class TooLong(Exception):
    """A stream has more bytes than announced."""


class Part:
    """The bytes of a file from `start` on. Its consumer must call `release` once."""

    def __init__(self, start: int, view: memoryview, on_release: Callable[[], None] = lambda: None) -> None:
        self.start = start
        self.view = view
        self._on_release = on_release
        self._released = False

    def release(self) -> None:
        """Return the memory to its pool; further calls do nothing."""
        if not self._released:
            self._released = True
            self.view.release()
            self._on_release()


class BufferPool:
    """Memory for parts: at most `budget` bytes at once, or a single larger part. Safe for many threads.

    Anonymous memory maps, reused: malloc would keep as much again of freed buffers of this size.
    """

    def __init__(self, budget: int) -> None:
        self._budget = budget
        self._in_use = 0
        self._waiting = 0
        self._free: list[mmap.mmap] = []
        self._changed = threading.Condition()

    def acquire(self, start: int, length: int, *, wait_s: float) -> Part | None:
        """Return a part of `length` bytes of a file from `start`, or None if no memory is free within `wait_s` seconds.

        A caller that does not wait gets nothing while others wait: a file with parts in flight yields to one without.
        """
        with self._changed:
            if wait_s <= 0 and self.has_waiters:
                return None
            self._waiting += 1
            try:
                if not self._changed.wait_for(
                    lambda: self._in_use == 0 or self._in_use + length <= self._budget, wait_s
                ):
                    return None
            finally:
                self._waiting -= 1
            memory = self._reuse(length) or mmap.mmap(-1, max(length, 1))
            self._in_use += len(memory)
        return Part(start, memoryview(memory)[:length], lambda: self._release(memory))

    @property
    def has_waiters(self) -> bool:
        """Whether a caller is waiting for memory."""
        return self._waiting > 0

    def _release(self, memory: mmap.mmap) -> None:
        with self._changed:
            self._in_use -= len(memory)
            self._free.append(memory)
            if self._in_use == 0:
                self._free.clear()  # idle: return it to the system
            self._changed.notify_all()

    def _reuse(self, length: int) -> mmap.mmap | None:
        for memory in self._free:
            if len(memory) == length:
                self._free.remove(memory)
                return memory
        self._free.clear()  # maps of other sizes would add to the budget
        return None


Fill = Callable[[memoryview, int, threading.Event], None]


def parts_in_order(
    fill: Fill, start: int, size: int, part_size: int,
    *, buffers: BufferPool, pool: Executor, ahead: int, stop: threading.Event,
) -> Generator[Part]:  # fmt: skip
    """Yield the parts of a file from byte `start` to `size`, in order; `fill(view, start, abandoned)` fetches one.

    Up to `ahead` parts are fetched at once, in `pool`. The consumer releases each part. When the generator is closed,
    `abandoned` is set, and `fill` should return early. Raises what `fill` raises, and Cancelled.
    """
    abandoned = threading.Event()
    pending: deque[tuple[Future[None], Part]] = deque()
    try:
        while start < size or pending:
            if start < size and len(pending) < ahead:
                part = buffers.acquire(start, min(part_size, size - start), wait_s=0.0 if pending else POLL_S)
                if part is not None:
                    pending.append((pool.submit(fill, part.view, start, abandoned), part))
                    start += len(part.view)
                    continue
                if not pending:
                    check_stop(stop)
                    continue
            future, part = pending[0]
            if start < size and len(pending) < ahead and wait((future,), POLL_S).not_done:
                continue  # memory may have been released meanwhile
            future.result()
            pending.popleft()
            yield part
    finally:
        abandoned.set()
        for future, _ in pending:
            future.cancel()
        for future, part in pending:
            if not future.cancelled():
                future.exception()  # `fill` writes into the part until it returns
            part.release()


def cut(chunks: Iterable[bytes | memoryview], size: int, part_size: int, *, buffers: BufferPool) -> Iterator[Part]:
    """Cut a stream of `size` bytes into parts of `part_size`, the last one shorter. The consumer releases each part.

    Ends early if `chunks` do. Raises TooLong after the last part if there are more than `size` bytes.
    """
    source = iter(chunks)
    rest: bytes | memoryview = b""
    done = 0
    while done < size:
        part = None
        while part is None:
            part = buffers.acquire(done, min(part_size, size - done), wait_s=POLL_S)
        filled, length = 0, len(part.view)
        try:
            while filled < length and (chunk := rest or next(source, b"")):
                count = min(len(chunk), length - filled)
                part.view[filled : filled + count] = chunk[:count]
                rest = chunk[count:]
                filled += count
        except BaseException:
            part.release()
            raise
        if filled < length:
            part.release()
            return
        done += length
        yield part
    if rest or next(source, b""):
        raise TooLong


def write_all(descriptor: int, data: bytes | memoryview) -> None:
    """Write all of `data`, in as many system calls as needed. Raises OSError."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def fsync_folder(folder: Path) -> None:
    """Make renames in the folder durable. Raises OSError."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
