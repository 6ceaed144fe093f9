"""The failover policy: decide how a request proceeds after a failed attempt. No I/O.

Before the first byte has gone to the client, the whole request is sent to another backend. After it, another backend of
the same model continues the stream, if `gateway.streams.continuation` can.
"""

from dataclasses import dataclass

from gateway.backends.backend import Backend
from gateway.backends.query_of_death import CrashedBackend
from gateway.backends.response_verdict import REJECTIONS, ResponseVerdict
from gateway.bodies.body import Body, JsonBody
from gateway.relay.retry_budget import RetryBudget
from gateway.routing import Choice, Router, RoutingRequest
from gateway.streams.continuation import Continuation, Ending, NotResumable, continue_stream
from gateway.streams.transcript import Transcript
from gateway.telemetry.metrics import GatewayMetrics
from kit.errors import ApiError, BadGateway, Busy, NoHealthyBackend


@dataclass(frozen=True, slots=True)
class Continue:
    """Send `body` to another backend, which continues the stream."""

    choice: Choice
    body: JsonBody
    request: RoutingRequest
    includes_transcript: bool
    # How many tokens the client has.
    tokens: int


# Send the whole request to another backend, continue its stream there, end the stream with the events that alone are
# missing, or send the error to the client.
Decision = Choice | Continue | Ending | ApiError


class FailoverState:
    """State of one request for the policy. Forwarding sets the public attributes, decisions update the others."""

    __slots__ = (
        "_attempts", "_limit", "_max_attempts", "_model", "_needs_prefill", "_router", "_tokens", "_tried", "budget",
        "has_begun", "is_convicted", "metrics", "model", "path", "request", "source", "transcript",
    )  # fmt: skip

    def __init__(
        self,
        router: Router,
        budget: RetryBudget,
        metrics: GatewayMetrics,
        max_attempts: int,
        path: str,
        source: Body,
        request: RoutingRequest,
    ) -> None:
        """`source` is the client's own body, `request` what is sent at present."""
        self._router = router
        self.budget = budget
        self.metrics = metrics
        self.path = path
        self.source = source
        self.request = request
        # Bytes have gone to the client: those of `transcript`, produced by `model`.
        self.has_begun = False
        self.transcript: Transcript | None = None
        self.model = ""
        # The request has crashed two backends.
        self.is_convicted = False
        # The backends tried, the present one last, and the number of attempts that they stand for.
        self._tried: list[Backend] = []
        self._attempts = 0
        self._max_attempts = self._limit = max_attempts
        # Of a continued stream: its model, the tokens sent when it was last continued, and whether only backends that
        # can continue a message are suitable.
        self._model: str | None = None
        self._tokens = 0
        self._needs_prefill = False

    def note_attempt(self, backend: Backend, number: int) -> None:
        """Record that the present attempt, the `number`th, is at `backend`."""
        if number != self._attempts:
            self._attempts = number
            self._tried.append(backend)

    def choose(self, now: float, *, last_resort: bool, was_full: bool = False) -> Choice | None:
        """Return the best backend not tried yet, None if there is none or no attempt is left.

        `last_resort` allows a backend that is unhealthy only because requests failed. After a backend `was_full`, which
        did no work and is therefore no attempt, those known to be full are no choice. Raises what routing raises.
        """
        if self._attempts >= self._limit and not was_full:
            return None
        tried = self._tried
        if was_full:
            usable = self._router.usable(self.request)
            tried = [*tried, *(one.backend for one in usable if one.backend.full_until > now)]
        choice = self._router.choose(self.request, now, tried=tried, last_resort=last_resort)
        # A fallback model cannot continue the stream of another one.
        if choice is None or self._model not in (None, choice.candidate.offer.name):
            return None
        return None if self._needs_prefill and not choice.candidate.backend.can_prefill else choice

    def can_retry(self, now: float, *, last_resort: bool = False, was_full: bool = False) -> bool:
        """Return whether another backend and the retry budget would accept the request."""
        try:
            choice = self.choose(now, last_resort=last_resort, was_full=was_full)
        except ApiError:
            return False
        return choice is not None and self.budget.has_room(self.metrics.relaying, now)

    def rejection(self, verdict: ResponseVerdict, status: int, now: float) -> ApiError | None:
        """Return the failure that an error response of the present attempt stands for; None: the client gets it."""
        backend = self._tried[-1]
        if verdict in REJECTIONS:
            message = f"{backend.name} cannot be used: {backend.misconfiguration(status)}."
            if verdict is ResponseVerdict.FORBIDDEN:
                return BadGateway(f"{message} Or a filter of it refuses this prompt. Your key is not the cause.")
            return BadGateway(f"{message} Your request and your key are not the cause.")
        if verdict is ResponseVerdict.FULL:
            wait_s = self._room_in_s(now)
            # Its own response has its own Retry-After.
            if self.can_retry(now, was_full=True) or (status == 429 and wait_s < backend.full_until - now):
                message = f"No backend of {self.model} has room now: {backend.name} returned {status}. Try again later."
                return Busy(message, retry_after=wait_s)
        elif verdict in (ResponseVerdict.ELSEWHERE, ResponseVerdict.LACKING) and self.can_retry(now, last_resort=True):
            return BadGateway(f"{backend.name} returned {status}. Try again in a moment.")
        return None

    def _room_in_s(self, now: float) -> float:
        """Return the seconds until the first of the model's backends is expected not to be full any more."""
        try:
            return min(candidate.backend.full_until for candidate in self._router.usable(self.request)) - now
        except ApiError:
            return self._tried[-1].full_until - now

    def can_fail_over(self, now: float) -> bool:
        """Return whether another backend could take the request over: continue its stream, or start it anew."""
        return self.can_continue() if self.has_begun else self.can_retry(now)

    def can_continue(self) -> bool:
        """Return whether another backend could continue the stream, as far as is known before it is tried."""
        try:
            step = self.next_step()
            if isinstance(step, Ending):
                return True
            candidates = self._router.usable(self.request)
        except (NotResumable, ApiError):
            return False
        return any(
            candidate.backend is not self._tried[-1] and (candidate.backend.can_prefill or not step.needs_prefill)
            for candidate in candidates
        )

    def next_step(self) -> Continuation | Ending:
        """Return what remains of the stream. Raises NotResumable."""
        if self.transcript is None or not isinstance(self.source, JsonBody):
            raise NotResumable("only chat and completion streams can be continued")
        return continue_stream(self.path, self.source.data, self.model, self.transcript)

    def continue_with(self, request: RoutingRequest, tokens: int, *, needs_prefill: bool) -> None:
        """Send `request` from now on. If the stream has advanced since the last time, attempts are counted anew.

        Raises what routing raises.
        """
        self.request = request
        self._model = request.model
        self._needs_prefill = needs_prefill
        if tokens > self._tokens:
            self._tokens = tokens
            self._limit = self._attempts + self._max_attempts
            del self._tried[:-1]
        if needs_prefill:
            self._tried += [
                candidate.backend for candidate in self._router.usable(request) if not candidate.backend.can_prefill
            ]


