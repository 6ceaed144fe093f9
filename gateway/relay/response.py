"""What goes to the client: heads, framing, pieces, errors."""

import asyncio
from enum import Enum

from gateway.endpoints import Dialect
from gateway.http1.headers import HeaderList, status_line
from gateway.streams.splice import Seam
from gateway.streams.sse import ERROR_MARK, EventHolder, cut_at_failure, error_event
from gateway.streams.transcript import Transcript
from gateway.upstream.connection import UpstreamConnection
from kit.errors import ApiError

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
LAST_CHUNK = b"0\r\n\r\n"
# An answer up to this length waits for its end, in bytes: until then another backend can still be asked.
MAX_BUFFERED = 256 * 1024


class Framing(Enum):
    """How the client learns where the body ends."""

    LENGTH = "length"
    CHUNKED = "chunked"
    CLOSE = "close"


# Reading a member of an enumeration takes longer than all else that is done for a chunk.
_LENGTH, _CHUNKED, _CLOSE = Framing


class Response:
    """The answer to one request. Nothing goes out before the first byte of a body is there, or a whole short one."""

    __slots__ = (
        "_framing",
        "_holder",
        "_http11",
        "_transport",
        "_verbatim",
        "awaited",
        "begun",
        "failure",
        "keep_alive",
        "said",
        "status",
    )

    def __init__(self, transport: asyncio.Transport, *, http11: bool, keep_alive: bool) -> None:
        self._transport = transport
        self._http11 = http11
        self._framing: Framing | None = None
        self._holder: EventHolder | None = None
        # Its holder, where whole events may go out in the chunks that they came in.
        self._verbatim: EventHolder | None = None
        self.keep_alive = keep_alive
        # 0 until a backend's answer was accepted, or an error was written.
        self.status = 0
        # Whether bytes of a backend's answer have gone out.
        self.begun = False
        # Whether the head of a backend's answer is still to be looked at.
        self.awaited = True
        # What the backend has told, in its stream, of its own failure.
        self.failure: str | None = None
        # What a stream that another backend could go on with has said.
        self.said: Transcript | None = None

    def accept(self, connection: UpstreamConnection, *, keeps: bool) -> None:
        """This is the backend's answer that the client will get, unless it breaks before anything has gone out.

        `keeps` says whether what a stream says is kept, for another backend to go on with.
        """
        self.awaited = False
        self.status = connection.status
        if connection.is_stream:
            self._holder = EventHolder()
            if keeps and connection.status == 200:
                self.said = Transcript()

    def rejoin(self, *, carried: bool) -> None:
        """What comes now is the second half of a stream that has begun; `carried` as in Seam."""
        assert self.said is not None
        self.awaited = False
        self._holder = Seam(self.said, carried=carried)
        self._verbatim = None

    def await_another(self) -> None:
        """It broke: another will be accepted, or will go on with what has gone out."""
        self.awaited = True
        self.failure = None
        if not self.begun:
            self.status = 0
            self._holder = self.said = None

    def ready(self, connection: UpstreamConnection) -> bytes | None:
        """What may go out of what has come, or None when it must wait for more."""
        if (
            not connection.complete
            and not self.begun
            and connection.length is not None
            and connection.length <= MAX_BUFFERED
        ):
            return None
        data = connection.take_body()
        if self._holder is not None:
            data = self._holder.pass_on(data)
            if connection.complete:
                data += self._holder.rest()
            if self.said is not None and data:
                if ERROR_MARK in data:
                    data, self.failure = cut_at_failure(data)
                self.said.keep(data)
        return data if data or connection.complete else None

    def begin(self, connection: UpstreamConnection, data: bytes, provenance: bytes) -> None:
        """Send the head with the first piece of the body. `provenance` are our own header lines."""
        length: int | None = None
        # A length promised for events could not be kept once an error event must end them.
        if connection.length is not None and (self._holder is None or connection.complete):
            framing, length = _LENGTH, connection.length
        elif connection.complete and self._holder is None:
            framing, length = _LENGTH, len(data)
        elif self._http11:
            framing = _CHUNKED
        else:
            framing = _CLOSE
            self.keep_alive = False
        self._framing = framing
        self._verbatim = self._holder if framing is _CHUNKED else None
        self.begun = True
        head = response_head(
            connection.status, connection.forward, framing, length, provenance, keep_alive=self.keep_alive
        )
        self._transport.write(head + framed(data, framing, last=connection.complete))

    def passes_as_it_is(self, body: bytes) -> bool:
        """Whether what came in whole chunks may go out in them; if so, it counts as having gone out."""
        holder = self._verbatim
        if holder is None or holder.holds or self.awaited or not body.endswith(b"\n\n") or ERROR_MARK in body:
            return False
        if self.said is not None:
            self.said.keep(body)
        return True

    def go_on(self, data: bytes, *, last: bool) -> None:
        """Send the next piece of the body."""
        assert self._framing is not None
        self._transport.write(framed(data, self._framing, last=last))

    def refuse(self, error: ApiError, provenance: bytes, common: HeaderList) -> None:
        """Send an error as the whole answer. `common` are the headers that every answer of ours carries."""
        self.status = error.status
        self._transport.write(error_response(error, provenance, common, keep_alive=self.keep_alive))

    def is_cut_short(self, connection: UpstreamConnection) -> bool:
        """Whether a stream that ends with its connection, as one without length or chunks does, lacks its end."""
        if self.said is None or connection.chunked or connection.length is not None:
            return False
        self.said.read()
        return not (self.said.done or self.said.finished or self.said.reason)

    def cut(self, error: ApiError, dialect: Dialect) -> None:
        """End an answer that cannot be ended as it should, so that the client notices."""
        if self._holder is not None:
            self.go_on(error_event(error, dialect), last=True)
            return
        # Fewer bytes than promised, or no last chunk.
        self.keep_alive = False
        if self._framing is _CLOSE:
            # Here a plain close would look like the end.
            self._transport.abort()


