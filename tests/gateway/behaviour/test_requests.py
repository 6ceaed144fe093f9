"""Requests through the gateway to one backend, and its responses."""

import asyncio
import json

import pytest

from tests.gateway.conftest import StartBackend, StartGateway
from tests.gateway.running import post


async def test_response_is_forwarded_unchanged(start_backend: StartBackend, start_gateway: StartGateway) -> None:
    """Byte for byte both ways, with the provenance headers."""
    backend = await start_backend()
    gateway = await start_gateway(backend)
    body = b'{ "model" : "qwen",\n "messages": [{"role":"user","content":"\xc3\xa9"}], "x": 1.0 }'
    answer = await gateway.http.post("/v1/chat/completions?a=b", content=body)
    assert answer.status_code == 200
    assert answer.json()["choices"][0]["message"]["content"].startswith("token0")
    assert backend.requests[0].body == body
    assert backend.requests[0].target == "/v1/chat/completions?a=b"
    assert answer.headers["x-served-by"] == "llm-primary"
    assert answer.headers["x-served-model"] == "qwen"
    assert answer.headers["x-attempts"] == "1"
    assert float(answer.headers["x-queue-ms"]) >= 0
    assert answer.headers["x-request-id"] == backend.requests[0].header("x-request-id") != "forged"
    assert answer.headers["x-backend"] == "fake"


@pytest.mark.parametrize("framing", ["length", "chunked", "close"])
@pytest.mark.parametrize("pad", [0, 300_000, 3_000_000])
@pytest.mark.parametrize("interim", [False, True])
async def test_every_response_framing(
    start_backend: StartBackend, start_gateway: StartGateway, framing: str, pad: int, interim: bool
) -> None:
    """Length, chunks or close, short or long, with or without an interim head."""
    backend = await start_backend(framing=framing, pad=pad, interim=interim)
    gateway = await start_gateway(backend)
    for _ in range(2):
        answer = await gateway.chat("qwen")
        assert len(answer.json()["choices"][0]["message"]["content"]) == pad + len("token0 ") * 4
    assert gateway.backend("llm-primary").traffic.in_flight == 0


@pytest.mark.parametrize("path", ["/rerank", "/v1/rerank", "/v2/rerank"])
async def test_every_path_of_rerank_is_relayed(
    start_backend: StartBackend, start_gateway: StartGateway, path: str
) -> None:
    """As Jina's clients and both versions of Cohere's call it; vLLM serves all three."""
    gateway = await start_gateway(await start_backend("ranking", model="ranker", kind="reranker"))
    for model in ({}, {"model": "ranker"}):
        answer = await gateway.http.post(path, json={**model, "query": "a", "documents": ["a", "b"]})
        assert (answer.status_code, answer.json()["path"]) == (200, path)
    assert (await gateway.http.post(path, json={"model": "qwen"})).status_code == 404


async def test_upstream_connection_is_reused(start_backend: StartBackend, start_gateway: StartGateway) -> None:
    backend = await start_backend()
    gateway = await start_gateway(backend)
    for _ in range(25):
        assert (await gateway.chat("qwen")).status_code == 200
        assert (await gateway.chat("qwen", stream=True)).status_code == 200
    assert len(backend.work_connections) == 1


async def test_stream_is_not_buffered(start_backend: StartBackend, start_gateway: StartGateway) -> None:
    """Each token arrives before the backend may send the next."""
    backend = await start_backend(gated=True, tokens=5)
    gateway = await start_gateway(backend)
    body = {"model": "qwen", "messages": [], "stream": True}
    backend.gate.release()
    seen = ""
    async with gateway.http.stream("POST", "/v1/chat/completions", json=body) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        async for text in answer.aiter_text():
            seen += text
            assert seen.count("token") <= 5
            backend.gate.release()
    assert seen.count("token") == 5
    assert seen.endswith("data: [DONE]\n\n")


async def test_http10_client_gets_no_chunks(start_backend: StartBackend, start_gateway: StartGateway) -> None:
    gateway = await start_gateway(await start_backend(tokens=2))
    body = json.dumps({"model": "qwen", "messages": [], "stream": True}).encode()
    request = b"POST /v1/chat/completions HTTP/1.0\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body)
    head, _, rest = (await gateway.send_raw(request + body)).partition(b"\r\n\r\n")
    assert b"transfer-encoding" not in head.lower()
    assert b"connection: close" in head
    assert rest.startswith(b"data: {")
    assert rest.endswith(b"data: [DONE]\n\n")


