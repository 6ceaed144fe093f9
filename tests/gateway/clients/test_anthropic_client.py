"""The official Anthropic client, as its users call it, through the gateway."""

import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import anthropic
import pytest
from anthropic import AsyncAnthropic, DefaultAsyncHttpxClient
from anthropic.types import MessageParam

from kit.errors import NotFound
from tests.gateway.conftest import StartBackend, StartGateway
from tests.gateway.running import HANG_S, RunningGateway
from tests.support.backends.anthropic_backend import TOKENS, AnthropicBackend

HELLO: list[MessageParam] = [{"role": "user", "content": "Hi"}]


@pytest.fixture
async def backend(stack: contextlib.AsyncExitStack) -> AnthropicBackend:
    return await stack.enter_async_context(AnthropicBackend().running())


@pytest.fixture
async def gateway(backend: AnthropicBackend, start_gateway: StartGateway) -> RunningGateway:
    return await start_gateway(services=f"llm-primary={backend.url}", gateway_api_keys="sesame", max_body_mb=1)


def connect(gateway: RunningGateway, key: str = "sesame") -> AsyncAnthropic:
    # verify: building a TLS context takes longer than the test, and nothing here is TLS.
    http = DefaultAsyncHttpxClient(trust_env=False, verify=False)
    return AsyncAnthropic(base_url=gateway.url, api_key=key, max_retries=0, timeout=HANG_S, http_client=http)


@pytest.fixture
async def client(gateway: RunningGateway) -> AsyncIterator[AsyncAnthropic]:
    async with connect(gateway) as connected:
        yield connected


@pytest.mark.parametrize("model", ["qwen", "fast", "cluster"])
async def test_message(client: AsyncAnthropic, backend: AnthropicBackend, model: str) -> None:
    """A whole message, by name, by alias and by `cluster`; the key comes in x-api-key and goes no further."""
    raw = await client.messages.with_raw_response.create(model=model, max_tokens=10, messages=HELLO, system="Be brief")
    assert raw.headers["x-served-model"] == "qwen"
    message = await raw.parse()
    assert [block.text for block in message.content if block.type == "text"] == ["".join(TOKENS)]
    assert message.usage.output_tokens == len(TOKENS)
    assert backend.asked[0]["system"] == "Be brief"


async def test_stream(client: AsyncAnthropic) -> None:
    """A streamed message, text by text, and what it comes to at its end."""
    async with client.messages.stream(model="qwen", max_tokens=10, messages=HELLO) as stream:
        assert [text async for text in stream.text_stream] == TOKENS
        message = await stream.get_final_message()
    assert message.stop_reason == "end_turn"


async def test_cancelled_stream(client: AsyncAnthropic, backend: AnthropicBackend, gateway: RunningGateway) -> None:
    """Leaving a stream in the middle ends the request at the backend."""
    backend.endless = True
    async with client.messages.stream(model="qwen", max_tokens=10, messages=HELLO) as stream:
        assert await anext(aiter(stream.text_stream)) == TOKENS[0]
    await backend.left.wait()
    await gateway.until(lambda: gateway.backend("llm-primary").traffic.in_flight == 0)


async def test_token_count(client: AsyncAnthropic, backend: AnthropicBackend) -> None:
    """Claude Code and the client's helpers count tokens before a request."""
    counted = await client.messages.count_tokens(model="fast", messages=HELLO)
    assert counted.input_tokens == 3
    assert backend.asked == [{"messages": HELLO, "model": "fast"}]


def check(error: anthropic.APIStatusError, kind: str) -> None:
    """Assert Anthropic's envelope (docs.anthropic.com/en/api/errors), with the request's id where its client reads it.

    `error.type` is read from the envelope.
    """
    assert isinstance(error.body, dict)
    assert error.body == {
        "type": "error",
        "error": {"type": kind, "message": error.api_message},
        "request_id": error.response.headers["x-request-id"],
    }
    assert (error.type, error.request_id) == (kind, error.body["request_id"])


async def call(client: AsyncAnthropic, path: str, model: str = "qwen", **more: Any) -> Any:
    """Send a message or count its tokens, with the client's own method."""
    if path.endswith("count_tokens"):
        return await client.messages.count_tokens(model=model, messages=HELLO, **more)
    return await client.messages.create(model=model, max_tokens=10, messages=HELLO, **more)


PATHS = ["/v1/messages", "/v1/messages/count_tokens"]


@pytest.mark.parametrize("path", PATHS)
async def test_errors_of_the_gateway(client: AsyncAnthropic, gateway: RunningGateway, path: str) -> None:
    """Unknown model and key, a body that is too large or not JSON: each is the client's own exception."""
    with pytest.raises(anthropic.NotFoundError, match="claude-nobody-serves") as missing:
        await call(client, path, "claude-nobody-serves")
    check(missing.value, "not_found_error")
    async with connect(gateway, "bad") as stranger:
        with pytest.raises(anthropic.AuthenticationError) as unknown:
            await call(stranger, path)
    check(unknown.value, "authentication_error")
    with pytest.raises(anthropic.BadRequestError, match="model") as malformed:
        await call(client, path, extra_body={"model": ["qwen"]})
    check(malformed.value, "invalid_request_error")
    with pytest.raises(anthropic.ContentTooLargeError, match="MAX_BODY_MB") as large:
        await call(client, path, system="x" * 1_100_000)
    check(large.value, "request_too_large")
    with pytest.raises(anthropic.PermissionDeniedError) as foreign:
        await call(client, path, extra_headers={"origin": "https://evil.example"})
    check(foreign.value, "permission_error")


