"""A stream's events pass as they came, whatever comes between them."""

import asyncio
import json

import pytest

from gateway.passage import MOST, Passage
from tests.gateway.conftest import StartGateway
from tests.gateway.running import HANG_S, post

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
LISTING = json.dumps({"object": "list", "data": [{"id": "org/x", "object": "model"}]}).encode()


def word(text: str) -> bytes:
    """One event."""
    return b"data: " + json.dumps({"choices": [{"index": 0, "delta": {"content": text}}]}).encode() + b"\n\n"


def chunk(data: bytes, digits: bytes = b"%x") -> bytes:
    """As it goes on the wire."""
    return digits % len(data) + b"\r\n" + data + b"\r\n"


def plain(first: int, count: int) -> list[bytes]:
    """Some words, one a chunk."""
    return [chunk(word(f" w{number}")) for number in range(first, first + count)]


class Backend(asyncio.Protocol):
    """One connection of a server whose answers the test writes. It tells `asked` of each request for an answer."""

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
    "long": ([*plain(0, 3), chunk(word("x" * MOST)), *plain(4, 3)], 4),
    "comments": ([*plain(0, 3), chunk(b": ping\n\n"), *plain(4, 3)], 5),
    "a size that is too small": ([*plain(0, 3), chunk(b"data: a\n\n\r\n\n\n"), *plain(4, 3)], 5),
}


@pytest.mark.parametrize("name", CASES)
async def test_the_same_arrives(start_gateway: StartGateway, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Whatever a backend writes between events that pass, the client gets all of it, in order, and once."""
    pieces, least = CASES[name]
    short: list[bool] = []
    takes = Passage.takes

    def watched(self: Passage, data: bytes) -> bool:
        short.append(takes(self, data))
        return short[-1]

    monkeypatch.setattr(Passage, "takes", watched)
    asked: asyncio.Queue[asyncio.Transport] = asyncio.Queue()
    server = await asyncio.get_running_loop().create_server(lambda: Backend(asked), "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        gateway = await start_gateway(services=f"raw=http://127.0.0.1:{port};kind=llm;models=qwen")
        await gateway.until(lambda: gateway.backend("raw").state == "healthy")
        reader, writer = await gateway.raw()
        # The first answer's head is learnt, the second's is known: then no parser is needed.
        for now in (plain(0, 2), pieces):
            short.clear()
            writer.write(post({"model": "qwen", "stream": True, "messages": []}))
            backend = await asked.get()
            backend.write(HEAD)
            got = b""
            for number, piece in enumerate(now):
                backend.write(piece)
                # Each in a read of its own: what is whole has to have passed before the next is written.
                said, so_far = unchunked(got), unchunked(b"".join(now[: number + 1]))
                if said == so_far or not so_far.endswith(b"\n\n"):
                    await asyncio.sleep(0.05)
                    continue
                while unchunked(got) != so_far:
                    got += await asyncio.wait_for(more(reader, got), HANG_S)
            backend.write(b"0\r\n\r\n")
            while not got.endswith(b"\r\n0\r\n\r\n"):
                got += await asyncio.wait_for(reader.read(65536), HANG_S)
            assert unchunked(got) == unchunked(b"".join(now))
        assert short.count(True) == least, short


async def more(reader: asyncio.StreamReader, got: bytes) -> bytes:
    """More of the answer; at first its head, which does not count."""
    if not got:
        await reader.readuntil(b"\r\n\r\n")
    return await reader.read(65536)


def unchunked(data: bytes) -> bytes:
    """What whole chunks hold; what follows them is left out."""
    body = b""
    while b"\r\n" in data:
        digits, _, data = data.partition(b"\r\n")
        size = int(digits, 16)
        if not size or len(data) < size + 2:
            break
        assert data[size : size + 2] == b"\r\n"
        body, data = body + data[:size], data[size + 2 :]
    return body
