"""The backends: what each is, how it is, and what it is doing now. Plain data, no I/O but the pool it carries."""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

import structlog

from gateway.deadlines import Pauses
from gateway.latency import PeakEwma
from gateway.load import Load
from gateway.pool import Pool
from gateway.targets import Target
from kit.catalogue import Entry, Kind

log = structlog.get_logger(__name__)

State = Literal["healthy", "loading", "busy", "stuck", "unhealthy", "draining"]

# Engines that continue a message when a request asks for it in vLLM's way (gateway.continuation): vLLM, SGLang and the
# transformers of services/llm.
PREFILL = frozenset({"vllm", "sglang", "transformers"})

# The states in which a backend may be sent a request; `busy` only where nothing better is.
USABLE: frozenset[State] = frozenset({"healthy", "busy"})


@dataclass(frozen=True, slots=True)
class Offer:
    """One model that a backend serves.

    `name` is what the cluster calls it, `upstream` what the backend calls it. `names` are all names that a request may
    use. The backend itself understands those in `verbatim`; None among them means that it needs no name.
    """

    name: str
    upstream: str
    kind: Kind | None
    names: frozenset[str]
    verbatim: frozenset[str | None]


@dataclass(slots=True)
class Elsewhere:
    """What other workers on our port do at a backend, as they told last."""

    in_flight: int = 0
    waiting_kb: float = 0.0
    requests: int = 0
    failures: int = 0


def _nobody() -> None:
    """Before the poller has taken a backend in, nobody looks."""


class Backend:
    """One backend's state and counters. Written by health polls and by the exchanges that use it."""

    def __init__(
        self, target: Target, pool: Pool, key: str | None = None, on_change: Callable[[], None] = _nobody
    ) -> None:
        self.name = target.name
        self.target = target
        self.pool = pool
        self.key = key
        # What stands in every request to it, before the target and after it.
        self.before_target = b"POST " + target.path.encode()
        authorization = f"Authorization: Bearer {key}\r\n" if key else ""
        self.after_target = f" HTTP/1.1\r\nHost: {target.authority}\r\n{authorization}".encode()
        self.served_by = f"x-served-by: {target.name}\r\n".encode()
        self._on_change = on_change
        self._observed: State = "unhealthy"
        self._draining = False
        self._known = False
        self.since = now_iso()
        # What it serves; empty until it first told, kept when it goes down, so that errors can name it.
        self.offers: tuple[Offer, ...] = ()
        # The engine's name, as far as it tells one.
        self.engine: str | None = None
        self.last_check: str | None = None
        self.last_error: str | None = "not asked yet"
        self.response_time_ms: float | None = None
        self.progress: float | None = None
        self.retry_after_s = 2.0
        # When an operator said last whether it is draining, a monotonic time.
        self.drained_at = 0.0
        # Work: this worker's own, and the others'.
        self.elsewhere = Elsewhere()
        self.in_flight = 0
        self.queued = 0
        self.requests = 0
        self.failures = 0
        # What routing decides by.
        self.load = Load()
        # Requests in flight that may have killed a backend before (gateway.deaths).
        self.suspects = 0
        self.pauses = Pauses()
        self.last_byte = 0.0
        self.ttft = PeakEwma()
        self.whole = PeakEwma()
        self.outcomes: Counter[str] = Counter()
        # Set by the health poller: asks it to look now, not at the next interval.
        self.suspect: Callable[[], None] = _nobody

    @property
    def state(self) -> State:
        """The state as the contract names it."""
        return "draining" if self._draining else self._observed

    @property
    def draining(self) -> bool:
        """Whether an operator took it out."""
        return self._draining

    @property
    def prefills(self) -> bool:
        """Whether it can go on with a message that another backend has begun."""
        return self.engine in PREFILL

    @property
    def kind(self) -> Kind | None:
        """The kind of what it serves, as far as that is known."""
        return self.target.kind or next((offer.kind for offer in self.offers if offer.kind), None)

    def observe(self, state: State, error: str | None = None, *, progress: float | None = None) -> None:
        """Take in what a poll or real traffic has shown. Logs changes only."""
        before = self.state
        if state == "unhealthy" and self._observed != "unhealthy":
            self.load.restarted()
        self._observed = state
        self.last_error = error
        self.progress = progress
        self._changed(before)

    def drain(self, on: bool, *, at: float | None = None) -> None:
        """Take the backend out of rotation, or put it back. What is in flight ends by itself.

        `at` is when an operator said so, now by default.
        """
        before = self.state
        self._draining = on
        self.drained_at = time.monotonic() if at is None else at
        self._changed(before)

    def offer(self, offers: tuple[Offer, ...]) -> None:
        """Take in what the backend serves."""
        if offers == self.offers:
            return
        self.offers = offers
        self._on_change()
        log.info("models learnt", backend=self.name, models=[offer.name for offer in offers])

    def warmth(self, now: float) -> float:
        """How much of its capacity it has so shortly after its start, of (0, 1]. `now` is a monotonic time."""
        return 1.0

    def stand_in(self, before: "Backend") -> None:
        """Be in the state of the one that had its name, until it has been asked itself."""
        self._observed, self._draining, self._known = before._observed, before._draining, before._known
        self.last_error, self.since = before.last_error, before.since

    def take_over(self, twin: "Backend") -> None:
        """Be what `twin` is, the same server under another name: what was learnt of it holds."""
        self.offers, self.engine = twin.offers, twin.engine
        self._observed, self._draining, self._known = twin._observed, twin._draining, twin._known
        self.drained_at = twin.drained_at
        self.last_check, self.last_error, self.since = twin.last_check, twin.last_error, twin.since
        self.response_time_ms, self.progress = twin.response_time_ms, twin.progress
        self.ttft, self.whole = twin.ttft, twin.whole
        self.load, self.pauses = twin.load, twin.pauses

    def _changed(self, before: State) -> None:
        after = self.state
        if after == before and self._known:
            return
        self._known = True
        self.since = now_iso()
        self._on_change()
        level = log.warning if after in ("unhealthy", "stuck") else log.info
        level("backend state", backend=self.name, before=before, after=after, reason=self.last_error)


