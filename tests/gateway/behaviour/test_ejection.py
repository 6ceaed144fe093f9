"""Ejection and recovery of backends that pass health probes and fail requests."""

import asyncio

import pytest

from gateway.backends.circuit_breaker import MAX_CONSECUTIVE_FAILURES
from gateway.health.poller import ABSENCES_BEFORE_BACKOFF, MAX_PAUSE_S, pause_s
from tests.gateway.behaviour.test_faults import settled
from tests.gateway.conftest import StartBackend, StartGateway
from tests.gateway.running import HANG_S

SHORT_PAUSE = {"breaker_pause_s": 0.05}


@pytest.mark.parametrize(
    "fault", [{"fail_rate": 1.0}, {"fail_rate": 1.0, "fail_status": 503}, {"reset": True}], ids=str
)
async def test_failing_backend_is_ejected_until_a_canary_succeeds(
    start_backend: StartBackend, start_gateway: StartGateway, fault: dict[str, object]
) -> None:
    liar, good = await start_backend("liar", **fault), await start_backend("good")
    gateway = await start_gateway(liar, good, poll_interval=0.05, timing=SHORT_PAUSE)
    backend = gateway.backend("liar")
    async with asyncio.timeout(HANG_S):
        while str(backend.state) == "healthy":
            await gateway.chat("qwen")
    assert backend.state == "unhealthy"
    assert backend.traffic.failures == MAX_CONSECUTIVE_FAILURES
    assert backend.health.ejections == {"failures": 1}
    for _ in range(5):
        answer = await gateway.chat("qwen")
        assert (answer.status_code, answer.headers["x-served-by"], answer.headers["x-attempts"]) == (200, "good", "1")
    # It is asked meanwhile, and fails again.
    await gateway.until(lambda: liar.requests[-1].json.get("max_tokens") == 1)
    shown = (await gateway.http.get("/services")).json()["services"]["liar"]
    assert not shown["healthy"]
    assert (
        'gateway_backend_ejections_total{backend="liar",reason="failures"} 1.0'
        in (await gateway.http.get("/metrics")).text
    )
    liar.switches.fail_rate, liar.switches.reset = 0.0, False
    await gateway.until(lambda: str(backend.state) == "healthy")
    assert backend.last_error is None
    assert backend.traffic.requests == MAX_CONSECUTIVE_FAILURES
    await gateway.until(lambda: settled(gateway))


async def test_the_last_backend_is_not_ejected(start_backend: StartBackend, start_gateway: StartGateway) -> None:
    """A client whose requests make every backend fail takes none from the others."""
    backends = [await start_backend(name, fail_rate=1.0) for name in ("one", "two")]
    gateway = await start_gateway(*backends, poll_interval=60, timing=SHORT_PAUSE)
    async with asyncio.timeout(HANG_S):
        while any(gateway.backend(one.name).state == "healthy" for one in backends):
            assert (await gateway.chat("qwen")).status_code == 500
    for one in backends:
        one.switches.fail_rate = 0.0
    answer = await gateway.chat("qwen")
    assert answer.status_code == 200
    # Nobody polls now: what ends well is enough.
    async with asyncio.timeout(HANG_S):
        while gateway.backend(answer.headers["x-served-by"]).state != "healthy":
            answer = await gateway.chat("qwen")
            assert answer.status_code == 200


@pytest.mark.parametrize("status", [400, 404, 422, 429])
async def test_client_errors_do_not_eject_a_backend(
    start_backend: StartBackend, start_gateway: StartGateway, status: int
) -> None:
    backend = await start_backend("only", fail_rate=1.0, fail_status=status)
    gateway = await start_gateway(backend)
    for _ in range(2 * MAX_CONSECUTIVE_FAILURES):
        assert (await gateway.chat("qwen")).status_code == status
    assert gateway.backend("only").state == "healthy"
    assert gateway.backend("only").traffic.failures == 0


