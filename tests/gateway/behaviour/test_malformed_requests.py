"""Request smuggling, oversized and malformed requests: an error and a close, and nothing at the backend."""

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.gateway.running import RunningGateway, post, running
from tests.support.backends.openai_backend import FakeBackend

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[tuple[RunningGateway, FakeBackend]]:
    """One gateway and one backend for the whole table."""
    folder: Path = tmp_path_factory.mktemp("malformed")
    async with contextlib.AsyncExitStack() as stack:
        backend = await stack.enter_async_context(FakeBackend(name="llm-primary", model="qwen"))
        gateway = await stack.enter_async_context(
            running(folder, backend, max_body_mb=1, max_head_kb=16, poll_interval=30, client_timeout=0.3)
        )
        # A gateway knows good heads: none of them may make a malformed one pass.
        for good in (request(LOCAL, LENGTH), request(LOCAL, LENGTH, TYPE.strip()), request(LOCAL, LENGTH, b"X-A: b")):
            reader, writer = await gateway.raw()
            writer.write(good)
            await reader.readuntil(b"\r\n\r\n")
            writer.close()
        assert len(gateway.context.request_heads) == 3
        backend.requests.clear()
        yield gateway, backend


BODY = b'{"model":"qwen","messages":[]}'
LINE = b"POST /v1/chat/completions HTTP/1.1\r\n"
HOST = b"Host: localhost\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n"
TYPE = b"Content-Type: application/json\r\n"
# A request that would reach a backend if what stands before it were taken for a whole request.
SMUGGLED = LINE + HOST + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY


def request(*headers: bytes, line: bytes = LINE, body: bytes = BODY) -> bytes:
    return line + b"".join(header + b"\r\n" for header in headers) + b"\r\n" + body


LENGTH = b"Content-Length: %d" % len(BODY)
LOCAL = b"Host: localhost"
CHUNKS = b"%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY)

