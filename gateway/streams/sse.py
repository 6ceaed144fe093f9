"""Server-sent events in transit: only whole events are forwarded, so that an error event can follow at any time.

Format: https://html.spec.whatwg.org/multipage/server-sent-events.html. A client cannot use half an event, so buffering
it adds no latency.
"""

import json

from gateway.endpoints import Dialect
from kit.errors import ApiError

# An unfinished event larger than this, in bytes, is forwarded as it is, to bound memory.
MAX_PARTIAL = 1024 * 1024
# The start of an error event as vLLM and similar servers write it.
ERROR_MARK = b'data: {"error"'
_ENDS = (b"\n\n", b"\r\n\r\n", b"\r\r")


class EventBuffer:
    """Splits a byte stream at event boundaries."""

    __slots__ = ("partial",)

    def __init__(self) -> None:
        # The start of an unfinished event.
        self.partial = b""

    def feed(self, data: bytes) -> bytes:
        """Add received bytes; return the events that are complete."""
        if self.partial:
            data = self.partial + data
            self.partial = b""
        if data.endswith(_ENDS):
            return data
        end = max(data.rfind(mark) + len(mark) if mark in data else 0 for mark in _ENDS)
        if len(data) - end > MAX_PARTIAL:
            return data
        self.partial = data[end:]
        return data[:end]

    def flush(self) -> bytes:
        """Return the unfinished rest of a stream that has ended properly."""
        partial, self.partial = self.partial, b""
        return partial


def cut_at_error(events: bytes) -> tuple[bytes, str | None]:
    """Return the events before an error event that reports a failed backend, and its message; else all, and None.

    vLLM ends a stream with one when its engine crashes or stops; an error in the request has a code below 500. Our own
    services use names as codes, and a type for server errors.
    """
    start = events.find(ERROR_MARK)
    if start < 0:
        return events, None
    try:
        error = json.loads(events[start + 6 :].partition(b"\n\n")[0])["error"]
        message = str(error["message"])
        is_failure = error.get("type") == ApiError.type or int(error["code"]) >= 500
    except (ValueError, KeyError, TypeError, RecursionError):
        return events, None
    return (events[:start], message) if is_failure else (events, None)


def error_event(error: ApiError, dialect: Dialect, request_id: str | None = None) -> bytes:
    """Return the event that ends a failed stream, in the form that each API's clients understand.

    Sources: openai-python `_streaming.py` raises APIError on a data line with `error`;
    https://platform.openai.com/docs/api-reference/responses-streaming/error and
    https://docs.anthropic.com/en/docs/build-with-claude/streaming#error-events.
    """
    if dialect == "openai":
        return b"data: %b\n\n" % error.encoded()
    if dialect == "responses":
        body: dict[str, object] = {"type": "error", "code": error.code, "message": error.message, "param": error.param}
    else:
        body = error.anthropic_body(request_id)
    return b"event: error\ndata: %b\n\n" % json.dumps(body, ensure_ascii=False).encode()
