"""What a stream's events are packed into is what they were."""

import json
import random

import pytest

from gateway.packing import Pack
from gateway.transcript import FOLD, Transcript

WORDS = ["a", " the", " data:", "\\n\\n", "\n\n", "é", "\u2028", '"', " }", "", " 😀", "x" * 50]


def events(words: list[str], **more: object) -> bytes:
    """The events of one generation."""
    chunks = [{"id": "c-1", "choices": [{"index": 0, "delta": {"content": word}}], **more} for word in words]
    return b"".join(b"data: %b\n\n" % json.dumps(chunk, ensure_ascii=False).encode() for chunk in chunks)


@pytest.mark.parametrize("seed", range(20))
def test_nothing_is_lost(seed: int) -> None:
    """Any words, in any number of pieces, come back; and what came back is kept no longer."""
    draw = random.Random(seed)
    pack = Pack()
    for _ in range(2):
        pieces = [events(draw.choices(WORDS, k=draw.randint(4, FOLD))) for _ in range(5)]
        kept = [piece for piece in pieces if pack.add(piece)]
        assert kept
        assert pack.size < sum(map(len, kept)) / 2
        assert pack.take() == b"".join(kept)
        assert (pack.size, pack.take()) == (0, b"")


@pytest.mark.parametrize(
    "piece",
    [b"", b"\n\n", b"data: x\n\n", events(["a", "b"]), b"data: " + b"x\0y" * 99 + b"\n\n",
     b"".join(b"data: %d\n\n" % (7**number) for number in range(40)), events(WORDS).replace(b"\n", b"\r\n")],
)  # fmt: skip
def test_what_does_not_become_smaller_is_left(piece: bytes) -> None:
    """Too few events, events that have little in common, and such as hold the byte that stands for the rest."""
    pack = Pack()
    assert not pack.add(piece)
    assert pack.take() == b""
    assert pack.add(events(WORDS))
    assert not pack.add(b"\0" + events(WORDS))
    assert pack.take() == events(WORDS)


def test_a_stream_that_changes_its_ways() -> None:
    """Packed, read, no longer packed: its text is whole and in order whenever it is asked for."""
    words = [f" w{number}" for number in range(FOLD * 6)]
    said = Transcript()
    for number, word in enumerate(words):
        said.keep(events([word], **({"usage": None, "at": 7**number} if number > FOLD * 3 else {})))
        if number == FOLD * 2 + 5:
            said.read()
            assert said.text == "".join(words[: number + 1])
    said.read()
    assert said.reason is None
    assert (said.text, said.tokens) == ("".join(words), len(words))
