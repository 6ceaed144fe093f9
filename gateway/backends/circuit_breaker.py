"""Whether a backend may be trusted with requests, judged by how those that it was sent have ended. Pure.

    closed    it may: five failures in a row, or more than half of the last twenty or so, open it
    open      it may not; after a pause, twice as long each time that it opens again soon, it is half open
    half open a canary is asked if the backend is idle, and if not, a request that ends well will do: either closes it;
              a canary that fails opens it for twice the pause

Where nobody else is left, routing sends requests to open ones too; as many that end well in a row as have to fail to
open it close it without a pause.

The thresholds are those of Envoy's outlier detection (`consecutive_5xx`, 5) and resilience4j's window (50 % of 20 or
more). Only a backend's own failures count (refused, reset, silent, 5xx): a 4xx is the client's, and says nothing.

Sources: https://www.envoyproxy.io/docs/envoy/latest/intro/arch_overview/upstream/outlier,
https://resilience4j.readme.io/docs/circuitbreaker
"""

# Failures in a row that open it.
IN_A_ROW = 5
# The weight of the latest outcome in the share of failures, and how many outcomes there must have been.
FORGET = 0.05
MIN_OUTCOMES = 20
MAX_FAILURES = 0.5
# The first pause and the longest one, in seconds.
PAUSE_S = 2.0
MAX_PAUSE_S = 60.0
# Who has been well for so long begins with the first pause again, in seconds.
FORGIVEN_S = 60.0


class Breaker:
    """One backend's. `now` is a monotonic time."""

    __slots__ = ("_closed_at", "_due", "_in_a_row", "_outcomes", "_pause_s", "_share", "reason")

    def __init__(self) -> None:
        # Why it is open, None where it is closed.
        self.reason: str | None = None
        self._in_a_row = 0
        self._outcomes = 0
        self._share = 0.0
        self._pause_s = 0.0
        self._due = 0.0
        self._closed_at = float("-inf")

    @property
    def is_open(self) -> bool:
        """Whether it keeps requests away."""
        return self.reason is not None

    def is_due(self, now: float) -> bool:
        """Whether it is half open."""
        return self.is_open and now >= self._due

    def succeeded(self, now: float) -> bool:
        """A request has ended well; whether that closed it."""
        if self.is_open:
            # How many in a row, of failures while it is closed and of successes while it is open.
            self._in_a_row += 1
            if not self.is_due(now) and self._in_a_row < IN_A_ROW:
                return False
            self.close(now)
            return True
        self._in_a_row = 0
        self._outcomes += 1
        self._share *= 1.0 - FORGET
        return False

    def failed(self, reason: str, now: float) -> bool:
        """A request has failed; whether that opened it."""
        if self.is_open:
            self._in_a_row = 0
            return False
        self._in_a_row += 1
        self._outcomes += 1
        self._share += FORGET * (1.0 - self._share)
        if self._in_a_row >= IN_A_ROW:
            self._open(f"it answers health polls, but the last {self._in_a_row} requests failed: {reason}", now)
        elif self._outcomes >= MIN_OUTCOMES and self._share > MAX_FAILURES:
            self._open(
                f"it answers health polls, but {self._share:.0%} of the latest requests failed, at last: {reason}", now
            )
        return self.is_open

    def _open(self, reason: str, now: float) -> None:
        again = self._pause_s > 0.0 and now - self._closed_at < FORGIVEN_S
        self._pause_s = min(self._pause_s * 2, MAX_PAUSE_S) if again else PAUSE_S
        self._due = now + self._pause_s
        self._in_a_row = 0
        self.reason = reason

    def hasten(self, now: float) -> None:
        """It may have been replaced: do not wait for the end of the pause."""
        self._due = min(self._due, now)

    def canary_failed(self, reason: str, now: float) -> None:
        """It is still not well."""
        self._pause_s = min(self._pause_s * 2, MAX_PAUSE_S)
        self._due = now + self._pause_s
        self.reason = reason

    def close(self, now: float) -> None:
        """It is well again: of what was before, only the length of the pause is remembered for a while."""
        self.reason = None
        self._in_a_row = self._outcomes = 0
        self._share = 0.0
        self._closed_at = now
