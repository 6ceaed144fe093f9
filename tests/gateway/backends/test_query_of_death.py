"""Requests of which backends die: who is to blame, and who is not."""

import asyncio
import time
from types import SimpleNamespace
from typing import Any, cast

import httpx2
import pytest

from gateway.backends.backend import Backend
from gateway.backends.query_of_death import (
    MAX_CRASH_AFTER_S,
    MAX_CRASHES,
    MAX_DIGESTS,
    MAX_SUSPECTS,
    QUIET_S,
    SAME_CRASH_S,
    CrashedBackend,
    Quarantine,
    digest_of,
)
from gateway.backends.traffic import Traffic
from gateway.relay.retry_budget import PER_S, SHARE, RetryBudget
from tests.gateway.behaviour.test_faults import settled
from tests.gateway.conftest import StartBackend, StartGateway
from tests.gateway.running import RunningGateway, error_code

PATH = "/v1/chat/completions"
BOOM = {"messages": [{"role": "user", "content": "boom"}]}


async def chat(gateway: RunningGateway, body: dict[str, Any], **more: Any) -> httpx2.Response:
    """One chat."""
    return await gateway.http.post(PATH, json={"model": "qwen", **body, **more})


@pytest.mark.parametrize("stream", [False, True])
async def test_it_costs_two_backends_of_four(
    start_backend: StartBackend, start_gateway: StartGateway, stream: bool
) -> None:
    """A request that kills whatever serves it kills two; sent again it kills none, and others are served."""
    backends = [await start_backend(f"b{index}", crash_on="boom") for index in range(4)]
    gateway = await start_gateway(*backends, max_attempts=4)
    for _ in range(4):
        assert (await chat(gateway, {"messages": []})).status_code == 200
    # Once over connections in use before, once over new ones.
    first = await chat(gateway, BOOM, stream=stream)
    assert (first.status_code, error_code(first)) == (502, "request_crashed_backend")
    again = await chat(gateway, BOOM, stream=stream)
    assert (again.status_code, error_code(again)) == (502, "request_crashed_backend")
    assert "is not sent again for" in again.json()["error"]["message"]
    assert again.headers["x-attempts"] == "0"
    await gateway.until(lambda: sum(backend.state == "healthy" for backend in gateway.context.backends) == 2)
    assert (await chat(gateway, {"messages": []})).status_code == 200
    await gateway.until(lambda: settled(gateway))


async def test_it_is_known_when_the_only_backend_is_back(
    start_backend: StartBackend, start_gateway: StartGateway
) -> None:
    """With one backend the client sends it again itself: the second death is the last, and the rest stay served."""
    backend = await start_backend(crash_on="boom")
    gateway = await start_gateway(backend)
    codes = []
    for _ in range(3):
        codes.append(error_code(await chat(gateway, BOOM)))
        await gateway.until(lambda: gateway.backend("llm-primary").state != "healthy" or len(codes) == 3)
        if len(codes) < 3:
            await backend.start()
        await gateway.until(lambda: gateway.backend("llm-primary").state == "healthy")
    assert codes[1:] == ["request_crashed_backend"] * 2
    assert (await chat(gateway, {"messages": []})).status_code == 200


async def test_it_is_forgotten_in_time(start_backend: StartBackend, start_gateway: StartGateway) -> None:
    """After QUARANTINE seconds the request is tried again."""
    backends = [await start_backend(f"b{index}", crash_on="boom") for index in range(3)]
    gateway = await start_gateway(*backends, quarantine=0.2)
    assert error_code(await chat(gateway, BOOM)) == "request_crashed_backend"
    for backend in backends:
        backend.switches.crash_on = ""
    digest = next(iter(gateway.context.quarantine.suspects.values()))
    await gateway.until(lambda: digest.until < time.monotonic())
    assert (await chat(gateway, BOOM)).status_code == 200
    assert not gateway.context.quarantine.suspects


