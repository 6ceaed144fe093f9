"""Connections to backends: HTTP/1.1 on httptools, kept alive and used again (gateway.pool).

A connection belongs either to its pool or to one exchange. The exchange that took it gives it back or aborts it, on
every path. Everything here runs on one event loop and nothing waits.
"""

import asyncio
import re
from typing import Protocol, cast

import httptools

from gateway.http1.header_cache import HeaderCache
from gateway.http1.headers import HeaderList, response_headers, status_line

# What an answer's head may take, in bytes, and how much of one may come before its end is seen.
MAX_HEAD = 256 * 1024


class CachedResponseHead:
    """What the head of a backend's answer means."""

    __slots__ = ("before_length", "chunked", "forward", "is_stream", "keep", "status")

    def __init__(self, status: int, forward: bytes, *, is_stream: bool, chunked: bool, keep: bool) -> None:
        self.status = status
        self.forward = forward
        self.is_stream = is_stream
        self.chunked = chunked
        # Whether the connection stays after an answer with a length.
        self.keep = keep
        # How its head goes on to the client, up to the digits of a length.
        self.before_length = b"%b%bcontent-length: " % (status_line(status), forward)


class Listener(Protocol):
    """The exchange that a connection works for."""

    def on_response(self, connection: "UpstreamConnection") -> None:
        """Something of the answer has come: look at the connection's fields, and take `body`."""

    def on_chunks(self, connection: "UpstreamConnection", body: bytes, framed: bytes) -> None:
        """Of an answer whose head is done whole chunks have come and nothing else: what they hold, and as they came."""

    def on_lost(self, connection: "UpstreamConnection", reason: str) -> None:
        """The connection has ended or broke HTTP before the answer was complete. It is gone for good."""

    def on_room(self) -> None:
        """More of the request may be written."""


class Shortcut(Protocol):
    """What an exchange may give its connection for as long as nothing unusual comes."""

    def takes(self, data: bytes) -> bool:
        """Deal with what has come, or return False and leave it to the listener; then it is given up."""


class Owner(Protocol):
    """The pool that a connection belongs to while no exchange has it."""

    known: HeaderCache[CachedResponseHead]

    def put(self, connection: "UpstreamConnection") -> None:
        """Keep a connection for later."""

    def opened(self, connection: "UpstreamConnection") -> None:
        """Count a connection."""

    def lost(self, connection: "UpstreamConnection") -> None:
        """Forget a connection that has ended."""


