"""DNS discovery: replicas are added, moved and removed; a failing resolver removes none that responds."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from gateway.backends.backend_table import Backends
from gateway.discovery.dns_provider import DnsProvider, assign
from gateway.discovery.target import make_target
from tests.gateway.conftest import StartBackend, StartGateway
from tests.gateway.plain import CLOCK
from tests.gateway.running import RunningGateway
from tests.support.backends.openai_backend import FakeBackend
from tests.support.resolver import FAILING, GONE, FakeResolver

A, B, C = "127.0.0.2", "127.0.0.3", "127.0.0.4"
NOT_RUNNING = "embedding does not resolve: its container is not running"

StartReplica = Callable[..., Awaitable[FakeBackend]]


@pytest.fixture
async def resolver(monkeypatch: pytest.MonkeyPatch) -> FakeResolver:
    """The resolver of the test's loop."""
    return FakeResolver(monkeypatch)


@pytest.fixture
def start_replica(start_backend: StartBackend) -> StartReplica:
    """Start a replica of `embedding` at an address; all of them listen on the port of the first."""
    ports: list[int] = []

    async def start(address: str, **switches: object) -> FakeBackend:
        given = {"model": "minilm", "kind": "embedding", "host": address, "port": ports[0] if ports else 0}
        replica = await start_backend(address, **(given | switches))
        ports.append(replica.port)
        return replica

    return start


def entry(port: int) -> str:
    return f"embedding=http://embedding:{port};dns"


async def services(gateway: RunningGateway) -> dict[str, dict[str, object]]:
    answer: dict[str, dict[str, object]] = (await gateway.http.get("/services")).json()["services"]
    return answer


async def embed(gateway: RunningGateway) -> str:
    """Return the name of the replica that responded, or the error message."""
    answer = await gateway.http.post("/v1/embeddings", json={"input": "Hello"})
    return answer.headers.get("x-served-by") or str(answer.json()["error"]["message"])


def healthy(gateway: RunningGateway, *names: str) -> Callable[[], bool]:
    """Whether exactly these backends are there, and well."""
    return lambda: {one.name: one.state for one in gateway.context.backends} == dict.fromkeys(names, "healthy")


async def test_every_address_is_a_replica(
    resolver: FakeResolver, start_replica: StartReplica, start_gateway: StartGateway
) -> None:
    """Two servers behind one name are both used, with the service's name as Host."""
    one, two = await start_replica(A), await start_replica(B)
    resolver.answers["embedding"] = [B, A]
    gateway = await start_gateway(services=entry(one.port), backend_keys="embedding=k3y")
    listed = await services(gateway)
    assert {name: service["address"] for name, service in listed.items()} == {"embedding": A, "embedding-2": B}
    assert {service["url"] for service in listed.values()} == {f"http://embedding:{one.port}"}
    assert all(service["healthy"] for service in listed.values())
    assert {await embed(gateway) for _ in range(4)} == {"embedding", "embedding-2"}
    for replica in (one, two):
        assert replica.requests[0].header("host") == f"embedding:{one.port}"
        assert replica.requests[0].header("authorization") == "Bearer k3y"
    gpus = (await gateway.http.get("/gpu-stats")).json()["services"]
    assert {name: gpu["gpus"][0]["uuid"] for name, gpu in gpus.items()} == {
        "embedding": f"GPU-{A}",
        "embedding-2": f"GPU-{B}",
    }


async def test_scaling_up_and_down_fails_no_request(
    resolver: FakeResolver, start_replica: StartReplica, start_gateway: StartGateway
) -> None:
    one = await start_replica(A)
    resolver.answers["embedding"] = [A]
    gateway = await start_gateway(services=entry(one.port), poll_interval=0.1)
    await start_replica(B)
    resolver.answers["embedding"] = [A, B]
    await gateway.until(healthy(gateway, "embedding", "embedding-2"))
    # The removed one had the plain name: the other one takes it over without a gap.
    resolver.answers["embedding"] = [B]
    served = set()
    while len(gateway.context.backends) > 1:
        served.add(await embed(gateway))
    served.add(await embed(gateway))
    assert served <= {"embedding", "embedding-2"}
    assert healthy(gateway, "embedding")()
    assert gateway.backend("embedding").target.address == B


