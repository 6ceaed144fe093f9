"""The fast path: indistinguishable from the general path, to which it falls back on any failure."""

import asyncio
import json
import sys
import time
from types import FrameType
from typing import Any

import pytest

from gateway.backends.query_of_death import digest_of
from gateway.bodies.json_scan import scan_json
from gateway.relay import client_protocol
from gateway.relay.client_protocol import GatewayProtocol
from gateway.relay.fast_path import FastPathRequest, try_fast_path
from gateway.routing import RoutingRequest
from tests.gateway.conftest import StartBackend, StartGateway
from tests.gateway.running import HANG_S, RunningGateway, post
from tests.support.backends.openai_backend import FakeBackend

REQUEST = post({"model": "qwen", "messages": [{"role": "user", "content": "Hi"}]})


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """For each request with a cached head, whether it took the fast path."""
    found: list[bool] = []

    def noted(*given: Any) -> FastPathRequest | RoutingRequest | None:
        began = try_fast_path(*given)
        found.append(isinstance(began, FastPathRequest))
        return began

    monkeypatch.setattr(client_protocol, "try_fast_path", noted)
    return found


class RawClient:
    """One kept connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self.writer = writer

    async def request(self, request: bytes = REQUEST) -> tuple[int, dict[str, str], bytes]:
        """Send a request; return status, headers and body of its response."""
        self.writer.write(request)
        return await self.response()

    async def response(self) -> tuple[int, dict[str, str], bytes]:
        """Read the next response."""
        async with asyncio.timeout(HANG_S):
            first, *lines = (await self._reader.readuntil(b"\r\n\r\n"))[:-4].decode().split("\r\n")
            headers = dict(line.lower().split(": ", 1) for line in lines)
            return int(first.split(" ")[1]), headers, await self._reader.readexactly(int(headers["content-length"]))

    async def until(self, end: bytes) -> bytes:
        """Read up to `end`."""
        async with asyncio.timeout(HANG_S):
            return await self._reader.readuntil(end)

    async def eof(self) -> bytes:
        """Read until the gateway closes the connection."""
        async with asyncio.timeout(HANG_S):
            return await self._reader.read()


async def warmed(gateway: RunningGateway, fast: list[bool]) -> RawClient:
    """A client whose next request takes the fast path: both heads are cached, and a backend connection is idle."""
    client = RawClient(*await gateway.raw())
    for _ in range(2):
        assert (await client.request())[0] == 200
    fast.clear()
    return client


def counted(gateway: RunningGateway) -> dict[str, float]:
    """The metrics of requests and backends, by series."""
    page = gateway.context.metrics.exposition().decode().splitlines()
    series = [line.rpartition(" ") for line in page if "completions" in line or line.startswith("gateway_backend_")]
    return {name: float(value) for name, _, value in series if "seconds" not in name or "count" in name}


async def test_response_metrics_and_log_equal_those_of_the_general_path(
    start_backend: StartBackend, start_gateway: StartGateway, fast: list[bool], capsys: pytest.CaptureFixture[str]
) -> None:
    backend = await start_backend()
    gateway = await start_gateway(backend, log_level="info")
    client = RawClient(*await gateway.raw())
    responses = [await client.request() for _ in range(2)]
    counts = [counted(gateway)]
    responses += [await client.request() for _ in range(2)]
    counts.append(counted(gateway))
    assert fast == [True, True, True]
    (_, slow, body), (status, quick, same) = responses[0], responses[-1]
    assert status == 200
    changes = {"id": "", "created": 0}
    assert json.loads(same) | changes == json.loads(body) | changes
    own = {"x-request-id", "x-queue-ms"}
    assert {name: value for name, value in slow.items() if name not in own} == {
        name: value for name, value in quick.items() if name not in own
    }
    assert list(slow) == list(quick)
    assert quick["x-request-id"] == backend.requests[-1].header("x-request-id") != slow["x-request-id"]
    assert backend.requests[-1].body == REQUEST.partition(b"\r\n\r\n")[2]
    doubled = {name: 2 * value for name, value in counts[0].items() if name.endswith("_total") or "200" in name}
    assert doubled
    assert {name: counts[1][name] for name in doubled} == doubled
    assert gateway.context.metrics.relaying == gateway.backend("llm-primary").traffic.in_flight == 0
    gateway.context.access_log.flush()
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines() if '"access"' in line]
    changing = {"request_id", "ms", "timestamp"}
    logged = [{name: value for name, value in line.items() if name not in changing} for line in lines]
    assert len(logged) == 4
    assert logged[0] == logged[-1]


async def test_other_requests_take_the_general_path(
    start_backend: StartBackend, start_gateway: StartGateway, fast: list[bool]
) -> None:
    """Streams, aliases of the model, and refused requests."""
    backend = await start_backend(ours=False)
    gateway = await start_gateway(backend, services=f"llm-primary={backend.url};kind=llm;models=qwen")
    client = await warmed(gateway, fast)
    for body, status in (({"model": "fast"}, 200), ({"model": "none"}, 404), (b"{", 400), (b"[]", 400)):
        assert (await client.request(post(body)))[0] == status
    assert fast == [False] * 4
    assert (await gateway.chat("qwen", stream=True)).text.endswith("data: [DONE]\n\n")
    assert (await client.request())[0] == 200


@pytest.mark.parametrize("switches", [{"pad": 300_000}, {"framing": "chunked"}, {"fail_rate": 1.0, "fail_status": 429}])
async def test_unusual_responses_are_relayed(
    start_backend: StartBackend, start_gateway: StartGateway, fast: list[bool], switches: dict[str, Any]
) -> None:
    """Large, chunked, or with another status."""
    backend = await start_backend()
    gateway = await start_gateway(backend)
    client = await warmed(gateway, fast)
    for name, value in switches.items():
        setattr(backend.switches, name, value)
    status, headers, body = await client.request()
    assert fast == [True]
    assert status == switches.get("fail_status", 200)
    assert headers["x-served-by"] == "llm-primary"
    assert len(body) > switches.get("pad", 0)
    assert gateway.context.metrics.relaying == gateway.backend("llm-primary").traffic.in_flight == 0


@pytest.mark.parametrize("fault", ["reset", "garbage", "fail_rate"])
async def test_fails_over_to_another_backend(
    start_backend: StartBackend,
    start_gateway: StartGateway,
    fast: list[bool],
    monkeypatch: pytest.MonkeyPatch,
    fault: str,
) -> None:
    ill = await start_backend("a")
    gateway = await start_gateway(ill, await start_backend("b"))
    gateway.backend("b").set_draining(True)
    client = await warmed(gateway, fast)
    ill.switches.fail_status = 503
    setattr(ill.switches, fault, 1.0 if fault == "fail_rate" else True)

    module: Any = client_protocol
    counted = module.try_fast_path

    def sent(*given: Any) -> FastPathRequest | RoutingRequest | None:
        began: FastPathRequest | RoutingRequest | None = counted(*given)
        gateway.backend("b").set_draining(False)
        return began

    monkeypatch.setattr(client_protocol, "try_fast_path", sent)
    status, headers, _ = await client.request()
    assert fast == [True]
    assert (status, headers["x-served-by"], headers["x-attempts"]) == (200, "b", "2")
    assert gateway.backend("a").traffic.failures == 1
    assert (
        gateway.context.metrics.relaying
        == gateway.backend("a").traffic.in_flight
        == gateway.backend("b").traffic.in_flight
        == 0
    )


async def test_stale_connection_is_not_a_failure(
    start_backend: StartBackend, start_gateway: StartGateway, fast: list[bool]
) -> None:
    """The request is sent again on a fresh connection."""
    backend = await start_backend()
    gateway = await start_gateway(backend, max_attempts=1)
    client = await warmed(gateway, fast)
    backend.switches.reset_reused = True
    status, headers, _ = await client.request()
    assert fast == [True]
    assert (status, headers["x-attempts"]) == (200, "1")
    assert gateway.backend("llm-primary").traffic.failures == 0


async def test_quarantine_affects_only_bodies_of_the_same_length(
    start_backend: StartBackend, start_gateway: StartGateway, fast: list[bool]
) -> None:
    gateway = await start_gateway(await start_backend())
    client = await warmed(gateway, fast)
    backend, body = gateway.backend("llm-primary"), REQUEST.partition(b"\r\n\r\n")[2]
    path, at = "/v1/chat/completions", time.monotonic()
    gateway.context.quarantine.record_crash(backend, digest_of(path, body), len(body), at, served_s=0.1)
    assert gateway.context.quarantine.suspects
    other = post({"model": "qwen", "messages": [{"role": "user", "content": "Hello"}]})
    assert [(await client.request(one))[0] for one in (other, REQUEST, other)] == [200] * 3
    assert fast == [True, False, True]
    assert not gateway.context.quarantine.suspects
    assert (await client.request())[0] == 200
    assert fast == [True, False, True, True]


async def waiting(gateway: RunningGateway, backend: FakeBackend, fast: list[bool]) -> RawClient:
    """A client whose request hangs at the backend."""
    client = await warmed(gateway, fast)
    backend.switches.hang = True
    client.writer.write(REQUEST)
    await backend.wait_for(3)
    assert fast == [True]
    return client


async def test_client_disconnect_reaches_the_backend(
    start_backend: StartBackend, start_gateway: StartGateway, fast: list[bool]
) -> None:
    backend = await start_backend()
    gateway = await start_gateway(backend)
    client = await waiting(gateway, backend, fast)
    client.writer.transport.abort()
    async with asyncio.timeout(HANG_S):
        await backend.requests[-1].gone.wait()
    one = gateway.backend("llm-primary")
    await gateway.until(lambda: one.traffic.in_flight == 0)
    assert one.traffic.outcomes["client_left"] == 1
    assert gateway.context.metrics.relaying == 0
    assert not one.load.generating


async def test_silent_backend_times_out_with_504(
    start_backend: StartBackend, start_gateway: StartGateway, fast: list[bool]
) -> None:
    backend = await start_backend()
    gateway = await start_gateway(backend, first_byte_floor=0.5, first_byte_timeout=0.5, max_attempts=1)
    client = await waiting(gateway, backend, fast)
    status, _, body = await client.response()
    assert (status, json.loads(body)["error"]["code"]) == (504, "upstream_timeout")
    assert gateway.backend("llm-primary").traffic.in_flight == 0


async def test_shutdown_makes_the_response_the_last_one(
    start_backend: StartBackend, start_gateway: StartGateway, fast: list[bool]
) -> None:
    backend = await start_backend(ttft=0.2)
    gateway = await start_gateway(backend)
    client = await warmed(gateway, fast)
    client.writer.write(REQUEST)
    await backend.wait_for(3)
    for connection in gateway.server.server_state.connections:
        connection.shutdown()
    status, headers, _ = await client.response()
    assert (fast, status, headers["connection"]) == ([True], 200, "close")
    assert await client.eof() == b""


async def test_pipelined_requests_are_answered_in_order(
    start_backend: StartBackend, start_gateway: StartGateway, fast: list[bool]
) -> None:
    """Relayed or not."""
    backend = await start_backend()
    gateway = await start_gateway(backend)
    client = await warmed(gateway, fast)
    backend.switches.ttft = 0.1
    client.writer.write(REQUEST)
    await backend.wait_for(3)
    client.writer.write(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n" + REQUEST)
    assert fast == [True]
    responses = [await client.response() for _ in range(3)]
    assert [status for status, _, _ in responses] == [200] * 3
    assert ["x-served-by" in headers for _, headers, _ in responses] == [True, False, True]


async def test_stuck_backend_loses_the_request(
    start_backend: StartBackend, start_gateway: StartGateway, fast: list[bool]
) -> None:
    backend = await start_backend()
    gateway = await start_gateway(backend, await start_backend("llm-secondary"))
    gateway.backend("llm-secondary").set_draining(True)
    client = await waiting(gateway, backend, fast)
    gateway.backend("llm-secondary").set_draining(False)
    gateway.backend("llm-primary").set_stuck("it does nothing")
    status, headers, _ = await client.response()
    assert (status, headers["x-served-by"], headers["x-attempts"]) == (200, "llm-secondary", "2")


HEALTH = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"


async def answered_with_another_behind(
    gateway: RunningGateway, backend: FakeBackend, fast: list[bool], behind: bytes, pad: int
) -> tuple[RawClient, GatewayProtocol]:
    """A client that got a response after it had sent `behind`; relayed requests hang from then on."""
    client = await warmed(gateway, fast)
    (connection,) = gateway.context.connections
    assert isinstance(connection, GatewayProtocol)
    backend.switches.ttft = 0.1
    client.writer.write(REQUEST)
    await backend.wait_for(3)
    await gateway.until(lambda: backend.requests[-1].begun)
    backend.switches.hang, backend.switches.pad = True, pad
    client.writer.write(behind)
    await gateway.until(lambda: connection._held)
    assert fast == [True]
    assert (await client.response())[0] == 200
    return client, connection


# On the fast path, and as the exchange that replaces it because the response comes in pieces.
EITHER = pytest.mark.parametrize("pad", [0, 300_000])


@EITHER
async def test_own_response_waits_for_the_relayed_one_before_it(
    start_backend: StartBackend, start_gateway: StartGateway, fast: list[bool], pad: int
) -> None:
    backend = await start_backend()
    gateway = await start_gateway(backend, max_attempts=1)
    client, connection = await answered_with_another_behind(gateway, backend, fast, REQUEST, pad)
    await backend.wait_for(4)
    client.writer.write(HEALTH)
    await gateway.until(lambda: connection._held)
    await backend.stop()
    responses = [await client.response() for _ in range(2)]
    assert [status for status, _, _ in responses] == [503, 200]
    assert ["x-attempts" in headers for _, headers, _ in responses] == [True, False]


@EITHER
async def test_shutdown_while_the_pipelined_request_is_in_flight(
    start_backend: StartBackend, start_gateway: StartGateway, fast: list[bool], pad: int
) -> None:
    backend = await start_backend()
    gateway = await start_gateway(backend, max_attempts=1)
    client, connection = await answered_with_another_behind(gateway, backend, fast, REQUEST, pad)
    await backend.wait_for(4)
    connection.shutdown()
    await backend.stop()
    status, headers, _ = await client.response()
    assert (status, headers["connection"]) == (503, "close")
    assert await client.eof() == b""


@EITHER
async def test_body_of_a_pipelined_request_may_arrive_later(
    start_backend: StartBackend, start_gateway: StartGateway, fast: list[bool], pad: int
) -> None:
    backend = await start_backend()
    gateway = await start_gateway(backend)
    behind = b"POST /services/llm-primary/resume HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4\r\n\r\nab"
    client, _ = await answered_with_another_behind(gateway, backend, fast, behind, pad)
    client.writer.write(b"cd" + HEALTH)
    assert [(await client.response())[0] for _ in range(2)] == [200, 200]


@pytest.mark.parametrize(("more", "is_fast"), [({"stream": True}, False), ({}, True)])
async def test_body_is_scanned_once(
    start_backend: StartBackend,
    start_gateway: StartGateway,
    fast: list[bool],
    more: dict[str, bool],
    is_fast: bool,
) -> None:
    """Also if a stream, or a response in pieces, makes the request change to the general path."""
    backend = await start_backend(pad=300_000)
    gateway = await start_gateway(backend)
    client = await warmed(gateway, fast)
    scans = 0

    def count(frame: FrameType, event: str, _argument: object) -> None:
        nonlocal scans
        scans += event == "call" and frame.f_code is scan_json.__code__

    sys.setprofile(count)
    try:
        client.writer.write(post({"model": "qwen", "messages": [{"role": "user", "content": "Hi"}], **more}))
        await (client.until(b"data: [DONE]\n\n") if more else client.response())
    finally:
        sys.setprofile(None)
    assert fast == [is_fast]
    assert scans == 1
