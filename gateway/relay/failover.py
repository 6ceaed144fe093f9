"""What is done for a request when its backend fails or falls silent: another backend, or the error.

Before the first byte has gone to the client, the whole request goes to another backend. After it, another backend of
the same model goes on with the answer, where gateway.continuation knows how.
"""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING

import structlog

from gateway.backends.backend import Backend
from gateway.backends.health_state import State
from gateway.backends.query_of_death import CrashedBackend, digest_of
from gateway.bodies.body import Body, JsonBody
from gateway.relay.attempt import Attempt
from gateway.relay.retry_state import Tries
from gateway.routing import Choice, RoutingRequest
from gateway.streams.continuation import Continuation, Ending, NotFaithful, go_on
from kit.errors import ApiError, BadGateway, NoHealthyBackend, UpstreamTimeout

if TYPE_CHECKING:
    from gateway.relay.exchange import Exchange

log = structlog.get_logger(__name__)

# States of a backend of which no byte is to be waited for, if none has come for a while.
SILENT: frozenset[State] = frozenset({"unhealthy", "stuck"})

now = time.perf_counter


class Failover(ABC):
    """A request with its attempts. Ends by `exchange.done` or `exchange.refuse`, or with the client."""

    __slots__ = (
        "_answer",
        "_body",
        "_carries",
        "_client",
        "_context",
        "_digest",
        "_exchange",
        "_limits",
        "_queue_s",
        "_tries",
        "attempt",
        "attempts",
        "first_byte",
        "request",
    )  # fmt: skip

    def __init__(self, exchange: "Exchange", body: Body) -> None:
        self._exchange = exchange
        self._client = exchange.client
        self._context = exchange.context
        self._limits = exchange.context.limits
        self._answer = exchange.answer
        # What is sent: the client's own, or what asks for the rest of an answer; whether that holds what was said.
        self._body = body
        self._carries = False
        self.request = RoutingRequest(exchange.endpoint)
        # The present attempt, or the last one; how many there were; where another may go, once one has failed.
        self.attempt: Attempt | None = None
        self.attempts = 0
        self._tries: Tries | None = None
        # What names the request, once a backend was lost with it or with another one like it (gateway.deaths).
        self._digest: bytes | None = None
        # How long the choice took, in seconds; when the answer began, a monotonic time.
        self._queue_s = 0.0
        self.first_byte: float | None = None

    @abstractmethod
    def _send_to(self, choice: Choice, at: float) -> None:
        """Begin an attempt."""

    def release(self, outcome: str) -> None:
        """Let go of the backend."""
        if self.attempt is not None:
            self.attempt.release(outcome)

    def _guarded(self, step: Callable[..., None], *arguments: object) -> None:
        """Take a step. Where it fails, answer with the error: nothing else would ever end this exchange."""
        try:
            step(*arguments)
        except ApiError as error:
            self._exchange.refuse(error)
        except Exception as bug:
            request_id = self._exchange.request_id
            log.error("bug", request_id=request_id, exc_info=bug)
            self._exchange.refuse(ApiError(f"Internal error. The log has its cause under request id {request_id}."))

    # Failures.

    def _failed(self, outcome: str, error: ApiError, *, died: bool = False) -> None:
        """The attempt has come to nothing, `error` being why; `died` says that the backend was lost with it."""
        attempt = self.attempt
        assert attempt is not None
        self._guarded(self._go_elsewhere, attempt, outcome, error, died)

    def _go_elsewhere(self, attempt: Attempt, outcome: str, error: ApiError, died: bool) -> None:
        backend, at = attempt.backend, now()
        backend.record_failure(outcome, error.message)
        convicted = died and self._died(attempt, at)
        attempt.release(outcome)
        backend.probe_soon()
        if convicted:
            raise CrashedBackend(
                f"{error.message} It is the second backend that was lost with this request, which is sent to no third. "
                "Change the request, or ask the operator to look into the backends' logs."
            )
        self._answer.await_another()
        if self._answer.begun:
            self._go_on(error)
        self._retry(error, at)

    def _retry(self, error: ApiError, at: float) -> None:
        """Send it to the best backend not tried yet, or raise why not."""
        if self._exchange.response_complete:
            return
        try:
            choice = self._may_go().choose(self.request, at, last_resort=True)
        except ApiError as reason:
            # The router's message names every backend that is down and why; only a deadline says more.
            raise (reason if isinstance(error, NoHealthyBackend) else error) from reason
        if choice is None:
            raise error
        if not self._exchange.ticket.take_retry(at):
            raise type(error)(f"{error.message} Too many requests fail now to send this one again.")
        self._send_to(choice, at)

    def _may_go(self) -> Tries:
        """Where another attempt may go."""
        if self._tries is None:
            self._tries = Tries(self._context.router, self._limits.max_attempts)
        if self.attempt is not None:
            self._tries.note(self.attempt.backend, self.attempts)
        return self._tries

    def _another(self, at: float, *, last_resort: bool = False) -> bool:
        """Whether there is another backend, and room in the budget to try it."""
        there = self._may_go().another(self.request, at, last_resort=last_resort)
        return there and self._exchange.ticket.can_retry(at)

    # Deaths.

    def _told_by(self) -> bytes:
        """What a request is told from others by: its body, where that is at hand."""
        body = self._exchange.body
        return body.data if isinstance(body, JsonBody) else self._exchange.request_id.encode()

    def _check_record(self, at: float) -> None:
        """Raises CrashedBackend for a request of which backends have died."""
        self._digest = self._context.deaths.known(self._exchange.endpoint.path, self._told_by(), at)

    def _died(self, attempt: Attempt, at: float) -> bool:
        """The backend was lost with the request; whether it died of it, as far as can be told."""
        told_by = self._told_by()
        digest = self._digest = self._digest or digest_of(self._exchange.endpoint.path, told_by)
        return self._context.deaths.died(attempt.backend, digest, len(told_by), at, served_s=at - attempt.sent)

    # Going on with an answer.

    def _go_on(self, error: ApiError) -> None:
        """Turn the request into one for the rest of the answer, or end the answer. Raises where neither can be."""
        body, said, exchange = self._exchange.body, self._answer.said, self._exchange
        try:
            step = self._rest()
        except NotFaithful as reason:
            raise BadGateway(f"{error.message} The answer cannot be gone on with elsewhere: {reason}.") from reason
        assert said is not None
        assert isinstance(body, JsonBody)
        if isinstance(step, Ending):
            self._answer.go_on(step.events, last=True)
            exchange.done()
            return
        self._body = body.replaced(step.body)
        self._carries = step.carries
        self.request = self._body.routing_request()
        self._may_go().go_on(self.request, said.tokens, prefills=step.prefills)
        log.warning("answer goes on elsewhere", request_id=exchange.request_id, why=error.message, tokens=said.tokens)

    def _rest(self) -> Continuation | Ending:
        """What asks for the rest. Raises NotFaithful."""
        exchange, said, attempt = self._exchange, self._answer.said, self.attempt
        assert attempt is not None
        if said is None or not isinstance(exchange.body, JsonBody):
            raise NotFaithful("only streams of chats and completions can be")
        return go_on(exchange.endpoint.path, exchange.body.data, attempt.candidate.offer.name, said)

    def _can_go_on(self) -> bool:
        """Whether another backend could go on with the answer, as far as is known before it is asked."""
        try:
            step = self._rest()
        except NotFaithful:
            return False
        return isinstance(step, Ending) or self._may_go().can_go_on(self.request, prefills=step.prefills)

    # Silence.

    def on_deadline(self) -> None:
        """The backend may have been silent for too long."""
        if self._answer.begun:
            self._guarded(self._silent)
        else:
            self._guarded(self._late, now())

    def _late(self, at: float) -> None:
        """No first byte yet: is it late, and would another do better? Asked again after every floor."""
        attempt, limits = self.attempt, self._limits
        assert attempt is not None
        floor = limits.first_byte_floor_s
        by = attempt.first_byte_by(self.request, floor, limits.first_byte_s, at)
        last = attempt.first_byte_by(self.request, limits.first_byte_s, limits.first_byte_s, at)
        if attempt.backend.state in SILENT and at - max(attempt.since, attempt.backend.last_sign_at) >= floor:
            by = at
        if at < by:
            self._client.deadline = min(by, at + floor)
        elif at < last and not self._another(at):
            # Nobody else: waiting is all that is left.
            self._client.deadline = min(at + floor, last)
        else:
            self._timed_out(attempt, at - attempt.since)

    def _silent(self) -> None:
        """The answer pauses: where nobody can go on with it, it may do so for longer."""
        attempt, limits = self.attempt, self._limits
        assert attempt is not None
        if attempt.idle_s < limits.stream_idle_s and not self._can_go_on():
            self._client.deadline += limits.stream_idle_s - attempt.idle_s
            attempt.idle_s = limits.stream_idle_s
            return
        self._timed_out(attempt, attempt.idle_s)

    def _timed_out(self, attempt: Attempt, seconds: float) -> None:
        name = attempt.backend.name
        error = UpstreamTimeout(
            f"{name} sent nothing for {seconds:.3g} s. Try again, ask for fewer tokens, or look at its log."
        )
        self._failed("timeout", error)

    def on_stuck(self, backend: Backend) -> None:
        """This backend does nothing any more: what waits there goes elsewhere, if there is anybody else."""
        attempt = self.attempt
        if attempt is None or not attempt.held or attempt.backend is not backend:
            return
        if self._can_go_on() if self._answer.begun else self._another(now()):
            self._failed("stuck", UpstreamTimeout(f"{backend.name} is stuck. Try again; GET /services shows it."))