def choice_headers(served: bytes, queue_s: float) -> bytes:
    """Our own header lines about the choice. `served` are those that the candidate carries."""
    return b"%bx-queue-ms: %.1f\r\n" % (served, queue_s * 1000)


def provenance_headers(served: bytes, attempts: int, request_id: str, cors: bytes) -> bytes:
    """All of our own header lines; `served` are those about the choice, where there was one."""
    return b"%bx-attempts: %d\r\nx-request-id: %b\r\n%b" % (served, attempts, request_id.encode("latin-1"), cors)


def response_head(
    status: int, forward: bytes, framing: Framing, length: int | None, provenance: bytes, *, keep_alive: bool
) -> bytes:
    """Return the head of a relayed response: `forward` are the backend's header lines, `provenance` are ours."""
    end = b"\r\n" if keep_alive else b"connection: close\r\n\r\n"
    if framing is _LENGTH:
        # RFC 9110, 8.6: an answer without content has no length.
        if status not in (204, 304):
            return b"%b%bcontent-length: %d\r\n%b%b" % (status_line(status), forward, length or 0, provenance, end)
    elif framing is _CHUNKED:
        return b"%b%btransfer-encoding: chunked\r\n%b%b" % (status_line(status), forward, provenance, end)
    return b"%b%b%b%b" % (status_line(status), forward, provenance, end)


def framed(data: bytes, framing: Framing, *, last: bool) -> bytes:
    """A piece of the body as it goes on the wire."""
    if framing is not _CHUNKED:
        return data
    if not data:
        return LAST_CHUNK if last else b""
    if last:
        return b"%x\r\n%b\r\n0\r\n\r\n" % (len(data), data)
    return b"%x\r\n%b\r\n" % (len(data), data)


def error_response(error: ApiError, provenance: bytes, common: HeaderList, *, keep_alive: bool) -> bytes:
    """A whole answer that is an error, in the envelope."""
    body = error.encoded()
    lines = [status_line(error.status), b"content-type: application/json\r\ncontent-length: %d\r\n" % len(body)]
    lines += [b"%b: %b\r\n" % header for header in common]
    lines += [f"{name.lower()}: {value}\r\n".encode("latin-1") for name, value in error.headers.items()]
    lines.append(provenance)
    lines.append(b"\r\n" if keep_alive else b"connection: close\r\n\r\n")
    lines.append(body)
    return b"".join(lines)
