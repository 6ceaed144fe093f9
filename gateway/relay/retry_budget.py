"""The retry budget: retries must not multiply the load of a cluster that is failing. Pure.

Finagle and Linkerd add a share of every request, and some per second, to a bucket from which every retry takes one;
Envoy limits retries to a share of the requests in flight. Both hold here: for as long as a failure lasts, a share of
the requests (SHARE) and some per second (PER_S) may be retried; at any one moment, BURST for each request in flight,
since those have lost their backends and add no load by moving to others.

Sources: https://twitter.github.io/finagle/guide/Clients.html#retries (RetryBudget: 20 %, 10 per second),
https://linkerd.io/2/tasks/configuring-retries, Envoy's `CircuitBreakers.Thresholds.RetryBudget` (20 %, at least 3).
"""

import math

SHARE = 0.2
PER_S = 10.0
BURST = 2
# Time constant, in seconds, of the peak of requests in flight: those of one failure do not end at once.
PEAK_DECAY_S = 10.0


class RetryBudget:
    """One for all requests; each new one increments `requests`."""

    __slots__ = ("_at", "_peak", "_seen", "_spent", "refused", "requests")

    def __init__(self) -> None:
        self.requests = 0
        # Retries refused, since the start.
        self.refused = 0
        # Retries not yet made up for by requests and seconds.
        self._spent = 0.0
        self._peak = 0.0
        self._seen = 0
        self._at = 0.0

    def has_room(self, in_flight: int, now: float) -> bool:
        """Return whether one more request may be retried, `in_flight` being relayed. `now` is monotonic, in seconds."""
        earned = SHARE * (self.requests - self._seen) + PER_S * (now - self._at)
        self._peak = max(self._peak * math.exp((self._at - now) / PEAK_DECAY_S), in_flight)
        self._seen, self._at = self.requests, now
        self._spent = max(self._spent - earned, 0.0)
        # A single failure may always be retried.
        return self._spent + 1.0 <= max(BURST * self._peak, PER_S)

    def take(self, in_flight: int, now: float) -> bool:
        """Charge one retry if there is room; return whether there was."""
        if self.has_room(in_flight, now):
            self._spent += 1.0
            return True
        self.refused += 1
        return False
