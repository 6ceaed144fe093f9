"""The queue before the engine: recordings are heard one after another in one thread, and never on the event loop."""

import asyncio
import queue
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import BinaryIO

import structlog

from kit.errors import ApiError, Busy
from kit.service import in_daemon_thread
from services.transcription.audio import RATE, decode
from services.transcription.engine import Info, Options, Segment, SpeechEngine
from services.transcription.metrics import SpeechMetrics

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class _End:
    """The last event of a job; `error` is what went wrong."""

    error: ApiError | None = None


_Event = Info | Segment | _End


@dataclass(eq=False)
class _Job:
    """One recording on its way. The worker thread owns `file` from the moment it takes the job, and closes it."""

    file: BinaryIO
    options: Options
    loop: asyncio.AbstractEventLoop
    events: "asyncio.Queue[_Event]" = field(default_factory=asyncio.Queue)
    cancelled: threading.Event = field(default_factory=threading.Event)
    arrived: float = field(default_factory=time.monotonic)

    def tell(self, event: _Event) -> None:
        """Hand an event to the waiting task, from the worker thread."""
        self.loop.call_soon_threadsafe(self.events.put_nowait, event)


class Hearing:
    """One recording being heard. Read it inside `async with`; leaving that early gives the recording up."""

    def __init__(self, jobs: "Jobs", job: _Job) -> None:
        self._jobs = jobs
        self._job = job

    async def __aenter__(self) -> "Hearing":
        return self

    async def __aexit__(self, *_: object) -> None:
        self.leave()

    def leave(self) -> None:
        """Give the recording up, or say that its answer has gone. Only the first call counts."""
        if not self._job.cancelled.is_set():
            self._job.cancelled.set()
            self._jobs.left()

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

    async def _next(self) -> _Event:
        event = await self._job.events.get()
        if isinstance(event, _End) and event.error is not None:
            raise event.error
        return event


class Jobs:
    """Owns an engine and the thread that runs it.

    `entering` and `hear` may be called by any number of tasks of one event loop; `aclose` ends the thread after the
    segment that is being heard.
    """

    def __init__(self, engine: SpeechEngine, *, max_queue: int, max_seconds: int, metrics: SpeechMetrics) -> None:
        self.engine = engine
        self.name = engine.name
        self.device = engine.device
        self._max_queue = max_queue
        self._max_seconds = max_seconds
        self._metrics = metrics
        self._in_flight = 0
        self._seconds_each = 5.0
        self._stopping = threading.Event()
        self._waiting: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="transcription worker", daemon=True)
        self._thread.start()

    @contextmanager
    def entering(self) -> Iterator[None]:
        """Take a place for a recording while its upload is read; an error inside gives it back.

        Raises Busy when MAX_QUEUE recordings are on their way.
        """
        if self._in_flight >= self._max_queue:
            raise Busy(
                f"{self._in_flight} recordings are waiting or being heard, and MAX_QUEUE is {self._max_queue}. "
                "Try again shortly.",
                retry_after=min(self._seconds_each, 60.0),
            )
        self._count(1)
        try:
            yield
        except BaseException:
            self.left()
            raise

    def hear(self, file: BinaryIO, options: Options) -> Hearing:
        """Queue a recording that has entered. Its place is the Hearing's now; `file` the queue's, which closes it."""
        job = _Job(file, options, asyncio.get_running_loop())
        self._waiting.put(job)
        return Hearing(self, job)

    def left(self) -> None:
        """Give back a recording's place. Called once for each."""
        self._count(-1)

    def _count(self, change: int) -> None:
        self._in_flight += change
        self._metrics.in_flight.set(self._in_flight)

    async def aclose(self) -> None:
        """End the thread, then the engine."""
        self._stopping.set()
        self._waiting.put(None)
        await in_daemon_thread(self._thread.join)
        await self.engine.aclose()

    # Everything below runs in the worker thread.

    def _run(self) -> None:
        while (job := self._waiting.get()) is not None:
            with job.file:
                end = self._work(job)
            if not self._stopping.is_set():  # then the loop may be gone, and nobody waits
                job.tell(end)

    def _work(self, job: _Job) -> _End:
        if self._gone(job):
            return _End()
        self._metrics.waited.observe(time.monotonic() - job.arrived)
        began = time.monotonic()
        try:
            samples = decode(job.file, self._max_seconds, lambda: self._gone(job))
            info, segments = self.engine.transcribe(samples, job.options)
            job.tell(info)
            for segment in segments:
                if self._gone(job):
                    return _End()
                job.tell(segment)
        except ApiError as error:
            return _End(error)
        except Exception as error:
            log.error("transcription failed", exc_info=error)
            return _End(ApiError("The engine failed on this recording; the server's log has the cause."))
        took = time.monotonic() - began
        self._metrics.heard(audio_s=len(samples) / RATE, took_s=took)
        self._seconds_each += (took - self._seconds_each) / 4
        return _End()

    def _gone(self, job: _Job) -> bool:
        return job.cancelled.is_set() or self._stopping.is_set()
