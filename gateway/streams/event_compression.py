"""Cheap compression of a stream's events, without parsing them. Pure.

All events of a generation differ in one word only: `data: {"id":...,"choices":[{"index":0,"delta":{"content":" word"},
...}]}`. The text between one word and the next is learned from a batch of events and stored as one byte, which JSON
cannot contain (RFC 8259, 7: control characters are escaped). This is cheaper than parsing, and few streams are ever
parsed.
"""

from collections.abc import Iterator

_MARK = b"\0"
_END = b"\n\n"
# More batches than this are not kept: decoding them all is done at once, when a backend has crashed.
MAX_BATCHES = 16
# How many bytes of each event, from either end, are compared to learn the common text.
_COMPARED = 4096


class CompressedEvents:
    """Batches of events from `add`, until `take`."""

    __slots__ = ("_batches", "_common")

    def __init__(self) -> None:
        self._common = b""
        self._batches: list[bytes] = []

    def add(self, events: bytes) -> bool:
        """Store a batch of whole events; return False, storing nothing, if it shrinks to more than half or if full."""
        self._common = self._common or _common_text(events)
        if not self._common or _MARK in events or len(self._batches) >= MAX_BATCHES:
            return False
        compressed = events.replace(self._common, _MARK)
        if 2 * len(compressed) > len(events):
            return False
        self._batches.append(compressed)
        return True

    def __len__(self) -> int:
        return len(self._batches)

    def take(self) -> Iterator[bytes]:
        """Remove and return the batches, decompressed. The common text is learned anew afterwards."""
        batches, common = self._batches, self._common
        self._batches, self._common = [], b""
        return (events.replace(_MARK, common) for events in batches)


def _common_text(events: bytes) -> bytes:
    """Return the text between the words of similar events. The first, which may carry the role, is not compared."""
    similar = events.split(_END)[1:-1]
    if len(similar) < 2:
        return b""
    start = _common_prefix([event[:_COMPARED] for event in similar])
    end = _common_prefix([event[len(start) :][: -_COMPARED - 1 : -1] for event in similar])[::-1]
    return end + _END + start


def _common_prefix(texts: list[bytes]) -> bytes:
    first, last = min(texts), max(texts)
    length = next((at for at, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))
    return first[:length]
