"""The official Anthropic client, as its users call it, through the gateway."""

import contextlib
from collections.abc import AsyncIterator

import anthropic
import pytest
from anthropic import AsyncAnthropic, DefaultAsyncHttpxClient
from anthropic.types import MessageParam

from tests.gateway.conftest import StartBackend, StartGateway
from tests.gateway.running import HANG_S, RunningGateway
from tests.support.backends.anthropic_backend import TOKENS, AnthropicBackend

HELLO: list[MessageParam] = [{"role": "user", "content": "Hi"}]


@pytest.fixture
async def backend(stack: contextlib.AsyncExitStack) -> AnthropicBackend:
    return await stack.enter_async_context(AnthropicBackend().running())


@pytest.fixture
async def gateway(backend: AnthropicBackend, start_gateway: StartGateway) -> RunningGateway:
    return await start_gateway(services=f"llm-primary={backend.url}", gateway_api_keys="sesame")


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


async def test_errors(client: AsyncAnthropic, gateway: RunningGateway) -> None:
    """Our errors are the client's own exceptions."""
    with pytest.raises(anthropic.NotFoundError):
        await client.messages.create(model="claude-nobody-serves", max_tokens=10, messages=HELLO)
    async with connect(gateway, "bad") as stranger:
        with pytest.raises(anthropic.AuthenticationError):
            await stranger.messages.create(model="qwen", max_tokens=10, messages=HELLO)


async def test_cut_stream_raises(start_backend: StartBackend, start_gateway: StartGateway) -> None:
    """A stream whose backend dies raises in the client: the error event is in Anthropic's shape."""
    gateway = await start_gateway(await start_backend(reset_after=2))
    async with connect(gateway) as client:
        stream = await client.messages.create(model="qwen", max_tokens=10, messages=HELLO, stream=True)
        with pytest.raises(anthropic.APIError, match="llm-primary failed"):
            async for _ in stream:
                pass
