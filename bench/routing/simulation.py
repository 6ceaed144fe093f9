"""One run: requests arrive, a policy sends each to a server, time passes."""

import heapq
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field

from bench.harness.report import quantile
from bench.routing.policies import Policy
from bench.routing.servers import Server
from bench.routing.workload import Request


@dataclass
class Outcome:
    """What a run has shown. Times to the first token are in seconds, in the order of arrival."""

    ttft: list[float] = field(default_factory=list)
    # Per server: requests, KB to read (cached or not), and the integral of requests in flight over time.
    requests: list[int] = field(default_factory=list)
    in_flight_s: list[float] = field(default_factory=list)
    prompt_kb: float = 0.0
    cached_kb: float = 0.0

    def quantile(self, share: float) -> float:
        """The time to the first token that this share of all requests keeps."""
        return quantile(self.ttft, share)

    def within(self, seconds: float) -> float:
        """The share of requests whose first token came within so many seconds."""
        return sum(one <= seconds for one in self.ttft) / len(self.ttft)

    @property
    def hits(self) -> float:
        """The share of all prompts' KB that some server had read before."""
        return self.cached_kb / self.prompt_kb

    @property
    def imbalance(self) -> float:
        """Requests in flight at the most loaded server over the mean, both averaged over the run."""
        return max(self.in_flight_s) / statistics.mean(self.in_flight_s)


def simulate(requests: Sequence[Request], servers: Sequence[Server], policy: Policy) -> Outcome:
    """Run all requests to their end."""
    outcome = Outcome(requests=[0] * len(servers), in_flight_s=[0.0] * len(servers))
    # (time, what, order): what is 0 for an end and 1 for a first token, both before an arrival at the same time.
    events: list[tuple[float, int, int, int]] = []

    def pass_time(until: float) -> None:
        while events and events[0][0] <= until:
            at, what, index, server = heapq.heappop(events)
            if what:
                policy.first_token(requests[index], at)
            else:
                policy.ended(requests[index], server, at)

    for index, request in enumerate(requests):
        pass_time(request.at)
        number = policy.choose(request, request.at)
        plan = servers[number].send(request, request.at)
        heapq.heappush(events, (plan.first_token, 1, index, number))
        heapq.heappush(events, (plan.end, 0, index, number))
        outcome.ttft.append(plan.first_token - request.at)
        outcome.requests[number] += 1
        outcome.in_flight_s[number] += plan.end - request.at
        outcome.prompt_kb += request.kb
        outcome.cached_kb += plan.cached_kb
    pass_time(math.inf)
    return outcome
