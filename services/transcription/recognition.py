"""A queued recording, and the stream of its results from the worker thread to the task that serves it."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, BinaryIO

from kit.errors import ApiError
from services.transcription.engine import Info, Options, Segment

if TYPE_CHECKING:
    from services.transcription.engine import Samples


# None or an error is the last event of a job.
Event = Info | Segment | ApiError | None


@dataclass(eq=False)
class Job:
    """One queued recording. The worker thread closes `file`."""

    file: BinaryIO
    options: Options
    loop: asyncio.AbstractEventLoop
    events: "asyncio.Queue[Event]" = field(default_factory=asyncio.Queue)
    cancelled: threading.Event = field(default_factory=threading.Event)
    arrived: float = field(default_factory=time.monotonic)
    short_samples: "Samples | None" = None
    """The whole recording, once it is known to fit Whisper's window."""
    too_long_for_batch: bool = False
    """True if decoding showed that it does not fit the window, or is invalid."""

    def send(self, event: Event) -> None:
        """Send an event to the serving task, from the worker thread."""
        self.loop.call_soon_threadsafe(self.events.put_nowait, event)


class Recognition:
    """Results of one recording. Read them inside `async with`; leaving it early cancels the recognition."""

    def __init__(self, job: Job, on_close: Callable[[], None]) -> None:
        """`on_close` is called once, after the response has been sent or the recognition was cancelled."""
        self._job = job
        self._on_close = on_close

    async def __aenter__(self) -> "Recognition":
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Cancel the recognition unless it has ended, and release its place in the queue. Idempotent."""
        if not self._job.cancelled.is_set():
            self._job.cancelled.set()
            self._on_close()

    async def info(self) -> Info:
        """Wait until recognition starts; call this first, once. Raises ApiError if the recording is invalid."""
        event = await self._next()
        assert isinstance(event, Info)
        return event

    async def segments(self) -> AsyncIterator[Segment]:
        """Yield segments as they are recognized. Raises ApiError if the engine fails."""
        while isinstance(event := await self._next(), Segment):
            yield event

    async def _next(self) -> Event:
        event = await self._job.events.get()
        if isinstance(event, ApiError):
            raise event
        return event
