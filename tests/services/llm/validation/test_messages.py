"""Validation of chat messages."""

from typing import Any

import pytest

from kit.errors import InvalidRequest
from services.llm.validation.messages import image_parts, read_messages
from services.llm.validation.responses_input import read_input

TEXT = {"type": "text", "text": "hi"}
CALL = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}
HI = {"role": "user", "content": "hi"}
IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA==", "detail": "low"}}


@pytest.mark.parametrize(
    ("given", "expected"),
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
def test_messages_are_normalized(given: dict[str, Any], expected: dict[str, Any]) -> None:
    assert read_messages([given], images=False) == [expected]


@pytest.mark.parametrize(
    ("messages", "message"),
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
        ([{"role": "user", "content": [IMAGE]}], "accepts text only"),
        ([{"role": "assistant", "tool_calls": [{}]}], "function with a name"),
    ],
)
def test_invalid_messages_are_rejected_with_the_reason(messages: Any, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        read_messages(messages, images=False)


ABSENT = object()
MALFORMED: list[Any] = [
    "", "{", "{'a': 1}", "city=Oslo", "[1]", "null", "3", '"a"', "NaN", '{"a": NaN}', "[" * 100_000, None, [1], 3
]  # fmt: skip


@pytest.mark.parametrize("arguments", [*MALFORMED, ABSENT])
def test_malformed_arguments_in_the_history_count_as_empty(arguments: Any) -> None:
    """The model wrote them, and rejecting them would end the conversation. vLLM does the same (renderers/chat_utils.py,
    _postprocess_messages); chat completions and responses agree."""
    given = {} if arguments is ABSENT else {"arguments": arguments}
    (message,) = read_messages(
        [{"role": "assistant", "tool_calls": [{"function": {"name": "f", **given}}]}], images=False
    )
    assert message["tool_calls"][0]["function"] == {"name": "f", "arguments": {}}
    called = {**CALL, **given} if given else {name: CALL[name] for name in CALL if name != "arguments"}
    items: Any = read_input([HI, called], images=False)
    assert items[1] == {**CALL, "arguments": {}}


@pytest.mark.parametrize("arguments", ['{"a": [1]}', ' {"a": [1]}\n', {"a": [1]}])
def test_arguments_reach_the_template_as_a_mapping(arguments: Any) -> None:
    call = {"function": {"name": "f", "arguments": arguments}}
    (message,) = read_messages([{"role": "assistant", "tool_calls": [call]}], images=False)
    assert message["tool_calls"][0]["function"]["arguments"] == {"a": [1]}
    items: Any = read_input([HI, {**CALL, "arguments": arguments}], images=False)
    assert items[1]["arguments"] == {"a": [1]}


@pytest.mark.parametrize(
    "part",
    [IMAGE, {"type": "input_image", "image_url": IMAGE["image_url"]["url"]}],  # type: ignore[index]  # a dict of a dict
)
def test_image_parts_of_both_apis_are_normalized(part: dict[str, Any]) -> None:
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
def test_responses_input_is_normalized(value: Any, clean: Any) -> None:
    assert read_input(value, images=False) == clean


@pytest.mark.parametrize(
    "value", [None, "", [], 3, [3], [{"type": "item_reference", "id": "x"}], [{"role": "user"}], [CALL]]
)
def test_invalid_responses_input_is_rejected(value: Any) -> None:
    with pytest.raises(InvalidRequest, match="input"):
        read_input(value, images=False)
