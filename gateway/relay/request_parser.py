"""What comes on a client's connection: bytes into requests, each handed to whoever answers it.

llhttp parses; a head that was read before needs no parser (gateway.known_heads). The size of heads is counted here,
since llhttp sets no bound to it.
"""

import time
from typing import Any

import httptools
import structlog
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from gateway.bodies import raw_audio
from gateway.endpoints import BY_PATH, Endpoint
from gateway.http1.headers import Head, HeadTooLarge, origin_form, read_head, split_target
from gateway.relay.data_plane import NEVER, CachedRequest, RelayContext
from kit.errors import ApiError, InvalidRequest

log = structlog.get_logger(__name__)

# How much of a body in chunks may be other than body, in bytes: so much at all, and for each byte of it. Extensions of
# chunks have no bound in HTTP, a chunk of one byte needs five more.
MAX_FRAMING = 64 * 1024
MAX_FRAMING_EACH = 8

now = time.perf_counter


class RequestReader(HttpToolsProtocol):
    """uvicorn's protocol with its reading replaced. A subclass says what becomes of requests."""

    def __init__(self, config: Config, server_state: ServerState, app_state: dict[str, Any], _loop: Any = None) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._context: RelayContext = app_state["context"]
        self.deadline = NEVER
        # The request whose turn it is.
        self._running: Any = None
        self._in_head = False
        self._head_bytes = 0
        self._messages = 0
        # Nothing more is read.
        self._closing = False
        # Whether the parser stands between two requests, and what is to be remembered of the one it reads.
        self._between = True
        self._learn: CachedRequest | None = None
        # The request that is being read wants another protocol.
        self._upgrading = False
        # What a body in chunks took and what it came to, in bytes; the first is -1 where there is none.
        self._framed = -1
        self._body_bytes = 0

    # What becomes of requests.

    def _begin_known(self, known: CachedRequest, data: bytes) -> None:
        """A whole request whose head is known, and nothing else is going on; `data` is its body."""
        raise NotImplementedError

    def _begin_exchange(self, endpoint: Endpoint, head: Head, *, http11: bool) -> None:
        """The head of a request that is relayed; its target is `url`."""
        raise NotImplementedError

    def _break_off(self, error: ApiError) -> None:
        """What comes cannot be read: answer with `error` when its turn comes, then close."""
        raise NotImplementedError

    # What the event loop calls.

    def data_received(self, data: bytes) -> None:
        """Parse what has come."""
        if self._closing:
            return
        if self._between and self._running is None and not self.pipeline:
            found = self._context.known.find(data)
            if found is not None and len(data) - found[2] == found[1] <= self._context.limits.max_body:
                self._begin_known(found[0], data[found[2] :])
                return
        messages, in_head, between = self._messages, self._in_head, self._between
        self._learn = None
        if self._framed >= 0:
            self._framed += len(data)
        try:
            self._feed(data)
        except httptools.HttpParserError as error:
            self._break_off(_cause(error))
        if self._framed > MAX_FRAMING + MAX_FRAMING_EACH * self._body_bytes:
            self._break_off(InvalidRequest("The chunks of the body are too small, or their extensions too long."))
        if in_head and self._in_head and messages == self._messages:
            self._head_bytes += len(data)
            if self._head_bytes > self._context.limits.max_head and not self._closing:
                self._break_off(self._head_too_large())
        learn = self._learn
        # Only of a request that begins where the data begins is the head the one that `learn` will find.
        alone = between and self._messages == messages + 1 and data.startswith(b"POST ")
        if learn is not None and alone and not self._closing:
            self._context.known.learn(data, learn, learn.head.length)

    def _feed(self, data: bytes) -> None:
        """Let the parser read; a request that wants to upgrade is read as what it is without (RFC 9110, 7.8)."""
        while True:
            try:
                self.parser.feed_data(data)
            except httptools.HttpParserUpgrade as upgrade:
                # llhttp would leave what follows the head to the other protocol.
                head = [b"%b %b HTTP/1.1\r\n" % (self.parser.get_method(), self.url)]
                head += [b"%b: %b\r\n" % header for header in self.headers if header[0] != b"upgrade"]
                data = b"".join(head) + b"\r\n" + data[upgrade.args[0] :]
                self.parser = httptools.HttpRequestParser(self)
                self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn does
                self._messages -= 1
                self._upgrading = False
            else:
                return

    # What httptools calls. What these raise comes out of feed_data in data_received.

    def on_message_begin(self) -> None:
        """A request begins."""
        if self._closing:
            raise InvalidRequest("Nothing more is read on this connection.")
        self.url = b""
        self.headers = []
        self._in_head = True
        self._between = False
        self._head_bytes = 0
        self._messages += 1
        if self._running is None:
            self.deadline = now() + self._context.limits.client_s

    def on_url(self, url: bytes) -> None:
        """Collect the target."""
        self.url += url
        self._count_head(len(url))

    def on_header(self, name: bytes, value: bytes) -> None:
        """Collect the head; trailers are counted and dropped."""
        self._count_head(len(name) + len(value))
        if self._in_head:
            self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        """Decide who answers: the relay, or the application."""
        self._in_head = False
        version = self.parser.get_http_version()
        if self.parser.should_upgrade():
            if self.parser.get_method() == b"CONNECT" or version != "1.1":
                raise InvalidRequest("This server opens no tunnels and switches to no other protocol.")
            self._upgrading = True
            return
        head = read_head(self.headers, version)
        path = split_target(self.url, head.host)
        if head.chunked:
            self._framed = self._body_bytes = 0
        endpoint = BY_PATH.get(path) or raw_audio.endpoint_of(path)
        if endpoint is None or self.parser.get_method() != b"POST":
            self._begin_asgi(head)
        else:
            self._begin_exchange(endpoint, head, http11=version == "1.1")

    def _begin_asgi(self, head: Head) -> None:
        """Let uvicorn have the request; its own on_message_begin was skipped until now."""
        # uvicorn knows no target that is a host without a path.
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
            raise self._head_too_large()

    def _head_too_large(self) -> HeadTooLarge:
        limit = self._context.limits.max_head // 1024
        return HeadTooLarge(f"The head of the request is larger than {limit} KB. MAX_HEAD_KB of the gateway moves it.")


def _cause(error: httptools.HttpParserError) -> ApiError:
    """Our own error, where a callback raised it; else the parser's."""
    cause = error.__context__ if isinstance(error, httptools.HttpParserCallbackError) else None
    if isinstance(cause, ApiError):
        return cause
    if cause is not None and not isinstance(cause, httptools.HttpParserError):
        log.error("bug", exc_info=cause)
        return ApiError("Internal error. The gateway's log has its cause.")
    return InvalidRequest(f"The request is not HTTP/1.1: {error}.")
