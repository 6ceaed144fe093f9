"""Dynamic batching: texts of all waiting requests share the engine's batches, one thread tokenizes and computes."""

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
from services.embedding.batching.batch_selection import BatchLimits, choose
from services.embedding.batching.jobs import Item, Job, Rows, Work
from services.embedding.batching.metrics import BatchMetrics
from services.embedding.batching.tokenization import tokenized
from services.embedding.engines.interface import TextEngine, Tokens

log = structlog.get_logger(__name__)


class Batcher:
    """Owns an engine and the thread that runs it.

    `submit` may be called by any number of tasks of one event loop. It never blocks the loop; `aclose` ends the thread
    after the batch that is being computed.
    """

    def __init__(
        self,
        engine: TextEngine,
        *,
        limits: BatchLimits,
        max_wait_s: float,
        max_queue: int,
        metrics: BatchMetrics,
        on_death: Callable[[str], None],
    ) -> None:
        """Start the thread. `on_death` is called in it, with the reason, when the engine computes nothing any more."""
        self.engine = engine
        self.name = engine.name
        self.device = engine.device
        self._limits = limits
        self._max_wait_s = max_wait_s
        self._max_queue = max_queue
        self._metrics = metrics
        self._failures = EngineFailures("batch", on_death)
        self._in_flight = 0
        self._wake = threading.Condition()
        self._inbox: list[Job] = []
        self._stopping = False
        self._pending: list[Item] = []
        self._numbers = itertools.count()
        self._sharing = False
        self._proven: Tokens | None = None
        self._thread = threading.Thread(target=self._run, name="embedding worker", daemon=True)
        self._thread.start()

    async def submit(self, work: Work) -> Rows:
        """Compute `work`; cancelling this drops what has not started.

        Raises Busy when MAX_QUEUE texts are in flight, InvalidRequest when a text is too long for the model.
        """
        if self._in_flight + len(work) > self._max_queue:
            raise Busy(
                f"{self._in_flight} texts are being embedded and MAX_QUEUE is {self._max_queue}. Try again shortly."
            )
        job = Job(work, asyncio.get_running_loop().create_future())
        self._count(len(work))
        with self._wake:
            self._inbox.append(job)
            self._wake.notify()
        try:
            return await job.future
        finally:
            job.cancelled = True
            self._count(-len(work))

    def _count(self, texts: int) -> None:
        self._in_flight += texts
        self._metrics.in_flight.set(self._in_flight)

    async def aclose(self) -> None:
        """End the thread, then the engine."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        await in_daemon_thread(self._thread.join)
        await self.engine.aclose()

    # Everything below runs in the worker thread.

    def _run(self) -> None:
        while (jobs := self._next_jobs()) is not None:
            self._take(jobs)
            self._pending = [item for item in self._pending if not item.job.cancelled]
            if self._pending:
                self._compute()

    def _next_jobs(self) -> list[Job] | None:
        """Wait until there is something to do; None when the batcher stops."""
        with self._wake:
            while not (self._inbox or self._pending or self._stopping):
                self._wake.wait()
            self._gather()
            if self._stopping:
                return None
            jobs, self._inbox = self._inbox, []
            return jobs

    def _gather(self) -> None:
        """Give clients that were just answered together the time to ask again together.

        Only then: a client that is alone would wait for nothing.
        """
        deadline = time.monotonic() + self._max_wait_s
        while self._sharing and not self._stopping:
            waiting = len(self._pending) + sum(len(job.work) for job in self._inbox)
            left = deadline - time.monotonic()
            if waiting >= self._limits.size or left <= 0:
                return
            self._wake.wait(left)

    def _take(self, jobs: list[Job]) -> None:
        """Tokenize the texts of jobs and put them among the pending, or answer a job with what is wrong with it."""
        for job, tokens in tokenized(self.engine, jobs):
            if isinstance(tokens, ApiError):
                self._fail([job], tokens)
            elif not job.cancelled:
                self._put(job, tokens)

    def _put(self, job: Job, tokens: Sequence[Tokens]) -> None:
        job.left = len(tokens)
        job.rows = [None] * len(tokens)
        job.tokens = sum(len(item) for item in tokens)
        for index, item in enumerate(tokens):
            bisect.insort(self._pending, Item(job, index, item, next(self._numbers)), key=lambda item: item.key)

    def _compute(self) -> None:
        oldest = min(range(len(self._pending)), key=lambda index: self._pending[index].number)
        chosen = choose([len(item.tokens) for item in self._pending], oldest, self._limits, self.engine.batch_cost)
        batch = self._pending[chosen]
        del self._pending[chosen]
        jobs = {item.job for item in batch}
        self._sharing = len(jobs) > 1
        began = time.monotonic()
        try:
            rows = list(zip(batch, self.engine.run([item.tokens for item in batch]), strict=True))
        except Exception as error:
            log.error("batch failed", texts=len(batch), exc_info=error)
            self._fail(list(jobs), ApiError("The engine failed on this batch; the server's log has the cause."))
            proven = self._proven
            self._failures.failed(str(error), None if proven is None else lambda: self.engine.run([proven]))
            return
        self._proven = batch[0].tokens
        self._failures.succeeded()
        width = max(len(item.tokens) for item in batch)
        self._metrics.batch(texts=len(batch), width=width, seconds=time.monotonic() - began)
        for item, row in rows:
            item.job.rows[item.index] = row
            item.job.left -= 1
        self._deliver([job for job in jobs if job.left == 0])

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
