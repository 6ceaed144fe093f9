"""One try of a request at one backend: its place there, its connection, the writing of the request."""

import asyncio
from collections.abc import Callable, Iterator

from gateway.backends import Backend
from gateway.routing import Candidate, Ticket
from gateway.upstream import Listener, UpstreamConnection


class Attempt:
    """Counts as in flight at its backend from the start and holds `connection` once there is one, until `release`."""

    __slots__ = ("_connecting", "_pieces", "backend", "connection", "held", "pair", "sent", "ticket")

    def __init__(self, pair: Candidate, ticket: Ticket, at: float) -> None:
        """`at` is the monotonic time at which it is sent."""
        self.pair = pair
        self.backend: Backend = pair.backend
        self.ticket = ticket
        self.sent = at
        # Set before `begin`.
        self.connection: UpstreamConnection | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._pieces: Iterator[bytes] | None = None
        # Until it is released.
        self.held = True
        self.backend.in_flight += 1
        self.backend.requests += 1

    def connect(
        self, limit_s: float, opened: Callable[[UpstreamConnection], None], failed: Callable[[Exception], None]
    ) -> None:
        """Open a connection within `limit_s` seconds and hand it to `opened`, or the reason why not to `failed`."""
        self._connecting = asyncio.get_running_loop().create_task(self._open(limit_s, opened, failed))

    async def _open(
        self, limit_s: float, opened: Callable[[UpstreamConnection], None], failed: Callable[[Exception], None]
    ) -> None:
        try:
            async with asyncio.timeout(limit_s):
                connection = await self.backend.pool.connect()
        except (OSError, UnicodeError) as error:
            self._connecting = None
            failed(error)
        else:
            self._connecting = None
            opened(connection)

    def begin(self, listener: Listener, first: bytes, pieces: Iterator[bytes]) -> None:
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

    def complete(self, connection: UpstreamConnection, outcome: str) -> None:
        """The answer is whole: the connection may be used again."""
        self.connection = None
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
        self.ticket.ended()
        self.backend.in_flight -= 1
        self.backend.outcomes[outcome] += 1
