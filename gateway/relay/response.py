"""The response to the client: head, framing, body, errors."""

import asyncio
import math
import re
from enum import Enum

from gateway.endpoints import Dialect
from gateway.http1.headers import HeaderList, status_line
from gateway.streams.splice import StreamSplicer
from gateway.streams.sse import ERROR_MARK, EventBuffer, cut_at_error, error_event
from gateway.streams.transcript import Transcript
from gateway.upstream.connection import UpstreamConnection
from kit.errors import ApiError

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
LAST_CHUNK = b"0\r\n\r\n"
# The header lines and the body of an error.
RenderedError = tuple[bytes, bytes]
# A response with a length up to this, in bytes, is buffered to its end: until then a failure can be retried.
MAX_BUFFERED = 256 * 1024
# A Retry-After that is neither a number of seconds nor a date (RFC 9110, 10.2.3 and 5.6.7).
_MALFORMED_RETRY_AFTER = re.compile(
    rb"^retry-after:(?![ \t]*(?:[0-9]+|(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun), [0-3][0-9] "
    rb"(?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec) [0-9]{4} [0-2][0-9]:[0-5][0-9]:[0-6][0-9] GMT)"
    rb"[ \t]*\r\n)[^\r\n]*\r\n",
    re.MULTILINE,
)


class Framing(Enum):
    """Framing of the response's body."""

    LENGTH = "length"
    CHUNKED = "chunked"
    CLOSE = "close"


class ResponseState(Enum):
    """The state of a response, and what ends it.

    AWAITED      no backend's status is accepted       `accept`
    ACCEPTED     accepted; nothing sent, so that a
                 failure can still be retried          `begin`, `await_backend` (-> AWAITED)
    SENDING      bytes have gone to the client         `await_backend` (-> INTERRUPTED), its end
    INTERRUPTED  the backend failed after that; the
                 rest is expected from another one     `resume` (-> SENDING), `cut`
    """

    AWAITED = "awaited"
    ACCEPTED = "accepted"
    SENDING = "sending"
    INTERRUPTED = "interrupted"


# Reading a member of an enumeration costs more than all else that is done for a chunk.
_LENGTH, _CHUNKED, _CLOSE = Framing
AWAITED, ACCEPTED, SENDING, INTERRUPTED = ResponseState
# The states in which a backend's head is awaited; those in which bytes have gone to the client.
AWAITING = (AWAITED, INTERRUPTED)
BEGUN = (SENDING, INTERRUPTED)


