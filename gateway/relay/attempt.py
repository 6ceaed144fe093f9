"""One try of a request at one backend: its place there, its connection, the writing of the request."""

import asyncio
import time
from collections.abc import Callable, Iterator

from gateway.backends.adaptive_timeouts import WORKING_S, first_byte_s, loop_lagged
from gateway.backends.backend import Backend
from gateway.relay.data_plane import ClientConnection
from gateway.routing import Candidate, RoutingRequest, Ticket
from gateway.upstream.connection import Listener, UpstreamConnection


class Attempt:
    """Holds its ticket and, once it is open, its connection until `release`."""

    __slots__ = (
        "_connecting",
        "_pieces",
        "backend",
        "candidate",
        "connection",
        "held",
        "idle_s",
        "pause_s",
        "resent",
        "sent",
        "since",
        "ticket",
    )  # fmt: skip

    def __init__(self, candidate: Candidate, ticket: Ticket) -> None:
        self.candidate = candidate
        self.backend: Backend = candidate.backend
        self.ticket = ticket
        self.sent = at = ticket.sent_at
        # From when the backend's silence counts.
        self.since = at
        # In an answer that has begun: how long it may be silent, and how long it was at most, in seconds.
        self.idle_s = 0.0
        self.pause_s = 0.0
        # Whether the first connection had just ended, so that a second one was opened.
        self.resent = False
        # Set before `begin`.
        self.connection: UpstreamConnection | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._pieces: Iterator[bytes] | None = None
        # Until it is released.
        self.held = True

    def connect(
        self, limit_s: float, opened: Callable[[UpstreamConnection], None], failed: Callable[[Exception], None]
    ) -> None:
        """Open a connection within `limit_s` seconds and hand it to `opened`, or the reason why not to `failed`."""
        self._connecting = asyncio.get_running_loop().create_task(self._open(limit_s, opened, failed))

    async def _open(
        self,
        limit_s: float,
        opened: Callable[[UpstreamConnection], None],
        failed: Callable[[Exception], None],
        *,
        again: bool = False,
    ) -> None:
        began = time.perf_counter()
        try:
            async with asyncio.timeout(limit_s):
                connection = await self.backend.pool.connect()
        except (OSError, UnicodeError) as error:
            if not again and isinstance(error, TimeoutError) and loop_lagged(time.perf_counter() - began, limit_s):
                await self._open(limit_s, opened, failed, again=True)
                return
            self._connecting = None
            failed(error)
        else:
            self._connecting = None
            opened(connection)

    def begin(self, listener: Listener, first: bytes, pieces: Iterator[bytes] | None) -> None:
        """Send the request: `first`, and then `pieces` for as long as the backend takes them, see `pump`."""
        assert self.connection is not None
        self._pieces = pieces
        self.connection.begin(listener, first)

    def pump(self) -> bool:
        """Write for as long as the backend takes more; whether anything was written."""
        connection, pieces = self.connection, self._pieces
        wrote = False
        while connection is not None and pieces is not None and connection.takes_more:
            piece = next(pieces, None)
            if piece is None:
                self._pieces = None
                break
            connection.write(piece)
            wrote = True
        return wrote

    def first_byte_by(self, request: RoutingRequest, floor_s: float, cap_s: float, now: float) -> float:
        """When its patience for the first byte ends, a monotonic time.

        An answer that is generated and comes as a whole has no first byte before its end: its backend has `cap_s`, and
        longer while it shows by anything that it works.
        """
        backend, ticket = self.backend, self.ticket
        if not request.shows_first_token:
            return max(self.since + cap_s, backend.last_sign_at + WORKING_S)
        model = backend.load.first_token
        expected = model.expected(ticket.ahead_kb + ticket.work_kb, now) if model.is_known else None
        working = now - backend.last_sign_at < WORKING_S
        return self.since + first_byte_s(expected, floor_s, cap_s, working=working)

    def moves(self, client: ClientConnection, at: float) -> None:
        """Something of an answer that has begun has come at `at`, a monotonic time: its silence begins anew."""
        self.backend.traffic.last_byte_at = at
        deadline = at + self.idle_s
        # Where `idle_s` was set since, the deadline was moved with it.
        pause = deadline - client.deadline
        if pause > self.pause_s:
            self.pause_s = pause
        client.deadline = deadline

    def complete(self, connection: UpstreamConnection, outcome: str) -> None:
        """The answer is whole: the connection may be used again."""
        self.connection = None
        if self.pause_s:
            self.backend.load.gaps.observe(self.pause_s)
        connection.release(whole_request_sent=self._pieces is None)
        self.release(outcome)

    def lost(self) -> None:
        """The connection has ended by itself."""
        self.connection = None
        self._pieces = None

    def release(self, outcome: str) -> None:
        """Let go of the backend: a connection that is still held ends, the in-flight count falls. Once; more is none.

        `outcome` is how it ended, for the counters.
        """
        if not self.held:
            return
        self.held = False
        if self._connecting is not None:
            self._connecting.cancel()
            self._connecting = None
        connection, self.connection = self.connection, None
        self._pieces = None
        if connection is not None:
            connection.abort()
        self.ticket.end(outcome)
