"""Chat messages: what clients send, cleaned, and what is refused."""

from typing import Any

import pytest

from kit.errors import InvalidRequest
from services.llm.messages import image_parts, read_messages
from services.llm.responses_input import read_input

TEXT = {"type": "text", "text": "hi"}
CALL = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}
IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA==", "detail": "low"}}


@pytest.mark.parametrize(
    ("message", "clean"),
    [
        ({"role": "user", "content": "hi"}, {"role": "user", "content": "hi"}),
        ({"role": "user", "content": [TEXT], "name": "eva"}, {"role": "user", "content": [TEXT]}),
        ({"role": "developer", "content": "be brief"}, {"role": "system", "content": "be brief"}),
        ({"role": "assistant", "content": None}, {"role": "assistant", "content": ""}),
        (
            {"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]},
            {"role": "assistant", "content": [{"type": "text", "text": "no"}]},
        ),
        (
            {"role": "user", "content": [{"type": "input_text", "text": "hi"}]},
            {"role": "user", "content": [TEXT]},
        ),
        (
            {"role": "tool", "content": "4", "tool_call_id": "c1"},
            {"role": "tool", "content": "4", "tool_call_id": "c1"},
        ),
        (
            {"role": "assistant", "tool_calls": [{"id": "c1", "function": {"name": "f", "arguments": '{"a": 1}'}}]},
            {
                "role": "assistant",
                "content": "",
                "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "f", "arguments": {"a": 1}}}],
            },
        ),
    ],
)
def test_a_message_is_cleaned(message: dict[str, Any], clean: dict[str, Any]) -> None:
    assert read_messages([message], images=False) == [clean]


@pytest.mark.parametrize(
    ("messages", "says"),
    [
        (None, "at least one message"),
        ([], "at least one message"),
        ("hi", "at least one message"),
        ([3], "must be an object"),
        ([{"content": "hi"}], "role"),
        ([{"role": "boss", "content": "hi"}], "role"),
        ([{"role": ["user"], "content": "hi"}], "role"),
        ([{"role": "user"}], "content is missing"),
        ([{"role": "user", "content": 5}], "text or a list of parts"),
        ([{"role": "user", "content": ["hi"]}], "object with a type"),
        ([{"role": "user", "content": [{"type": "text"}]}], "must be a string"),
        ([{"role": "user", "content": [{"type": "video_url"}]}], "video_url"),
        ([{"role": "user", "content": [{"type": "input_audio"}]}], "input_audio"),
        ([{"role": "user", "content": [IMAGE]}], "takes text only"),
        ([{"role": "assistant", "tool_calls": [{}]}], "function with a name"),
        ([{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}], "not JSON"),
        ([{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "3"}}]}], "JSON object"),
    ],
)
def test_a_broken_message_is_refused_with_the_reason(messages: Any, says: str) -> None:
    with pytest.raises(InvalidRequest, match=says):
        read_messages(messages, images=False)


@pytest.mark.parametrize(
    "part",
    [IMAGE, {"type": "input_image", "image_url": IMAGE["image_url"]["url"]}],  # type: ignore[index]  # a dict of a dict
)
def test_images_of_both_apis_come_out_alike(part: dict[str, Any]) -> None:
    messages = read_messages([{"role": "user", "content": [TEXT, part]}], images=True)
    assert image_parts(messages) == [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}]


@pytest.mark.parametrize(
    ("value", "clean"),
    [
        ("hi", "hi"),
        ([{"type": "input_text", "text": "hi"}], [{"role": "user", "content": [TEXT]}]),
        ([{"type": "message", "role": "user", "content": "hi"}], [{"role": "user", "content": "hi"}]),
        (
            [{"role": "user", "content": "hi"}, {"type": "function_call_output", "call_id": "c", "output": "4"}],
            [{"role": "user", "content": "hi"}, {"type": "function_call_output", "call_id": "c", "output": "4"}],
        ),
    ],
)
def test_the_input_of_responses_is_cleaned(value: Any, clean: Any) -> None:
    assert read_input(value, images=False) == clean


@pytest.mark.parametrize(
    "value", [None, "", [], 3, [3], [{"type": "item_reference", "id": "x"}], [{"role": "user"}], [CALL]]
)
def test_a_broken_input_of_responses_is_refused(value: Any) -> None:
    with pytest.raises(InvalidRequest, match="input"):
        read_input(value, images=False)
