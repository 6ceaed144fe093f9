"""Big files in parts: several on their way at once, handed on in order, in memory that is bounded for all together.

A part's memory is taken before its fetch begins, in the order of the file, so the first part that is missing always
has its memory and every file goes on, however little there is.
"""

import mmap
import os
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Executor, Future, wait

from kit.net.retry import check_stop

POLL_S = 0.2


class TooLong(Exception):
    """A stream has more bytes than was said."""


class Part:
    """Memory for one piece of a file. Who has it gives it back, once, by `release`."""

    def __init__(self, buffers: "Buffers", memory: mmap.mmap, start: int, length: int) -> None:
        self.start = start
        self.view = memoryview(memory)[:length]
        self._memory = memory
        self._buffers = buffers
        self._released = False

    def release(self) -> None:
        """Give the memory back; a second time changes nothing."""
        if not self._released:
            self._released = True
            self.view.release()
            self._buffers.give_back(self._memory)


class Buffers:
    """Memory for parts, at most `budget` bytes of it at once, or one part that is larger. Safe for many threads.

    Anonymous maps, used again and again: what malloc keeps of freed buffers of this size is as much again.
    """

    def __init__(self, budget: int) -> None:
        self._budget = budget
        self._out = 0
        self._waiting = 0
        self._free: list[mmap.mmap] = []
        self._changed = threading.Condition()

    def take(self, start: int, length: int, *, wait_s: float) -> Part | None:
        """Memory for the `length` bytes of a file from `start`; None when there is no room within `wait_s` seconds.

        Who does not wait gets none while others do: a file with parts on their way makes room for one that has none.
        """
        with self._changed:
            if wait_s <= 0 and self.is_waited_for:
                return None
            self._waiting += 1
            try:
                if not self._changed.wait_for(lambda: self._out == 0 or self._out + length <= self._budget, wait_s):
                    return None
            finally:
                self._waiting -= 1
            memory = self._reuse(length) or mmap.mmap(-1, max(length, 1))
            self._out += len(memory)
        return Part(self, memory, start, length)

    @property
    def is_waited_for(self) -> bool:
        """Whether somebody waits for memory now."""
        return self._waiting > 0

    def give_back(self, memory: mmap.mmap) -> None:
        """Called by `Part.release`."""
        with self._changed:
            self._out -= len(memory)
            self._free.append(memory)
            if self._out == 0:
                self._free.clear()  # nothing is going on: the system may have it
            self._changed.notify_all()

    def _reuse(self, length: int) -> mmap.mmap | None:
        for memory in self._free:
            if len(memory) == length:
                self._free.remove(memory)
                return memory
        self._free.clear()  # of other sizes: they would come on top of the budget
        return None


Fill = Callable[[memoryview, int, threading.Event], None]


def in_order(
    fill: Fill, start: int, size: int, part_size: int,
    *, buffers: Buffers, pool: Executor, ahead: int, stop: threading.Event,
) -> Generator[Part]:  # fmt: skip
    """Yield the parts of a file from byte `start` to `size`, in order; `fill(view, start, abandoned)` fetches one.

    Up to `ahead` are fetched at once, in `pool`. Each part is the consumer's to release. When nobody wants the parts
    any more, `abandoned` is set, and `fill` should end early. Raises what `fill` raises, and Cancelled.
    """
    abandoned = threading.Event()
    pending: deque[tuple[Future[None], Part]] = deque()
    try:
        while start < size or pending:
            if start < size and len(pending) < ahead:
                part = buffers.take(start, min(part_size, size - start), wait_s=0.0 if pending else POLL_S)
                if part is not None:
                    pending.append((pool.submit(fill, part.view, start, abandoned), part))
                    start += len(part.view)
                    continue
                if not pending:
                    check_stop(stop)
                    continue
            future, part = pending[0]
            if start < size and len(pending) < ahead and wait((future,), POLL_S).not_done:
                continue  # other files may have given memory back
            future.result()
            pending.popleft()
            yield part
    finally:
        abandoned.set()
        for future, _ in pending:
            future.cancel()
        for future, part in pending:
            if not future.cancelled():
                future.exception()  # it writes into the part: wait for its end
            part.release()


def cut(chunks: Iterable[bytes | memoryview], size: int, part_size: int, *, buffers: Buffers) -> Iterator[Part]:
    """Cut a stream of `size` bytes into parts of `part_size`, the last one shorter. Each is the consumer's to release.

    Ends early where `chunks` do. Raises TooLong at its end when there are more than `size` bytes.
    """
    source = iter(chunks)
    rest: bytes | memoryview = b""
    done = 0
    while done < size:
        part = None
        while part is None:
            part = buffers.take(done, min(part_size, size - done), wait_s=POLL_S)
        filled, length = 0, len(part.view)
        try:
            while filled < length and (piece := rest or next(source, b"")):
                count = min(len(piece), length - filled)
                part.view[filled : filled + count] = piece[:count]
                rest = piece[count:]
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
    """Write all of `data`, however often the system has to be asked. Raises OSError."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
