"""The queue before the engine: one thread hears recordings in their order, short ones that wait together in one batch,
and nothing of it happens on the event loop."""

import asyncio
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import BinaryIO

import structlog

from kit.errors import ApiError, Busy
from kit.service.engine_failures import EngineFailures
from kit.service.service import in_daemon_thread
from services.transcription.audio import RATE, decode
from services.transcription.engine import WINDOW_S, Info, Options, SpeechEngine
from services.transcription.metrics import SpeechMetrics
from services.transcription.recognition import End, Hearing, Job

log = structlog.get_logger(__name__)

# ISO 639-3's code for it. Only answers without a language are heard in batches.
UNKNOWN_LANGUAGE = "und"


class Jobs:
    """Owns an engine and the thread that runs it.

    `entering` and `hear` may be called by any number of tasks of one event loop; `aclose` ends the thread after the
    segment that is being heard.
    """

    def __init__(
        self,
        engine: SpeechEngine,
        *,
        max_queue: int,
        max_seconds: int,
        metrics: SpeechMetrics,
        on_death: Callable[[str], None],
    ) -> None:
        """Start the thread. `on_death` is called in it, with the reason, when the engine hears nothing any more."""
        self.engine = engine
        self.name = engine.name
        self.device = engine.device
        self._max_queue = max_queue
        self._max_seconds = max_seconds
        self._metrics = metrics
        self._failures = EngineFailures("recording", on_death)
        self._in_flight = 0
        self._seconds_each = 5.0
        self._stopping = threading.Event()
        self._backlog: deque[Job] = deque()
        self._waiting: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
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
        job = Job(file, options, asyncio.get_running_loop())
        self._metrics.queued.inc()
        self._waiting.put(job)
        return Hearing(job, self.left)

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
        while (jobs := self._next()) is not None:
            self._metrics.queued.dec(len(jobs))
            ends = self._work_together(jobs) if len(jobs) > 1 else {}
            for job in jobs:
                with job.file:
                    end = ends.get(job) or self._work(job)
                if not self._stopping.is_set():  # then the loop may be gone, and nobody waits
                    job.tell(end)

    def _next(self) -> list[Job] | None:
        """The recording whose turn it is, and those that can be heard in one batch with it; None at the end."""
        while not self._backlog or not self._waiting.empty():
            job = self._waiting.get()
            if job is None:
                for given_up in self._backlog:
                    given_up.file.close()
                return None
            self._backlog.append(job)
        first = self._backlog.popleft()
        jobs = [first]
        if not _can_share(first.options) or not any(job.options == first.options for job in self._backlog):
            return jobs
        if self.engine.most_together > 1 and self._is_short(first):
            for job in tuple(self._backlog):
                if len(jobs) < self.engine.most_together and job.options == first.options and self._is_short(job):
                    self._backlog.remove(job)
                    jobs.append(job)
        return jobs

    def _is_short(self, job: Job) -> bool:
        """Whether the recording fits Whisper's window; decodes that much of it."""
        if job.short is None and not job.by_itself:
            try:
                job.short = decode(job.file, min(WINDOW_S, self._max_seconds), lambda: self._gone(job))
            except Exception as error:  # noqa: BLE001  # too long, or wrong in a way that is told when its turn comes
                log.debug("heard by itself", reason=str(error))
                job.by_itself = True
        return job.short is not None and not self._gone(job)

    def _work_together(self, jobs: list[Job]) -> dict[Job, End]:
        """Hear short recordings in one batch. Those that it does not answer for are to be heard one by one."""
        began = time.monotonic()
        samples = [job.short for job in jobs if job.short is not None]
        try:
            heard = self.engine.together(samples, jobs[0].options)
        except Exception as error:
            log.error("a batch of recordings failed; each is heard by itself", recordings=len(jobs), exc_info=error)
            return {}
        took = (time.monotonic() - began) / len(jobs)
        ends = {}
        for job, own, segments in zip(jobs, samples, heard, strict=True):
            if segments is None:
                continue
            self._metrics.waited.observe(began - job.arrived)
            job.tell(Info(job.options.language or UNKNOWN_LANGUAGE, len(own) / RATE))
            for segment in segments:
                job.tell(segment)
            ends[job] = self._finished(len(own) / RATE, took)
        return ends

    def _work(self, job: Job) -> End:
        if self._gone(job):
            return End()
        self._metrics.waited.observe(time.monotonic() - job.arrived)
        began = time.monotonic()
        try:
            samples = decode(job.file, self._max_seconds, lambda: self._gone(job)) if job.short is None else job.short
            info, segments = self.engine.transcribe(samples, job.options)
            job.tell(info)
            for segment in segments:
                if self._gone(job):
                    return End()
                job.tell(segment)
        except ApiError as error:
            return End(error)
        except Exception as error:
            log.error("transcription failed", exc_info=error)
            self._failures.failed(str(error), self._hear_silence)
            return End(ApiError("The engine failed on this recording; the server's log has the cause."))
        return self._finished(len(samples) / RATE, time.monotonic() - began)

    def _finished(self, audio_s: float, took_s: float) -> End:
        self._failures.succeeded()
        self._metrics.heard(audio_s=audio_s, took_s=took_s)
        self._seconds_each += (took_s - self._seconds_each) / 4
        return End()

    def _hear_silence(self) -> None:
        """Hear a second of it, which every engine that works can."""
        import numpy as np

        options = Options(language=self.engine.languages[0], vad=False)
        for _segment in self.engine.transcribe(np.zeros(RATE, np.int16), options)[1]:
            pass

    def _gone(self, job: Job) -> bool:
        return job.cancelled.is_set() or self._stopping.is_set()


def _can_share(options: Options) -> bool:
    """Whether a batch may hear it: one prompt would be everyone's, and a temperature makes each hearing its own."""
    return options.coarse and not options.prompt and not options.temperature
