"""Which backend has read the beginning of a prompt before, and which one a conversation belongs to.

An engine keeps what it computed of a prompt (vLLM: automatic prefix caching) and saves that much where the next one
begins alike. The gateway has no tokenizer, so it goes by bytes: the beginning of a prompt is hashed at growing lengths,
and for each hash it is remembered which backends were sent it. SGLang's router, llm-d and vLLM's production-stack do
the same with trees or chains of blocks of equal size; growing ones tell a conversation from another as well, with a
dozen steps for a long prompt in the place of hundreds.

Where nothing is remembered, every gateway and every worker must come to the same backend without asking another:
rendezvous hashing (Thaler and Ravishankar, 1998).
"""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING
from zlib import crc32

from gateway.routing.wants import Wants

if TYPE_CHECKING:
    from typing_extensions import Buffer

KB = 1024
# At which lengths the beginning of a prompt is hashed, in bytes. Below the first there is nothing worth keeping.
ENDS: tuple[int, ...] = tuple(half * KB // 2 for half in (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128))
# How many beginnings are remembered; one takes some 250 bytes.
MOST_REMEMBERED = 50_000
# How many backends are remembered for one beginning, the latest first.
MOST_BACKENDS = 8


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


class PrefixMemory:
    """Which caches have seen which beginnings. A cache is a number, see Load.cache; old beginnings are forgotten."""

    def __init__(self, most: int = MOST_REMEMBERED) -> None:
        self._most = most
        # In the order of their last use.
        self._caches: dict[int, tuple[int, ...]] = {}

    def saved_kb(self, hashes: Sequence[int]) -> dict[int, float]:
        """How much of the prompt with these hashes each cache has seen, in KB; a cache that is not there, nothing."""
        saved: dict[int, float] = {}
        get = self._caches.get
        for index in range(len(hashes) - 1, -1, -1):
            for cache in get(hashes[index], ()):
                if cache not in saved:
                    saved[cache] = ENDS[index] / KB
        return saved

    def remember(self, hashes: Iterable[int], cache: int) -> None:
        """The prompt with these hashes goes to this cache."""
        caches = self._caches
        for one in hashes:
            known = caches.pop(one, ())
            if not known or known[0] != cache:
                known = (cache, *(other for other in known if other != cache))[:MOST_BACKENDS]
            caches[one] = known
        while len(caches) > self._most:
            del caches[next(iter(caches))]

    def __len__(self) -> int:
        return len(self._caches)


def rendezvous(key: bytes, name: str) -> int:
    """How much a conversation is drawn to the backend of this name: of several the highest has it."""
    # crc32 is linear: without the multiplication one name would win against another for all keys or for none.
    mixed = (crc32(key) ^ crc32(name.encode())) * 0x9E3779B97F4A7C15 & 0xFFFFFFFFFFFFFFFF
    return (mixed ^ mixed >> 29) * 0xBF58476D1CE4E5B9 >> 16 & 0xFFFFFFFFFFFF


def session_key(wants: Wants, hashes: Sequence[int]) -> bytes:
    """What names the conversation: what the client says, else how the prompt begins; empty where neither does."""
    if wants.session:
        return wants.session
    return hashes[0].to_bytes(4) if hashes else b""
