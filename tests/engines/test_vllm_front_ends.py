"""Requests that front ends send, on real vLLM: tools for a model without tool calling, no limit, malformed calls.

Demanded calls are in test_vllm_text: the vision model's random tokenizer cannot follow a grammar.
"""

from typing import Any

import anthropic
import httpx2
import openai
import pytest

from tests.engines.vllm_service import VllmService

HELLO: list[Any] = [{"role": "user", "content": "hello"}]
SCHEMA = {"type": "object", "properties": {"city": {"enum": ["Oslo", "Tokyo"]}}, "required": ["city"]}
TOOLS: list[Any] = [
    {"type": "function", "function": {"name": f"tool_{index}", "description": "A tool", "parameters": SCHEMA}}
    for index in range(36)
]
FLAT: list[Any] = [{"type": "function", **tool["function"]} for tool in TOOLS]


@pytest.mark.parametrize("stream", [False, True])
def test_tools_are_ignored_with_a_header(vision_client: openai.OpenAI, stream: bool) -> None:
    """`auto`, the default, permits a response without a call; the model's template has no tools."""
    asked: dict[str, Any] = {"model": "tiny", "stream": stream}
    chat = vision_client.chat.completions.with_raw_response.create(messages=HELLO, tools=TOOLS, max_tokens=4, **asked)
    response = vision_client.responses.with_raw_response.create(
        input="hello", tools=FLAT, tool_choice="auto", max_output_tokens=4, **asked
    )
    plain = vision_client.chat.completions.with_raw_response.create(model="tiny", messages=HELLO, max_tokens=4)
    assert chat.headers["x-tools"] == response.headers["x-tools"] == "ignored"
    assert "x-tools" not in plain.headers


def test_messages_with_tools(vision: VllmService) -> None:
    tools: list[Any] = [{"name": "f", "input_schema": SCHEMA}]
    with anthropic.Anthropic(base_url=vision.url, api_key="none", max_retries=0) as client:
        raw = client.messages.with_raw_response.create(model="tiny", max_tokens=4, messages=HELLO, tools=tools)
        assert raw.headers["x-tools"] == "ignored"
        with_tools = client.messages.count_tokens(model="tiny", messages=HELLO, tools=tools)
        assert with_tools == client.messages.count_tokens(model="tiny", messages=HELLO)


@pytest.mark.parametrize(
    ("path", "body", "limits"),
    [
        ("/v1/chat/completions", {"messages": HELLO}, ("max_tokens", "max_completion_tokens")),
        ("/v1/responses", {"input": "hello"}, ("max_output_tokens",)),
    ],
)
def test_default_limit_applies_where_the_client_sets_none(
    vision: VllmService, path: str, body: dict[str, Any], limits: tuple[str, ...]
) -> None:
    """`default_max_tokens` of models.yaml, here 6; a client's limit is kept, also a higher one."""

    def tokens(**more: Any) -> int:
        answer = httpx2.post(vision.url + path, json={**body, "ignore_eos": True, **more}, timeout=300).json()
        return int(answer["usage"].get("completion_tokens") or answer["usage"]["output_tokens"])

    assert tokens() == tokens(**dict.fromkeys(limits)) == 6
    for limit in limits:
        assert tokens(**{limit: 9}) == 9


def test_completions_keep_openais_default_limit(vision: VllmService) -> None:
    for more in ({}, {"max_tokens": None}):
        body = {"prompt": "hello", "ignore_eos": True, **more}
        answer = httpx2.post(f"{vision.url}/v1/completions", json=body, timeout=300).json()
        assert answer["usage"]["completion_tokens"] == 16


@pytest.mark.parametrize("arguments", ["", "{", "city=Oslo", "[1]", "null", "3"])
def test_conversation_continues_after_a_malformed_call(text: VllmService, arguments: str) -> None:
    """On both routes, with the same prompt."""
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": arguments}}
    result = {"role": "tool", "tool_call_id": "c", "content": "x"}
    messages = [*HELLO, {"role": "assistant", "tool_calls": [call]}, result]
    items = [
        *HELLO,
        {"type": "function_call", "call_id": "c", "name": "f", "arguments": arguments},
        {"type": "function_call_output", "call_id": "c", "output": "x"},
    ]
    body = {"messages": messages, "max_tokens": 2}
    chat = httpx2.post(f"{text.url}/v1/chat/completions", json=body, timeout=300)
    response = httpx2.post(f"{text.url}/v1/responses", json={"input": items, "max_output_tokens": 2}, timeout=300)
    assert (chat.status_code, response.status_code) == (200, 200), (chat.text, response.text)
    assert chat.json()["usage"]["prompt_tokens"] == response.json()["usage"]["input_tokens"]
