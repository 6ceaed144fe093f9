"""Stall detection: a hung backend loses its requests and gets them back, a slow one keeps them."""

import asyncio
import dataclasses
from typing import Any

import pytest

from tests.gateway.backends.test_adaptive_timeouts import learn
from tests.gateway.behaviour.test_faults import settled
from tests.gateway.conftest import StartBackend, StartGateway
from tests.gateway.running import HANG_S, RunningGateway, post
from tests.support.backends.openai_backend import FakeBackend

# Frequent probes and a short silence until a backend is stuck; no timeout of a request comes before.
FAST: dict[str, Any] = {"poll_interval": 0.05, "stuck_after": 0.3}


def states_of(gateway: RunningGateway, name: str) -> list[str]:
    """The states that the backend has from now on, filled while time passes."""
    backend = gateway.backend(name)
    states = [str(backend.state)]
    gateway.context.backends.on_change(lambda: states.append(str(backend.state)))
    return states


async def begin(gateway: RunningGateway, *backends: FakeBackend, stream: bool) -> asyncio.Task[Any]:
    """Send requests until one is pending at the first of `backends`, which does not respond; return it."""
    first = backends[0]
    seen = len(first.requests)
    async with asyncio.timeout(HANG_S):
        while True:
            asked = asyncio.create_task(gateway.chat("qwen", stream=stream))
            await gateway.until(lambda asked=asked: asked.done() or len(first.requests) > seen)
            if not asked.done():
                return asked


@pytest.mark.parametrize("stream", [True, False])
async def test_hung_backend_is_stuck_until_a_canary_succeeds(
    start_backend: StartBackend, start_gateway: StartGateway, stream: bool
) -> None:
    """Probes pass, metrics do not change: its request moves to another backend."""
    hung, good = await start_backend("hung", counts="stalled"), await start_backend("good")
    gateway = await start_gateway(hung, good, **FAST, timing={"canary_s": 0.2})
    hung.switches.hang = True
    asked = await begin(gateway, hung, stream=stream)
    backend = gateway.backend("hung")
    await gateway.until(lambda: backend.state == "stuck")
    answer = await asyncio.wait_for(asked, HANG_S)
    assert answer.status_code == 200
    assert answer.headers["x-served-by"] == "good"
    assert answer.headers["x-attempts"] == "2"
    shown = (await gateway.http.get("/services")).json()["services"]["hung"]
    assert shown["state"] == "stuck"
    assert "sent no byte and its metrics showed no progress" in shown["last_error"]
    # While it hangs, it gets canaries only.
    await gateway.until(lambda: hung.requests[-1].json.get("max_tokens") == 1)
    assert (await gateway.chat("qwen")).headers["x-attempts"] == "1"
    hung.switches.hang = False
    await gateway.until(lambda: backend.state == "healthy")
    assert backend.health.ejections == {"stuck": 1}
    await gateway.until(lambda: settled(gateway))


async def test_progress_in_metrics_prevents_stuck(start_backend: StartBackend, start_gateway: StartGateway) -> None:
    """A long prompt: no byte for many times the limit."""
    slow = await start_backend("slow", counts="steps", ttft=1.5)
    gateway = await start_gateway(slow, **FAST)
    states = states_of(gateway, "slow")
    answer = await gateway.chat("qwen", stream=True)
    assert answer.status_code == 200
    assert set(states) == {"healthy"}
    assert slow.looks > 2
    assert gateway.backend("slow").engine_queue.progress_at > 0.0


@pytest.mark.parametrize(("counts", "stream"), [("no", True), ("no", False), ("pieces", True)])
async def test_unmeasured_backend_without_steps_is_never_stuck(
    start_backend: StartBackend, start_gateway: StartGateway, counts: str, stream: bool
) -> None:
    slow = await start_backend("slow", counts=counts, ttft=1.0)
    gateway = await start_gateway(slow, **FAST)
    states = states_of(gateway, "slow")
    assert (await gateway.chat("qwen", stream=stream)).status_code == 200
    assert set(states) == {"healthy"}


async def test_known_latency_suffices_without_metrics(start_backend: StartBackend, start_gateway: StartGateway) -> None:
    hung, good = await start_backend("hung"), await start_backend("good")
    gateway = await start_gateway(hung, good, **FAST)
    await learn(gateway)
    hung.switches.hang = True
    asked = await begin(gateway, hung, stream=True)
    await gateway.until(lambda: gateway.backend("hung").state == "stuck")
    assert (await asyncio.wait_for(asked, HANG_S)).headers["x-served-by"] == "good"


async def test_unstreamed_response_excuses_silence_without_metrics(
    start_backend: StartBackend, start_gateway: StartGateway
) -> None:
    slow = await start_backend("slow")
    gateway = await start_gateway(slow, **FAST)
    await learn(gateway)
    slow.switches.ttft = 1.0
    states = states_of(gateway, "slow")
    answers = await asyncio.gather(gateway.chat("qwen"), gateway.chat("qwen", stream=True))
    assert [answer.status_code for answer in answers] == [200, 200]
    assert set(states) == {"healthy"}


async def test_stalled_stream_of_the_only_backend_resumes(
    start_backend: StartBackend, start_gateway: StartGateway
) -> None:
    """It is stuck, keeps the stream, and is healthy again with the next token."""
    backend = await start_backend("only", counts="stalled", gated=True)
    gateway = await start_gateway(backend, **FAST)
    asked = asyncio.create_task(gateway.chat("qwen", stream=True))
    await gateway.until(lambda: gateway.backend("only").state == "stuck")
    assert gateway.backend("only").traffic.in_flight == 1
    refused = await gateway.chat("qwen")
    assert refused.status_code == 503
    assert "only is stuck" in refused.json()["error"]["message"]
    backend.gate.release()
    await gateway.until(lambda: gateway.backend("only").state == "healthy")
    for _ in range(10):
        backend.gate.release()
    assert (await asyncio.wait_for(asked, HANG_S)).status_code == 200
    assert len(backend.requests) == 1


