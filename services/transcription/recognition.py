"""One recording on its way: between the task that waits for its answer and the thread that hears it."""

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


@dataclass(frozen=True)
class End:
    """The last event of a job; `error` is what went wrong."""

    error: ApiError | None = None


Event = Info | Segment | End


@dataclass(eq=False)
class Job:
    """One recording on its way. The worker thread owns `file` from the moment it takes the job, and closes it."""

    file: BinaryIO
    options: Options
    loop: asyncio.AbstractEventLoop
    events: "asyncio.Queue[Event]" = field(default_factory=asyncio.Queue)
    cancelled: threading.Event = field(default_factory=threading.Event)
    arrived: float = field(default_factory=time.monotonic)
    short: "Samples | None" = None
    """The whole recording, once it is known to fit Whisper's window."""
    by_itself: bool = False
    """That it was found not to fit, or not to be sound."""

    def tell(self, event: Event) -> None:
        """Hand an event to the waiting task, from the worker thread."""
        self.loop.call_soon_threadsafe(self.events.put_nowait, event)


class Hearing:
    """One recording being heard. Read it inside `async with`; leaving that early gives the recording up."""

    def __init__(self, job: Job, left: Callable[[], None]) -> None:
        """Read `job`. `left` is called once, when the recording has been given up or its answer has gone."""
        self._job = job
        self._left = left

    async def __aenter__(self) -> "Hearing":
        return self

    async def __aexit__(self, *_: object) -> None:
        self.leave()

    def leave(self) -> None:
        """Give the recording up, or say that its answer has gone. Only the first call counts."""
        if not self._job.cancelled.is_set():
            self._job.cancelled.set()
            self._left()

    async def info(self) -> Info:
        """Wait for the recording's turn; call this first and once.

        Raises ApiError when the recording cannot be heard.
        """
        event = await self._next()
        assert isinstance(event, Info)
        return event

    async def segments(self) -> AsyncIterator[Segment]:
        """The segments, each as soon as it is heard. Raises ApiError when the engine fails on the way."""
        while isinstance(event := await self._next(), Segment):
            yield event

    async def _next(self) -> Event:
        event = await self._job.events.get()
        if isinstance(event, End) and event.error is not None:
            raise event.error
        return event
