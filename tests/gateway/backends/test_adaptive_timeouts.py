"""Adaptive timeouts for the first and the next byte, and failover when they expire."""

import asyncio
import dataclasses

import pytest

from gateway.backends.adaptive_timeouts import (
    FIRST_BYTE_FACTOR,
    NEXT_BYTE_FACTOR,
    WORKING_FACTOR,
    InterTokenGap,
    first_byte_s,
    next_byte_s,
)
from tests.gateway.behaviour.test_faults import settled
from tests.gateway.conftest import StartBackend, StartGateway
from tests.gateway.running import HANG_S, RunningGateway, error_code
from tests.support.backends.responses import tokens_of


def test_first_byte_timeout() -> None:
    """A multiple of the expected latency within floor and cap, longer while the backend works; the cap if unknown."""
    assert first_byte_s(None, 5.0, 60.0) == 60.0
    assert first_byte_s(0.01, 5.0, 60.0) == 5.0
    assert first_byte_s(2.0, 5.0, 60.0) == 2.0 * FIRST_BYTE_FACTOR
    assert first_byte_s(2.0, 5.0, 600.0, working=True) == 2.0 * FIRST_BYTE_FACTOR * WORKING_FACTOR
    assert first_byte_s(100.0, 5.0, 60.0) == 60.0


def test_next_byte_timeout() -> None:
    """A multiple of the longest gap, which decays slowly."""
    pauses = InterTokenGap()
    assert next_byte_s(pauses.longest, 1.0, 60.0) == 60.0
    pauses.observe(2.0)
    pauses.observe(0.1)
    assert pauses.longest is not None
    assert 1.9 < pauses.longest < 2.0
    assert next_byte_s(pauses.longest, 1.0, 60.0) == pauses.longest * NEXT_BYTE_FACTOR
    for _ in range(1000):
        pauses.observe(0.01)
    assert next_byte_s(pauses.longest, 1.0, 60.0) == 1.0


async def learn(gateway: RunningGateway) -> None:
    """Some streams on every backend, so that it is known how fast they are."""
    for _ in range(2 * len(gateway.context.backends)):
        assert (await gateway.chat("qwen", stream=True)).status_code == 200
    assert all(backend.load.first_token.is_known for backend in gateway.context.backends)


async def test_late_first_token_fails_over(start_backend: StartBackend, start_gateway: StartGateway) -> None:
    """A backend that begins to hang while it passes probes loses its streams after the floor."""
    first, second = await start_backend("first"), await start_backend("second")
    gateway = await start_gateway(first, second, first_byte_floor=0.1)
    await learn(gateway)
    first.switches.hang = True
    seen = len(first.requests)
    async with asyncio.timeout(HANG_S):
        while len(first.requests) == seen:
            answer = await gateway.chat("qwen", stream=True)
            assert answer.headers["x-served-by"] == "second"
    assert answer.headers["x-attempts"] == "2"
    assert list(tokens_of(answer.content)) == [0, 1, 2, 3]
    await asyncio.wait_for(first.requests[-1].gone.wait(), HANG_S)
    await gateway.until(lambda: settled(gateway))


async def test_only_backend_has_until_the_cap(start_backend: StartBackend, start_gateway: StartGateway) -> None:
    backend = await start_backend()
    gateway = await start_gateway(backend, first_byte_floor=0.05, first_byte_timeout=60)
    await learn(gateway)
    backend.switches.ttft = 1.0
    answer = await gateway.chat("qwen", stream=True)
    assert answer.headers["x-attempts"] == "1"
    assert list(tokens_of(answer.content)) == [0, 1, 2, 3]


@pytest.mark.parametrize("others", [True, False])
async def test_unstreamed_response_may_exceed_the_cap(
    start_backend: StartBackend, start_gateway: StartGateway, others: bool
) -> None:
    """While streams of its backend show that it works."""
    backend = await start_backend(ttft=1.5)
    gateway = await start_gateway(backend, first_byte_timeout=0.3)
    whole = asyncio.create_task(gateway.chat("qwen"))
    (request,) = await backend.wait_for(1)
    await gateway.until(lambda: request.begun)
    backend.switches = dataclasses.replace(backend.switches, ttft=0.0)
    if others:
        while not whole.done():
            await gateway.chat("qwen", stream=True)
    answer = await whole
    assert answer.status_code == (200 if others else 504)
    if not others:
        assert error_code(answer) == "upstream_timeout"
    await gateway.until(lambda: settled(gateway))


async def test_unstreamed_request_leaves_a_dead_host(start_backend: StartBackend, start_gateway: StartGateway) -> None:
    first, second = await start_backend("first", hang=True), await start_backend("second")
    gateway = await start_gateway(first, second, first_byte_floor=0.1, poll_timeout=0.1)
    asked = asyncio.create_task(gateway.chat("qwen"))
    await first.wait_for(1)
    first.switches.health = "silent"
    answer = await asked
    assert answer.headers["x-served-by"] == "second"
    await gateway.until(lambda: settled(gateway))


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("after", [None, 2])
async def test_stuck_backend_loses_its_requests(
    start_backend: StartBackend, start_gateway: StartGateway, stream: bool, after: int | None
) -> None:
    """Pending and stalled requests move as soon as the backend is marked as stuck."""
    fault: dict[str, object] = {"hang": True} if after is None else {"hang_after": after}
    first, second = await start_backend("first", **fault), await start_backend("second")
    gateway = await start_gateway(first, second, poll_interval=60)
    asked = asyncio.create_task(gateway.chat("qwen", stream=stream))
    await first.wait_for(1)
    backend = gateway.backend("first")
    if after is not None and stream:
        await gateway.until(lambda: backend.traffic.last_byte_at > 0.0)
    if not (after is not None and not stream):
        backend.observe("stuck", "no byte for a long time")
        assert backend.traffic.in_flight == 0
    answer = await asked
    assert answer.status_code == 200
    assert "token3" in answer.text
    await gateway.until(lambda: settled(gateway))
