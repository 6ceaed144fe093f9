"""What each route accepts, ignores and refuses, as tables."""

from typing import Any

import pytest

from kit.errors import InvalidRequest
from services.llm import requests
from services.llm.options import Sampling
from services.llm.requests import Ability

MESSAGES = [{"role": "user", "content": "hi"}]
TOOL = {"type": "function", "function": {"name": "f", "parameters": {}}}
PLAIN = Ability()
TOOLS = Ability(tools=True)


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
        {"some_new_field": {"nobody": "knows"}},
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
        ("tools", [TOOL]),
        ("tools", [3]),
        ("tools", [{"type": "web_search"}]),
        ("functions", [{"name": "f"}]),
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
def test_what_cannot_be_done_in_a_chat_is_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(InvalidRequest, match=field.split("_kwargs")[0]) as refused:
        requests.chat({"messages": MESSAGES, field: value}, PLAIN)
    assert refused.value.status == 400
    assert refused.value.param == field


def test_tools_reach_a_model_that_knows_them() -> None:
    assert requests.chat({"messages": MESSAGES, "tools": [TOOL]}, TOOLS).body["tools"] == [TOOL]


def test_a_chat_streams_inside_whatever_the_client_wants() -> None:
    work = requests.chat(
        {"messages": MESSAGES, "stream": True, "stream_options": {"include_usage": True}, "model": "m"}, PLAIN
    )
    assert (work.model, work.stream, work.include_usage, work.body["stream"]) == ("m", True, True, True)
    assert not requests.chat({"messages": MESSAGES}, PLAIN).stream


def test_fields_of_the_engine_itself_never_reach_it() -> None:
    """A client could otherwise replace the whole configuration of its generation."""
    body = {"messages": MESSAGES, "generation_config": '{"max_new_tokens": 1e9}', "request_id": "x"}
    assert set(requests.chat(body, PLAIN).body) == {"messages", "chat_template_kwargs", "ending", "stream"}


@pytest.mark.parametrize("prompt", ["hi", ["hi"]])
def test_a_completion_takes_one_prompt_and_sixteen_tokens_by_default(prompt: Any) -> None:
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
def test_what_cannot_be_done_in_a_completion_is_refused_by_name(field: str, value: Any) -> None:
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
        ("tools", [{"type": "function", "name": "f"}]),
        ("max_output_tokens", 0),
    ],
)
def test_what_cannot_be_done_in_a_response_is_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(InvalidRequest) as refused:
        requests.response({"input": "hi", field: value}, PLAIN)
    assert refused.value.param == field


def test_a_response_takes_text_format_and_flat_tools() -> None:
    body = {"input": "hi", "text": {"format": {"type": "text"}}, "store": True, "instructions": "be brief"}
    tool = {"type": "function", "name": "f"}
    work = requests.response({**body, "tools": [tool], "max_output_tokens": 5}, TOOLS)
    assert work.body["instructions"] == "be brief"
    assert work.body["tools"] == [tool]
    assert work.options.max_tokens == 5


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'"x"', b"\xff\xfe", b"[" * 100_000])
def test_a_body_that_is_no_json_object_is_refused(content: bytes) -> None:
    with pytest.raises(InvalidRequest, match="body"):
        requests.parse(content)


def test_the_models_own_sampling_is_the_default() -> None:
    ability = Ability(defaults=Sampling(temperature=0.2, top_p=0.9))
    assert requests.chat({"messages": MESSAGES}, ability).options.sampling == Sampling(temperature=0.2, top_p=0.9)
    assert requests.chat({"messages": MESSAGES, "top_p": 1}, ability).options.sampling.top_p == 1


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
def test_what_no_answer_could_repeat_is_refused_when_it_is_read(body: bytes) -> None:
    """Half a surrogate pair and numbers that are none have no UTF-8 and no JSON: neither tokenizers nor answers take
    them."""
    with pytest.raises(InvalidRequest, match="JSON"):
        requests.parse(body)


@pytest.mark.parametrize(
    ("field", "value"), [("metadata", "x"), ("metadata", {"a": 1}), ("metadata", {"a": float("inf")}), ("user", 1e999)]
)
def test_what_a_response_repeats_is_text(field: str, value: Any) -> None:
    with pytest.raises(InvalidRequest) as refused:
        requests.response({"input": "hi", field: value}, PLAIN)
    assert refused.value.param == field