async def test_others_in_flight_are_not_to_blame(start_backend: StartBackend, start_gateway: StartGateway) -> None:
    """Requests at a backend when it is killed are answered by others, all of them, and nothing is held against them."""
    backends = [await start_backend(f"b{index}", ttft=0.05) for index in range(4)]
    gateway = await start_gateway(*backends)
    bodies = [{"messages": [{"role": "user", "content": f"question {index}"}]} for index in range(40)]
    work = [asyncio.create_task(chat(gateway, body, stream=bool(index % 2))) for index, body in enumerate(bodies)]
    await backends[0].wait_for(4)
    await backends[0].stop()
    assert {answer.status_code for answer in await asyncio.gather(*work)} == {200}
    assert not gateway.context.quarantine.suspects
    await gateway.until(lambda: settled(gateway))


# The rules, without a socket.


class Cluster:
    """Backends that lose requests at times that the test says."""

    def __init__(self) -> None:
        self.quarantine = Quarantine(600.0)
        self.at = 100.0
        self.backends: dict[str, Any] = {}

    def backend(self, name: str) -> Any:
        """A backend by this name."""
        return self.backends.setdefault(name, SimpleNamespace(name=name, traffic=Traffic()))

    def lose(self, name: str, digest: str, *, suspects: int = 1, served_s: float = 1.0) -> bool:
        """The backend was lost with this request; whether that convicts it."""
        backend = self.backend(name)
        backend.traffic.suspects = suspects
        return self.quarantine.record_crash(cast(Backend, backend), digest.encode(), 10, self.at, served_s=served_s)

    def speak(self, name: str) -> None:
        """The backend says something a moment later."""
        self.at += 0.01
        self.backend(name).traffic.last_byte_at = self.at


def test_two_deaths_convict() -> None:
    """Two backends, some time apart, few in flight that have seen a death before."""
    cluster = Cluster()
    assert not cluster.lose("a", "x", suspects=0)
    cluster.at += 0.1
    assert cluster.lose("b", "x", suspects=MAX_SUSPECTS)


def test_many_suspects_convict_nobody_until_they_are_few() -> None:
    """Backends killed one after the other take hundreds of streams along; the third death decides among few."""
    cluster = Cluster()
    names = [f"r{index}" for index in range(100)]
    for name in names:
        assert not cluster.lose("a", name, suspects=0)
    cluster.at += 1
    assert not any(cluster.lose("b", name, suspects=33) for name in names[:33])
    cluster.at += 1
    assert all(cluster.lose("c", name, suspects=11 - MAX_SUSPECTS) for name in names[: 11 - MAX_SUSPECTS])


def test_there_is_an_end() -> None:
    """However many are lost together, nothing is sent on after so many quarantine."""
    cluster = Cluster()
    lost = []
    for index in range(MAX_CRASHES):
        cluster.at += 1.0
        lost.append(cluster.lose(f"b{index}", "x", suspects=1000))
    assert lost == [False] * (MAX_CRASHES - 1) + [True]


def test_the_same_body_many_times_at_once_has_one_death() -> None:
    """A load test sends one body a thousand times: a backend that is killed is one death for it, not a thousand."""
    cluster = Cluster()
    assert not any(cluster.lose("a", "x", suspects=0) for _ in range(50))


def test_an_ill_backend_blames_nobody() -> None:
    """A backend that breaks off everything, healthy as it may call itself, holds nothing against what it loses."""
    cluster = Cluster()
    assert not cluster.lose("a", "x0", suspects=0)
    for index in range(1, 50):
        cluster.at += SAME_CRASH_S * 2
        name = f"x{index}"
        assert not cluster.lose("a", name, suspects=0)
        assert not cluster.lose("b", name)
    # A long time later, without a byte since: still ill.
    cluster.at += QUIET_S * 100
    cluster.lose("a", "y", suspects=0)
    assert not cluster.lose("b", "y")
    # It has worked in between: from now on what it loses counts.
    cluster.speak("a")
    cluster.at += QUIET_S * 2
    cluster.speak("b")
    cluster.lose("a", "z", suspects=0)
    cluster.at += QUIET_S * 2
    assert cluster.lose("b", "z")


