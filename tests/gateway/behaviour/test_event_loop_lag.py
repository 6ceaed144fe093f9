"""The gateway itself is held up for a while, as on a machine that has too much to do: no backend is blamed for it."""

import asyncio
import time

import pytest

from gateway.backends.adaptive_timeouts import LATE_S, loop_lagged
from tests.gateway.behaviour.test_faults import settled
from tests.gateway.conftest import StartBackend, StartGateway

# A limit that a running process keeps easily, and for how long this one stands still, in seconds.
LIMIT_S = 2.0
STANDS_S = 2.0 + 1.5 * LATE_S


def test_timeout_is_inconclusive_after_loop_lag() -> None:
    assert not loop_lagged(2.0, 2.0)
    assert not loop_lagged(2.0 + LATE_S / 2, 2.0)
    assert loop_lagged(2.0 + 2 * LATE_S, 2.0)


@pytest.mark.parametrize("limit", ["connect_timeout", "poll_timeout", "first_byte_timeout"])
async def test_event_loop_lag_fails_no_request(
    start_backend: StartBackend, start_gateway: StartGateway, limit: str
) -> None:
    """Connections, probes and responses that timed out meanwhile get a second chance."""
    one, two = await start_backend("one", ttft=0.05), await start_backend("two", ttft=0.05)
    gateway = await start_gateway(one, two, max_attempts=1, **{"poll_interval": 0.05, limit: LIMIT_S})
    states: set[str] = set()
    gateway.context.backends.on_change(lambda: states.update(one.state for one in gateway.context.backends))
    asked = [asyncio.create_task(gateway.chat("qwen", stream=bool(number % 2))) for number in range(40)]
    await gateway.until(lambda: gateway.context.metrics.relaying > 0)
    time.sleep(STANDS_S)  # noqa: ASYNC251  # the stall itself, not a wait for anything
    answers = await asyncio.gather(*asked)
    assert [answer.status_code for answer in answers] == [200] * 40
    assert states <= {"healthy"}
    await gateway.until(lambda: settled(gateway))
