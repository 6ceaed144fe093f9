"""The parser of a client's connection: bytes into requests for the relay or the application.

llhttp parses, in pieces that end where a request may end: what one read may start is one request. The size of heads is
counted here, because llhttp does not limit it.
"""

from typing import Any

import httptools
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from gateway.bodies import raw_audio
from gateway.bodies.memory_budget import Allocation
from gateway.endpoints import BY_PATH, Endpoint
from gateway.http1.chunks import ChunkScanner
from gateway.http1.headers import Head, origin_form, read_head, split_target, strip_slash
from gateway.relay.data_plane import ParsedRequest, RelayContext
from gateway.relay.deadline import Deadline
from kit.errors import ApiError, HeadTooLarge, InvalidRequest
from kit.web.client_connection import BETWEEN, BODY, CLOSED, HEAD, UPGRADE, cause_of, feed

# The bytes of framing that a chunked body may have: a fixed allowance, and so many per byte of body. HTTP does not
# limit chunk extensions; a chunk of one byte needs five more.
MAX_FRAMING = 64 * 1024
MAX_FRAMING_PER_BYTE = 8
# What a header costs beyond its bytes, as HTTP/2 counts it (RFC 9113, 6.5.2).
HEADER_OVERHEAD = 32
# How many bytes may wait for the end of the present response until the connection is not read, apart from one read.
MAX_HELD = 64 * 1024
# How many pieces are parsed before other connections have their turn.
MAX_PIECES = 64


