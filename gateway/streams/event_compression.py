"""The events of a stream, kept in a fraction of their size without being read. Pure.

All events of a generation are alike but for a word: `data: {"id":...,"choices":[{"index":0,"delta":{"content":" word"},
...}]}`. What stands between one word and the next is learnt from a handful of events and written as one byte, which
JSON cannot hold (RFC 8259, 7: control characters are escaped). This costs less than reading the events does, and few
streams are ever read.
"""

from collections.abc import Iterator

_BETWEEN = b"\0"
_END = b"\n\n"
# How many handfuls are kept at most: to read them is work that comes all at once, when a backend has died.
MOST = 16
# As much of each event is looked at to find out what they have in common, from either end, in bytes.
_LOOK = 4096


class Pack:
    """What `add` has taken, until `take`."""

    __slots__ = ("_between", "_packed")

    def __init__(self) -> None:
        self._between = b""
        self._packed: list[bytes] = []

    def add(self, events: bytes) -> bool:
        """Keep whole events; False where they do not become half as long at least, or it is full: nothing is kept."""
        self._between = self._between or _between(events)
        if not self._between or _BETWEEN in events or len(self._packed) >= MOST:
            return False
        packed = events.replace(self._between, _BETWEEN)
        if 2 * len(packed) > len(events):
            return False
        self._packed.append(packed)
        return True

    def __len__(self) -> int:
        return len(self._packed)

    def take(self) -> Iterator[bytes]:
        """What was kept, handful by handful, each as it was; it is kept no longer. What is common is learnt again."""
        packed, between = self._packed, self._between
        self._packed, self._between = [], b""
        return (events.replace(_BETWEEN, between) for events in packed)


def _between(events: bytes) -> bytes:
    """What stands between the words of events that are alike; the first may be another one, as it names the role."""
    alike = events.split(_END)[1:-1]
    if len(alike) < 2:
        return b""
    begin = _common([one[:_LOOK] for one in alike])
    end = _common([one[len(begin) :][: -_LOOK - 1 : -1] for one in alike])[::-1]
    return end + _END + begin


def _common(texts: list[bytes]) -> bytes:
    """How all of them begin."""
    first, last = min(texts), max(texts)
    same = next((at for at, (one, other) in enumerate(zip(first, last, strict=False)) if one != other), len(first))
    return first[:same]