async def test_slow_client_does_not_make_a_backend_stuck(
    start_backend: StartBackend, start_gateway: StartGateway
) -> None:
    backend = await start_backend("only", counts="stalled", pad=30_000_000)
    gateway = await start_gateway(backend, **FAST)
    states = states_of(gateway, "only")
    _, writer = await gateway.raw()
    assert isinstance(writer.transport, asyncio.Transport)
    writer.transport.pause_reading()
    writer.write(post({"model": "qwen", "messages": []}))
    await gateway.until(lambda: gateway.backend("only").pool.paused_count == 1)
    polls = backend.polls
    # Twice the bound, at the least.
    await gateway.until(lambda: backend.polls > polls + 16)
    assert set(states) == {"healthy"}
    writer.transport.abort()
    await gateway.until(lambda: settled(gateway))


async def test_metrics_are_requested_only_during_silence(
    start_backend: StartBackend, start_gateway: StartGateway
) -> None:
    backend = await start_backend("only", counts="steps")
    gateway = await start_gateway(backend, poll_interval=0.05)
    polls = backend.polls
    while backend.polls < polls + 10:
        assert (await gateway.chat("qwen", stream=True)).status_code == 200
    assert backend.looks == 0


async def test_queue_length_prefers_the_engine_metrics(
    start_backend: StartBackend, start_gateway: StartGateway
) -> None:
    backend = await start_backend("only", hang=True)
    gateway = await start_gateway(backend, **FAST)

    async def queued() -> Any:
        return (await gateway.http.get("/services")).json()["services"]["only"]["queued"]

    asked = [asyncio.create_task(gateway.chat("qwen", stream=True)) for _ in range(3)]
    await backend.wait_for(3)
    assert await queued() == 3
    assert 'gateway_backend_queued{backend="only"} 3.0' in (await gateway.http.get("/metrics")).text
    backend.switches = dataclasses.replace(backend.switches, counts="steps", waiting=7)
    await gateway.until(lambda: gateway.backend("only").queued == 7)
    assert await queued() == 7
    for one in asked:
        one.cancel()
    await asyncio.gather(*asked, return_exceptions=True)


async def test_unstreamed_response_may_exceed_the_timeout_while_engine_steps_increase(
    start_backend: StartBackend, start_gateway: StartGateway
) -> None:
    backend = await start_backend("only", counts="steps", ttft=2.5)
    gateway = await start_gateway(backend, first_byte_timeout=1.0, **FAST)
    assert (await gateway.chat("qwen")).status_code == 200


async def test_check_is_scheduled_for_the_end_of_the_limit(
    start_backend: StartBackend, start_gateway: StartGateway
) -> None:
    """Not at the next probe, in five minutes."""
    hung, good = await start_backend("hung", counts="stalled"), await start_backend("good")
    gateway = await start_gateway(hung, good, poll_interval=300, stuck_after=0.3)
    hung.switches.hang = True
    asked = await begin(gateway, hung, stream=True)
    gateway.backend("hung").probe_soon()
    await gateway.until(lambda: gateway.backend("hung").state == "stuck")
    assert (await asyncio.wait_for(asked, HANG_S)).headers["x-served-by"] == "good"


async def test_unresponsive_backend_is_stuck_sooner(start_backend: StartBackend, start_gateway: StartGateway) -> None:
    """Neither probes nor metrics respond, streams stall: a stopped process."""
    mute, good = await start_backend("mute", rate=100.0), await start_backend("good", rate=100.0)
    gateway = await start_gateway(
        mute, good, poll_interval=0.05, poll_timeout=0.2, stuck_after=600, timing={"unresponsive_s": 0.3}
    )
    await learn(gateway)
    states = states_of(gateway, "mute")
    mute.switches.hang_after = 1
    asked = await begin(gateway, mute, stream=True)
    mute.switches = dataclasses.replace(mute.switches, health="silent", counts="silent")
    await gateway.until(lambda: "stuck" in states)
    answer = await asyncio.wait_for(asked, HANG_S)
    assert answer.text.endswith("data: [DONE]\n\n")
    assert good.requests[-1].json["continue_final_message"]
    # Probes get no response: it is down.
    await gateway.until(lambda: gateway.backend("mute").state == "unhealthy")
    mute.switches = dataclasses.replace(mute.switches, hang_after=None, health="healthy", counts="no")
    await gateway.until(lambda: gateway.backend("mute").state == "healthy")
    await gateway.until(lambda: settled(gateway))


async def test_unresponsive_backend_with_unstreamed_requests_is_busy(
    start_backend: StartBackend, start_gateway: StartGateway
) -> None:
    busy, other = await start_backend("busy"), await start_backend("other")
    gateway = await start_gateway(
        busy, other, poll_interval=0.05, poll_timeout=0.2, stuck_after=600, timing={"unresponsive_s": 0.3}
    )
    await learn(gateway)
    busy.switches.hang = True
    asked = await begin(gateway, busy, stream=False)
    states = states_of(gateway, "busy")
    busy.switches = dataclasses.replace(busy.switches, health="silent", counts="silent")
    # More requests without a response than three probes and one query of the metrics.
    polls = busy.polls
    await gateway.until(lambda: busy.polls > polls + 8)
    assert set(states) == {"healthy", "busy"}
    asked.cancel()
    await gateway.until(lambda: settled(gateway))
