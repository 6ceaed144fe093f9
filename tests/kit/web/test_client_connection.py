"""The client connection of registry and services: upgrades, malformed requests, limits of size, time and number."""

import asyncio
import contextlib
import json
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator

import pytest
import structlog
from fastapi import FastAPI, Request
from fastapi.responses import Response, StreamingResponse

from kit.web.client_connection import ClientConnection, ConnectionLimits
from tests.kit.served import bare_app, serve

WITHIN_S = 20
LOCAL = b"Host: localhost\r\n"
LAST = b"GET /health HTTP/1.1\r\n" + LOCAL + b"Connection: close\r\n\r\n"
BODY = b'{"input": "Hello"}'
LENGTH = b"Content-Length: %d\r\n" % len(BODY)
CHUNKED = b"Transfer-Encoding: chunked\r\n"
CHUNKS = b"%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY)
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


class Limited(ClientConnection):
    """Timeouts that a test can wait for."""

    limits = ConnectionLimits(
        max_head=16 * 1024, head_s=0.2, stall_s=0.2, idle_s=0.2, linger_s=0.1, max_pipelined=4, max_connections=3
    )


def application(stopped: threading.Event) -> FastAPI:
    """Create an application; `stopped` is set when the response of /endless has ended."""
    app: FastAPI = bare_app()

    async def echo(request: Request) -> Response:
        return Response(await request.body(), headers={"x-upgrade": request.headers.get("upgrade", "none")})

    async def endless() -> StreamingResponse:
        async def zeros() -> AsyncIterator[bytes]:
            try:
                while True:
                    yield bytes(1 << 20)
                    await asyncio.sleep(0)
            finally:
                stopped.set()

        return StreamingResponse(zeros())

    async def later(request: Request) -> Response:
        await asyncio.to_thread(stopped.wait, WITHIN_S)
        return Response(await request.body())

    app.add_api_route("/health", lambda: {"status": "healthy"})
    app.add_api_route("/later", later, methods=["POST"])
    app.add_api_route("/echo", echo, methods=["POST"])
    app.add_api_route("/endless", endless)
    return app


@pytest.fixture(scope="module")
def usual() -> Iterator[tuple[str, int]]:
    """The address of a server with the limits that programs have."""
    with serve(application(threading.Event())) as address:
        yield address


@pytest.fixture
def limited() -> Iterator[tuple[str, int]]:
    """The address of a server with short timeouts and small limits."""
    with structlog.testing.capture_logs(), serve(application(threading.Event()), http=Limited) as address:
        yield address


def connect(address: tuple[str, int]) -> socket.socket:
    return socket.create_connection(address, timeout=WITHIN_S)


def until_closed(peer: socket.socket) -> bytes:
    """All bytes until the server closes the connection."""
    answer = b""
    with contextlib.suppress(ConnectionResetError):
        while piece := peer.recv(1 << 16):
            answer += piece
    return answer


def is_released(peer: socket.socket) -> bool:
    """Whether the server soon closes what it has half-closed: its system rejects bytes for a closed connection."""
    for _ in range(100):
        try:
            peer.sendall(b"x")
        except OSError:
            return True
        time.sleep(0.05)
    return False


def exchange(address: tuple[str, int], *pieces: bytes) -> bytes:
    """Send `pieces`; return all that comes until the server closes."""
    with connect(address) as peer:
        for piece in pieces:
            peer.sendall(piece)
        return until_closed(peer)


def post(*headers: bytes, body: bytes = BODY, version: bytes = b"1.1") -> bytes:
    return b"POST /echo HTTP/%b\r\n%b%b\r\n%b" % (version, LOCAL, b"".join(headers), body)


@pytest.mark.parametrize("protocol", [b"h2c", b"websocket", b"TLS/1.0, HTTP/3"])
def test_upgrade_is_ignored(usual: tuple[str, int], protocol: bytes) -> None:
    """RFC 9110, 7.8. Java's HttpClient sends these headers with the first request of every connection."""
    wish = b"Connection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAEAAEAA\r\nUpgrade: %b\r\n" % protocol
    whole = exchange(usual, post(wish, LENGTH) + post(wish, CHUNKED, body=CHUNKS) + post(LENGTH) + LAST)
    assert whole.count(b"HTTP/1.1 200 OK") == whole.count(b"HTTP/1.1 ") == 4
    assert whole.count(BODY) == 3
    assert whole.count(b"x-upgrade: none") == 3
    request = post(wish, LENGTH)
    for cut in (1, 40, request.index(b"\r\n\r\n") + 2, len(request) - 5):
        pieces = exchange(usual, request[:cut], request[cut:], LAST)
        assert pieces.count(b"HTTP/1.1 200 OK") == 2
        assert BODY in pieces
    old = exchange(usual, post(b"Connection: Upgrade\r\nUpgrade: %b\r\n" % protocol, LENGTH, version=b"1.0"))
    assert old.startswith(b"HTTP/1.1 200 OK")
    assert BODY in old


