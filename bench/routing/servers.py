"""Simulated model servers: prompts are read one after the other, answers are generated side by side.

That is what a server with continuous batching does, in the large. What happens to a request is known when it is put
into the queue, so that an oracle can ask.
"""

import heapq
from collections.abc import Callable
from dataclasses import dataclass, field

from bench.routing.workload import BLOCK, Request

# Seconds that a server of speed 1 takes for any prompt, for each KB of it, and for each token of the answer.
BASE_S = 0.02
PER_KB_S = 0.02
TOKEN_S = 0.02
# How much each answer being generated slows the reading of prompts.
INTERFERENCE = 0.01


@dataclass(slots=True)
class Plan:
    """What will happen to a request, in simulated time."""

    first_token: float
    end: float
    cached_kb: float


@dataclass
class Server:
    """One server. `speed` tells how fast it is at a time: 1, or 0.1 for one that is ten times slower."""

    name: str
    speed: Callable[[float], float]
    slots: int = 32
    cache_blocks: int = 0
    _read_until: float = 0.0
    # When each request in a slot ends.
    _ends: list[float] = field(default_factory=list)
    # The blocks whose work is kept, the least recently used first.
    _cached: dict[tuple[int, ...], None] = field(default_factory=dict)

    def plan(self, request: Request, now: float) -> Plan:
        """What would happen to `request` if it were sent now."""
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
        """Put `request` into the queue."""
        while self._ends and self._ends[0] <= now:
            heapq.heappop(self._ends)
        plan = self.plan(request, now)
        self._read_until = plan.first_token
        heapq.heappush(self._ends, plan.end)
        # The end of a prompt is given up before its beginning, as vLLM does.
        for block in reversed(request.blocks) if self.cache_blocks else ():
            self._cached.pop(block, None)
            self._cached[block] = None
        while len(self._cached) > self.cache_blocks:
            del self._cached[next(iter(self._cached))]
        return plan
