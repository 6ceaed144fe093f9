"""A whole request on its way: choose a backend, send, pass the answer on.

An attempt (gateway.attempt) holds a connection and a place at its backend until it is released, on every path.
"""

import time

from gateway.backends.adaptive_timeouts import next_byte_s
from gateway.http1.headers import origin_form
from gateway.relay.attempt import Attempt
from gateway.relay.failover import Failover
from gateway.relay.response import choice_headers
from gateway.relay.stream_passthrough import StreamPassthrough
from gateway.routing import Choice
from gateway.streams.continuation import ROUTES
from gateway.upstream.connection import UpstreamConnection
from kit.errors import BadGateway, NoHealthyBackend

# Answers with which a backend says that another might do better.
ELSEWHERE = frozenset({502, 503, 504})

now = time.perf_counter


class Forwarding(Failover):
    """What an exchange does with its backends."""

    __slots__ = ()

    # Choosing and sending.

    def start(self) -> None:
        """Find a backend and send the request, or refuse it."""
        self._guarded(self._start)

    def _start(self) -> None:
        at = now()
        self._exchange.ticket.sent()
        self.request = self._body.routing_request()
        if self._context.deaths.records:
            self._check_record(at)
        choice = self._context.router.choose(self.request, at)
        assert choice is not None, "the first choice is never empty"
        sent = now()
        self._queue_s = sent - at
        self._send_to(choice, sent)

    def adopt(self, attempt: Attempt, queue_s: float) -> None:
        """Go on with a request that was sent already; `queue_s` is how long the choice took, in seconds."""
        self.request = self._body.routing_request()
        self.attempt, self.attempts, self._queue_s = attempt, 1, queue_s

    def _send_to(self, choice: Choice, at: float) -> None:
        self.attempts += 1
        ticket = self._context.router.sent(choice, self.request, at, is_suspect=self._digest is not None)
        attempt = self.attempt = Attempt(choice.candidate, ticket)
        self._client.deadline = at + self._limits.first_byte_floor_s
        connection = attempt.backend.pool.take()
        if connection is None:
            self._connect(attempt)
        else:
            self._send(connection)

    def _connect(self, attempt: Attempt) -> None:
        attempt.connect(
            self._limits.connect_s, lambda connection: self._guarded(self._send, connection), self._unreachable
        )

    def _unreachable(self, error: Exception) -> None:
        attempt = self.attempt
        assert attempt is not None
        backend = attempt.backend
        timed_out = isinstance(error, TimeoutError)
        reason = f"no connection within {self._limits.connect_s:g} s" if timed_out else f"cannot connect: {error}"
        backend.observe("unhealthy", reason)
        failure = NoHealthyBackend(f"{backend.name} cannot be reached ({reason}). Check that it runs.", retry_after=2)
        # One that took the request and is gone now has died with it; else the request never arrived.
        self._failed("unreachable", failure, died=attempt.resent)

    def _send(self, connection: UpstreamConnection) -> None:
        attempt, exchange = self.attempt, self._exchange
        assert attempt is not None
        # Held before anything can go wrong.
        attempt.connection = connection
        backend = attempt.backend
        length, first, pieces = self._body.pieces(attempt.candidate.upstream_model(self.request.model))
        head = b"%b%b%b%bx-request-id: %b\r\ncontent-length: %d\r\n\r\n" % (
            backend.before_target,
            origin_form(exchange.target),
            backend.after_target,
            exchange.head.forward,
            exchange.request_id.encode("latin-1"),
            length,
        )
        if pieces is None:
            attempt.begin(self, head + first, None)
        else:
            attempt.begin(self, head + (first or next(pieces, b"")), pieces)
            self.on_room()

    # What the backend's connection calls.

    def on_room(self) -> None:
        """The backend takes more of the body."""
        if self.attempt is not None and self.attempt.pump():
            # An upload shows progress: the answer's deadline starts when its last byte has gone.
            self.attempt.since = at = now()
            self._client.deadline = at + self._limits.first_byte_floor_s

    def on_response(self, connection: UpstreamConnection) -> None:
        """Pass on what has come."""
        answer, attempt, client = self._answer, self.attempt, self._client
        assert attempt is not None
        backend = attempt.backend
        if answer.awaited and not self._accept(connection, attempt):
            return
        if connection.complete and answer.said is not None and answer.is_cut_short(connection):
            self.on_lost(connection, "it closed the connection in the middle of a stream")
            return
        backend.traffic.last_byte_at = at = now()
        data = answer.ready(connection)
        if answer.failure is not None:
            self._told_of_failure(attempt, data, answer.failure)
            return
        if data is None:
            return
        if answer.begun:
            attempt.moves(client, at)
            answer.go_on(data, last=connection.complete)
        else:
            self.first_byte = at
            well = connection.status < 300
            attempt.ticket.first_byte(at, ok=well)
            if well and self.request.stream:
                backend.load.ttft_s = at - attempt.sent
            self._begun(attempt, at)
            served = choice_headers(attempt.candidate.served, self._queue_s)
            answer.begin(connection, data, self._exchange.provenance(served))
        if connection.complete:
            attempt.complete(connection, f"http_{answer.status}")
            if answer.status < 400:
                backend.record_success()
            if self._context.deaths.records and answer.status < 500:
                self._context.deaths.cleared(self._exchange.endpoint.path, self._told_by())
            self._exchange.done()
        elif client.full:
            connection.pause()

    def on_chunks(self, connection: UpstreamConnection, body: bytes, framed: bytes) -> None:
        """Pass on whole chunks, as they came where they may; those that follow go that way by themselves."""
        answer, attempt, client = self._answer, self.attempt, self._client
        if attempt is None or not answer.passes_as_it_is(body):
            connection.body.append(body)
            self.on_response(connection)
            return
        attempt.moves(client, now())
        client.transport.write(framed)
        if client.full:
            connection.pause()
        connection.shortcut = StreamPassthrough(attempt, client, answer.said)

    def on_lost(self, connection: UpstreamConnection, reason: str) -> None:
        """The connection broke before the answer was complete."""
        attempt = self.attempt
        assert attempt is not None
        attempt.lost()
        if connection.reused and not connection.any_byte:
            # It was closed for being idle just as this request went out (RFC 9112, 9.3.1); no fault of the backend.
            attempt.resent = True
            self._connect(attempt)
            return
        name = attempt.backend.name
        error = BadGateway(f"{name} broke off: {reason}. Try again; GET /services shows how it is.")
        self._failed("broken", error, died=connection.ended)

    def _told_of_failure(self, attempt: Attempt, data: bytes | None, message: str) -> None:
        """The backend says in its stream that it has failed: as good as lost."""
        if data and self._answer.begun:
            self._answer.go_on(data, last=False)
        error = BadGateway(f"{attempt.backend.name} failed in the middle of its answer: {message}.")
        self._failed("told", error, died=True)

    def _accept(self, connection: UpstreamConnection, attempt: Attempt) -> bool:
        """Look at a new answer's status; False when another backend is asked instead."""
        status, backend, answer = connection.status, attempt.backend, self._answer
        if answer.begun:
            if status != 200 or not connection.is_stream:
                self._failed(f"http_{status}", BadGateway(f"{backend.name} answered {status} to what remained."))
                return False
            at = now()
            attempt.ticket.first_byte(at, ok=True)
            self._begun(attempt, at)
            answer.rejoin(carried=self._carries)
            return True
        if status >= 500:
            if status in ELSEWHERE and self._another(now(), last_resort=True):
                self._failed(f"http_{status}", BadGateway(f"{backend.name} answered {status}. Try again in a moment."))
                return False
            backend.record_failure(f"http_{status}", f"{backend.name} answered {status}")
        answer.accept(connection, keeps=self._exchange.endpoint.path in ROUTES)
        return True

    def _begun(self, attempt: Attempt, at: float) -> None:
        """From now on the answer may pause for only so long. Whoever sends something whole may take its time."""
        limits = self._limits
        longest = attempt.backend.load.gaps.longest if self.request.stream else None
        attempt.idle_s = next_byte_s(longest, limits.stream_idle_floor_s, limits.stream_idle_s)
        self._client.deadline = at + attempt.idle_s

    # What the client's connection calls, through the exchange.

    def client_full(self, full: bool) -> None:
        """The client reads more slowly than the backend writes, or has caught up."""
        attempt = self.attempt
        connection = attempt.connection if attempt is not None else None
        if attempt is None or connection is None:
            return
        if full:
            connection.pause()
        else:
            connection.resume()
            if self._answer.begun:
                # It was not the backend that paused.
                self._client.deadline = now() + attempt.idle_s