def decide(error: ApiError, state: FailoverState, now: float) -> Decision:
    """Decide what to do about the failure of the present attempt, whose place at its backend is already free.

    The client gets `error` if failover cannot help. A Choice or Continue is charged to the retry budget.
    """
    if state.is_convicted:
        return CrashedBackend(
            f"{error.message} Not retried: the request has already crashed two backends. "
            "Change it, or ask the operator to look into the backends' logs."
        )
    if not state.has_begun:
        return _choose(error, state, now)
    try:
        step = state.next_step()
    except NotResumable as reason:
        return BadGateway(f"{error.message} The stream could not be resumed on another backend: {reason}.")
    if isinstance(step, Ending):
        return step
    assert isinstance(state.source, JsonBody)
    assert state.transcript is not None
    body, tokens = state.source.with_data(step.body), state.transcript.tokens
    try:
        state.continue_with(body.routing_request(), tokens, needs_prefill=step.needs_prefill)
    except ApiError as reason:
        return reason
    choice = _choose(error, state, now)
    if isinstance(choice, ApiError):
        return choice
    return Continue(choice, body, state.request, step.includes_transcript, tokens)


def _choose(error: ApiError, state: FailoverState, now: float) -> Choice | ApiError:
    """Choose the next backend and charge the budget; `error` is what the failure alone would return."""
    was_full = isinstance(error, Busy)
    try:
        # A backend that is only full is better than one that fails.
        choice = state.choose(now, last_resort=not was_full, was_full=was_full)
    except ApiError as reason:
        # The router's message names every backend that is down; after a timeout the failure's own says more.
        return reason if isinstance(error, NoHealthyBackend) else error
    if choice is None:
        return error
    if not state.budget.take(state.metrics.relaying, now):
        return type(error)(f"{error.message} Not retried: retry budget exhausted.")
    return choice