MALFORMED: dict[str, tuple[bytes, int]] = {
    "length twice, equal": (request(LOCAL, LENGTH, LENGTH), 400),
    "length twice, different": (request(LOCAL, b"Content-Length: 0", LENGTH), 400),
    "length as a list": (request(LOCAL, b"Content-Length: 30, 30"), 400),
    "length with a sign": (request(LOCAL, b"Content-Length: +30"), 400),
    "length negative": (request(LOCAL, b"Content-Length: -1"), 400),
    "length in hex": (request(LOCAL, b"Content-Length: 0x1e"), 400),
    "length with a space inside": (request(LOCAL, b"Content-Length: 3 0"), 400),
    "length empty": (request(LOCAL, b"Content-Length: "), 400),
    "length overflowing": (request(LOCAL, b"Content-Length: 99999999999999999999999"), 400),
    "length name with a space": (request(LOCAL, b"Content-Length : 30"), 400),
    "length and chunks": (request(LOCAL, LENGTH, CHUNKED.strip(), body=CHUNKS + SMUGGLED), 400),
    "chunks and length": (request(LOCAL, CHUNKED.strip(), LENGTH, body=CHUNKS + SMUGGLED), 400),
    "chunked twice": (request(LOCAL, CHUNKED.strip(), CHUNKED.strip(), body=CHUNKS), 400),
    "gzip, chunked": (request(LOCAL, b"Transfer-Encoding: gzip, chunked", body=CHUNKS), 400),
    "chunked, identity": (request(LOCAL, b"Transfer-Encoding: chunked, identity", body=CHUNKS), 400),
    "xchunked": (request(LOCAL, b"Transfer-Encoding: xchunked", body=CHUNKS), 400),
    "identity": (request(LOCAL, b"Transfer-Encoding: identity", body=SMUGGLED), 400),
    "chunked in quotes": (request(LOCAL, b'Transfer-Encoding: "chunked"', body=CHUNKS), 400),
    "chunked with a vertical tab": (request(LOCAL, b"Transfer-Encoding: \x0bchunked", body=CHUNKS), 400),
    "chunked over HTTP/1.0": (
        request(LOCAL, CHUNKED.strip(), line=LINE.replace(b"1.1", b"1.0"), body=CHUNKS),
        400,
    ),
    "chunk size in 0x": (request(LOCAL, CHUNKED.strip(), body=b"0x1e\r\n" + BODY + b"\r\n0\r\n\r\n"), 400),
    "chunk size negative": (request(LOCAL, CHUNKED.strip(), body=b"-1\r\n" + BODY), 400),
    "chunk size overflowing": (request(LOCAL, CHUNKED.strip(), body=b"f" * 17 + b"\r\n"), 400),
    "chunk size missing": (request(LOCAL, CHUNKED.strip(), body=b"\r\n" + SMUGGLED), 400),
    "chunk too long": (request(LOCAL, CHUNKED.strip(), body=b"1\r\n" + BODY + b"\r\n0\r\n\r\n"), 400),
    "chunk ended by a line feed": (request(LOCAL, CHUNKED.strip(), body=CHUNKS.replace(b"\r\n", b"\n")), 400),
    "trailers too large": (
        request(LOCAL, CHUNKED.strip(), body=CHUNKS[:-2] + b"X-T: %b\r\n" % (b"a" * 1000) * 20 + b"\r\n"),
        431,
    ),
    "no Host": (request(LENGTH), 400),
    "two Hosts": (request(LOCAL, b"Host: other", LENGTH), 400),
    "two equal Hosts": (request(LOCAL, LOCAL, LENGTH), 400),
    "empty Host": (request(b"Host:", LENGTH), 400),
    "Host with a user": (request(b"Host: a@localhost", LENGTH), 400),
    "Host with a path": (request(b"Host: localhost/x", LENGTH), 400),
    "Hosts in one": (request(b"Host: localhost, evil.example", LENGTH), 400),
    "folded header": (request(LOCAL, LENGTH, b"X-A: b\r\n c"), 400),
    "header with a bare CR": (request(LOCAL, LENGTH, b"X-A: b\rc"), 400),
    "header with NUL": (request(LOCAL, LENGTH, b"X-A: b\0c"), 400),
    "header with a control character": (request(LOCAL, LENGTH, b"X-A: b\x01c"), 400),
    "header without a name": (request(LOCAL, LENGTH, b": b"), 400),
    "header without a colon": (request(LOCAL, LENGTH, b"X-A"), 400),
    "header name with a space": (request(LOCAL, LENGTH, b"X A: b"), 400),
    "first header indented": (request(b" " + LOCAL, LENGTH), 400),
    "line feeds only": (request(LOCAL, LENGTH).replace(b"\r\n", b"\n"), 400),
    "one bare line feed": (LINE + b"Host: localhost\n" + LENGTH + b"\r\n\r\n" + BODY, 400),
    "head ended by a line feed": (LINE + HOST + LENGTH + b"\r\n\n" + BODY, 400),
    "no version": (request(LOCAL, LENGTH, line=b"POST /v1/chat/completions\r\n"), 400),
    "HTTP/2.0": (request(LOCAL, LENGTH, line=LINE.replace(b"1.1", b"2.0")), 400),
    "HTTP/1.2": (request(LOCAL, LENGTH, line=LINE.replace(b"1.1", b"1.2")), 400),
    "HTTPS/1.1": (request(LOCAL, LENGTH, line=LINE.replace(b"HTTP/", b"HTTPS/")), 400),
    "method in lower case": (request(LOCAL, LENGTH, line=LINE.replace(b"POST", b"post")), 400),
    "unknown method": (request(LOCAL, LENGTH, line=LINE.replace(b"POST", b"BREW2")), 400),
    "tab after the method": (request(LOCAL, LENGTH, line=LINE.replace(b"POST ", b"POST\t")), 400),
    "fragment in the target": (request(LOCAL, LENGTH, line=LINE.replace(b" HTTP", b"#x HTTP")), 400),
    "bytes beyond ASCII in the target": (request(LOCAL, LENGTH, line=LINE.replace(b"/v1", b"/\xc3\xa9")), 400),
    "HTTP/2 preface": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
    "TLS hello": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 50, 400),
    "CONNECT": (request(LOCAL, line=b"CONNECT localhost:80 HTTP/1.1\r\n", body=SMUGGLED), 400),
    "upgrade of HTTP/2.0": (
        request(LOCAL, b"Connection: Upgrade", b"Upgrade: h2c", LENGTH, line=LINE.replace(b"1.1", b"2.0")),
        400,
    ),
    "upgrade with two lengths": (request(LOCAL, b"Connection: Upgrade", b"Upgrade: h2c", LENGTH, LENGTH), 400),
    "target of another host": (request(LOCAL, LENGTH, line=LINE.replace(b" /", b" http://evil.example/")), 400),
    "target with a user": (request(LOCAL, LENGTH, line=LINE.replace(b" /", b" http://a@localhost/")), 400),
    "target of another protocol": (request(LOCAL, LENGTH, line=LINE.replace(b" /", b" ftp://localhost/")), 400),
    "target without a slash": (request(LOCAL, LENGTH, line=LINE.replace(b" /", b" ")), 400),
    "target of a tunnel": (request(LOCAL, LENGTH, line=b"POST localhost:80 HTTP/1.1\r\n"), 400),
    "NUL in the target": (request(LOCAL, LENGTH, line=LINE.replace(b"chat", b"c\0at")), 400),
    "tab in the target": (request(LOCAL, LENGTH, line=LINE.replace(b"chat", b"c\tat")), 400),
    "HTTP/0.9": (b"GET /health \r\n\r\n", 400),
    "HTTP/0.9 with a version": (request(LOCAL, LENGTH, line=LINE.replace(b"1.1", b"0.9")), 400),
    "HTTP/1": (request(LOCAL, LENGTH, line=LINE.replace(b"1.1", b"1")), 400),
    "HTTP/1.10": (request(LOCAL, LENGTH, line=LINE.replace(b"1.1", b"1.10")), 400),
    "http in lower case": (request(LOCAL, LENGTH, line=LINE.replace(b"HTTP", b"http")), 400),
    "space behind the version": (request(LOCAL, LENGTH, line=LINE.replace(b"1.1", b"1.1 ")), 400),
    "space before the method": (b" " + request(LOCAL, LENGTH), 400),
    "NUL in a header name": (request(LOCAL, LENGTH, b"X\0A: b"), 400),
    "bytes beyond ASCII in a header name": (request(LOCAL, LENGTH, b"X\xc3: b"), 400),
    "Host name with a space": (request(b"Host : localhost", LENGTH), 400),
    "Host with a space": (request(b"Host: local host", LENGTH), 400),
    "Host with half a bracket": (request(b"Host: [::1", LENGTH), 400),
    "Host with a port that is none": (request(b"Host: localhost:99999999", LENGTH), 400),
    "line feed behind Host": (request(b"Host: localhost\nX-A: b", LENGTH), 400),
    "head ended by CR CR LF": (request(LOCAL, LENGTH).replace(b"\r\n\r\n", b"\r\r\n\r\n"), 400),
    "length as a power": (request(LOCAL, b"Content-Length: 3e1"), 400),
    "length in wide digits": (request(LOCAL, b"Content-Length: \xef\xbc\x93\xef\xbc\x90"), 400),
    "chunked with a parameter": (request(LOCAL, b"Transfer-Encoding: chunked;q=1", body=CHUNKS), 400),
    "chunked and a comma": (request(LOCAL, b"Transfer-Encoding: chunked,", body=CHUNKS), 400),
    "no coding": (request(LOCAL, b"Transfer-Encoding:", body=SMUGGLED), 400),
    "coding name with a space": (request(LOCAL, b"Transfer-Encoding : chunked", body=CHUNKS), 400),
    "chunk size with a sign": (request(LOCAL, CHUNKED.strip(), body=b"+" + CHUNKS), 400),
    "chunk size with a space before": (request(LOCAL, CHUNKED.strip(), body=b" " + CHUNKS), 400),
    "chunk size with a space behind": (request(LOCAL, CHUNKED.strip(), body=CHUNKS.replace(b"\r", b" \r", 1)), 400),
    "chunk size with an underscore": (request(LOCAL, CHUNKED.strip(), body=b"0_" + CHUNKS), 400),
    "chunk size ended by CR": (request(LOCAL, CHUNKED.strip(), body=CHUNKS.replace(b"\r\n", b"\r", 1)), 400),
    "chunk not ended": (request(LOCAL, CHUNKED.strip(), body=CHUNKS.replace(b"}\r\n", b"}", 1)), 400),
    "chunk extension with a line feed": (
        request(LOCAL, CHUNKED.strip(), body=CHUNKS.replace(b"\r\n", b";a=b\nX\r\n", 1)),
        400,
    ),
    "chunk extension without an end": (
        request(LOCAL, CHUNKED.strip(), body=CHUNKS.replace(b"\r\n", b";" + b"a" * 900_000 + b"\r\n", 1)),
        400,
    ),
    "trailer with a length": (request(LOCAL, CHUNKED.strip(), body=CHUNKS[:-2] + LENGTH + b"\r\n\r\n"), 400),
    "trailer with a coding": (request(LOCAL, CHUNKED.strip(), body=CHUNKS[:-2] + CHUNKED + b"\r\n"), 400),
    "trailer folded": (request(LOCAL, CHUNKED.strip(), body=CHUNKS[:-2] + b"a: b\r\n c\r\n\r\n"), 400),
    "unknown expectation": (request(LOCAL, LENGTH, b"Expect: miracles"), 417),
    "two content types": (request(LOCAL, LENGTH, TYPE.strip(), TYPE.strip()), 400),
    "two keys": (request(LOCAL, LENGTH, b"Authorization: Bearer a", b"Authorization: Bearer b"), 400),
    "one header of 1 MB": (request(LOCAL, LENGTH, b"X-A: " + b"a" * 1_000_000), 431),
    "one header over the limit": (request(LOCAL, LENGTH, b"X-A: " + b"a" * 17_000), 431),
    "a thousand headers": (request(LOCAL, LENGTH, *(b"X-%d: aaaaaaaaaaaaaaa" % index for index in range(1000))), 431),
    "target over the limit": (
        request(LOCAL, LENGTH, line=LINE.replace(b" HTTP", b"?" + b"a" * 17_000 + b" HTTP")),
        431,
    ),
    "head that never ends": (LINE + HOST + b"X-A: " + b"a" * 700_000, 431),
    "head that stops": (LINE + HOST, 408),
    "body that stops": (request(LOCAL, b"Content-Length: 999"), 408),
    "length over the limit": (request(LOCAL, b"Content-Length: 2000000", body=b"x" * 2_000_000), 413),
    "chunks over the limit": (
        request(LOCAL, CHUNKED.strip(), body=b"%x\r\n%b\r\n" % (2_000_000, b" " * 2_000_000) + b"0\r\n\r\n"),
        413,
    ),
    "a form that is none": (
        request(LOCAL, LENGTH, b"Connection: close", line=b"POST /v1/audio/transcriptions HTTP/1.1\r\n"),
        400,
    ),
    "malformed behind a control route": (
        request(LOCAL, LENGTH, LENGTH, line=b"POST /services/x/drain HTTP/1.1\r\n"),
        400,
    ),
}


