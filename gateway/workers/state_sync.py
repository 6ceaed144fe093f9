"""What this worker tells the others on its port, and what it takes from them.

Every few milliseconds: what it has in flight at each backend, so that choices count all; which backends hang or fail,
and which requests kill them, as was shown there, so that no other has to find it out; what an operator has drained, so
that it is drained for all. Every second: its metrics, so that whichever worker is scraped tells the sums.
"""

import asyncio
import math
import os
import signal
import time
from collections.abc import Iterable

import msgspec
import structlog

from gateway.backends.backend import Backend
from gateway.backends.backend_table import Backends
from gateway.backends.health_state import Verdict
from gateway.backends.query_of_death import Conviction, Quarantine
from gateway.backends.traffic import PeerTraffic
from gateway.telemetry.merge_exposition import added_up, counted
from gateway.telemetry.metrics import GatewayMetrics
from gateway.workers.shared_memory import CLOSED, SharedSlots, StateUpdate

log = structlog.get_logger(__name__)

# How often boards are read and written, in seconds: choices may miss what other workers did since.
TICK_S = 0.02
# How often metrics are written, in ticks.
METRICS_EVERY = 50
# How finely signs of life are told: what changes more often is written more often. None is told as later than it was.
SIGNS_PER_S = 10


class _Told(msgspec.Struct, array_like=True):
    """One worker's part in one backend. Times are monotonic, the same for all processes."""

    in_flight: int
    queued: int
    waiting_kb: float
    requests: int
    failures: int
    last_sign: float
    # What the backend's own metrics said of its queue, and when.
    engine_waiting: int
    engine_read_at: float
    verdict: Verdict | None
    draining: bool
    drained_at: float


class _Page(msgspec.Struct, array_like=True):
    """All that a worker tells: of its backends, by their keys, and of requests."""

    backends: dict[str, _Told]
    convictions: list[Conviction]


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(_Page).decode
_BLANK = _Page({}, [])


class Sharing:
    """This worker's side of the boards."""

    def __init__(
        self, boards: SharedSlots, worker: int, backends: Backends, deaths: Quarantine, metrics: GatewayMetrics
    ) -> None:
        self._boards = boards
        self._worker = worker
        self._others = [other for other in range(boards.workers) if other != worker]
        self._backends = backends
        self._deaths = deaths
        self._metrics = metrics
        self._written = b""
        self._parent = os.getppid()
        # What was counted by the workers that were here before and have died.
        self._before = _read(boards, worker).backends
        self._metrics_before = counted(boards.read(worker, StateUpdate.METRICS).decode())
        metrics.others = self.metrics_of_others

    async def run(self) -> None:
        """Tell and take, until cancelled. Ends this process when the one that started it has gone."""
        count = 0
        while True:
            self.tell()
            self.take()
            if count % METRICS_EVERY == 0:
                self.tell_metrics()
            if os.getppid() != self._parent:
                log.error("the process that started this worker has gone")
                signal.raise_signal(signal.SIGTERM)
                return
            count += 1
            await asyncio.sleep(TICK_S)

    def tell(self) -> None:
        """Write what has changed."""
        backends = {_key(backend): self._of(backend) for backend in self._backends}
        told = _encode(_Page(backends, self._deaths.convictions(time.monotonic())))
        if told != self._written:
            self._written = told
            if not self._boards.write(self._worker, StateUpdate.NOW, told):
                log.error("more backends than the workers can tell each other of", backends=len(self._backends))

    def _of(self, backend: Backend) -> _Told:
        before = self._before.get(_key(backend))
        last_sign = max(backend.traffic.last_byte_at, backend.engine_queue.progress_at)
        return _Told(
            in_flight=backend.traffic.in_flight,
            queued=backend.load.queued(time.monotonic()),
            waiting_kb=round(backend.load.pending_kb, 1),
            requests=backend.traffic.requests + (before.requests if before else 0),
            failures=backend.traffic.failures + (before.failures if before else 0),
            last_sign=math.floor(last_sign * SIGNS_PER_S) / SIGNS_PER_S,
            engine_waiting=backend.engine_queue.waiting,
            engine_read_at=backend.engine_queue.read_at,
            verdict=backend.health.verdict,
            draining=backend.health.draining,
            drained_at=backend.health.drain_set_at,
        )

    def take(self) -> None:
        """Take in what the others have told."""
        pages = [_read(self._boards, other) for other in self._others]
        told = [page.backends for page in pages]
        self._deaths.join([one for page in pages for one in page.convictions], time.monotonic())
        alive = [self._boards.connections(other) != CLOSED for other in self._others]
        for backend in self._backends:
            key = _key(backend)
            peers, verdict = PeerTraffic(), None
            before = self._before.get(key)
            if before is not None:
                peers.requests, peers.failures = before.requests, before.failures
            for there, lives in zip((one.get(key) for one in told), alive, strict=True):
                if there is None:
                    continue
                peers.requests += there.requests
                peers.failures += there.failures
                if lives:
                    peers.in_flight += there.in_flight
                    peers.queued += there.queued
                    peers.waiting_kb += there.waiting_kb
                    peers.last_sign_at = max(peers.last_sign_at, there.last_sign)
                    if there.engine_read_at > peers.engine_read_at:
                        peers.engine_waiting, peers.engine_read_at = there.engine_waiting, there.engine_read_at
                    verdict = verdict or there.verdict
                if there.drained_at > backend.health.drain_set_at:
                    backend.set_draining(there.draining, at=there.drained_at)
            backend.peers = peers
            backend.set_peer_verdict(verdict)

    def tell_metrics(self) -> None:
        """Write the metrics, with what those counted that were here before."""
        text, before = self._metrics.own(), self._metrics_before
        text = added_up(text, (before,)) if before else text
        if not self._boards.write(self._worker, StateUpdate.METRICS, text.encode()):
            log.error("more metrics than the workers can tell each other of", bytes=len(text))

    def metrics_of_others(self) -> Iterable[str]:
        """The metrics of the other workers, and of those that have died."""
        texts = [self._metrics_before]
        for other in self._others:
            text = self._boards.read(other, StateUpdate.METRICS).decode()
            texts.append(text if self._boards.connections(other) != CLOSED else counted(text))
        return texts


def _key(backend: Backend) -> str:
    """A backend that was moved is another one."""
    return f"{backend.name} {backend.target.url} {backend.target.address or ''}"


def _read(boards: SharedSlots, worker: int) -> _Page:
    data = boards.read(worker, StateUpdate.NOW)
    return _decode(data) if data else _BLANK
