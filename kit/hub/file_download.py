"""Download of one file: ranges fetched in parallel, handed in order to a sink that hashes, stores and verifies them.

Where many files are downloaded at once, each may be one stream instead, hashed and written chunk by chunk in the
receiving thread, while the chunk is in the processor's cache.
"""

import contextlib
import threading
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

from kit.net.part_stream import BufferPool, Part, parts_in_order
from kit.net.ranged_file import RangedFile
from kit.net.retry import check_stop

# A stream requests this much at once. In between, the download can switch to parallel parts.
SPAN = 64 << 20
CHUNK = 1 << 20


class Sink(Protocol):
    """Storage for one file. Used by one thread."""

    @property
    def done(self) -> int:
        """The bytes already stored when the sink was opened: the first part begins there."""
        ...

    def write(self, part: Part) -> None:
        """Hash and store the next part, and release it."""
        ...

    def finish(self) -> None:
        """Verify the digest and complete the file, or drop it and raise."""
        ...


class DownloadLimits:
    """Connections and memory that several downloads share."""

    def __init__(self, connections: int, part_size: int) -> None:
        """At most `connections` parts of `part_size` bytes are in flight at once."""
        self.connections = connections
        self.part_size = part_size
        self.buffers = BufferPool(connections * part_size)
        self.pool = ThreadPoolExecutor(connections, thread_name_prefix="fetch-part")

    def close(self) -> None:
        """Stop the threads; queued parts are dropped."""
        self.pool.shutdown(wait=False, cancel_futures=True)


class FileDownload:
    """The download of `remote`, a file of `size` bytes."""

    def __init__(
        self, remote: RangedFile, size: int, limits: DownloadLimits, stop: threading.Event,
        *, on_received: Callable[[int], None] = lambda _count: None, span: int = SPAN, chunk: int = CHUNK,
    ) -> None:  # fmt: skip
        """`on_received` gets the length of each chunk of a part, in the thread that received it."""
        self._remote = remote
        self._size = size
        self._limits = limits
        self._stop = stop
        self._on_received = on_received
        self._span = span
        self._chunk = chunk

    def run(self, sink: Sink, part_size: int, *, in_parts: Callable[[int], bool] = lambda _left: True) -> None:
        """Fetch what `sink` lacks, and finish it.

        `in_parts(left)` chooses how to fetch when `left` bytes are missing: the rest in parts, or the next span as a
        stream. Raises what `sink` and reading `remote` raise, Cancelled.
        """
        done = sink.done
        while done < self._size:
            if in_parts(self._size - done):
                source = self.parts(done, part_size)
            else:
                source = self._stream(done, min(done + self._span, self._size))
            with contextlib.closing(source) as parts:
                for part in parts:
                    done += len(part.view)
                    sink.write(part)
                    check_stop(self._stop)
        sink.finish()

    def parts(self, start: int, part_size: int) -> Generator[Part]:
        """Yield the file from byte `start` on, in parts that the caller releases."""
        limits = self._limits
        return parts_in_order(
            self._fill, start, self._size, part_size,
            buffers=limits.buffers, pool=limits.pool, ahead=limits.connections, stop=self._stop,
        )  # fmt: skip

    def _fill(self, view: memoryview, start: int, abandoned: threading.Event) -> None:
        def on_bytes(count: int) -> None:
            check_stop(abandoned)
            self._on_received(count)

        self._remote.fill(view, start, self._stop, on_bytes)

    def _stream(self, start: int, end: int) -> Generator[Part]:
        with contextlib.closing(self._remote.chunks(start, end, self._stop, size=self._chunk)) as chunks:
            for chunk in chunks:
                part = Part(start, chunk)
                start += len(chunk)
                yield part
