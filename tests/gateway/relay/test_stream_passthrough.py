"""Chunks of a stream are forwarded unchanged, whatever comes between them."""

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from gateway.relay.stream_passthrough import MAX_READ, StreamPassthrough
from gateway.streams.transcript import MAX_PENDING
from tests.gateway.behaviour.test_faults import settled
from tests.gateway.conftest import StartGateway
from tests.gateway.running import HANG_S, RunningGateway, post
from tests.support.backends.responses import ENGINE_DIED

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
LISTING = json.dumps({"object": "list", "data": [{"id": "org/x", "object": "model"}]}).encode()


def word(text: str) -> bytes:
    """One event."""
    return b"data: " + json.dumps({"choices": [{"index": 0, "delta": {"content": text}}]}).encode() + b"\n\n"


def chunk(data: bytes, digits: bytes = b"%x") -> bytes:
    """One chunk as it goes on the wire."""
    return digits % len(data) + b"\r\n" + data + b"\r\n"


def word_chunk(number: int) -> bytes:
    """An event with one word."""
    return chunk(word(f" w{number}"))


def plain(first: int, count: int) -> list[bytes]:
    """`count` words, one per chunk."""
    return [word_chunk(number) for number in range(first, first + count)]


# Several ticks of the deadline watch, in seconds.
PAUSE_S = 0.5


