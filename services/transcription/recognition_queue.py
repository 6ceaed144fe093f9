"""Queue and worker thread of the engine. Recordings are processed in order; short ones that wait share a batch."""

import asyncio
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import BinaryIO

import structlog

from kit.errors import ApiError, Busy
from kit.service.engine_failures import EngineFailures
from kit.service.service import in_daemon_thread
from services.transcription.audio import RATE, decode
from services.transcription.engine import WINDOW_S, Info, Options, SpeechEngine
from services.transcription.metrics import SpeechMetrics
from services.transcription.recognition import Job, Recognition

log = structlog.get_logger(__name__)

# ISO 639-3: undetermined. Only responses that do not report a language use batches.
UNKNOWN_LANGUAGE = "und"


class RecognitionQueue:
    """Queue and worker thread of an engine.

    Any number of tasks of one event loop may call `reserve` and `submit`; `aclose` ends the thread after the current
    segment.
    """

    def __init__(
        self,
        engine: SpeechEngine,
        *,
        max_queue: int,
        max_seconds: int,
        metrics: SpeechMetrics,
        on_engine_failed: Callable[[str], None],
    ) -> None:
        """Start the thread, which calls `on_engine_failed` with the reason once the engine fails on all recordings."""
        self.engine = engine
        self.name = engine.name
        self.device = engine.device
        self._max_queue = max_queue
        self._max_seconds = max_seconds
        self._metrics = metrics
        self._failures = EngineFailures("recording", on_engine_failed)
        self._in_flight = 0
        self._seconds_per_recording = 5.0
        self._stopping = threading.Event()
        self._backlog: deque[Job] = deque()
        self._inbox: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="transcription worker", daemon=True)
        self._thread.start()

    @contextmanager
    def reserve(self) -> Iterator[None]:
        """Reserve a place while the upload is read, released on an exception. Raises Busy if the queue is full."""
        if self._in_flight >= self._max_queue:
            raise Busy(
                f"The queue is full: {self._in_flight} recordings are in flight and MAX_QUEUE is {self._max_queue}. "
                "Retry shortly.",
                retry_after=min(self._seconds_per_recording, 60.0),
            )
        self._add_in_flight(1)
        try:
            yield
        except BaseException:
            self._add_in_flight(-1)
            raise

    def submit(self, file: BinaryIO, options: Options) -> Recognition:
        """Queue a recording with a reserved place, which the Recognition releases. The queue closes `file`."""
        job = Job(file, options, asyncio.get_running_loop())
        self._metrics.queued.inc()
        self._inbox.put(job)
        return Recognition(job, partial(self._add_in_flight, -1))

    def _add_in_flight(self, change: int) -> None:
        self._in_flight += change
        self._metrics.in_flight.set(self._in_flight)

    async def aclose(self) -> None:
        """Stop the thread, then close the engine."""
        self._stopping.set()
        self._inbox.put(None)
        await in_daemon_thread(self._thread.join)
        await self.engine.aclose()

    # All methods below run in the worker thread.

    def _run(self) -> None:
        while (jobs := self._next_jobs()) is not None:
            self._metrics.queued.dec(len(jobs))
            done = self._process_batch(jobs) if len(jobs) > 1 else set()
            for job in jobs:
                with job.file:
                    error = None if job in done else self._process(job)
                if not self._stopping.is_set():  # otherwise the event loop may be closed
                    job.send(error)

    def _next_jobs(self) -> list[Job] | None:
        """Wait for the next recording and the pending ones that can share its batch; None when the queue stops."""
        while not self._backlog or not self._inbox.empty():
            job = self._inbox.get()
            if job is None:
                for abandoned in self._backlog:
                    abandoned.file.close()
                return None
            self._backlog.append(job)
        first = self._backlog.popleft()
        jobs = [first]
        if not _is_batchable(first.options) or not any(job.options == first.options for job in self._backlog):
            return jobs
        if self.engine.max_batch > 1 and self._is_short(first):
            for job in tuple(self._backlog):
                if len(jobs) < self.engine.max_batch and job.options == first.options and self._is_short(job):
                    self._backlog.remove(job)
                    jobs.append(job)
        return jobs

    def _is_short(self, job: Job) -> bool:
        """Return whether the recording fits Whisper's window, by decoding that much of it."""
        if job.short_samples is None and not job.too_long_for_batch:
            try:
                job.short_samples = decode(job.file, min(WINDOW_S, self._max_seconds), lambda: self._is_cancelled(job))
            except Exception as error:  # noqa: BLE001  # too long, or invalid, which `_process` reports
                log.debug("recording not batched", reason=str(error))
                job.too_long_for_batch = True
        return job.short_samples is not None and not self._is_cancelled(job)

    def _process_batch(self, jobs: list[Job]) -> set[Job]:
        """Process short recordings in one batch. Jobs missing in the result must be processed one by one."""
        began = time.monotonic()
        recordings = [job.short_samples for job in jobs if job.short_samples is not None]
        try:
            results = self.engine.transcribe_batch(recordings, jobs[0].options)
        except Exception as error:
            log.error("batch failed; processing its recordings one by one", recordings=len(jobs), exc_info=error)
            return set()
        took_s = (time.monotonic() - began) / len(jobs)
        done = set()
        for job, samples, segments in zip(jobs, recordings, results, strict=True):
            if segments is None:
                continue
            self._metrics.waited.observe(began - job.arrived)
            job.send(Info(job.options.language or UNKNOWN_LANGUAGE, len(samples) / RATE))
            for segment in segments:
                job.send(segment)
            self._record_success(len(samples) / RATE, took_s)
            done.add(job)
        return done

    def _process(self, job: Job) -> ApiError | None:
        """Process one recording, and return the error if it failed."""
        if self._is_cancelled(job):
            return None
        self._metrics.waited.observe(time.monotonic() - job.arrived)
        began = time.monotonic()
        try:
            samples = job.short_samples
            if samples is None:
                samples = decode(job.file, self._max_seconds, lambda: self._is_cancelled(job))
            info, segments = self.engine.transcribe(samples, job.options)
            job.send(info)
            for segment in segments:
                if self._is_cancelled(job):
                    return None
                job.send(segment)
        except ApiError as error:
            return error
        except Exception as error:
            log.error("transcription failed", exc_info=error)
            self._failures.failed(str(error), self._transcribe_silence)
            return ApiError("The engine failed on this recording. See the service's log for the cause.")
        self._record_success(len(samples) / RATE, time.monotonic() - began)
        return None

    def _record_success(self, audio_s: float, took_s: float) -> None:
        self._failures.succeeded()
        self._metrics.observe_recording(audio_s=audio_s, took_s=took_s)
        self._seconds_per_recording += (took_s - self._seconds_per_recording) / 4

    def _transcribe_silence(self) -> None:
        """Transcribe a second of silence, which every working engine can."""
        import numpy as np

        options = Options(language=self.engine.languages[0], vad=False)
        for _segment in self.engine.transcribe(np.zeros(RATE, np.int16), options)[1]:
            pass

    def _is_cancelled(self, job: Job) -> bool:
        return job.cancelled.is_set() or self._stopping.is_set()


def _is_batchable(options: Options) -> bool:
    """Prompt and temperature apply to a whole batch, so only recordings without them share one."""
    return options.text_only and not options.streamed and not options.prompt and not options.temperature
