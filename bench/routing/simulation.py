"""One simulated run: requests arrive, a policy routes each to a server, time passes."""

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
    """Results of a run. Times to first token in seconds, in the order of arrival."""

    ttft: list[float] = field(default_factory=list)
    # Per server: requests, KB of prompts (cached or not), and the time integral of requests in flight.
    requests: list[int] = field(default_factory=list)
    in_flight_s: list[float] = field(default_factory=list)
    prompt_kb: float = 0.0
    cached_kb: float = 0.0

    def quantile(self, share: float) -> float:
        """Return the quantile of the times to first token."""
        return quantile(self.ttft, share)

    def within(self, seconds: float) -> float:
        """Return the share of requests with a first token within `seconds`."""
        return sum(one <= seconds for one in self.ttft) / len(self.ttft)

    @property
    def hits(self) -> float:
        """Share of all prompts' KB that were cached."""
        return self.cached_kb / self.prompt_kb

    @property
    def imbalance(self) -> float:
        """Requests in flight at the most loaded server over the mean, both averaged over the run."""
        return max(self.in_flight_s) / statistics.mean(self.in_flight_s)


def simulate(requests: Sequence[Request], servers: Sequence[Server], policy: Policy) -> Outcome:
    """Run all requests to their end."""
    outcome = Outcome(requests=[0] * len(servers), in_flight_s=[0.0] * len(servers))
    # (time, event, order): event 0 is an end, 1 a first token; both come before an arrival at the same time.
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