@pytest.mark.parametrize("path", PATHS)
async def test_no_backend(start_gateway: StartGateway, path: str) -> None:
    """Temporary, so that the client tries again: Anthropic's type for it is overloaded_error."""
    gateway = await start_gateway(services="llm-primary=http://127.0.0.1:9;models=qwen")
    async with connect(gateway) as client:
        with pytest.raises(anthropic.ServiceUnavailableError) as down:
            await call(client, path)
    check(down.value, "overloaded_error")


KEY = "X-Api-Key: sesame"


@pytest.mark.parametrize(
    ("line", "header", "status", "kind"),
    [
        ("GET /v1/messages", KEY, 405, "invalid_request_error"),
        ("DELETE /v1/messages/count_tokens", KEY, 405, "invalid_request_error"),
        ("GET /v1/messages", "X-No: key", 401, "authentication_error"),
        ("POST /v1/messages/batches", KEY, 404, "not_found_error"),
        ("POST /v1/messages?beta=true", "X-No: key", 401, "authentication_error"),
        ("POST /v1/messages", KEY, 400, "invalid_request_error"),
        ("POST /v1/messages", "Host: y", 400, "invalid_request_error"),
    ],
)
async def test_errors_that_no_client_method_provokes(
    gateway: RunningGateway, line: str, header: str, status: int, kind: str
) -> None:
    """Other methods and paths of the Messages API, a missing key, half a JSON object, invalid HTTP."""
    head = f"{line} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 1\r\n{header}\r\n\r\n"
    answer = await gateway.send_raw(head.encode() + b"{")
    answered, _, body = answer.partition(b"\r\n\r\n")
    assert answered.startswith(b"HTTP/1.1 %d " % status)
    error = json.loads(body)
    assert (error["type"], error["error"]["type"]) == ("error", kind)
    assert f"\r\nrequest-id: {error['request_id']}\r\n" in f"{answered.decode()}\r\n"


VLLM_VALIDATION = b'{"error": {"message": "max_tokens: Field required", "type": "Bad Request", "code": 400}}'
VLLM_MODEL = b'{"type": "error", "error": {"type": "NotFoundError", "message": "The model `x` does not exist."}}'
BUSY = b'{"error": {"message": "The queue is full", "type": "rate_limit_error", "param": null, "code": "busy"}}'
OVERLOADED = b'{"type":"error","error":{"type":"overloaded_error","message":"Overloaded"}}'


@pytest.mark.parametrize(
    ("status", "body", "expected", "kind", "message"),
    [
        (400, VLLM_VALIDATION, anthropic.BadRequestError, "invalid_request_error", "max_tokens: Field required"),
        (404, VLLM_MODEL, anthropic.NotFoundError, "not_found_error", "The model `x` does not exist."),
        (422, b'{"detail": "no"}', anthropic.UnprocessableEntityError, "invalid_request_error", "no"),
        (429, BUSY, anthropic.RateLimitError, "rate_limit_error", "The queue is full"),
        (500, b"Internal Server Error", anthropic.InternalServerError, "api_error", "Internal Server Error"),
        (500, b"", anthropic.InternalServerError, "api_error", "llm-primary returned 500."),
        (529, OVERLOADED, anthropic.OverloadedError, "overloaded_error", "Overloaded"),
    ],
)
async def test_errors_of_a_backend_in_any_envelope(
    client: AsyncAnthropic, backend: AnthropicBackend, status: int, body: bytes, expected: Any, kind: str, message: str
) -> None:
    """vLLM's own and our services' become Anthropic's; headers such as Retry-After are kept."""
    backend.refusal = (status, "application/json", body)
    with pytest.raises(expected) as caught:
        await call(client, "/v1/messages")
    error = caught.value
    assert (error.status_code, error.type, error.api_message) == (status, kind, message)
    assert error.body["type"] == "error"
    assert error.response.headers["retry-after"] == "7"
    assert error.response.headers["x-served-by"] == "llm-primary"


@pytest.mark.parametrize("path", [*PATHS, "/v1/chat/completions", "/v1/responses"])
@pytest.mark.parametrize(
    ("status", "media", "body"),
    [
        (404, "application/json", b'{"detail":"Not Found"}'),  # vLLM, SGLang
        (404, "application/json", b'{"error":{"code":404,"message":"File Not Found","type":"not_found_error"}}'),
        (404, "text/plain", b"404 page not found"),  # Ollama
        (404, "text/plain", b""),  # text-generation-inference
        (405, "application/json", b'{"detail":"Method Not Allowed"}'),
        (501, "text/html", b"<h1>Not Implemented</h1>"),
        (404, "application/json", NotFound("No route POST /v1/messages. GET /docs lists the routes.").encoded()),
    ],
)
async def test_route_that_the_engine_lacks_is_named(
    gateway: RunningGateway, backend: AnthropicBackend, path: str, status: int, media: str, body: bytes
) -> None:
    """With the backend, instead of the engine's own "Not Found"; on every relayed route."""
    backend.refusal = (status, media, body)
    answer = await gateway.http.post(path, json={"model": "qwen"}, headers={"x-api-key": "sesame"})
    assert answer.status_code == 404
    assert answer.headers["content-type"] == "application/json"
    error = answer.json()["error"]
    assert error["message"].startswith(f"llm-primary does not support POST {path}. ")
    assert error["type"] == ("not_found_error" if path in PATHS else "invalid_request_error")


async def test_cut_stream_raises(start_backend: StartBackend, start_gateway: StartGateway) -> None:
    """A stream whose backend dies raises in the client: the error event is in Anthropic's shape."""
    gateway = await start_gateway(await start_backend(reset_after=2))
    async with connect(gateway) as client:
        stream = await client.messages.create(model="qwen", max_tokens=10, messages=HELLO, stream=True)
        with pytest.raises(anthropic.APIStatusError, match="llm-primary failed") as cut:
            async for _ in stream:
                pass
    assert cut.value.type == "api_error"
