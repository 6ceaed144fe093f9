"""The access log of relayed requests: one line each, in the shape of `kit.middleware`'s, at a fraction of the cost.

A line through structlog takes longer than relaying the request, so JSON lines are encoded here and written some at a
time, at most a tenth of a second late. On a terminal structlog writes them.
"""

import asyncio
import sys
from datetime import UTC, datetime
from typing import IO, Any

import msgspec
import structlog

log = structlog.get_logger("access")

DELAY_S = 0.1
MOST_HELD = 256


class AccessLog:
    """Takes finished requests. Lines that no loop flushes any more are written by `flush`."""

    def __init__(self, service: str, *, as_json: bool, enabled: bool, stream: IO[str] | None = None) -> None:
        self._service = service
        self._as_json = as_json
        self._enabled = enabled
        self._stream = stream
        self._held: list[bytes] = []
        # Lines that could not be written, since the start.
        self.lost = 0
        self._encode = msgspec.json.Encoder().encode
        self._flushing: asyncio.TimerHandle | None = None

    def write(self, fields: dict[str, Any]) -> None:
        """Log one request that has just ended."""
        if not self._enabled:
            return
        fields["method"] = "POST"
        if not self._as_json:
            log.info("request", **fields)
            return
        fields["event"] = "request"
        fields["level"] = "info"
        fields["logger"] = "access"
        fields["service"] = self._service
        fields["timestamp"] = datetime.now(UTC).isoformat().replace("+00:00", "Z")
        self._held.append(self._encode(fields))
        if len(self._held) >= MOST_HELD:
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
            try:
                stream.write(b"\n".join(held).decode() + "\n")
                stream.flush()
            except (OSError, ValueError):  # ValueError: the stream is closed
                self.lost += len(held)
