"""Compressed request bodies are refused by name, on every route."""

import gzip
import json

import pytest

from gateway.endpoints import ENDPOINTS
from tests.gateway.conftest import StartBackend, StartGateway
from tests.gateway.running import post

BODY = {"model": "qwen", "messages": [{"role": "user", "content": "Hi"}]}
PATHS = (
    *(endpoint.path.replace("{model}", "whisper") for endpoint in ENDPOINTS),
    "/explain",
    "/services/llm-primary/drain",
    "/v1/nowhere",
)


@pytest.mark.parametrize("encoding", ["gzip", "GZIP", "br", "zstd", "gzip, deflate", "aws-chunked"])
async def test_compressed_body_is_415_with_its_reason(
    start_backend: StartBackend, start_gateway: StartGateway, encoding: str
) -> None:
    """RFC 9110, 15.5.16 and 12.5.3: refused, because few clients compress and decompressing would take loop time."""
    backend = await start_backend()
    gateway = await start_gateway(backend)
    for path in PATHS * 2:
        answer = await gateway.http.post(
            path, content=gzip.compress(json.dumps(BODY).encode()), headers={"content-encoding": encoding}
        )
        assert answer.status_code == 415, answer.text
        assert answer.headers["accept-encoding"] == "identity"
        assert repr(encoding) in answer.json()["error"]["message"]
        # Anthropic's envelope has no code.
        is_anthropic = path.startswith("/v1/messages")
        assert answer.json()["error"].get("code") == (None if is_anthropic else "unsupported_content_encoding")
    assert len(gateway.server.server_state.connections) <= 1, "the connection is not reused"
    assert backend.requests == []


@pytest.mark.parametrize("encoding", ["identity", "Identity", ""])
async def test_identity_is_no_encoding(start_backend: StartBackend, start_gateway: StartGateway, encoding: str) -> None:
    """And is not forwarded: it must not be sent (RFC 9110, 8.4.1)."""
    backend = await start_backend()
    gateway = await start_gateway(backend)
    for _ in range(2):
        answer = await gateway.http.post("/v1/chat/completions", json=BODY, headers={"content-encoding": encoding})
        assert answer.status_code == 200
        assert backend.requests[-1].header("content-encoding") is None
    assert (await gateway.http.post("/explain", json=BODY, headers={"content-encoding": encoding})).status_code == 200


async def test_key_is_checked_first(start_backend: StartBackend, start_gateway: StartGateway) -> None:
    gateway = await start_gateway(await start_backend(), gateway_api_keys="k")
    refused = await gateway.send_raw(post(BODY, "Content-Encoding: gzip", "Connection: close"))
    assert refused.startswith(b"HTTP/1.1 401 ")