async def test_removed_replica_finishes_its_stream(
    resolver: FakeResolver, start_backend: StartBackend, start_gateway: StartGateway
) -> None:
    one = await start_backend("one", host=A, gated=True)
    resolver.answers["llm"] = [A]
    gateway = await start_gateway(services=f"llm=http://llm:{one.port};dns", poll_interval=0.05)
    one.gate.release()
    async with gateway.http.stream("POST", "/v1/chat/completions", json={"model": "qwen", "stream": True}) as answer:
        resolver.answers["llm"] = GONE
        await gateway.until(lambda: gateway.backend("llm").target.address is None)
        for _ in range(4):
            one.gate.release()
        assert "[DONE]" in (await answer.aread()).decode()


async def test_recreated_container_is_found(
    resolver: FakeResolver, start_replica: StartReplica, start_gateway: StartGateway
) -> None:
    """It has another address under the same name."""
    one = await start_replica(A)
    resolver.answers["embedding"] = [A]
    gateway = await start_gateway(services=entry(one.port), poll_interval=0.1)
    await one.stop()
    two = await start_replica(B)
    resolver.answers["embedding"] = [B]
    await gateway.until(lambda: gateway.backend("embedding").target.address == B)
    await gateway.until(healthy(gateway, "embedding"))
    assert await embed(gateway) == "embedding"
    assert two.requests


async def test_missing_service_is_listed_with_the_reason(
    resolver: FakeResolver, start_replica: StartReplica, start_gateway: StartGateway
) -> None:
    """Before it starts, and again after it has stopped."""
    one = await start_replica(A)
    resolver.answers["embedding"] = GONE
    gateway = await start_gateway(services=entry(one.port), poll_interval=0.05)
    down = (await services(gateway))["embedding"]
    assert (down["state"], down["address"], down["last_error"]) == ("unhealthy", None, NOT_RUNNING)
    assert down["last_check"]
    assert NOT_RUNNING in await embed(gateway)
    gpu = (await gateway.http.get("/gpu-stats")).json()["services"]["embedding"]
    assert (gpu["available"], gpu["reason"]) == (False, NOT_RUNNING)
    resolver.answers["embedding"] = [A]
    await gateway.until(healthy(gateway, "embedding"))
    assert await embed(gateway) == "embedding"
    resolver.answers["embedding"] = GONE
    await gateway.until(lambda: gateway.backend("embedding").last_error == NOT_RUNNING)
    assert f"No healthy backend for minilm: embedding is unhealthy ({NOT_RUNNING})" in await embed(gateway)


@pytest.mark.parametrize("how", ["fails", "hangs"])
async def test_failing_resolver_keeps_responding_replicas(
    resolver: FakeResolver, start_replica: StartReplica, start_gateway: StartGateway, how: str
) -> None:
    one, _ = await start_replica(A), await start_replica(B)
    resolver.answers["embedding"] = [A, B]
    gateway = await start_gateway(services=entry(one.port), poll_interval=0.05, poll_timeout=0.5)
    polls = one.polls
    if how == "fails":
        resolver.answers["embedding"] = FAILING
        asked = resolver.asked["embedding"]
        await gateway.until(lambda: resolver.asked["embedding"] > asked + 3)
    else:
        resolver.hanging["embedding"] = asyncio.Event()
        await gateway.until(lambda: gateway.backend("embedding").target.doubt is not None)
    await gateway.until(lambda: one.polls > polls + 3)
    assert healthy(gateway, "embedding", "embedding-2")()
    assert {await embed(gateway) for _ in range(4)} == {"embedding", "embedding-2"}
    assert gateway.backend("embedding").last_error is None
    resolver.answers["embedding"] = [A]
    for event in resolver.hanging.values():
        event.set()
    await gateway.until(healthy(gateway, "embedding"))
    assert gateway.backend("embedding").target.doubt is None


