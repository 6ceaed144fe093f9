"""The access log of relayed requests: one line each, in the shape of `kit.web.middleware`'s, at a fraction of the cost.

A line through structlog takes longer than relaying the request, so lines are encoded here and written some at a time,
at most a tenth of a second late.
"""

import asyncio
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from select import PIPE_BUF
from typing import IO

import msgspec


class Line(msgspec.Struct, gc=False):
    """One relayed request, in the fields of `kit.web.middleware`'s line. `ms` is a duration; UNSET is left out."""

    path: str
    status: int
    ms: float
    client: str | None
    request_id: str
    attempts: int | msgspec.UnsetType = msgspec.UNSET
    backend: str | msgspec.UnsetType = msgspec.UNSET
    model: str | msgspec.UnsetType = msgspec.UNSET
    # What is the same in every line.
    method: str = "POST"
    event: str = "request"
    level: str = "info"
    logger: str = "access"
    # What `AccessLog` puts in.
    service: str = ""
    timestamp: str = ""


# Fields that a line of text begins with.
_IN_FRONT = frozenset({"timestamp", "level", "event", "logger"})

DELAY_S = 0.1
MAX_HELD = 256


class AccessLog:
    """Takes finished requests. Lines that no loop flushes any more are written by `flush`."""

    def __init__(
        self, service: str, *, as_json: bool, enabled: bool, alone: bool = True, stream: IO[str] | None = None
    ) -> None:
        """`alone` says that no other process writes to the same stream."""
        self._service = service
        self._most_together = sys.maxsize if alone else PIPE_BUF
        self._enabled = enabled
        self._stream = stream
        # Finished requests, and when they ended: read only when they are written, many at a time.
        self._held: list[tuple[float, Line]] = []
        # Lines that could not be written, since the start.
        self.lost = 0
        self._encode: Callable[[list[Line]], bytes] = msgspec.json.Encoder().encode_lines if as_json else _as_text
        # The present second, and how it is written.
        self._second = -1
        self._written = ""
        self._flushing: asyncio.TimerHandle | None = None

    def write(self, line: Line) -> None:
        """Log one request that has just ended."""
        if not self._enabled:
            return
        self._held.append((time.time(), line))
        if len(self._held) >= MAX_HELD:
            self.flush()
        elif self._flushing is None:
            self._flushing = asyncio.get_running_loop().call_later(DELAY_S, self.flush)

    def flush(self) -> None:
        """Write what is held. A full disk or a reader that has gone costs the lines, not the requests they tell of."""
        if self._flushing is not None:
            self._flushing.cancel()
            self._flushing = None
        if self._held:
            held, self._held = self._held, []
            stream = self._stream or sys.stderr
            for lines in _together(self._encode([self._completed(at, line) for at, line in held]), self._most_together):
                try:
                    stream.write(lines.decode())
                    stream.flush()
                except (OSError, ValueError):  # ValueError: the stream is closed
                    self.lost += lines.count(b"\n")

    def _completed(self, at: float, line: Line) -> Line:
        second = int(at)
        if second != self._second:
            self._second = second
            self._written = datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S")
        line.service = self._service
        line.timestamp = "%s.%06dZ" % (self._written, (at - second) * 1e6)  # noqa: UP031  # the fastest by far
        return line


def _together(lines: bytes, most: int) -> Iterator[bytes]:
    """The lines in groups of at most so many bytes.

    What PIPE_BUF holds, a pipe takes whole: so those of several workers never mix (pipe(7)).
    """
    begin = 0
    while begin < len(lines):
        # Up to the last end of a line within reach, or, where one line is longer, to its own.
        end = lines.rfind(b"\n", begin, begin + most) + 1 or lines.index(b"\n", begin) + 1
        yield lines[begin:end]
        begin = end


def _as_text(lines: list[Line]) -> bytes:
    """The lines as structlog's console renderer writes them, without colours."""
    return b"".join([_line_as_text(line) for line in lines])


def _line_as_text(line: Line) -> bytes:
    fields = msgspec.to_builtins(line)
    told = " ".join(f"{name}={fields[name]}" for name in sorted(fields) if name not in _IN_FRONT)
    return f"{line.timestamp} [{line.level:<9}] {line.event:<30} [{line.logger}] {told}\n".encode()
