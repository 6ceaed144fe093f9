"""Clients that do not read their responses delay only themselves."""

import asyncio
import socket
from typing import Any

import pytest

from tests.gateway.conftest import StartBackend, StartGateway
from tests.gateway.running import HANG_S, RunningGateway, post

REQUEST = post({"model": "qwen"})
OK = b"HTTP/1.1 200 OK\r\n"
ANSWER = 60_000
# More than all buffers of the kernel on the way take.
MANY = 300


def asking(gateway: RunningGateway) -> socket.socket:
    """A client with little room for what it is sent."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.connect(("127.0.0.1", gateway.port))
    client.setblocking(False)
    return client


async def filled(gateway: RunningGateway, client: socket.socket) -> Any:
    """The gateway's connection for this client, once it can write no more to it."""
    await gateway.until(lambda: gateway.context.connections)
    (connection,) = gateway.context.connections
    await asyncio.get_running_loop().sock_sendall(client, REQUEST)
    sent = 1
    while not connection.full:
        await gateway.until(lambda: connection.full or connection._running is None)  # type: ignore[attr-defined]
        await asyncio.get_running_loop().sock_sendall(client, REQUEST)
        sent += 1
        await asyncio.sleep(0)
    await gateway.until(lambda: connection._running is None)  # type: ignore[attr-defined]
    return connection, sent


async def test_requests_wait_until_the_client_reads(start_backend: StartBackend, start_gateway: StartGateway) -> None:
    backend = await start_backend(pad=ANSWER)
    gateway = await start_gateway(backend)
    client = asking(gateway)
    connection, sent = await filled(gateway, client)
    await asyncio.get_running_loop().sock_sendall(client, REQUEST * MANY)
    await gateway.until(lambda: connection.flow.read_paused)
    assert connection.transport.get_write_buffer_size() < 10 * ANSWER
    answers, rest = 0, b""
    async with asyncio.timeout(HANG_S):
        while answers < sent + MANY:
            data = await asyncio.get_running_loop().sock_recv(client, 1 << 20)
            assert data
            answers += (rest + data).count(OK)
            # Half a line may be left, and no whole one.
            rest = (rest + data)[1 - len(OK) :]
            assert connection.transport.get_write_buffer_size() < 10 * ANSWER
    client.close()
    assert len(backend.requests) == sent + MANY


@pytest.mark.parametrize("closing", [False, True])
async def test_client_that_never_reads_is_disconnected(
    start_backend: StartBackend, start_gateway: StartGateway, closing: bool
) -> None:
    """Also if the unread response was the last one."""
    gateway = await start_gateway(await start_backend(pad=ANSWER), client_timeout=0.5, keep_alive_timeout=0.5)
    client = asking(gateway)
    connection, _ = await filled(gateway, client)
    if closing:
        connection.transport.close()
    await gateway.until(lambda: not gateway.context.connections)
    client.close()


async def test_client_that_never_reads_own_routes_is_disconnected(
    start_backend: StartBackend, start_gateway: StartGateway
) -> None:
    """The application waits in the middle of a response then."""
    gateway = await start_gateway(await start_backend(), client_timeout=0.5)
    client = asking(gateway)
    await gateway.until(lambda: gateway.context.connections)
    (connection,) = gateway.context.connections
    connection.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    await asyncio.get_running_loop().sock_sendall(client, b"GET /openapi.json HTTP/1.1\r\nHost: a\r\n\r\n" * 20)
    await gateway.until(lambda: not gateway.context.connections)
    client.close()
