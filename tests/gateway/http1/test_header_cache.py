"""The header cache: a hit must mean the same as parsing."""

import pytest

from gateway.discovery.target import parse_services
from gateway.http1.header_cache import MAX_HEAD, MAX_HEADS, HeaderCache
from gateway.upstream.connection import UpstreamConnection
from gateway.upstream.pool import Pool
from tests.gateway.conftest import StartBackend, StartGateway
from tests.gateway.running import post
from tests.support.transports import SilentTransport

HEAD = b"POST /v1/x HTTP/1.1\r\nHost: a\r\nContent-Length: %b\r\nX-B: c\r\n\r\n"


def test_heads_that_differ_in_length_share_an_entry() -> None:
    """In both common spellings of Content-Length, at any position."""
    for head in (HEAD, HEAD.lower(), HEAD.replace(b"\r\nX-B: c", b"")):
        known: HeaderCache[str] = HeaderCache()
        known.learn(head % b"12" + b"body", "meaning", 12)
        assert known.find(head % b"345" + b"abc") == ("meaning", 345, len(head % b"345"))


@pytest.mark.parametrize(
    "digits", [b"", b"+1", b"-1", b"0x1", b"1 ", b" 1", b"1_0", b"1,1", b"1" * 13, b"\xb2", b"1\n"]
)
def test_invalid_length_is_left_to_the_parser(digits: bytes) -> None:
    known: HeaderCache[str] = HeaderCache()
    known.learn(HEAD % b"12", "meaning", 12)
    assert known.find(HEAD % digits) is None


@pytest.mark.parametrize(
    "head",
    [
        HEAD.replace(b"Host: a", b"Host: b"),
        HEAD.replace(b"X-B: c", b"X-B: cc"),
        HEAD.replace(b"X-B: c", b"X-B: c\r\nContent-Length: 12"),
        HEAD.replace(b"X-B: c", b"X-B: c\r\nTransfer-Encoding: chunked"),
        HEAD.replace(b"Content-Length", b"Content-length"),
        HEAD.replace(b"Content-Length", b"content-Length"),
        b"\r\n" + HEAD,
    ],
)
def test_difference_outside_content_length_is_a_miss(head: bytes) -> None:
    known: HeaderCache[str] = HeaderCache()
    known.learn(HEAD % b"12", "meaning", 12)
    assert known.find(head % b"12") is None


def test_ambiguous_length_is_not_cached() -> None:
    """`find` would read other digits than the parser."""
    for line in (b"X-Content-Length: 5", b"X-A: Content-Length: 5", b"X-A: b\r\nX-Content-Length: 12"):
        known: HeaderCache[str] = HeaderCache()
        head = b"POST / HTTP/1.1\r\n%b\r\nContent-Length: 12\r\n\r\n" % line
        known.learn(head, "meaning", 12)
        assert len(known) == 0
        assert known.find(head) is None


def test_head_without_length_is_cached_but_not_an_incomplete_one() -> None:
    known: HeaderCache[str] = HeaderCache()
    known.learn(b"HTTP/1.1 200 OK\r\nx: y\r\n\r\nrest", "meaning", None)
    assert known.find(b"HTTP/1.1 200 OK\r\nx: y\r\n\r\n") == ("meaning", -1, 25)
    assert known.find(b"HTTP/1.1 200 OK\r\nx: y\r\n") is None
    assert known.find(b"") is None


def test_memory_is_bounded() -> None:
    known: HeaderCache[int] = HeaderCache()
    known.learn(b"POST / HTTP/1.1\r\nx: %b\r\n\r\n" % (b"a" * MAX_HEAD), 1, None)
    assert len(known) == 0
    for index in range(3 * MAX_HEADS):
        known.learn(b"POST / HTTP/1.1\r\nx: %d\r\n\r\n" % index, index, None)
    assert 0 < len(known) <= MAX_HEADS


async def test_cached_request_gets_the_same_response(start_backend: StartBackend, start_gateway: StartGateway) -> None:
    """On the same and on another connection, whole or in pieces, alone or pipelined."""
    backend = await start_backend()
    gateway = await start_gateway(backend)
    first, second = post({"model": "qwen"}), post({"model": "qwen", "messages": []})
    for pieces in ((first,), (second,), (second[:-3], second[-3:]), (second[:30], second[30:]), (first + second,)):
        reader, writer = await gateway.raw()
        for _ in range(2):
            for piece in pieces:
                writer.write(piece)
                await writer.drain()
            for _ in range(b"".join(pieces).count(b"POST ")):
                head = await reader.readuntil(b"\r\n\r\n")
                assert head.startswith(b"HTTP/1.1 200 ")
                length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length: "))
                await reader.readexactly(int(length[16:]))
    assert len(gateway.context.request_heads) == 1
    assert {one.body for one in backend.requests} == {one.partition(b"\r\n\r\n")[2] for one in (first, second)}


