"""Requests on connections that the backend has just closed are sent again on fresh ones."""

import asyncio
import os
import socket

import httpx2
import pytest

from gateway.bodies import spool
from gateway.bodies.spool import MAX_IN_MEMORY
from tests.gateway.conftest import StartBackend, StartGateway
from tests.gateway.running import RunningGateway, error_code
from tests.support.backends.openai_backend import FakeBackend

SPOOLED = b"\x00\xffRIFF" * (2 * MAX_IN_MEMORY // 6)


async def upload(gateway: RunningGateway, sound: bytes) -> httpx2.Response:
    """One transcription."""
    return await gateway.http.post(
        "/v1/audio/transcriptions", data={"model": "whisper"}, files={"file": ("a.wav", sound)}
    )


async def fill_pool(gateway: RunningGateway, backend: FakeBackend, count: int) -> None:
    """Leave `count` idle connections in the pool."""
    backend.switches.gated = True
    asked = [asyncio.create_task(gateway.chat("qwen", stream=True)) for _ in range(count)]
    await backend.wait_for(len(backend.requests) + count)
    backend.switches.gated = False
    for _ in range(count * backend.switches.tokens):
        backend.gate.release()
    assert {(await one).status_code for one in asked} == {200}
    await gateway.until(lambda: gateway.backend(backend.name).pool.idle_count == count)


async def test_stale_pool_fails_no_request(start_backend: StartBackend, start_gateway: StartGateway) -> None:
    """All idle connections are closed; as many and more requests at once succeed."""
    backend = await start_backend(reset_reused=True)
    gateway = await start_gateway(backend, max_attempts=1)
    await fill_pool(gateway, backend, 5)
    before = len(backend.requests)
    answers = await asyncio.gather(*(gateway.chat("qwen", stream=bool(index % 2)) for index in range(8)))
    assert {answer.status_code for answer in answers} == {200}
    assert {answer.headers["x-attempts"] for answer in answers} == {"1"}
    assert len(backend.requests) - before == 8
    assert gateway.backend("llm-primary").traffic.failures == 0


@pytest.mark.parametrize("sound", [b"RIFF", SPOOLED], ids=["in memory", "on disk"])
async def test_upload_is_sent_again_after_a_stale_connection(
    start_backend: StartBackend, start_gateway: StartGateway, sound: bytes
) -> None:
    """From memory or from disk."""
    backend = await start_backend("transcription", model="whisper", kind="transcription", reset_reused=True)
    gateway = await start_gateway(backend)
    for _ in range(3):
        assert (await upload(gateway, sound)).status_code == 200
    assert len(backend.work_connections) == 3
    assert all(sound in request.body for request in backend.requests)
    assert len({len(request.body) for request in backend.requests}) == 1
    assert gateway.context.spool.available == 8192 << 20
    assert gateway.backend("transcription").traffic.failures == 0


async def test_upload_stops_on_a_dead_connection(
    start_backend: StartBackend, start_gateway: StartGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rest is not read from the disk."""
    backend = await start_backend("transcription", model="whisper", kind="transcription")
    gateway = await start_gateway(backend, poll_interval=60)
    assert (await upload(gateway, b"RIFF")).status_code == 200
    pool = gateway.backend("transcription").pool
    (idle,) = pool._idle
    idle.transport.pause_reading()  # so that the gateway does not see the end before it writes
    await backend.stop()
    await backend.start()
    read = 0
    pread = os.pread

    def counted(descriptor: int, count: int, offset: int) -> bytes:
        nonlocal read
        read += 1
        return pread(descriptor, count, offset)

    monkeypatch.setattr(os, "pread", counted)
    sound = b"\x00\xffRIFF" * (40 * MAX_IN_MEMORY // 6)
    assert (await upload(gateway, sound)).status_code == 200
    pieces = len(sound) // spool.PIECE + 1
    assert pieces <= read < 1.5 * pieces


@pytest.mark.parametrize("pooled", [False, True])
async def test_first_request_after_a_crash_gets_503(
    start_backend: StartBackend, start_gateway: StartGateway, pooled: bool
) -> None:
    """On a stale connection or a new one; the message names the service."""
    backend = await start_backend()
    gateway = await start_gateway(backend, poll_interval=60)
    if pooled:
        assert (await gateway.chat("qwen")).status_code == 200
        gateway.backend(backend.name).pool._idle[0].transport.pause_reading()  # so that the end is not seen
    await backend.stop()
    assert gateway.backend(backend.name).state == "healthy"
    answer = await gateway.chat("qwen")
    assert answer.status_code == 503
    assert error_code(answer) == "no_healthy_backend"
    assert "llm-primary is unhealthy (cannot connect" in answer.json()["error"]["message"]
    assert int(answer.headers["retry-after"]) >= 1


async def test_tcp_keep_alive_is_enabled(start_backend: StartBackend, start_gateway: StartGateway) -> None:
    backend = await start_backend(hang=True)
    gateway = await start_gateway(backend)
    asked = asyncio.create_task(gateway.chat("qwen"))
    await backend.wait_for(1)
    (connection,) = gateway.backend("llm-primary").pool._open
    raw = connection.transport.get_extra_info("socket")
    assert raw.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    idle, every, probes = (
        raw.getsockopt(socket.IPPROTO_TCP, option)
        for option in (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
    )
    assert idle + every * probes <= 10
    asked.cancel()
    await asyncio.gather(asked, return_exceptions=True)
