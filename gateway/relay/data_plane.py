"""The data plane's shared objects, built once by the application and passed down."""

import asyncio
from dataclasses import dataclass, field
from typing import Any, Protocol

from uvicorn.server import ServerState

from gateway.backends.adaptive_timeouts import loop_lagged
from gateway.backends.backend import Backend
from gateway.backends.backend_table import Backends
from gateway.backends.query_of_death import Quarantine
from gateway.bodies import raw_audio
from gateway.bodies.body import Body, FormBody, JsonBody
from gateway.bodies.memory_budget import Allocation, MemoryBudget
from gateway.bodies.raw_audio import RawAudioBody
from gateway.bodies.spool import Spool
from gateway.endpoints import Endpoint
from gateway.http1.header_cache import HeaderCache
from gateway.http1.headers import Head, split_target
from gateway.relay.deadline import Deadline, now
from gateway.relay.retry_budget import RetryBudget
from gateway.routing import Router
from gateway.telemetry.access_log import AccessLog
from gateway.telemetry.metrics import GatewayMetrics
from kit.errors import ApiError
from kit.web.app import EXPOSED_HEADERS
from kit.web.body import encoding_refusal
from kit.web.guard import BrowserGuard, KeyRing

# How often deadlines are checked, and so by how much one may be late, in seconds.
TICK_S = 0.25
# The longest time for which deadlines are suspended after the event loop lagged, in seconds.
MAX_SUSPENDED_S = 2.0
# How many accepted pairs of Host and Origin are cached. Real clients use a handful.
MAX_CACHED_ORIGINS = 1024


class ClientConnection(Protocol):
    """A client's connection, as the deadline watcher and relayed requests see it."""

    transport: asyncio.Transport
    deadline: Deadline
    # Whether the write buffer is over its limit: the client reads more slowly than we write.
    full: bool
    address: str | None
    # What its requests hold in memory.
    memory: Allocation
    server_state: ServerState

    def on_deadline(self) -> None:
        """The deadline has passed."""

    def on_stuck(self, backend: Backend) -> None:
        """Fail over a request that is at this stuck backend."""

    def exchange_done(self, exchange: Any) -> None:
        """The exchange has written its response, or was abandoned."""

    def replace_fast_path(self, exchange: Any) -> None:
        """Continue the present fast-path request as `exchange`."""

    def fast_path_done(self, now: float) -> None:
        """The response of the present fast-path request is written."""


@dataclass(slots=True)
class ParsedRequest:
    """The head of a request to a relayed route; `target` is in origin form."""

    endpoint: Endpoint
    target: bytes
    head: Head


@dataclass(frozen=True, slots=True)
class Limits:
    """Sizes in bytes, durations in seconds."""

    max_body: int
    max_upload: int
    max_head: int
    client_s: float
    keep_alive_s: float
    connect_s: float
    # The silence before a first byte, and in a response that has begun: what is always allowed, and the maximum.
    first_byte_floor_s: float
    first_byte_s: float
    stream_idle_floor_s: float
    stream_idle_s: float
    max_attempts: int


@dataclass(slots=True)
class RelayContext:
    """The objects that relaying needs. One per application, used from its event loop only."""

    limits: Limits
    backends: Backends
    router: Router
    browser: BrowserGuard
    keys: KeyRing
    # Origins, in lower case, whose pages may read responses; `*` for all.
    origins: frozenset[str]
    spool: Spool
    memory: MemoryBudget
    access_log: AccessLog
    metrics: GatewayMetrics
    quarantine: Quarantine
    budget: RetryBudget = field(default_factory=RetryBudget)
    connections: set[ClientConnection] = field(default_factory=set)
    # Heads that have passed every check, of requests with a JSON body on a kept-alive connection.
    request_heads: HeaderCache[ParsedRequest] = field(default_factory=HeaderCache)
    # Accepted pairs of Host and Origin.
    _accepted: set[tuple[bytes | None, bytes | None]] = field(default_factory=set)

    def refusal(self, head: Head) -> ApiError | None:
        """Return the error for a request that fails the Host, Origin and key checks or has an encoded body, or None."""
        pair = (head.host, head.origin)
        if pair not in self._accepted:
            refusal = self.browser.refusal(_text(head.host), _text(head.origin))
            if refusal is not None:
                # Not cached: an error that is raised again keeps all the frames alive that it was raised in.
                return refusal
            if len(self._accepted) >= MAX_CACHED_ORIGINS:
                self._accepted.clear()
            self._accepted.add(pair)
        refusal = self.keys.refusal(_text(head.authorization), _text(head.api_key)) if self.keys else None
        return refusal or encoding_refusal(_text(head.content_encoding))

    def cors_headers(self, head: Head) -> bytes:
        """Return the CORS response headers for an allowed origin."""
        origin = _text(head.origin)
        if origin is None or not self.origins & {origin.lower(), "*"}:
            return b""
        exposed = ", ".join(EXPOSED_HEADERS)
        return (
            f"access-control-allow-origin: {origin}\r\naccess-control-expose-headers: {exposed}\r\nvary: Origin\r\n"
        ).encode("latin-1")

    def body_for(self, endpoint: Endpoint, target: bytes, head: Head, memory: Allocation) -> tuple[Body, bytes, Head]:
        """Return an empty body of the kind that `endpoint` accepts, and the target and head to forward it with.

        Raises InvalidRequest for a wrong content type.
        """
        if endpoint.body_kind == "json":
            return JsonBody(endpoint, self.limits.max_body, head.session, memory), target, head
        limit, spool = self.limits.max_upload, self.spool
        if endpoint.body_kind == "form":
            return FormBody(endpoint, head.content_type, limit, spool, memory), target, head
        path = split_target(target, head.host)
        recording = RawAudioBody(endpoint, path, head.content_type, limit, spool, memory)
        return recording, raw_audio.TARGET, recording.head(head)

    async def watch_deadlines(self) -> None:
        """Check the deadlines of all connections and of the quarantine, for as long as the gateway runs.

        One loop instead of a timer per request: with thousands of streams it costs less than setting the timers.
        """
        suspended_until = 0.0
        while True:
            slept = now()
            await asyncio.sleep(TICK_S)
            at = now()
            if slept > suspended_until and loop_lagged(at - slept, TICK_S):
                # Reading what arrived meanwhile, also by backends that lagged with us, takes about as long.
                suspended_until = at + min(at - slept, MAX_SUSPENDED_S)
            if at < suspended_until:
                continue
            for connection in [one for one in self.connections if one.deadline.at < at]:
                connection.on_deadline()
            if self.quarantine.suspects:
                self.quarantine.expire(at)

    def fail_over_stuck(self) -> None:
        """Move the requests of stuck backends to others as soon as that state is detected."""
        for backend in self.backends:
            if backend.state == "stuck" and backend.traffic.in_flight:
                for connection in list(self.connections):
                    connection.on_stuck(backend)

    def close(self) -> None:
        """Close the idle connections to all backends and flush the access log."""
        for backend in self.backends:
            backend.pool.close()
        self.access_log.flush()


def _text(value: bytes | None) -> str | None:
    return None if value is None else value.decode("latin-1")
