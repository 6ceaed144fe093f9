"""Requests that front ends such as Open WebUI send: tools with every chat, no limit, calls in the history."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import anthropic
import httpx2
import openai
import pytest

from tests.gateway.running import running
from tests.services.llm.serving import service
from tests.services.llm.validation.test_messages import MALFORMED

pytestmark = pytest.mark.engines

TIMEOUT_S = 300
JAPAN: list[Any] = [{"role": "user", "content": "What is the capital of Japan?"}]
CHAT, RESPONSES = "/v1/chat/completions", "/v1/responses"


def tool(index: int) -> Any:
    """One of the 36 tools of Open WebUI 0.12."""
    schema = {"type": "object", "properties": {"query": {"type": "string"}}, "required": ["query"]}
    return {"type": "function", "function": {"name": f"tool_{index}", "description": "A tool", "parameters": schema}}


TOOLS = [tool(index) for index in range(36)]


@pytest.fixture
async def gateway(tmp_path: Path, smollm2_url: str) -> AsyncIterator[str]:
    async with running(tmp_path, services=f"llm-primary={smollm2_url}") as started:
        yield started.url


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("choice", ["absent", "auto", None])
async def test_chat_with_tools_is_answered_without_a_call(gateway: str, stream: bool, choice: Any) -> None:
    """Through the gateway, with the header that says so: OpenAI's `auto` permits a response without a call."""
    asked: dict[str, Any] = {"model": "tiny", "temperature": 0, "tools": TOOLS, "stream": stream}
    asked |= {} if choice == "absent" else {"tool_choice": choice}
    async with openai.AsyncOpenAI(base_url=f"{gateway}/v1", api_key="none", max_retries=0, timeout=TIMEOUT_S) as client:
        chat = await client.chat.completions.with_raw_response.create(messages=JAPAN, max_tokens=30, **asked)
        answer = chat.parse()
        if stream:
            text = "".join([chunk.choices[0].delta.content or "" async for chunk in answer])
        else:
            text = answer.choices[0].message.content
        response = await client.responses.with_raw_response.create(input=JAPAN, max_output_tokens=30, **asked)
        parsed = response.parse()
        if stream:
            said = "".join([event.delta async for event in parsed if event.type == "response.output_text.delta"])
        else:
            said = parsed.output_text
        plain = await client.chat.completions.with_raw_response.create(model="tiny", messages=JAPAN, max_tokens=1)
    assert "Tokyo" in text
    assert said == text
    assert chat.headers["x-tools"] == response.headers["x-tools"] == "ignored"
    assert "x-tools" not in plain.headers


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "tool_1"}}])
def test_demanded_call_is_rejected(client: openai.OpenAI, choice: Any) -> None:
    with pytest.raises(openai.BadRequestError, match="Model 'tiny' does not support tool calling"):
        client.chat.completions.create(model="tiny", messages=JAPAN, tools=TOOLS, tool_choice=choice)


@pytest.mark.parametrize("arguments", MALFORMED)
def test_conversation_continues_after_a_malformed_call(raw: httpx2.Client, arguments: Any) -> None:
    """Both routes render the same prompt."""
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": arguments}}
    result = {"role": "tool", "tool_call_id": "c", "content": "x"}
    messages = [*JAPAN, {"role": "assistant", "tool_calls": [call]}, result, *JAPAN]
    chat = raw.post(CHAT, json={"messages": messages, "max_tokens": 2, "temperature": 0, "tools": TOOLS})
    items = [
        *JAPAN,
        {"type": "function_call", "call_id": "c", "name": "f", "arguments": arguments},
        {"type": "function_call_output", "call_id": "c", "output": "x"},
        *JAPAN,
    ]
    response = raw.post(RESPONSES, json={"input": items, "max_output_tokens": 2, "temperature": 0})
    assert (chat.status_code, response.status_code) == (200, 200), (chat.text, response.text)
    assert chat.json()["usage"]["prompt_tokens"] == response.json()["usage"]["input_tokens"]
    assert chat.json()["choices"][0]["message"]["content"] == response.json()["output"][0]["content"][0]["text"]


@pytest.fixture(scope="module")
def limited(tmp_path_factory: pytest.TempPathFactory, smollm2: Path) -> Iterator[httpx2.Client]:
    """A service whose catalogue entry has a default limit of 5 tokens."""
    folder = tmp_path_factory.mktemp("limited")
    with (
        service(folder, smollm2, entry={"default_max_tokens": 5}) as url,
        httpx2.Client(base_url=url, timeout=TIMEOUT_S) as client,
    ):
        yield client


@pytest.mark.parametrize(
    ("path", "body", "limits"),
    [
        (CHAT, {"messages": JAPAN}, ("max_tokens", "max_completion_tokens")),
        (RESPONSES, {"input": JAPAN}, ("max_output_tokens",)),
    ],
)
def test_default_limit_applies_where_the_client_sets_none(
    limited: httpx2.Client, path: str, body: dict[str, Any], limits: tuple[str, ...]
) -> None:
    """Absent or null; a client's limit is kept, also a higher one."""

    def tokens(**more: Any) -> int:
        usage = limited.post(path, json={**body, "ignore_eos": True, **more}).json()["usage"]
        return int(usage.get("completion_tokens") or usage["output_tokens"])

    assert tokens() == tokens(**dict.fromkeys(limits)) == 5
    for limit in limits:
        assert tokens(**{limit: 9}) == 9
    assert limited.post(path, json={**body, "ignore_eos": True, "stream": True}).text.count('"delta":') < 9


def test_completions_keep_openais_default_limit(limited: httpx2.Client) -> None:
    for more in ({}, {"max_tokens": None}):
        answer = limited.post("/v1/completions", json={"prompt": "a b c", "ignore_eos": True, **more})
        assert answer.json()["usage"]["completion_tokens"] == 16


@pytest.mark.parametrize(
    ("path", "body", "fields"),
    [
        ("/tokenize", {"prompt": "Hi"}, ("model", "messages", "add_special_tokens", "return_token_strs")),
        (
            "/tokenize",
            {"messages": JAPAN},
            (
                "model", "prompt", "add_generation_prompt", "continue_final_message", "chat_template_kwargs", "tools",
                "chat_template", "return_token_strs",
            ),
        ),
        ("/detokenize", {"tokens": [1]}, ("model",)),
    ],
)  # fmt: skip
def test_null_is_absent_for_tokens(raw: httpx2.Client, path: str, body: Any, fields: tuple[str, ...]) -> None:
    """vLLM's fields (vllm/entrypoints/serve/tokenize/protocol.py)."""
    expected = raw.post(path, json=body).json()
    for name in fields:
        assert raw.post(path, json={**body, name: None}).json() == expected
    assert raw.post(path, json={**body, **dict.fromkeys(fields)}).json() == expected


@pytest.mark.parametrize("through_gateway", [False, True])
async def test_messages_api_is_refused_by_name(smollm2_url: str, gateway: str, through_gateway: bool) -> None:
    url = gateway if through_gateway else smollm2_url
    async with anthropic.AsyncAnthropic(base_url=url, api_key="none", max_retries=0, timeout=TIMEOUT_S) as client:
        for call in (client.messages.create(model="tiny", max_tokens=5, messages=JAPAN),
                     client.messages.count_tokens(model="tiny", messages=JAPAN)):  # fmt: skip
            with pytest.raises(anthropic.NotFoundError, match="transformers engine does not support the Messages API"):
                await call
