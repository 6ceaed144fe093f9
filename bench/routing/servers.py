"""Simulated model servers with continuous batching: prompts are processed in turn, responses concurrently.

A request's schedule is computed when it enters the queue, so that an oracle can query it.
"""

import heapq
from collections.abc import Callable
from dataclasses import dataclass, field

from bench.routing.workload import BLOCK, Request

# Seconds of a server of speed 1 per prompt, per KB of prompt, and per token of the response.
BASE_S = 0.02
PER_KB_S = 0.02
TOKEN_S = 0.02
# Slowdown of prompt processing per response in progress.
INTERFERENCE = 0.01


@dataclass(slots=True)
class Plan:
    """A request's schedule, in simulated time."""

    first_token: float
    end: float
    cached_kb: float


@dataclass
class Server:
    """One server. `speed` returns its speed at a time: 1, or 0.1 for one that is ten times slower."""

    name: str
    speed: Callable[[float], float]
    slots: int = 32
    cache_blocks: int = 0
    _read_until: float = 0.0
    # End time of the request in each slot.
    _ends: list[float] = field(default_factory=list)
    # Cached blocks, the least recently used first.
    _cached: dict[tuple[int, ...], None] = field(default_factory=dict)

    def plan(self, request: Request, now: float) -> Plan:
        """Return the schedule of `request` if it were sent now."""
        free = sorted(self._ends)
        start = max(now, self._read_until)
        if len(free) >= self.slots:
            start = max(start, free[len(free) - self.slots])
        running = sum(end > start for end in self._ends)
        cached = 0
        for block in request.blocks[:-1]:
            if block not in self._cached:
                break
            cached += 1
        kb = (len(request.blocks) - cached) * BLOCK / 1024
        speed = self.speed(start)
        reading = (BASE_S + PER_KB_S * kb) * request.noise * (1 + INTERFERENCE * running) / speed
        first = start + reading
        return Plan(first, first + request.tokens * TOKEN_S / speed, cached * BLOCK / 1024)

    def send(self, request: Request, now: float) -> Plan:
        """Enqueue `request`."""
        while self._ends and self._ends[0] <= now:
            heapq.heappop(self._ends)
        plan = self.plan(request, now)
        self._read_until = plan.first_token
        heapq.heappush(self._ends, plan.end)
        # The end of a prompt is evicted before its beginning, as in vLLM.
        for block in reversed(request.blocks) if self.cache_blocks else ():
            self._cached.pop(block, None)
            self._cached[block] = None
        while len(self._cached) > self.cache_blocks:
            del self._cached[next(iter(self._cached))]
        return plan
