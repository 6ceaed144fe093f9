"""A client's connection: uvicorn's own protocol for most paths, the relay for those of `endpoints`.

uvicorn makes one of these per connection. Relayed requests never become ASGI messages: their bodies go to an exchange,
which writes the answer to the transport itself. Requests are answered in the order of their arrival, relayed or not.
"""

import time
from typing import Any

from uvicorn.config import Config
from uvicorn.server import ServerState

from gateway.backends.backend import Backend
from gateway.bodies.body import JsonBody
from gateway.bodies.spool import too_large
from gateway.endpoints import Endpoint
from gateway.http1.headers import Head, origin_form
from gateway.relay.data_plane import NEVER, CachedRequest
from gateway.relay.exchange import Exchange
from gateway.relay.fast_path import FastPathRequest, try_fast_path
from gateway.relay.request_parser import RequestReader
from gateway.relay.response import CONTINUE
from kit.errors import ApiError

# How many requests may wait behind the one being answered; beyond it the connection is not read.
MAX_PIPELINED = 16
# A refused request's body up to this length, in bytes, is read and dropped, so that the connection can stay.
MAX_DRAINED = 256 * 1024
# How long a closing connection is still read, in seconds: closing at once would reset it, and the reset can overtake
# the answer (RFC 9112, 9.6).
LINGER_S = 2.0

# What stands for a request so broken that there is no route.
_BROKEN = Endpoint("malformed", ())

# Requests that never become ASGI messages.
RELAYED = (Exchange, FastPathRequest)

now = time.perf_counter


