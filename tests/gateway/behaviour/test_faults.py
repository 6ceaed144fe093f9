"""Failing backends and disconnecting clients."""

import asyncio
import json
import socket

import pytest

from gateway.backends.offers import offer_of_id
from tests.gateway.conftest import StartBackend, StartGateway
from tests.gateway.running import HANG_S, RunningGateway, error_code, post
from tests.support.backends.openai_backend import FakeBackend


def settled(gateway: RunningGateway) -> bool:
    """Whether nothing is in flight and every upstream connection lies idle in its pool."""
    return gateway.context.metrics.relaying == 0 and all(
        backend.traffic.in_flight == 0 and backend.pool.open_count == backend.pool.idle_count
        for backend in gateway.context.backends
    )


@pytest.mark.parametrize(
    "fault",
    [
        {"reset": True},
        {"garbage": True},
        {"fail_rate": 1.0, "fail_status": 502},
        {"fail_rate": 1.0, "fail_status": 503},
        {"fail_rate": 1.0, "fail_status": 504},
        {"reset_after": 0},
    ],
    ids=str,
)
@pytest.mark.parametrize("stream", [False, True])
async def test_failure_before_the_first_byte_is_retried(
    start_backend: StartBackend, start_gateway: StartGateway, fault: dict[str, object], stream: bool
) -> None:
    """Whatever the fault, the client sees one good response."""
    good = await start_backend("good")
    bad = await start_backend("bad", **fault)
    gateway = await start_gateway(bad, good)
    for _ in range(3):
        answer = await gateway.chat("qwen", stream=stream)
        assert answer.status_code == 200
        assert "token3" in answer.text
    if not ("reset_after" in fault and not stream):
        assert bad.requests
        assert len(good.requests) == 3
        assert gateway.backend("bad").traffic.failures == len(bad.requests)
    await gateway.until(lambda: settled(gateway))


async def test_killed_backend_fails_no_request(start_backend: StartBackend, start_gateway: StartGateway) -> None:
    """It is reported as unhealthy at once."""
    one, two = await start_backend("one"), await start_backend("two")
    gateway = await start_gateway(one, two, poll_interval=60)
    for _ in range(4):
        assert (await gateway.chat("qwen")).status_code == 200
    assert one.requests
    assert two.requests
    await one.stop()
    answers = await asyncio.gather(*(gateway.chat("qwen") for _ in range(20)))
    assert {answer.status_code for answer in answers} == {200}
    await gateway.until(lambda: gateway.backend("one").state == "unhealthy")
    await gateway.until(lambda: settled(gateway))


async def test_only_backend_killed(start_backend: StartBackend, start_gateway: StartGateway) -> None:
    """A 503 names it; other models are not affected."""
    llm = await start_backend("llm-primary")
    embedding = await start_backend("embedding", model="minilm", kind="embedding")
    gateway = await start_gateway(llm, embedding)
    assert (await gateway.chat("qwen")).status_code == 200
    await llm.stop()
    answer = await gateway.chat("qwen")
    assert answer.status_code == 503
    assert error_code(answer) == "no_healthy_backend"
    assert "llm-primary is unhealthy" in answer.json()["error"]["message"]
    assert int(answer.headers["retry-after"]) >= 1
    assert (await gateway.http.post("/v1/embeddings", json={"input": "x"})).status_code == 200
    services = (await gateway.http.get("/services")).json()
    assert services["services"]["llm-primary"]["healthy"] is False
    assert services["healthy"] == 1


async def test_restarted_backend_is_used_again(start_backend: StartBackend, start_gateway: StartGateway) -> None:
    backend = await start_backend()
    gateway = await start_gateway(backend)
    await backend.stop()
    await gateway.until(lambda: gateway.backend("llm-primary").state == "unhealthy")
    await backend.start()
    await gateway.until(lambda: gateway.backend("llm-primary").state == "healthy")
    assert (await gateway.chat("qwen")).status_code == 200


async def test_unannounced_close_after_each_response_fails_no_request(
    start_backend: StartBackend, start_gateway: StartGateway
) -> None:
    backend = await start_backend(close_idle=True)
    gateway = await start_gateway(backend)
    for _ in range(10):
        assert (await gateway.chat("qwen")).status_code == 200
    assert gateway.backend("llm-primary").traffic.failures == 0


async def test_client_gets_502_after_the_last_attempt(start_backend: StartBackend, start_gateway: StartGateway) -> None:
    backends = [await start_backend(f"b{index}", garbage=True) for index in range(4)]
    gateway = await start_gateway(*backends, max_attempts=3)
    answer = await gateway.chat("qwen")
    assert answer.status_code == 502
    assert error_code(answer) == "bad_gateway"
    assert answer.headers["x-attempts"] == "3"
    assert sum(len(backend.requests) for backend in backends) == 3
    await gateway.until(lambda: settled(gateway))


