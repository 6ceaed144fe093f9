"""The plain case of a request, which nearly all are: relayed in two steps, for a fraction of what an exchange costs.

A request is plain while nothing about it is unusual: its head was read before, it has come whole, no stream is asked
for, the backend knows the model by the same name and has a connection open, and the answer, whose head was read before
too, is a 200 that comes in one read. Whatever else happens turns it into an exchange (gateway.relay) in the state that
it has reached: an answer in pieces or with another status, a backend that breaks off or is silent for too long, a
client that leaves or reads slowly, the end of the server.
"""

import time
from typing import Protocol

import structlog

from gateway.backends.backend import Backend
from gateway.bodies.body import JsonBody
from gateway.bodies.json_scan import scan_json
from gateway.relay.attempt import Attempt
from gateway.relay.data_plane import CachedRequest, ClientConnection, RelayContext
from gateway.relay.exchange import Exchange
from gateway.relay.forwarding import Forwarding
from gateway.relay.retry_budget import RequestTicket
from gateway.routing import Candidate, Ticket
from gateway.telemetry.access_log import Line
from gateway.upstream.connection import UpstreamConnection
from kit.errors import ApiError
from kit.web.middleware import request_id_from

log = structlog.get_logger(__name__)

now = time.perf_counter


class FastPathConnection(ClientConnection, Protocol):
    """What a plain request needs of its client's connection beyond what an exchange does."""

    def become(self, exchange: Exchange) -> None:
        """What was plain goes on as `exchange`."""

    def plain_done(self, now: float) -> None:
        """The answer is written."""


class FastPathRequest:
    """One plain request. To its client's connection it looks like an exchange, to the backend's like a listener."""

    __slots__ = (
        "_began",
        "_candidate",
        "_client",
        "_connection",
        "_context",
        "_data",
        "_known",
        "_place",
        "_ticket",
        "request_id",
    )  # fmt: skip

    # What uvicorn and the client's connection read of an exchange: it waits for its answer, from the start to the end.
    response_complete = False
    disconnected = False
    gathered = True
    expects_continue = False

    def __init__(
        self,
        client: FastPathConnection,
        context: RelayContext,
        known: CachedRequest,
        data: bytes,
        candidate: Candidate,
        place: Ticket,
        connection: UpstreamConnection,
        began: float,
    ) -> None:
        self._client = client
        self._context = context
        self._known = known
        self._data = data
        self._candidate = candidate
        self._place = place
        self._ticket = RequestTicket(context.metrics, context.budget)
        self._ticket.sent()
        self._connection = connection
        # When its head was there, a monotonic time.
        self._began = began
        self.request_id = request_id_from(None)

    # What the backend's connection calls.

    def on_response(self, connection: UpstreamConnection) -> None:
        """Pass the answer on, count and log it: all that there is to do, where it is whole and well."""
        known, client, context, candidate = connection.known, self._client, self._context, self._candidate
        if known is None or client.full or (context.deaths.records and context.deaths.may_know(self._data)):
            self._become()[1].on_response(connection)
            return
        at = now()
        backend: Backend = candidate.backend
        backend.traffic.last_byte_at = at
        body = connection.take_body()
        client.transport.write(
            b"%b%d\r\n%bx-queue-ms: %.1f\r\nx-attempts: 1\r\nx-request-id: %b\r\n\r\n%b" % (
                known.before_length,
                len(body),
                candidate.served,
                (self._place.sent_at - self._began) * 1000,
                self.request_id.encode(),
                body,
            )
        )  # fmt: skip
        connection.release()
        self._place.first_byte(at, ok=True)
        self._place.end("http_200")
        backend.record_success()
        path, seconds = self._known.endpoint.path, at - self._began
        self._ticket.end()
        context.metrics.count(path, 200, seconds, None)
        ms = int(seconds * 10_000.0 + 0.5) / 10.0  # several times as fast as round
        context.access_log.write(
            Line(path, 200, ms, client.address, self.request_id, 1, backend.name, candidate.offer.name)
        )
        client.plain_done(at)

    def on_chunks(self, connection: UpstreamConnection, body: bytes, framed: bytes) -> None:
        """It is an answer in pieces."""
        self._become()[1].on_chunks(connection, body, framed)

    def on_lost(self, connection: UpstreamConnection, reason: str) -> None:
        """The connection broke before the answer was complete."""
        self._become()[1].on_lost(connection, reason)

    def on_room(self) -> None:
        """All of it was written at once."""

    # What the client's connection calls.

    @property
    def keep_alive(self) -> bool:
        """Whether the client's connection stays open after this."""
        return True

    @keep_alive.setter
    def keep_alive(self, value: bool) -> None:
        self._become()[0].keep_alive = value

    def client_left(self) -> None:
        """The client's connection has ended."""
        self._become()[0].client_left()

    def client_full(self, full: bool) -> None:
        """It is its own answer that fills the client, which is whole: there is nobody to be held up."""

    def on_deadline(self) -> None:
        """The backend has been silent for too long."""
        self._become()[0].on_deadline()

    def on_stuck(self, backend: Backend) -> None:
        """This backend does nothing any more."""
        if backend is self._candidate.backend:
            self._become()[0].on_stuck(backend)

    # What is not plain any more.

    def _become(self) -> tuple[Exchange, Forwarding]:
        """The exchange that it becomes, waiting for the answer that this one has waited for."""
        known, context, connection = self._known, self._context, self._connection
        exchange = Exchange(
            self._client,
            context,
            known.endpoint,
            known.target,
            known.head,
            http11=True,
            keep_alive=True,
            ticket=self._ticket,
        )
        exchange.request_id, exchange.began = self.request_id, self._began
        exchange.body = JsonBody.whole(known.endpoint, self._data, known.head.session)
        exchange.gathered = True
        attempt = Attempt(self._candidate, self._place)
        attempt.connection = connection
        forwarding = exchange.adopt(exchange.body, attempt, self._place.sent_at - self._began)
        if connection.listener is self:  # not where it has just ended
            connection.listener = forwarding
        self._client.become(exchange)
        return exchange, forwarding


def try_fast_path(
    client: FastPathConnection, context: RelayContext, known: CachedRequest, data: bytes
) -> FastPathRequest | None:
    """Send a request with the body `data` to its backend, if it is plain. If not, nothing has been done."""
    began = now()
    connection = None
    try:
        head = known.head
        request = scan_json(data, known.endpoint, head.session)
        if request.stream or head.origin or client.full or (context.deaths.records and context.deaths.may_know(data)):
            return None
        choice = context.router.choose(request, began)
        if choice is None:
            return None
        candidate = choice.candidate
        if request.model not in candidate.offer.verbatim:
            return None
        backend = candidate.backend
        connection = backend.pool.take()
        if connection is None:
            return None
        sent = now()
        place = context.router.sent(choice, request, sent)
    except ApiError:
        # Met again by an exchange, which answers with it.
        return None
    except Exception as bug:
        log.error("bug", where="the plain way", exc_info=bug)
        if connection is not None:
            connection.abort()
        return None
    # From here on it is at its backend, and nothing that follows may fail.
    client.deadline = sent + context.limits.first_byte_floor_s
    plain = FastPathRequest(client, context, known, data, candidate, place, connection, began)
    connection.begin(
        plain,
        b"%b%b%b%bx-request-id: %b\r\ncontent-length: %d\r\n\r\n%b" % (
            backend.before_target,
            known.target,
            backend.after_target,
            head.forward,
            plain.request_id.encode(),
            len(data),
            data,
        ),
    )  # fmt: skip
    return plain
