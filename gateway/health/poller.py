"""How the backends are: asked regularly, and at once when real traffic gives reason to doubt.

A backend that answers polls must also work: `gateway.health.stall_detector` finds one that hangs,
`gateway.backends.circuit_breaker` one that fails, `gateway.health.canary` brings either back.
"""

import asyncio
import contextlib
import random
from dataclasses import dataclass

import httpx2
import structlog

from gateway.backends.backend import Backend
from gateway.backends.backend_table import Backends
from gateway.health.canary import ask_canary
from gateway.health.probe import Polls
from gateway.health.stall_detector import NEVER, ProgressWatch
from kit.config.catalogue import Catalogue

log = structlog.get_logger(__name__)

# Two polls of one backend are at least this far apart, in seconds, however suspicious it is.
MIN_PAUSE_S = 0.1
# After so many polls that found nobody there the pauses grow, each by this factor, to a few seconds at most: who comes
# back is found soon.
PATIENT = 5
GROWTH = 1.5
MAX_PAUSE_S = 5.0


@dataclass(frozen=True, slots=True)
class Timing:
    """In seconds: between polls, for an answer, the shortest silence that counts as stuck, how long a start is slow."""

    interval_s: float
    timeout_s: float
    stuck_after_s: float
    slow_start_s: float


class Poller:
    """Polls every backend in a task of its own. Start and stop it with the application."""

    def __init__(self, backends: Backends, catalogue: Catalogue, client: httpx2.AsyncClient, timing: Timing) -> None:
        self._backends = backends
        self._catalogue = catalogue
        self._client = client
        self._timing = timing
        self._tasks: dict[Backend, asyncio.Task[None]] = {}
        self._polls: dict[Backend, Polls] = {}
        self._started = False

    async def start(self) -> None:
        """Poll the backends there are, and those that come. Returns when each has been asked once."""
        self._backends.on_added = self._begin
        self._backends.on_removed = self._end
        for backend in self._backends:
            self._begin(backend)
        await asyncio.gather(*(polls.first.wait() for polls in self._polls.values()))
        self._started = True

    async def stop(self) -> None:
        """End all polls."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _begin(self, backend: Backend) -> None:
        wake = asyncio.Event()
        backend.probe_soon = wake.set
        backend.pool.on_idle_lost = wake.set
        backend.health.slow_start_s = self._timing.slow_start_s
        backend.health.is_new = self._started
        polls = self._polls[backend] = Polls(self._client, backend, self._catalogue, self._timing.timeout_s)
        watch = ProgressWatch(
            self._client,
            backend,
            floor_s=self._timing.stuck_after_s,
            timeout_s=self._timing.timeout_s,
            clock=backend.clock.monotonic,
        )
        self._tasks[backend] = asyncio.create_task(self._run(polls, watch, wake), name=f"poll {backend.name}")

    def _end(self, backend: Backend) -> None:
        del self._polls[backend]
        self._tasks.pop(backend).cancel()

    async def _run(self, polls: Polls, watch: ProgressWatch, wake: asyncio.Event) -> None:
        while True:
            wake.clear()
            too_long = NEVER
            try:
                await polls.once()
                polls.first.set()
                too_long = await watch.look(polls.misses)
                if polls.backend.needs_canary:
                    polls.backend.record_canary(await ask_canary(self._client, polls.backend))
            except Exception as error:
                log.error("poll failed", backend=polls.backend.name, exc_info=error)
                polls.first.set()
            await asyncio.sleep(MIN_PAUSE_S)
            with contextlib.suppress(TimeoutError):
                drawn = random.random()  # noqa: S311  # no secret
                async with asyncio.timeout(min(pause_s(self._timing.interval_s, polls.absences, drawn), too_long)):
                    await wake.wait()


def pause_s(interval_s: float, absences: int, drawn: float) -> float:
    """The seconds until the next poll, after so many in a row that found nobody; `drawn` is a random number of [0, 1).

    Jitter only shortens: a dead backend is noticed within one interval.
    """
    growths = min(max(absences - PATIENT, 0), 10)
    longest = max(interval_s, min(interval_s * GROWTH**growths, MAX_PAUSE_S))
    return max(longest * (1.0 - 0.2 * drawn) - MIN_PAUSE_S, 0.0)
