"""Null counts as absent: in every optional field that OpenAI's client may send, and in vLLM's additions."""

from collections.abc import Mapping
from typing import Any, get_type_hints

import pytest
from openai.types import completion_create_params
from openai.types.chat import (
    ChatCompletionAssistantMessageParam,
    ChatCompletionContentPartImageParam,
    ChatCompletionContentPartTextParam,
    ChatCompletionFunctionToolParam,
    ChatCompletionMessageFunctionToolCallParam,
    ChatCompletionStreamOptionsParam,
    ChatCompletionSystemMessageParam,
    ChatCompletionToolMessageParam,
    ChatCompletionUserMessageParam,
)
from openai.types.chat import (
    completion_create_params as chat_create_params,
)
from openai.types.responses import (
    FunctionToolParam,
    ResponseFunctionToolCallParam,
    ResponseReasoningItemParam,
    ResponseTextConfigParam,
    response_create_params,
    response_input_param,
)
from openai.types.shared_params import FunctionDefinition

from services.llm.validation import requests
from services.llm.validation.requests import CHAT_LIMITS, COMPLETION_LIMITS, RESPONSE_LIMITS, Capabilities

TOOLS = Capabilities(tools=True, images=True)
# vLLM's additions that this engine reads, and fields that clients are known to send as null.
OURS = {
    "top_k", "min_p", "min_tokens", "repetition_penalty", "ignore_eos", "chat_template_kwargs", "model", "session_id",
    "continue_final_message", "add_generation_prompt",
}  # fmt: skip
CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}]}
COMPLETION: dict[str, Any] = {"prompt": "hi"}
RESPONSE: dict[str, Any] = {"input": [{"role": "user", "content": "hi"}]}
READ = {"chat": requests.chat, "completion": requests.completion, "response": requests.response}


def fields(*params: Any) -> set[str]:
    """Return the names in the typed dictionaries of the client."""
    return {name for one in params for name in get_type_hints(one)}


def optional(of: Any, given: Mapping[str, Any]) -> list[str]:
    return sorted(fields(of) - set(given))


TOP = [
    *(("chat", CHAT, name) for name in sorted(
        fields(chat_create_params.CompletionCreateParamsNonStreaming) | set(CHAT_LIMITS) | OURS)),
    *(("completion", COMPLETION, name) for name in sorted(
        fields(completion_create_params.CompletionCreateParamsNonStreaming) | set(COMPLETION_LIMITS) | OURS)),
    *(("response", RESPONSE, name) for name in sorted(
        fields(response_create_params.ResponseCreateParamsNonStreaming) | set(RESPONSE_LIMITS) | OURS)),
]  # fmt: skip


@pytest.mark.parametrize(
    ("route", "body", "name"), [case for case in TOP if case[2] not in case[1]], ids=lambda value: str(value)[:40]
)
def test_null_is_absent_at_the_top_of_a_body(route: str, body: dict[str, Any], name: str) -> None:
    """LiteLLM, Dify and LangChain send fields that are not set as null. The lists are the client's own."""
    read = READ[route]
    assert read({**body, name: None}, TOOLS) == read(body, TOOLS)


def test_null_in_all_fields_at_once_is_absent() -> None:
    for route, read in READ.items():
        cases = [case for case in TOP if case[0] == route]
        body = cases[0][1]
        assert read({**{name: None for _, _, name in cases}, **body}, TOOLS) == read(body, TOOLS)


CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
TEXT = {"type": "text", "text": "hi"}
IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}
TOOL = {"type": "function", "function": {"name": "f"}}


def said(**message: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "hi"}, message]}


# The type of a nested object, a smallest value of it, and the body around it.
NESTED: list[tuple[Any, dict[str, Any], Any]] = [
    (ChatCompletionUserMessageParam, {"role": "user", "content": "hi"}, lambda one: said(**one)),
    (ChatCompletionSystemMessageParam, {"role": "system", "content": "hi"}, lambda one: said(**one)),
    (ChatCompletionAssistantMessageParam, {"role": "assistant"}, lambda one: said(**one)),
    (ChatCompletionAssistantMessageParam, {"role": "assistant", "tool_calls": [CALL]}, lambda one: said(**one)),
    (ChatCompletionToolMessageParam, {"role": "tool", "content": "4", "tool_call_id": "c"}, lambda one: said(**one)),
    (
        ChatCompletionMessageFunctionToolCallParam,
        {"function": {"name": "f"}},
        lambda one: said(role="assistant", tool_calls=[one]),
    ),
    (ChatCompletionContentPartTextParam, TEXT, lambda one: said(role="user", content=[one])),
    (ChatCompletionContentPartImageParam, IMAGE, lambda one: said(role="user", content=[one])),
    (ChatCompletionStreamOptionsParam, {}, lambda one: {**CHAT, "stream": True, "stream_options": one}),
    (ChatCompletionFunctionToolParam, {"type": "function", "name": "f"}, lambda one: {**CHAT, "tools": [one]}),
    (FunctionDefinition, {"name": "f"}, lambda one: {**CHAT, "tools": [{"type": "function", "function": one}]}),
    (FunctionToolParam, {"type": "function", "name": "f"}, lambda one: {**RESPONSE, "tools": [one]}),
    (ResponseTextConfigParam, {}, lambda one: {**RESPONSE, "text": one}),
    (ResponseTextConfigParam, {}, lambda one: {**RESPONSE, "text": {"format": {"type": None, **one}}}),
    (
        ResponseFunctionToolCallParam,
        {"type": "function_call", "call_id": "c", "name": "f"},
        lambda one: {"input": [*RESPONSE["input"], one]},
    ),
    (
        response_input_param.FunctionCallOutput,
        {"type": "function_call_output", "call_id": "c", "output": "4"},
        lambda one: {"input": [*RESPONSE["input"], one]},
    ),
    (
        response_input_param.Message,
        {"role": "user", "content": [{"type": "input_text", "text": "hi", "prompt_cache_breakpoint": None}]},
        lambda one: {"input": [one]},
    ),
    (
        ResponseReasoningItemParam,
        {"type": "reasoning"},
        lambda one: {"input": [*RESPONSE["input"], one]},
    ),
]


@pytest.mark.parametrize(
    ("within", "given", "name"),
    [(within, given, name) for of, given, within in NESTED for name in optional(of, given)],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_null_is_absent_in_nested_objects(within: Any, given: dict[str, Any], name: str) -> None:
    body, expected = within({**given, name: None}), within(given)
    read = READ["chat" if "messages" in body else "response"]
    assert read(body, TOOLS) == read(expected, TOOLS)


def test_null_tool_choice_and_arguments_of_a_call() -> None:
    work = requests.chat({**CHAT, "tools": [TOOL], "tool_choice": None}, TOOLS)
    assert work.body["tools"] == [TOOL]
    function = {"name": "f", "arguments": None}
    called = requests.chat(said(role="assistant", tool_calls=[{"function": function}]), TOOLS)
    assert called.body["messages"][1]["tool_calls"][0]["function"] == {"name": "f", "arguments": {}}
