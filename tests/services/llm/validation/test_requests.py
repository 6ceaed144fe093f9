"""Accepted, ignored and rejected fields of each route."""

from typing import Any

import pytest

from kit.errors import InvalidRequest
from services.llm.validation import requests
from services.llm.validation.options import Sampling
from services.llm.validation.requests import Capabilities

MESSAGES = [{"role": "user", "content": "hi"}]
TOOL = {"type": "function", "function": {"name": "f", "parameters": {}}}
PLAIN = Capabilities()
TOOLS = Capabilities(tools=True)


@pytest.mark.parametrize(
    "extra",
    [
        {"n": 1},
        {"user": "u"},
        {"metadata": {"a": "b"}},
        {"parallel_tool_calls": True},
        {"tool_choice": "auto"},
        {"tool_choice": "none", "tools": [TOOL]},
        {"tools": []},
        {"response_format": {"type": "text"}},
        {"presence_penalty": 0},
        {"logprobs": False},
        {"top_logprobs": 0},
        {"service_tier": "auto"},
        {"store": False},
        {"reasoning_effort": "low"},
        {"modalities": ["text"]},
        {"logit_bias": {}},
        {"functions": []},
        {"some_new_field": {"a": "b"}},
        {"chat_template_kwargs": {"enable_thinking": False}},
        dict.fromkeys(("n", "stop", "tools", "logprobs", "response_format", "stream_options", "seed", "user")),
    ],
)
def test_harmless_fields_of_a_chat_are_accepted(extra: dict[str, Any]) -> None:
    work = requests.chat({"messages": MESSAGES, **extra}, PLAIN)
    assert work.body["messages"] == MESSAGES
    assert "tools" not in work.body


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("n", 2),
        ("n", 0),
        ("n", "1"),
        ("best_of", 3),
        ("logprobs", True),
        ("top_logprobs", 5),
        ("response_format", {"type": "json_object"}),
        ("response_format", {"type": "json_schema", "json_schema": {}}),
        ("tool_choice", "required"),
        ("tool_choice", {"type": "function", "function": {"name": "f"}}),
        ("tools", [3]),
        ("tools", [{}]),
        ("tools", "f"),
        ("function_call", {"name": "f"}),
        ("audio", {"voice": "a"}),
        ("modalities", ["text", "audio"]),
        ("prediction", {"type": "content"}),
        ("web_search_options", {}),
        ("structured_outputs", {"json": {}}),
        ("guided_regex", "a+"),
        ("chat_template", "{{ 7 }}"),
        ("stream", "yes"),
        ("stream_options", {"include_usage": True}),
        ("chat_template_kwargs", {"chat_template": "{{ 7 }}"}),
        ("chat_template_kwargs", {"tokenize": False}),
        ("chat_template_kwargs", {"a b": 1}),
        ("model", 7),
    ],
)
def test_unsupported_chat_fields_are_rejected_by_name(field: str, value: Any) -> None:
    with pytest.raises(InvalidRequest, match=field.split("_kwargs")[0]) as refused:
        requests.chat({"messages": MESSAGES, field: value}, PLAIN)
    assert refused.value.status == 400
    assert refused.value.param == field


def test_tools_reach_a_model_that_supports_them() -> None:
    assert requests.chat({"messages": MESSAGES, "tools": [TOOL]}, TOOLS).body["tools"] == [TOOL]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("tools", [{"type": "web_search"}]),
        ("functions", [{"name": "f"}]),
        ("tool_choice", "required"),
        ("tool_choice", {"type": "allowed_tools", "mode": "auto", "tools": []}),
    ],
)
def test_unsupported_tools_of_a_model_with_tool_calling_are_rejected(field: str, value: Any) -> None:
    with pytest.raises(InvalidRequest, match=field) as refused:
        requests.chat({"messages": MESSAGES, field: value}, TOOLS)
    assert refused.value.param == field


def test_handler_always_streams() -> None:
    work = requests.chat(
        {"messages": MESSAGES, "stream": True, "stream_options": {"include_usage": True}, "model": "m"}, PLAIN
    )
    assert (work.model, work.stream, work.include_usage, work.body["stream"]) == ("m", True, True, True)
    assert not requests.chat({"messages": MESSAGES}, PLAIN).stream


