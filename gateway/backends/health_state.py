"""Health of one backend, combined from probes, request outcomes, progress and the operator. Pure.

    draining    an operator took it out of rotation
    loading     reported by probes, as are busy and unhealthy
    stuck       it passes probes but makes no progress (gateway.health.stall_detector)
    unhealthy   it passes probes but its requests fail (gateway.backends.circuit_breaker)
    healthy     none of these

The first that applies is the state. All times are monotonic, in seconds.
"""

from collections import Counter
from typing import Literal

from gateway.backends.circuit_breaker import CircuitBreaker

State = Literal["healthy", "loading", "busy", "stuck", "unhealthy", "draining"]

# States in which a backend may get requests; a `busy` one only if nothing better is available.
USABLE: frozenset[State] = frozenset({"healthy", "busy"})
# Capacity right after a start, as a share of the full one.
COLD_CAPACITY = 0.1
# What a worker's own requests have shown of a backend that passes probes, with the reason.
Verdict = tuple[Literal["stuck", "unhealthy"], str]


class HealthState:
    """One backend's health. The poller sets `slow_start_s` and `is_new` when it starts to probe the backend."""

    def __init__(self) -> None:
        # The result of the last probe or connection attempt, with the reason.
        self._observed: State = "unhealthy"
        self._error: str | None = "not probed yet"
        self._was_observed = False
        self.breaker = CircuitBreaker()
        self._stuck_reason: str | None = None
        # The verdict of another worker on our port; it applies here until that worker revokes it.
        self.peer_verdict: Verdict | None = None
        self.draining = False
        # When an operator last set or cleared `draining`.
        self.drain_set_at = 0.0
        # How often it was taken out of rotation though it passed probes: for "failures", because it was "stuck", or
        # "misconfigured".
        self.ejections: Counter[str] = Counter()
        # When the slow start began, and how long it takes.
        self._warm_from = float("-inf")
        self.slow_start_s = 0.0
        # Whether it was added after the gateway started; those present from the start are equally cold.
        self.is_new = False

    @property
    def state(self) -> State:
        """The state as shown by GET /services."""
        if self.draining:
            return "draining"
        if self._observed not in USABLE:
            return self._observed
        verdict = self._worst_verdict
        return self._observed if verdict is None else verdict[0]

    @property
    def reason(self) -> str | None:
        """The reason for the state, None if unknown or not needed."""
        if self._observed not in USABLE:
            return self._error
        verdict = self._worst_verdict
        return self._error if verdict is None else verdict[1]

    @property
    def verdict(self) -> Verdict | None:
        """The verdict from this worker's own requests, None if nothing is wrong."""
        if self._stuck_reason is not None:
            return "stuck", self._stuck_reason
        return ("unhealthy", self.breaker.reason) if self.breaker.reason is not None else None

    @property
    def _worst_verdict(self) -> Verdict | None:
        own, peer = self.verdict, self.peer_verdict
        return peer if own is None or (peer is not None and peer[0] == "stuck") else own

    @property
    def passes_probes(self) -> bool:
        """Whether the last probe found it usable."""
        return self._observed in USABLE

    @property
    def is_stuck(self) -> bool:
        """Whether it makes no progress on its requests."""
        return self._stuck_reason is not None

    @property
    def is_last_resort(self) -> bool:
        """Whether it is unhealthy only because requests failed (its probes pass), so that it is a last resort."""
        return self.passes_probes and self.state == "unhealthy"

    def needs_canary(self, now: float) -> bool:
        """Whether only the outcome of earlier requests keeps new ones away, and a canary may be sent."""
        return self._observed == "healthy" and (self.is_stuck or self.breaker.is_half_open(now))

    def observe(self, state: State, error: str | None, now: float) -> None:
        """Record the result of a probe or a connection attempt."""
        if state in USABLE and not self.passes_probes and (self._was_observed or self.is_new):
            self._warm_from = now
            # Earlier failures may be those of another process: send a canary at once.
            self.breaker.end_pause(now)
        self._observed, self._error = state, error
        self._was_observed = True

    def record_failure(self, reason: str, now: float) -> bool:
        """Record a failed request; return whether it opened the circuit breaker."""
        opened = self.breaker.record_failure(reason, now)
        if opened:
            self.ejections["failures"] += 1
        return opened

    def record_misconfiguration(self, reason: str, now: float) -> None:
        """Record that it rejects the gateway itself, because of `reason`."""
        if not self.breaker.is_open:
            self.ejections["misconfigured"] += 1
        self.breaker.trip(reason, now)

    def set_stuck(self, reason: str | None) -> None:
        """Mark it as making no progress, because of `reason`; None clears the mark."""
        if reason is not None and self._stuck_reason is None:
            self.ejections["stuck"] += 1
        self._stuck_reason = reason

    def record_canary(self, error: str | None, now: float) -> None:
        """Record a canary request's result, None for success."""
        if error is None:
            self.breaker.close(now)
            self._stuck_reason = None
            self._warm_from = now
        elif self.is_stuck:
            self._stuck_reason = error
        else:
            self.breaker.reopen(error, now)

    def warmth(self, now: float) -> float:
        """Return the share of its capacity to use, of (0, 1]: a fresh engine compiles and its caches are empty."""
        age, slow = now - self._warm_from, self.slow_start_s
        return 1.0 if age >= slow or slow == 0.0 else max(age / slow, COLD_CAPACITY)

    def inherit_state_from(self, replaced: "HealthState") -> None:
        """Keep the state of the backend that had this name until the first probe."""
        self._observed, self._error, self._was_observed = replaced._observed, replaced._error, replaced._was_observed
        self.draining = replaced.draining

    def adopt(self, other: "HealthState") -> None:
        """Take over the health of the same server under another name; the circuit breaker is shared from now on."""
        self.inherit_state_from(other)
        self.drain_set_at = other.drain_set_at
        self.breaker, self._stuck_reason, self._warm_from = other.breaker, other._stuck_reason, other._warm_from
