"""Synchronization of worker state, without processes."""

from collections.abc import Callable
from time import monotonic as now

import pytest

from gateway.api.views import describe
from gateway.backends.backend_table import Backends
from gateway.backends.circuit_breaker import MAX_CONSECUTIVE_FAILURES
from gateway.backends.load import Load
from gateway.backends.query_of_death import CrashedBackend, Quarantine, digest_of
from gateway.backends.traffic import EngineQueue
from gateway.discovery.target import parse_services
from gateway.telemetry.metrics import GatewayMetrics
from gateway.workers.shared_memory import CLOSED, SharedSlots
from gateway.workers.state_sync import StateSync
from tests.gateway import plain

QUARANTINE_S = 60.0
CHAT = "/v1/chat/completions"


class Worker:
    """One worker with its own backends and its side of the shared slots."""

    def __init__(self, slots: SharedSlots, number: int) -> None:
        self.backends = Backends({}, plain.CLOCK)
        for target in parse_services("one=http://127.0.0.1:1"):
            self.backends.upsert(target)
        (self.backend,) = self.backends
        self.backend.observe("healthy")
        self.quarantine = Quarantine(QUARANTINE_S)
        self.sync = StateSync(slots, number, self.backends, self.quarantine, GatewayMetrics())
        slots.set_connections(number, 0)


@pytest.fixture
def slots() -> SharedSlots:
    return SharedSlots(3)


@pytest.fixture
def workers(slots: SharedSlots) -> list[Worker]:
    """Three workers that have published nothing."""
    return [Worker(slots, number) for number in range(3)]


def tick(workers: list[Worker]) -> None:
    """All workers publish, then all receive."""
    for worker in workers:
        worker.sync.publish()
    for worker in workers:
        worker.sync.receive()


def fail(worker: Worker) -> None:
    for _ in range(MAX_CONSECUTIVE_FAILURES):
        worker.backend.record_failure("http_503", "it answered 503. Try again.")


def reject(worker: Worker) -> None:
    worker.backend.record_error(401, b"", b"")


def hang(worker: Worker) -> None:
    worker.backend.set_stuck("it sent no byte")


@pytest.mark.parametrize(
    ("do", "state", "reason"),
    [
        (fail, "unhealthy", "the last 5 requests failed: it answered 503"),
        (hang, "stuck", "it sent no byte"),
        (reject, "unhealthy", "set one=KEY in BACKEND_KEYS"),
    ],
)
def test_verdict_applies_to_all_workers(
    workers: list[Worker], do: Callable[[Worker], None], state: str, reason: str
) -> None:
    """The worker that found it sends the canary and revokes it for all."""
    first, *others = workers
    changes: list[str] = []
    for other in others:
        other.backends.on_change(lambda other=other: changes.append(other.backend.state))  # type: ignore[misc]
    do(first)
    tick(workers)
    for other in others:
        assert other.backend.state == state
        assert reason in str(other.backend.last_error)
        assert not other.backend.needs_canary
        assert not other.backend.health.ejections
    assert changes == [state, state]
    tick(workers)
    assert changes == [state, state]
    first.backend.record_canary(None)
    tick(workers)
    assert [worker.backend.state for worker in workers] == ["healthy"] * 3


def test_verdict_ends_with_its_worker(slots: SharedSlots, workers: list[Worker]) -> None:
    hang(workers[0])
    tick(workers)
    slots.set_connections(0, CLOSED)
    for worker in workers[1:]:
        worker.sync.receive()
        assert worker.backend.state == "healthy"


def test_full_backend_is_weighed_down_by_all_workers(workers: list[Worker]) -> None:
    """For as long as the latest response that any worker saw says."""
    first, second, third = (worker.backend for worker in workers)
    first.record_error(429, b"retry-after: 10\r\n", b"")
    second.record_error(429, b"retry-after: 30\r\n", b"")
    for _ in range(2):
        tick(workers)
    assert first.full_until == second.full_until == third.full_until > now() + 20
    assert "full" in str(third.last_error)
    assert third.state == "healthy"


def test_loaded_backend_is_not_weighed_down_for_what_it_said_before(workers: list[Worker]) -> None:
    """Its 503 of the time when it loaded may have a Retry-After of a minute."""
    workers[0].backend.record_error(503, b"retry-after: 60\r\n", b"")
    tick(workers)
    for worker in workers:
        assert worker.backend.full_until > now()
        worker.backend.observe("loading")
        worker.backend.observe("healthy")
    tick(workers)
    assert [worker.backend.full_until for worker in workers] == [0.0] * 3


def test_last_sign_is_shared(workers: list[Worker]) -> None:
    """Rounded down, never later than it was."""
    at = now()
    workers[0].backend.traffic.last_byte_at = at
    tick(workers)
    for worker in workers[1:]:
        assert at - 0.2 < worker.backend.last_sign_at <= at


def test_queue_lengths_are_summed(workers: list[Worker]) -> None:
    """The engine's own metrics, read by any worker, take precedence."""
    for worker in workers:
        worker.backend.load = Load()
        worker.backend.load.admit(worker.backend.traffic, 1.0, now(), shows_first_token=True)
    tick(workers)
    assert [describe(worker.backend)["queued"] for worker in workers] == [3, 3, 3]
    workers[1].backend.engine_queue = EngineQueue(waiting=7, read_at=now())
    tick(workers)
    assert [describe(worker.backend)["queued"] for worker in workers] == [7, 7, 7]


def test_conviction_applies_to_all_workers(workers: list[Worker]) -> None:
    body = b'{"model":"qwen"}'
    quarantine, digest = workers[0].quarantine, digest_of(CHAT, body)
    others = [plain.make_backend(name, "qwen") for name in ("b0", "b1")]
    assert not quarantine.record_crash(others[0], digest, len(body), now(), served_s=0.1)
    tick(workers)
    for worker in workers[1:]:
        assert worker.quarantine.check(CHAT, body, now()) is None
    assert quarantine.record_crash(others[1], digest, len(body), now(), served_s=0.1)
    tick(workers)
    for worker in workers:
        with pytest.raises(CrashedBackend, match="crashed 2 backends"):
            worker.quarantine.check(CHAT, body, now())
        assert worker.quarantine.check(CHAT, b'{"model":"QWEN"}', now()) is None
    # An equal request at another backend got its response.
    quarantine.clear(CHAT, body)
    for _ in range(2):
        tick(workers)
    for worker in workers:
        assert worker.quarantine.check(CHAT, body, now()) is None
        assert not worker.quarantine.suspects


def test_peer_conviction_expires() -> None:
    quarantine, body = Quarantine(QUARANTINE_S), b"{}"
    convictions = [(digest_of(CHAT, body).hex(), len(body), 2, 100.0)]
    quarantine.merge(convictions, 99.0)
    with pytest.raises(CrashedBackend):
        quarantine.check(CHAT, body, 99.0)
    assert quarantine.check(CHAT, body, 101.0) is None
    quarantine.merge(convictions, 101.0)
    assert quarantine.check(CHAT, body, 101.0) is None
