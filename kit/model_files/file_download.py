"""One model file from the registry to its place on the disk: received, hashed, written, and proved by its digest.

Where many files come at once each is one stream, hashed and written piece by piece by the thread that receives it,
while the piece is in the processor's cache. Where few do, each comes in parts, several on their way at once.
"""

import contextlib
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from kit.model_files.registry_source import CHUNK, RemoteFile
from kit.net.part_stream import Buffers, in_order, write_all
from kit.net.range_client import RangedFile
from kit.net.retry import Stop, check_stop

# So many parts are fetched at once, each held in memory until it is its turn to be written.
CONNECTIONS = 6
PART = 8 << 20
# A stream is one request for so much. Between two is the time to ask whether the file is one of many still.
SPAN = 64 << 20
PIECE = 1 << 20

OnBytes = Callable[[int, int], None]
"""Told how many bytes came, and how many of the file are there now."""


class DownloadLimits:
    """What all downloads of one fetch share: connections, memory for parts, a thread that has the disk write."""

    def __init__(self) -> None:
        self.buffers = Buffers(CONNECTIONS * PART)
        self.pool = ThreadPoolExecutor(CONNECTIONS, thread_name_prefix="fetch-part")
        self.disk = ThreadPoolExecutor(1, thread_name_prefix="fetch-disk")

    def close(self) -> None:
        """End the threads; none of them has work any more."""
        self.pool.shutdown()
        self.disk.shutdown()


class Download:
    """Brings `remote` to `path`, once. `few()` says whether so few files are left that each should come in parts."""

    def __init__(
        self, file: RemoteFile, remote: RangedFile, path: Path,
        *, lanes: DownloadLimits, stop: Stop, few: Callable[[], bool], on_bytes: OnBytes,
    ) -> None:  # fmt: skip
        self.done = 0
        """How many bytes of the file are there and hashed."""
        self._file = file
        self._remote = remote
        self._path = path
        self._lanes = lanes
        self._stop = stop
        self._few = few
        self._on_bytes = on_bytes
        self._hasher = file.hasher()
        self._writing_back: Future[None] | None = None

    def run(self) -> bool:
        """Append what the file at the path lacks. False when the whole is not what was promised: then it is gone.

        Raises what reading `remote` raises, Cancelled, OSError.
        """
        size = self._file.size
        with self._path.open("a+b", buffering=0) as stream:
            descriptor = stream.fileno()
            stream.seek(0)
            while chunk := stream.read(CHUNK):
                check_stop(self._stop)
                self._hasher.update(chunk)
                self._came(len(chunk))
            try:
                while self.done < size:
                    if size - self.done > PART and self._few():
                        self._in_parts(descriptor)
                    else:
                        self._stream(descriptor, min(self.done + SPAN, size))
                    self._write_back(descriptor)
            finally:
                if self._writing_back is not None:
                    self._writing_back.result()
            right = self.done == size and self._file.is_proved_by(self._hasher)
            if right:
                os.fsync(descriptor)
        if not right:
            self._path.unlink()
        return right

    def _stream(self, descriptor: int, end: int) -> None:
        with contextlib.closing(self._remote.chunks(self.done, end, self._stop, piece=PIECE)) as pieces:
            for piece in pieces:
                self._hasher.update(piece)
                write_all(descriptor, piece)
                self._came(len(piece))

    def _in_parts(self, descriptor: int) -> None:
        def fill(view: memoryview, start: int, abandoned: threading.Event) -> None:
            self._remote.fill(view, start, self._stop, lambda _count: check_stop(abandoned))

        parts = in_order(
            fill, self.done, self._file.size, PART,
            buffers=self._lanes.buffers, pool=self._lanes.pool, ahead=CONNECTIONS, stop=self._stop,
        )  # fmt: skip
        with contextlib.closing(parts), ThreadPoolExecutor(1, thread_name_prefix="hash") as beside:
            for part in parts:
                try:
                    check_stop(self._stop)
                    hashed = beside.submit(self._hasher.update, part.view)
                    try:
                        write_all(descriptor, part.view)
                    finally:
                        hashed.result()
                    before = self.done
                    self._came(len(part.view))
                    if before // SPAN != self.done // SPAN:
                        self._write_back(descriptor)
                finally:
                    part.release()

    def _came(self, count: int) -> None:
        self.done += count
        self._on_bytes(count, self.done)

    def _write_back(self, descriptor: int) -> None:
        """Have the disk begin with what was written, so that little of it is left to wait for at the end."""
        if self._writing_back is not None:
            if not self._writing_back.done():
                return
            self._writing_back.result()
        self._writing_back = self._lanes.disk.submit(os.fdatasync, descriptor)