class Response:
    """The response to one request. Sending begins with the first bytes of a body, or with a whole short response."""

    __slots__ = (
        "_buffer", "_framing", "_http11", "_transport", "_verbatim", "failure", "keep_alive", "state", "status",
        "transcript",
    )  # fmt: skip

    def __init__(self, transport: asyncio.Transport, *, http11: bool, keep_alive: bool) -> None:
        self._transport = transport
        self._http11 = http11
        self._framing: Framing | None = None
        # Of an event stream only.
        self._buffer: EventBuffer | None = None
        # The same buffer if the client gets chunks and may get the backend's own.
        self._verbatim: EventBuffer | None = None
        self.keep_alive = keep_alive
        self.state = AWAITED
        # 0 until a backend's status was accepted or an error was sent.
        self.status = 0
        # The message of an error event in which the backend reported that it has failed.
        self.failure: str | None = None
        # What was sent of a stream that another backend could continue.
        self.transcript: Transcript | None = None

    def accept(self, connection: UpstreamConnection, *, resumable: bool) -> None:
        """Take the backend's response; it is not final until bytes of it are sent.

        `resumable` says whether the route's streams can be continued by another backend.
        """
        self.state = ACCEPTED
        self.status = connection.status
        if connection.is_stream:
            self._buffer = EventBuffer()
            if resumable and connection.status == 200:
                self.transcript = Transcript()

    def resume(self, *, includes_transcript: bool) -> None:
        """Continue an interrupted stream with what another backend sends; the flag is `Continuation`'s."""
        assert self.transcript is not None
        self.state = SENDING
        self._buffer = StreamSplicer(self.transcript, includes_transcript=includes_transcript)
        self._verbatim = None

    def await_backend(self) -> None:
        """Drop what a failed backend sent and the client has not got; await another one's response."""
        self.failure = None
        if self.state in BEGUN:
            self.state = INTERRUPTED
        else:
            self.state = AWAITED
            self.status = 0
            self._buffer = self.transcript = None

    def take_ready(self, connection: UpstreamConnection) -> bytes | None:
        """Return what can be sent of what has arrived, None if it has to wait for more. May set `failure`."""
        if (
            not connection.complete
            and self.state is ACCEPTED
            and connection.length is not None
            and connection.length <= MAX_BUFFERED
        ):
            return None
        data = connection.take_body()
        if self._buffer is not None:
            data = self._buffer.feed(data)
            if connection.complete:
                data += self._buffer.flush()
            if self.transcript is not None and data:
                if ERROR_MARK in data:
                    data, self.failure = cut_at_error(data)
                self.transcript.record(data)
        return data if data or connection.complete else None

    def begin(self, connection: UpstreamConnection, data: bytes, provenance: bytes) -> None:
        """Send the head with the first piece of the body. `provenance` are the gateway's own header lines."""
        length: int | None = None
        # A stream may have to end in an error event: its length cannot be promised.
        if connection.length is not None and (self._buffer is None or connection.complete):
            framing, length = _LENGTH, connection.length
        elif connection.complete and self._buffer is None:
            framing, length = _LENGTH, len(data)
        elif self._http11:
            framing = _CHUNKED
        else:
            framing = _CLOSE
            self.keep_alive = False
        self._framing = framing
        self._verbatim = self._buffer if framing is _CHUNKED else None
        self.state = SENDING
        head = response_head(
            connection.status, connection.forward, framing, length, provenance, keep_alive=self.keep_alive
        )
        self._transport.write(head + framed(data, framing, last=connection.complete))

    def try_verbatim(self, body: bytes) -> bool:
        """Record `body` if the chunks it came in can be forwarded as they are; return whether they can."""
        buffer = self._verbatim
        if (
            buffer is None
            or buffer.partial
            or self.state is not SENDING
            or not body.endswith(b"\n\n")
            or ERROR_MARK in body
        ):
            return False
        if self.transcript is not None:
            self.transcript.record(body)
        return True

    def send(self, data: bytes, *, last: bool) -> None:
        """Send the next piece of the body."""
        assert self._framing is not None
        self._transport.write(framed(data, self._framing, last=last))

    def refuse(self, error: ApiError, rendered: RenderedError, provenance: bytes, common: HeaderList) -> None:
        """Send an error as the whole response. `common` are uvicorn's default headers."""
        lines = [b"%b: %b\r\n" % header for header in common]
        lines += [f"{name.lower()}: {value}\r\n".encode("latin-1") for name, value in error.headers.items()]
        self._send_error(error.status, b"".join(lines), rendered, provenance)

    def replace(
        self, error: ApiError, rendered: RenderedError, provenance: bytes, connection: UpstreamConnection
    ) -> None:
        """Send an error in place of a backend's, with the backend's headers."""
        lines = connection.forward.splitlines(keepends=True)
        forward = b"".join(line for line in lines if not line.startswith(b"content-type:"))
        self._send_error(error.status, forward, rendered, provenance)

    def _send_error(self, status: int, lines: bytes, rendered: RenderedError, provenance: bytes) -> None:
        self.status = status
        extra, body = rendered
        head = response_head(status, lines + extra, _LENGTH, len(body), provenance, keep_alive=self.keep_alive)
        self._transport.write(head + body)

    def is_truncated(self, connection: UpstreamConnection) -> bool:
        """Return whether a complete stream lacks its end: closing its connection is the only framing it had."""
        if self.transcript is None or connection.chunked or connection.length is not None:
            return False
        self.transcript.read()
        return not (self.transcript.done or self.transcript.finished or self.transcript.obstacle)

    def cut(self, error: ApiError, dialect: Dialect, request_id: str) -> None:
        """End an unfinished response so that the client notices: with an error event, or by breaking its framing."""
        if self._buffer is not None:
            self.send(error_event(error, dialect, request_id), last=True)
            return
        # Fewer bytes than promised, or no last chunk.
        self.keep_alive = False
        if self._framing is _CLOSE:
            # An orderly close would look like the end.
            self._transport.abort()


def awaits_rest(connection: UpstreamConnection) -> bool:
    """Return whether the rest of an error response is awaited before it is judged."""
    return not connection.complete and max(connection.length or 0, sum(map(len, connection.body))) <= MAX_BUFFERED


def with_valid_retry_after(forward: bytes, wait_s: float) -> bytes:
    """Return a backend's header lines with the seconds `wait_s` in place of a Retry-After that clients cannot read."""
    return _MALFORMED_RETRY_AFTER.sub(b"retry-after: %d\r\n" % max(math.ceil(wait_s), 1), forward)


def response_head(
    status: int, forward: bytes, framing: Framing, length: int | None, provenance: bytes, *, keep_alive: bool
) -> bytes:
    """Return the head of a relayed response: `forward` are the backend's header lines, `provenance` are ours."""
    end = b"\r\n" if keep_alive else b"connection: close\r\n\r\n"
    if framing is _LENGTH:
        # RFC 9110, 8.6: a response without content has no length.
        if status not in (204, 304):
            return b"%b%bcontent-length: %d\r\n%b%b" % (status_line(status), forward, length or 0, provenance, end)
    elif framing is _CHUNKED:
        return b"%b%btransfer-encoding: chunked\r\n%b%b" % (status_line(status), forward, provenance, end)
    return b"%b%b%b%b" % (status_line(status), forward, provenance, end)


def framed(data: bytes, framing: Framing, *, last: bool) -> bytes:
    """Return a piece of the body as it goes on the wire."""
    if framing is not _CHUNKED:
        return data
    if not data:
        return LAST_CHUNK if last else b""
    if last:
        return b"%x\r\n%b\r\n0\r\n\r\n" % (len(data), data)
    return b"%x\r\n%b\r\n" % (len(data), data)
