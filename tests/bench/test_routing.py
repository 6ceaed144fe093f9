"""The router against an oracle, in simulated time: nothing here depends on how fast the machine is."""

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


def test_a_straggler_costs_little() -> None:
    """With one backend of four ten times slower, also suddenly, the router is nearly as good as who knows all."""
    figures = straggler_figures(REQUESTS, seeds=(1, 2, 3))
    assert figures["straggler_p99_vs_oracle"] <= 1.25
    assert figures["straggler_goodput"] >= 0.99


def test_others_fall_behind() -> None:
    """The situation is no easy one: without knowledge of the backends a tenth of all requests and more come late."""
    assert STRAGGLER.run("round robin", REQUESTS, 1).within(OBJECTIVE_S) < 0.9
    oracle = STRAGGLER.run(ORACLE, REQUESTS, 1).quantile(0.99)
    assert STRAGGLER.run("least request", REQUESTS, 1).quantile(0.99) > 3 * oracle


def test_shared_beginnings_are_read_once() -> None:
    """Requests that begin alike go where that was read, as with routing by prefix alone, and no backend is overrun."""
    figures = prefix_figures(REQUESTS, seeds=(1, 2, 3))
    assert figures["prefix_hits_vs_prefix_only"] >= 0.9
    assert figures["prefix_max_imbalance"] <= 1.3


def test_affinity_is_what_saves() -> None:
    """Without affinity the same requests find much less in the caches."""
    assert PREFIXES.run(OURS, REQUESTS, 1).hits > 1.2 * PREFIXES.run("least request", REQUESTS, 1).hits


@pytest.mark.parametrize("scenario", [MIXED, MANY, SUDDEN], ids=lambda scenario: scenario.name)
def test_better_than_counting(scenario: Scenario) -> None:
    """Where backends differ, the 99th percentile is well below that of the fewest requests in flight."""
    ours = scenario.run(OURS, REQUESTS, 1).quantile(0.99)
    counting = scenario.run("least request", REQUESTS, 1).quantile(0.99)
    assert ours < 0.7 * counting


def test_a_server_reads_in_turn_and_keeps_what_it_read() -> None:
    """The simulated server: a second request waits for the first, and what begins alike costs only the rest."""
    server = Server("a", lambda _now: 1.0, cache_blocks=100)
    blocks = tuple((0, 0, number) for number in range(8))
    first = server.send(Request(0.0, (*blocks, (1, 1)), 10, 1.0), 0.0)
    second = server.send(Request(0.0, (*blocks, (1, 2)), 10, 1.0), 0.0)
    assert first.cached_kb == 0
    assert second.cached_kb == 4
    assert second.first_token - first.first_token < first.first_token / 2
    assert first.first_token == pytest.approx(0.02 + 0.02 * 4.5)


def test_a_full_server_makes_wait() -> None:
    """With all slots taken a request waits for the first to end."""
    server = Server("a", lambda _now: 1.0, slots=1)
    first = server.send(Request(0.0, ((1,),), 100, 1.0), 0.0)
    assert server.plan(Request(0.1, ((2,),), 1, 1.0), 0.1).first_token > first.end


def test_arrivals_are_repeatable_and_in_order() -> None:
    """One seed is one run; the mean rate is what was asked for, bursts and turns included."""
    shape = Shape(4000, rate=10.0, turns=2, groups=3, group_blocks=2)
    requests = arrivals(shape, 7)
    assert requests == arrivals(shape, 7)
    assert requests != arrivals(shape, 8)
    times = [request.at for request in requests]
    assert times == sorted(times)
    assert 7 < len(times) / times[-1] < 13


async def test_the_live_server_is_the_simulated_one() -> None:
    """The server of the real runs answers as the gateway expects, and reads one prompt after the other."""
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
