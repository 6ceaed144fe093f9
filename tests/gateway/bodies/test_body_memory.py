"""Bytes that wait in the gateway's memory: all count, cost their length, and leave room for others."""

import asyncio
import gc
import tracemalloc
from typing import Any

import pytest

from gateway.bodies.memory_budget import MAX_SMALL
from tests.gateway.conftest import StartBackend, StartGateway
from tests.gateway.running import HANG_S, RunningGateway, post

MB = 1024 * 1024
SMALL = b'{"model":"qwen","messages":[{"role":"user","content":"Hi"}]}'
FORM = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
# A head of each route with a body, and how that begins.
ROUTES: dict[str, tuple[bytes, bytes]] = {
    "chat": (b"POST /v1/chat/completions", b""),
    "embeddings": (b"POST /v1/embeddings", b""),
    "explain": (b"POST /explain", b""),
    "form": (b"POST /v1/audio/transcriptions", FORM),
    "recording": (b"POST /transcribe/whisper", b""),
}
TYPES = {"form": b"multipart/form-data; boundary=b", "recording": b"audio/webm"}


def head(route: str, *framing: bytes) -> bytes:
    lines = [ROUTES[route][0] + b" HTTP/1.1", b"Host: localhost"]
    lines += [b"Content-Type: " + TYPES.get(route, b"application/json"), *framing]
    return b"\r\n".join(lines) + b"\r\n\r\n"


async def client(gateway: RunningGateway, address: str = "127.0.0.1") -> tuple[asyncio.StreamReader, Any]:
    """A connection from this address of the loopback network."""
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port, local_addr=(address, 0))
    gateway.writers.append(writer)
    return reader, writer


async def hold(gateway: RunningGateway, data: bytes, count: int, address: str = "127.0.0.1") -> bytes:
    """Send a request that lacks its end; return a refusal, or b"" once `count` bytes of its body wait."""
    reader, writer = await client(gateway, address)
    before = gateway.context.memory.in_use
    writer.write(data)
    answer = asyncio.ensure_future(reader.readline())
    await gateway.until(lambda: answer.done() or gateway.context.memory.in_use >= before + count)
    if answer.done():
        return answer.result() + await reader.read(4096)
    answer.cancel()
    return b""


async def status_of(reader: asyncio.StreamReader) -> int:
    async with asyncio.timeout(HANG_S):
        return int((await reader.readline()).split(b" ")[1])


@pytest.mark.parametrize("length", [1, 7])
@pytest.mark.parametrize("route", ROUTES)
async def test_tiny_chunks_cost_their_length(
    start_backend: StartBackend, start_gateway: StartGateway, route: str, length: int
) -> None:
    """A body in chunks of a few bytes takes less than twice its length, on every route."""
    gateway = await start_gateway(await start_backend())
    _, writer = await client(gateway)
    writer.write(head(route, b"Transfer-Encoding: chunked"))
    if begin := ROUTES[route][1]:
        writer.write(b"%x\r\n%b\r\n" % (len(begin), begin))
    chunk = b"%x\r\n%b\r\n" % (length, b" " * length)
    step, steps = 32 * 1024 // length, 16  # large against one read that is still held
    gc.collect()
    tracemalloc.start()
    try:
        for number in range(1, steps + 1):
            writer.write(chunk * step)
            await gateway.until(lambda: gateway.context.memory.in_use >= number * step * length)  # noqa: B023  # awaited here
        gc.collect()
        taken = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert taken < 2 * steps * step * length
    writer.close()
    await gateway.until(lambda: gateway.context.memory.in_use == 0)


@pytest.mark.parametrize("framing", [b"Content-Length: 900000", b"Transfer-Encoding: chunked"])
@pytest.mark.parametrize("route", ROUTES)
async def test_every_route_counts(
    start_backend: StartBackend, start_gateway: StartGateway, route: str, framing: bytes
) -> None:
    """As long as the bytes wait: until the client leaves."""
    gateway = await start_gateway(await start_backend())
    _, writer = await client(gateway)
    body = ROUTES[route][1] + b" " * 300_000
    writer.write(head(route, framing) + (body if b"Length" in framing else b"%x\r\n%b\r\n" % (len(body), body)))
    await gateway.until(lambda: gateway.context.memory.in_use >= 300_000)
    assert gateway.context.memory.in_use == len(body)
    writer.close()
    await gateway.until(lambda: gateway.context.memory.in_use == 0)


