"""A client's connection: uvicorn's protocol for most paths, the relay for those of `endpoints`.

uvicorn creates one per connection. Relayed requests never become ASGI messages: their bodies go to an exchange, which
writes the response to the transport itself. A request is parsed when the response to the one before it has been
written and the client reads: pipelined requests wait as bytes.
"""

from typing import Any

from uvicorn.config import Config
from uvicorn.server import ServerState

from gateway.backends.backend import Backend
from gateway.bodies.body import JsonBody
from gateway.bodies.memory_budget import MAX_UNCOUNTED
from gateway.bodies.spool import too_large
from gateway.endpoints import Endpoint
from gateway.http1.headers import Head, origin_form
from gateway.relay.data_plane import ParsedRequest
from gateway.relay.deadline import NEVER
from gateway.relay.exchange import RECEIVED, RECEIVING, Exchange, ExchangeState
from gateway.relay.fast_path import FastPathRequest, try_fast_path
from gateway.relay.request_parser import RequestParser
from gateway.relay.response import CONTINUE
from gateway.routing import RoutingRequest
from kit.errors import ApiError
from kit.web.client_connection import BETWEEN, CLOSED, HEAD, UPGRADE

# The slowest body that is accepted, in bytes per second of CLIENT_TIMEOUT. Apache's mod_reqtimeout starts from 500,
# ASP.NET Core's Kestrel from 240. A body that stalls now and then still arrives, one byte at a time does not.
MIN_BODY_RATE = 1024
# A refused request's body up to this length, in bytes, is read and dropped, so that the connection can be kept.
MAX_DRAINED = 256 * 1024
# A read of this size, in bytes, is followed by a turn of the event loop. uvloop reads as long as its buffer of 256,000
# bytes is full, up to 32 times, before other connections have theirs (libuv, uv__read).
LARGE_READ = 128 * 1024
# How long a closing connection is still read, in seconds: closing at once would reset it, and the reset can overtake
# the response (RFC 9112, 9.6).
LINGER_S = 2.0

# The endpoint of requests too malformed to have a route.
_MALFORMED = Endpoint("malformed", ())

# Requests that never become ASGI messages.
RELAYED = (Exchange, FastPathRequest)


