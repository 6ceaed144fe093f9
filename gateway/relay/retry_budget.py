"""How many requests may be sent again, so that retries do not double the load of a cluster that is failing. Pure.

Finagle and Linkerd add a share of every request and some per second to a bucket, and every retry takes one out; Envoy
lets retries be a share of the requests in flight. Both hold here: a share of the requests (SHARE) and some per second
(PER_S) may be sent again for as long as a failure lasts, and at any one moment BURST for each that is in flight, since
those have lost their places when their backends died, and add nothing to the load by taking others.

Sources: https://twitter.github.io/finagle/guide/Clients.html#retries (RetryBudget: 20 %, 10 per second),
https://linkerd.io/2/tasks/configuring-retries, Envoy's `CircuitBreakers.Thresholds.RetryBudget` (20 %, at least 3).
"""

import math
from typing import Protocol

SHARE = 0.2
PER_S = 10.0
BURST = 2
# In how many seconds it is forgotten that more were in flight, to 1/e: those of one failure end one after the other.
FORGET_S = 10.0


class InFlightGauge(Protocol):
    """The metrics that count relayed requests in flight."""

    relaying: int


class RequestTicket:
    """One relayed request in the counters: in flight until `end`, and earning retries for all once it is `sent`."""

    __slots__ = ("_budget", "_gauge", "_is_open")

    def __init__(self, gauge: InFlightGauge, budget: "RetryBudget") -> None:
        self._gauge = gauge
        self._budget = budget
        self._is_open = True
        gauge.relaying += 1

    def sent(self) -> None:
        """Count the request in the retry budget. Call it once, when the request is first sent."""
        self._budget.requests += 1

    def can_retry(self, now: float) -> bool:
        """Whether the retry budget allows one more retry."""
        return self._budget.room(self._gauge.relaying, now)

    def take_retry(self, now: float) -> bool:
        """Take one retry from the budget; return whether it was allowed."""
        return self._budget.take(self._gauge.relaying, now)

    def end(self) -> None:
        """Stop counting the request as in flight. Further calls have no effect."""
        if self._is_open:
            self._is_open = False
            self._gauge.relaying -= 1


class RetryBudget:
    """One for all requests. `requests` is counted up by every new one."""

    __slots__ = ("_at", "_peak", "_seen", "_spent", "refused", "requests")

    def __init__(self) -> None:
        self.requests = 0
        # Retries that were not allowed, since the start.
        self.refused = 0
        # The retries that no request and no second has made up for yet.
        self._spent = 0.0
        self._peak = 0.0
        self._seen = 0
        self._at = 0.0

    def room(self, in_flight: int, now: float) -> bool:
        """Whether one more request may be sent again, with `in_flight` of them under way. `now` is monotonic."""
        earned = SHARE * (self.requests - self._seen) + PER_S * (now - self._at)
        self._peak = max(self._peak * math.exp((self._at - now) / FORGET_S), in_flight)
        self._seen, self._at = self.requests, now
        self._spent = max(self._spent - earned, 0.0)
        # A failure that comes alone may always be made good.
        return self._spent + 1.0 <= max(BURST * self._peak, PER_S)

    def take(self, in_flight: int, now: float) -> bool:
        """Send one more again, if there is room."""
        if self.room(in_flight, now):
            self._spent += 1.0
            return True
        self.refused += 1
        return False