@pytest.mark.parametrize("upgrade", [b"", b"Connection: Upgrade\r\nUpgrade: h2c\r\n"])
def test_body_is_asked_for(usual: tuple[str, int], upgrade: bytes) -> None:
    """`Expect: 100-continue`, as curl and Java's expectContinue send it."""
    with connect(usual) as peer:
        head, _, body = post(LENGTH, b"Expect: 100-continue\r\n", upgrade).partition(b"\r\n\r\n")
        peer.sendall(head + b"\r\n\r\n")
        assert peer.recv(1 << 16) == b"HTTP/1.1 100 Continue\r\n\r\n"
        peer.sendall(body + LAST)
        answer = until_closed(peer)
    assert answer.count(b"HTTP/1.1 200 OK") == 2
    assert BODY in answer


MALFORMED: dict[str, tuple[bytes, int, str]] = {
    "HTTP/2 with prior knowledge": (PREFACE, 400, "HTTP/2 is not supported"),
    "HTTP/2 in the request line": (b"GET /health HTTP/2.0\r\n" + LOCAL + b"\r\n", 400, "HTTP/2.0 is not supported"),
    "TLS": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(50), 400, "not HTTP/1.1"),
    "CONNECT": (b"CONNECT localhost:80 HTTP/1.1\r\n" + LOCAL + b"\r\n", 400, "CONNECT is not supported"),
    "two lengths": (post(LENGTH, LENGTH), 400, "not HTTP/1.1"),
    "length and chunks": (post(LENGTH, CHUNKED), 400, "not HTTP/1.1"),
    "broken chunk": (post(CHUNKED, body=b"zz\r\n"), 400, "not HTTP/1.1"),
    "one large header": (post(LENGTH, b"X-A: " + b"a" * 70_000 + b"\r\n"), 431, "larger than 64 KB"),
    "many headers": (post(LENGTH, *(b"X-%d: aaaaaaaaaa\r\n" % n for n in range(6000))), 431, "larger than 64 KB"),
    "large target": (b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\n", 431, "larger than 64 KB"),
    "head without an end": (b"GET / HTTP/1.1\r\nX-A: " + b"a" * 900_000, 431, "larger than 64 KB"),
    "trailers": (post(CHUNKED, body=CHUNKS[:-2] + b"X-T: %b\r\n" % (b"a" * 1000) * 70), 431, "larger than 64 KB"),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_request_gets_the_error_envelope(usual: tuple[str, int], name: str) -> None:
    """And the connection is closed."""
    data, status, message = MALFORMED[name]
    with structlog.testing.capture_logs():
        answer = exchange(usual, data)
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status)
    assert b"connection: close" in head.lower()
    error = json.loads(body)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert message in error["message"]


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("last", [b"nonsense\r\n\r\n", post(CHUNKED, body=b"zz\r\n")])
def test_responses_that_are_due_come_before_the_close(usual: tuple[str, int], last: bytes, count: int) -> None:
    """What is malformed behind a request does not spoil its response."""
    with structlog.testing.capture_logs():
        answer = exchange(usual, post(LENGTH) * count + last)
    assert answer.count(b"HTTP/1.1 ") == answer.count(b"HTTP/1.1 200 OK") == count
    assert answer.endswith(BODY)


def test_trailers_do_not_become_headers(usual: tuple[str, int]) -> None:
    trailers = CHUNKS[:-2] + b"Upgrade: trailer\r\n\r\n"
    assert b"x-upgrade: none" in exchange(usual, post(CHUNKED, body=trailers) + LAST)


def test_head_below_the_limit_passes(usual: tuple[str, int]) -> None:
    """In pieces too: no byte is counted twice."""
    request = b"GET /health HTTP/1.1\r\n" + LOCAL + b"Connection: close\r\nX-A: " + b"a" * 60_000 + b"\r\n\r\n"
    pieces = [request[at : at + 8192] for at in range(0, len(request), 8192)]
    assert exchange(usual, *pieces).startswith(b"HTTP/1.1 200 OK")


