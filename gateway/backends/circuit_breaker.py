"""Circuit breaker of one backend, driven by the outcomes of its requests. Pure.

    closed     requests are routed here; five failures in a row, or more than half of about the last twenty, open it
    open       no requests; after a pause, doubled each time it reopens soon, it becomes half-open
    half-open  a canary request is sent if the backend is idle; its success, or that of any request in flight, closes
               it; a failed canary opens it again for twice the pause

As a last resort, routing also sends requests to open backends; as many successes in a row as failures open the breaker
close it without a pause.

The thresholds follow Envoy's outlier detection (`consecutive_5xx`, 5) and resilience4j's window (50 % of 20 or more).
Only failures of the backend count (refused, reset, timed out, and statuses by `gateway.backends.response_verdict`).
A misconfigured backend opens it at once.

Sources: https://www.envoyproxy.io/docs/envoy/latest/intro/arch_overview/upstream/outlier,
https://resilience4j.readme.io/docs/circuitbreaker
"""

# Consecutive failures that open it.
MAX_CONSECUTIVE_FAILURES = 5
# Weight of the latest outcome in the failure rate, the outcomes needed before the rate counts, and its limit.
OUTCOME_WEIGHT = 0.05
MIN_OUTCOMES = 20
MAX_FAILURE_RATE = 0.5
# The first pause and the longest one, in seconds.
PAUSE_S = 2.0
MAX_PAUSE_S = 60.0
# After this long closed, the next pause is the first one again, in seconds.
PAUSE_RESET_S = 60.0


class CircuitBreaker:
    """One backend's circuit breaker. `now` is a monotonic time."""

    def __init__(self) -> None:
        self.first_pause_s = PAUSE_S
        # Why it is open, None while it is closed.
        self.reason: str | None = None
        # Consecutive failures while closed, consecutive successes while open.
        self._consecutive = 0
        self._outcomes = 0
        self._failure_rate = 0.0
        self._pause_s = 0.0
        self._half_open_at = 0.0
        self._closed_at = float("-inf")

    @property
    def is_open(self) -> bool:
        """Whether it is open or half-open."""
        return self.reason is not None

    def is_half_open(self, now: float) -> bool:
        """Whether the pause is over."""
        return self.is_open and now >= self._half_open_at

    def record_success(self, now: float) -> bool:
        """Record a successful request; return whether it closed the breaker."""
        if self.reason is not None:
            self._consecutive += 1
            if not self.is_half_open(now) and self._consecutive < MAX_CONSECUTIVE_FAILURES:
                return False
            self.close(now)
            return True
        self._consecutive = 0
        self._outcomes += 1
        self._failure_rate *= 1.0 - OUTCOME_WEIGHT
        return False

    def record_failure(self, reason: str, now: float) -> bool:
        """Record a failed request; return whether it opened the breaker."""
        if self.is_open:
            self._consecutive = 0
            return False
        self._consecutive += 1
        self._outcomes += 1
        self._failure_rate += OUTCOME_WEIGHT * (1.0 - self._failure_rate)
        if self._consecutive >= MAX_CONSECUTIVE_FAILURES:
            self._open(f"it passes health probes, but the last {self._consecutive} requests failed: {reason}", now)
        elif self._outcomes >= MIN_OUTCOMES and self._failure_rate > MAX_FAILURE_RATE:
            rate = f"{self._failure_rate:.0%} of the latest requests"
            self._open(f"it passes health probes, but {rate} failed, most recently: {reason}", now)
        return self.is_open

    def _open(self, reason: str, now: float) -> None:
        reopened = self._pause_s > 0.0 and now - self._closed_at < PAUSE_RESET_S
        self._pause_s = min(self._pause_s * 2, MAX_PAUSE_S) if reopened else self.first_pause_s
        self._half_open_at = now + self._pause_s
        self._consecutive = 0
        self.reason = reason

    def trip(self, reason: str, now: float) -> None:
        """Open it because of `reason`, half-open from the start: a canary shows whether the reason holds."""
        if self.reason is None:
            self._open(reason, now)
            self._half_open_at = now
        self.reason = reason

    def end_pause(self, now: float) -> None:
        """Become half-open now: the process behind it may have been replaced."""
        self._half_open_at = min(self._half_open_at, now)

    def reopen(self, reason: str, now: float) -> None:
        """Open for twice the last pause, after a failed canary."""
        self._pause_s = min(self._pause_s * 2, MAX_PAUSE_S)
        self._half_open_at = now + self._pause_s
        self.reason = reason

    def close(self, now: float) -> None:
        """Close it; only the length of the pause is kept, for PAUSE_RESET_S."""
        self.reason = None
        self._consecutive = self._outcomes = 0
        self._failure_rate = 0.0
        self._closed_at = now