@pytest.mark.parametrize("status", [400, 404, 422, 429, 500, 503])
async def test_error_of_the_only_backend_is_forwarded_unchanged(
    start_backend: StartBackend, start_gateway: StartGateway, status: int
) -> None:
    backend = await start_backend(fail_rate=1.0, fail_status=status)
    gateway = await start_gateway(backend)
    answer = await gateway.chat("qwen")
    assert answer.status_code == status
    assert answer.json() == {"error": {"message": "switched to fail", "code": "fail"}}
    assert answer.headers["x-served-by"] == "llm-primary"
    assert len(backend.requests) == 1


@pytest.mark.parametrize("framing", ["length", "close"])
@pytest.mark.parametrize(
    ("path", "marks"),
    [
        ("/v1/chat/completions", [b'data: {"error": {']),
        ("/v1/messages", [b"event: error\n", b'{"type": "error", "error": {']),
        ("/v1/responses", [b"event: error\n", b'{"type": "error", "code": "bad_gateway"']),
    ],
)
async def test_stream_cut_by_its_backend_ends_in_an_error_event(
    start_backend: StartBackend, start_gateway: StartGateway, path: str, marks: list[bytes], framing: str
) -> None:
    """After whole events; the client's connection is kept."""
    gateway = await start_gateway(await start_backend(reset_after=2, framing=framing))
    for number in range(2):
        body = {"model": "qwen", "messages": [], "stream": True, "user": str(number)}
        answer = await gateway.http.post(path, json=body)
        events = answer.content.split(b"\n\n")
        assert events.pop() == b""
        assert [b"token" in event for event in events] == [False, True, True, False]
        for mark in marks:
            assert mark in events[-1] + b"\n"
        assert b"llm-primary" in events[-1]
        assert json.loads(events[-1].split(b"data: ")[1])
    assert len(gateway.server.server_state.connections) == 1
    await gateway.until(lambda: settled(gateway))


async def test_error_event_over_http10(start_backend: StartBackend, start_gateway: StartGateway) -> None:
    gateway = await start_gateway(await start_backend(reset_after=1))
    request = post({"model": "qwen", "messages": [], "stream": True}).replace(b"HTTP/1.1", b"HTTP/1.0")
    assert b'data: {"error": {' in await gateway.send_raw(request)


async def test_silent_stream_ends_in_an_error_event(start_backend: StartBackend, start_gateway: StartGateway) -> None:
    """After STREAM_IDLE_TIMEOUT."""
    backend = await start_backend(hang_after=1)
    gateway = await start_gateway(backend, stream_idle_timeout=0.5)
    answer = await gateway.chat("qwen", stream=True)
    assert '"code": "upstream_timeout"' in answer.text
    assert "token0" in answer.text
    await asyncio.wait_for(backend.requests[0].gone.wait(), HANG_S)
    await gateway.until(lambda: settled(gateway))


@pytest.mark.parametrize("stream", [False, True])
async def test_first_byte_timeout(start_backend: StartBackend, start_gateway: StartGateway, stream: bool) -> None:
    """The client gets a 504, and the backend's connection is closed."""
    backend = await start_backend(hang=True)
    gateway = await start_gateway(backend, first_byte_timeout=0.1)
    answer = await gateway.chat("qwen", stream=stream)
    assert answer.status_code == 504
    assert error_code(answer) == "upstream_timeout"
    await asyncio.wait_for(backend.requests[0].gone.wait(), HANG_S)
    await gateway.until(lambda: settled(gateway))


async def test_unresolvable_backend_is_unhealthy(start_gateway: StartGateway) -> None:
    """Not an internal error."""
    gateway = await start_gateway(services="far=http://no-such-host.invalid:1;kind=llm;models=qwen")
    answer = await gateway.chat("qwen")
    assert answer.status_code == 503
    assert "far" in answer.json()["error"]["message"]


@pytest.mark.parametrize("switches", [{"hang": True}, {"hang_after": 2}, {"gated": True}, {"slow_head": 30.0}], ids=str)
@pytest.mark.parametrize("leave", ["close", "abort"])
async def test_client_disconnect_ends_the_backend_request(
    start_backend: StartBackend, start_gateway: StartGateway, switches: dict[str, object], leave: str
) -> None:
    """By close or reset, before or during the response."""
    backend = await start_backend(**switches)
    gateway = await start_gateway(backend)
    _, writer = await gateway.raw()
    writer.write(post({"model": "qwen", "messages": [], "stream": True}))
    request = (await backend.wait_for(1))[0]
    assert gateway.backend("llm-primary").traffic.in_flight == 1
    if leave == "close":
        writer.close()
    else:
        writer.transport.abort()
    await asyncio.wait_for(request.gone.wait(), HANG_S)
    await gateway.until(lambda: settled(gateway))


