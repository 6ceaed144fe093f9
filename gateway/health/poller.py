"""Health poller: probes every backend at intervals, and at once when its requests fail.

A backend that passes probes must also work: `gateway.health.stall_detector` finds hung ones, the circuit breaker in
`gateway.backends` failing ones, and `gateway.health.canary` puts both back into rotation.
"""

import asyncio
import contextlib
import random
from dataclasses import dataclass

import httpx2
import structlog

from gateway.backends.backend import Backend
from gateway.backends.backend_table import Backends
from gateway.backends.circuit_breaker import PAUSE_S
from gateway.health.canary import CANARY_S, send_canary
from gateway.health.probe import HealthProbe
from gateway.health.stall_detector import NEVER, UNRESPONSIVE_S, StallDetector
from kit.config.catalogue import Catalogue

log = structlog.get_logger(__name__)

# The shortest pause between two probes of one backend, in seconds.
MIN_PAUSE_S = 0.1
# After this many probes without a server the pauses grow by a factor, up to a few seconds, so that a backend that comes
# back is found soon.
ABSENCES_BEFORE_BACKOFF = 5
BACKOFF_FACTOR = 1.5
MAX_PAUSE_S = 5.0


@dataclass(frozen=True, slots=True)
class Timing:
    """In seconds: interval and timeout of probes, the least silence that counts as stuck, duration of a slow start.

    The others are no settings: timeout of a canary, least silence of an unresponsive backend, first pause of a breaker.
    """

    interval_s: float
    timeout_s: float
    stuck_after_s: float
    slow_start_s: float
    canary_s: float = CANARY_S
    unresponsive_s: float = UNRESPONSIVE_S
    breaker_pause_s: float = PAUSE_S


class Poller:
    """Probes every backend in a task of its own. Start and stop it with the application."""

    def __init__(self, backends: Backends, catalogue: Catalogue, client: httpx2.AsyncClient, timing: Timing) -> None:
        self._backends = backends
        self._catalogue = catalogue
        self._client = client
        self._timing = timing
        self._probes: dict[Backend, tuple[HealthProbe, asyncio.Task[None]]] = {}
        self._is_started = False

    async def start(self) -> None:
        """Start to probe all backends, now and when they are added. Returns when each has been probed once."""
        self._backends.on_added = self._begin
        self._backends.on_removed = self._end
        for backend in self._backends:
            self._begin(backend)
        await asyncio.gather(*(probe.first_done.wait() for probe, _ in self._probes.values()))
        self._is_started = True

    async def stop(self) -> None:
        """Stop all probes."""
        tasks = [task for _, task in self._probes.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _begin(self, backend: Backend) -> None:
        wake, timing = asyncio.Event(), self._timing
        backend.probe_soon = wake.set
        backend.pool.on_idle_lost = wake.set
        backend.health.slow_start_s = timing.slow_start_s
        backend.health.is_new = self._is_started
        probe = HealthProbe(self._client, backend, self._catalogue, timing.timeout_s)
        backend.health.breaker.first_pause_s = timing.breaker_pause_s
        stalls = StallDetector(
            self._client,
            backend,
            floor_s=timing.stuck_after_s,
            timeout_s=timing.timeout_s,
            unresponsive_s=timing.unresponsive_s,
        )
        task = asyncio.create_task(self._run(probe, stalls, wake), name=f"probe {backend.name}")
        self._probes[backend] = probe, task

    def _end(self, backend: Backend) -> None:
        _, task = self._probes.pop(backend)
        task.cancel()

    async def _run(self, probe: HealthProbe, stalls: StallDetector, wake: asyncio.Event) -> None:
        backend = probe.backend
        while True:
            wake.clear()
            check_after_s = NEVER
            try:
                await probe.run()
                probe.first_done.set()
                check_after_s = await stalls.check(probe.misses)
                if backend.needs_canary:
                    backend.record_canary(await send_canary(self._client, backend, self._timing.canary_s))
            except Exception as error:
                log.error("health probe failed with a bug", backend=backend.name, exc_info=error)
                probe.first_done.set()
            await asyncio.sleep(MIN_PAUSE_S)
            drawn = random.random()  # noqa: S311  # no secret
            pause = min(pause_s(self._timing.interval_s, probe.absences, drawn), check_after_s)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await wake.wait()


def pause_s(interval_s: float, absences: int, drawn: float) -> float:
    """Return the seconds until the next probe after `absences` in a row; `drawn` is a random number of [0, 1).

    Jitter only shortens the pause, so that a crashed backend is noticed within one interval.
    """
    growths = min(max(absences - ABSENCES_BEFORE_BACKOFF, 0), 10)
    longest = max(interval_s, min(interval_s * BACKOFF_FACTOR**growths, MAX_PAUSE_S))
    return max(longest * (1.0 - 0.2 * drawn) - MIN_PAUSE_S, 0.0)
