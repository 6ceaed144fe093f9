"""Detection of stuck backends: they pass health probes but make no progress on their requests.

A hung engine responds to health probes and accepts connections, but its requests never finish. An engine that reads a
long prompt sends nothing either, but its metrics change. A backend is stuck if it has requests, sends no byte, and its
metrics do not change, for much longer than it was ever seen to need. If its metrics do not show steps, only its past
latency counts, and it is not judged while it generates a response that is not streamed.

A backend that responds neither to probes nor to /metrics may be busy too, its event loop blocked by a large request. It
is probed again at once, and counts as stuck after several times its longest gap between bytes, which may be sooner than
the configured minimum.
"""

import asyncio

import httpx2

from gateway.backends.backend import Backend
from gateway.health.backend_client import query
from gateway.health.engine_metrics import EngineReport, read_metrics
from gateway.health.probe import MISSES_WHILE_BUSY

# Metrics are requested after this share of the shortest silence that counts.
QUERY_AFTER_SHARE = 0.1
# How many times the expected latency a silence must exceed.
SILENCE_FACTOR = 8.0
# The shortest silence that counts for a backend that does not respond to probes, in seconds.
UNRESPONSIVE_S = 3.0
NEVER = float("inf")
NO_METRICS = EngineReport(progress=(), has_steps=False, waiting=None)


class StallDetector:
    """Watches one backend. Call `check` after every health probe."""

    def __init__(
        self, client: httpx2.AsyncClient, backend: Backend, *, floor_s: float, timeout_s: float, unresponsive_s: float
    ) -> None:
        """`floor_s` is the shortest silence that counts as stuck, `unresponsive_s` if probes fail too."""
        self._client = client
        self._backend = backend
        self._floor_s = floor_s
        self._unresponsive_s = unresponsive_s
        self._timeout_s = timeout_s
        self._clock = backend.clock.monotonic
        # Since when it has had requests, as seen by `check`; when it was found to be stuck.
        self._busy_since: float | None = None
        self._stuck_at = 0.0
        # The progress metrics at the last check in this silence.
        self._progress: tuple[str, ...] = ()

    async def check(self, misses: int) -> float:
        """Mark the backend as stuck or clear the mark. Idle backends are left to a canary.

        `misses` are the latest probes in a row that timed out. Returns the seconds after which to check again.
        """
        backend, now = self._backend, self._clock()
        self._clear_if_alive(backend.last_sign_at)
        if not self._has_work():
            self._busy_since = None
            return NEVER
        if self._busy_since is None:
            self._busy_since = now
        if 0 < misses < MISSES_WHILE_BUSY:
            return 0.0
        silent_since = max(self._busy_since, backend.traffic.last_byte_at)
        if not misses and now - silent_since < self._floor_s * QUERY_AFTER_SHARE:
            self._progress = ()
            return self._floor_s
        response = await self._query_metrics()
        is_unresponsive, report = misses > 0 and response is None, response or NO_METRICS
        if report.progress and report.progress != self._progress:
            # The first report of a silence is only the baseline.
            if self._progress:
                backend.engine_queue.progress_at = self._clock()
                self._clear_if_alive(backend.engine_queue.progress_at)
            self._progress = report.progress
            return self._floor_s
        # It may have sent something, or its clients may have left, during the query.
        silent_s = self._clock() - max(self._busy_since, backend.last_sign_at)
        limit_s = self._limit_unresponsive(now) if is_unresponsive else self._limit(report, now)
        if limit_s is None or not self._has_work():
            return NEVER
        if silent_s < limit_s:
            return limit_s - silent_s
        if not backend.health.is_stuck:
            self._stuck_at = now
        responds = "responds neither to health probes nor to /metrics, and" if is_unresponsive else "passes probes, but"
        metrics = " and its metrics showed no progress" if report.progress else ""
        backend.set_stuck(f"it {responds} sent no byte{metrics} for {silent_s:.3g} s with requests in flight")
        return NEVER

    def _has_work(self) -> bool:
        """Whether a byte is expected: not if it is down, or if slow clients pause all its connections."""
        backend = self._backend
        return backend.health.passes_probes and backend.traffic.in_flight > backend.pool.paused_count

    def _clear_if_alive(self, sign_at: float) -> None:
        if self._backend.health.is_stuck and sign_at > self._stuck_at:
            self._backend.set_stuck(None)

    def _limit(self, report: EngineReport, now: float) -> float | None:
        """Return the allowed silence in seconds, None if unlimited."""
        load = self._backend.load
        expected = load.expected_wait(now) if load.awaits_first_byte else load.gaps.longest
        if not report.has_steps and (load.generating or expected is None):
            return None
        return max(self._floor_s, SILENCE_FACTOR * (expected or 0.0))

    def _limit_unresponsive(self, now: float) -> float | None:
        """Return the same for a backend that responds to nothing: only the silence of streams is conclusive."""
        backend, load = self._backend, self._backend.load
        expected = load.expected_wait(now) if load.awaits_first_byte else None
        known = [seconds for seconds in (expected, load.gaps.longest) if seconds is not None]
        if not known or backend.traffic.in_flight <= len(load.generating):
            return None
        return max(min(self._unresponsive_s, self._floor_s), SILENCE_FACTOR * max(known))

    async def _query_metrics(self) -> EngineReport | None:
        """Return what its /metrics show, NO_METRICS if it has none, None without a response."""
        try:
            async with asyncio.timeout(self._timeout_s):
                response = await query(self._client, self._backend, "/metrics")
        except (TimeoutError, httpx2.HTTPError, httpx2.InvalidURL):
            return None
        report = read_metrics(response.text) if response.is_success else NO_METRICS
        if report.waiting is not None:
            queue = self._backend.engine_queue
            queue.waiting, queue.read_at = report.waiting, self._clock()
        return report