class UpstreamConnection(asyncio.Protocol):
    """One connection. Its fields describe the answer that is coming in."""

    def __init__(self, pool: Owner) -> None:
        self._pool = pool
        self._parser = httptools.HttpResponseParser(self)
        self.transport: asyncio.Transport = None  # type: ignore[assignment]  # set by connection_made, before any use
        self.listener: Listener | None = None
        self.shortcut: Shortcut | None = None
        self.reused = False
        self.full = False
        # Whether it is not read from for now.
        self.paused = False
        self._lost = False
        self._keep = False
        self.body: list[bytes] = []
        self._reset()

    def _reset(self) -> None:
        self.status = 0
        self._headers: HeaderList = []
        # The lines of its head that go on to the client; whether it is of events.
        self.forward = b""
        self.is_stream = False
        self.head_done = False
        # What its head means, where that was known and the whole answer, no stream, came with it.
        self.known: CachedResponseHead | None = None
        self.length: int | None = None
        self.chunked = False
        self.complete = False
        self.any_byte = False
        self._head_bytes = 0
        # A known head that the parser has not seen yet; whether it has seen anything of this answer.
        self._known_head = b""
        self._parsing = False

    # What the exchange calls.

    def begin(self, listener: Listener, data: bytes) -> None:
        """Send the first bytes of a request, or all of them; the answer goes to `listener`."""
        self.listener = listener
        self.transport.write(data)

    def write(self, data: bytes) -> None:
        """Send more of the request. While `full` is set, wait for `on_room` first."""
        self.transport.write(data)

    @property
    def ended(self) -> bool:
        """Whether the other side has ended it."""
        return self._lost

    @property
    def takes_more(self) -> bool:
        """Whether `write` makes sense now. A dead transport swallows all that it is given, and never is full."""
        return not self.full and not self.transport.is_closing()

    def take_body(self) -> bytes:
        """What has come of the body since the last call, without its framing."""
        body = self.body
        if len(body) == 1:
            data = body[0]
            body.clear()
            return data
        data = b"".join(body)
        body.clear()
        return data

    def pause(self) -> None:
        """Read no more for now: the client is slower than the backend."""
        if not self.paused and not self.transport.is_closing():
            self.paused = True
            self.transport.pause_reading()

    def resume(self) -> None:
        """Read again."""
        if self.paused and not self.transport.is_closing():
            self.paused = False
            self.transport.resume_reading()

    def release(self, *, whole_request_sent: bool = True) -> None:
        """The exchange is done with a complete answer: the connection goes back to its pool, or ends."""
        self.listener = self.shortcut = None
        keep = self._keep and whole_request_sent and not self.full and not self.transport.is_closing()
        if keep:
            if self.paused:
                self.resume()
            self._reset()
            self.reused = True
            self._pool.put(self)
        else:
            self.transport.close()

    def abort(self) -> None:
        """The exchange wants no more of it: the backend sees the connection end at once."""
        self.listener = self.shortcut = None
        self.transport.abort()

    # What the event loop calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the transport."""
        self.transport = cast(asyncio.Transport, transport)  # uvloop's transports are not of asyncio's class
        self._pool.opened(self)

    def data_received(self, data: bytes) -> None:
        """Parse what has come and tell the exchange."""
        if self.shortcut is not None:
            if self.shortcut.takes(data):
                return
            self.shortcut = None
        listener = self.listener
        if listener is None:
            # Nobody asked: a late or made-up answer must not become the next request's.
            self.transport.abort()
            return
        if not self._parsing:
            if self.head_done:
                body = _chunks_in(data)
                if body:
                    listener.on_chunks(self, body, data)
                    return
            elif self._read_known(data):
                self.any_byte = True
                listener.on_response(self)
                return
        first = not self.any_byte
        self.any_byte = True
        try:
            self._parse(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            # What follows a whole answer is nobody's: the answer counts, the connection ends.
            self._keep = False
            if not self.complete:
                self._fail(f"it answered what is not HTTP/1.1: {error}")
                return
        if not self.head_done:
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD:
                self._fail("the head of its answer is too large")
            return
        if first:
            self._learn(data)
        listener.on_response(self)

    def _read_known(self, data: bytes) -> bool:
        """Read what needs no parser: a known head, with its whole body where that has a length, or with chunks."""
        found = self._pool.known.find(data)
        if found is None:
            return False
        known, length, start = found
        if known.chunked:
            if length >= 0:
                return False
            if len(data) > start:
                body = _chunks_in(data[start:])
                if not body:
                    return False
                self.body.append(body)
            self._known_head = data[:start]
            self.chunked = True
        elif len(data) - start != length:
            return False
        else:
            self.length = length
            self.body.append(data[start:])
            self.complete = True
            self.known = None if known.is_stream else known
            self._keep = known.keep
        self.status = known.status
        self.forward = known.forward
        self.is_stream = known.is_stream
        self.head_done = True
        return True

    def _parse(self, data: bytes) -> None:
        """Let the parser have it, and first what it has not seen: it always joins between two chunks."""
        self._parsing = True
        if self._known_head:
            known_head, self._known_head = self._known_head, b""
            self._parser.feed_data(known_head)
        self._parser.feed_data(data)

    def _learn(self, data: bytes) -> None:
        """Remember the head of an answer that the parser has read, all of it from `data`."""
        if self.status == 200 and data.startswith(b"HTTP/1.1 200") and (self.chunked or (self.complete and self._keep)):
            known = CachedResponseHead(
                self.status, self.forward, is_stream=self.is_stream, chunked=self.chunked, keep=self._keep
            )
            self._pool.known.learn(data, known, self.length)

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the exchange, or the pool."""
        self._lost = True
        self._pool.lost(self)
        if self.listener is None:
            return
        if self.head_done and not self.complete and self.length is None and not self.chunked and exc is None:
            # RFC 9112, 6.3: without a length the body ends with the connection.
            self.complete = True
            self._keep = False
            self.listener.on_response(self)
            return
        self._tell_lost("it closed the connection" if exc is None else f"the connection broke: {exc}")

    def pause_writing(self) -> None:
        """The backend reads more slowly than we send."""
        self.full = True

    def resume_writing(self) -> None:
        """There is room again."""
        self.full = False
        if self.listener is not None:
            self.listener.on_room()

    def _fail(self, reason: str) -> None:
        self.transport.abort()
        self._tell_lost(reason)

    def _tell_lost(self, reason: str) -> None:
        listener, self.listener = self.listener, None
        if listener is not None:
            listener.on_lost(self, reason)

    # What httptools calls.

    def on_message_begin(self) -> None:
        """Refuse a second answer to one request."""
        if self.complete:
            raise httptools.HttpParserError("more than one answer")

    def on_header(self, name: bytes, value: bytes) -> None:
        """Collect the head; what trailers say is dropped."""
        if self.head_done:
            return
        name = name.lower()
        if name == b"content-length":
            self.length = int(value)
        elif name == b"transfer-encoding":
            self.chunked = True
        self._headers.append((name, value))

    def on_headers_complete(self) -> None:
        """The head is whole, unless it was an interim one (RFC 9110, 15.2), which is dropped."""
        status = self._parser.get_status_code()
        if status < 200 or self.head_done:
            # A known head that the parser is shown late was read before: its lines are not collected again.
            return
        self.status = status
        self.head_done = True
        self.forward = response_headers(self._headers)
        self.is_stream = any(
            name == b"content-type" and value.lower().startswith(b"text/event-stream") for name, value in self._headers
        )
        if status in (204, 304):
            self.length = 0

    def on_body(self, body: bytes) -> None:
        """Collect a piece of the body, without its framing."""
        self.body.append(body)

    def on_message_complete(self) -> None:
        """The answer is whole. llhttp knows only here whether the connection stays."""
        if not self.head_done:
            self._reset()
            # The parser has the rest of what has come: it goes on alone.
            self.any_byte = self._parsing = True
            return
        self.complete = True
        self._keep = self._parser.should_keep_alive()


# How chunks' sizes are written, and what they are: they repeat. Larger chunks go through the parser.
_SIZES: dict[bytes, int] = {}
_MAX_SIZES = 4096
_MAX_SIZE = 6
_SIZE = re.compile(rb"[0-9A-Fa-f]{1,4}\Z")


def _chunks_in(data: bytes) -> bytes:
    """What `data` holds, where that is whole chunks, without the last one; else nothing.

    One chunk is what a backend sends for each token; where the gateway was held up, several have come.
    """
    whole: list[bytes] = []
    begin = 0
    while True:
        digits_end = data.find(b"\r\n", begin, begin + _MAX_SIZE)
        if digits_end < 0:
            return b""
        digits = data[begin:digits_end]
        size = _SIZES.get(digits) or _read_size(digits)
        end = digits_end + size + 4
        if not size or end > len(data) or data[end - 2 : end] != b"\r\n":
            return b""
        chunk = data[digits_end + 2 : end - 2]
        if end == len(data):
            return b"".join([*whole, chunk]) if whole else chunk
        whole.append(chunk)
        begin = end


def _read_size(digits: bytes) -> int:
    """The size of a chunk, 0 where `digits` is none."""
    if not _SIZE.match(digits):
        return 0
    if len(_SIZES) >= _MAX_SIZES:
        _SIZES.clear()
    size = _SIZES[digits] = int(digits, 16)
    return size
