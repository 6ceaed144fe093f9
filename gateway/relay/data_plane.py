"""The data plane's shared objects: what every connection and exchange needs, built once and handed down."""

import asyncio
import time
from dataclasses import dataclass, field
from typing import Any, Protocol

from gateway.backends.adaptive_timeouts import loop_lagged
from gateway.backends.backend import Backend
from gateway.backends.backend_table import Backends
from gateway.backends.query_of_death import Quarantine
from gateway.bodies import raw_audio
from gateway.bodies.body import Body, FormBody, JsonBody
from gateway.bodies.memory_budget import BodyMemory
from gateway.bodies.raw_audio import RawAudioBody
from gateway.bodies.spool import Spool
from gateway.endpoints import Endpoint
from gateway.http1.header_cache import HeaderCache
from gateway.http1.headers import Head, split_target
from gateway.relay.retry_budget import RetryBudget
from gateway.routing import Router
from gateway.telemetry.access_log import AccessLog
from gateway.telemetry.metrics import GatewayMetrics
from kit.errors import ApiError
from kit.web.app import EXPOSED_HEADERS
from kit.web.guard import BrowserGuard, KeyRing

# How often deadlines are looked at, in seconds; a deadline may be late by this much.
TICK_S = 0.25
# For how long, at the most, no deadline counts after this process was held up, in seconds.
MAX_EXCUSED_S = 2.0
# How many decisions on Host and Origin are remembered. Real clients use a handful.
MAX_REMEMBERED = 1024

NEVER = float("inf")


class ClientConnection(Protocol):
    """A client's connection, as the clock and the exchange that answers on it see it."""

    transport: asyncio.Transport
    # A monotonic time, NEVER where nothing is waited for.
    deadline: float
    # Whether the client reads more slowly than we write.
    full: bool
    address: str | None

    def on_deadline(self) -> None:
        """The deadline has passed."""

    def on_stuck(self, backend: Backend) -> None:
        """This backend does nothing any more: what waits there should go elsewhere."""

    def common_headers(self) -> list[tuple[bytes, bytes]]:
        """The headers of every answer that is our own."""

    def exchange_done(self, exchange: Any) -> None:
        """The exchange has written its answer, or given it up."""


class CachedRequest:
    """What the head of a request means that may pass: a relayed one with a JSON body, on a connection that stays."""

    __slots__ = ("endpoint", "head", "target")

    def __init__(self, endpoint: Endpoint, target: bytes, head: Head) -> None:
        self.endpoint = endpoint
        self.target = target
        self.head = head


@dataclass(frozen=True, slots=True)
class Limits:
    """Sizes in bytes, durations in seconds."""

    max_body: int
    max_upload: int
    max_head: int
    client_s: float
    keep_alive_s: float
    connect_s: float
    # The silence before a first byte, and in an answer that has begun: what is always allowed, and the most.
    first_byte_floor_s: float
    first_byte_s: float
    stream_idle_floor_s: float
    stream_idle_s: float
    max_attempts: int


@dataclass(slots=True)
class RelayContext:
    """What the gateway relays with. One per application, used from its event loop only."""

    limits: Limits
    backends: Backends
    router: Router
    browser: BrowserGuard
    keys: KeyRing
    # Origins in lower case whose pages may read answers; `*` for all.
    origins: frozenset[str]
    spool: Spool
    memory: BodyMemory
    access_log: AccessLog
    metrics: GatewayMetrics
    deaths: Quarantine
    budget: RetryBudget = field(default_factory=RetryBudget)
    connections: set[ClientConnection] = field(default_factory=set)
    # Requests that have passed every check that their heads alone decide.
    known: HeaderCache[CachedRequest] = field(default_factory=HeaderCache)
    # Pairs of Host and Origin that may pass.
    _browsers: set[tuple[bytes | None, bytes | None]] = field(default_factory=set)

    def refusal(self, head: Head) -> ApiError | None:
        """The error for a request that may not pass the Host, Origin and key checks, or None."""
        asked = (head.host, head.origin)
        if asked not in self._browsers:
            refusal = self.browser.refusal(_text(head.host), _text(head.origin))
            if refusal is not None:
                # Not remembered: an error that is raised again holds on to all the frames that it was raised in.
                return refusal
            if len(self._browsers) >= MAX_REMEMBERED:
                self._browsers.clear()
            self._browsers.add(asked)
        return self.keys.refusal(_text(head.authorization), _text(head.api_key)) if self.keys else None

    def cors(self, head: Head) -> bytes:
        """The header lines without which a browser hides an answer from a page of another origin."""
        origin = _text(head.origin)
        if origin is None or not self.origins & {origin.lower(), "*"}:
            return b""
        exposed = ", ".join(EXPOSED_HEADERS)
        return (
            f"access-control-allow-origin: {origin}\r\naccess-control-expose-headers: {exposed}\r\nvary: Origin\r\n"
        ).encode("latin-1")

    def body_for(self, endpoint: Endpoint, target: bytes, head: Head) -> tuple[Body, bytes, Head]:
        """An empty body of the kind that `endpoint` takes, and the target and head with which it goes on.

        Raises InvalidRequest for a wrong content type.
        """
        if endpoint.takes == "json":
            return JsonBody(endpoint, self.limits.max_body, head.session, self.memory), target, head
        most, spool = self.limits.max_upload, self.spool
        if endpoint.takes == "form":
            return FormBody(endpoint, head.content_type, most, spool), target, head
        recording = RawAudioBody(endpoint, split_target(target, head.host), head.content_type, most, spool)
        return recording, raw_audio.TARGET, recording.head(head)

    async def watch_deadlines(self) -> None:
        """Look at every connection's deadline, and at those of deaths, for as long as the gateway runs.

        One loop instead of a timer for each request: with thousands of streams it costs less than setting the timers.
        """
        excused_until = 0.0
        while True:
            slept = time.perf_counter()
            await asyncio.sleep(TICK_S)
            now = time.perf_counter()
            if slept > excused_until and loop_lagged(now - slept, TICK_S):
                # What came meanwhile is read, and answered by who was held up too, in about as much time.
                excused_until = now + min(now - slept, MAX_EXCUSED_S)
            if now < excused_until:
                continue
            for connection in [one for one in self.connections if one.deadline < now]:
                connection.on_deadline()
            if self.deaths.records:
                self.deaths.expire(now)

    def move_stuck(self) -> None:
        """What waits at a backend that does nothing any more goes elsewhere, as soon as that is known."""
        for backend in self.backends:
            if backend.state == "stuck" and backend.traffic.in_flight:
                for connection in list(self.connections):
                    connection.on_stuck(backend)

    def close(self) -> None:
        """Close the idle connections to all backends and write what the log still holds."""
        for backend in self.backends:
            backend.pool.close()
        self.access_log.flush()


def _text(value: bytes | None) -> str | None:
    return None if value is None else value.decode("latin-1")
