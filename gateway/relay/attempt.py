"""One attempt of a request at one backend: its connection, and the writing of the request."""

import asyncio
from collections.abc import Iterator
from enum import Enum

from gateway.backends.adaptive_timeouts import WORKING_S, first_byte_s, loop_lagged
from gateway.backends.backend import Backend
from gateway.relay.deadline import Deadline, now
from gateway.routing import Candidate, RoutingRequest, Ticket
from gateway.upstream.connection import Listener, UpstreamConnection


class AttemptState(Enum):
    """The state of an attempt, and what ends it.

    CONNECTING    no connection yet                          `begin`, `release`
    RECONNECTING  a kept-alive connection was stale when
                  used: a fresh one is being opened          `begin`, `release`
    ACTIVE        the request is being sent, or was          a stale connection, `complete`, `release`
    RELEASED      its place at the backend is free again     final
    """

    CONNECTING = "connecting"
    RECONNECTING = "reconnecting"
    ACTIVE = "active"
    RELEASED = "released"


class Attempt:
    """Holds its ticket and, once it is open, its connection, until `release`."""

    __slots__ = (
        "_pieces", "backend", "candidate", "connecting", "connection", "idle_s", "longest_gap_s",
        "silent_since", "state", "ticket",
    )  # fmt: skip

    def __init__(self, candidate: Candidate, ticket: Ticket) -> None:
        self.candidate = candidate
        self.backend: Backend = candidate.backend
        self.ticket = ticket
        self.state = AttemptState.CONNECTING
        # Start of the wait for the first byte: the upload's progress moves it.
        self.silent_since = ticket.sent_at
        # In a response that has begun, in seconds: the allowed silence, and the longest so far.
        self.idle_s = 0.0
        self.longest_gap_s = 0.0
        self.connection: UpstreamConnection | None = None
        # The task that opens the connection.
        self.connecting: asyncio.Task[None] | None = None
        self._pieces: Iterator[bytes] | None = None

    @classmethod
    def sent(cls, candidate: Candidate, ticket: Ticket, connection: UpstreamConnection) -> "Attempt":
        """Return the attempt of a request that the fast path has sent."""
        attempt = cls(candidate, ticket)
        attempt.connection = connection
        attempt.state = AttemptState.ACTIVE
        return attempt

    async def connect(self, limit_s: float, *, again: bool = False) -> UpstreamConnection:
        """Open a connection within `limit_s` seconds, once more if the event loop lagged.

        Raises OSError, UnicodeError.
        """
        began = now()
        try:
            async with asyncio.timeout(limit_s):
                return await self.backend.pool.connect()
        except TimeoutError:
            if again or not loop_lagged(now() - began, limit_s):
                raise
        return await self.connect(limit_s, again=True)

    def begin(self, listener: Listener, first: bytes, pieces: Iterator[bytes] | None) -> None:
        """Send `first`, and `pieces` as fast as the backend reads (`write_pieces`)."""
        assert self.connection is not None
        self.state = AttemptState.ACTIVE
        self._pieces = pieces
        self.connection.begin(listener, first)

    def write_pieces(self) -> bool:
        """Write until the connection's buffer is full; return whether anything was written."""
        connection, pieces = self.connection, self._pieces
        has_written = False
        while connection is not None and pieces is not None and connection.can_write:
            piece = next(pieces, None)
            if piece is None:
                self._pieces = None
                break
            connection.write(piece)
            has_written = True
        return has_written

    def first_byte_by(self, request: RoutingRequest, floor_s: float, cap_s: float, at: float) -> float:
        """Return the monotonic time by which the first byte is due.

        A generated response that is not streamed has no first byte before its end: it has `cap_s`, and more for as long
        as the backend shows any progress.
        """
        backend, ticket = self.backend, self.ticket
        if not request.shows_first_token:
            return max(self.silent_since + cap_s, backend.last_sign_at + WORKING_S)
        latency = backend.load.first_token
        expected = latency.expected(ticket.ahead_kb + ticket.work_kb, at) if latency.is_known else None
        is_working = at - backend.last_sign_at < WORKING_S
        return self.silent_since + first_byte_s(expected, floor_s, cap_s, working=is_working)

    def touch(self, deadline: Deadline, at: float) -> None:
        """Restart the idle timeout of a response that has begun: bytes came at the monotonic time `at`."""
        self.backend.traffic.last_byte_at = at
        expires = at + self.idle_s
        # Holds although `idle_s` may change: the deadline moves with it.
        gap = expires - deadline.at
        if gap > self.longest_gap_s:
            self.longest_gap_s = gap
        deadline.at = expires

    def complete(self, connection: UpstreamConnection, outcome: str) -> None:
        """Return the connection to its pool after a complete response, and release the attempt."""
        self.connection = None
        if self.longest_gap_s:
            self.backend.load.gaps.observe(self.longest_gap_s)
        connection.release(whole_request_sent=self._pieces is None)
        self.release(outcome)

    def drop_connection(self) -> None:
        """Forget a connection that has ended."""
        self.connection = None
        self._pieces = None

    def release(self, outcome: str) -> None:
        """Leave the backend; counted by `outcome`. Aborts a connection that is still held. Idempotent."""
        if self.state is AttemptState.RELEASED:
            return
        self.state = AttemptState.RELEASED
        if self.connecting is not None:
            self.connecting.cancel()
            self.connecting = None
        connection, self.connection = self.connection, None
        self._pieces = None
        if connection is not None:
            connection.abort()
        self.ticket.end(outcome)
