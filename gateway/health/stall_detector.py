"""Stuck is not busy: whether a backend that says nothing still works.

An engine that hangs answers health polls and takes connections; what it was sent never comes back. One that reads a
long prompt says nothing either, but its metrics move. Only a backend that has work, sends no byte, whose metrics stand
still, for far longer than it was ever seen to need, is stuck. A backend whose metrics show no steps is judged only by
what was learnt of it, and not at all while it generates an answer that comes as a whole.

One that answers neither polls nor the question for its metrics may be busy too, its event loop held up by a large
request. It is asked again at once, and if it stays mute for several times longer than its streams ever paused, the
shortest silence that counts is not waited for.
"""

import asyncio
from collections.abc import Callable

import httpx2

from gateway.backends.backend import Backend
from gateway.health.backend_client import ask
from gateway.health.engine_metrics import EngineReport, read
from gateway.health.probe import MISSES_WHILE_BUSY

# A backend is asked for its metrics when no byte has come for this share of the shortest silence that counts.
LOOK_FROM = 0.1
# How many times longer than expected a silence must be.
PATIENCE = 8.0
# The shortest silence of a mute backend that counts, in seconds.
MUTE_S = 3.0
NEVER = float("inf")
NOTHING = EngineReport(work=(), by_steps=False, waiting=None)


class ProgressWatch:
    """Watches one backend. `look` is called after every health poll."""

    def __init__(
        self,
        client: httpx2.AsyncClient,
        backend: Backend,
        *,
        floor_s: float,
        timeout_s: float,
        clock: Callable[[], float],
    ) -> None:
        """`floor_s` is the shortest silence that can count as stuck; `clock` the monotonic time of `last_byte`."""
        self._client = client
        self._backend = backend
        self._floor_s = floor_s
        self._timeout_s = timeout_s
        self._clock = clock
        # Since when it has had work, as far as was looked; when it was found to be stuck.
        self._work_since: float | None = None
        self._stuck_at = 0.0
        # What its metrics said last, since it last sent a byte.
        self._work: tuple[str, ...] = ()

    async def look(self, misses: int) -> float:
        """Say whether the backend is stuck. One that has no work says nothing of it: a canary has to tell.

        `misses` are the latest polls in a row that it did not answer in time. Returns the seconds after which it will
        have been silent for too long, if it stays so.
        """
        backend, now = self._backend, self._clock()
        self._lives(backend.last_sign_at)
        if not self._has_work():
            self._work_since = None
            return NEVER
        if self._work_since is None:
            self._work_since = now
        if 0 < misses < MISSES_WHILE_BUSY:
            return 0.0
        if not misses and now - max(self._work_since, backend.traffic.last_byte_at) < self._floor_s * LOOK_FROM:
            self._work = ()
            return self._floor_s
        answer = await self._told()
        mute, told = misses > 0 and answer is None, answer or NOTHING
        if told.work and told.work != self._work:
            # The first look only remembers.
            if self._work:
                backend.engine_queue.progress_at = self._clock()
                self._lives(backend.engine_queue.progress_at)
            self._work = told.work
            return self._floor_s
        # It may have answered, or its clients may have gone, while it was asked.
        silent = self._clock() - max(self._work_since, backend.last_sign_at)
        limit = self._limit_of_mute(now) if mute else self._limit(told, now)
        if limit is None or not self._has_work():
            return NEVER
        if silent < limit:
            return limit - silent
        if not backend.health.is_stuck:
            self._stuck_at = now
        answers = "neither health polls nor /metrics, and" if mute else "health polls, but"
        also = " and no progress in its metrics" if told.work else ""
        backend.set_stuck(f"it answers {answers} sent no byte{also} for {silent:.3g} s with requests in flight")
        return NEVER

    def _has_work(self) -> bool:
        """Whether a byte is to be expected of it: not of one that is down, nor of one that is not read from."""
        backend = self._backend
        return backend.health.passes_probes and backend.traffic.in_flight > backend.pool.paused_count

    def _lives(self, sign: float) -> None:
        """It gave a sign of life at `sign`: since it was found to be stuck?"""
        if self._backend.health.is_stuck and sign > self._stuck_at:
            self._backend.set_stuck(None)

    def _limit(self, told: EngineReport, now: float) -> float | None:
        """How long a silence may be, in seconds; None for as long as it likes."""
        load = self._backend.load
        expected = load.expected_wait(now) if load.awaits_first_byte else load.gaps.longest
        if not told.by_steps and (load.generating or expected is None):
            return None
        return max(self._floor_s, PATIENCE * (expected or 0.0))

    def _limit_of_mute(self, now: float) -> float | None:
        """The same of one that answers no question either: only streams tell anything by their silence."""
        backend, load = self._backend, self._backend.load
        expected = load.expected_wait(now) if load.awaits_first_byte else None
        known = [seconds for seconds in (expected, load.gaps.longest) if seconds is not None]
        if not known or backend.traffic.in_flight <= len(load.generating):
            return None
        return max(min(MUTE_S, self._floor_s), PATIENCE * max(known))

    async def _told(self) -> EngineReport | None:
        """What its metrics say now: nothing where it has none. None where it does not answer at all."""
        try:
            async with asyncio.timeout(self._timeout_s):
                answer = await ask(self._client, self._backend, "/metrics")
        except (TimeoutError, httpx2.HTTPError, httpx2.InvalidURL):
            return None
        told = read(answer.text) if answer.is_success else NOTHING
        if told.waiting is not None:
            queue = self._backend.engine_queue
            queue.waiting, queue.read_at = told.waiting, self._clock()
        return told
