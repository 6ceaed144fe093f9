"""Continuing a stream whose request is large: in few steps, in little memory, or not at all."""

import json
from typing import Any

import pytest

from gateway.streams.continuation import MAX_REQUEST, Continuation, NotResumable, continue_stream
from gateway.streams.transcript import Transcript
from tests.support.work import calls, peak_memory

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"


def begun() -> Transcript:
    """A stream that has sent one word."""
    transcript = Transcript()
    transcript.record(b'data: {"id":"a","choices":[{"index":0,"delta":{"content":"One"}}]}\n\n')
    return transcript


@pytest.mark.parametrize(
    ("path", "start", "unit", "end"),
    [
        (CHAT, b'{"messages":[', b"{},", b"{}]}"),
        (CHAT, b'{"messages":[{"content":"', b"\\n", b'"}]}'),
        (COMPLETIONS, b'{"prompt":"', "é".encode(), b'"}'),
        (COMPLETIONS, b'{"prompt":["', b'\\"', b'"]}'),
    ],
)
def test_large_request_is_continued_without_being_decoded(path: str, start: bytes, unit: bytes, end: bytes) -> None:
    """In a few steps, within three times its size: before, empty messages took 20 times their size."""
    body = start + unit * (3 * 2**20 // len(unit)) + end
    made: list[bytes] = []

    def continue_it() -> None:
        step = continue_stream(path, body, "m", begun())
        assert isinstance(step, Continuation)
        made.append(step.body)

    assert calls(continue_it) < 500
    assert peak_memory(continue_it) < 3 * len(body)
    request = json.loads(made[0])
    if path == CHAT:
        assert request["messages"] == [*json.loads(body)["messages"], {"role": "assistant", "content": "One"}]
    else:
        asked = json.loads(body)["prompt"]
        assert request["prompt"] == (asked[0] if isinstance(asked, list) else asked) + "One"


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({"padding": "x" * MAX_REQUEST}, "larger than 8 MB"),
        ({"messages": [{"content": "x"}] * 20_000, "continue_final_message": True}, "are too long"),
        ({"response_format": {"type": "text", "x": "x" * 5000}}, "response_format"),
        ({"tools": [{}] * 5000}, "tools"),
    ],
)
def test_request_too_large_to_look_at_is_not_continued(more: dict[str, Any], reason: str) -> None:
    """The event loop would be held up."""
    with pytest.raises(NotResumable, match=reason):
        continue_stream(CHAT, json.dumps({"messages": [{}]} | more).encode(), "m", begun())
