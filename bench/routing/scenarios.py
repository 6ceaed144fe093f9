"""The scenarios in which the policies are compared."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bench.routing.policies import LeastRequest, Oracle, Ours, Policy, PrefixOnly, RandomChoice, RoundRobin
from bench.routing.servers import Server
from bench.routing.simulation import Outcome, simulate
from bench.routing.workload import Shape, arrivals

Make = Callable[[Sequence[Server], int], Policy]
Speed = Callable[[float], float]

# Objective for the time to first token, in seconds; goodput is the share of requests that meet it.
OBJECTIVE_S = 2.0
# Names in the tables: the gateway's router and the policies to compare it with.
OURS = "gateway"
ORACLE = "oracle"
PREFIX_ONLY = "prefix only"
POLICIES: dict[str, Make] = {
    OURS: Ours,
    ORACLE: Oracle,
    "least request": LeastRequest,
    "round robin": RoundRobin,
    "random": RandomChoice,
    PREFIX_ONLY: PrefixOnly,
}


@dataclass(frozen=True, slots=True)
class Scenario:
    """Servers and arriving requests. `shape` is sized for a number of requests."""

    name: str
    speeds: tuple[Speed, ...]
    shape: Callable[[int], Shape]
    cache_blocks: int = 0

    def run(self, policy: str, requests: int, seed: int) -> Outcome:
        """Run once in simulated time. The same seed gives every policy the same requests."""
        servers = [
            Server(f"server-{number}", speed, cache_blocks=self.cache_blocks)
            for number, speed in enumerate(self.speeds)
        ]
        return simulate(arrivals(self.shape(requests), seed), servers, POLICIES[policy](servers, seed))


def constant(speed: float) -> Speed:
    """Return a server with constant speed."""
    return lambda _now: speed


def slow_between(begin: float, end: float) -> Speed:
    """Return a server that is ten times slower for an interval, in seconds."""
    return lambda now: 0.1 if begin <= now < end else 1.0


_WELL = constant(1.0)

STRAGGLER = Scenario("one of four is 10 x slower", (_WELL, _WELL, _WELL, constant(0.1)), lambda n: Shape(n, rate=9.0))
SUDDEN = Scenario(
    "one of four becomes 10 x slower for 100 s",
    (_WELL, _WELL, _WELL, slow_between(60.0, 160.0)),
    lambda n: Shape(n, rate=9.0),
)
MIXED = Scenario(
    "four speeds: 1, 0.7, 0.5, 0.25",
    (_WELL, constant(0.7), constant(0.5), constant(0.25)),
    lambda n: Shape(n, rate=8.0),
)
MANY = Scenario("two of sixteen are 10 x slower", (_WELL,) * 14 + (constant(0.1),) * 2, lambda n: Shape(n, rate=40.0))
# 64 system prompts of 8 KB: three times what the caches of all four servers hold together.
PREFIXES = Scenario(
    "64 system prompts, four servers",
    (_WELL,) * 4,
    lambda n: Shape(n, rate=10.0, prompt_blocks=4, groups=64, group_blocks=16),
    cache_blocks=800,
)
TURNS = Scenario(
    "conversations of four turns, four servers",
    (_WELL,) * 4,
    lambda n: Shape(n, rate=12.0, prompt_blocks=4, groups=16, group_blocks=12, turns=4),
    cache_blocks=2000,
)
STRAGGLING = (STRAGGLER, SUDDEN)
SHARING = (PREFIXES, TURNS)
ALL = (STRAGGLER, SUDDEN, MIXED, MANY, PREFIXES, TURNS)


def straggler_figures(requests: int, seeds: Sequence[int]) -> dict[str, float]:
    """The worst straggler scenario: p99 relative to the oracle's in the same run, and goodput."""
    ratios, goods = [], []
    for scenario in STRAGGLING:
        pairs = [(scenario.run(OURS, requests, seed), scenario.run(ORACLE, requests, seed)) for seed in seeds]
        ratios.append(statistics.median(ours.quantile(0.99) / oracle.quantile(0.99) for ours, oracle in pairs))
        goods.append(statistics.median(ours.within(OBJECTIVE_S) for ours, _ in pairs))
    return {"straggler_p99_vs_oracle": max(ratios), "straggler_goodput": min(goods)}


def prefix_figures(requests: int, seeds: Sequence[int]) -> dict[str, float]:
    """The worst shared-prefix scenario: cache hits relative to prefix-only routing, and the highest imbalance."""
    ratios, imbalances = [], []
    for scenario in SHARING:
        pairs = [(scenario.run(OURS, requests, seed), scenario.run(PREFIX_ONLY, requests, seed)) for seed in seeds]
        ratios.append(statistics.median(ours.hits / prefix.hits for ours, prefix in pairs))
        imbalances.append(max(ours.imbalance for ours, _ in pairs))
    return {"prefix_hits_vs_prefix_only": min(ratios), "prefix_max_imbalance": max(imbalances)}