class Backend(asyncio.Protocol):
    """One connection of a server whose responses the test writes. It puts itself into `asked` at each chat request."""

    def __init__(self, asked: asyncio.Queue[asyncio.Transport]) -> None:
        self._asked = asked
        self._got = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._got += data
        if self._got.startswith(b"GET /v1/models"):
            self._transport.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(LISTING), LISTING))
        elif self._got.startswith(b"GET"):
            self._transport.write(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n")
        elif not self._got.endswith(b"}"):
            return
        else:
            self._asked.put_nowait(self._transport)
        self._got = b""


CASES = {
    "one event a chunk": ([*plain(0, 40)], 38),
    "several events a chunk": ([chunk(word("a") + word("b")) for _ in range(5)], 3),
    "several chunks a read": ([*plain(0, 3), b"".join(plain(3, 3)), *plain(6, 3)], 4),
    "half an event": ([*plain(0, 3), chunk(word("x")[:9]), chunk(word("x")[9:]), *plain(4, 3)], 3),
    "half a chunk": ([*plain(0, 3), chunk(word("x"))[:9], chunk(word("x"))[9:], *plain(4, 3)], 1),
    "upper case, leading zeros": ([chunk(word(" " * n), b"%04X") for n in range(60, 70)], 0),
    "long": ([*plain(0, 3), chunk(word("x" * MAX_READ)), *plain(4, 3)], 4),
    "comments": ([*plain(0, 3), chunk(b": ping\n\n"), *plain(4, 3)], 5),
    "what ends like a chunk within": ([*plain(0, 3), chunk(b"data: a\n\n\r\n\n\n"), *plain(4, 3)], 5),
}


class Stream:
    """One streamed response of the backend "raw", which the test writes piece by piece."""

    def __init__(self, backend: asyncio.Transport, reader: asyncio.StreamReader) -> None:
        self._backend = backend
        self._reader = reader
        self._sent = b""
        self.got = b""
        backend.write(HEAD)

    async def write(self, piece: bytes) -> None:
        """Write it in a read of its own: what is whole has to have passed before the next is written."""
        self._backend.write(piece)
        self._sent += piece
        transcript, so_far = unchunked(self.got), unchunked(self._sent)
        if transcript == so_far or not so_far.endswith(b"\n\n"):
            await asyncio.sleep(0.05)
            return
        while unchunked(self.got) != so_far:
            await self._read()

    def broken(self, piece: bytes) -> None:
        """Write what must not reach the client as it is."""
        self._backend.write(piece)

    async def flush(self) -> bytes:
        """What the client got, whole."""
        while not self.got.endswith(b"\r\n0\r\n\r\n"):
            await self._read()
        return unchunked(self.got)

    async def end(self) -> bytes:
        """The same, where the backend ends it."""
        self._backend.write(b"0\r\n\r\n")
        return await self.flush()

    async def _read(self) -> None:
        async with asyncio.timeout(HANG_S):
            if not self.got:
                await self._reader.readuntil(b"\r\n\r\n")
            self.got += await self._reader.read(65536)


Streaming = tuple[RunningGateway, Callable[[], Awaitable[Stream]]]


@contextlib.asynccontextmanager
async def streaming(start_gateway: StartGateway, **settings: Any) -> AsyncIterator[Streaming]:
    """A gateway with one backend, and a function that requests a stream; its head is cached from the second on."""
    asked: asyncio.Queue[asyncio.Transport] = asyncio.Queue()
    server = await asyncio.get_running_loop().create_server(lambda: Backend(asked), "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        gateway = await start_gateway(services=f"raw=http://127.0.0.1:{port};kind=llm;models=qwen", **settings)
        await gateway.until(lambda: gateway.backend("raw").state == "healthy")
        reader, writer = await gateway.raw()

        async def ask() -> Stream:
            writer.write(post({"model": "qwen", "stream": True, "messages": []}))
            return Stream(await asked.get(), reader)

        first = await ask()
        await first.write(word_chunk(0))
        await first.end()
        yield gateway, ask


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """For each read of a passthrough, whether it was forwarded unchanged."""
    took: list[bool] = []
    try_forward = StreamPassthrough.try_forward

    def watched(self: StreamPassthrough, data: bytes) -> bool:
        took.append(try_forward(self, data))
        return took[-1]

    monkeypatch.setattr(StreamPassthrough, "try_forward", watched)
    return took


@pytest.mark.parametrize("name", CASES)
async def test_client_gets_everything_in_order_and_once(
    start_gateway: StartGateway, short: list[bool], name: str
) -> None:
    pieces, least = CASES[name]
    async with streaming(start_gateway) as (_, ask):
        stream = await ask()
        for piece in pieces:
            await stream.write(piece)
        assert await stream.end() == unchunked(b"".join(pieces))
    assert short.count(True) == least, short


@pytest.mark.parametrize("wrong", [b"\n" + b"x" * 16 + b"\n\n\r\n", b"3\r\n" + word("a") + b"\r\n"])
async def test_malformed_chunk_is_not_forwarded(start_gateway: StartGateway, short: list[bool], wrong: bytes) -> None:
    """A read that ends like an event but whose chunk size is wrong."""
    async with streaming(start_gateway) as (_, ask):
        stream = await ask()
        for piece in plain(0, 4):
            await stream.write(piece)
        assert short == [True, True]
        stream.broken(wrong)
        events = await stream.flush()
    assert events.startswith(unchunked(b"".join(plain(0, 4))))
    assert wrong not in stream.got
    assert b'"error"' in events


async def test_error_event_of_a_failed_engine_is_not_forwarded(start_gateway: StartGateway, short: list[bool]) -> None:
    async with streaming(start_gateway) as (_, ask):
        stream = await ask()
        for piece in plain(0, 4):
            await stream.write(piece)
        stream.broken(chunk(ENGINE_DIED))
        events = await stream.flush()
    assert short == [True, True, False]
    assert b"failed in the middle of its response" in events


async def test_forwarded_chunks_move_the_deadline_and_are_recorded(
    start_gateway: StartGateway, short: list[bool]
) -> None:
    """The longest gap is learned, and the transcript's pending list stays bounded."""
    async with streaming(start_gateway, stream_idle_floor=0.1, stream_idle_timeout=30.0) as (gateway, ask):
        backend, stream = gateway.backend("raw"), await ask()
        for number, piece in enumerate(plain(0, MAX_PENDING * 2 + 9)):
            before = backend.traffic.last_byte_at
            await stream.write(piece)
            assert backend.traffic.last_byte_at > before
            if number in (5, 9):
                # Longer than the idle timeout, which is extended because no other backend can continue the stream.
                pause_until = backend.traffic.last_byte_at + PAUSE_S
                await gateway.until(lambda until=pause_until: time.monotonic() > until)
        clients: Any = gateway.context.connections
        (exchange,) = [client._running for client in clients if client._running]
        transcript = exchange.response.transcript
        assert len(transcript.pending) < MAX_PENDING
        assert all(piece.startswith(b"data: ") and piece.endswith(b"\n\n") for piece in transcript.pending)
        transcript.read()
        assert transcript.text == "".join(f" w{number}" for number in range(MAX_PENDING * 2 + 9))
        assert await stream.end() == unchunked(b"".join(plain(0, MAX_PENDING * 2 + 9)))
        await gateway.until(lambda: settled(gateway))
        assert (backend.load.gaps.longest or 0) > PAUSE_S
    assert short.count(True) == MAX_PENDING * 2 + 7


def unchunked(data: bytes) -> bytes:
    """The content of whole chunks, without what follows them."""
    body = b""
    while b"\r\n" in data:
        digits, _, data = data.partition(b"\r\n")
        size = int(digits, 16)
        if not size or len(data) < size + 2:
            break
        assert data[size : size + 2] == b"\r\n"
        body, data = body + data[:size], data[size + 2 :]
    return body
