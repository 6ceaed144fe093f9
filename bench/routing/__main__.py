"""`python -m bench.routing`: six scenarios in simulated time, then the straggler scenario over real sockets."""

import argparse
import logging
import statistics

import structlog

from bench.harness.options import at_least
from bench.harness.report import last_line, quantile, table
from bench.routing.live import run_live, simulated
from bench.routing.scenarios import (
    ALL,
    OBJECTIVE_S,
    ORACLE,
    POLICIES,
    PREFIX_ONLY,
    SHARING,
    prefix_figures,
    straggler_figures,
)
from bench.routing.simulation import Outcome

SHARES = (0.5, 0.99)
# Fewer requests have no p99 and share no prefixes.
MIN_REQUESTS = 100


def main() -> None:
    """Print the tables, and the figures as the last line."""
    parser = argparse.ArgumentParser(prog="python -m bench.routing", description=__doc__)
    parser.add_argument("--requests", type=at_least(MIN_REQUESTS), default=8_000, help="requests per simulated run")
    parser.add_argument("--seeds", type=at_least(1), default=3, help="simulated runs per scenario")
    parser.add_argument("--live-requests", type=at_least(0), default=300, help="requests per real run; 0 for none")
    parser.add_argument("--live-rounds", type=at_least(1), default=3, help="real runs per proxy")
    options = parser.parse_args()
    # Log events of the simulated backends are meaningless here.
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    seeds = range(1, options.seeds + 1)
    _show_simulated(options.requests, list(seeds))
    if options.live_requests:
        _show_live(options.live_requests, options.live_rounds)
    figures = straggler_figures(options.requests, seeds) | prefix_figures(options.requests, seeds)
    print(last_line("routing", figures))


def _show_simulated(requests: int, seeds: list[int]) -> None:
    print(f"Simulated: {requests} requests in bursts, medians of {len(seeds)} runs; good is within {OBJECTIVE_S:g} s")
    rows: list[list[object]] = []
    for scenario in ALL:
        sharing = scenario in SHARING
        for policy in POLICIES:
            if policy == PREFIX_ONLY and not sharing:
                continue
            runs = [scenario.run(policy, requests, seed) for seed in seeds]
            rows.append([scenario.name, policy, *_columns(runs, sharing=sharing)])
    print(table(["scenario", "policy", "p50 ms", "p99 ms", "good %", "cached %", "imbalance"], rows))


def _columns(runs: list[Outcome], *, sharing: bool) -> list[object]:
    return [
        statistics.median(run.quantile(0.5) for run in runs) * 1000,
        statistics.median(run.quantile(0.99) for run in runs) * 1000,
        statistics.median(run.within(OBJECTIVE_S) for run in runs) * 100,
        statistics.median(run.hits for run in runs) * 100 if sharing else 0.0,
        max(run.imbalance for run in runs),
    ]


def _show_live(requests: int, rounds: int) -> None:
    print(f"\nReal: one of four servers is 10 x slower, {rounds} rounds of {requests} requests, interleaved")
    taken = run_live(requests, rounds, print)
    rows: list[list[object]] = []
    for name, times in taken.items():
        both = (times, simulated(name, requests, rounds))
        rows.append([name, *(quantile(one, share) * 1000 for one in both for share in SHARES)])
    print(table(["proxy", "p50 ms", "p99 ms", "simulated p50", "simulated p99"], rows))
    oracle = [quantile(simulated(ORACLE, requests, rounds), share) * 1000 for share in SHARES]
    print(f"An oracle, simulated: p50 {oracle[0]:.0f} ms, p99 {oracle[1]:.0f} ms\n")


if __name__ == "__main__":
    main()
