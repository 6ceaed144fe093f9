"""OpenAI responses from the handlers' events."""

import json
from typing import Any

import pytest
from openai.types import Completion
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from services.llm.transformers import response_formats
from services.llm.transformers.response_formats import Chat, ResponseFormat

HEAD = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 7, "model": "tiny"}
USAGE = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}


def chunk(delta: dict[str, Any], finish: str | None = None, usage: dict[str, Any] | None = None) -> dict[str, Any]:
    choice = {"delta": delta, "index": 0} | ({"finish_reason": finish} if finish else {})
    return {**HEAD, "choices": [choice], "system_fingerprint": ""} | ({"usage": usage} if usage else {})


EVENTS = [chunk({"role": "assistant"}), chunk({"content": "Hel"}), chunk({"content": "lo"}), chunk({}, "stop", USAGE)]


def stream(
    response_format: ResponseFormat, events: list[dict[str, Any]], *, truncated: bool = False
) -> list[dict[str, Any]]:
    return [
        out for event in json.loads(json.dumps(events)) for out in response_format.stream(event, truncated=truncated)
    ]


def collected(
    response_format: ResponseFormat, events: list[dict[str, Any]], *, truncated: bool = False
) -> dict[str, Any]:
    for event in events:
        response_format.add(event, truncated=truncated)
    return response_format.body()


def test_chunks_have_no_usage_unless_requested() -> None:
    out = stream(Chat(), EVENTS)
    assert [one["choices"][0]["finish_reason"] for one in out] == [None, None, None, "stop"]
    assert not any("usage" in one for one in out)
    for one in out:
        ChatCompletionChunk.model_validate(one)


def test_usage_is_a_last_chunk_without_choices() -> None:
    out = stream(Chat(include_usage=True), EVENTS)
    assert [one["usage"] for one in out] == [None, None, None, None, USAGE]
    assert out[-1]["choices"] == []
    assert "system_fingerprint" not in out[0]


def test_collected_chat_is_the_sum_of_its_chunks() -> None:
    response = collected(Chat(), EVENTS)
    ChatCompletion.model_validate(response)
    assert response["choices"][0]["message"]["content"] == "Hello"
    assert response["choices"][0]["finish_reason"] == "stop"
    assert response["usage"] == USAGE
    assert response["object"] == "chat.completion"


@pytest.mark.parametrize(
    ("reason", "truncated", "expected"),
    [("stop", True, "length"), ("stop", False, "stop"), ("length", True, "length"), ("tool_calls", True, "tool_calls")],
)
def test_truncated_response_has_finish_reason_length(reason: str, truncated: bool, expected: str) -> None:
    events = [*EVENTS[:-1], chunk({}, reason, USAGE)]
    assert collected(Chat(), events, truncated=truncated)["choices"][0]["finish_reason"] == expected
    assert stream(Chat(), events, truncated=truncated)[-1]["choices"][0]["finish_reason"] == expected


def test_tool_calls_and_reasoning_are_collected() -> None:
    call = {"index": 0, "id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    events = [EVENTS[0], chunk({"reasoning_content": "hm"}), chunk({"tool_calls": [call]}), chunk({}, "tool_calls")]
    message = collected(Chat(), events)["choices"][0]["message"]
    assert message["content"] is None
    assert message["reasoning_content"] == "hm"
    assert message["tool_calls"] == [{key: value for key, value in call.items() if key != "index"}]


def test_completions_are_streamed_and_collected() -> None:
    head = {"id": "cmpl-1", "object": "text_completion", "created": 7, "model": "tiny"}
    events = [
        {**head, "choices": [{"text": "a", "index": 0}]},
        {**head, "choices": [{"text": "", "index": 0, "finish_reason": "stop"}], "usage": USAGE},
    ]
    response = collected(response_formats.Completion(), events, truncated=True)
    Completion.model_validate(response)
    assert response["choices"] == [{"index": 0, "text": "a", "logprobs": None, "finish_reason": "length"}]
    assert stream(response_formats.Completion(include_usage=True), events)[-1]["usage"] == USAGE


def test_truncated_response_is_incomplete() -> None:
    whole = {"id": "resp_1", "created_at": 7.5, "status": "completed", "output": [], "model": "tiny"}
    event = {"type": "response.completed", "sequence_number": 3, "response": whole}
    out = stream(response_formats.Response({"instructions": "be brief"}), [event], truncated=True)
    assert out[0]["type"] == "response.incomplete"
    assert out[0]["response"]["incomplete_details"] == {"reason": "max_output_tokens"}
    response = collected(response_formats.Response({"instructions": "be brief"}), [event])
    assert (response["status"], response["created_at"], response["instructions"]) == ("completed", 7, "be brief")


def test_handler_output_is_parsed_into_events() -> None:
    text = 'data: {"a": 1}\n\ndata: {"b": 2}\n\ndata: {"error": "it "broke""}\n\ndata: {"error": "x"}\n\n'
    assert list(response_formats.read_events(text)) == [{"a": 1}, {"b": 2}]


def test_events_of_the_responses_api_have_a_name() -> None:
    assert response_formats.encode({"type": "response.created"}) == (
        b'event: response.created\ndata: {"type":"response.created"}\n\n'
    )
    assert response_formats.encode({"id": "ü"}) == 'data: {"id":"ü"}\n\n'.encode()
