"""One backend: its identity and offers, with its health, its traffic and its load estimates as parts. Pure."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime

import structlog

from gateway.backends.health_state import USABLE, HealthState, State, Verdict
from gateway.backends.load import Load
from gateway.backends.offers import Offer
from gateway.backends.prefix_index import PrefixIndex
from gateway.backends.response_verdict import ResponseVerdict, misconfiguration, pause_s, retry_after, verdict_of
from gateway.backends.traffic import FRESH_S, EngineQueue, PeerTraffic, Traffic
from gateway.discovery.target import Target
from gateway.upstream.pool import Pool
from kit.config.catalogue import Kind

log = structlog.get_logger(__name__)

# Engines that continue a message on request in vLLM's way (gateway.streams.continuation): vLLM, SGLang
# and the transformers of services/llm.
PREFILL_ENGINES = frozenset({"vllm", "sglang", "transformers"})


@dataclass(slots=True)
class ProbeResult:
    """The last health probe. `response_time_ms` is None without a response; `progress` of loading is from 0 to 1."""

    finished_at: str | None = None
    response_time_ms: float | None = None
    progress: float | None = None


@dataclass(frozen=True, slots=True)
class Clock:
    """The clocks of a backend, in seconds; `wall` counts from the Unix epoch."""

    monotonic: Callable[[], float]
    wall: Callable[[], float]

    def iso(self) -> str:
        """Return the current UTC time to the millisecond, as in `2026-01-31T12:00:00.000Z`."""
        return datetime.fromtimestamp(self.wall(), UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class Backend:
    """One backend of the cluster.

    Each part has one writer: `last_probe` the health probe, `health` probes and request outcomes, `traffic` and `load`
    the tickets of relayed requests, `engine_queue` the stall detector, `peers` the state sync between workers.
    """

    def __init__(self, target: Target, pool: Pool, clock: Clock, key: str | None = None) -> None:
        self.name = target.name
        self.target = target
        self.pool = pool
        self.key = key
        # Constant parts of every request head, before and after the request target, and of every response head.
        self.before_target = b"POST " + target.path.encode()
        authorization = f"Authorization: Bearer {key}\r\n" if key else ""
        self.after_target = f" HTTP/1.1\r\nHost: {target.authority}\r\n{authorization}".encode()
        self.served_by = f"x-served-by: {target.name}\r\n".encode()
        # Empty until the first successful probe; kept while the backend is down, so that errors can name its models.
        self.offers: tuple[Offer, ...] = ()
        # A response said that `offers` are out of date: the next probe reads them.
        self.offers_doubted = False
        # The engine's name, if the backend reports one.
        self.engine: str | None = None

        self.last_probe = ProbeResult()
        self.health = HealthState()
        self.traffic = Traffic()
        self.peers = PeerTraffic()
        self.engine_queue = EngineQueue()
        self.load = Load()

        self.clock = clock
        self.since = clock.iso()
        self._published_state: State | None = None
        # Called when the state or the offers have changed; set by the table of backends.
        self.on_change: Callable[[], None] = lambda: None
        # Wakes the health poller before its interval ends; set by the poller.
        self.probe_soon: Callable[[], None] = lambda: None

    @property
    def state(self) -> State:
        """The state as shown by GET /services."""
        return self.health.state

    @property
    def last_error(self) -> str | None:
        """The reason for a state other than healthy, or for being weighed down."""
        left_s = self.full_until - self.clock.monotonic()
        return self.health.reason or (f"full: weighed down for another {left_s:.0f} s" if left_s > 0 else None)

    @property
    def kind(self) -> Kind | None:
        """The kind of its models, None if unknown."""
        return self.target.kind or next((offer.kind for offer in self.offers if offer.kind), None)

    @property
    def can_prefill(self) -> bool:
        """Whether its engine can continue a message that another backend has begun."""
        return self.engine in PREFILL_ENGINES

    @property
    def queued(self) -> int:
        """Requests without a first token: from the engine's metrics if fresh, else our own estimate."""
        now = self.clock.monotonic()
        own, peers = self.engine_queue, self.peers
        if now - max(own.read_at, peers.engine_read_at) < FRESH_S:
            return own.waiting if own.read_at >= peers.engine_read_at else peers.engine_waiting
        return self.load.queued(now) + peers.queued

    @property
    def last_sign_at(self) -> float:
        """Monotonic time at which any worker last received a byte or saw progress."""
        return max(self.traffic.last_byte_at, self.engine_queue.progress_at, self.peers.last_sign_at)

    @property
    def full_until(self) -> float:
        """Monotonic time until which it is weighed down, by its responses to any worker."""
        return max(self.load.full_until, self.peers.full_until)

    @property
    def needs_canary(self) -> bool:
        """Whether it is idle and only the outcome of earlier requests keeps new ones away."""
        if self.traffic.in_flight + self.peers.in_flight:
            return False
        return self.health.needs_canary(self.clock.monotonic())

    def observe(self, state: State, error: str | None = None, *, progress: float | None = None) -> None:
        """Record what a probe or a connection attempt showed. Logs state changes only, as do the methods below."""
        if state == "unhealthy" and self.health.passes_probes:
            self.load.prefixes = PrefixIndex()  # the process has ended, and its cache with it
        if state in USABLE and not self.health.passes_probes:
            self.load.full_until = 0.0  # it may have said so while it loaded
        self.health.observe(state, error, self.clock.monotonic())
        self.last_probe.progress = progress
        self._publish()

    def record_failure(self, outcome: str, reason: str) -> None:
        """Count a request that failed by the backend's fault. The first sentence of `reason` says why.

        Requests moved off a stuck backend (`outcome` "stuck") count as failed, but not towards the circuit breaker.
        """
        self.traffic.failures += 1
        if outcome != "stuck" and self.health.record_failure(reason.partition(". ")[0], self.clock.monotonic()):
            self._publish()

    def record_error(self, status: int, header_lines: bytes, body: bytes) -> ResponseVerdict:
        """Record what an error response says of the backend; return the verdict."""
        delay = retry_after(header_lines)
        verdict = verdict_of(status, body, names_pause=delay is not None)
        now = self.clock.monotonic()
        if verdict in (ResponseVerdict.FULL, ResponseVerdict.LACKING, ResponseVerdict.FORBIDDEN):
            self.load.full_until = max(self.load.full_until, now + pause_s(delay, self.clock.wall()))
            self.offers_doubted = self.offers_doubted or verdict is not ResponseVerdict.FULL
        elif verdict is ResponseVerdict.MISCONFIGURED:
            self.traffic.failures += 1
            self.health.record_misconfiguration(self.misconfiguration(status), now)
            self._publish()
        elif verdict is not ResponseVerdict.PASS_ON:
            self.record_failure(f"http_{status}", f"{self.name} returned {status}")
        # A full backend has no time for probes; one that reports 503 may be loading.
        if verdict is not ResponseVerdict.PASS_ON and status not in (429, 529):
            self.probe_soon()
        return verdict

    def misconfiguration(self, status: int) -> str:
        """Return the reason for taking it out after a response of this status."""
        return misconfiguration(self.name, status, has_key=self.key is not None)

    def record_success(self) -> None:
        """Record a request that got its whole response."""
        if self.health.breaker.record_success(self.clock.monotonic()):
            self._publish()

    def set_stuck(self, reason: str | None) -> None:
        """Mark it as passing probes but making no progress, because of `reason`; None clears the mark."""
        self.health.set_stuck(reason)
        self._publish()

    def set_peer_verdict(self, verdict: Verdict | None) -> None:
        """Record that another worker found it stuck or failing, or that none does."""
        if verdict != self.health.peer_verdict:
            self.health.peer_verdict = verdict
            self._publish()

    def record_canary(self, error: str | None) -> None:
        """Record a canary request's result, None for success."""
        self.health.record_canary(error, self.clock.monotonic())
        self._publish()

    def set_draining(self, on: bool, *, at: float | None = None) -> None:
        """Take the backend out of rotation, or put it back; requests in flight finish.

        `at` is the monotonic time of the operator's request, now by default.
        """
        self.health.draining = on
        self.health.drain_set_at = self.clock.monotonic() if at is None else at
        self._publish()

    def set_offers(self, offers: tuple[Offer, ...]) -> None:
        """Record the models that it serves."""
        if offers == self.offers:
            return
        self.offers = offers
        self.on_change()
        log.info("models changed", backend=self.name, models=[offer.name for offer in offers])

    def inherit_state_from(self, replaced: "Backend") -> None:
        """Keep the state of the backend that had this name until the first probe."""
        self.health.inherit_state_from(replaced.health)
        self._published_state, self.since = replaced._published_state, replaced.since

    def adopt(self, other: "Backend") -> None:
        """Take over everything known of the same server under another name."""
        self.offers, self.engine = other.offers, other.engine
        self.inherit_state_from(other)
        self.health.adopt(other.health)
        self.last_probe, self.load = replace(other.last_probe), other.load

    def _publish(self) -> None:
        before, after = self._published_state, self.state
        if after == before:
            return
        self._published_state = after
        self.since = self.clock.iso()
        self.on_change()
        level = log.warning if after in ("unhealthy", "stuck") else log.info
        level("backend state", backend=self.name, before=before or "unknown", after=after, reason=self.last_error)