@pytest.mark.parametrize(
    ("model", "kind", "path"),
    [
        ("minilm", "embedding", "/v1/embeddings"),
        ("ranker", "reranker", "/v1/rerank"),
        ("whisper", "transcription", "/v1/audio/transcriptions"),
        ("llava", "multimodal", "/v1/chat/completions"),
    ],
)
async def test_canary_request_suits_the_kind_of_model(
    start_backend: StartBackend, start_gateway: StartGateway, model: str, kind: str, path: str
) -> None:
    """With the backend's key."""
    backend = await start_backend("only", model=model, kind=kind)
    gateway = await start_gateway(backend, poll_interval=0.05, backend_keys="only=secret", timing=SHORT_PAUSE)
    backend.switches.key = "secret"
    for _ in range(MAX_CONSECUTIVE_FAILURES):
        gateway.backend("only").record_failure("broken", "for a test")
    assert gateway.backend("only").state == "unhealthy"
    await gateway.until(lambda: gateway.backend("only").state == "healthy")
    (canary,) = backend.requests
    assert canary.target == path
    assert canary.header("authorization") == "Bearer secret"


async def test_drain_under_load_loses_nothing(start_backend: StartBackend, start_gateway: StartGateway) -> None:
    """In-flight requests finish, no new ones are sent, and the backend is resumed."""
    one, two = await start_backend("one", rate=20.0), await start_backend("two", rate=20.0)
    gateway = await start_gateway(one, two)
    backend = gateway.backend("one")
    stop = asyncio.Event()
    answered = []

    async def load(stream: bool) -> None:
        while not stop.is_set():
            answer = await gateway.chat("qwen", stream=stream)
            answered.append((answer.status_code, "token3" in answer.text, answer.headers["x-attempts"]))

    clients = [asyncio.create_task(load(bool(index % 2))) for index in range(12)]
    for _ in range(3):
        await gateway.until(lambda: backend.traffic.in_flight > 2)
        shown = (await gateway.http.post("/services/one/drain")).json()
        assert shown["state"] == "draining"
        assert shown["in_flight"] > 0
        sent = backend.traffic.requests
        await gateway.until(lambda: backend.traffic.in_flight == 0)
        assert backend.traffic.requests == sent
        assert (await gateway.http.get("/services")).json()["services"]["one"]["state"] == "draining"
        assert (await gateway.http.post("/services/one/resume")).json()["state"] == "healthy"
    stop.set()
    await asyncio.gather(*clients)
    assert set(answered) == {(200, True, "1")}
    await gateway.until(lambda: settled(gateway))


def test_probe_intervals() -> None:
    """Jitter of a fifth; backoff with an upper bound."""
    assert pause_s(2.0, 0, 0.0) == pytest.approx(1.9)
    assert pause_s(2.0, 0, 0.999) == pytest.approx(1.5, abs=0.01)
    assert pause_s(2.0, ABSENCES_BEFORE_BACKOFF, 0.0) == pause_s(2.0, 0, 0.0)
    growing = [pause_s(2.0, absences, 0.0) for absences in range(ABSENCES_BEFORE_BACKOFF, ABSENCES_BEFORE_BACKOFF + 5)]
    assert growing == sorted(growing)
    assert growing[0] < growing[-1]
    assert pause_s(2.0, 1_000_000, 0.0) < MAX_PAUSE_S
    assert pause_s(60.0, 1_000_000, 0.0) == pause_s(60.0, 0, 0.0)
    assert pause_s(0.05, 0, 0.5) == 0.0


async def test_failed_traffic_triggers_a_probe_at_once(
    start_backend: StartBackend, start_gateway: StartGateway
) -> None:
    backend = await start_backend("only")
    gateway = await start_gateway(backend, poll_interval=60)
    backend.switches.health = "failed"
    gateway.backend("only").probe_soon()
    await gateway.until(lambda: gateway.backend("only").state == "unhealthy")
