"""Workers on one listening socket, each taking about as many connections as the others.

Left alone, whoever wakes first takes all there are, and with kept connections that lasts; with a socket each
(SO_REUSEPORT) chance decides, which of 32 connections gives one of two workers more than 20 in one case of five, and
what waits at a worker that dies is lost. Here who has more than its share leaves a new connection to the others, as
nginx's accept_mutex does. Somebody takes it in any case, a hung worker holds up nobody.
"""

import asyncio
import socket
from collections.abc import Callable
from typing import Any, cast

import structlog
import uvicorn

from gateway.workers.shared_memory import CLOSED, SharedSlots

log = structlog.get_logger(__name__)

# How many more connections than the least loaded worker one may have and still take another: these, or this share.
SLACK = 1
SLACK_SHARE = 1 / 16
# For how long a connection is left to others, in seconds, and how often, before it is taken all the same.
PAUSE_S = 0.001
MAX_PAUSES = 20
# How long to wait when there is no room for a connection (too many open files), in seconds.
NO_ROOM_S = 1.0


class Acceptor:
    """Takes connections from a socket that other workers listen on, too. uvicorn treats it as one of its servers."""

    def __init__(
        self,
        listener: socket.socket,
        make: Callable[[], asyncio.Protocol],
        count: Callable[[], int],
        boards: SharedSlots,
        worker: int,
    ) -> None:
        """`make` makes a connection's protocol; `count` tells how many connections there are."""
        self._listener = listener
        self._make = make
        self._count = count
        self._boards = boards
        self._worker = worker
        self._loop = asyncio.get_running_loop()
        # Taken, and not yet among those counted.
        self._opening: set[asyncio.Task[Any]] = set()
        self._pauses = 0
        self._paused: asyncio.TimerHandle | None = None
        self._closed = False
        self._resume()

    def close(self) -> None:
        """Take no more. What is being opened is served."""
        self._closed = True
        self._boards.set_connections(self._worker, CLOSED)
        self._loop.remove_reader(self._listener)
        if self._paused is not None:
            self._paused.cancel()

    async def wait_closed(self) -> None:
        """Nothing is left to wait for."""

    def tell(self) -> int:
        """Tell the others how many connections there are; returns it."""
        count = self._count() + len(self._opening)
        if not self._closed:
            self._boards.set_connections(self._worker, count)
        return count

    def _resume(self) -> None:
        self._paused = None
        self._loop.add_reader(self._listener, self._ready)
        self.tell()

    def _pause(self, seconds: float) -> None:
        self._loop.remove_reader(self._listener)
        self._paused = self._loop.call_later(seconds, self._resume)

    def _ready(self) -> None:
        while True:
            if self._has_its_share() and self._pauses < MAX_PAUSES:
                self._pauses += 1
                self._pause(PAUSE_S)
                return
            try:
                connection, _ = self._listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                log.error("cannot take a connection", reason=error.strerror)
                self._pause(NO_ROOM_S)
                return
            self._pauses = 0
            self._open(connection)

    def _has_its_share(self) -> bool:
        """Whether another worker should have the next connection."""
        mine = self.tell()
        others = [self._boards.connections(other) for other in range(self._boards.workers) if other != self._worker]
        least = min((count for count in others if count != CLOSED), default=mine)
        return mine >= least + max(SLACK, mine * SLACK_SHARE)

    def _open(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        if connection.family in (socket.AF_INET, socket.AF_INET6):
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        task = self._loop.create_task(self._serve(connection))
        self._opening.add(task)
        task.add_done_callback(self._opening.discard)

    async def _serve(self, connection: socket.socket) -> None:
        try:
            await self._loop.connect_accepted_socket(self._make, connection)
        except OSError:  # it has gone again
            connection.close()


class WorkerServer(uvicorn.Server):
    """uvicorn's server, as one of several on a socket."""

    def __init__(self, config: uvicorn.Config, boards: SharedSlots, worker: int) -> None:
        super().__init__(config)
        self._boards = boards
        self._worker = worker
        self._acceptor: Acceptor | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start the application and take connections from the one socket given."""
        assert sockets is not None
        assert len(sockets) == 1
        await super().startup(sockets=[])
        self._acceptor = Acceptor(
            sockets[0], self._protocol, lambda: len(self.server_state.connections), self._boards, self._worker
        )
        self.servers.append(cast(asyncio.Server, self._acceptor))

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second."""
        if self._acceptor is not None:
            self._acceptor.tell()
        return await super().on_tick(counter)

    def _protocol(self) -> asyncio.Protocol:
        made: asyncio.Protocol = self.config.http_protocol_class(  # type: ignore[call-arg]  # as uvicorn itself does
            config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )
        return made
