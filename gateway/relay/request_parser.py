"""The parser of a client's connection: bytes into requests for the relay or the application.

llhttp parses. The size of heads is counted here, because llhttp does not limit it.
"""

from enum import Enum
from typing import Any

import httptools
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from gateway.bodies import raw_audio
from gateway.endpoints import BY_PATH, Endpoint
from gateway.http1.headers import Head, origin_form, read_head, split_target, strip_slash
from gateway.relay.data_plane import ParsedRequest, RelayContext
from gateway.relay.deadline import Deadline
from kit.errors import ApiError, HeadTooLarge, InvalidRequest
from kit.web.client_connection import cause_of, feed

# The bytes of framing that a chunked body may have: a fixed allowance, and so many per byte of body. HTTP does not
# limit chunk extensions; a chunk of one byte needs five more.
MAX_FRAMING = 64 * 1024
MAX_FRAMING_PER_BYTE = 8


class ReadState(Enum):
    """The parser's position in the client's bytes, and the end of each state.

    BETWEEN  between two requests                    the next request's first byte
    HEAD     in the request line or the headers      the end of the head
    BODY     in a body                               its end
    UPGRADE  after a head with Upgrade               the head is parsed again without Upgrade
    CLOSED   nothing more is read                    final
    """

    BETWEEN = "between"
    HEAD = "head"
    BODY = "body"
    UPGRADE = "upgrade"
    CLOSED = "closed"


# Reading a member of an enumeration is slow.
BETWEEN, HEAD, BODY, UPGRADE, CLOSED = ReadState


class RequestParser(HttpToolsProtocol):
    """uvicorn's protocol with its parsing replaced. A subclass handles the requests."""

    def __init__(self, config: Config, server_state: ServerState, app_state: dict[str, Any], _loop: Any = None) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._context: RelayContext = app_state["context"]
        self.deadline = Deadline()
        # The request that is being responded to.
        self._running: Any = None
        self._read_state = BETWEEN
        self._head_bytes = 0
        self._messages = 0
        # The head being parsed, if it can be cached.
        self._cacheable: ParsedRequest | None = None
        # The size of a chunked body on the wire, -1 for other bodies, and its size without framing.
        self._framed_bytes = -1
        self._body_bytes = 0

    # Handlers of the subclass.

    def _begin_exchange(self, endpoint: Endpoint, head: Head, *, http11: bool) -> None:
        """Relay the request whose head was parsed; its target is `url`."""
        raise NotImplementedError

    def _reject(self, error: ApiError) -> None:
        """Respond with `error` to what cannot be parsed, in its turn, then close."""
        raise NotImplementedError

    # Callbacks of the event loop.

    def data_received(self, data: bytes) -> None:
        """Parse received bytes."""
        if self._read_state is CLOSED:
            return
        messages, state = self._messages, self._read_state
        self._cacheable = None
        if self._framed_bytes >= 0:
            self._framed_bytes += len(data)
        try:
            feed(self, data)
            if self._framed_bytes > MAX_FRAMING + MAX_FRAMING_PER_BYTE * self._body_bytes:
                raise InvalidRequest("The chunks of the body are too small, or their extensions too long.")
            if state is HEAD and self._read_state is HEAD and messages == self._messages:
                self._count_head(len(data))
        except httptools.HttpParserError as error:
            self._reject(cause_of(error, self.parser))
        except ApiError as error:
            self._reject(error)
        cacheable = self._cacheable
        # The cache takes the head that `data` begins with: that must be this request's.
        is_first = state is BETWEEN and self._messages == messages + 1 and data.startswith(b"POST ")
        if cacheable is not None and is_first and self._read_state is not CLOSED:
            self._context.request_heads.learn(data, cacheable, cacheable.head.length)

    # Callbacks of httptools. `feed_data` raises what they raise.

    def on_message_begin(self) -> None:
        """Start a request."""
        if self._read_state is CLOSED:
            raise InvalidRequest("This connection is being closed. Send the request on another one.")
        self.url = b""
        self.headers = []
        if self._read_state is not UPGRADE:  # else the same request again
            self._messages += 1
        self._read_state = HEAD
        self._head_bytes = 0
        if self._running is None:
            self.deadline.start(self._context.limits.client_s)

    def on_url(self, url: bytes) -> None:
        """Collect the target."""
        self.url += url
        self._count_head(len(url))

    def on_header(self, name: bytes, value: bytes) -> None:
        """Collect a header; trailers are counted and dropped."""
        self._count_head(len(name) + len(value))
        if self._read_state is HEAD:
            self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        """Dispatch the request to the relay or to the application."""
        self._read_state = BODY
        version = self.parser.get_http_version()
        if self.parser.should_upgrade():
            if self.parser.get_method() == b"CONNECT" or version != "1.1":
                raise InvalidRequest("CONNECT and protocol upgrades are not supported.")
            self._read_state = UPGRADE
            return
        head = read_head(self.headers, version)
        path = split_target(self.url, head.host)
        if head.chunked:
            self._framed_bytes = self._body_bytes = 0
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
