"""Graceful stop: responses may finish within a grace period; the remaining ones end with an error.

uvicorn alone would close their connections, and clients could not distinguish that from the end of the response.
"""

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable

import structlog
import uvicorn

log = structlog.get_logger(__name__)

INTERRUPTED = "The service is stopping and did not finish this response in time. Retry the request."
# Time for the errors to reach the clients, also on a busy machine, before uvicorn closes their connections.
NOTIFY_S = 5


class InterruptingServer(uvicorn.Server):
    """uvicorn server that calls `interrupt` shortly before it closes the remaining connections."""

    def __init__(self, config: uvicorn.Config, interrupt: Callable[[], Awaitable[None]]) -> None:
        super().__init__(config)
        self._interrupt = interrupt

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop listening, wait for responses in progress, and interrupt those that take too long."""
        timer = asyncio.create_task(self._interrupt_after_grace(), name="interrupt remaining responses")
        try:
            await super().shutdown(sockets)
        finally:
            timer.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await timer

    async def _interrupt_after_grace(self) -> None:
        grace = max(0, (self.config.timeout_graceful_shutdown or 0) - NOTIFY_S)
        await asyncio.sleep(grace)
        log.warning("grace period over; interrupting responses", after_seconds=grace)
        await self._interrupt()