def _ignore(_: Backend) -> None:
    """Before the poller is there, arrivals concern nobody."""


class Backends:
    """All backends by name, in the order of their arrival. A discovery provider's sink."""

    def __init__(self, keys: Mapping[str, str]) -> None:
        """`keys` are the bearer keys to send, by backend name."""
        self._keys = keys
        self._backends: dict[str, Backend] = {}
        self._watchers: list[Callable[[], None]] = []
        self.on_arrival: Callable[[Backend], None] = _ignore
        self.on_departure: Callable[[Backend], None] = _ignore

    def on_change(self, watcher: Callable[[], None]) -> None:
        """Call `watcher` whenever a state, a model list or the set of backends changes."""
        self._watchers.append(watcher)

    def upsert(self, target: Target) -> None:
        """Add the backend of this name, or replace it, at its place in the order, when anything about it differs.

        One that has moved by configuration is believed to be as it was until it has been asked: so no request is lost
        between the two.
        """
        present = self._backends.get(target.name)
        if present is not None and present.target.differs_only_in_weight(target):
            present.target = target  # `doubt` may differ too
            return
        key = self._keys.get(target.name) or self._keys.get(target.service)
        backend = Backend(target, Pool(target), key, self._changed)
        if present is not None:
            backend.offers = present.offers  # so that errors can name what it had
            if not target.by_dns:
                backend.stand_in(present)
            self._leave(present)
        twin = next((one for one in self if one.target.is_same_place(target)), None)
        if twin is not None:
            backend.take_over(twin)
        self._backends[target.name] = backend
        self.on_arrival(backend)
        self._changed()

    def remove(self, name: str) -> None:
        """Forget the backend of this name, if there is one. Its exchanges go on to their end."""
        backend = self._backends.pop(name, None)
        if backend is not None:
            self._leave(backend)
            self._changed()

    def answers(self, name: str) -> bool:
        """Whether the backend of this name answered when it was last asked, well or not."""
        backend = self._backends.get(name)
        return backend is not None and backend.response_time_ms is not None

    def asked(self, name: str) -> bool:
        """Whether the backend of this name has been asked how it is, with whatever result."""
        backend = self._backends.get(name)
        return backend is not None and backend.last_check is not None

    def get(self, name: str) -> Backend | None:
        """The backend of this name, or None."""
        return self._backends.get(name)

    def __iter__(self) -> Iterator[Backend]:
        return iter(self._backends.values())

    def __len__(self) -> int:
        return len(self._backends)

    def _leave(self, backend: Backend) -> None:
        self.on_departure(backend)
        backend.pool.close()

    def _changed(self) -> None:
        for watcher in self._watchers:
            watcher()


def offer_of_entry(entry: Entry, *, kind: Kind | None = None) -> Offer:
    """What one of our own services serves: it knows all names of its entry, and needs none."""
    names = frozenset(entry.names)
    return Offer(entry.name, entry.name, kind or entry.kind, names, names | {None})


def offer_of_id(model: str, entry: Entry | None, kind: Kind | None) -> Offer:
    """What a foreign server lists as `model`; `entry` is the catalogue's entry for it, where there is one."""
    names = frozenset(entry.names) | {model} if entry else frozenset({model})
    return Offer(
        entry.name if entry else model, model, kind or (entry.kind if entry else None), names, frozenset({model})
    )


def describe(backend: Backend) -> Mapping[str, Any]:
    """The backend's entry of GET /services."""
    ttft = backend.ttft.last
    return {
        "url": backend.target.url,
        **({"address": backend.target.address} if backend.target.by_dns else {}),
        "kind": backend.kind,
        "models": [offer.name for offer in backend.offers],
        "state": backend.state,
        "healthy": backend.state in USABLE,
        "response_time_ms": backend.response_time_ms,
        "ttft_ms": None if ttft is None else round(ttft * 1000, 1),
        "in_flight": backend.in_flight + backend.elsewhere.in_flight,
        "queued": backend.queued,
        "requests": backend.requests + backend.elsewhere.requests,
        "failures": backend.failures + backend.elsewhere.failures,
        "last_check": backend.last_check,
        "last_error": backend.last_error,
        "since": backend.since,
        **({} if backend.progress is None else {"progress": backend.progress}),
    }


def now_iso() -> str:
    """The present moment, UTC, to the millisecond."""
    return datetime.fromtimestamp(time.time(), UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
