"""Pipelined requests: what one read may start is bounded, and all are answered in order once the client reads."""

import asyncio
import socket
from typing import Any

import pytest

from gateway.relay.client_protocol import RELAYED, GatewayProtocol
from gateway.relay.request_parser import MAX_HELD
from tests.gateway.conftest import StartBackend, StartGateway
from tests.gateway.running import HANG_S, RunningGateway, post
from tests.support.work import calls

# The most that one read returns: asyncio's and uvloop's buffer.
MAX_READ = 256 * 1024
HEALTH = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
CHAT = post({"model": "qwen", "messages": []}, "Content-Type: application/json")
CHUNKED = (
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
    b'10\r\n{"model":"qwen"}\r\n0\r\nX-Trailer: 1\r\n\r\n'
)
REQUESTS = {
    "own route": b"GET / HTTP/1.1\r\nHost:a\r\n\r\n",
    "own route with a body": b"POST /health HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\n\r\n\r\n",
    "refused": post({"model": "missing"}),
    "relayed": CHAT,
    "chunked": CHUNKED,
    "mixed": HEALTH + CHAT + CHUNKED,
}


async def flood(gateway: RunningGateway, request: bytes, size: int = MAX_READ) -> tuple[socket.socket, GatewayProtocol]:
    """A client that sends so many bytes of requests and reads nothing; the gateway's connection, once that stops."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.connect(("127.0.0.1", gateway.port))
    client.setblocking(False)
    before = set(gateway.context.connections)
    await gateway.until(lambda: set(gateway.context.connections) - before)
    (connection,) = set(gateway.context.connections) - before
    assert isinstance(connection, GatewayProtocol)
    # The kernel would take thousands of responses.
    connection.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    data = memoryview(request * (size // len(request)))
    while data:
        try:
            data = data[client.send(data) :]
        except BlockingIOError:
            if connection.full:
                break
            await asyncio.sleep(0.002)
    return client, connection


@pytest.mark.parametrize("name", REQUESTS)
async def test_client_that_does_not_read_is_not_parsed_ahead(
    start_backend: StartBackend, start_gateway: StartGateway, name: str
) -> None:
    """One request at a time, bounded bytes behind it, and others are answered meanwhile."""
    gateway = await start_gateway(await start_backend(pad=1000))
    ahead = 0

    def watch(connection: GatewayProtocol) -> bool:
        nonlocal ahead
        tasks = [task for task in gateway.server.server_state.tasks if not task.done()]
        ahead = max(ahead, len(tasks), len(connection.pipeline))
        assert len(connection._held) <= MAX_HELD + 2 * MAX_READ
        assert gateway.context.memory.in_use <= MAX_HELD + 2 * MAX_READ + len(REQUESTS[name])
        # The application, unlike the relay, may be in the middle of a response.
        return connection.full and (connection._running is None or not isinstance(connection._running, RELAYED))

    client, connection = await flood(gateway, REQUESTS[name], 8 * MAX_READ)
    while not watch(connection):
        assert (await gateway.http.get("/health")).status_code == 200
    assert ahead <= 2
    await gateway.until(lambda: connection.flow.read_paused)
    assert connection.transport.get_write_buffer_size() < MAX_READ
    client.close()
    await gateway.until(lambda: connection not in gateway.context.connections)
    assert gateway.context.memory.in_use == 0


@pytest.mark.parametrize("name", REQUESTS)
async def test_all_are_answered_when_the_client_reads(
    start_backend: StartBackend, start_gateway: StartGateway, name: str
) -> None:
    backend = await start_backend(pad=1000)
    gateway = await start_gateway(backend)
    request = REQUESTS[name]
    count = 100
    client, _ = await flood(gateway, request, count * len(request))
    last = b"GET /v1/models/last HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
    answer = b""
    async with asyncio.timeout(HANG_S):
        sending: Any = asyncio.ensure_future(asyncio.get_running_loop().sock_sendall(client, last))
        while data := await asyncio.get_running_loop().sock_recv(client, 1 << 20):
            answer += data
        await sending
    client.close()
    parts = request.count(b" HTTP/1.1\r\n")
    assert answer.count(b"HTTP/1.1 ") == parts * count + 1
    assert answer.count(b"HTTP/1.1 404 ") == 1 + (count if name == "refused" else 0)
    assert b"model_not_found" in answer[answer.rindex(b"HTTP/1.1 ") :]
    relayed = {"relayed": 1, "chunked": 1, "mixed": 2}.get(name, 0)
    assert len(backend.requests) == relayed * count


@pytest.mark.parametrize("cut", [*range(1, 4), 10, 40])
async def test_reads_may_cut_anywhere(start_backend: StartBackend, start_gateway: StartGateway, cut: int) -> None:
    """Also within the empty line that ends a head or a chunked body."""
    gateway = await start_gateway(await start_backend())
    reader, writer = await gateway.raw()
    sent = (CHUNKED + HEALTH) * 3 + CHUNKED
    await gateway.until(lambda: gateway.context.connections)
    (connection,) = gateway.context.connections
    assert isinstance(connection, GatewayProtocol)
    for start in range(0, len(sent), cut):
        connection.data_received(sent[start : start + cut])
    async with asyncio.timeout(HANG_S):
        for _ in range(7):
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            assert head.startswith(b"http/1.1 200 ")
            lengths = [line[16:] for line in head.split(b"\r\n") if line.startswith(b"content-length: ")]
            await reader.readexactly(int(lengths[0]))
    writer.close()


async def test_client_leaves_while_its_requests_wait(start_backend: StartBackend, start_gateway: StartGateway) -> None:
    """The request that is being answered is cancelled, those behind it are never sent."""
    backend = await start_backend(hang=True)
    gateway = await start_gateway(backend)
    _, writer = await gateway.raw()
    writer.write(CHAT * 10)
    await backend.wait_for(1)
    await gateway.until(lambda: gateway.context.memory.in_use > 5 * len(CHAT))
    writer.close()
    await gateway.until(lambda: not gateway.context.connections)
    assert gateway.context.memory.in_use == 0
    assert len(backend.requests) == 1


async def test_pipeline_without_memory_ends_with_the_present_response(
    start_backend: StartBackend, start_gateway: StartGateway
) -> None:
    """The client sends the rest again, on another connection (RFC 9112, 9.3.2)."""
    backend = await start_backend(ttft=0.2)
    gateway = await start_gateway(backend, max_body_mb=1, max_buffered_mb=1)
    _, holder = await gateway.raw()
    holder.write(b"POST /explain HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\n" + b" " * 999_999)
    await gateway.until(lambda: gateway.context.memory.in_use > 900_000)
    answer = await gateway.send_raw(CHAT + CHAT * 2000)
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert answer.count(b"HTTP/1.1 ") == 1
    assert b"connection: close\r\n" in answer.lower()


@pytest.mark.parametrize("filling", [b"\r\n\r\n,0", b",\r\n0\r\n\r\n"])
async def test_a_body_that_looks_like_its_end_costs_no_more_than_another(
    start_backend: StartBackend, start_gateway: StartGateway, filling: bytes
) -> None:
    """An empty line within a chunk is no end: the body is parsed in one piece, and arrives whole."""
    backend = await start_backend()
    gateway = await start_gateway(backend)

    async def work(body: bytes) -> int:
        """Send a chunked body; return how many functions parsing its chunk calls."""
        _, writer = await gateway.raw()
        await gateway.until(lambda: gateway.context.connections)
        (connection,) = gateway.context.connections
        assert isinstance(connection, GatewayProtocol)
        connection.data_received(CHUNKED.partition(b"10\r\n")[0])
        count = calls(lambda: connection.data_received(b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)))
        await gateway.until(lambda: any(request.body == body for request in backend.requests))
        writer.close()
        await gateway.until(lambda: not gateway.context.connections)
        return count

    body = b'{"model":"qwen","a":[0%b]}'
    usual = await work(body % (b" " * len(filling) * 2000))
    assert await work(body % (filling * 2000)) <= 1.5 * usual


async def test_many_tiny_headers_are_431(start_backend: StartBackend, start_gateway: StartGateway) -> None:
    """A header costs 32 bytes beyond its own (RFC 9113, 6.5.2)."""
    gateway = await start_gateway(await start_backend(), max_head_kb=64)
    headers = b"a:b\r\n" * 2500
    answer = await gateway.send_raw(b"GET / HTTP/1.1\r\nHost: a\r\n" + headers + b"\r\n")
    assert answer.startswith(b"HTTP/1.1 431 ")