@pytest.mark.parametrize("stream", [False, True])
async def test_body_counts_until_the_response_ends(
    start_backend: StartBackend, start_gateway: StartGateway, stream: bool
) -> None:
    """Also a request whose head is cached, which arrives in one read, if it is larger than MAX_UNCOUNTED."""
    backend = await start_backend()
    gateway = await start_gateway(backend)
    body: dict[str, Any] = {"model": "qwen", "messages": [], "stream": stream, "padding": "x" * 10_000}
    whole = post(body, "Content-Type: application/json")
    reader, writer = await client(gateway)
    for number in range(1, 4):
        backend.switches.ttft = 0.05
        writer.write(whole)
        await backend.wait_for(number)
        assert gateway.context.memory.in_use == len(whole.partition(b"\r\n\r\n")[2])
        await reader.readuntil(b"[DONE]\n\n\r\n0\r\n\r\n" if stream else b'"total_tokens"')
        await gateway.until(lambda: gateway.context.memory.in_use == 0)


async def test_large_request_over_the_budget_is_429(start_backend: StartBackend, start_gateway: StartGateway) -> None:
    """And succeeds once the other one has ended."""
    gateway = await start_gateway(await start_backend(), max_body_mb=1, max_buffered_mb=1)
    whole = post(b'{"model":"qwen","padding":"%b"}' % (b"x" * 900_000), "Connection: close")
    reader, writer = await client(gateway, "127.0.0.2")
    writer.write(whole[:-1])
    await gateway.until(lambda: gateway.context.memory.in_use > 900_000)
    refused = await gateway.send_raw(whole)
    assert refused.startswith(b"HTTP/1.1 429 ")
    assert b"retry-after: 5\r\n" in refused
    assert b"MAX_BUFFERED_MB" in refused
    assert (await gateway.http.post("/v1/chat/completions", json={"model": "qwen"})).status_code == 200
    writer.write(whole[-1:])
    assert await status_of(reader) == 200
    await reader.read()
    assert (await gateway.send_raw(whole)).startswith(b"HTTP/1.1 200 ")


async def test_explain_is_refused_beyond_the_budget(start_backend: StartBackend, start_gateway: StartGateway) -> None:
    """With 429, and its requests leave room for chats."""
    gateway = await start_gateway(await start_backend(), max_body_mb=4, max_buffered_mb=16)
    request = head("explain", b"Content-Length: %d" % (4 * MB)) + b" " * (4 * MB - 1)
    answers = [await hold(gateway, request, 4 * MB - 1) for _ in range(6)]
    refused = [one for one in answers if one]
    assert 0 < len(refused) < len(answers)
    assert all(one.startswith(b"HTTP/1.1 429 ") and b"MAX_BUFFERED_MB" in one for one in refused)
    assert gateway.context.memory.in_use <= 16 * MB
    assert (await gateway.chat("qwen")).status_code == 200


async def test_upload_without_memory_goes_to_disk(start_backend: StartBackend, start_gateway: StartGateway) -> None:
    """Small recordings are accepted when bodies fill the memory."""
    backend = await start_backend(model="whisper", kind="transcription")
    gateway = await start_gateway(backend, max_body_mb=1, max_buffered_mb=1)
    _, writer = await client(gateway)
    writer.write(head("chat", b"Content-Length: 1000000") + b" " * 999_000)
    await gateway.until(lambda: gateway.context.memory.in_use > 900_000)
    answer = await gateway.http.post("/v1/audio/transcriptions", files={"file": ("a.wav", b"x" * 500_000)})
    assert answer.status_code == 200


@pytest.mark.parametrize("address", ["127.0.0.1", "127.0.0.2"])
async def test_small_requests_are_served_beside_held_memory(
    start_backend: StartBackend, start_gateway: StartGateway, address: str
) -> None:
    """From the client that holds it and from others."""
    gateway = await start_gateway(await start_backend(), max_body_mb=2, max_buffered_mb=4)
    request = head("chat", b"Content-Length: %d" % (2 * MB)) + b" " * (2 * MB - 1)
    answers = [await hold(gateway, request, 2 * MB - 1) for _ in range(4)]
    assert [one[:12] for one in answers] == [b"", *[b"HTTP/1.1 429"] * 3]
    for number in range(8):
        reader, writer = await client(gateway, address)
        writer.write(head("chat", b"X: %d" % number, b"Content-Length: %d" % len(SMALL)) + SMALL)
        assert await status_of(reader) == 200