class GatewayProtocol(RequestReader):
    """One client connection. The application's lifespan hands it its `RelayContext`."""

    def __init__(self, config: Config, server_state: ServerState, app_state: dict[str, Any], _loop: Any = None) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.full = False
        self.address: str | None = None
        # How many bytes the client had still to take when that was last looked at.
        self._unread = 0
        self._gathering: Exchange | None = None

    # What the event loop calls.

    def connection_made(self, transport: Any) -> None:
        """Take the connection."""
        super().connection_made(transport)
        self.address = self.client[0] if self.client else None
        self._context.connections.add(self)
        self.deadline = now() + self._context.limits.client_s

    def connection_lost(self, exc: Exception | None) -> None:
        """The client has left: end what is going on for it."""
        self._context.connections.discard(self)
        self._closing = True
        running, gathering, waiting = self._running, self._gathering, list(self.pipeline)
        self.pipeline.clear()
        for cycle in (running, gathering, *(cycle for cycle, _ in waiting)):
            if isinstance(cycle, RELAYED):
                cycle.client_left()
        if isinstance(self.cycle, RELAYED):
            self.cycle = None  # type: ignore[assignment]  # as uvicorn sets it itself
        if running is not None and not isinstance(running, RELAYED):
            running.disconnected = True
            running.message_event.set()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """The client reads too slowly."""
        self.full = True
        if isinstance(self._running, RELAYED):
            self._running.client_full(True)
        self.flow.pause_writing()

    def resume_writing(self) -> None:
        """The client has caught up."""
        self.full = False
        if isinstance(self._running, RELAYED):
            self._running.client_full(False)
        self.flow.resume_writing()
        if self._running is None and (self.pipeline or not self._closing):
            self._go_on()

    def on_deadline(self) -> None:
        """Called by the plane's clock: nothing has moved for too long."""
        self.deadline = NEVER
        if isinstance(self._running, RELAYED) and self._running.gathered:
            self._running.on_deadline()
        elif self._is_unread():
            return
        elif self._closing or (not self._in_head and self._gathering is None):
            self.transport.close()
        else:
            self._break_off(
                ApiError(
                    "The request did not arrive in time. Send it again.",
                    status=408,
                    type="invalid_request_error",
                    code="request_timeout",
                )
            )

    def on_stuck(self, backend: Backend) -> None:
        """A backend does nothing any more."""
        if isinstance(self._running, RELAYED):
            self._running.on_stuck(backend)

    # What httptools calls, beyond what the reader does itself.

    def on_body(self, body: bytes) -> None:
        """A piece of a body."""
        self._body_bytes += len(body)
        exchange = self._gathering
        if exchange is None:
            if not self._closing:
                super().on_body(body)
            return
        exchange.add(body)
        if self._running is exchange:
            self.deadline = now() + self._context.limits.client_s

    def on_message_complete(self) -> None:
        """The request is whole, or so llhttp believes of one that wants to upgrade."""
        if self._upgrading:
            return
        self._between = True
        self._framed = -1
        exchange, self._gathering = self._gathering, None
        if exchange is None:
            if not self._closing:
                super().on_message_complete()
            return
        exchange.gathered = True
        if self._running is exchange:
            exchange.run()

    # Requests in their order.

    def _begin_exchange(self, endpoint: Endpoint, head: Head, *, http11: bool) -> None:
        keep_alive = http11 and self.parser.should_keep_alive()
        target, body, refusal = self.url, None, None
        try:
            self._check(endpoint, head)
            body, target, head = self._context.body_for(endpoint, target, head)
        except ApiError as error:
            refusal = error
        exchange = Exchange(self, self._context, endpoint, target, head, http11=http11, keep_alive=keep_alive)
        exchange.body, exchange.refusal = body, refusal
        if refusal is None and keep_alive and head.repeats and endpoint.takes == "json":
            self._learn = CachedRequest(endpoint, origin_form(target), head)
        if refusal is not None:
            # Its body is dropped, unless it is too long for that or has not been sent yet.
            self._closing = head.expects_continue or head.chunked or (head.length or 0) > MAX_DRAINED
        if not self._closing:
            self._gathering = exchange
        self._enqueue(exchange)

    def _begin_known(self, known: CachedRequest, data: bytes) -> None:
        """A whole request whose head has been read before, when nothing else is going on on this connection."""
        plain = try_fast_path(self, self._context, known, data)
        if plain is not None:
            self.cycle = self._running = plain  # type: ignore[assignment]  # as in _enqueue
            return
        exchange = Exchange(self, self._context, known.endpoint, known.target, known.head, http11=True, keep_alive=True)
        exchange.body = JsonBody.whole(known.endpoint, data, known.head.session)
        exchange.gathered = True
        self.cycle = self._running = exchange  # type: ignore[assignment]  # as in _enqueue
        exchange.run()

    def _check(self, endpoint: Endpoint, head: Head) -> None:
        """Raise what the head alone already gives reason to refuse."""
        refusal = self._context.refusal(head)
        if refusal is not None:
            raise refusal
        if head.length is not None:
            limits, text = self._context.limits, endpoint.takes == "json"
            most = limits.max_body if text else limits.max_upload
            if head.length > most:
                raise too_large(most, "MAX_BODY_MB" if text else "MAX_UPLOAD_MB")

    def _enqueue(self, exchange: Exchange) -> None:
        self.cycle = exchange  # type: ignore[assignment]  # it has the fields that uvicorn reads of its own cycles
        if self._running is None and not self.pipeline:
            self._start(exchange)
            return
        self.pipeline.appendleft((exchange, self.app))  # type: ignore[arg-type]  # as above
        if len(self.pipeline) >= MAX_PIPELINED:
            self.flow.pause_reading()

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        """A request's turn has come; uvicorn calls this for the first in line."""
        if isinstance(cycle, Exchange):
            self._start(cycle)
            return
        self._running = cycle
        self.deadline = NEVER
        super()._start_asgi_task(cycle, app)

    def _start(self, exchange: Exchange) -> None:
        self._running = exchange
        if exchange.gathered:
            exchange.run()
        elif self._closing and exchange.refusal is not None:
            exchange.refuse(exchange.refusal)
        else:
            self.deadline = now() + self._context.limits.client_s
            if exchange.expects_continue and exchange.refusal is None:
                self.transport.write(CONTINUE)

    # Ends.

    def common_headers(self) -> list[tuple[bytes, bytes]]:
        """The headers of every answer that is our own."""
        return self.server_state.default_headers

    def exchange_done(self, exchange: Exchange) -> None:
        """The answer is written: go on with the next request, or close."""
        if self._running is not exchange:
            return
        if exchange.keep_alive:
            self.on_response_complete()
            return
        self._running = None
        self.server_state.total_requests += 1
        self._closing = True
        if exchange.gathered or exchange.disconnected:
            self.transport.close()
            self.deadline = now() + self._context.limits.client_s
        else:
            self._linger()

    def become(self, exchange: Exchange) -> None:
        """The plain request that is being answered goes on as `exchange`."""
        # uvicorn's cycle is the request that came last, which may be one behind this.
        if self.cycle is self._running:
            self.cycle = exchange  # type: ignore[assignment]  # as in _enqueue
        self._running = exchange

    def plain_done(self, now: float) -> None:
        """The answer to a plain request is written."""
        if self.cycle is self._running:
            self.cycle = None  # type: ignore[assignment]  # as uvicorn sets it itself
        if self.full or self.pipeline or self._in_head or self.flow.read_paused or self.transport.is_closing():
            self.on_response_complete()
            return
        self.server_state.total_requests += 1
        self._running = None
        self.deadline = now + self._context.limits.keep_alive_s

    def on_response_complete(self) -> None:
        """An answer, relayed or not, is out: start the next request in line."""
        self.server_state.total_requests += 1
        self._running = None
        self._go_on()

    def _go_on(self) -> None:
        """Take the next request, once the client has taken the answers: who only asks must not fill the memory."""
        if self.transport.is_closing():
            self.deadline = now() + self._context.limits.client_s
            return
        if self.full:
            self.flow.pause_reading()
            self.deadline = now() + self._context.limits.client_s
            return
        self.flow.resume_reading()
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
        else:
            limits = self._context.limits
            self.deadline = now() + (limits.client_s if self._in_head else limits.keep_alive_s)

    def _is_unread(self) -> bool:
        """Whether the client has still to take bytes. It gets more time if it took some, and is cut off if not."""
        before, self._unread = self._unread, self.transport.get_write_buffer_size()
        if not self._unread:
            return False
        if self._unread == before:
            self.transport.abort()
        else:
            self.deadline = now() + self._context.limits.client_s
        return True

    def _break_off(self, error: ApiError) -> None:
        """What comes on this connection cannot be read: answer with `error` when its turn comes, then close."""
        if self._closing:
            return
        self._closing = True
        exchange, self._gathering = self._gathering, None
        if exchange is None:
            running = self._running
            if running is not None and not isinstance(running, RELAYED) and running.more_body and self.cycle is running:
                # The body of a request that the application is reading: it never ends.
                running.disconnected = True
                running.message_event.set()
                self.transport.close()
                return
            exchange = Exchange(self, self._context, _BROKEN, self.url or b"", Head(), http11=True, keep_alive=False)
            exchange.refusal = error
            self._enqueue(exchange)
            return
        exchange.refusal = error
        if self._running is exchange:
            exchange.refuse(error)

    def _linger(self) -> None:
        """Send the end of our side, read and drop the rest of theirs for a moment, then close."""
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.deadline = now() + LINGER_S
