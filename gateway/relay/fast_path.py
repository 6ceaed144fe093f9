"""The fast path, which nearly all requests take: relayed in two steps, for a fraction of an exchange's cost.

A request takes it if its head is cached and its whole body has arrived, it is not streamed, the backend uses the same
name for the model and has an idle connection; and its response if that is a 200 with a cached head that arrives in one
read. Anything else (a response in pieces or with another status, a failing or silent backend, a client that leaves or
is slow, a shutdown) turns the request into an exchange in the state that it has reached.
"""

import structlog

from gateway.backends.backend import Backend
from gateway.bodies.body import JsonBody
from gateway.bodies.json_scan import scan_json
from gateway.bodies.memory_budget import MAX_UNCOUNTED
from gateway.relay.attempt import Attempt
from gateway.relay.data_plane import ClientConnection, ParsedRequest, RelayContext
from gateway.relay.deadline import now
from gateway.relay.exchange import Exchange
from gateway.relay.forwarding import Forwarding
from gateway.relay.relayed_request import RelayedRequest
from gateway.routing import Candidate, RoutingRequest, Ticket
from gateway.upstream.connection import UpstreamConnection
from kit.errors import ApiError

log = structlog.get_logger(__name__)


class FastPathRequest(RelayedRequest):
    """One request: an exchange to the client's connection, the listener of the backend's."""

    __slots__ = ("_candidate", "_connection", "_data", "_place", "_request")

    # Read by uvicorn and the client's connection: its response is awaited from start to end.
    response_complete = False
    is_received = True

    def __init__(
        self,
        client: ClientConnection,
        context: RelayContext,
        parsed: ParsedRequest,
        data: bytes,
        request: RoutingRequest,
        candidate: Candidate,
        place: Ticket,
        connection: UpstreamConnection,
        began: float,
    ) -> None:
        """`began` is the monotonic time of its arrival, `place` its ticket at the backend."""
        RelayedRequest.__init__(self, client, context, parsed, began)  # super() takes longer
        self._data = data
        self._request = request
        self._candidate = candidate
        self._place = place
        self._connection = connection
        context.budget.requests += 1

    # Callbacks of the backend's connection.

    def on_response(self, connection: UpstreamConnection) -> None:
        """Pass on a whole successful response; continue as an exchange for any other."""
        cached, client, context = connection.cached_head, self.client, self.context
        if cached is None or client.full or (context.quarantine.suspects and context.quarantine.may_match(self._data)):
            self._become_exchange()[1].on_response(connection)
            return
        at = now()
        candidate = self._candidate
        backend: Backend = candidate.backend
        backend.traffic.last_byte_at = at
        provenance = self.provenance_headers(1, candidate, self._place.sent_at - self.began)
        body = connection.take_body()
        client.transport.write(b"%b%d\r\n%b\r\n%b" % (cached.before_length, len(body), provenance, body))
        if len(self._data) > MAX_UNCOUNTED:
            client.memory.shrink(len(self._data))
        connection.release()
        self._place.first_byte(at, ok=True)
        self._place.end("http_200")
        backend.record_success()
        self.account(200, at, at, 1, candidate)
        client.fast_path_done(at)

    def on_chunks(self, connection: UpstreamConnection, body: bytes, framed: bytes) -> None:
        """Continue as an exchange: the response is in pieces."""
        self._become_exchange()[1].on_chunks(connection, body, framed)

    def on_lost(self, connection: UpstreamConnection, reason: str) -> None:
        """Continue as an exchange: the connection broke before the response was complete."""
        self._become_exchange()[1].on_lost(connection, reason)

    def on_room(self) -> None:
        """Ignore it: everything was written at once."""

    # Called by the client's connection.

    @property
    def keep_alive(self) -> bool:
        """Whether the client's connection stays open after this."""
        return True

    @keep_alive.setter
    def keep_alive(self, value: bool) -> None:
        self._become_exchange()[0].keep_alive = value

    def client_left(self) -> None:
        """Abort: the client's connection has ended."""
        self._become_exchange()[0].client_left()

    def client_full(self, full: bool) -> None:
        """Ignore it: the response that fills the client's buffer is complete."""

    def on_deadline(self) -> None:
        """Check a silent backend."""
        self._become_exchange()[0].on_deadline()

    def on_stuck(self, backend: Backend) -> None:
        """Fail over if the request is at this stuck backend."""
        if backend is self._candidate.backend:
            self._become_exchange()[0].on_stuck(backend)

    def _become_exchange(self) -> tuple[Exchange, Forwarding]:
        """Replace this by an exchange that awaits the same response."""
        connection = self._connection
        exchange = Exchange(self.client, self.context, self.parsed, http11=True, keep_alive=True)
        self.context.metrics.relaying -= 1  # it was counted once more
        exchange.request_id, exchange.began = self.request_id, self.began
        memory = self.client.memory if len(self._data) > MAX_UNCOUNTED else None
        body = JsonBody.from_bytes(self.endpoint, self._data, self.head.session, self._request, memory)
        attempt = Attempt.sent(self._candidate, self._place, connection)
        forwarding = exchange.adopt(body, attempt, self._request, self._place.sent_at - self.began)
        if connection.listener is self:  # not if it has just ended
            connection.listener = forwarding
        self.client.replace_fast_path(exchange)
        return exchange, forwarding


def try_fast_path(
    client: ClientConnection, context: RelayContext, parsed: ParsedRequest, data: bytes
) -> FastPathRequest | RoutingRequest | None:
    """Send a request with the body `data` if it can take the fast path.

    Otherwise nothing is sent, and what the body was found to request is returned, None if it is invalid.
    """
    began = now()
    connection = request = None
    try:
        head = parsed.head
        request = scan_json(data, parsed.endpoint, head.session)
        if request.stream or head.origin:
            return request
        if context.quarantine.suspects and context.quarantine.may_match(data):
            return request
        choice = context.router.choose(request, began)
        if choice is None:
            return request
        candidate = choice.candidate
        if request.model not in candidate.offer.verbatim:
            return request
        backend = candidate.backend
        connection = backend.pool.take()
        if connection is None:
            return request
        sent = now()
        place = context.router.admit(choice, request, sent)
    except ApiError:
        # The exchange meets it again, and responds with it.
        return request
    except Exception as bug:
        log.error("bug", where="fast path", exc_info=bug)
        if connection is not None:
            connection.abort()
        return request
    # Nothing that follows may fail: the request counts as sent.
    client.deadline.at = sent + context.limits.first_byte_floor_s
    fast = FastPathRequest(client, context, parsed, data, request, candidate, place, connection, began)
    connection.begin(fast, fast.upstream_head(backend, len(data), data))
    return fast