async def test_client_cannot_hold_the_memory_of_others(
    start_backend: StartBackend, start_gateway: StartGateway
) -> None:
    """A large body of another client is accepted beside all that one client can hold."""
    gateway = await start_gateway(await start_backend(), max_body_mb=1, max_buffered_mb=16)
    request = head("chat", b"Content-Length: %d" % MB) + b" " * (MB - 1)
    refused = [one for one in [await hold(gateway, request, MB - 1) for _ in range(16)] if one]
    assert refused
    assert all(one.startswith(b"HTTP/1.1 429 ") and b"This client's requests" in one for one in refused)
    reader, writer = await client(gateway, "127.0.0.2")
    body = b'{"model":"qwen","padding":"%b"}' % (b"x" * (MB - 100))
    writer.write(head("chat", b"Content-Length: %d" % len(body)) + body)
    assert await status_of(reader) == 200


async def test_client_cannot_hold_the_spool_of_others(start_backend: StartBackend, start_gateway: StartGateway) -> None:
    """Uploads that never end leave room for those of another client."""
    speech = await start_backend("speech", kind="transcription", model="whisper")
    gateway = await start_gateway(speech, max_upload_mb=4, spool_quota_mb=16)
    spool, request = gateway.context.spool, head("recording", b"Content-Length: %d" % (4 * MB))
    for number in range(1, 4):
        _, writer = await client(gateway)
        writer.write(request + b" " * (4 * MB - 100_000))
        await gateway.until(lambda: spool.available == 16 * MB - number * (4 * MB - 100_000))  # noqa: B023  # awaited here
    for address, body, status in (("127.0.0.1", b" " * 4 * MB, 507), ("127.0.0.2", b" " * 2 * MB, 200)):
        reader, writer = await client(gateway, address)
        writer.write(head("recording", b"Content-Length: %d" % len(body)) + body)
        assert await status_of(reader) == status


@pytest.mark.parametrize("burst", [10, 500_000])
@pytest.mark.parametrize("framing", [b"Content-Length: 900000", b"Transfer-Encoding: chunked"])
async def test_trickling_body_is_408(
    start_backend: StartBackend, start_gateway: StartGateway, burst: int, framing: bytes
) -> None:
    """One byte now and then is too slow, also after a fast beginning; the memory is free again."""
    gateway = await start_gateway(await start_backend(), client_timeout=0.2)
    reader, writer = await client(gateway)
    is_chunked = b"chunked" in framing
    begin = b" " * burst
    writer.write(head("chat", framing) + (b"%x\r\n%b\r\n" % (burst, begin) if is_chunked else begin))
    answer = asyncio.ensure_future(status_of(reader))
    while not answer.done():
        writer.write(b"1\r\n \r\n" if is_chunked else b" ")
        await asyncio.wait([answer], timeout=0.02)
    assert answer.result() == 408
    await gateway.until(lambda: gateway.context.memory.in_use == 0)


async def test_slow_body_arrives(start_backend: StartBackend, start_gateway: StartGateway) -> None:
    """At several times the minimum rate, for longer than CLIENT_TIMEOUT."""
    gateway = await start_gateway(await start_backend(), client_timeout=0.2)
    reader, writer = await client(gateway)
    body = b'{"model":"qwen","padding":"%b"}' % (b"x" * 20_000)
    writer.write(head("chat", b"Content-Length: %d" % len(body)))
    for start in range(0, len(body), 500):
        writer.write(body[start : start + 500])
        await asyncio.sleep(0.02)
    assert await status_of(reader) == 200


async def test_small_body_of_a_held_client_is_small_in_total(
    start_backend: StartBackend, start_gateway: StartGateway
) -> None:
    """A body that begins small and grows beyond that counts as large."""
    gateway = await start_gateway(await start_backend(), max_body_mb=1, max_buffered_mb=1)
    _, holder = await client(gateway)
    holder.write(head("chat", b"Content-Length: 1000000") + b" " * 999_999)
    await gateway.until(lambda: gateway.context.memory.in_use > 900_000)
    reader, writer = await client(gateway, "127.0.0.2")
    writer.write(head("chat", b"Content-Length: 500000") + b" " * 1000)
    await gateway.until(lambda: gateway.context.memory.in_use > 1_000_000)
    writer.write(b" " * 2 * MAX_SMALL)
    assert await status_of(reader) == 429
