"""What a backend keeps of the prompts that it has read. Pure.

An engine keeps what it computed of a prompt (vLLM: automatic prefix caching) and saves that much where the next one
begins alike. The gateway has no tokenizer, so it goes by bytes: the beginning of a prompt is hashed at growing lengths,
and each backend's record says which hashes it was sent. SGLang's router, llm-d and vLLM's production-stack do the same
with trees or chains of blocks of equal size; growing ones tell conversations apart as well, with a dozen steps for a
long prompt in the place of hundreds.

What has been read since pushes it out. How much an engine has room for, it does not tell; guessing too much costs hits,
since conversations go back to where their beginning is gone, and guessing too little spreads them.
"""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING
from zlib import crc32

if TYPE_CHECKING:
    from typing_extensions import Buffer

KB = 1024
# At which lengths the beginning of a prompt is hashed, in bytes. Below the first there is nothing worth keeping.
ENDS: tuple[int, ...] = tuple(half * KB // 2 for half in (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128))
# How many hashes are remembered for one backend; one takes some 150 bytes.
MAX_REMEMBERED = 20_000
# After how much reading a beginning counts as gone, in KB: some 130,000 tokens, for which a model of 8 billion
# parameters has room on a GPU of 48 GB.
KEEPS_KB = 512.0


def chain(prompt: Sequence["Buffer"]) -> list[int]:
    """The hashes of the beginnings of `prompt`, for each of ENDS that it reaches. Equal beginnings have equal hashes.

    crc32 is no secret and collides at will: all that a collision costs is a wrong guess, and load bounds that.
    """
    hashes: list[int] = []
    crc = done = 0
    for piece in prompt:
        view = memoryview(piece)
        start, length = 0, len(view)
        while len(hashes) < len(ENDS):
            # As much as is missing to the next length, which may lie in a later piece.
            end = start + ENDS[len(hashes)] - done
            crc = crc32(view[start:end], crc)
            if end > length:
                done += length - start
                break
            done += end - start
            start = end
            hashes.append(crc)
    return hashes


class PrefixIndex:
    """One backend's record. Its clock is what it has read and not found, in KB: that is what pushes things out."""

    __slots__ = ("_read_at", "keeps_kb", "read_kb")

    def __init__(self) -> None:
        self.read_kb = 0.0
        # After how much reading a beginning is gone.
        self.keeps_kb = KEEPS_KB
        # When each beginning was last read or found, in the order of that.
        self._read_at: dict[int, float] = {}

    def saved(self, hashes: Sequence[int]) -> float:
        """How much of the prompt with these hashes it should still have, in KB."""
        read_at = self._read_at.get
        gone = self.read_kb - self.keeps_kb
        # A longer beginning was never read later than a shorter one, so the last that is there can be searched for.
        there, most = 0, len(hashes)
        while there < most:
            middle = (there + most + 1) // 2
            at = read_at(hashes[middle - 1])
            if at is not None and at >= gone:
                there = middle
            else:
                most = middle - 1
        return ENDS[there - 1] / KB if there else 0.0

    def read(self, hashes: Iterable[int], kb: float) -> None:
        """It gets the prompt with these hashes, of which it has `kb` still to read."""
        self.read_kb = now = self.read_kb + kb
        read_at = self._read_at
        for one in hashes:
            read_at.pop(one, None)
            read_at[one] = now
        while len(read_at) > MAX_REMEMBERED:
            del read_at[next(iter(read_at))]
