"""What a stream's events are packed into is what they were."""

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
def test_nothing_is_lost(seed: int) -> None:
    """Any words, in any number of pieces, come back; and what came back is kept no longer."""
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
def test_what_does_not_become_smaller_is_left(piece: bytes) -> None:
    """Too few events, events that have little in common, and such as hold the byte that stands for the rest."""
    compressed = CompressedEvents()
    assert not compressed.add(piece)
    assert list(compressed.take()) == []
    assert compressed.add(events(WORDS))
    assert not compressed.add(b"\0" + events(WORDS))
    assert list(compressed.take()) == [events(WORDS)]


def test_it_is_full() -> None:
    """What would have to be read all at once, when a backend dies, stays little."""
    compressed = CompressedEvents()
    assert sum(compressed.add(events(WORDS)) for _ in range(MAX_BATCHES + 5)) == MAX_BATCHES
    transcript = Transcript()
    for number in range(MAX_PENDING * (MAX_BATCHES + 3)):
        transcript.record(events([f" w{number}"]))
    assert len(transcript.text.split()) == MAX_PENDING * (MAX_BATCHES + 1)


def test_long_events_that_begin_alike_take_no_time() -> None:
    """Only their ends are looked at: half a megabyte of each would hold up everybody."""
    compressed = CompressedEvents()
    alike = events(["x" * 100_000 + str(number) for number in range(20)])
    assert not compressed.add(alike)
    assert list(compressed.take()) == []


def test_a_comment_first_costs_only_the_first_handful() -> None:
    """Where nothing in common is found once, it is looked for again."""
    transcript = Transcript()
    for number in range(MAX_PENDING * 2):
        transcript.record(b": processing\n\n" * 30 + b"data: [1]\n\n" if number < 5 else events([f" w{number}"]))
    assert len(transcript.pending) == 0
    assert len(transcript.text.split()) < MAX_PENDING


def test_a_stream_that_changes_its_ways() -> None:
    """Packed, read, no longer packed: its text is whole and in order whenever it is asked for."""
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
