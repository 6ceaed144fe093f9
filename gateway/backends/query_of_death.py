"""Queries of death: which request it was that its backends died of. Pure.

A request that was at a backend when that died, reset the connection or broke off has a death to its name. The second
one makes it a query of death: it goes to no third backend, and for a while whoever sends the same path and body gets
the same error at once. Backends also die by chance with innocent requests in flight, so a death counts only where it
says something about the request:

- What was refused a connection, or answered 502, 503 or 504, did not die of it; that is not told here.
- All that one backend had in flight and loses within TOGETHER_S is one death of that backend, and one for each request,
  however often the same body was in flight.
- A backend that had lost other requests shortly before (QUIET_S), or has said nothing since it lost them, is ill by
  itself: nothing that it loses is to blame.
- A request that had been served for longer than SETTLED_S is not to blame: what kills does it soon.
- The second death convicts only where few (FEW) of the requests lost with it had a death to their name before. A query
  of death moves on with the others of its first backend, which spread; when it kills the second, few of them are there.
  Where many are, as when a backend with hundreds of streams is killed just after another, nobody is convicted, and
  the third death decides among fewer. Nothing survives MAX_DEATHS.
- Whoever gets an answer is cleared, and so is everybody who sends the same.

What one worker on our port has convicted is refused by all: `convictions` are told, `join` takes them in.

The digests are kept for as long as the quarantine lasts (`expire`), the oldest going first when there are too many.
"""

import hashlib
from collections.abc import Iterable

from gateway.backends.backend import Backend
from kit.errors import ApiError

TOGETHER_S = 0.5
QUIET_S = 5.0
SETTLED_S = 10.0
FEW = 8
MAX_DEATHS = 4
MAX_KEPT = 1024
# So many convictions are told to other workers, the latest ones.
MAX_TOLD = 128

# A conviction as it is told: digest in hexadecimal, length of the body, how many backends were lost, until when.
Conviction = tuple[str, int, int, float]


class CrashedBackend(ApiError):
    """The request is, as far as can be told, what its backends died of."""

    status = 502
    type = "server_error"
    code = "request_crashed_backend"


class _Death:
    """One death of one backend."""

    __slots__ = ("before", "began", "digests", "last", "silent_since", "suspects")

    def __init__(self, began: float, suspects: int, before: "_Death | None", *, silent_since: bool) -> None:
        self.began = self.last = began
        # How many of the requests in flight there had a death to their name.
        self.suspects = suspects
        # The last one before, and whether the backend has said nothing since.
        self.before = before
        self.silent_since = silent_since
        self.digests: set[bytes] = set()

    def says_nothing(self, digest: bytes) -> bool:
        """Whether the backend had been losing others anyway."""
        before = self.before
        if before is None or digest in before.digests:
            return False
        return self.silent_since or self.began - before.last < QUIET_S


class _Record:
    """What is held against one digest."""

    __slots__ = ("convicted", "count", "last", "length", "until")

    def __init__(self, length: int) -> None:
        self.length = length
        self.count = 0
        self.last: _Death | None = None
        self.convicted = False
        self.until = 0.0


class Quarantine:
    """All deaths of late."""

    def __init__(self, quarantine_s: float) -> None:
        self._quarantine_s = quarantine_s
        # By digest. While it is empty, nothing need be asked for a request.
        self.records: dict[bytes, _Record] = {}
        # Bodies of other lengths need no digest.
        self._lengths: dict[int, int] = {}
        self._last: dict[str, _Death] = {}
        # Convicted by other workers.
        self._joined: set[bytes] = set()
        # Requests refused, since the start.
        self.refused = 0

    def may_know(self, body: bytes) -> bool:
        """Whether a request with this body might have a death to its name; costs next to nothing."""
        return len(body) in self._lengths

    def known(self, path: str, body: bytes, now: float) -> bytes | None:
        """The digest of a request that has a death to its name, else None.

        Raises CrashedBackend where it was convicted. `now` is monotonic, as everywhere here.
        """
        if len(body) not in self._lengths:
            return None
        digest = digest_of(path, body)
        record = self.records.get(digest)
        if record is None:
            return None
        if record.until < now:
            self._forget(digest)
            return None
        if record.convicted:
            self.refused += 1
            raise CrashedBackend(
                f"This request has crashed {record.count} backends and is not sent again for {record.until - now:.0f} "
                "s. Change it, or ask the operator to look into the logs of the backends."
            )
        return digest

    def died(self, backend: Backend, digest: bytes, length: int, now: float, *, served_s: float) -> bool:
        """A request of `length` bytes was lost with its backend, after `served_s` there; whether it is convicted.

        Call it before the request's place at the backend is given up.
        """
        death = self._last.get(backend.name)
        if death is None or now - death.began > TOGETHER_S or now - served_s > death.last:
            silent = death is not None and backend.traffic.last_byte_at <= death.last
            death = self._last[backend.name] = _Death(now, backend.traffic.suspects, death, silent_since=silent)
            if death.before is not None:
                death.before.before = None
        death.last = now
        death.digests.add(digest)
        if death.says_nothing(digest) or served_s > SETTLED_S:
            return False
        record = self.records.get(digest)
        if record is None:
            record = self._remember(digest, length)
        if record.last is not death:
            record.last = death
            record.count += 1
        record.until = now + self._quarantine_s
        if record.count >= 2 and (death.suspects <= FEW or record.count >= MAX_DEATHS):
            record.convicted = True
        return record.convicted

    def convictions(self, now: float) -> list[Conviction]:
        """What was convicted here and is still."""
        told = [
            (digest.hex(), record.length, record.count, record.until)
            for digest, record in self.records.items()
            if record.convicted and record.until >= now and digest not in self._joined
        ]
        return told[-MAX_TOLD:]

    def join(self, told: Iterable[Conviction], now: float) -> None:
        """Take in all that other workers have convicted, and what they hold against nobody any more."""
        theirs = {bytes.fromhex(one[0]): one for one in told if one[3] >= now}
        for digest in self._joined - theirs.keys():
            self._forget(digest)
        for digest, (_, length, count, until) in theirs.items():
            record = self.records.get(digest) or self._remember(digest, length)
            if not record.convicted:
                record.convicted, record.count, record.until = True, count, until
                self._joined.add(digest)

    def cleared(self, path: str, body: bytes) -> None:
        """A request with this path and body got its answer."""
        if len(body) in self._lengths:
            digest = digest_of(path, body)
            if digest in self.records:
                self._forget(digest)

    def expire(self, now: float) -> None:
        """Forget what is over: as long as there is any record, every request is looked at more closely."""
        for digest in [digest for digest, record in self.records.items() if record.until < now]:
            self._forget(digest)

    def _remember(self, digest: bytes, length: int) -> _Record:
        if len(self.records) >= MAX_KEPT:
            self._forget(next(iter(self.records)))
        record = self.records[digest] = _Record(length)
        self._lengths[length] = self._lengths.get(length, 0) + 1
        return record

    def _forget(self, digest: bytes) -> None:
        length = self.records.pop(digest).length
        self._joined.discard(digest)
        self._lengths[length] -= 1
        if not self._lengths[length]:
            del self._lengths[length]


def digest_of(path: str, body: bytes) -> bytes:
    """What names a request: its path and body."""
    return hashlib.blake2b(body, digest_size=16, key=path.encode()[:64]).digest()