SILENT: dict[str, tuple[bytes, bytes]] = {
    "nothing": (b"", b""),
    "half a head": (b"GET /health HTTP/1.1\r\nX-A: b", b"HTTP/1.1 408 "),
    "half a body": (post(b"Content-Length: 99\r\n"), b"HTTP/1.1 408 "),
    "half a chunk": (post(CHUNKED, body=b"ff\r\nabc"), b"HTTP/1.1 408 "),
    "idle after a response": (b"GET /health HTTP/1.1\r\n" + LOCAL + b"\r\n", b"HTTP/1.1 200 OK"),
    "half a second head": (b"GET /health HTTP/1.1\r\n" + LOCAL + b"\r\nGET /hea", b"HTTP/1.1 200 OK"),
    "rest of a refused body": (b"POST /health HTTP/1.1\r\n" + LOCAL + b"Content-Length: 99\r\n\r\na", b"HTTP/1.1 405 "),
}


@pytest.mark.parametrize("name", SILENT)
def test_silent_connection_is_closed(limited: tuple[str, int], name: str) -> None:
    """The client stops sending and keeps the connection open, also after the response."""
    sent, expected = SILENT[name]
    with connect(limited) as peer:
        peer.sendall(sent)
        answer = until_closed(peer)
        assert answer.startswith(expected)
        assert bool(answer) == bool(expected)
        assert is_released(peer)


def test_unread_response_is_aborted() -> None:
    """A client that reads nothing of an endless response."""
    stopped = threading.Event()
    with serve(application(stopped), http=Limited) as address:
        with connect(address) as peer:
            peer.sendall(b"GET /endless HTTP/1.1\r\n" + LOCAL + b"\r\n")
            assert stopped.wait(WITHIN_S)
            assert until_closed(peer).startswith(b"HTTP/1.1 200 OK")
        assert exchange(address, LAST).startswith(b"HTTP/1.1 200 OK")


class Watched(Limited):
    """Reports a timeout."""

    timed_out = threading.Event()

    def _on_timer(self) -> None:
        deadline = self._deadline
        super()._on_timer()
        # Read after it: the deadline may pass just before it looks.
        if deadline <= self.loop.time():
            self.timed_out.set()


@pytest.mark.parametrize("waits_for", ["the body", "room for the body"])
def test_slow_application_is_no_slow_client(waits_for: str) -> None:
    """It has not asked for the body yet, or has not read what has arrived."""
    stopped = threading.Event()
    Watched.timed_out.clear()
    body = b"x" * (10 if waits_for == "the body" else 1_000_000)
    head = b"POST /later HTTP/1.1\r\n" + LOCAL + b"Content-Length: %d\r\nConnection: close\r\n" % len(body)
    with serve(application(stopped), http=Watched) as address, connect(address) as peer:
        if waits_for == "the body":
            peer.sendall(head + b"Expect: 100-continue\r\n\r\n")
        else:
            peer.sendall(head + b"\r\n" + body[:200_000])
        assert Watched.timed_out.wait(WITHIN_S)
        stopped.set()
        if waits_for == "the body":
            assert peer.recv(1 << 16) == b"HTTP/1.1 100 Continue\r\n\r\n"
            peer.sendall(body)
        else:
            peer.sendall(body[200_000:])
        assert until_closed(peer).endswith(b"\r\n\r\n" + body)


def test_body_that_stalls_behind_a_slow_response_does_not_drop_it() -> None:
    stopped = threading.Event()
    Watched.timed_out.clear()
    slow = b"POST /later HTTP/1.1\r\n" + LOCAL + LENGTH + b"\r\n" + BODY
    logs, server = structlog.testing.capture_logs(), serve(application(stopped), http=Watched)
    with logs, server as address, connect(address) as peer:
        peer.sendall(post(LENGTH) + slow + post(LENGTH, body=b"{"))
        assert Watched.timed_out.wait(WITHIN_S)
        stopped.set()
        assert until_closed(peer).count(b"HTTP/1.1 200 OK") == 2


def test_connections_beyond_the_limit_get_503(limited: tuple[str, int]) -> None:
    with contextlib.ExitStack() as stack:
        kept = [stack.enter_context(connect(limited)) for _ in range(3)]
        refused = exchange(limited)
        assert refused.startswith(b"HTTP/1.1 503 ")
        assert b"retry-after: 1" in refused.lower()
        assert b'"code": "too_many_connections"' in refused
        kept[0].sendall(LAST)
        assert until_closed(kept[0]).startswith(b"HTTP/1.1 200 OK")


def test_pipelined_requests_are_bounded(limited: tuple[str, int]) -> None:
    """Those beyond the limit are not parsed; the client sends them again (RFC 9112, 9.3.2)."""
    answer = exchange(limited, (b"GET /health HTTP/1.1\r\n" + LOCAL + b"\r\n") * 1000)
    assert answer.count(b"HTTP/1.1 ") == answer.count(b"HTTP/1.1 200 OK")
    assert 4 <= answer.count(b"HTTP/1.1 ") <= 6
    assert b"connection: close" in answer
