"""What happens when failed requests speak against most backends of a model at once."""

import asyncio

import pytest

from gateway.breaker import IN_A_ROW
from tests.gateway.conftest import StartBackend, StartGateway
from tests.gateway.test_faults import settled


@pytest.mark.parametrize("doubted", [1, 2, 3])
async def test_the_doubted_count_where_few_are_left(
    start_backend: StartBackend, start_gateway: StartGateway, doubted: int
) -> None:
    """Of four backends, those with open breakers get nothing while half are left; with fewer they answer, and close."""
    backends = [await start_backend(f"b{index}") for index in range(4)]
    gateway = await start_gateway(*backends, poll_interval=60)
    for backend in backends[:doubted]:
        for _ in range(IN_A_ROW):
            gateway.backend(backend.name).failed("http_503", "503")
    for number in range(80):
        assert (await gateway.chat("qwen", user=str(number))).status_code == 200
    states = [gateway.backend(backend.name).state for backend in backends]
    if doubted < 3:
        assert states == ["unhealthy"] * doubted + ["healthy"] * (4 - doubted)
        assert not any(backend.requests for backend in backends[:doubted])
    else:
        # As soon as half are well again, the others wait for their canaries.
        assert states.count("healthy") >= 2
    await gateway.until(lambda: settled(gateway))


async def test_last_one_left_begins_to_fail(start_backend: StartBackend, start_gateway: StartGateway) -> None:
    """Three of four were doubted and are well; when the last one fails everything, nothing is lost."""
    backends = [await start_backend(f"b{index}") for index in range(4)]
    gateway = await start_gateway(*backends, poll_interval=60)
    for backend in backends[:3]:
        for _ in range(IN_A_ROW):
            gateway.backend(backend.name).failed("http_503", "503")
    backends[3].switches.reset = True
    for _ in range(10):
        answers = await asyncio.gather(*(gateway.chat("qwen", user=str(number)) for number in range(20)))
        assert {answer.status_code for answer in answers} == {200}
    assert gateway.backend("b3").state == "unhealthy"
    await gateway.until(lambda: settled(gateway))
