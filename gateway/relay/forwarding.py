"""A complete request at its backends: choose one, send, pass the response on, fail over.

`Forwarding` does what `failover.decide` says about each failure. An attempt holds a connection and a place at its
backend until it is released, on every path.
"""

import asyncio
from collections.abc import Callable

import structlog

from gateway.backends.adaptive_timeouts import next_byte_s
from gateway.backends.backend import Backend
from gateway.backends.health_state import State
from gateway.backends.query_of_death import digest_of
from gateway.backends.response_verdict import ResponseVerdict
from gateway.bodies.body import Body, JsonBody
from gateway.relay.attempt import Attempt, AttemptState
from gateway.relay.deadline import now
from gateway.relay.failover import Continue, FailoverState, decide
from gateway.relay.relayed_request import ForwardedRequest
from gateway.relay.response import AWAITING, BEGUN, INTERRUPTED, SENDING, awaits_rest, with_valid_retry_after
from gateway.relay.stream_passthrough import StreamPassthrough
from gateway.routing import Choice, RoutingRequest
from gateway.streams.continuation import RESUMABLE_ROUTES, Ending
from gateway.upstream.connection import UpstreamConnection
from kit.errors import ApiError, BadGateway, NoHealthyBackend, UpstreamTimeout

log = structlog.get_logger(__name__)

# States of a backend from which no byte is expected if none has come for a while.
SILENT_STATES: frozenset[State] = frozenset({"unhealthy", "stuck"})


