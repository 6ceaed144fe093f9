"""The connection pool of one backend."""

import asyncio
import socket
import ssl
from collections.abc import Callable

from gateway.discovery.target import Target
from gateway.http1.header_cache import HeaderCache
from gateway.upstream.connection import CachedResponseHead, UpstreamConnection

# The maximum number of idle connections to one backend.
MAX_IDLE = 512
# TCP keep-alive: seconds of silence before the first probe, between probes, and how many may be missed. A host that is
# gone is detected in about ten seconds.
PROBE_AFTER_S = 4
PROBE_EVERY_S = 2
MAX_PROBES = 3


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
            _tune(raw)
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


def _tune(raw: socket.socket) -> None:
    """Disable Nagle's algorithm and enable keep-alive probes.

    Without probes, connections to a host that lost power or network would never end. A hung process is not detected:
    its kernel responds. TCP_USER_TIMEOUT is not set: it would also end connections to a backend that only pauses in
    reading a large upload (tcp(7): data that cannot be sent because of a zero window counts).
    """
    if raw.family not in (socket.AF_INET, socket.AF_INET6):
        return
    raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, PROBE_EVERY_S)
    raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, MAX_PROBES)
    # The BSDs and macOS have another name for it; there the system's value is used.
    if hasattr(socket, "TCP_KEEPIDLE"):
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, PROBE_AFTER_S)