@pytest.mark.parametrize(("switches", "stream"), [({"gated": True}, True), ({"pad": 30_000_000}, False)], ids=str)
async def test_cancelled_response_has_an_outcome_of_its_own(
    start_backend: StartBackend,
    start_gateway: StartGateway,
    capsys: pytest.CaptureFixture[str],
    switches: dict[str, object],
    stream: bool,
) -> None:
    """499 in access log and metrics, after the head as before it: nginx's code for a client that left."""
    backend = await start_backend(**switches)
    gateway = await start_gateway(backend, log_level="info")
    reader, writer = await gateway.raw()
    writer.write(post({"model": "qwen", "messages": [], "stream": stream}))
    backend.gate.release()
    assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
    writer.transport.abort()
    await gateway.until(lambda: settled(gateway))
    gateway.context.access_log.flush()
    (line,) = [json.loads(line) for line in capsys.readouterr().err.splitlines() if '"access"' in line]
    assert (line["status"], line["backend"], line["attempts"]) == (499, "llm-primary", 1)
    page = (await gateway.http.get("/metrics")).text
    assert 'http_requests_total{method="POST",route="/v1/chat/completions",status="499"} 1.0' in page
    assert 'route="/v1/chat/completions",status="200"' not in page
    # It had its first token.
    assert ('gateway_time_to_first_token_seconds_count{model="qwen"} 1.0' in page) is stream


async def test_client_disconnect_cancels_connecting(start_gateway: StartGateway) -> None:
    with socket.socket() as silent, socket.socket() as first, socket.socket() as second:
        silent.bind(("127.0.0.1", 0))
        silent.listen(0)
        # Nobody accepts: once the queue is full, a connection attempt gets no answer at all.
        for waiting in (first, second):
            waiting.setblocking(False)
            waiting.connect_ex(silent.getsockname())
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        gateway = await start_gateway(services=f"far={url}", poll_interval=60, connect_timeout=60)
        backend = gateway.backend("far")
        backend.set_offers((offer_of_id("qwen", None, "llm"),))
        backend.observe("healthy")
        _, writer = await gateway.raw()
        writer.write(post({"model": "qwen", "messages": []}))
        await gateway.until(lambda: backend.traffic.in_flight == 1)
        writer.close()
        await gateway.until(lambda: settled(gateway))


async def test_incomplete_body_reaches_no_backend(start_backend: StartBackend, start_gateway: StartGateway) -> None:
    backend = await start_backend()
    gateway = await start_gateway(backend)
    _, writer = await gateway.raw()
    writer.write(post({"model": "qwen", "messages": []})[:-3])
    await gateway.until(lambda: gateway.context.metrics.relaying == 1)
    writer.close()
    await gateway.until(lambda: settled(gateway))
    assert not backend.requests


async def test_slow_client_pauses_the_backend(start_backend: StartBackend, start_gateway: StartGateway) -> None:
    backend = await start_backend(pad=30_000_000, framing="chunked")
    gateway = await start_gateway(backend)
    reader, writer = await gateway.raw()
    assert isinstance(writer.transport, asyncio.Transport)
    writer.transport.pause_reading()
    writer.write(post({"model": "qwen", "messages": []}, "Connection: close"))
    client = None

    def full() -> bool:
        nonlocal client
        client = next(iter(gateway.context.connections), None)
        return client is not None and client.full

    await gateway.until(full)
    assert client is not None
    assert client.transport.get_write_buffer_size() < 2_000_000
    writer.transport.resume_reading()
    total = 0
    async with asyncio.timeout(HANG_S):
        while piece := await reader.read(1 << 20):
            total += len(piece)
    assert total > 30_000_000
    writer.close()
    await gateway.until(lambda: settled(gateway))


async def test_all_faults_together_leak_nothing(start_backend: StartBackend, start_gateway: StartGateway) -> None:
    """A hundred requests over four backends; some clients disconnect."""
    switches: list[dict[str, object]] = [
        {},
        {"reset_after": 1},
        {"fail_rate": 0.5, "fail_status": 503},
        {"reset": True},
    ]
    backends = [await start_backend(f"b{index}", **one) for index, one in enumerate(switches)]
    gateway = await start_gateway(*backends, max_attempts=4)

    async def leave(count: int) -> None:
        _, writer = await gateway.raw()
        writer.write(post({"model": "qwen", "messages": [], "stream": True}))
        for _ in range(count):
            await asyncio.sleep(0)
        writer.transport.abort()

    work = [gateway.chat("qwen", stream=bool(index % 2)) for index in range(80)]
    results = await asyncio.gather(*work, *(leave(index) for index in range(20)))
    for answer in results[:80]:
        assert answer is not None
        assert answer.status_code == 200
        assert "token3" in answer.text or '"error"' in answer.text
    await gateway.until(lambda: settled(gateway))
    for backend in backends:
        await gateway.until(lambda b=backend: gateway.backend(b.name).pool.open_count <= len(b.open))


async def test_stopped_fake_backend_refuses_connections(start_backend: StartBackend) -> None:
    backend: FakeBackend = await start_backend()
    await backend.stop()
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", backend.port)
