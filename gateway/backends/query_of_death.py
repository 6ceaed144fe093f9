"""Queries of death: find the requests that crash their backends. Pure.

A request in flight at a backend that crashes (it resets or closes the connection) becomes a suspect; at its second
crash it is convicted: it is sent to no third backend, and for a while the same path and body gets the same error at
once. Backends also crash for other reasons while innocent requests are in flight, so a crash counts only if it says
something about the request:

- Refused connections and the statuses 502, 503 and 504 are no crashes; they are not recorded here.
- All requests that one backend loses within SAME_CRASH_S are one crash, counted once per body.
- A backend that lost other requests within QUIET_S before, or sent nothing since it lost them, is faulty itself: the
  requests that it loses do not become suspects.
- A request served for longer than MAX_CRASH_AFTER_S is not a suspect: a crash follows soon after sending.
- The second crash convicts only if at most MAX_SUSPECTS of the requests lost with it were suspects before. A query of
  death is retried with the other requests of its first backend, which spread: few of them are at the second backend.
  If many are, as when a backend with hundreds of streams is killed just after another, the next crash decides.
  MAX_CRASHES always convict.
- A response clears the request, and all requests with the same path and body.

Suspects are kept for the quarantine's duration; the oldest are dropped first if there are too many.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field

from gateway.backends.backend import Backend
from kit.errors import ApiError

SAME_CRASH_S = 0.5
QUIET_S = 5.0
MAX_CRASH_AFTER_S = 10.0
MAX_SUSPECTS = 8
MAX_CRASHES = 4
# Digests that are kept, and the latest convictions that are published to other workers.
MAX_DIGESTS = 1024
MAX_PUBLISHED = 128
# How much of a body is digested, in bytes: more would hold up the event loop.
MAX_DIGESTED = 4 * 1024 * 1024

# A published conviction: digest in hexadecimal, length of the body, number of crashes, end of the quarantine.
Conviction = tuple[str, int, int, float]


class CrashedBackend(ApiError):
    """The request has probably crashed its backends."""

    status = 502
    type = "server_error"
    code = "request_crashed_backend"


@dataclass(slots=True, eq=False)
class _Crash:
    """One crash of one backend."""

    began_at: float
    # Requests in flight there that were suspects already.
    suspects: int
    previous: "_Crash | None"
    silent_since_previous: bool
    last_at: float = 0.0
    digests: set[bytes] = field(default_factory=set)

    def is_inconclusive(self, digest: bytes) -> bool:
        """Whether the backend had already been losing other requests."""
        previous = self.previous
        if previous is None or digest in previous.digests:
            return False
        return self.silent_since_previous or self.began_at - previous.last_at < QUIET_S


@dataclass(slots=True, eq=False)
class _Suspect:
    """State of one digest."""

    length: int
    crashes: int = 0
    last_crash: _Crash | None = None
    is_convicted: bool = False
    until: float = 0.0


class Quarantine:
    """Suspected and convicted requests. All times are monotonic."""

    def __init__(self, quarantine_s: float) -> None:
        self._quarantine_s = quarantine_s
        # By digest. While it is empty, requests need no check.
        self.suspects: dict[bytes, _Suspect] = {}
        # How many suspects have a body of each length: others need no digest.
        self._lengths: dict[int, int] = {}
        self._last_crash: dict[str, _Crash] = {}
        # Digests convicted by other workers.
        self._from_peers: set[bytes] = set()
        # Requests refused since the start.
        self.refused = 0

    def may_match(self, body: bytes) -> bool:
        """Whether a request with this body may be a suspect; much cheaper than `check`."""
        return len(body) in self._lengths

    def check(self, path: str, body: bytes, now: float) -> bytes | None:
        """Return the digest of a suspect, None for any other request. Raises CrashedBackend for a convicted one."""
        if len(body) not in self._lengths:
            return None
        digest = digest_of(path, body)
        suspect = self.suspects.get(digest)
        if suspect is None:
            return None
        if suspect.until < now:
            self._remove(digest)
            return None
        if suspect.is_convicted:
            self.refused += 1
            raise CrashedBackend(
                f"This request has crashed {suspect.crashes} backends and is not sent again for "
                f"{suspect.until - now:.0f} s. Change it, or ask the operator to check the logs of the backends."
            )
        return digest

    def record_crash(self, backend: Backend, digest: bytes, length: int, now: float, *, served_s: float) -> bool:
        """Record a request of `length` bytes lost with its backend after `served_s`; return whether it is convicted.

        Call it before the request's ticket at the backend ends.
        """
        traffic = backend.traffic
        crash = self._last_crash.get(backend.name)
        if crash is None or now - crash.began_at > SAME_CRASH_S or now - served_s > crash.last_at:
            silent = crash is not None and traffic.last_byte_at <= crash.last_at
            crash = _Crash(now, traffic.suspects, crash, silent_since_previous=silent)
            self._last_crash[backend.name] = crash
            if crash.previous is not None:
                crash.previous.previous = None
        crash.last_at = now
        crash.digests.add(digest)
        if crash.is_inconclusive(digest) or served_s > MAX_CRASH_AFTER_S:
            return False
        suspect = self.suspects.get(digest)
        if suspect is None:
            suspect = self._add(digest, length)
        if suspect.last_crash is not crash:
            suspect.last_crash = crash
            suspect.crashes += 1
        suspect.until = now + self._quarantine_s
        if suspect.crashes >= 2 and (crash.suspects <= MAX_SUSPECTS or suspect.crashes >= MAX_CRASHES):
            suspect.is_convicted = True
        return suspect.is_convicted

    def convictions(self, now: float) -> list[Conviction]:
        """Return this worker's own convictions that are still in force, for other workers."""
        own = [
            (digest.hex(), suspect.length, suspect.crashes, suspect.until)
            for digest, suspect in self.suspects.items()
            if suspect.is_convicted and suspect.until >= now and digest not in self._from_peers
        ]
        return own[-MAX_PUBLISHED:]

    def merge(self, convictions: Iterable[Conviction], now: float) -> None:
        """Apply all other workers' convictions, and drop those that they no longer publish."""
        theirs = {bytes.fromhex(one[0]): one for one in convictions if one[3] >= now}
        for digest in self._from_peers - theirs.keys():
            self._remove(digest)
        for digest, (_, length, crashes, until) in theirs.items():
            suspect = self.suspects.get(digest) or self._add(digest, length)
            if not suspect.is_convicted:
                suspect.is_convicted, suspect.crashes, suspect.until = True, crashes, until
                self._from_peers.add(digest)

    def clear(self, path: str, body: bytes) -> None:
        """Clear requests with this path and body: one of them got a response."""
        if len(body) in self._lengths:
            digest = digest_of(path, body)
            if digest in self.suspects:
                self._remove(digest)

    def expire(self, now: float) -> None:
        """Drop suspects whose time is over: as long as there are any, every request is checked."""
        for digest in [digest for digest, suspect in self.suspects.items() if suspect.until < now]:
            self._remove(digest)

    def _add(self, digest: bytes, length: int) -> _Suspect:
        if len(self.suspects) >= MAX_DIGESTS:
            self._remove(next(iter(self.suspects)))
        suspect = self.suspects[digest] = _Suspect(length)
        self._lengths[length] = self._lengths.get(length, 0) + 1
        return suspect

    def _remove(self, digest: bytes) -> None:
        length = self.suspects.pop(digest).length
        self._from_peers.discard(digest)
        self._lengths[length] -= 1
        if not self._lengths[length]:
            del self._lengths[length]


def digest_of(path: str, body: bytes) -> bytes:
    """Return the digest that identifies requests with this path and body; of a large one, its two ends and length."""
    digest = hashlib.blake2b(b"%d " % len(body), digest_size=16, key=path.encode()[:64])
    view, half = memoryview(body), MAX_DIGESTED // 2
    for part in (view,) if len(view) <= MAX_DIGESTED else (view[:half], view[-half:]):
        digest.update(part)
    return digest.digest()
