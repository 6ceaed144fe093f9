"""From the handlers' events to OpenAI's answers."""

import json
from typing import Any

import pytest
from openai.types import Completion
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from services.llm import response_formats
from services.llm.response_formats import Chat, Shape

HEAD = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 7, "model": "tiny"}
USAGE = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}


def chunk(delta: dict[str, Any], finish: str | None = None, usage: dict[str, Any] | None = None) -> dict[str, Any]:
    choice = {"delta": delta, "index": 0} | ({"finish_reason": finish} if finish else {})
    return {**HEAD, "choices": [choice], "system_fingerprint": ""} | ({"usage": usage} if usage else {})


EVENTS = [chunk({"role": "assistant"}), chunk({"content": "Hel"}), chunk({"content": "lo"}), chunk({}, "stop", USAGE)]


def streamed(shape: Shape, events: list[dict[str, Any]], *, cut: bool = False) -> list[dict[str, Any]]:
    return [out for event in json.loads(json.dumps(events)) for out in shape.stream(event, cut=cut)]


def folded(shape: Shape, events: list[dict[str, Any]], *, cut: bool = False) -> dict[str, Any]:
    for event in events:
        shape.add(event, cut=cut)
    return shape.folded()


def test_a_chat_without_include_usage_has_no_usage_in_any_chunk() -> None:
    out = streamed(Chat(), EVENTS)
    assert [one["choices"][0]["finish_reason"] for one in out] == [None, None, None, "stop"]
    assert not any("usage" in one for one in out)
    for one in out:
        ChatCompletionChunk.model_validate(one)


def test_usage_comes_in_one_last_chunk_without_choices() -> None:
    out = streamed(Chat(include_usage=True), EVENTS)
    assert [one["usage"] for one in out] == [None, None, None, None, USAGE]
    assert out[-1]["choices"] == []
    assert "system_fingerprint" not in out[0]


def test_a_folded_chat_is_the_sum_of_its_chunks() -> None:
    answer = folded(Chat(), EVENTS)
    ChatCompletion.model_validate(answer)
    assert answer["choices"][0]["message"]["content"] == "Hello"
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert answer["usage"] == USAGE
    assert answer["object"] == "chat.completion"


@pytest.mark.parametrize(
    ("said", "cut", "expected"),
    [("stop", True, "length"), ("stop", False, "stop"), ("length", True, "length"), ("tool_calls", True, "tool_calls")],
)
def test_an_answer_that_was_cut_says_so(said: str, cut: bool, expected: str) -> None:
    events = [*EVENTS[:-1], chunk({}, said, USAGE)]
    assert folded(Chat(), events, cut=cut)["choices"][0]["finish_reason"] == expected
    assert streamed(Chat(), events, cut=cut)[-1]["choices"][0]["finish_reason"] == expected


def test_tool_calls_and_reasoning_are_folded() -> None:
    call = {"index": 0, "id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    events = [EVENTS[0], chunk({"reasoning_content": "hm"}), chunk({"tool_calls": [call]}), chunk({}, "tool_calls")]
    message = folded(Chat(), events)["choices"][0]["message"]
    assert message["content"] is None
    assert message["reasoning_content"] == "hm"
    assert message["tool_calls"] == [{key: value for key, value in call.items() if key != "index"}]


def test_completions_are_streamed_and_folded() -> None:
    head = {"id": "cmpl-1", "object": "text_completion", "created": 7, "model": "tiny"}
    events = [
        {**head, "choices": [{"text": "a", "index": 0}]},
        {**head, "choices": [{"text": "", "index": 0, "finish_reason": "stop"}], "usage": USAGE},
    ]
    answer = folded(response_formats.Completion(), events, cut=True)
    Completion.model_validate(answer)
    assert answer["choices"] == [{"index": 0, "text": "a", "logprobs": None, "finish_reason": "length"}]
    assert streamed(response_formats.Completion(include_usage=True), events)[-1]["usage"] == USAGE


def test_a_response_that_was_cut_is_incomplete() -> None:
    whole = {"id": "resp_1", "created_at": 7.5, "status": "completed", "output": [], "model": "tiny"}
    event = {"type": "response.completed", "sequence_number": 3, "response": whole}
    out = streamed(response_formats.Response({"instructions": "be brief"}), [event], cut=True)
    assert out[0]["type"] == "response.incomplete"
    assert out[0]["response"]["incomplete_details"] == {"reason": "max_output_tokens"}
    answer = folded(response_formats.Response({"instructions": "be brief"}), [event])
    assert (answer["status"], answer["created_at"], answer["instructions"]) == ("completed", 7, "be brief")


def test_events_are_read_from_what_a_handler_writes_at_once() -> None:
    text = 'data: {"a": 1}\n\ndata: {"b": 2}\n\ndata: {"error": "it "broke""}\n\ndata: {"error": "x"}\n\n'
    assert list(response_formats.read_events(text)) == [{"a": 1}, {"b": 2}]


def test_events_of_the_responses_api_carry_their_name() -> None:
    assert response_formats.encode({"type": "response.created"}) == (
        b'event: response.created\ndata: {"type":"response.created"}\n\n'
    )
    assert response_formats.encode({"id": "ü"}) == 'data: {"id":"ü"}\n\n'.encode()
