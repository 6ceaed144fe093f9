"""The connection pool of one backend."""

import asyncio
import ssl
from collections.abc import Callable

from gateway.discovery.target import Target
from gateway.http1.header_cache import HeaderCache
from gateway.upstream.connection import CachedResponseHead, UpstreamConnection
from gateway.upstream.socket_options import tune

# The maximum number of idle connections to one backend.
MAX_IDLE = 512


class Pool:
    """The connections to one backend. The most recently used one is used first, so that the others can expire."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self._idle: list[UpstreamConnection] = []
        self._open: set[UpstreamConnection] = set()
        self._tls = ssl.create_default_context() if target.tls else None
        self._closed = False
        # The heads of its responses.
        self.response_heads: HeaderCache[CachedResponseHead] = HeaderCache()
        # Called when the backend closes an idle connection: it may have crashed.
        self.on_idle_lost: Callable[[], None] | None = None

    @property
    def open_count(self) -> int:
        """The number of connections, idle or in use."""
        return len(self._open)

    @property
    def paused_count(self) -> int:
        """The number of connections in use that are paused, because their clients are slower."""
        return sum(connection.paused for connection in self._open)

    @property
    def idle_count(self) -> int:
        """The number of idle connections."""
        return len(self._idle)

    def take(self) -> UpstreamConnection | None:
        """Return an idle connection that is not known to be closed, or None."""
        while self._idle:
            connection = self._idle.pop()
            if not connection.transport.is_closing():
                return connection
        return None

    async def connect(self) -> UpstreamConnection:
        """Open a connection. Raises OSError; cancellation leaves nothing open."""
        target = self.target
        _, connection = await asyncio.get_running_loop().create_connection(
            lambda: UpstreamConnection(self),
            target.connect_host,
            target.port,
            ssl=self._tls,
            server_hostname=target.host if target.tls else None,
        )
        raw = connection.transport.get_extra_info("socket")
        if raw is not None:
            tune(raw)
        return connection

    def put(self, connection: UpstreamConnection) -> None:
        """Keep an idle connection."""
        if self._closed or len(self._idle) >= MAX_IDLE:
            connection.transport.close()
        else:
            self._idle.append(connection)

    def opened(self, connection: UpstreamConnection) -> None:
        """Count a new connection."""
        self._open.add(connection)

    def lost(self, connection: UpstreamConnection) -> None:
        """Forget a connection that has ended."""
        self._open.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)
            if self.on_idle_lost is not None:
                self.on_idle_lost()

    def close(self) -> None:
        """Close the idle connections; those in use close with their requests."""
        self._closed = True
        self.on_idle_lost = None
        idle, self._idle = self._idle, []
        for connection in idle:
            connection.transport.close()
