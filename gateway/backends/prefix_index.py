"""Which prompt prefixes a backend has probably cached. Pure.

Engines cache what they computed for a prompt (vLLM: automatic prefix caching) and reuse it for the next prompt with the
same beginning. The gateway has no tokenizer, so it hashes the beginning of the prompt's bytes at growing lengths and
remembers which hashes each backend was sent. SGLang's router, llm-d and vLLM's production-stack use trees or chains of
equal blocks; growing lengths distinguish conversations as well, with a dozen steps instead of hundreds per long prompt.

Engines do not report the size of their cache; an entry counts as evicted after KEPT_KB of further reading. Too large a
value costs cache hits, since conversations return to a backend that has evicted them; too small a value spreads them.
"""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING
from zlib import crc32

if TYPE_CHECKING:
    from typing_extensions import Buffer

KB = 1024
# Lengths at which the beginning of a prompt is hashed, in bytes. Below the first, caching saves nothing.
PREFIX_LENGTHS: tuple[int, ...] = tuple(half * KB // 2 for half in (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128))
# Hashes remembered per backend, about 150 bytes each.
MAX_HASHES = 20_000
# Reading after which a prefix counts as evicted, in KB: some 130,000 tokens, the room that a model of 8 billion
# parameters has on a GPU of 48 GB.
KEPT_KB = 512.0


def prefix_hashes(prompt: Sequence["Buffer"]) -> list[int]:
    """Return the hash of each beginning of `prompt`, for every one of PREFIX_LENGTHS that it reaches.

    crc32 is not secret and easy to collide: a collision costs a wrong guess, which the load bound limits.
    """
    hashes: list[int] = []
    crc = done = 0
    for piece in prompt:
        view = memoryview(piece)
        start, length = 0, len(view)
        while len(hashes) < len(PREFIX_LENGTHS):
            # The next length may lie in a later piece.
            end = start + PREFIX_LENGTHS[len(hashes)] - done
            crc = crc32(view[start:end], crc)
            if end > length:
                done += length - start
                break
            done += end - start
            start = end
            hashes.append(crc)
    return hashes


class PrefixIndex:
    """Prefixes sent to one backend. Its clock is the KB that the backend had to read, because reading evicts."""

    def __init__(self) -> None:
        self.read_kb = 0.0
        # Reading after which a prefix counts as evicted.
        self.kept_kb = KEPT_KB
        # When each prefix was last used, least recently used first.
        self._read_at: dict[int, float] = {}

    def cached_kb(self, hashes: Sequence[int]) -> float:
        """Return how much of the prompt with these hashes the backend should still have cached, in KB."""
        read_at = self._read_at.get
        evicted_before = self.read_kb - self.kept_kb
        # Binary search: a longer prefix was never used later than a shorter one.
        found, most = 0, len(hashes)
        while found < most:
            middle = (found + most + 1) // 2
            at = read_at(hashes[middle - 1])
            if at is not None and at >= evicted_before:
                found = middle
            else:
                most = middle - 1
        return PREFIX_LENGTHS[found - 1] / KB if found else 0.0

    def add(self, hashes: Iterable[int], unread_kb: float) -> None:
        """Record that the prompt with these hashes was sent, `unread_kb` of which the backend has yet to read."""
        self.read_kb = now = self.read_kb + unread_kb
        read_at = self._read_at
        for one in hashes:
            read_at.pop(one, None)
            read_at[one] = now
        while len(read_at) > MAX_HASHES:
            del read_at[next(iter(read_at))]
