"""Per-backend queue and latency estimates used by routing. Pure.

Work is measured in KB of request that the backend has not read before, plus a fixed cost per request. A request without
a first byte delays the next one; a request that is being generated hardly does.
"""

from collections import deque

from gateway.backends.adaptive_timeouts import InterTokenGap
from gateway.backends.latency_model import LatencyModel
from gateway.backends.prefix_index import PrefixIndex
from gateway.backends.traffic import Traffic

# The fixed cost of a request, in KB.
REQUEST_OVERHEAD_KB = 1.0
# How long an unstreamed response is assumed to wait for its first token before any was measured, in seconds.
UNKNOWN_WAIT_S = 1.0


class Ticket:
    """One request at one backend: its place in the queue and in the counters, from sending to `end`."""

    __slots__ = (
        "_is_suspect", "_load", "_traffic", "ahead_kb", "assumed_read_at", "is_open", "is_pending", "sent_at",
        "shows_first_token", "work_kb",
    )  # fmt: skip

    def __init__(
        self, load: "Load", traffic: Traffic, now: float, work_kb: float, shows_first_token: bool, is_suspect: bool
    ) -> None:
        self._load = load
        self._traffic = traffic
        self._is_suspect = is_suspect
        self.sent_at = now
        self.work_kb = work_kb
        self.ahead_kb = load.pending_kb
        # Whether its first byte shows that the prompt has been read; if not, it counts as read at `assumed_read_at`.
        self.shows_first_token = shows_first_token
        self.assumed_read_at = 0.0
        self.is_pending = True
        self.is_open = True
        traffic.in_flight += 1
        traffic.requests += 1
        if is_suspect:
            traffic.suspects += 1

    def first_byte(self, now: float, *, ok: bool) -> None:
        """Record the first byte. Only successful responses update the latency model: errors are faster."""
        load = self._load
        if ok:
            model = load.first_token if self.shows_first_token else load.whole_response
            model.observe(self.ahead_kb + self.work_kb, now - self.sent_at, now)
        load.dequeue(self)

    def end(self, outcome: str) -> None:
        """Leave the backend and count the outcome. Further calls have no effect."""
        if not self.is_open:
            return
        self.is_open = False
        load, traffic = self._load, self._traffic
        if self.is_pending:
            load.dequeue(self)
        if not self.shows_first_token:
            load.generating.discard(self)
        traffic.in_flight -= 1
        traffic.outcomes[outcome] += 1
        if self._is_suspect:
            traffic.suspects -= 1


class Load:
    """Queue and latency estimates of one backend, from this worker's requests."""

    def __init__(self) -> None:
        # Seconds to the first token, and to a whole response that is not streamed.
        self.first_token = LatencyModel()
        self.whole_response = LatencyModel()
        self.gaps = InterTokenGap()
        self.prefixes = PrefixIndex()
        # Seconds to the first byte of the last streamed response.
        self.ttft_s: float | None = None
        # Work of the requests without a first token, in KB.
        self.pending_kb = 0.0
        # Monotonic time until which it is weighed down: it has said that it is full.
        self.full_until = 0.0
        # Virtual start time of its next turn among equals, see Router.
        self.next_turn = 0.0
        # Pending requests whose first byte shows the first token, oldest first, and those where that is assumed.
        self._shown: dict[Ticket, None] = {}
        self._assumed: deque[Ticket] = deque()
        # Requests with a generated response that is not streamed, until they end.
        self.generating: set[Ticket] = set()

    def admit(
        self, traffic: Traffic, unread_kb: float, now: float, shows_first_token: bool, is_suspect: bool = False
    ) -> Ticket:
        """Count a request that is sent now, with `unread_kb` of prompt that the backend has not read before."""
        if self._assumed:
            self.pending(now)
        ticket = Ticket(self, traffic, now, unread_kb + REQUEST_OVERHEAD_KB, shows_first_token, is_suspect)
        if shows_first_token:
            self._shown[ticket] = None
        else:
            self.generating.add(ticket)
            model = self.first_token
            wait_s = model.expected(ticket.ahead_kb + ticket.work_kb, now) if model.is_known else UNKNOWN_WAIT_S
            ticket.assumed_read_at = now + wait_s
            self._assumed.append(ticket)
        self.pending_kb += ticket.work_kb
        return ticket

    def dequeue(self, ticket: Ticket) -> None:
        """Remove a request from the queue of those without a first token."""
        if ticket.is_pending:
            ticket.is_pending = False
            if ticket.shows_first_token:
                self._shown.pop(ticket, None)
            # Reset to zero when empty: sums of floats drift.
            self.pending_kb = self.pending_kb - ticket.work_kb if self._shown or self._assumed else 0.0

    def pending(self, now: float) -> float:
        """Return the work without a first token, in KB."""
        assumed = self._assumed
        while assumed:
            oldest = assumed[0]
            if oldest.is_pending and oldest.assumed_read_at > now:
                break
            assumed.popleft()
            if oldest.is_pending:
                self.dequeue(oldest)
        return self.pending_kb

    def slowdown(self, now: float) -> float:
        """Return by how much its oldest request without a byte exceeds the expected wait, as a factor of at least 1."""
        if not self._shown:
            return 1.0
        expected = self.expected_wait(now)
        return max((now - next(iter(self._shown)).sent_at) / expected, 1.0) if expected else 1.0

    def expected_wait(self, now: float) -> float | None:
        """Return the expected seconds to the first byte of its oldest request without one, None if unknown."""
        oldest = next(iter(self._shown), None)
        if oldest is None or not self.first_token.is_known:
            return None
        return self.first_token.expected(oldest.ahead_kb + oldest.work_kb, now)

    @property
    def awaits_first_byte(self) -> bool:
        """Whether a request is pending whose first byte shows that it has been read."""
        return bool(self._shown)

    def queued(self, now: float) -> int:
        """Return the estimated number of requests without a first token."""
        self.pending(now)
        return len(self._shown) + sum(ticket.is_pending for ticket in self._assumed)
