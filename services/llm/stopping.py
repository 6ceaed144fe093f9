"""A stop that breaks off no stream: answers may go on for a while, and what is left then ends with an error.

uvicorn itself waits as long, and then cuts the connections: a client could not tell the cut from the end of its answer.
"""

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable

import structlog
import uvicorn

log = structlog.get_logger(__name__)

INTERRUPTED = "The service stops, and this answer was not done in time. Send the request again."
# Before uvicorn cuts: the time that the errors have to reach the clients.
TELLING_S = 2.0


class InterruptingServer(uvicorn.Server):
    """uvicorn's server, which calls `interrupt` shortly before it would cut what still runs."""

    def __init__(self, config: uvicorn.Config, interrupt: Callable[[], Awaitable[None]]) -> None:
        super().__init__(config)
        self._interrupt = interrupt

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop listening, wait for what runs, and interrupt it when it takes too long."""
        late = asyncio.create_task(self._interrupt_late(), name="interrupt what runs")
        try:
            await super().shutdown(sockets)
        finally:
            late.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await late

    async def _interrupt_late(self) -> None:
        grace = self.config.timeout_graceful_shutdown or 0
        await asyncio.sleep(max(0.0, grace - TELLING_S))
        log.warning("answers that are not done are ended now", after_seconds=grace)
        await self._interrupt()
