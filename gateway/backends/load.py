"""What a backend has to do for us, and how long it takes for it: what routing decides by. Pure.

Work is counted in KB of request that the backend has not read before, and each request counts for one more: a short one
is not free. What waits for its first byte stands in the way of the next request; what generates already, hardly.
"""

from collections import deque

from gateway.backends.latency_model import LatencyModel
from gateway.backends.prefix_index import PrefixIndex

# What a request costs besides its length, in KB.
REQUEST_OVERHEAD_KB = 1.0
# For how long an answer that comes as a whole is taken to wait for its first token where nothing is known, in seconds.
UNKNOWN_S = 1.0


class Ticket:
    """One request's place at a backend, from sending to the end."""

    __slots__ = ("_load", "ahead", "at", "shows", "until", "waits", "work")

    def __init__(self, load: "Load", at: float, work: float, shows: bool) -> None:
        self._load = load
        self.at = at
        self.work = work
        self.ahead = load.waiting_kb
        # Whether its first byte tells that the prompt has been read; where not, it is taken as read at `until`.
        self.shows = shows
        self.until = 0.0
        self.waits = True

    def first_byte(self, now: float, *, well: bool) -> None:
        """The first byte has come. Only an answer that went `well` teaches: an error is quick."""
        load = self._load
        if well:
            pace = load.first if self.shows else load.whole
            pace.observe(self.ahead + self.work, now - self.at, now)
        load.let_go(self)

    def answered(self, now: float) -> None:
        """A whole answer has come at once, and well."""
        self.first_byte(now, well=True)
        self.ended()

    def ended(self) -> None:
        """It is no longer at the backend, for whatever reason."""
        self._load.let_go(self)
        if not self.shows:
            self._load.generating.discard(self)


class Load:
    """One backend's work, as far as this gateway knows it."""

    __slots__ = ("_shown", "_unseen", "first", "generating", "kept", "turn", "waiting_kb", "whole")

    def __init__(self) -> None:
        # Seconds to the first token, and to the whole of an answer that is not streamed.
        self.first = LatencyModel()
        self.whole = LatencyModel()
        # The work of the requests that wait for their first token, in KB.
        self.waiting_kb = 0.0
        # When its turn comes again among equals; see Router.
        self.turn = 0.0
        self.kept = PrefixIndex()
        self._shown: dict[Ticket, None] = {}
        # The requests whose answers are generated and come as a whole, up to their end.
        self.generating: set[Ticket] = set()
        self._unseen: deque[Ticket] = deque()

    def restarted(self) -> None:
        """Its process has ended: what it had cached is gone."""
        self.kept = PrefixIndex()

    def enter(self, kb: float, now: float, *, shows: bool) -> Ticket:
        """A request with `kb` that it has not read before is on its way."""
        if self._unseen:
            self.waiting(now)
        ticket = Ticket(self, now, kb + REQUEST_OVERHEAD_KB, shows)
        if shows:
            self._shown[ticket] = None
        else:
            self.generating.add(ticket)
            first = self.first
            ticket.until = now + (first.expected(ticket.ahead + ticket.work, now) if first.known else UNKNOWN_S)
            self._unseen.append(ticket)
        self.waiting_kb += ticket.work
        return ticket

    def let_go(self, ticket: Ticket) -> None:
        """The request waits for its first token no longer."""
        if ticket.waits:
            ticket.waits = False
            if ticket.shows:
                self._shown.pop(ticket, None)
            # Sums of floats drift: nobody waiting is nothing waiting.
            self.waiting_kb = self.waiting_kb - ticket.work if self._shown or self._unseen else 0.0

    def waiting(self, now: float) -> float:
        """The work that waits for its first token, in KB."""
        unseen = self._unseen
        while unseen:
            first = unseen[0]
            if first.waits and first.until > now:
                break
            unseen.popleft()
            if first.waits:
                self.let_go(first)
        return self.waiting_kb

    def slowed(self, now: float) -> float:
        """How many times slower than learnt it must be by now, at least 1: its oldest request still has no byte."""
        oldest = next(iter(self._shown), None)
        expected = self.expected_wait(now)
        return max((now - oldest.at) / expected, 1.0) if oldest is not None and expected else 1.0

    def expected_wait(self, now: float) -> float | None:
        """The seconds that its oldest request without a first byte was to take; None where that is not known."""
        oldest = next(iter(self._shown), None)
        if oldest is None or not self.first.known:
            return None
        return self.first.expected(oldest.ahead + oldest.work, now)

    @property
    def awaited(self) -> bool:
        """Whether some request waits for a first byte that tells that it has been read."""
        return bool(self._shown)

    def queued(self, now: float) -> int:
        """How many requests wait for their first token, as far as that can be told."""
        self.waiting(now)
        return len(self._shown) + sum(ticket.waits for ticket in self._unseen)
