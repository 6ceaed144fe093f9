"""Connections to backends: HTTP/1.1 on httptools, kept alive and reused (`gateway.upstream.pool`).

A connection belongs either to its pool or to one listener, which returns it or aborts it, on every path. Everything
runs in callbacks on one event loop.
"""

import asyncio
import re
from collections.abc import Callable
from typing import Protocol, cast

import httptools

from gateway.http1.header_cache import HeaderCache
from gateway.http1.headers import HeaderList, response_headers, status_line

# The maximum size of a response's head, in bytes.
MAX_HEAD = 256 * 1024


class CachedResponseHead:
    """A parsed head of a backend's response."""

    __slots__ = ("before_length", "chunked", "forward", "is_stream", "keep", "status")

    def __init__(self, status: int, forward: bytes, *, is_stream: bool, chunked: bool, keep: bool) -> None:
        self.status = status
        self.forward = forward
        self.is_stream = is_stream
        self.chunked = chunked
        # Whether the connection is kept after a response with a length.
        self.keep = keep
        # The head for the client, up to the digits of a length.
        self.before_length = b"%b%bcontent-length: " % (status_line(status), forward)


class Listener(Protocol):
    """The user of a connection."""

    def on_response(self, connection: "UpstreamConnection") -> None:
        """Part of the response has arrived: read the connection's fields and take the body."""

    def on_chunks(self, connection: "UpstreamConnection", body: bytes, framed: bytes) -> None:
        """Whole chunks and nothing else have arrived after the head: their content, and the bytes as received."""

    def on_lost(self, connection: "UpstreamConnection", reason: str) -> None:
        """The connection ended or violated HTTP before the response was complete; it cannot be used any more."""

    def on_room(self) -> None:
        """More of the request can be written."""


class Owner(Protocol):
    """The pool of a connection."""

    response_heads: HeaderCache[CachedResponseHead]

    def put(self, connection: "UpstreamConnection") -> None:
        """Keep an idle connection."""

    def opened(self, connection: "UpstreamConnection") -> None:
        """Count a new connection."""

    def lost(self, connection: "UpstreamConnection") -> None:
        """Forget a connection that has ended."""


