"""Compressed events decompress to the same bytes."""

import json
import random

import pytest

from gateway.streams.event_compression import MAX_BATCHES, CompressedEvents
from gateway.streams.transcript import MAX_PENDING, Transcript

WORDS = ["a", " the", " data:", "\\n\\n", "\n\n", "é", "\u2028", '"', " }", "", " 😀", "x" * 50]


def events(words: list[str], **more: object) -> bytes:
    """The events of one generation."""
    chunks = [{"id": "c-1", "choices": [{"index": 0, "delta": {"content": word}}], **more} for word in words]
    return b"".join(b"data: %b\n\n" % json.dumps(chunk, ensure_ascii=False).encode() for chunk in chunks)


@pytest.mark.parametrize("seed", range(20))
def test_round_trip(seed: int) -> None:
    """Any words in any number of batches; taking them empties the store."""
    draw = random.Random(seed)
    compressed = CompressedEvents()
    for _ in range(2):
        pieces = [events(draw.choices(WORDS, k=draw.randint(4, MAX_PENDING))) for _ in range(5)]
        kept = [piece for piece in pieces if compressed.add(piece)]
        assert kept
        assert len(compressed) == len(kept)
        assert list(compressed.take()) == kept
        assert list(compressed.take()) == []


@pytest.mark.parametrize(
    "piece",
    [b"", b"\n\n", b"data: x\n\n", events(["a", "b"]), b"data: " + b"x\0y" * 99 + b"\n\n",
     b"".join(b"data: %d\n\n" % (7**number) for number in range(40)), events(WORDS).replace(b"\n", b"\r\n")],
)  # fmt: skip
def test_incompressible_events_are_rejected(piece: bytes) -> None:
    """Too few events, events with little in common, events that contain the marker byte."""
    compressed = CompressedEvents()
    assert not compressed.add(piece)
    assert list(compressed.take()) == []
    assert compressed.add(events(WORDS))
    assert not compressed.add(b"\0" + events(WORDS))
    assert list(compressed.take()) == [events(WORDS)]


def test_number_of_batches_is_bounded() -> None:
    """What a failover has to parse at once is bounded."""
    compressed = CompressedEvents()
    assert sum(compressed.add(events(WORDS)) for _ in range(MAX_BATCHES + 5)) == MAX_BATCHES
    transcript = Transcript()
    for number in range(MAX_PENDING * (MAX_BATCHES + 3)):
        transcript.record(events([f" w{number}"]))
    assert len(transcript.text.split()) == MAX_PENDING * (MAX_BATCHES + 1)


def test_long_similar_events_are_compressed_quickly() -> None:
    """Only their ends are compared: half a megabyte of each would block the event loop."""
    compressed = CompressedEvents()
    alike = events(["x" * 100_000 + str(number) for number in range(20)])
    assert not compressed.add(alike)
    assert list(compressed.take()) == []


def test_common_text_is_learned_again_after_a_comment() -> None:
    transcript = Transcript()
    for number in range(MAX_PENDING * 2):
        transcript.record(b": processing\n\n" * 30 + b"data: [1]\n\n" if number < 5 else events([f" w{number}"]))
    assert len(transcript.pending) == 0
    assert len(transcript.text.split()) < MAX_PENDING


def test_stream_whose_format_changes() -> None:
    """The text is complete and in order whenever it is read."""
    words = [f" w{number}" for number in range(MAX_PENDING * 6)]
    transcript = Transcript()
    for number, word in enumerate(words):
        transcript.record(events([word], **({"usage": None, "at": 7**number} if number > MAX_PENDING * 3 else {})))
        if number == MAX_PENDING * 2 + 5:
            transcript.read()
            assert transcript.text == "".join(words[: number + 1])
    transcript.read()
    assert transcript.obstacle is None
    assert (transcript.text, transcript.tokens) == ("".join(words), len(words))
