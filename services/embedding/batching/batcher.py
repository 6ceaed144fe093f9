"""Dynamic batching: texts of concurrent requests share the engine's batches; one thread tokenizes and computes."""

import asyncio
import bisect
import itertools
import threading
import time
from collections.abc import Callable, Sequence

import structlog

from kit.errors import ApiError, Busy
from kit.service.engine_failures import EngineFailures
from kit.service.service import in_daemon_thread
from services.embedding.batching.batch_selection import BatchLimits, select_batch
from services.embedding.batching.jobs import Item, Job, Rows, Work
from services.embedding.batching.metrics import BatchMetrics
from services.embedding.batching.tokenization import tokenize_jobs
from services.embedding.engines.interface import TextEngine, Tokens

log = structlog.get_logger(__name__)


class Batcher:
    """Queue and worker thread of an engine.

    Any number of tasks of one event loop may call `submit`, which never blocks the loop. `aclose` ends the thread after
    the current batch.
    """

    def __init__(
        self,
        engine: TextEngine,
        *,
        limits: BatchLimits,
        max_wait_s: float,
        max_queue: int,
        metrics: BatchMetrics,
        on_engine_failed: Callable[[str], None],
    ) -> None:
        """Start the thread, which calls `on_engine_failed` with the reason once the engine fails on every batch."""
        self.engine = engine
        self.name = engine.name
        self.device = engine.device
        self._limits = limits
        self._max_wait_s = max_wait_s
        self._max_queue = max_queue
        self._metrics = metrics
        self._failures = EngineFailures("batch", on_engine_failed)
        self._in_flight = 0
        self._wake = threading.Condition()
        self._inbox: list[Job] = []
        self._stopping = False
        self._pending: list[Item] = []
        self._sequence = itertools.count()
        self._last_batch_shared = False
        self._known_good: Tokens | None = None
        self._thread = threading.Thread(target=self._run, name="embedding worker", daemon=True)
        self._thread.start()

    async def submit(self, work: Work) -> Rows:
        """Compute `work`. If the caller is cancelled, texts that are still pending are dropped.

        Raises Busy if MAX_QUEUE texts would be exceeded, InvalidRequest if a text is too long for the model.
        """
        if self._in_flight + len(work) > self._max_queue:
            raise Busy(
                f"The queue is full: {self._in_flight} texts are in flight and MAX_QUEUE is {self._max_queue}. "
                "Retry shortly."
            )
        job = Job(work, asyncio.get_running_loop().create_future())
        self._add_in_flight(len(work))
        with self._wake:
            self._inbox.append(job)
            self._wake.notify()
        try:
            return await job.future
        finally:
            job.cancelled = True
            self._add_in_flight(-len(work))

    def _add_in_flight(self, texts: int) -> None:
        self._in_flight += texts
        self._metrics.in_flight.set(self._in_flight)

    async def aclose(self) -> None:
        """Stop the thread, then close the engine."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        await in_daemon_thread(self._thread.join)
        await self.engine.aclose()

    # All methods below run in the worker thread.

    def _run(self) -> None:
        while (jobs := self._next_jobs()) is not None:
            self._enqueue(jobs)
            self._pending = [item for item in self._pending if not item.job.cancelled]
            if self._pending:
                self._compute()

    def _next_jobs(self) -> list[Job] | None:
        """Wait for work and return the new jobs; None when the batcher stops."""
        with self._wake:
            while not (self._inbox or self._pending or self._stopping):
                self._wake.wait()
            self._wait_for_full_batch()
            if self._stopping:
                return None
            jobs, self._inbox = self._inbox, []
            return jobs

    def _wait_for_full_batch(self) -> None:
        """After a batch of several clients, wait up to `max_wait_s` for their next requests to share one again.

        After a batch of a single client, waiting would only add latency.
        """
        deadline = time.monotonic() + self._max_wait_s
        while self._last_batch_shared and not self._stopping:
            texts = len(self._pending) + sum(len(job.work) for job in self._inbox)
            remaining = deadline - time.monotonic()
            if texts >= self._limits.size or remaining <= 0:
                return
            self._wake.wait(remaining)

    def _enqueue(self, jobs: list[Job]) -> None:
        """Tokenize the jobs' texts and add them to the pending ones; fail jobs with invalid texts."""
        for job, tokens in tokenize_jobs(self.engine, jobs):
            if isinstance(tokens, ApiError):
                self._fail([job], tokens)
            elif not job.cancelled:
                self._add_pending(job, tokens)

    def _add_pending(self, job: Job, tokens: Sequence[Tokens]) -> None:
        job.remaining = len(tokens)
        job.rows = [None] * len(tokens)
        job.tokens = sum(len(item) for item in tokens)
        for index, item in enumerate(tokens):
            bisect.insort(self._pending, Item(job, index, item, next(self._sequence)), key=lambda item: item.sort_key)

    def _compute(self) -> None:
        oldest = min(range(len(self._pending)), key=lambda index: self._pending[index].sequence)
        lengths = [len(item.tokens) for item in self._pending]
        selected = select_batch(lengths, oldest, self._limits, self.engine.batch_cost)
        batch = self._pending[selected]
        del self._pending[selected]
        jobs = {item.job for item in batch}
        self._last_batch_shared = len(jobs) > 1
        began = time.monotonic()
        try:
            rows = list(zip(batch, self.engine.run([item.tokens for item in batch]), strict=True))
        except Exception as error:
            log.error("batch failed", texts=len(batch), exc_info=error)
            self._fail(list(jobs), ApiError("The engine failed on this batch. See the service's log for the cause."))
            known_good = self._known_good
            self._failures.failed(str(error), None if known_good is None else lambda: self.engine.run([known_good]))
            return
        self._known_good = batch[0].tokens
        self._failures.succeeded()
        width = max(len(item.tokens) for item in batch)
        self._metrics.observe_batch(texts=len(batch), width=width, seconds=time.monotonic() - began)
        for item, row in rows:
            item.job.rows[item.index] = row
            item.job.remaining -= 1
        self._deliver([job for job in jobs if job.remaining == 0])

    def _deliver(self, jobs: list[Job]) -> None:
        def settle() -> None:
            for job in jobs:
                if not job.future.done():
                    job.future.set_result(Rows([row for row in job.rows if row is not None], job.tokens))

        if jobs:
            jobs[0].future.get_loop().call_soon_threadsafe(settle)

    def _fail(self, jobs: list[Job], error: ApiError) -> None:
        def settle() -> None:
            for job in jobs:
                if not job.future.done():
                    job.future.set_exception(error)

        for job in jobs:
            job.cancelled = True
        jobs[0].future.get_loop().call_soon_threadsafe(settle)