def test_a_long_answer_is_not_to_blame() -> None:
    """What had been served for long when its backend was restarted did not kill it."""
    cluster = Cluster()
    for index in range(5):
        cluster.at += 100
        assert not cluster.lose(f"b{index}", "x", served_s=MAX_CRASH_AFTER_S + 1)


def test_an_answer_clears() -> None:
    """Whoever was answered after all begins anew, and so do those that send the same."""
    quarantine, backend = Quarantine(600.0), SimpleNamespace(name="a", traffic=Traffic())
    backend.traffic.suspects = 1
    for name in ("a", "b"):
        backend.name = name
        quarantine.record_crash(cast(Backend, backend), digest_of(PATH, b"body"), 4, 1.0, served_s=0.1)
    quarantine.clear("/v1/completions", b"body")
    assert quarantine.suspects
    quarantine.clear(PATH, b"body")
    assert not quarantine.suspects
    assert quarantine.check(PATH, b"body", 2.0) is None


def test_the_table_is_bounded() -> None:
    """However many requests are lost, only so many are remembered, and bodies of other lengths cost no digest."""
    cluster = Cluster()
    for index in range(MAX_DIGESTS + 100):
        cluster.lose("a", f"r{index}", suspects=0)
    assert len(cluster.quarantine.suspects) == MAX_DIGESTS
    assert cluster.quarantine.check(PATH, b"another length", cluster.at) is None


def test_convicted_requests_are_refused_by_path_and_body() -> None:
    """The same bytes on another route are another request."""
    quarantine, backend = Quarantine(600.0), SimpleNamespace(name="a", traffic=Traffic())
    backend.traffic.suspects = 1
    for name in ("a", "b"):
        backend.name = name
        quarantine.record_crash(cast(Backend, backend), digest_of(PATH, b"body"), 4, 1.0, served_s=0.1)
    with pytest.raises(CrashedBackend, match="600 s"):
        quarantine.check(PATH, b"body", 1.0)
    assert quarantine.check("/v1/completions", b"body", 1.0) is None
    assert quarantine.check(PATH, b"body", 700.0) is None


# The budget of retries.


def test_a_single_failure_is_always_made_good() -> None:
    """With nothing else going on there is room for several."""
    budget = RetryBudget()
    budget.requests = 1
    assert budget.take(1, 100.0)


def test_all_that_is_in_flight_may_go_elsewhere() -> None:
    """Backends die with five hundred streams: each gets its second try at once, and its third."""
    budget = RetryBudget()
    budget.requests = 1000
    budget.has_room(0, 100.0)
    assert sum(budget.take(500, 100.0) for _ in range(1200)) == 1000


def test_retries_do_not_double_the_load_of_an_outage() -> None:
    """While every request fails, retries stay a share of the requests, and a few per second."""
    budget, tried = RetryBudget(), 0
    for tick in range(10_000):
        budget.requests += 1
        tried += budget.take(4, 100.0 + tick / 100.0)
    assert tried <= 10_000 * SHARE + 100 * PER_S + 20
    assert budget.refused == 10_000 - tried


async def test_an_innocent_loss_is_forgotten(start_backend: StartBackend, start_gateway: StartGateway) -> None:
    """Though nobody sends the request again: requests are plain only while nothing is held against any."""
    backend = await start_backend(crash_on="boom")
    gateway = await start_gateway(backend, quarantine=1, max_attempts=1)
    assert (await chat(gateway, BOOM)).status_code >= 500
    assert gateway.context.quarantine.suspects
    await gateway.until(lambda: not gateway.context.quarantine.suspects)
    assert gateway.context.quarantine._lengths == {}
