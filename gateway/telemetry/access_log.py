"""Access log of relayed requests: one line each, in the format of `kit.web.middleware`.

Logging a line through structlog takes longer than relaying the request, so lines are encoded here and written in
batches, at most a tenth of a second late.
"""

import asyncio
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from select import PIPE_BUF
from typing import IO

import msgspec

from kit.logs import escaped


class Line(msgspec.Struct, gc=False):
    """One relayed request, with the fields of `kit.web.middleware`. `ms` is a duration; UNSET fields are omitted."""

    path: str
    status: int
    ms: float
    client: str | None
    request_id: str
    attempts: int | msgspec.UnsetType = msgspec.UNSET
    backend: str | msgspec.UnsetType = msgspec.UNSET
    model: str | msgspec.UnsetType = msgspec.UNSET
    # Constant fields.
    method: str = "POST"
    event: str = "request"
    level: str = "info"
    logger: str = "access"
    service: str = "gateway"
    # Set by `AccessLog`.
    timestamp: str = ""


# Fields at the beginning of a text line.
_LEADING = frozenset({"timestamp", "level", "event", "logger"})

# Lines are written after this time in seconds, or as soon as there are this many.
DELAY_S = 0.1
MAX_HELD = 256


class AccessLog:
    """Logs finished requests. Call `flush` after the event loop has stopped."""

    def __init__(
        self,
        *,
        as_json: bool,
        enabled: bool,
        is_only_writer: bool = True,
        stream: IO[str] | None = None,
    ) -> None:
        """`is_only_writer` is False if other processes write to the same stream."""
        self._max_write = sys.maxsize if is_only_writer else PIPE_BUF
        self._enabled = enabled
        self._stream = stream
        # Finished requests with the Unix times at which they ended.
        self._held: list[tuple[float, Line]] = []
        # Lines that could not be written, since the start.
        self.lost_lines = 0
        self._encode: Callable[[list[Line]], bytes] = msgspec.json.Encoder().encode_lines if as_json else _as_text
        # The current second and its text.
        self._second = -1
        self._second_text = ""
        self._flushing: asyncio.TimerHandle | None = None

    def write(self, line: Line) -> None:
        """Log a request that has just ended."""
        if not self._enabled:
            return
        self._held.append((time.time(), line))
        if len(self._held) >= MAX_HELD:
            self.flush()
        elif self._flushing is None:
            self._flushing = asyncio.get_running_loop().call_later(DELAY_S, self.flush)

    def flush(self) -> None:
        """Write pending lines. A full disk or a closed stream loses the lines, but no request."""
        if self._flushing is not None:
            self._flushing.cancel()
            self._flushing = None
        if self._held:
            held, self._held = self._held, []
            stream = self._stream or sys.stderr
            for lines in _batches(self._encode([self._complete(at, line) for at, line in held]), self._max_write):
                try:
                    stream.write(lines.decode())
                    stream.flush()
                except (OSError, ValueError):  # ValueError: the stream is closed
                    self.lost_lines += lines.count(b"\n")

    def _complete(self, at: float, line: Line) -> Line:
        second = int(at)
        if second != self._second:
            self._second = second
            self._second_text = datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S")
        line.timestamp = "%s.%06dZ" % (self._second_text, (at - second) * 1e6)  # noqa: UP031  # the fastest by far
        return line


def _batches(lines: bytes, max_bytes: int) -> Iterator[bytes]:
    """Yield whole lines in batches of at most `max_bytes`, or single longer lines.

    Writes of up to PIPE_BUF to a pipe are atomic, so that lines of several workers never mix (pipe(7)).
    """
    begin = 0
    while begin < len(lines):
        end = lines.rfind(b"\n", begin, begin + max_bytes) + 1 or lines.index(b"\n", begin) + 1
        yield lines[begin:end]
        begin = end


def _as_text(lines: list[Line]) -> bytes:
    """Format lines as structlog's console renderer does, without colours."""
    text = ""
    for line in lines:
        fields = msgspec.to_builtins(line)
        rest = " ".join(f"{name}={fields[name]}" for name in sorted(fields) if name not in _LEADING)
        text += f"{line.timestamp} [{line.level:<9}] {line.event:<30} [{line.logger}] {escaped(rest)}\n"
    return text.encode()
