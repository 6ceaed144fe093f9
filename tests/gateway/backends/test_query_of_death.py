"""Requests that crash their backends: suspects, convictions, and the retry budget."""

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
    MAX_DIGESTED,
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


def test_large_bodies_are_known_by_their_ends_and_length() -> None:
    """A digest of all of it would hold up the event loop."""
    body = b"a" * (MAX_DIGESTED + 10)
    others = (b"b" + body[1:], body[:-1] + b"b", body + b"a", body[:-1])
    digests = {digest_of(PATH, one) for one in (body, *others)} | {digest_of("/v1/completions", body)}
    assert len(digests) == 6
    assert digest_of(PATH, bytes(body)) in digests


@pytest.mark.parametrize("stream", [False, True])
async def test_crashes_two_backends_at_most(
    start_backend: StartBackend, start_gateway: StartGateway, stream: bool
) -> None:
    """Sent again it crashes none, and other requests are served."""
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


async def test_second_crash_of_the_only_backend_convicts(
    start_backend: StartBackend, start_gateway: StartGateway
) -> None:
    """The client retries itself: the second crash is the last."""
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


async def test_quarantine_ends(start_backend: StartBackend, start_gateway: StartGateway) -> None:
    backends = [await start_backend(f"b{index}", crash_on="boom") for index in range(3)]
    gateway = await start_gateway(*backends, quarantine=0.2)
    assert error_code(await chat(gateway, BOOM)) == "request_crashed_backend"
    for backend in backends:
        backend.switches.crash_on = ""
    digest = next(iter(gateway.context.quarantine.suspects.values()))
    await gateway.until(lambda: digest.until < time.monotonic())
    assert (await chat(gateway, BOOM)).status_code == 200
    assert not gateway.context.quarantine.suspects


async def test_innocent_requests_are_retried_and_cleared(
    start_backend: StartBackend, start_gateway: StartGateway
) -> None:
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


def test_second_crash_convicts() -> None:
    cluster = Cluster()
    assert not cluster.lose("a", "x", suspects=0)
    cluster.at += 0.1
    assert cluster.lose("b", "x", suspects=MAX_SUSPECTS)


def test_many_suspects_postpone_the_conviction() -> None:
    """Killing one backend after another loses hundreds of streams; a later crash decides among few."""
    cluster = Cluster()
    names = [f"r{index}" for index in range(100)]
    for name in names:
        assert not cluster.lose("a", name, suspects=0)
    cluster.at += 1
    assert not any(cluster.lose("b", name, suspects=33) for name in names[:33])
    cluster.at += 1
    assert all(cluster.lose("c", name, suspects=11 - MAX_SUSPECTS) for name in names[: 11 - MAX_SUSPECTS])


def test_max_crashes_convict_always() -> None:
    cluster = Cluster()
    lost = []
    for index in range(MAX_CRASHES):
        cluster.at += 1.0
        lost.append(cluster.lose(f"b{index}", "x", suspects=1000))
    assert lost == [False] * (MAX_CRASHES - 1) + [True]


def test_equal_bodies_in_one_crash_count_once() -> None:
    cluster = Cluster()
    assert not any(cluster.lose("a", "x", suspects=0) for _ in range(50))


def test_faulty_backend_makes_no_suspects() -> None:
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


def test_long_running_request_is_no_suspect() -> None:
    cluster = Cluster()
    for index in range(5):
        cluster.at += 100
        assert not cluster.lose(f"b{index}", "x", served_s=MAX_CRASH_AFTER_S + 1)


def test_response_clears_the_suspect() -> None:
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


def test_suspects_are_bounded() -> None:
    cluster = Cluster()
    for index in range(MAX_DIGESTS + 100):
        cluster.lose("a", f"r{index}", suspects=0)
    assert len(cluster.quarantine.suspects) == MAX_DIGESTS
    assert cluster.quarantine.check(PATH, b"another length", cluster.at) is None


def test_conviction_applies_to_path_and_body() -> None:
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


def test_budget_allows_a_single_failure() -> None:
    budget = RetryBudget()
    budget.requests = 1
    assert budget.take(1, 100.0)


def test_budget_allows_all_requests_in_flight() -> None:
    """Five hundred streams lose their backend: each gets a second and a third attempt."""
    budget = RetryBudget()
    budget.requests = 1000
    budget.has_room(0, 100.0)
    assert sum(budget.take(500, 100.0) for _ in range(1200)) == 1000


def test_budget_limits_retries_in_an_outage() -> None:
    budget, tried = RetryBudget(), 0
    for tick in range(10_000):
        budget.requests += 1
        tried += budget.take(4, 100.0 + tick / 100.0)
    assert tried <= 10_000 * SHARE + 100 * PER_S + 20
    assert budget.refused == 10_000 - tried


async def test_suspects_expire(start_backend: StartBackend, start_gateway: StartGateway) -> None:
    """Without another request: the fast path checks nothing only while there are no suspects."""
    backend = await start_backend(crash_on="boom")
    gateway = await start_gateway(backend, quarantine=1, max_attempts=1)
    assert (await chat(gateway, BOOM)).status_code >= 500
    assert gateway.context.quarantine.suspects
    await gateway.until(lambda: not gateway.context.quarantine.suspects)
    assert gateway.context.quarantine._lengths == {}
