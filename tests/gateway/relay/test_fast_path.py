"""The plain case takes a shorter way: nobody may be able to tell, and what goes wrong is mended as on the long one."""

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
def plain(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether each request whose head was known was plain."""
    found: list[bool] = []

    def noted(*given: Any) -> FastPathRequest | RoutingRequest | None:
        began = try_fast_path(*given)
        found.append(isinstance(began, FastPathRequest))
        return began

    monkeypatch.setattr(client_protocol, "try_fast_path", noted)
    return found


class RawClient:
    """One connection, on which requests with the same head follow each other."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self.writer = writer

    async def ask(self, request: bytes = REQUEST) -> tuple[int, dict[str, str], bytes]:
        """Send a request; status, headers and body of its answer."""
        self.writer.write(request)
        return await self.answer()

    async def answer(self) -> tuple[int, dict[str, str], bytes]:
        """The next answer."""
        async with asyncio.timeout(HANG_S):
            first, *lines = (await self._reader.readuntil(b"\r\n\r\n"))[:-4].decode().split("\r\n")
            headers = dict(line.lower().split(": ", 1) for line in lines)
            return int(first.split(" ")[1]), headers, await self._reader.readexactly(int(headers["content-length"]))

    async def until(self, end: bytes) -> bytes:
        """Read up to `end`."""
        async with asyncio.timeout(HANG_S):
            return await self._reader.readuntil(end)

    async def eof(self) -> bytes:
        """What comes until the gateway closes."""
        async with asyncio.timeout(HANG_S):
            return await self._reader.read()


async def warmed(gateway: RunningGateway, plain: list[bool]) -> RawClient:
    """A client whose next request is plain: its head and that of its answer are known, and a connection is there."""
    client = RawClient(*await gateway.raw())
    for _ in range(2):
        assert (await client.ask())[0] == 200
    plain.clear()
    return client


def counted(gateway: RunningGateway) -> dict[str, float]:
    """What was counted of requests to the backends, by series."""
    page = gateway.context.metrics.exposition().decode().splitlines()
    told = [line.rpartition(" ") for line in page if "completions" in line or line.startswith("gateway_backend_")]
    return {name: float(value) for name, _, value in told if "seconds" not in name or "count" in name}


async def test_nobody_can_tell(
    start_backend: StartBackend, start_gateway: StartGateway, plain: list[bool], capsys: pytest.CaptureFixture[str]
) -> None:
    """Answer, counters and log line of a plain request are those of the exchange before it."""
    backend = await start_backend()
    gateway = await start_gateway(backend, log_level="info")
    client = RawClient(*await gateway.raw())
    answers = [await client.ask() for _ in range(2)]
    counts = [counted(gateway)]
    answers += [await client.ask() for _ in range(2)]
    counts.append(counted(gateway))
    assert plain == [True, True, True]
    (_, slow, body), (status, quick, same) = answers[0], answers[-1]
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
    told = [{name: value for name, value in line.items() if name not in changing} for line in lines]
    assert len(told) == 4
    assert told[0] == told[-1]


async def test_what_is_not_plain_takes_the_long_way(
    start_backend: StartBackend, start_gateway: StartGateway, plain: list[bool]
) -> None:
    """Streams, other names for the model, pages of other origins, and what is refused."""
    backend = await start_backend(ours=False)
    gateway = await start_gateway(backend, services=f"llm-primary={backend.url};kind=llm;models=qwen")
    client = await warmed(gateway, plain)
    for body, status in (({"model": "fast"}, 200), ({"model": "none"}, 404), (b"{", 400), (b"[]", 400)):
        assert (await client.ask(post(body)))[0] == status
    assert plain == [False] * 4
    assert (await gateway.chat("qwen", stream=True)).text.endswith("data: [DONE]\n\n")
    assert (await client.ask())[0] == 200


@pytest.mark.parametrize("switches", [{"pad": 300_000}, {"framing": "chunked"}, {"fail_rate": 1.0, "fail_status": 429}])
async def test_another_answer_than_expected_is_passed_on(
    start_backend: StartBackend, start_gateway: StartGateway, plain: list[bool], switches: dict[str, Any]
) -> None:
    """In pieces, in chunks, with another status."""
    backend = await start_backend()
    gateway = await start_gateway(backend)
    client = await warmed(gateway, plain)
    for name, value in switches.items():
        setattr(backend.switches, name, value)
    status, headers, body = await client.ask()
    assert plain == [True]
    assert status == switches.get("fail_status", 200)
    assert headers["x-served-by"] == "llm-primary"
    assert len(body) > switches.get("pad", 0)
    assert gateway.context.metrics.relaying == gateway.backend("llm-primary").traffic.in_flight == 0


@pytest.mark.parametrize("fault", ["reset", "garbage", "fail_rate"])
async def test_another_backend_is_asked(
    start_backend: StartBackend,
    start_gateway: StartGateway,
    plain: list[bool],
    monkeypatch: pytest.MonkeyPatch,
    fault: str,
) -> None:
    """One that breaks off, talks nonsense or is overloaded, when the request was sent already."""
    ill = await start_backend("a")
    gateway = await start_gateway(ill, await start_backend("b"))
    gateway.backend("b").set_draining(True)
    client = await warmed(gateway, plain)
    ill.switches.fail_status = 503
    setattr(ill.switches, fault, 1.0 if fault == "fail_rate" else True)

    module: Any = client_protocol
    counted = module.try_fast_path

    def sent(*given: Any) -> FastPathRequest | RoutingRequest | None:
        began: FastPathRequest | RoutingRequest | None = counted(*given)
        gateway.backend("b").set_draining(False)
        return began

    monkeypatch.setattr(client_protocol, "try_fast_path", sent)
    status, headers, _ = await client.ask()
    assert plain == [True]
    assert (status, headers["x-served-by"], headers["x-attempts"]) == (200, "b", "2")
    assert gateway.backend("a").traffic.failures == 1
    assert (
        gateway.context.metrics.relaying
        == gateway.backend("a").traffic.in_flight
        == gateway.backend("b").traffic.in_flight
        == 0
    )


async def test_a_connection_that_was_just_closed_is_no_failure(
    start_backend: StartBackend, start_gateway: StartGateway, plain: list[bool]
) -> None:
    """The request goes out again on a fresh one."""
    backend = await start_backend()
    gateway = await start_gateway(backend, max_attempts=1)
    client = await warmed(gateway, plain)
    backend.switches.reset_reused = True
    status, headers, _ = await client.ask()
    assert plain == [True]
    assert (status, headers["x-attempts"]) == (200, "1")
    assert gateway.backend("llm-primary").traffic.failures == 0


async def test_a_death_makes_only_its_like_unusual(
    start_backend: StartBackend, start_gateway: StartGateway, plain: list[bool]
) -> None:
    """While requests are remembered for the backends that they were lost with, those of other lengths stay plain."""
    gateway = await start_gateway(await start_backend())
    client = await warmed(gateway, plain)
    backend, body = gateway.backend("llm-primary"), REQUEST.partition(b"\r\n\r\n")[2]
    path, at = "/v1/chat/completions", time.monotonic()
    gateway.context.quarantine.record_crash(backend, digest_of(path, body), len(body), at, served_s=0.1)
    assert gateway.context.quarantine.suspects
    other = post({"model": "qwen", "messages": [{"role": "user", "content": "Hello"}]})
    assert [(await client.ask(one))[0] for one in (other, REQUEST, other)] == [200] * 3
    assert plain == [True, False, True]
    assert not gateway.context.quarantine.suspects
    assert (await client.ask())[0] == 200
    assert plain == [True, False, True, True]


async def waiting(gateway: RunningGateway, backend: FakeBackend, plain: list[bool]) -> RawClient:
    """A client whose plain request hangs at the backend."""
    client = await warmed(gateway, plain)
    backend.switches.hang = True
    client.writer.write(REQUEST)
    await backend.wait_for(3)
    assert plain == [True]
    return client


async def test_the_client_leaves(start_backend: StartBackend, start_gateway: StartGateway, plain: list[bool]) -> None:
    """The backend sees its connection end, and nothing stays counted."""
    backend = await start_backend()
    gateway = await start_gateway(backend)
    client = await waiting(gateway, backend, plain)
    client.writer.transport.abort()
    async with asyncio.timeout(HANG_S):
        await backend.requests[-1].gone.wait()
    one = gateway.backend("llm-primary")
    await gateway.until(lambda: one.traffic.in_flight == 0)
    assert one.traffic.outcomes["client_left"] == 1
    assert gateway.context.metrics.relaying == 0
    assert not one.load.generating


async def test_a_silent_backend_is_given_up(
    start_backend: StartBackend, start_gateway: StartGateway, plain: list[bool]
) -> None:
    """After the deadline comes a 504."""
    backend = await start_backend()
    gateway = await start_gateway(backend, first_byte_floor=0.5, first_byte_timeout=0.5, max_attempts=1)
    client = await waiting(gateway, backend, plain)
    status, _, body = await client.answer()
    assert (status, json.loads(body)["error"]["code"]) == (504, "upstream_timeout")
    assert gateway.backend("llm-primary").traffic.in_flight == 0


async def test_the_server_stops(start_backend: StartBackend, start_gateway: StartGateway, plain: list[bool]) -> None:
    """uvicorn asks each request under way to be the last on its connection: so it is."""
    backend = await start_backend(ttft=0.2)
    gateway = await start_gateway(backend)
    client = await warmed(gateway, plain)
    client.writer.write(REQUEST)
    await backend.wait_for(3)
    for connection in gateway.server.server_state.connections:
        connection.shutdown()
    status, headers, _ = await client.answer()
    assert (plain, status, headers["connection"]) == ([True], 200, "close")
    assert await client.eof() == b""


async def test_what_follows_waits_its_turn(
    start_backend: StartBackend, start_gateway: StartGateway, plain: list[bool]
) -> None:
    """Requests that come while a plain one waits are answered after it, relayed or not."""
    backend = await start_backend()
    gateway = await start_gateway(backend)
    client = await warmed(gateway, plain)
    backend.switches.ttft = 0.1
    client.writer.write(REQUEST)
    await backend.wait_for(3)
    client.writer.write(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n" + REQUEST)
    assert plain == [True]
    answers = [await client.answer() for _ in range(3)]
    assert [status for status, _, _ in answers] == [200] * 3
    assert ["x-served-by" in headers for _, headers, _ in answers] == [True, False, True]


async def test_a_stuck_backend_loses_it(
    start_backend: StartBackend, start_gateway: StartGateway, plain: list[bool]
) -> None:
    """It goes to another one as soon as its own is known to be stuck."""
    backend = await start_backend()
    gateway = await start_gateway(backend, await start_backend("llm-secondary"))
    gateway.backend("llm-secondary").set_draining(True)
    client = await waiting(gateway, backend, plain)
    gateway.backend("llm-secondary").set_draining(False)
    gateway.backend("llm-primary").set_stuck("it does nothing")
    status, headers, _ = await client.answer()
    assert (status, headers["x-served-by"], headers["x-attempts"]) == (200, "llm-secondary", "2")


HEALTH = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"


async def answered_with_another_behind(
    gateway: RunningGateway, backend: FakeBackend, plain: list[bool], behind: bytes, pad: int
) -> tuple[RawClient, GatewayProtocol]:
    """A client whose plain request was answered when `behind` had come already; what is relayed from then on hangs."""
    client = await warmed(gateway, plain)
    (connection,) = gateway.context.connections
    assert isinstance(connection, GatewayProtocol)
    backend.switches.ttft = 0.1
    client.writer.write(REQUEST)
    await backend.wait_for(3)
    await gateway.until(lambda: backend.requests[-1].begun)
    backend.switches.hang, backend.switches.pad = True, pad
    client.writer.write(behind)
    await gateway.until(lambda: connection.pipeline)
    assert plain == [True]
    assert (await client.answer())[0] == 200
    return client, connection


# Answered as a plain request, and as the exchange that it becomes since its answer comes in pieces.
EITHER = pytest.mark.parametrize("pad", [0, 300_000])


@EITHER
async def test_what_follows_what_follows_waits_too(
    start_backend: StartBackend, start_gateway: StartGateway, plain: list[bool], pad: int
) -> None:
    """An answer of the gateway's own does not overtake that of the relayed request before it."""
    backend = await start_backend()
    gateway = await start_gateway(backend, max_attempts=1)
    client, connection = await answered_with_another_behind(gateway, backend, plain, REQUEST, pad)
    await backend.wait_for(4)
    client.writer.write(HEALTH)
    before = connection._messages
    await gateway.until(lambda: connection._messages > before)
    await backend.stop()
    answers = [await client.answer() for _ in range(2)]
    assert [status for status, _, _ in answers] == [503, 200]
    assert ["x-attempts" in headers for _, headers, _ in answers] == [True, False]


@EITHER
async def test_the_server_stops_when_what_follows_is_under_way(
    start_backend: StartBackend, start_gateway: StartGateway, plain: list[bool], pad: int
) -> None:
    """It is answered, as the last on its connection."""
    backend = await start_backend()
    gateway = await start_gateway(backend, max_attempts=1)
    client, connection = await answered_with_another_behind(gateway, backend, plain, REQUEST, pad)
    await backend.wait_for(4)
    connection.shutdown()
    await backend.stop()
    status, headers, _ = await client.answer()
    assert (status, headers["connection"]) == (503, "close")
    assert await client.eof() == b""


@EITHER
async def test_the_body_of_what_follows_comes_later(
    start_backend: StartBackend, start_gateway: StartGateway, plain: list[bool], pad: int
) -> None:
    """A request that the application answers gets its whole body."""
    backend = await start_backend()
    gateway = await start_gateway(backend)
    behind = b"POST /services/llm-primary/resume HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4\r\n\r\nab"
    client, _ = await answered_with_another_behind(gateway, backend, plain, behind, pad)
    client.writer.write(b"cd" + HEALTH)
    assert [(await client.answer())[0] for _ in range(2)] == [200, 200]


@pytest.mark.parametrize(("more", "is_fast"), [({"stream": True}, False), ({}, True)])
async def test_a_body_is_scanned_once(
    start_backend: StartBackend,
    start_gateway: StartGateway,
    plain: list[bool],
    more: dict[str, bool],
    is_fast: bool,
) -> None:
    """Also that of a stream, which the fast path hands on, and of a request whose response comes in pieces."""
    backend = await start_backend(pad=300_000)
    gateway = await start_gateway(backend)
    client = await warmed(gateway, plain)
    scans = 0

    def count(frame: FrameType, event: str, _argument: object) -> None:
        nonlocal scans
        scans += event == "call" and frame.f_code is scan_json.__code__

    sys.setprofile(count)
    try:
        client.writer.write(post({"model": "qwen", "messages": [{"role": "user", "content": "Hi"}], **more}))
        await (client.until(b"data: [DONE]\n\n") if more else client.answer())
    finally:
        sys.setprofile(None)
    assert plain == [is_fast]
    assert scans == 1
