"""Server-sent events: complete events only, and error events."""

import json
from typing import Any

import pytest

from gateway.streams.sse import MAX_PARTIAL, EventBuffer, error_event
from kit.errors import BadGateway


@pytest.mark.parametrize("end", [b"\n\n", b"\r\n\r\n", b"\r\r"])
def test_buffer_passes_only_complete_events(end: bytes) -> None:
    events = [b"data: %d" % index + end for index in range(3)]
    for cut in range(1, len(b"".join(events))):
        data = b"".join(events)
        buffer = EventBuffer()
        first = buffer.feed(data[:cut])
        assert first == b"" or first.endswith(end)
        assert first + buffer.feed(data[cut:]) + buffer.flush() == data


def test_buffer_passes_an_endless_event_in_pieces() -> None:
    buffer = EventBuffer()
    assert len(buffer.feed(b"x" * (MAX_PARTIAL + 1))) == MAX_PARTIAL + 1


def test_buffer_keeps_an_unterminated_last_event() -> None:
    buffer = EventBuffer()
    assert buffer.feed(b"data: a\n\ndata: b\n") == b"data: a\n\n"
    assert buffer.flush() == b"data: b\n"


@pytest.mark.parametrize("dialect", ["openai", "responses", "anthropic"])
def test_error_event_is_one_event_in_every_dialect(dialect: Any) -> None:
    event = error_event(BadGateway("a\nb é"), dialect)
    assert event.endswith(b"\n\n")
    assert event.count(b"\n\n") == 1
    body = json.loads(event.rpartition(b"data: ")[2])
    assert "a\nb é" in json.dumps(body, ensure_ascii=False).replace("\\n", "\n")