class RequestParser(HttpToolsProtocol):
    """uvicorn's protocol with its parsing replaced. A subclass handles the requests."""

    def __init__(self, config: Config, server_state: ServerState, app_state: dict[str, Any], _loop: Any = None) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._context: RelayContext = app_state["context"]
        self.deadline = Deadline()
        # The request that is being responded to.
        self._running: Any = None
        # Whether the client reads more slowly than we write.
        self.full = False
        self._read_state = BETWEEN
        self._head_bytes = 0
        self._messages = 0
        # The head being parsed, if it can be cached.
        self._cacheable: ParsedRequest | None = None
        # The size of a chunked body on the wire, -1 for other bodies; the length of those; how much of a body has come.
        self._framed_bytes = -1
        self._chunks = ChunkScanner()
        self._body_length = 0
        self._body_bytes = 0
        # The chunks of a relayed body in the present read.
        self._pieces: list[bytes] = []
        # The last bytes of an incomplete head or chunked body.
        self._tail = b""
        # Bytes that wait for the end of the present response.
        self._held = bytearray()
        # The memory for that and for the body.
        self.memory: Allocation

    # Handlers of the subclass.

    def _begin_exchange(self, endpoint: Endpoint, head: Head, *, http11: bool) -> None:
        """Relay the request whose head was parsed; its target is `url`."""
        raise NotImplementedError

    def _pass_body(self) -> None:
        """Relay the chunks of a body that were read. Raises ApiError if they cannot be accepted."""
        raise NotImplementedError

    def _reject(self, error: ApiError) -> None:
        """Respond with `error` to a request that is arriving, or end with the present response; then close."""
        raise NotImplementedError

    # Callbacks of the event loop.

    def data_received(self, data: bytes) -> None:
        """Parse received bytes, up to the end of a request: what follows waits for its response."""
        if self._read_state is CLOSED:
            return
        if self._held:
            self._hold(data)
            return
        position, size = 0, len(data)
        for _ in range(MAX_PIECES):
            if self._read_state is BETWEEN and (self._running is not None or self.full):
                break
            end = self._piece_end(data, position)
            self._parse(data if end - position == size else data[position:end])
            if end == size or self._read_state is CLOSED:
                return
            position = end
        else:
            self.loop.call_soon(self._parse_held)
        self._hold(data[position:])

    def _piece_end(self, data: bytes, start: int) -> int:
        """Return where the piece of `data` from `start` on ends. A request ends with a piece."""
        if self._read_state is BODY:
            if self._framed_bytes < 0:
                return min(start + self._body_length - self._body_bytes, len(data))
            # An empty line within a chunk ends nothing: pieces that small would take the worker's time.
            start = self._chunks.skip(data, start)
        # Heads and trailers end in an empty line.
        if start == 0 and self._tail:
            end = (self._tail + data[:3]).find(b"\r\n\r\n")
            if end >= 0:
                return end + 4 - len(self._tail)
        end = data.find(b"\r\n\r\n", start)
        return len(data) if end < 0 else end + 4

    def _hold(self, data: bytes) -> None:
        """Keep bytes until `_parse_held`, if there is memory for them."""
        try:
            self.memory.grow(len(data))
        except ApiError as error:
            self._reject(error)
            return
        self._held += data
        if self.full or len(self._held) > MAX_HELD:
            self.flow.pause_reading()

    def _take_held(self) -> bytes:
        data = bytes(self._held)
        self.memory.shrink(len(data))
        self._held = bytearray()
        return data

    def _parse_held(self) -> None:
        """Parse what has waited. Called by the event loop, so that a long pipeline does not keep it."""
        if self._held and self._read_state is not CLOSED:
            self.flow.resume_reading()
            self.data_received(self._take_held())

    def _parse(self, data: bytes) -> None:
        """Parse one piece."""
        messages, state = self._messages, self._read_state
        self._cacheable = None
        if self._framed_bytes >= 0:
            self._framed_bytes += len(data)
        try:
            feed(self, data)
            if self._pieces:
                self._pass_body()
            if self._framed_bytes > MAX_FRAMING + MAX_FRAMING_PER_BYTE * self._body_bytes:
                raise InvalidRequest("The chunks of the body are too small, or their extensions too long.")
            if state is HEAD and self._read_state is HEAD and messages == self._messages:
                self._count_head(len(data))
        except httptools.HttpParserError as error:
            self._reject(cause_of(error, self.parser))
        except ApiError as error:
            self._reject(error)
        self._tail = (self._tail + data)[-3:] if len(data) < 3 else data[-3:]
        cacheable = self._cacheable
        # The cache takes the head that `data` begins with: that must be this request's.
        is_first = state is BETWEEN and self._messages == messages + 1 and data.startswith(b"POST ")
        if cacheable is not None and is_first and self._read_state is not CLOSED:
            self._context.request_heads.learn(data, cacheable, cacheable.head.length)

    # Callbacks of httptools. `feed_data` raises what they raise.

    def on_message_begin(self) -> None:
        """Start a request."""
        if self._read_state is CLOSED or self._running is not None:
            raise InvalidRequest("This connection is being closed. Send the request on another one.")
        self.url = b""
        self.headers = []
        if self._read_state is not UPGRADE:  # else the same request again
            self._messages += 1
        self._read_state = HEAD
        self._head_bytes = 0
        self.deadline.start(self._context.limits.client_s)

    def on_url(self, url: bytes) -> None:
        """Collect the target."""
        self.url += url
        self._count_head(len(url))

    def on_header(self, name: bytes, value: bytes) -> None:
        """Collect a header; trailers are counted and dropped."""
        self._count_head(len(name) + len(value) + HEADER_OVERHEAD)
        if self._read_state is HEAD:
            self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        """Dispatch the request to the relay or to the application."""
        self._read_state = BODY
        version = self.parser.get_http_version()
        if self.parser.should_upgrade():
            if self.parser.get_method() == b"CONNECT":
                raise InvalidRequest("CONNECT is not supported.")
            self._read_state = UPGRADE
            return
        head = read_head(self.headers, version)
        path = split_target(self.url, head.host)
        self._framed_bytes = -1
        if head.chunked:
            self._framed_bytes, self._chunks = 0, ChunkScanner()
        self._body_length = head.length or 0
        self._body_bytes = 0
        if path.endswith(b"/"):
            # Served as if without: our backends and others would redirect, or not know the path.
            self.url, path = strip_slash(origin_form(self.url)), strip_slash(path)
        endpoint = BY_PATH.get(path) or raw_audio.endpoint_of(path)
        if endpoint is None or self.parser.get_method() != b"POST":
            self._begin_asgi(head)
        else:
            self._begin_exchange(endpoint, head, http11=version == "1.1")

    def _begin_asgi(self, head: Head) -> None:
        """Pass the request to uvicorn, whose own on_message_begin was skipped until now."""
        # uvicorn does not support an absolute target without a path.
        url, headers = origin_form(self.url), self.headers
        super().on_message_begin()
        self.url = url
        self.headers = headers
        self.scope["headers"] = headers
        self.expect_100_continue = head.expects_continue
        super().on_headers_complete()

    def _count_head(self, count: int) -> None:
        self._head_bytes += count
        if self._head_bytes > self._context.limits.max_head:
            limit = self._context.limits.max_head // 1024
            raise HeadTooLarge(
                f"The head of the request is larger than {limit} KB. MAX_HEAD_KB of the gateway sets the limit."
            )