async def test_pipelined_requests_are_answered_in_order(
    start_backend: StartBackend, start_gateway: StartGateway
) -> None:
    """Relayed and own routes mixed."""
    backend = await start_backend()
    gateway = await start_gateway(backend)
    get = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
    chat = [post({"model": "qwen", "messages": [], "n": index}) for index in range(3)]
    last = b"GET /services HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    answer = await gateway.send_raw(chat[0] + get + chat[1] + chat[2] + get + last)
    marks = [b'"n": 0', b'"service":"gateway"', b'"n": 1', b'"n": 2', b'"service":"gateway"', b'"services":']
    position = 0
    for mark in marks:
        position = answer.index(mark, position) + 1
    assert answer.count(b"HTTP/1.1 200") == 6


async def test_expect_continue_gets_100(start_backend: StartBackend, start_gateway: StartGateway) -> None:
    gateway = await start_gateway(await start_backend())
    reader, writer = await gateway.raw()
    head, _, body = post({"model": "qwen", "messages": []}, "Expect: 100-continue").partition(b"\r\n\r\n")
    writer.write(head + b"\r\n\r\n")
    assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    writer.write(body)
    assert (await reader.readline()).startswith(b"HTTP/1.1 200")
    writer.close()


async def test_chunked_request_is_forwarded_with_a_length(
    start_backend: StartBackend, start_gateway: StartGateway
) -> None:
    """With extensions and trailers."""
    backend = await start_backend()
    gateway = await start_gateway(backend)
    body = b'{"model":"qwen","messages":[]}'
    chunks = b"%x;ext=1\r\n%b\r\n%x\r\n%b\r\n0\r\nX-Trailer: 1\r\n\r\n" % (5, body[:5], len(body) - 5, body[5:])
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
    assert b"200 OK" in await gateway.send_raw(head + chunks)
    assert backend.requests[0].body == body
    assert backend.requests[0].header("transfer-encoding") is None
    assert backend.requests[0].header("x-trailer") is None


async def test_request_byte_by_byte(start_backend: StartBackend, start_gateway: StartGateway) -> None:
    backend = await start_backend()
    gateway = await start_gateway(backend)
    reader, writer = await gateway.raw()
    for byte in post({"model": "qwen", "messages": []}, "Connection: close"):
        writer.write(bytes((byte,)))
        await writer.drain()
        await asyncio.sleep(0)
    assert b"200 OK" in await reader.read()
    writer.close()


async def test_good_request_before_a_malformed_one(start_backend: StartBackend, start_gateway: StartGateway) -> None:
    """It gets its response, then the error follows, then the close."""
    backend = await start_backend()
    gateway = await start_gateway(backend)
    answer = await gateway.send_raw(
        post({"model": "qwen", "messages": []}) * 2
        + post({"model": "qwen"}, "Content-Length: 5")
        + post({"model": "qwen"})
    )
    assert answer.count(b"HTTP/1.1 200") == 2
    assert answer.index(b"HTTP/1.1 400") > answer.rindex(b"HTTP/1.1 200")
    assert len(backend.requests) == 2


async def test_request_after_connection_close_is_not_served(
    start_backend: StartBackend, start_gateway: StartGateway
) -> None:
    backend = await start_backend()
    gateway = await start_gateway(backend)
    answer = await gateway.send_raw(
        post({"model": "qwen", "messages": []}, "Connection: close") + post({"model": "qwen"})
    )
    assert answer.count(b"HTTP/1.1 ") == 1
    assert len(backend.requests) == 1


async def test_idle_connection_is_closed(start_gateway: StartGateway, start_backend: StartBackend) -> None:
    """After KEEP_ALIVE_TIMEOUT."""
    gateway = await start_gateway(await start_backend(), keep_alive_timeout=0.1)
    answer = await gateway.send_raw(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert answer.count(b"HTTP/1.1 ") == 1


async def test_absolute_target_without_path(start_gateway: StartGateway, start_backend: StartBackend) -> None:
    gateway = await start_gateway(await start_backend())
    answer = await gateway.send_raw(b"GET http://localhost HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert b'"try"' in answer