class UpstreamConnection(asyncio.Protocol):
    """One connection. Its fields describe the response that is arriving."""

    def __init__(self, pool: Owner) -> None:
        self._pool = pool
        self._parser = httptools.HttpResponseParser(self)
        self.transport: asyncio.Transport = None  # type: ignore[assignment]  # set by connection_made, before any use
        self.listener: Listener | None = None
        # A fast handler of received bytes, set by the listener, until it returns False: then the listener gets them.
        self.shortcut: Callable[[bytes], bool] | None = None
        self.reused = False
        self.full = False
        # Reading is paused by flow control.
        self.paused = False
        # The transport is closed.
        self.ended = False
        self._keep = False
        self.body: list[bytes] = []
        self._reset()

    def _reset(self) -> None:
        self.status = 0
        self._headers: HeaderList = []
        # The header lines for the client; whether it is an event stream.
        self.forward = b""
        self.is_stream = False
        self.head_done = False
        # Set if the head was cached and the whole response, not a stream, arrived with it.
        self.cached_head: CachedResponseHead | None = None
        self.length: int | None = None
        self.chunked = False
        self.complete = False
        self.any_byte = False
        self._head_bytes = 0
        # A cached head that was not fed to the parser; whether anything of this response was.
        self._unparsed_head = b""
        self._parsing = False

    # Called by the listener.

    def begin(self, listener: Listener, data: bytes) -> None:
        """Send the first bytes of a request, or all of them; the response goes to `listener`."""
        self.listener = listener
        self.transport.write(data)

    def write(self, data: bytes) -> None:
        """Send more of the request; while `full` is set, not before `on_room`."""
        self.transport.write(data)

    @property
    def can_write(self) -> bool:
        """Whether `write` makes sense now. A closing transport discards all data and is never full."""
        return not self.full and not self.transport.is_closing()

    def take_body(self) -> bytes:
        """Return the body received since the last call, without its framing."""
        data = b"".join(self.body)
        self.body.clear()
        return data

    def pause(self) -> None:
        """Stop reading: the client is slower than the backend."""
        if not self.paused and not self.transport.is_closing():
            self.paused = True
            self.transport.pause_reading()

    def resume(self) -> None:
        """Read again."""
        if self.paused and not self.transport.is_closing():
            self.paused = False
            self.transport.resume_reading()

    def release(self, *, whole_request_sent: bool = True) -> None:
        """Return the connection to its pool after a complete response, or close it."""
        self.listener = self.shortcut = None
        if self._keep and whole_request_sent and not self.full and not self.transport.is_closing():
            self.resume()
            self._reset()
            self.reused = True
            self._pool.put(self)
        else:
            self.transport.close()

    def abort(self) -> None:
        """Reset the connection: the backend sees its end at once."""
        self.listener = self.shortcut = None
        self.transport.abort()

    # Callbacks of the event loop.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Register the connection."""
        self.transport = cast(asyncio.Transport, transport)  # uvloop's transports are not of asyncio's class
        self._pool.opened(self)

    def data_received(self, data: bytes) -> None:
        """Parse received bytes and notify the listener."""
        if self.shortcut is not None:
            if self.shortcut(data):
                return
            self.shortcut = None
        listener = self.listener
        if listener is None:
            # A late or unsolicited response must not be taken for the next request's.
            self.transport.abort()
            return
        if not self._parsing:
            if self.head_done:
                body = _chunks_in(data)
                if body:
                    listener.on_chunks(self, body, data)
                    return
            elif self._read_cached(data):
                self.any_byte = True
                listener.on_response(self)
                return
        first = not self.any_byte
        self.any_byte = True
        try:
            self._parse(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            # Bytes after a complete response: the response is valid, the connection is not reused.
            self._keep = False
            if not self.complete:
                self._fail(f"its response is not HTTP/1.1: {error}")
                return
        if not self.head_done:
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD:
                self._fail("the head of its response is too large")
            return
        if first:
            self._learn(data)
        listener.on_response(self)

    def _read_cached(self, data: bytes) -> bool:
        """Read a cached head, with its whole body if that has a length, or with chunks; return False for all else."""
        found = self._pool.response_heads.find(data)
        if found is None:
            return False
        cached, length, start = found
        if cached.chunked:
            if length >= 0:
                return False
            if len(data) > start:
                body = _chunks_in(data[start:])
                if not body:
                    return False
                self.body.append(body)
            self._unparsed_head = data[:start]
            self.chunked = True
        elif len(data) - start != length:
            return False
        else:
            self.length = length
            self.body.append(data[start:])
            self.complete = True
            self.cached_head = None if cached.is_stream else cached
            self._keep = cached.keep
        self.status = cached.status
        self.forward = cached.forward
        self.is_stream = cached.is_stream
        self.head_done = True
        return True

    def _parse(self, data: bytes) -> None:
        """Feed the parser, and first the head that it has not seen: it always joins between two chunks."""
        self._parsing = True
        if self._unparsed_head:
            head, self._unparsed_head = self._unparsed_head, b""
            self._parser.feed_data(head)
        self._parser.feed_data(data)

    def _learn(self, data: bytes) -> None:
        """Cache the parsed head that `data` begins with."""
        if self.status == 200 and data.startswith(b"HTTP/1.1 200") and (self.chunked or (self.complete and self._keep)):
            head = CachedResponseHead(
                self.status, self.forward, is_stream=self.is_stream, chunked=self.chunked, keep=self._keep
            )
            self._pool.response_heads.learn(data, head, self.length)

    def connection_lost(self, exc: Exception | None) -> None:
        """Notify the pool and the listener."""
        self.ended = True
        self._pool.lost(self)
        if self.listener is None:
            return
        if self.head_done and not self.complete and self.length is None and not self.chunked and exc is None:
            # RFC 9112, 6.3: a body without a length ends with the connection.
            self.complete = True
            self._keep = False
            self.listener.on_response(self)
            return
        self._notify_lost("it closed the connection" if exc is None else f"the connection broke: {exc}")

    def pause_writing(self) -> None:
        """Stop writing: the backend reads more slowly."""
        self.full = True

    def resume_writing(self) -> None:
        """Resume writing."""
        self.full = False
        if self.listener is not None:
            self.listener.on_room()

    def _fail(self, reason: str) -> None:
        self.transport.abort()
        self._notify_lost(reason)

    def _notify_lost(self, reason: str) -> None:
        listener, self.listener = self.listener, None
        if listener is not None:
            listener.on_lost(self, reason)

    # Callbacks of httptools.

    def on_message_begin(self) -> None:
        """Refuse a second response to one request."""
        if self.complete:
            raise httptools.HttpParserError("more than one response")

    def on_header(self, name: bytes, value: bytes) -> None:
        """Collect a header; trailers are dropped."""
        if self.head_done:
            return
        name = name.lower()
        if name == b"content-length":
            self.length = int(value)
        elif name == b"transfer-encoding":
            self.chunked = True
        self._headers.append((name, value))

    def on_headers_complete(self) -> None:
        """Finish the head, unless it is of an interim response (RFC 9110, 15.2), which is dropped."""
        status = self._parser.get_status_code()
        if status < 200 or self.head_done:
            # Or it is a cached head, fed late: it was read before.
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
        """Add a piece of the body."""
        self.body.append(body)

    def on_message_complete(self) -> None:
        """Complete the response. Only now does llhttp say whether the connection is kept."""
        if not self.head_done:
            self._reset()
            # The parser has the rest of the bytes, and continues.
            self.any_byte = self._parsing = True
            return
        self.complete = True
        self._keep = self._parser.should_keep_alive()


# Chunk sizes by their hexadecimal form: they repeat. Larger chunks go through the parser.
_SIZES: dict[bytes, int] = {}
_MAX_SIZES = 4096
_MAX_SIZE = 6
_SIZE = re.compile(rb"[0-9A-Fa-f]{1,4}\Z")


def _chunks_in(data: bytes) -> bytes:
    """Return the content of `data` if that is whole chunks without the last one; else b"".

    A backend sends one chunk per token; several arrive at once if the gateway lagged.
    """
    chunks: list[bytes] = []
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
            return b"".join([*chunks, chunk]) if chunks else chunk
        chunks.append(chunk)
        begin = end


def _read_size(digits: bytes) -> int:
    """Return the size of a chunk, 0 if `digits` is not one."""
    if not _SIZE.match(digits):
        return 0
    if len(_SIZES) >= _MAX_SIZES:
        _SIZES.clear()
    size = _SIZES[digits] = int(digits, 16)
    return size
