"""Workers on one listening socket, each accepting about as many connections as the others.

Without balancing the worker that wakes first accepts all pending connections, and keep-alive makes that last. With a
socket per worker (SO_REUSEPORT) chance decides: of 32 connections one of two workers gets more than 20 in one case of
five, and connections pending at a crashed worker are lost. Here a worker with more than its share leaves a new
connection to the others for a moment, as with nginx's accept_mutex, and then accepts it anyway, so that a hung worker
blocks nothing.
"""

import asyncio
import socket
from collections.abc import Callable
from typing import Any, cast

import structlog
import uvicorn

from gateway.workers.shared_memory import CLOSED, SharedSlots

log = structlog.get_logger(__name__)

# By how many connections, or which share of its own, a worker may exceed the least loaded one and still accept.
SLACK = 1
SLACK_SHARE = 1 / 16
# How long a connection is left to other workers, in seconds, and how often, before it is accepted anyway.
PAUSE_S = 0.001
MAX_PAUSES = 20
# Pause after a failed accept (too many open files), in seconds.
ERROR_PAUSE_S = 1.0


class AcceptBalancer:
    """Accepts connections on a socket shared with other workers. uvicorn treats it as one of its servers."""

    def __init__(
        self,
        listener: socket.socket,
        make_protocol: Callable[[], asyncio.Protocol],
        count: Callable[[], int],
        slots: SharedSlots,
        worker: int,
    ) -> None:
        """`make_protocol` creates the protocol of a connection; `count` returns the number of open connections."""
        self._listener = listener
        self._make_protocol = make_protocol
        self._count = count
        self._slots = slots
        self._worker = worker
        self._loop = asyncio.get_running_loop()
        # Accepted connections that are not yet counted.
        self._opening: set[asyncio.Task[Any]] = set()
        self._pauses = 0
        self._resuming: asyncio.TimerHandle | None = None
        self._closed = False
        self._resume()

    def close(self) -> None:
        """Stop accepting. Connections that are being opened are served."""
        self._closed = True
        self._slots.set_connections(self._worker, CLOSED)
        self._loop.remove_reader(self._listener)
        if self._resuming is not None:
            self._resuming.cancel()

    async def wait_closed(self) -> None:
        """Return at once: there is nothing to wait for."""

    def publish(self) -> int:
        """Publish the number of connections and return it."""
        count = self._count() + len(self._opening)
        if not self._closed:
            self._slots.set_connections(self._worker, count)
        return count

    def _resume(self) -> None:
        self._resuming = None
        self._loop.add_reader(self._listener, self._ready)
        self.publish()

    def _pause(self, seconds: float) -> None:
        self._loop.remove_reader(self._listener)
        self._resuming = self._loop.call_later(seconds, self._resume)

    def _ready(self) -> None:
        while True:
            if self._exceeds_share() and self._pauses < MAX_PAUSES:
                self._pauses += 1
                self._pause(PAUSE_S)
                return
            try:
                connection, _ = self._listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                log.error("cannot accept a connection", reason=error.strerror)
                self._pause(ERROR_PAUSE_S)
                return
            self._pauses = 0
            self._open(connection)

    def _exceeds_share(self) -> bool:
        """Whether another worker should have the next connection."""
        own = self.publish()
        others = [self._slots.connections(other) for other in range(self._slots.workers) if other != self._worker]
        least = min((count for count in others if count != CLOSED), default=own)
        return own >= least + max(SLACK, own * SLACK_SHARE)

    def _open(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        if connection.family in (socket.AF_INET, socket.AF_INET6):
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        task = self._loop.create_task(self._serve(connection))
        self._opening.add(task)
        task.add_done_callback(self._opening.discard)

    async def _serve(self, connection: socket.socket) -> None:
        try:
            await self._loop.connect_accepted_socket(self._make_protocol, connection)
        except OSError:  # closed by the client
            connection.close()


class WorkerServer(uvicorn.Server):
    """uvicorn's server as one of several on a socket."""

    def __init__(self, config: uvicorn.Config, slots: SharedSlots, worker: int) -> None:
        super().__init__(config)
        self._slots = slots
        self._worker = worker
        self._balancer: AcceptBalancer | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start the application and accept connections on the one socket given."""
        assert sockets is not None
        assert len(sockets) == 1
        await super().startup(sockets=[])
        self._balancer = AcceptBalancer(
            sockets[0], self._protocol, lambda: len(self.server_state.connections), self._slots, self._worker
        )
        self.servers.append(cast(asyncio.Server, self._balancer))

    async def on_tick(self, counter: int) -> bool:
        """Publish the connection count, ten times a second."""
        if self._balancer is not None:
            self._balancer.publish()
        return await super().on_tick(counter)

    def _protocol(self) -> asyncio.Protocol:
        protocol: asyncio.Protocol = self.config.http_protocol_class(  # type: ignore[call-arg]  # as uvicorn itself does
            config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )
        return protocol
