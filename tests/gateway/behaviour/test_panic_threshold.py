"""Most backends of a model are ejected at once."""

import asyncio
import dataclasses
from typing import Any

import pytest

from gateway.backends.circuit_breaker import MAX_CONSECUTIVE_FAILURES
from tests.gateway.behaviour.test_faults import settled
from tests.gateway.conftest import StartBackend, StartGateway


@pytest.mark.parametrize("doubted", [1, 3, 4])
async def test_backends_with_open_breaker_are_used_only_as_last_resort(
    start_backend: StartBackend, start_gateway: StartGateway, doubted: int
) -> None:
    backends = [await start_backend(f"b{index}") for index in range(4)]
    gateway = await start_gateway(*backends, poll_interval=60)
    for backend in backends[:doubted]:
        for _ in range(MAX_CONSECUTIVE_FAILURES):
            gateway.backend(backend.name).record_failure("http_503", "503")
    for number in range(80):
        assert (await gateway.chat("qwen", user=str(number))).status_code == 200
    states = [gateway.backend(backend.name).state for backend in backends]
    if doubted < 4:
        assert states == ["unhealthy"] * doubted + ["healthy"] * (4 - doubted)
        assert not any(backend.requests for backend in backends[:doubted])
    else:
        # As soon as one is well again, the others wait for their canaries.
        assert "healthy" in states
    await gateway.until(lambda: settled(gateway))


async def test_failure_of_the_last_healthy_backend_loses_nothing(
    start_backend: StartBackend, start_gateway: StartGateway
) -> None:
    """The other three have recovered."""
    backends = [await start_backend(f"b{index}") for index in range(4)]
    gateway = await start_gateway(*backends, poll_interval=60)
    for backend in backends[:3]:
        for _ in range(MAX_CONSECUTIVE_FAILURES):
            gateway.backend(backend.name).record_failure("http_503", "503")
    backends[3].switches.reset = True
    for _ in range(10):
        answers = await asyncio.gather(*(gateway.chat("qwen", user=str(number)) for number in range(20)))
        assert {answer.status_code for answer in answers} == {200}
    assert gateway.backend("b3").state == "unhealthy"
    await gateway.until(lambda: settled(gateway))


@pytest.mark.parametrize("fault", [{"fail_rate": 1.0, "fail_status": 503}, {"hang": True}])
async def test_failing_requests_are_retried_on_ejected_backends(
    start_backend: StartBackend, start_gateway: StartGateway, fault: dict[str, Any]
) -> None:
    backends = [await start_backend(f"b{index}") for index in range(4)]
    gateway = await start_gateway(*backends, poll_interval=60, first_byte_timeout=0.5)
    for backend in backends[:2]:
        for _ in range(MAX_CONSECUTIVE_FAILURES):
            gateway.backend(backend.name).record_failure("http_503", "503")
    for backend in backends[2:]:
        backend.switches = dataclasses.replace(backend.switches, **fault)
    answer = await gateway.chat("qwen")
    assert answer.status_code == 200
    assert answer.headers["x-attempts"] == "3"
    assert answer.headers["x-served-by"] in ("b0", "b1")
    await gateway.until(lambda: settled(gateway))


async def test_slow_backend_is_preferred_to_an_ejected_one(
    start_backend: StartBackend, start_gateway: StartGateway
) -> None:
    slow, doubted = await start_backend("slow"), await start_backend("doubted")
    gateway = await start_gateway(slow, doubted, poll_interval=60, first_byte_floor=0.1)
    for _ in range(3):
        assert (await gateway.chat("qwen", stream=True)).status_code == 200
    for _ in range(MAX_CONSECUTIVE_FAILURES):
        gateway.backend("doubted").record_failure("http_503", "503")
    slow.switches.ttft = 0.6
    sent = len(doubted.requests)
    answer = await gateway.chat("qwen", stream=True)
    assert answer.headers["x-served-by"] == "slow"
    assert len(doubted.requests) == sent


async def test_failing_backend_stays_ejected_when_few_are_left(
    start_backend: StartBackend, start_gateway: StartGateway
) -> None:
    """Failing is fast: it would attract requests and use up retries."""
    backends = [await start_backend(f"b{index}", ttft=0.02) for index in range(4)]
    gateway = await start_gateway(*backends, poll_interval=60)
    for backend in backends[:2]:
        for _ in range(MAX_CONSECUTIVE_FAILURES):
            gateway.backend(backend.name).record_failure("http_503", "503")
    liar = backends[3]
    liar.switches = dataclasses.replace(liar.switches, fail_rate=1.0, fail_status=503)

    async def client() -> set[int]:
        return {(await gateway.chat("qwen")).status_code for _ in range(20)}

    assert set().union(*await asyncio.gather(*(client() for _ in range(10)))) == {200}
    assert gateway.backend(liar.name).state == "unhealthy"
    assert len(liar.requests) < 50
    await gateway.until(lambda: settled(gateway))