class Listening:
    """An exchange that keeps what it gets."""

    def __init__(self) -> None:
        self.body = b""
        # How often it got chunks that no parser has read.
        self.unparsed = 0
        self.lost: str | None = None
        # The head's lines, with each piece.
        self.heads: set[tuple[int, bytes, bool]] = set()

    def on_response(self, connection: UpstreamConnection) -> None:
        self.heads.add((connection.status, connection.forward, connection.is_stream))
        self.body += connection.take_body()

    def on_chunks(self, connection: UpstreamConnection, body: bytes, framed: bytes) -> None:
        assert framed.endswith(body[-1:] + b"\r\n")
        self.body += body
        self.unparsed += 1

    def on_lost(self, connection: UpstreamConnection, reason: str) -> None:
        self.lost = reason

    def on_room(self) -> None:
        """The test sends nothing more."""


CHUNKED = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
PIECES = (CHUNKED, b"7\r\ndata: a\r\n", b"2\r\n\n\n\r\n", b"0007\r\ndata: b\r\n", b"2\r\n\n\n\r\n", b"0\r\n\r\n")
SAID = b"data: a\n\ndata: b\n\n"
HEADS = {(200, b"content-type: text/event-stream\r\n", True)}


def opened() -> UpstreamConnection:
    connection = UpstreamConnection(Pool(parse_services("a=http://127.0.0.1:1")[0]))
    connection.connection_made(SilentTransport())
    return connection


def receive(connection: UpstreamConnection, *pieces: bytes) -> Listening:
    listener = Listening()
    connection.begin(listener, b"")
    for piece in pieces:
        connection.data_received(piece)
    assert connection.complete, pieces
    connection.release()
    return listener


def test_chunks_are_read_in_any_split() -> None:
    """One chunk per read, several, or parts; with a cached head and with a parsed one."""
    whole = b"".join(PIECES)
    connection = opened()
    assert receive(connection, whole).body == SAID
    assert receive(connection, *PIECES).body == SAID
    for at in range(1, len(whole)):
        assert receive(connection, whole[:at], whole[at:]).body == SAID
        assert receive(connection, *[piece for piece in (*PIECES[:2], *_cut(PIECES[2:], at)) if piece]).body == SAID
    assert connection.reused
    assert receive(connection, *PIECES).unparsed == 4
    assert receive(connection, CHUNKED, b"".join(PIECES[1:3]), b"".join(PIECES[3:5]), PIECES[5]).unparsed == 2
    assert receive(connection, CHUNKED + PIECES[1], b"".join(PIECES[2:])).unparsed == 0
    # The beginning of the next one, at which a chunk that was read already would fit once more.
    assert receive(connection, CHUNKED, PIECES[1] + b"7", b"\r\ndata: b\r\n", PIECES[5]).body == b"data: adata: b"


def test_cached_head_is_kept_when_the_parser_continues() -> None:
    """If the head came alone and the next read is not one complete chunk."""
    connection = opened()
    receive(connection, *PIECES)
    for at in range(1, len(b"".join(PIECES[1:]))):
        assert receive(connection, CHUNKED, *_cut(PIECES[1:], at)).heads == HEADS


@pytest.mark.parametrize("text", [b"3\r\nabc\r\n", b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"])
def test_interim_response_is_left_to_the_parser(text: bytes) -> None:
    connection = opened()
    receive(connection, b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
    head = b"HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(text)
    for at in range(1, len(head) + 1):
        assert receive(connection, head[:at], head[at:] + text).body == text
        if head[at:]:
            assert receive(connection, head[:at], head[at:], text).body == text
    assert receive(connection, head, text).body == text


def _cut(pieces: tuple[bytes, ...], at: int) -> tuple[bytes, bytes]:
    rest = b"".join(pieces)
    return rest[:at], rest[at:]


@pytest.mark.parametrize(
    "chunk",
    [b"7\r\ndata: abc\r\n", b"-7\r\ndata: a\r\n", b"0x7\r\ndata: a\r\n", b"7_\r\ndata: a\r\n", b"7\r\ndata: aX\r"],
)
def test_invalid_chunk_ends_the_connection(chunk: bytes) -> None:
    """Also after a cached head."""
    connection = opened()
    receive(connection, *PIECES)
    listener = Listening()
    connection.begin(listener, b"")
    connection.data_received(CHUNKED)
    connection.data_received(chunk)
    assert listener.lost is not None
    assert connection.transport.is_closing()


def test_bytes_after_the_length_end_the_connection() -> None:
    """The response itself counts."""
    connection = opened()
    answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
    assert receive(connection, answer).body == b"ok"
    assert connection.reused
    assert receive(connection, answer + b"HTTP/1.1 200 OK\r\n").body == b"ok"
    assert connection.transport.is_closing()
