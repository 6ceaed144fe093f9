"""Stuck is not busy: a backend that hangs loses its requests and gets them back, one that is slow keeps them."""

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
    """Ask until a request is at the first of `backends`, which does not answer; return that question."""
    first = backends[0]
    seen = len(first.requests)
    async with asyncio.timeout(HANG_S):
        while True:
            asked = asyncio.create_task(gateway.chat("qwen", stream=stream))
            await gateway.until(lambda asked=asked: asked.done() or len(first.requests) > seen)
            if not asked.done():
                return asked


@pytest.mark.parametrize("stream", [True, False])
async def test_hanging_backend_is_stuck_and_comes_back(
    start_backend: StartBackend, start_gateway: StartGateway, stream: bool
) -> None:
    """Probes pass, metrics stand still: its request moves to another backend; a canary puts it back into rotation."""
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
    # While it hangs, requests go elsewhere, and only canaries are at it.
    await gateway.until(lambda: hung.requests[-1].json.get("max_tokens") == 1)
    assert (await gateway.chat("qwen")).headers["x-attempts"] == "1"
    hung.switches.hang = False
    await gateway.until(lambda: backend.state == "healthy")
    assert backend.health.ejections == {"stuck": 1}
    await gateway.until(lambda: settled(gateway))


async def test_slow_backend_that_counts_is_not_stuck(start_backend: StartBackend, start_gateway: StartGateway) -> None:
    """A long prompt: no byte for many times the bound, but its metrics move, and so it is healthy all the time."""
    slow = await start_backend("slow", counts="steps", ttft=1.5)
    gateway = await start_gateway(slow, **FAST)
    states = states_of(gateway, "slow")
    answer = await gateway.chat("qwen", stream=True)
    assert answer.status_code == 200
    assert set(states) == {"healthy"}
    assert slow.looks > 2
    assert gateway.backend("slow").engine_queue.progress_at > 0.0


@pytest.mark.parametrize(("counts", "stream"), [("no", True), ("no", False), ("pieces", True)])
async def test_without_steps_and_learning_nobody_is_stuck(
    start_backend: StartBackend, start_gateway: StartGateway, counts: str, stream: bool
) -> None:
    """A server whose metrics show no steps, of which nothing was learnt, may take its time."""
    slow = await start_backend("slow", counts=counts, ttft=1.0)
    gateway = await start_gateway(slow, **FAST)
    states = states_of(gateway, "slow")
    assert (await gateway.chat("qwen", stream=stream)).status_code == 200
    assert set(states) == {"healthy"}


async def test_learnt_pace_tells_without_metrics(start_backend: StartBackend, start_gateway: StartGateway) -> None:
    """A server without metrics that has been fast, and now sends nothing, is stuck too."""
    hung, good = await start_backend("hung"), await start_backend("good")
    gateway = await start_gateway(hung, good, **FAST)
    await learn(gateway)
    hung.switches.hang = True
    asked = await begin(gateway, hung, stream=True)
    await gateway.until(lambda: gateway.backend("hung").state == "stuck")
    assert (await asyncio.wait_for(asked, HANG_S)).headers["x-served-by"] == "good"


async def test_whole_answer_excuses_silence_without_metrics(
    start_backend: StartBackend, start_gateway: StartGateway
) -> None:
    """Behind a long answer that comes as a whole, others wait: where no metrics show steps, that is no hanging."""
    slow = await start_backend("slow")
    gateway = await start_gateway(slow, **FAST)
    await learn(gateway)
    slow.switches.ttft = 1.0
    states = states_of(gateway, "slow")
    answers = await asyncio.gather(gateway.chat("qwen"), gateway.chat("qwen", stream=True))
    assert [answer.status_code for answer in answers] == [200, 200]
    assert set(states) == {"healthy"}


async def test_stalled_stream_goes_on_by_itself(start_backend: StartBackend, start_gateway: StartGateway) -> None:
    """The only backend stalls in a stream: it is stuck, keeps the stream, and with the next token is healthy again."""
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


async def test_slow_client_is_not_a_stuck_backend(start_backend: StartBackend, start_gateway: StartGateway) -> None:
    """A backend that has nothing to do but wait for a client that reads nothing is healthy."""
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


async def test_metrics_are_asked_only_in_silence(start_backend: StartBackend, start_gateway: StartGateway) -> None:
    """Neither an idle backend nor one that answers is asked for its metrics."""
    backend = await start_backend("only", counts="steps")
    gateway = await start_gateway(backend, poll_interval=0.05)
    polls = backend.polls
    while backend.polls < polls + 10:
        assert (await gateway.chat("qwen", stream=True)).status_code == 200
    assert backend.looks == 0


async def test_queue_is_told(start_backend: StartBackend, start_gateway: StartGateway) -> None:
    """`queued` counts those that wait for a first token, or is what the backend's own metrics say, where they do."""
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


async def test_whole_answer_may_take_long_while_metrics_move(
    start_backend: StartBackend, start_gateway: StartGateway
) -> None:
    """An answer that comes as a whole outlives FIRST_BYTE_TIMEOUT while its backend counts steps."""
    backend = await start_backend("only", counts="steps", ttft=2.5)
    gateway = await start_gateway(backend, first_byte_timeout=1.0, **FAST)
    assert (await gateway.chat("qwen")).status_code == 200


async def test_silence_is_looked_at_when_it_becomes_too_long(
    start_backend: StartBackend, start_gateway: StartGateway
) -> None:
    """Not at the next poll, which here would be in five minutes: one look at a backend with work brings the next."""
    hung, good = await start_backend("hung", counts="stalled"), await start_backend("good")
    gateway = await start_gateway(hung, good, poll_interval=300, stuck_after=0.3)
    hung.switches.hang = True
    asked = await begin(gateway, hung, stream=True)
    gateway.backend("hung").probe_soon()
    await gateway.until(lambda: gateway.backend("hung").state == "stuck")
    assert (await asyncio.wait_for(asked, HANG_S)).headers["x-served-by"] == "good"


async def test_mute_backend_is_stuck_long_before_a_silent_one(
    start_backend: StartBackend, start_gateway: StartGateway
) -> None:
    """Neither polls nor metrics are answered, streams stand still: a stopped process is not busy for STUCK_AFTER."""
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
    # What it was asked stays unanswered: it is down.
    await gateway.until(lambda: gateway.backend("mute").state == "unhealthy")
    mute.switches = dataclasses.replace(mute.switches, hang_after=None, health="healthy", counts="no")
    await gateway.until(lambda: gateway.backend("mute").state == "healthy")
    await gateway.until(lambda: settled(gateway))


async def test_mute_backend_with_whole_answers_is_busy(
    start_backend: StartBackend, start_gateway: StartGateway
) -> None:
    """Of answers that come as a whole nothing can be told: who reads a large request answers no polls meanwhile."""
    busy, other = await start_backend("busy"), await start_backend("other")
    gateway = await start_gateway(
        busy, other, poll_interval=0.05, poll_timeout=0.2, stuck_after=600, timing={"unresponsive_s": 0.3}
    )
    await learn(gateway)
    busy.switches.hang = True
    asked = await begin(gateway, busy, stream=False)
    states = states_of(gateway, "busy")
    busy.switches = dataclasses.replace(busy.switches, health="silent", counts="silent")
    # More questions without an answer than three polls and one look at the metrics.
    polls = busy.polls
    await gateway.until(lambda: busy.polls > polls + 8)
    assert set(states) == {"healthy", "busy"}
    asked.cancel()
    await gateway.until(lambda: settled(gateway))
