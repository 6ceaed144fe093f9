"""A stop that breaks off no stream: answers may go on for a while, and what is left then ends with an error.

uvicorn itself only cuts the connections then: a client could not tell the cut from the end of its answer.
"""

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable

import structlog
import uvicorn

log = structlog.get_logger(__name__)

INTERRUPTED = "The service stops, and this answer was not done in time. Send the request again."
# The time that the errors have to reach the clients before uvicorn cuts, on a machine that is busy as well.
TELLING_S = 5


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
        grace = max(0, (self.config.timeout_graceful_shutdown or 0) - TELLING_S)
        await asyncio.sleep(grace)
        log.warning("answers that are not done are ended now", after_seconds=grace)
        await self._interrupt()