@pytest.mark.parametrize("name", MALFORMED)
async def test_malformed_request(shared: tuple[RunningGateway, FakeBackend], name: str) -> None:
    """An error in the envelope, a close, and nothing at the backend."""
    gateway, backend = shared
    data, status = MALFORMED[name]
    answer = await gateway.send_raw(data)
    assert answer.startswith(b"HTTP/1.1 %d " % status), answer[:200]
    assert answer.count(b"HTTP/1.1 ") == 1
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"connection: close" in head.lower()
    assert b'{"error": {"message": ' in body
    assert not backend.requests
    await gateway.until(lambda: gateway.context.metrics.relaying == 0)


SOFT: dict[str, tuple[bytes, int]] = {
    "no JSON": (post(b"nonsense"), 400),
    "a list": (post(b"[]"), 400),
    "model is a number": (post({"model": 1}), 400),
    "empty": (post(b""), 400),
    "unknown model": (post({"model": "gpt-4o"}), 404),
    "wrong content type for a form": (post({}, path="/v1/audio/transcriptions"), 400),
    "foreign Host": (post({"model": "qwen"}, host="Host: evil.example"), 403),
    "foreign Origin": (post({"model": "qwen"}, "Origin: http://evil.example"), 403),
}


@pytest.mark.parametrize("name", SOFT)
async def test_refused_request_keeps_the_connection(shared: tuple[RunningGateway, FakeBackend], name: str) -> None:
    gateway, backend = shared
    data, status = SOFT[name]
    answer = await gateway.send_raw(data + b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 %d " % status), answer[:200]
    assert answer.count(b"HTTP/1.1 200") == 1
    assert b'"status":"healthy"' in answer
    assert not backend.requests


@pytest.mark.parametrize("protocol", [b"h2c", b"websocket", b"TLS/1.0, HTTP/3"])
async def test_upgrade_is_ignored(shared: tuple[RunningGateway, FakeBackend], protocol: bytes) -> None:
    """Java's HttpClient sends `Upgrade: h2c` with every request."""
    gateway, backend = shared
    wish = (LOCAL, b"Connection: Upgrade, HTTP2-Settings", b"HTTP2-Settings: AAMAAABk", b"Upgrade: " + protocol)
    relayed = request(*wish, LENGTH)
    chunked = request(*wish, CHUNKED.strip(), body=CHUNKS)
    own = request(*wish, line=b"GET /health HTTP/1.1\r\n", body=b"")
    last = request(LOCAL, b"Connection: close", line=b"GET /health HTTP/1.1\r\n", body=b"")
    try:
        answer = await gateway.send_raw(relayed + own + chunked + last)
        assert answer.count(b"HTTP/1.1 200 OK") == answer.count(b"HTTP/1.1 ") == 4
        assert [one.body for one in backend.requests] == [BODY, BODY]
        assert backend.requests[0].header("upgrade") is backend.requests[0].header("http2-settings") is None
        # In pieces, and its body behind it.
        reader, writer = await gateway.raw()
        for piece in (relayed[:50], relayed[50:-5], relayed[-5:], last):
            writer.write(piece)
            await writer.drain()
        assert (await reader.read()).count(b"HTTP/1.1 200 OK") == 2
        assert backend.requests[2].body == BODY
        # RFC 9110, 7.8: also in HTTP/1.0, where the field has no meaning.
        assert b"200 OK" in await gateway.send_raw(request(*wish, LENGTH, line=LINE.replace(b"1.1", b"1.0")))
        assert backend.requests[3].body == BODY
    finally:
        backend.requests.clear()
