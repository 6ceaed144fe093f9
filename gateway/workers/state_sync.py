"""Synchronization of worker state through shared memory.

Every few milliseconds a worker publishes its requests in flight at each backend, so that routing counts those of all
workers; the backends that it found stuck, failing or full and the requests that crash them; and which backends an
operator has drained. Every second it publishes its metrics, so that a scrape of any worker returns the sums.
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
from gateway.telemetry.merge_exposition import merge, without_gauges
from gateway.telemetry.metrics import GatewayMetrics
from gateway.workers.shared_memory import CLOSED, SharedSlots, StateUpdate

log = structlog.get_logger(__name__)

# How often slots are written and read, in seconds: routing may miss what other workers did in this time.
TICK_S = 0.02
# How often metrics are published, in ticks.
METRICS_TICKS = 50
# Resolution of `last_sign_at`, rounded down: a finer one would change, and be written, more often.
SIGNS_PER_S = 10


class _BackendState(msgspec.Struct, array_like=True):
    """One worker's state of one backend. Times are monotonic, which is the same clock in all processes."""

    traffic: PeerTraffic
    verdict: Verdict | None
    draining: bool
    drain_set_at: float


class _WorkerState(msgspec.Struct, array_like=True):
    """All that a worker publishes, except metrics: its backends by key, and its convictions."""

    backends: dict[str, _BackendState]
    convictions: list[Conviction]


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(_WorkerState).decode
_EMPTY = _WorkerState({}, [])


class StateSync:
    """Publishes this worker's state and applies that of the others."""

    def __init__(
        self, slots: SharedSlots, worker: int, backends: Backends, quarantine: Quarantine, metrics: GatewayMetrics
    ) -> None:
        self._slots = slots
        self._worker = worker
        self._others = [other for other in range(slots.workers) if other != worker]
        self._backends = backends
        self._quarantine = quarantine
        self._metrics = metrics
        self._published = b""
        self._parent = os.getppid()
        # Counters of the crashed workers that had this slot before.
        self._before = _read(slots, worker).backends
        self._metrics_before = without_gauges(slots.read(worker, StateUpdate.METRICS).decode())
        metrics.others = self.metrics_of_others

    async def run(self) -> None:
        """Publish and receive until cancelled. Stops this process if its parent has ended."""
        count = 0
        while True:
            self.publish()
            self.receive()
            if count % METRICS_TICKS == 0:
                self.publish_metrics()
            if os.getppid() != self._parent:
                log.error("the supervisor of this worker has ended")
                signal.raise_signal(signal.SIGTERM)
                return
            count += 1
            await asyncio.sleep(TICK_S)

    def publish(self) -> None:
        """Publish this worker's state if it has changed."""
        now = time.monotonic()
        backends = {_key(backend): self._state_of(backend, now) for backend in self._backends}
        state = _encode(_WorkerState(backends, self._quarantine.convictions(now)))
        if state != self._published:
            self._published = state
            if not self._slots.write(self._worker, StateUpdate.NOW, state):
                log.error("too many backends for the shared memory of the workers", backends=len(self._backends))

    def _state_of(self, backend: Backend, now: float) -> _BackendState:
        before = self._before.get(_key(backend))
        traffic, queue, health = backend.traffic, backend.engine_queue, backend.health
        last_sign_at = max(traffic.last_byte_at, queue.progress_at)
        published = PeerTraffic(
            in_flight=traffic.in_flight,
            queued=backend.load.queued(now),
            waiting_kb=round(backend.load.pending_kb, 1),
            requests=traffic.requests + (before.traffic.requests if before else 0),
            failures=traffic.failures + (before.traffic.failures if before else 0),
            last_sign_at=math.floor(last_sign_at * SIGNS_PER_S) / SIGNS_PER_S,
            engine_waiting=queue.waiting,
            engine_read_at=queue.read_at,
            full_until=backend.load.full_until,
        )
        return _BackendState(published, health.verdict, health.draining, health.drain_set_at)

    def receive(self) -> None:
        """Apply the state that the other workers have published."""
        states = [_read(self._slots, other) for other in self._others]
        self._quarantine.merge([one for state in states for one in state.convictions], time.monotonic())
        alive = [self._slots.connections(other) != CLOSED for other in self._others]
        for backend in self._backends:
            key = _key(backend)
            peers, verdict = PeerTraffic(), None
            before = self._before.get(key)
            if before is not None:
                peers.requests, peers.failures = before.traffic.requests, before.traffic.failures
            for state, is_alive in zip(states, alive, strict=True):
                published = state.backends.get(key)
                if published is None:
                    continue
                peer = published.traffic
                peers.requests += peer.requests
                peers.failures += peer.failures
                if is_alive:
                    peers.in_flight += peer.in_flight
                    peers.queued += peer.queued
                    peers.waiting_kb += peer.waiting_kb
                    peers.last_sign_at = max(peers.last_sign_at, peer.last_sign_at)
                    if peer.engine_read_at > peers.engine_read_at:
                        peers.engine_waiting, peers.engine_read_at = peer.engine_waiting, peer.engine_read_at
                    peers.full_until = max(peers.full_until, peer.full_until)
                    verdict = verdict or published.verdict
                if published.drain_set_at > backend.health.drain_set_at:
                    backend.set_draining(published.draining, at=published.drain_set_at)
            backend.peers = peers
            backend.set_peer_verdict(verdict)

    def publish_metrics(self) -> None:
        """Publish the metrics, including the counters of crashed workers that had this slot before."""
        text = self._metrics.own_exposition()
        if self._metrics_before:
            text = merge(text, (self._metrics_before,))
        if not self._slots.write(self._worker, StateUpdate.METRICS, text.encode()):
            log.error("too many metrics for the shared memory of the workers", bytes=len(text))

    def metrics_of_others(self) -> Iterable[str]:
        """Return the metrics of the other workers, and the counters of crashed ones."""
        texts = [self._metrics_before]
        for other in self._others:
            text = self._slots.read(other, StateUpdate.METRICS).decode()
            texts.append(text if self._slots.connections(other) != CLOSED else without_gauges(text))
        return texts


def _key(backend: Backend) -> str:
    """Return the key of a backend, which changes when it moves."""
    return f"{backend.name} {backend.target.url} {backend.target.address or ''}"


def _read(slots: SharedSlots, worker: int) -> _WorkerState:
    data = slots.read(worker, StateUpdate.NOW)
    return _decode(data) if data else _EMPTY