async def test_stopped_container_on_an_internal_network(
    resolver: FakeResolver, start_replica: StartReplica, start_gateway: StartGateway
) -> None:
    """Docker's resolver fails there for unknown names: without responses it counts as not running."""
    one = await start_replica(A)
    resolver.answers["embedding"] = [A]
    gateway = await start_gateway(services=entry(one.port), poll_interval=0.05)
    resolver.answers["embedding"] = FAILING
    await one.stop()
    await gateway.until(lambda: NOT_RUNNING in (gateway.backend("embedding").last_error or ""))
    assert gateway.backend("embedding").state == "unhealthy"
    assert "Temporary failure" in (gateway.backend("embedding").last_error or "")


async def test_silent_replicas_are_removed_while_the_resolver_fails(
    resolver: FakeResolver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the plain name stays, without an address, since addresses may have been reassigned."""
    monkeypatch.setattr("gateway.discovery.dns_provider.REMOVE_AFTER_S", 0)
    backends, alive = Backends({}, CLOCK), {"x"}
    provider = DnsProvider(
        make_target("x", "http://x:1", by_dns=True),
        reserved_names=(), is_responding=alive.__contains__, interval_s=1, timeout_s=5,
    )  # fmt: skip
    resolver.answers["x"] = [A, B]
    await provider.start(backends)
    resolver.answers["x"] = FAILING
    await provider.start(backends)
    assert [one.target.address for one in backends] == [A, B]
    alive.clear()
    await provider.start(backends)
    assert [(one.name, one.target.address) for one in backends] == [("x", None)]


async def test_drain_follows_a_renamed_replica(resolver: FakeResolver) -> None:
    """It applies to the container: a recreated one is not drained."""
    backends = Backends({}, CLOCK)
    provider = DnsProvider(
        make_target("x", "http://x:1", by_dns=True),
        reserved_names=(),
        is_responding=lambda _: True,
        interval_s=1,
        timeout_s=5,
    )
    resolver.answers["x"] = [A, B]
    await provider.start(backends)
    for name in ("x", "x-2"):
        backend = backends.get(name)
        assert backend is not None
        backend.set_draining(True)
    resolver.answers["x"] = [B]
    await provider.start(backends)
    assert [(one.name, one.state) for one in backends] == [("x", "draining")]
    resolver.answers["x"] = [C]
    await provider.start(backends)
    assert [(one.name, one.state) for one in backends] == [("x", "unhealthy")]


@pytest.mark.parametrize(
    ("before", "found", "after"),
    [
        ({}, [], {}),
        ({}, [A], {"x": A}),
        ({}, [A, B, C], {"x": A, "x-2": B, "x-4": C}),
        ({"x": B}, [A, B], {"x": B, "x-2": A}),
        ({"x": A, "x-2": B}, [C], {"x": C}),
        ({"x": A, "x-2": B}, [B], {"x": B}),
        ({"x": A, "x-2": B}, [B, C], {"x": C, "x-2": B}),
        ({"x": A, "x-4": B, "x-2": C}, [B, C], {"x": C, "x-4": B}),
        ({"x": A, "x-4": B}, [A, B, C], {"x": A, "x-4": B, "x-2": C}),
    ],
)
def test_replica_names(before: dict[str, str], found: list[str], after: dict[str, str]) -> None:
    """A name stays with its address, the plain name is always assigned, `x-3` is reserved."""
    assert assign("x", before, found, reserved={"x-3"}) == after


@pytest.mark.parametrize("absent", [GONE, FAILING])
async def test_optional_service_is_listed_after_it_has_resolved(
    resolver: FakeResolver, start_replica: StartReplica, start_gateway: StartGateway, absent: Exception
) -> None:
    replica = await start_replica(A)
    resolver.answers["embedding"] = absent
    gateway = await start_gateway(services=f"{entry(replica.port)};optional")
    assert (await gateway.http.get("/services")).json() == {"services": {}, "healthy": 0, "total": 0}
    resolver.answers["embedding"] = [A]
    await gateway.until(healthy(gateway, "embedding"))
    resolver.answers["embedding"] = GONE
    await gateway.until(lambda: gateway.backend("embedding").state == "unhealthy")
    assert (await services(gateway))["embedding"]["last_error"] == NOT_RUNNING
