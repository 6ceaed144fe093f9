"""The backends: what each is, how it is, and what it is doing now. Plain data, no I/O but the pool it carries."""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

import structlog

from gateway.backends.adaptive_timeouts import InterTokenGap
from gateway.backends.health_state import Condition, State, Verdict
from gateway.backends.load import Load
from gateway.discovery.target import Target
from gateway.upstream.pool import Pool
from kit.config.catalogue import Entry, Kind

log = structlog.get_logger(__name__)

# Engines that continue a message when a request asks for it in vLLM's way (gateway.continuation): vLLM, SGLang and the
# transformers of services/llm.
PREFILL = frozenset({"vllm", "sglang", "transformers"})

# For how long what a backend's metrics said of its queue is shown, in seconds.
FRESH_S = 5.0

now = time.perf_counter


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
    queued: int = 0
    waiting_kb: float = 0.0
    requests: int = 0
    failures: int = 0
    # When one of them last saw it work, a monotonic time.
    last_sign: float = 0.0


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
        self.condition = Condition()
        self._shown: State | None = None
        self.since = now_iso()
        # What it serves; empty until it first told, kept when it goes down, so that errors can name it.
        self.offers: tuple[Offer, ...] = ()
        # The engine's name, as far as it tells one.
        self.engine: str | None = None
        self.last_check: str | None = None
        self.response_time_ms: float | None = None
        self.progress: float | None = None
        self.retry_after_s = 2.0
        # When an operator said last whether it is draining, a monotonic time.
        self.drained_at = 0.0
        # Work: this worker's own, and the others'.
        self.elsewhere = Elsewhere()
        self.in_flight = 0
        self.requests = 0
        self.failures = 0
        # What routing decides by.
        self.load = Load()
        # Requests in flight that may have killed a backend before (gateway.deaths).
        self.suspects = 0
        self.pauses = InterTokenGap()
        # When it last sent a byte, and when its own counters were last seen to grow; monotonic times.
        self.last_byte = self.last_progress = 0.0
        # What its own metrics said of how many requests wait there, and when.
        self.waiting_told: tuple[int, float] = (0, -FRESH_S)
        # How long the first byte of its last streamed answer took, in seconds.
        self.ttft_s: float | None = None
        self.outcomes: Counter[str] = Counter()
        # How often it was taken out though it answered polls: because its requests failed, or because it was stuck.
        self.ejections: Counter[str] = Counter()
        # Set by the health poller: asks it to look now, not at the next interval.
        self.suspect: Callable[[], None] = _nobody

    @property
    def state(self) -> State:
        """The state as the contract names it."""
        return self.condition.state

    @property
    def last_error(self) -> str | None:
        """Why it is not better."""
        return self.condition.reason

    @property
    def draining(self) -> bool:
        """Whether an operator took it out."""
        return self.condition.draining

    @property
    def queued(self) -> int:
        """How many requests wait for their first token: by its own word where that is fresh, else of those it has."""
        at = now()
        count, told = self.waiting_told
        return count if at - told < FRESH_S else self.load.queued(at) + self.elsewhere.queued

    @property
    def last_sign(self) -> float:
        """When it was last seen to work, by whichever worker, a monotonic time."""
        return max(self.last_byte, self.last_progress, self.elsewhere.last_sign)

    @property
    def wants_canary(self) -> bool:
        """Whether it is idle and would take requests, were it not for what became of the last ones."""
        return self.in_flight + self.elsewhere.in_flight == 0 and self.condition.wants_canary(now())

    @property
    def prefills(self) -> bool:
        """Whether it can go on with a message that another backend has begun."""
        return self.engine in PREFILL

    @property
    def kind(self) -> Kind | None:
        """The kind of what it serves, as far as that is known."""
        return self.target.kind or next((offer.kind for offer in self.offers if offer.kind), None)

    def observe(self, state: State, error: str | None = None, *, progress: float | None = None) -> None:
        """Take in what a poll or a connection has shown. Logs changes only."""
        if state == "unhealthy" and self.condition.answers_polls:
            self.load.restarted()
        self.condition.observe(state, error, now())
        self.progress = progress
        self._changed()

    def failed(self, outcome: str, reason: str) -> None:
        """A request to it has failed, and not by the client's fault. `reason` begins with a sentence that says why.

        `outcome` is how it is counted; those taken away because it is stuck have failed for one and the same reason.
        """
        self.failures += 1
        if outcome != "stuck" and self.condition.breaker.failed(reason.partition(". ")[0], now()):
            self.ejections["failures"] += 1
            self._changed()

    def succeeded(self) -> None:
        """A request to it was answered to the end."""
        if self.condition.breaker.succeeded(now()):
            self._changed()

    def be_stuck(self, reason: str | None) -> None:
        """It answers polls and does not work, because of `reason`; None: it works again. Logs changes only."""
        if reason is not None and not self.condition.is_stuck:
            self.ejections["stuck"] += 1
        self.condition.be_stuck(reason)
        self._changed()

    def others_found(self, verdict: Verdict | None) -> None:
        """Another worker on our port takes it for stuck or failing, or none does any more. Logs changes only."""
        if verdict != self.condition.others:
            self.condition.others = verdict
            self._changed()

    def canary_answered(self, error: str | None) -> None:
        """A canary has shown that it works, or `error`. Logs changes only."""
        self.condition.canary_answered(error, now())
        self._changed()

    def drain(self, on: bool, *, at: float | None = None) -> None:
        """Take the backend out of rotation, or put it back. What is in flight ends by itself.

        `at` is when an operator said so, now by default.
        """
        self.condition.draining = on
        self.drained_at = time.monotonic() if at is None else at
        self._changed()

    def offer(self, offers: tuple[Offer, ...]) -> None:
        """Take in what the backend serves."""
        if offers == self.offers:
            return
        self.offers = offers
        self._on_change()
        log.info("models learnt", backend=self.name, models=[offer.name for offer in offers])

    def warmth(self, now: float) -> float:
        """How much of its capacity it has so shortly after its start, of (0, 1]. `now` is a monotonic time."""
        return self.condition.warmth(now)

    def stand_in(self, before: "Backend") -> None:
        """Be in the state of the one that had its name, until it has been asked itself."""
        self.condition.stand_in(before.condition)
        self._shown, self.since = before._shown, before.since

    def take_over(self, twin: "Backend") -> None:
        """Be what `twin` is, the same server under another name: what was learnt of it holds."""
        self.offers, self.engine = twin.offers, twin.engine
        self.stand_in(twin)
        self.condition.take_over(twin.condition)
        self.drained_at = twin.drained_at
        self.last_check, self.response_time_ms, self.progress = twin.last_check, twin.response_time_ms, twin.progress
        self.load, self.pauses, self.ttft_s = twin.load, twin.pauses, twin.ttft_s

    def _changed(self) -> None:
        before, after = self._shown, self.state
        if after == before:
            return
        self._shown = after
        self.since = now_iso()
        self._on_change()
        level = log.warning if after in ("unhealthy", "stuck") else log.info
        level("backend state", backend=self.name, before=before or "unknown", after=after, reason=self.last_error)


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


def now_iso() -> str:
    """The present moment, UTC, to the millisecond."""
    return datetime.fromtimestamp(time.time(), UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