class GatewayProtocol(RequestParser):
    """One client connection. Its `RelayContext` comes from the application's lifespan state."""

    def __init__(self, config: Config, server_state: ServerState, app_state: dict[str, Any], _loop: Any = None) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.address: str | None = None
        # The size of the body that was arriving at the last deadline, in bytes.
        self._arrived = 0
        # The size of the write buffer at the last deadline, in bytes.
        self._unread = 0
        # The exchange whose body is arriving.
        self._receiving: Exchange | None = None

    # Callbacks of the event loop.

    def connection_made(self, transport: Any) -> None:
        """Start the timeout of the first request."""
        super().connection_made(transport)
        self.address = self.client[0] if self.client else None
        self.memory = self._context.memory.allocation(self.address)
        self._context.connections.add(self)
        self.deadline.start(self._context.limits.client_s)

    def connection_lost(self, exc: Exception | None) -> None:
        """Abandon the client's request."""
        self._context.connections.discard(self)
        self._read_state = CLOSED
        self._take_held()
        if isinstance(self._running, RELAYED):
            self._running.client_left()
        if isinstance(self.cycle, RELAYED):
            self.cycle = None  # type: ignore[assignment]  # as uvicorn sets it itself
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Relay a whole request whose head is cached without parsing it; parse anything else."""
        if self._read_state is BETWEEN and self._running is None and not self._held and not self.full:
            found = self._context.request_heads.find(data)
            if (
                found is not None
                and len(data) - found[2] == found[1] <= self._context.limits.max_body
                and (found[1] <= MAX_UNCOUNTED or self.memory.try_grow(found[1]))
            ):
                parsed, body = found[0], data[found[2] :]
                result = try_fast_path(self, self._context, parsed, body)
                if isinstance(result, FastPathRequest):
                    self.cycle = self._running = result  # type: ignore[assignment]  # as in _enqueue
                else:
                    self._begin_cached(parsed, body, result)
                return
        super().data_received(data)
        if len(data) >= LARGE_READ and not self.flow.read_paused and not self.transport.is_closing():
            self.transport.pause_reading()
            self.loop.call_soon(self._read_on)

    def _read_on(self) -> None:
        """Resume reading after a turn of the event loop, unless flow control has paused it meanwhile."""
        if not self.flow.read_paused and not self.transport.is_closing():
            self.transport.resume_reading()

    def pause_writing(self) -> None:
        """Stop reading from the backend: the client is slower."""
        self.full = True
        if isinstance(self._running, RELAYED):
            self._running.client_full(True)
        elif self._running is not None:
            self.deadline.start(self._context.limits.client_s)
        self.flow.pause_writing()

    def resume_writing(self) -> None:
        """Resume what `pause_writing` stopped."""
        self.full = False
        if isinstance(self._running, RELAYED):
            self._running.client_full(False)
        self.flow.resume_writing()
        if self._running is None and self._read_state is not CLOSED:
            self._start_next()

    def on_deadline(self) -> None:
        """Act on the lack of progress: of the backend, of a slow client, or of an idle connection."""
        self.deadline.at = NEVER
        if isinstance(self._running, RELAYED) and self._running.is_received:
            self._running.on_deadline()
        elif self._check_unread() or (self._running is not None and not isinstance(self._running, RELAYED)):
            # The client reads, or the application takes its time.
            return
        elif self._read_state is CLOSED or (self._read_state is not HEAD and self._receiving is None):
            self.transport.close()
        elif self._has_kept_pace():
            self.deadline.start(self._context.limits.client_s)
        else:
            limit_s = self._context.limits.client_s
            self._reject(
                ApiError(
                    f"The request did not arrive in time: its head within {limit_s:g} s, its body within another "
                    f"{limit_s:g} s or at {MIN_BODY_RATE} bytes per second at least. Send it again.",
                    status=408,
                    type="invalid_request_error",
                    code="request_timeout",
                )
            )

    def on_stuck(self, backend: Backend) -> None:
        """Fail over a request that is at this stuck backend."""
        if isinstance(self._running, RELAYED):
            self._running.on_stuck(backend)

    # Callbacks of httptools, beyond those of the parser.

    def on_body(self, body: bytes) -> None:
        """Add a piece to the body that is arriving: a chunk, or all that one read has of it."""
        self._body_bytes += len(body)
        if self._receiving is not None:
            if self._framed_bytes < 0:
                self._receiving.add(body)
            else:
                self._pieces.append(body)
        elif self._read_state is not CLOSED:
            super().on_body(body)

    def _pass_body(self) -> None:
        """Add the chunks of one read to the body. Raises ApiError if that cannot accept them."""
        data = b"".join(self._pieces)
        self._pieces.clear()
        if self._receiving is not None:
            self._receiving.add(data)

    def on_message_complete(self) -> None:
        """Run the request that is complete now. For llhttp, a request with Upgrade is complete after its head."""
        if self._read_state is UPGRADE:
            return
        is_open = self._read_state is not CLOSED
        if is_open:
            self._read_state = BETWEEN
        self._framed_bytes = -1
        if self._pieces:
            self._pass_body()
        exchange, self._receiving = self._receiving, None
        if exchange is None:
            if is_open:
                super().on_message_complete()
            return
        if exchange.state is RECEIVING:
            exchange.state = RECEIVED
        exchange.run()

    # Requests in order.

    def _begin_exchange(self, endpoint: Endpoint, head: Head, *, http11: bool) -> None:
        keep_alive = http11 and self.parser.should_keep_alive()
        target, body, refusal = self.url, None, None
        try:
            self._check(endpoint, head)
            body, target, head = self._context.body_for(endpoint, target, head, self.memory)
        except ApiError as error:
            refusal = error
        parsed = ParsedRequest(endpoint, origin_form(target), head)
        exchange = Exchange(self, self._context, parsed, http11=http11, keep_alive=keep_alive)
        exchange.body, exchange.refusal = body, refusal
        if refusal is None and keep_alive and head.is_repeatable and endpoint.body_kind == "json":
            self._cacheable = parsed
        # A refused request's body is read and dropped, unless it is too long for that or has not been sent yet.
        if refusal is not None and (head.expects_continue or head.chunked or (head.length or 0) > MAX_DRAINED):
            self._read_state = CLOSED
        else:
            self._receiving = exchange
        self._start(exchange)

    def _begin_cached(self, parsed: ParsedRequest, data: bytes, request: RoutingRequest | None) -> None:
        """Relay a request that cannot take the fast path; `request` is the scan of its body, None if it is invalid."""
        exchange = Exchange(self, self._context, parsed, http11=True, keep_alive=True)
        memory = self.memory if len(data) > MAX_UNCOUNTED else None
        exchange.body = JsonBody.from_bytes(parsed.endpoint, data, parsed.head.session, request, memory)
        exchange.state = RECEIVED
        self.cycle = self._running = exchange  # type: ignore[assignment]  # as in _start
        exchange.run()

    def _check(self, endpoint: Endpoint, head: Head) -> None:
        """Raise the error of a request that its head alone rules out."""
        refusal = self._context.refusal(head)
        if refusal is not None:
            raise refusal
        if head.length is not None:
            limits, is_json = self._context.limits, endpoint.body_kind == "json"
            limit = limits.max_body if is_json else limits.max_upload
            if head.length > limit:
                raise too_large(limit, "MAX_BODY_MB" if is_json else "MAX_UPLOAD_MB")

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        """Start a request of uvicorn's, which calls this."""
        self._running = cycle
        self.deadline.at = NEVER
        super()._start_asgi_task(cycle, app)

    def _start(self, exchange: Exchange) -> None:
        """Receive the body of a relayed request, or refuse it at once if none is received."""
        self.cycle = self._running = exchange  # type: ignore[assignment]  # with the fields that uvicorn reads of its own
        if self._read_state is CLOSED and exchange.refusal is not None:
            exchange.refuse(exchange.refusal)
            return
        self._arrived = 0
        self.deadline.start(self._context.limits.client_s)
        if exchange.head.expects_continue and exchange.refusal is None:
            self.transport.write(CONTINUE)

    def _has_kept_pace(self) -> bool:
        """Return whether enough of the body has arrived since the last deadline."""
        before, self._arrived = self._arrived, self._body_bytes
        return self._receiving is not None and self._arrived - before >= MIN_BODY_RATE * self._context.limits.client_s

    # The end of a response.

    def exchange_done(self, exchange: Exchange) -> None:
        """Start the next request, or close the connection."""
        if self._running is not exchange:
            return
        if exchange.response.keep_alive:
            self.on_response_complete()
            return
        self._running = None
        self.server_state.total_requests += 1
        # The client may still send.
        is_sending = exchange.state is ExchangeState.REFUSED_EARLY or self._read_state is CLOSED
        self._read_state = CLOSED
        if is_sending:
            self._linger()
        else:
            self.transport.close()
            self.deadline.start(self._context.limits.client_s)

    def replace_fast_path(self, exchange: Exchange) -> None:
        """Continue the present fast-path request as `exchange`."""
        self.cycle = self._running = exchange  # type: ignore[assignment]  # as in _start

    def fast_path_done(self, now: float) -> None:
        """Start the next request: the response of a fast-path request is written."""
        self.cycle = None  # type: ignore[assignment]  # as uvicorn sets it itself
        if self.full or self._held or self.flow.read_paused or self.transport.is_closing():
            self.on_response_complete()
            return
        self.server_state.total_requests += 1
        self._running = None
        self.deadline.at = now + self._context.limits.keep_alive_s

    def on_response_complete(self) -> None:
        """Start the next request: a response, relayed or not, is complete."""
        self.server_state.total_requests += 1
        self._running = None
        self._start_next()

    def _start_next(self) -> None:
        """Start the next request once the client has read the responses: unread ones must not fill the memory."""
        if self.transport.is_closing():
            self.deadline.start(self._context.limits.client_s)
            return
        if self.full:
            self.flow.pause_reading()
            self.deadline.start(self._context.limits.client_s)
            return
        self.deadline.start(self._context.limits.keep_alive_s)
        if self._held:
            self.loop.call_soon(self._parse_held)
        else:
            self.flow.resume_reading()

    def _check_unread(self) -> bool:
        """Return whether the client has bytes to read. Abort it unless it has read some since the last deadline."""
        before, self._unread = self._unread, self.transport.get_write_buffer_size()
        if not self._unread:
            return False
        if self._unread == before:
            self.transport.abort()
        else:
            self.deadline.start(self._context.limits.client_s)
        return True

    def _reject(self, error: ApiError) -> None:
        """Stop reading; respond with `error` to a request that is arriving, or end with the present response; close."""
        if self._read_state is CLOSED:
            return
        self._read_state = CLOSED
        self._pieces.clear()
        exchange, self._receiving = self._receiving, None
        running = self._running
        if exchange is not None:
            exchange.refuse(error)
        elif running is None:
            parsed = ParsedRequest(_MALFORMED, self.url or b"", Head())
            exchange = Exchange(self, self._context, parsed, http11=True, keep_alive=False)
            exchange.refusal = error
            self._start(exchange)
        elif not isinstance(running, RELAYED) and running.more_body:
            # The application is reading this body, which will never end.
            running.disconnected = True
            running.message_event.set()
            self.transport.close()
        else:
            self.shutdown()

    def _linger(self) -> None:
        """Half-close; read and drop the rest of the body for LINGER_S, then close."""
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.deadline.start(LINGER_S)
