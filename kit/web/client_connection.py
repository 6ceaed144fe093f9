"""uvicorn's connection to a client with what it lacks: limits of size, time and number, and Upgrade ignored.

Every program except the gateway uses it as it is; the gateway has a protocol class of its own, with the same limits.
"""

import http
from asyncio import TimerHandle
from dataclasses import dataclass
from enum import Enum
from typing import Any

import httptools
import structlog
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from kit.errors import ApiError, HeadTooLarge, InvalidRequest, RequestTimeout

log = structlog.get_logger(__name__)

NEVER = float("inf")


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """Limits of a client connection. Sizes in bytes, times in seconds."""

    max_head: int = 64 * 1024
    # From the connection, or from the first byte of a later request, to the end of its head.
    head_s: float = 30.0
    # Silence within a body, or within a response that the client does not read. `kit.web.body` has the minimum rate.
    stall_s: float = 60.0
    idle_s: float = 75.0
    # How long a closing connection is still read: closing at once would reset it, and the reset can overtake the
    # response (RFC 9112, 9.6).
    linger_s: float = 2.0
    # Requests that wait behind the present one.
    max_pipelined: int = 16
    max_connections: int = 4096


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


class ClientConnection(HttpToolsProtocol):
    """One client connection; a request with Upgrade is read as HTTP/1.1 (RFC 9110, 7.8)."""

    limits = ConnectionLimits()

    def __init__(self, config: Config, server_state: ServerState, app_state: dict[str, Any], _loop: Any = None) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._reading = BETWEEN
        # The request that is being responded to; `cycle` is the latest one, which may wait behind it.
        self._running: Any = None
        # Bytes of the present head: as the parser reports them, and as they were received.
        self._head_parsed = 0
        self._head_received = 0
        self._deadline = NEVER
        self._timer: TimerHandle | None = None
        # The size of the write buffer when its timeout began.
        self._unread = 0

    # Callbacks of the event loop.

    def connection_made(self, transport: Any) -> None:
        """Start the timeout of the first request; refuse a connection beyond the limit."""
        super().connection_made(transport)
        self._start_timeout(self.limits.head_s)
        if len(self.connections) > self.limits.max_connections:
            self._reject(
                ApiError(
                    "Too many open connections. Try again shortly.",
                    status=503,
                    type="service_unavailable",
                    code="too_many_connections",
                    headers={"Retry-After": "1"},
                )
            )

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the timeout; let the application know, also behind pipelined requests."""
        self._reading = CLOSED
        if self._timer is not None:
            self._timer.cancel()
        if self._running is not None:
            _disconnect(self._running)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse received bytes; respond to malformed ones with the error envelope."""
        if self._reading is CLOSED:
            return
        was_in_head, headers = self._reading is HEAD, self.headers
        try:
            feed(self, data)
            if was_in_head and self._reading is HEAD and self.headers is headers:
                # llhttp reports a header when it is complete, and that may be never.
                self._head_received += len(data)
                self._check_head(self._head_received)
        except httptools.HttpParserError as error:
            self._reject(cause_of(error, self.parser))
        except ApiError as error:
            self._reject(error)

    def pause_writing(self) -> None:
        """Start the timeout of an unread response."""
        super().pause_writing()
        self._unread = self.transport.get_write_buffer_size()
        self._start_timeout(self.limits.stall_s)

    def resume_writing(self) -> None:
        """Stop it: the client reads."""
        super().resume_writing()
        self._restart_timeout()

    # Callbacks of httptools. `feed_data` raises what they raise.

    def on_message_begin(self) -> None:
        """Start a request."""
        super().on_message_begin()
        self._reading = HEAD
        self._head_parsed = self._head_received = 0
        self._restart_timeout()

    def on_url(self, url: bytes) -> None:
        """Collect the target."""
        super().on_url(url)
        self._count_head(len(url))

    def on_header(self, name: bytes, value: bytes) -> None:
        """Collect a header. Trailers are counted and dropped: uvicorn would add them to the headers."""
        self._count_head(len(name) + len(value))
        if self._reading is HEAD:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Start the request. `feed` parses one with Upgrade again."""
        if self.parser.should_upgrade():
            if self.parser.get_method() == b"CONNECT":
                raise InvalidRequest("CONNECT is not supported.")
            self._reading = UPGRADE
            return
        version = self.parser.get_http_version()
        if version not in ("1.0", "1.1"):
            raise InvalidRequest(f"HTTP/{version} is not supported. Use HTTP/1.1.")
        if len(self.pipeline) >= self.limits.max_pipelined:
            # Closes after the responses that are due. The client sends the others again (RFC 9112, 9.3.2).
            raise InvalidRequest("Too many pipelined requests.")
        super().on_headers_complete()
        self._reading = BODY
        self._restart_timeout()

    def on_body(self, body: bytes) -> None:
        """Pass on a piece of the body."""
        super().on_body(body)
        if not self.cycle.response_complete:
            self._start_timeout(self.limits.stall_s)

    def on_message_complete(self) -> None:
        """End the body. For llhttp, a request with Upgrade is complete after its head."""
        if self._reading is not UPGRADE:
            super().on_message_complete()
            self._reading = BETWEEN
            self._restart_timeout()

    # Responses.

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        """Start a request; uvicorn calls this."""
        self._running = cycle
        super()._start_asgi_task(cycle, app)

    def on_response_complete(self) -> None:
        """Start the next request, or the timeout of an idle connection."""
        self._running = None
        super().on_response_complete()
        self._unset_keepalive_if_required()  # uvicorn's timer ignores a head that has begun
        self._restart_timeout()

    @property
    def _is_responding(self) -> bool:
        """Whether the response to the latest request is still to come: not that of one whose body was cut off."""
        return self.cycle is not None and not (self.cycle.response_complete or self.cycle.disconnected)

    # Timeouts.

    def _restart_timeout(self) -> None:
        """Start the timeout of the present state; none while the application works on a whole request."""
        awaits_body = self._reading is BODY and self.cycle.more_body
        if self.flow.write_paused or (self._is_responding and awaits_body):
            self._start_timeout(self.limits.stall_s)
        elif self._is_responding:
            self._deadline = NEVER
        else:
            self._start_timeout(self.limits.head_s if self._reading is HEAD else self.limits.idle_s)

    def _start_timeout(self, seconds: float) -> None:
        self._deadline = self.loop.time() + seconds
        # One timer serves many requests: when it is due, it looks at the deadline.
        if self._timer is None or self._timer.when() > self._deadline:
            if self._timer is not None:
                self._timer.cancel()
            self._timer = self.loop.call_at(self._deadline, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        if self._deadline > self.loop.time():
            if self._deadline != NEVER:
                self._timer = self.loop.call_at(self._deadline, self._on_timer)
            return
        before, self._unread = self._unread, self.transport.get_write_buffer_size()
        if self._unread:
            if self._unread == before:
                self.transport.abort()
            else:
                self._start_timeout(self.limits.stall_s)
        elif self._is_responding:
            app_is_slow = self.flow.read_paused or self.cycle.waiting_for_100_continue  # the application does not read
            if self._reading is BODY and self.cycle.more_body and not app_is_slow:
                self._reject(RequestTimeout("The body of the request did not arrive in time. Send it again."))
            else:
                self._restart_timeout()
        elif self._reading is HEAD:
            self._reject(RequestTimeout("The request did not arrive in time. Send it again."))
        else:
            self.transport.close()

    # Rejected requests.

    def _reject(self, error: ApiError) -> None:
        """Read nothing more; respond with `error`, unless another response is due or has begun; then close."""
        log.info("request rejected", status=error.status, reason=error.message, client=self.client and self.client[0])
        in_body, self._reading = self._reading is BODY, CLOSED
        if in_body:
            _disconnect(self.cycle)  # the rest of the body will not come
            if self.pipeline:
                # It waits behind others, whose responses are due.
                self.pipeline.popleft()
                self.cycle = self.pipeline[0][0] if self.pipeline else self._running
            elif self.cycle.response_started:
                self.transport.close()
                return
        if self._is_responding:
            self.cycle.keep_alive = False
            self._restart_timeout()
            return
        self.transport.write(_encoded(error))
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self._start_timeout(self.limits.linger_s)

    def _count_head(self, count: int) -> None:
        self._head_parsed += count
        self._check_head(self._head_parsed)

    def _check_head(self, count: int) -> None:
        if count > self.limits.max_head:
            raise HeadTooLarge(f"The head of the request is larger than {self.limits.max_head // 1024} KB.")


def feed(protocol: HttpToolsProtocol, data: bytes) -> None:
    """Feed the parser of `protocol`, whose on_headers_complete must raise for CONNECT.

    A request with Upgrade is parsed again without it, by a new parser (RFC 9110, 7.8): llhttp would leave what follows
    its head to the other protocol.
    """
    while True:
        parser = protocol.parser
        try:
            parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            line = (parser.get_method(), protocol.url, parser.get_http_version().encode())
            head = [b"%b %b HTTP/%b\r\n" % line]
            head += [b"%b: %b\r\n" % header for header in protocol.headers if header[0] != b"upgrade"]
            data = b"".join(head) + b"\r\n" + data[upgrade.args[0] :]
            protocol.parser = httptools.HttpRequestParser(protocol)
            protocol.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn does
        else:
            return


def cause_of(error: httptools.HttpParserError, parser: Any) -> ApiError:
    """Return the error that a callback of `parser` raised, else one for the parser's own."""
    cause = error.__context__ if isinstance(error, httptools.HttpParserCallbackError) else None
    if isinstance(cause, ApiError):
        return cause
    if cause is not None and not isinstance(cause, httptools.HttpParserError):
        log.error("bug", exc_info=cause)
        return ApiError("Internal error. The server's log has its cause.")
    if parser.get_method() == b"PRI":
        return InvalidRequest("HTTP/2 is not supported, neither negotiated nor with prior knowledge. Use HTTP/1.1.")
    return InvalidRequest(f"The request is not HTTP/1.1: {error}.")


def _disconnect(cycle: Any) -> None:
    """Let the application know that the client is gone; its response is dropped."""
    cycle.disconnected = True
    cycle.message_event.set()


def _encoded(error: ApiError) -> bytes:
    body = error.encoded()
    headers = {**error.headers, "Content-Type": "application/json", "Content-Length": len(body), "Connection": "close"}
    lines = [f"HTTP/1.1 {error.status} {http.HTTPStatus(error.status).phrase}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body
