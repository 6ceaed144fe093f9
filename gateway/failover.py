"""What is done for a request when its backend fails or falls silent: another backend, or the error.

Before the first byte has gone to the client, the whole request goes to another backend. After it, another backend of
the same model goes on with the answer, where gateway.continuation knows how.
"""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING

import structlog

from gateway.attempt import Attempt
from gateway.backends import Backend
from gateway.bodies import Body, JsonBody
from gateway.continuation import Continuation, Ending, NotFaithful, go_on
from gateway.deaths import CrashedBackend
from gateway.routing import Choice, Wants
from gateway.tries import Tries
from kit.errors import ApiError, BadGateway, NoHealthyBackend, UpstreamTimeout

if TYPE_CHECKING:
    from gateway.relay import Exchange

log = structlog.get_logger(__name__)

now = time.perf_counter


class Failover(ABC):
    """A request with its attempts. Ends by `exchange.done` or `exchange.refuse`, or with the client."""

    __slots__ = (
        "_answer", "_body", "_carries", "_client", "_exchange", "_limits", "_plane", "attempt", "tries", "wants",
    )  # fmt: skip

    def __init__(self, exchange: "Exchange", body: Body) -> None:
        self._exchange = exchange
        self._client = exchange.client
        self._plane = exchange.plane
        self._limits = exchange.plane.limits
        self._answer = exchange.answer
        # What is sent: the client's own, or what asks for the rest of an answer; whether that holds what was said.
        self._body = body
        self._carries = False
        self.wants = Wants(exchange.endpoint)
        self.tries = Tries(exchange.plane)
        # The present attempt, or the last one.
        self.attempt: Attempt | None = None

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
        backend.failures += 1
        convicted = died and self.tries.died(attempt, self._exchange.endpoint.path, self._digested(), at)
        attempt.release(outcome)
        backend.suspect()
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
            choice = self.tries.choose(self.wants, at)
        except ApiError as reason:
            # The router's message names every backend that is down and why; only a deadline says more.
            raise (reason if isinstance(error, NoHealthyBackend) else error) from reason
        if choice is None:
            raise error
        if not self.tries.may_retry(at):
            raise type(error)(f"{error.message} Too many requests fail now to send this one again.")
        self._send_to(choice, at)

    def _another(self, at: float) -> bool:
        return self.tries.another(self.wants, at)

    def _digested(self) -> bytes:
        """What a request is told from others by: its body, where that is at hand."""
        body = self._exchange.body
        return body.data if isinstance(body, JsonBody) else self._exchange.request_id.encode()

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
        self.wants = self._body.wants()
        self.tries.go_on(self.wants, said.tokens, prefills=step.prefills)
        log.warning("answer goes on elsewhere", request_id=exchange.request_id, why=error.message, tokens=said.tokens)

    def _rest(self) -> Continuation | Ending:
        """What asks for the rest. Raises NotFaithful."""
        exchange, said, attempt = self._exchange, self._answer.said, self.attempt
        assert attempt is not None
        if said is None or not isinstance(exchange.body, JsonBody):
            raise NotFaithful("only streams of chats and completions can be")
        return go_on(exchange.endpoint.path, exchange.body.data, attempt.pair.offer.name, said)

    def _can_go_on(self) -> bool:
        """Whether another backend could go on with the answer, as far as is known before it is asked."""
        try:
            step = self._rest()
        except NotFaithful:
            return False
        return isinstance(step, Ending) or self.tries.can_go_on(self.wants, prefills=step.prefills)

    # Silence.

    def on_deadline(self) -> None:
        """The backend may have been silent for too long."""
        if self._answer.begun:
            self._guarded(self._silent)
        else:
            self._guarded(self._late, now())

    def _late(self, at: float) -> None:
        """No first byte yet: is it late, and would another do better?"""
        attempt, limits = self.attempt, self._limits
        assert attempt is not None
        by = attempt.first_byte_by(self.wants, limits.first_byte_floor_s, limits.first_byte_s, at)
        last = attempt.first_byte_by(self.wants, limits.first_byte_s, limits.first_byte_s, at)
        if at < by:
            self._client.deadline = by
        elif at < last and not self._another(at):
            # Nobody else: waiting is all that is left.
            self._client.deadline = min(at + limits.first_byte_floor_s, last)
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
