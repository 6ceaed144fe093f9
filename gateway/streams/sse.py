"""Server-sent events on their way: only whole ones go on, so that an error event can follow at any time.

Format: https://html.spec.whatwg.org/multipage/server-sent-events.html. Whoever reads events can do nothing with half of
one, so holding back the half costs no time.
"""

import json

from gateway.endpoints import Dialect
from kit.errors import ApiError

# Beyond this, in bytes, an unfinished event goes on as it is: memory must stay bounded.
MAX_HELD = 1024 * 1024
# How such an event begins in what vLLM and its kin write.
ERROR_MARK = b'data: {"error"'
_ENDS = (b"\n\n", b"\r\n\r\n", b"\r\r")


class EventHolder:
    """Holds back an event until it is whole."""

    __slots__ = ("holds",)

    def __init__(self) -> None:
        # The beginning of an event.
        self.holds = b""

    def pass_on(self, data: bytes) -> bytes:
        """Take what has come; return what may go to the client."""
        if self.holds:
            data = self.holds + data
            self.holds = b""
        if data.endswith(_ENDS):
            return data
        end = max(data.rfind(mark) + len(mark) if mark in data else 0 for mark in _ENDS)
        if len(data) - end > MAX_HELD:
            return data
        self.holds = data[end:]
        return data[:end]

    def rest(self) -> bytes:
        """What is still held, when the answer ended as it should."""
        held, self.holds = self.holds, b""
        return held


def cut_at_failure(events: bytes) -> tuple[bytes, str | None]:
    """What stands before an event by which a backend tells that it has failed, and its message; else all, and None.

    vLLM ends a stream so when its engine has died or stops; an error that is the request's own has a code below 500.
    Our own services have names for codes, and a type of error for what is not the request's fault.
    """
    start = events.find(ERROR_MARK)
    if start < 0:
        return events, None
    try:
        error = json.loads(events[start + 6 :].partition(b"\n\n")[0])["error"]
        message = str(error["message"])
        failed = error.get("type") == ApiError.type or int(error["code"]) >= 500
    except (ValueError, KeyError, TypeError):
        return events, None
    return (events[:start], message) if failed else (events, None)


def error_event(error: ApiError, dialect: Dialect) -> bytes:
    """The event that ends a stream whose backend died, as each API's clients understand it.

    Sources: openai-python `_streaming.py` raises APIError on a data line with `error`;
    https://platform.openai.com/docs/api-reference/responses-streaming/error and
    https://docs.anthropic.com/en/docs/build-with-claude/streaming#error-events.
    """
    if dialect == "openai":
        return b"data: %b\n\n" % error.encoded()
    if dialect == "responses":
        body: dict[str, object] = {"type": "error", "code": error.code, "message": error.message, "param": error.param}
    else:
        body = {"type": "error", "error": {"type": "api_error", "message": error.message}}
    return b"event: error\ndata: %b\n\n" % json.dumps(body, ensure_ascii=False).encode()