class Forwarding:
    """One request with its attempts. The listener of their connections."""

    __slots__ = (
        "_body", "_client", "_context", "_continued", "_deadline", "_digest", "_failover", "_limits", "_queue_s",
        "_relayed", "_response", "_source", "attempt", "attempts", "first_byte", "request",
    )  # fmt: skip

    def __init__(self, relayed: ForwardedRequest, body: Body) -> None:
        self._relayed = relayed
        self._client = relayed.client
        self._context = relayed.context
        self._deadline = relayed.client.deadline
        self._limits = relayed.context.limits
        self._response = relayed.response
        # The client's own body; the one that is sent, which may ask for the rest of a stream.
        self._source = self._body = body
        self._continued: Continue | None = None
        self.request = RoutingRequest(relayed.endpoint)
        # The present attempt, or the last one, and their number.
        self.attempt: Attempt | None = None
        self.attempts = 0
        # From the first failure on.
        self._failover: FailoverState | None = None
        # The request's digest if it, or one like it, has lost a backend (query_of_death).
        self._digest: bytes | None = None
        # How long the choice took, in seconds; when the response began, monotonic.
        self._queue_s = 0.0
        self.first_byte: float | None = None

    # Choosing and sending.

    def start(self) -> None:
        """Choose a backend and send the request, or refuse it."""
        self._guard(self._start)

    def _start(self) -> None:
        at = now()
        context = self._context
        context.budget.requests += 1
        self.request = self._body.routing_request()
        if context.quarantine.suspects:
            self._digest = context.quarantine.check(self._relayed.endpoint.path, self._identity(), at)
        choice = context.router.choose(self.request, at)
        assert choice is not None, "the first choice is never empty"
        sent = now()
        self._queue_s = sent - at
        self._send_to(choice, sent)

    def adopt(self, attempt: Attempt, request: RoutingRequest, queue_s: float) -> None:
        """Continue a request that the fast path has sent; `queue_s` is how long the choice took, in seconds."""
        self.request, self.attempt, self.attempts, self._queue_s = request, attempt, 1, queue_s

    def _send_to(self, choice: Choice, at: float) -> None:
        self.attempts += 1
        ticket = self._context.router.admit(choice, self.request, at, is_suspect=self._digest is not None)
        attempt = self.attempt = Attempt(choice.candidate, ticket)
        self._deadline.at = at + self._limits.first_byte_floor_s
        connection = attempt.backend.pool.take()
        if connection is None:
            self._connect(attempt)
        else:
            self._send(connection)

    def _connect(self, attempt: Attempt) -> None:
        attempt.connecting = asyncio.get_running_loop().create_task(self._open(attempt))

    async def _open(self, attempt: Attempt) -> None:
        try:
            connection = await attempt.connect(self._limits.connect_s)
        except (OSError, UnicodeError) as error:
            attempt.connecting = None
            self._unreachable(attempt, error)
        else:
            attempt.connecting = None
            self._guard(self._send, connection)

    def _unreachable(self, attempt: Attempt, error: Exception) -> None:
        backend = attempt.backend
        timed_out = isinstance(error, TimeoutError)
        reason = f"no connection within {self._limits.connect_s:g} s" if timed_out else f"cannot connect: {error}"
        backend.observe("unhealthy", reason)
        failure = NoHealthyBackend(f"{backend.name} is unreachable ({reason}). Check that it runs.", retry_after=2)
        # Lost with the request only if it had accepted it: else the request never arrived.
        self._fail("unreachable", failure, has_lost_backend=attempt.state is AttemptState.RECONNECTING)

    def _send(self, connection: UpstreamConnection) -> None:
        attempt = self._present
        # Held before anything can fail.
        attempt.connection = connection
        length, first, pieces = self._body.pieces(attempt.candidate.upstream_model(self.request.model))
        head = self._relayed.upstream_head(attempt.backend, length)
        if pieces is None:
            attempt.begin(self, head + first, None)
        else:
            attempt.begin(self, head + (first or next(pieces, b"")), pieces)
            self.on_room()

    @property
    def _present(self) -> Attempt:
        assert self.attempt is not None
        return self.attempt

    def release(self, outcome: str) -> None:
        """Release the present attempt."""
        if self.attempt is not None:
            self.attempt.release(outcome)

    def _guard(self, step: Callable[..., None], *arguments: object) -> None:
        """Call `step`; respond with its error, because nothing else would ever end this request."""
        try:
            step(*arguments)
        except ApiError as error:
            self._relayed.refuse(error)
        except Exception as bug:
            request_id = self._relayed.request_id
            log.error("bug", request_id=request_id, exc_info=bug)
            self._relayed.refuse(ApiError(f"Internal error. The log has its cause under request id {request_id}."))

    # Callbacks of the backend's connection.

    def on_room(self) -> None:
        """Write more of the body."""
        if self.attempt is not None and self.attempt.write_pieces():
            # An upload shows progress: the wait for the first byte starts when its last byte is sent.
            self.attempt.silent_since = at = now()
            self._deadline.at = at + self._limits.first_byte_floor_s

    def on_response(self, connection: UpstreamConnection) -> None:
        """Pass on what has arrived."""
        response, attempt = self._response, self._present
        if response.state in AWAITING and not self._accept(connection, attempt):
            return
        if connection.complete and response.transcript is not None and response.is_truncated(connection):
            self.on_lost(connection, "it closed the connection in the middle of a stream")
            return
        backend = attempt.backend
        backend.traffic.last_byte_at = at = now()
        data = response.take_ready(connection)
        if response.failure is not None:
            self._fail_reported(attempt, data, response.failure)
            return
        if data is None:
            return
        if response.state is SENDING:
            attempt.touch(self._deadline, at)
            response.send(data, last=connection.complete)
        else:
            self.first_byte = at
            is_success = connection.status < 300
            attempt.ticket.first_byte(at, ok=is_success)
            if is_success and self.request.stream:
                backend.load.ttft_s = at - attempt.ticket.sent_at
            self._start_idle_timeout(attempt, at)
            provenance = self._relayed.provenance_headers(self.attempts, attempt.candidate, self._queue_s)
            error = None if is_success else self._relayed.replacement(connection, attempt.backend, data)
            if error is None:
                response.begin(connection, data, provenance)
            else:
                response.replace(error, self._relayed.rendered(error), provenance, connection)
        if connection.complete:
            self._complete(connection, attempt)
        elif self._client.full:
            connection.pause()

    def _complete(self, connection: UpstreamConnection, attempt: Attempt) -> None:
        status, quarantine = self._response.status, self._context.quarantine
        attempt.complete(connection, f"http_{status}")
        if status < 400:
            attempt.backend.record_success()
        if quarantine.suspects and status < 500:
            quarantine.clear(self._relayed.endpoint.path, self._identity())
        self._relayed.finish()

    def on_chunks(self, connection: UpstreamConnection, body: bytes, framed: bytes) -> None:
        """Forward whole chunks unchanged if possible; the connection then does so by itself for those that follow."""
        response, attempt, client = self._response, self.attempt, self._client
        if attempt is None or not response.try_verbatim(body):
            connection.body.append(body)
            self.on_response(connection)
            return
        attempt.touch(self._deadline, now())
        client.transport.write(framed)
        if client.full:
            connection.pause()
        connection.shortcut = StreamPassthrough(attempt, client, response.transcript).try_forward

    def on_lost(self, connection: UpstreamConnection, reason: str) -> None:
        """The connection broke before the response was complete."""
        attempt = self._present
        attempt.drop_connection()
        if connection.reused and not connection.any_byte:
            # The backend closed it as idle just as this request was sent (RFC 9112, 9.3.1): not a failure.
            attempt.state = AttemptState.RECONNECTING
            self._connect(attempt)
            return
        error = BadGateway(f"{attempt.backend.name} failed: {reason}. Try again; GET /services shows its state.")
        self._fail("broken", error, has_lost_backend=connection.ended)

    def _fail_reported(self, attempt: Attempt, data: bytes | None, message: str) -> None:
        """Treat a backend whose stream reports its failure as lost."""
        if data and self._response.state in BEGUN:
            self._response.send(data, last=False)
        error = BadGateway(f"{attempt.backend.name} failed in the middle of its response: {message}.")
        self._fail("reported_failure", error, has_lost_backend=True)

    def _accept(self, connection: UpstreamConnection, attempt: Attempt) -> bool:
        """Check a new response's status; return False if it is not the client's, or the rest of it is needed first."""
        status, backend, response = connection.status, attempt.backend, self._response
        verdict = ResponseVerdict.PASS_ON
        if status >= 300:
            if awaits_rest(connection):
                return False
            verdict = backend.record_error(status, connection.forward, b"".join(connection.body))
        if response.state is INTERRUPTED:
            if status != 200 or not connection.is_stream:
                error = BadGateway(f"{backend.name} returned {status} instead of the rest of the stream.")
                self._fail(f"http_{status}", error, is_recorded=verdict is not ResponseVerdict.PASS_ON)
                return False
            at = now()
            attempt.ticket.first_byte(at, ok=True)
            self._start_idle_timeout(attempt, at)
            assert self._continued is not None
            response.resume(includes_transcript=self._continued.includes_transcript)
            return True
        if verdict is not ResponseVerdict.PASS_ON:
            rejection = self._refreshed_failover().rejection(verdict, status, now())
            if rejection is not None:
                # The only 500 that another backend gets: the engine died with the request.
                self._fail(f"http_{status}", rejection, has_lost_backend=status == 500, is_recorded=True)
                return False
            if verdict is ResponseVerdict.FULL:
                connection.forward = with_valid_retry_after(connection.forward, backend.full_until - now())
        response.accept(connection, resumable=self._relayed.endpoint.path in RESUMABLE_ROUTES)
        return True

    def _start_idle_timeout(self, attempt: Attempt, at: float) -> None:
        """Limit the silence from now on: in a stream to what its backend's streams have had, else to the maximum."""
        limits = self._limits
        longest = attempt.backend.load.gaps.longest if self.request.stream else None
        attempt.idle_s = next_byte_s(longest, limits.stream_idle_floor_s, limits.stream_idle_s)
        self._deadline.at = at + attempt.idle_s

    # Failures.

    def _fail(
        self, outcome: str, error: ApiError, *, has_lost_backend: bool = False, is_recorded: bool = False
    ) -> None:
        """End the present attempt and do what the failover policy decides; the backend records a failure only once."""
        if not is_recorded:
            self._present.backend.record_failure(outcome, error.message)
            self._present.backend.probe_soon()
        self._guard(self._fail_over, outcome, error, has_lost_backend)

    def _fail_over(self, outcome: str, error: ApiError, has_lost_backend: bool) -> None:
        attempt, response, at = self._present, self._response, now()
        state = self._refreshed_failover()
        state.is_convicted = has_lost_backend and self._is_convicted(attempt, at)
        attempt.release(outcome)
        response.await_backend()
        decision = decide(error, state, at)
        if isinstance(decision, ApiError):
            self._relayed.refuse(decision)
        elif isinstance(decision, Ending):
            response.send(decision.events, last=True)
            self._relayed.finish()
        elif isinstance(decision, Continue):
            self._body, self.request, self._continued = decision.body, decision.request, decision
            log.warning(
                "stream continued on another backend",
                request_id=self._relayed.request_id,
                why=error.message,
                tokens=decision.tokens,
            )
            self._send_to(decision.choice, at)
        else:
            self._send_to(decision, at)

    def _refreshed_failover(self) -> FailoverState:
        state, response = self._failover, self._response
        if state is None:
            context, path, limit = self._context, self._relayed.endpoint.path, self._limits.max_attempts
            router, budget, metrics = context.router, context.budget, context.metrics
            state = self._failover = FailoverState(router, budget, metrics, limit, path, self._source, self.request)
        state.has_begun, state.transcript = response.state in BEGUN, response.transcript
        if self.attempt is not None:
            state.model = self.attempt.candidate.offer.name
            state.note_attempt(self.attempt.backend, self.attempts)
        return state

    def _identity(self) -> bytes:
        """Return what distinguishes the request from others in the quarantine: its body, if that is in memory."""
        return self._source.data if isinstance(self._source, JsonBody) else self._relayed.request_id.encode()

    def _is_convicted(self, attempt: Attempt, at: float) -> bool:
        """Record that the backend was lost with the request; return whether the request is to blame."""
        identity, path = self._identity(), self._relayed.endpoint.path
        digest = self._digest = self._digest or digest_of(path, identity)
        served_s = at - attempt.ticket.sent_at
        return self._context.quarantine.record_crash(attempt.backend, digest, len(identity), at, served_s=served_s)

    # Callbacks of the client's connection, through the exchange.

    def on_deadline(self) -> None:
        """Check a backend that has been silent."""
        self._guard(self._check_idle if self._response.state is SENDING else self._check_first_byte)

    def _check_first_byte(self) -> None:
        """Fail over if the first byte is late and another backend would accept the request; else wait on."""
        attempt, limits, at = self._present, self._limits, now()
        floor = limits.first_byte_floor_s
        by = attempt.first_byte_by(self.request, floor, limits.first_byte_s, at)
        last = attempt.first_byte_by(self.request, limits.first_byte_s, limits.first_byte_s, at)
        silent_s = at - max(attempt.silent_since, attempt.backend.last_sign_at)
        if attempt.backend.state in SILENT_STATES and silent_s >= floor:
            by = at
        if at < by:
            self._deadline.at = min(by, at + floor)
        elif at < last and not self._refreshed_failover().can_fail_over(at):
            self._deadline.at = min(at + floor, last)
        else:
            self._time_out(attempt, at - attempt.silent_since)

    def _check_idle(self) -> None:
        """Fail over a stream that pauses for too long; if no backend can continue it, allow the maximum."""
        attempt, limits = self._present, self._limits
        if attempt.idle_s < limits.stream_idle_s and not self._refreshed_failover().can_fail_over(now()):
            self._deadline.at += limits.stream_idle_s - attempt.idle_s
            attempt.idle_s = limits.stream_idle_s
            return
        self._time_out(attempt, attempt.idle_s)

    def _time_out(self, attempt: Attempt, seconds: float) -> None:
        name = attempt.backend.name
        message = f"{name} sent nothing for {seconds:.3g} s. Try again, ask for fewer tokens, or look at its log."
        self._fail("timeout", UpstreamTimeout(message))

    def on_stuck(self, backend: Backend) -> None:
        """Fail over if the request is at this stuck backend and another one would accept it."""
        attempt = self.attempt
        if attempt is None or attempt.state is AttemptState.RELEASED or attempt.backend is not backend:
            return
        if self._refreshed_failover().can_fail_over(now()):
            self._fail("stuck", UpstreamTimeout(f"{backend.name} is stuck. Try again; GET /services shows its state."))

    def client_full(self, full: bool) -> None:
        """Stop or resume reading from the backend as the client's buffer fills or empties."""
        attempt = self.attempt
        if attempt is None or attempt.connection is None:
            return
        if full:
            attempt.connection.pause()
        else:
            attempt.connection.resume()
            if self._response.state is SENDING:
                # The pause was the client's.
                self._deadline.start(attempt.idle_s)