def test_internal_fields_of_the_engine_are_dropped() -> None:
    """Otherwise a client could replace the generation configuration."""
    body = {"messages": MESSAGES, "generation_config": '{"max_new_tokens": 1e9}', "request_id": "x"}
    assert set(requests.chat(body, PLAIN).body) == {"messages", "chat_template_kwargs", "prompt_suffix", "stream"}


@pytest.mark.parametrize("prompt", ["hi", ["hi"]])
def test_completion_has_one_prompt_and_sixteen_tokens_by_default(prompt: Any) -> None:
    work = requests.completion({"prompt": prompt}, PLAIN)
    assert work.body == {"prompt": "hi", "stream": True}
    assert work.options.max_tokens == 16


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("prompt", None),
        ("prompt", ""),
        ("prompt", ["a", "b"]),
        ("prompt", [1, 2]),
        ("prompt", {}),
        ("logprobs", 0),
        ("logprobs", 3),
        ("echo", True),
        ("suffix", "end"),
        ("best_of", 2),
        ("n", 3),
    ],
)
def test_unsupported_completion_fields_are_rejected_by_name(field: str, value: Any) -> None:
    with pytest.raises(InvalidRequest) as refused:
        requests.completion({"prompt": "hi", field: value}, PLAIN)
    assert refused.value.param == field


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("input", None),
        ("background", True),
        ("previous_response_id", "resp_1"),
        ("conversation", "conv_1"),
        ("prompt", {"id": "p"}),
        ("include", ["message.output_text.logprobs"]),
        ("text", {"format": {"type": "json_object"}}),
        ("truncation", "auto"),
        ("instructions", 3),
        ("tools", [{"type": 3, "name": "f"}]),
        ("max_output_tokens", 0),
    ],
)
def test_unsupported_responses_fields_are_rejected_by_name(field: str, value: Any) -> None:
    with pytest.raises(InvalidRequest) as refused:
        requests.response({"input": "hi", field: value}, PLAIN)
    assert refused.value.param == field


def test_responses_accept_text_format_and_flat_tools() -> None:
    body = {"input": "hi", "text": {"format": {"type": "text"}}, "store": True, "instructions": "be brief"}
    tool = {"type": "function", "name": "f"}
    work = requests.response({**body, "tools": [tool], "max_output_tokens": 5}, TOOLS)
    assert work.body["instructions"] == "be brief"
    assert work.body["tools"] == [tool]
    assert work.options.max_tokens == 5


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'"x"', b"\xff\xfe", b"[" * 100_000])
def test_body_must_be_a_json_object(content: bytes) -> None:
    with pytest.raises(InvalidRequest, match="body"):
        requests.parse(content)


def test_model_sampling_is_the_default() -> None:
    capabilities = Capabilities(defaults=Sampling(temperature=0.2, top_p=0.9))
    assert requests.chat({"messages": MESSAGES}, capabilities).options.sampling == Sampling(temperature=0.2, top_p=0.9)
    assert requests.chat({"messages": MESSAGES, "top_p": 1}, capabilities).options.sampling.top_p == 1


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b'"text"',
        b"\xff",
        b'{"messages": [{"role": "user", "content": "\\ud800"}]}',
        b'{"temperature": NaN}',
        b'{"metadata": {"a": -Infinity}}',
        b'{"seed": ' + b"1" * 6000 + b"}",
        b'{"messages": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    ],
    ids=lambda body: repr(body[:24]),
)
def test_non_standard_json_is_rejected(body: bytes) -> None:
    """Lone surrogates and non-finite numbers cannot be encoded in a response."""
    with pytest.raises(InvalidRequest, match="JSON"):
        requests.parse(body)


@pytest.mark.parametrize(
    ("field", "value"), [("metadata", "x"), ("metadata", {"a": 1}), ("metadata", {"a": float("inf")}), ("user", 1e999)]
)
def test_echoed_fields_must_be_text(field: str, value: Any) -> None:
    with pytest.raises(InvalidRequest) as refused:
        requests.response({"input": "hi", field: value}, PLAIN)
    assert refused.value.param == field
