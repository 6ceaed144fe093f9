"""The router against an oracle, in simulated time, independent of the machine's speed."""

import asyncio

import httpx2
import pytest

from bench.routing.live_server import MODEL, LiveServer
from bench.routing.scenarios import (
    MANY,
    MIXED,
    OBJECTIVE_S,
    ORACLE,
    OURS,
    PREFIXES,
    STRAGGLER,
    SUDDEN,
    Scenario,
    prefix_figures,
    straggler_figures,
)
from bench.routing.servers import Server
from bench.routing.workload import Request, Shape, arrivals

REQUESTS = 2000


def test_straggler_costs_little() -> None:
    """With one of four backends ten times slower, also suddenly, the router is nearly as good as the oracle."""
    figures = straggler_figures(REQUESTS, seeds=(1, 2, 3))
    assert figures["straggler_p99_vs_oracle"] <= 1.25
    assert figures["straggler_goodput"] >= 0.99


def test_simple_policies_miss_the_objective() -> None:
    """Without knowledge of the backends a tenth of all requests and more miss the objective."""
    assert STRAGGLER.run("round robin", REQUESTS, 1).within(OBJECTIVE_S) < 0.9
    oracle = STRAGGLER.run(ORACLE, REQUESTS, 1).quantile(0.99)
    assert STRAGGLER.run("least request", REQUESTS, 1).quantile(0.99) > 3 * oracle


def test_shared_prefixes_are_cached_once() -> None:
    """As with prefix-only routing, and no backend is overloaded."""
    figures = prefix_figures(REQUESTS, seeds=(1, 2, 3))
    assert figures["prefix_hits_vs_prefix_only"] >= 0.9
    assert figures["prefix_max_imbalance"] <= 1.3


def test_cache_hits_come_from_affinity() -> None:
    assert PREFIXES.run(OURS, REQUESTS, 1).hits > 1.2 * PREFIXES.run("least request", REQUESTS, 1).hits


@pytest.mark.parametrize("scenario", [MIXED, MANY, SUDDEN], ids=lambda scenario: scenario.name)
def test_p99_is_better_than_least_request(scenario: Scenario) -> None:
    """Where backends differ, p99 is well below that of the fewest requests in flight."""
    ours = scenario.run(OURS, REQUESTS, 1).quantile(0.99)
    least = scenario.run("least request", REQUESTS, 1).quantile(0.99)
    assert ours < 0.7 * least


def test_server_processes_prompts_in_turn_and_caches_prefixes() -> None:
    server = Server("a", lambda _now: 1.0, cache_blocks=100)
    blocks = tuple((0, 0, number) for number in range(8))
    first = server.send(Request(0.0, (*blocks, (1, 1)), 10, 1.0), 0.0)
    second = server.send(Request(0.0, (*blocks, (1, 2)), 10, 1.0), 0.0)
    assert first.cached_kb == 0
    assert second.cached_kb == 4
    assert second.first_token - first.first_token < first.first_token / 2
    assert first.first_token == pytest.approx(0.02 + 0.02 * 4.5)


def test_request_waits_for_a_free_slot() -> None:
    server = Server("a", lambda _now: 1.0, slots=1)
    first = server.send(Request(0.0, ((1,),), 100, 1.0), 0.0)
    assert server.plan(Request(0.1, ((2,),), 1, 1.0), 0.1).first_token > first.end


def test_arrivals_are_repeatable_and_ordered() -> None:
    """The mean rate is the configured one, bursts and turns included."""
    shape = Shape(4000, rate=10.0, turns=2, groups=3, group_blocks=2)
    requests = arrivals(shape, 7)
    assert requests == arrivals(shape, 7)
    assert requests != arrivals(shape, 8)
    times = [request.at for request in requests]
    assert times == sorted(times)
    assert 7 < len(times) / times[-1] < 13


async def test_live_server_matches_the_simulated_one() -> None:
    live, served = LiveServer(100.0), []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        served.append(task)
        await live.serve(reader, writer)

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        base = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        async with httpx2.AsyncClient(base_url=base, trust_env=False, verify=False) as client:
            assert (await client.get("/health")).json()["model"] == MODEL
            answers = await asyncio.gather(
                *(client.post("/v1/chat/completions", json={"max_tokens": 1, "n": n}) for n in range(3))
            )
        await asyncio.gather(*served)
    assert [answer.text for answer in answers] == ['data: {"n": 0}\n\ndata: [DONE]\n\n'] * 3
