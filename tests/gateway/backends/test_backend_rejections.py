"""Responses that speak of the backend and not of the request: full, misconfigured, without the model."""

import asyncio

import httpx2
import openai
import pytest

from gateway.backends.response_verdict import MAX_PAUSE_S
from tests.gateway.behaviour.test_faults import settled
from tests.gateway.conftest import StartBackend, StartGateway
from tests.gateway.running import HANG_S, error_code
from tests.support.backends.openai_backend import FakeBackend

SHORT_PAUSE = {"breaker_pause_s": 0.05}
BUSY = "The engine is currently busy and cannot accept new requests."


def reject(backend: FakeBackend, status: int, *, retry_after: str = "", message: str = "no") -> None:
    """Let every further request to the backend fail."""
    switches = backend.switches
    switches.fail_rate, switches.fail_status = 1.0, status
    switches.retry_after, switches.fail_message = retry_after, message


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("status", "retry_after", "message"),
    [(429, "60", ""), (429, "", ""), (529, "", ""), (503, "60", ""), (503, "", BUSY)],
)
async def test_full_backend_is_weighed_down_while_the_idle_one_serves(
    start_backend: StartBackend,
    start_gateway: StartGateway,
    status: int,
    retry_after: str,
    message: str,
    stream: bool,
) -> None:
    """As RFC 9110, 10.2.3 and 15.6.4, for the time of its Retry-After; it stays healthy."""
    full, idle = await start_backend("full"), await start_backend("idle")
    reject(full, status, retry_after=retry_after, message=message)
    gateway = await start_gateway(full, idle, poll_interval=60, connect_timeout=HANG_S)
    answers = await asyncio.gather(*(gateway.chat("qwen", stream=stream, user=str(number)) for number in range(16)))
    assert {answer.status_code for answer in answers} == {200}
    assert {answer.headers["x-served-by"] for answer in answers} == {"idle"}
    assert full.requests
    backend = gateway.backend("full")
    assert backend.state == "healthy"
    assert backend.traffic.failures == 0
    assert not backend.health.ejections
    if retry_after:
        tried = len(full.requests)
        for number in range(16):
            answer = await gateway.chat("qwen", stream=stream, user=f"later {number}")
            assert (answer.status_code, answer.headers["x-attempts"]) == (200, "1")
        assert len(full.requests) == tried
        assert "full" in str((await gateway.http.get("/services")).json()["services"]["full"]["last_error"])
    await gateway.until(lambda: settled(gateway))


async def test_429_with_the_least_retry_after_when_all_are_full(
    start_backend: StartBackend, start_gateway: StartGateway
) -> None:
    """Each is tried once; then a request costs one attempt, and no queue in the gateway."""
    backends = [await start_backend(f"b{index}") for index in range(5)]
    for backend, retry_after in zip(backends, ("50", "9", "40", "30", "20"), strict=True):
        reject(backend, 429, retry_after=retry_after)
    gateway = await start_gateway(*backends, poll_interval=60)
    first = await gateway.chat("qwen")
    assert first.status_code == 429
    assert 1 <= int(first.headers["retry-after"]) <= 9
    # More than MAX_ATTEMPTS: a full backend did no work.
    assert [len(backend.requests) for backend in backends] == [1] * 5
    for number in range(5):
        answer = await gateway.chat("qwen", user=str(number))
        assert (answer.status_code, answer.headers["x-attempts"]) == (429, "1")
        assert 1 <= int(answer.headers["retry-after"]) <= 9
    backends[3].switches.fail_rate = 0.0
    gateway.backend("b3").load.full_until = 0.0
    answer = await gateway.chat("qwen")
    assert (answer.status_code, answer.headers["x-served-by"]) == (200, "b3")
    await gateway.until(lambda: settled(gateway))


async def test_429_of_the_only_backend_is_its_own(start_backend: StartBackend, start_gateway: StartGateway) -> None:
    backend = await start_backend()
    reject(backend, 429, retry_after="3600", message="slow down")
    gateway = await start_gateway(backend)
    for count in (1, 2):
        answer = await gateway.chat("qwen")
        assert (answer.status_code, answer.headers["retry-after"]) == (429, "3600")
        assert answer.json()["error"]["message"] == "slow down"
        assert len(backend.requests) == count
    left_s = gateway.backend("llm-primary").load.full_until - gateway.backend("llm-primary").clock.monotonic()
    assert 0 < left_s <= MAX_PAUSE_S


@pytest.mark.parametrize("status", [429, 503, 529])
@pytest.mark.parametrize(
    ("retry_after", "sent"),
    [
        ("01_0", "10"),
        ("1.5", "2"),
        ("-7", "1"),
        ("1e9", "60"),
        ("inf", "1"),
        ("Wed, 99 Foo 2026", "1"),
        ("soon", "1"),
        ("007", "007"),
        ("Wed, 21 Oct 2015 07:28:00 GMT", "Wed, 21 Oct 2015 07:28:00 GMT"),
    ],
)
async def test_malformed_retry_after_is_the_pause_in_seconds(
    start_backend: StartBackend, start_gateway: StartGateway, retry_after: str, sent: str, status: int
) -> None:
    """RFC 9110, 10.2.3: digits or a date. Any other value is not one that all clients can read."""
    backend = await start_backend()
    reject(backend, status, retry_after=retry_after, message="slow down")
    gateway = await start_gateway(backend, poll_interval=60)
    answer = await gateway.chat("qwen")
    assert (answer.status_code, answer.headers["retry-after"]) == (status, sent)
    assert answer.json()["error"]["message"] == "slow down"


async def test_full_backends_leave_the_request_to_a_fallback(
    start_backend: StartBackend, start_gateway: StartGateway
) -> None:
    catalogue = "qwen: {kind: llm, hf_repo: a/b, fallbacks: [tiny]}\ntiny: {kind: llm, hf_repo: a/c}\n"
    full, other = await start_backend("full"), await start_backend("other", model="tiny")
    reject(full, 429)
    gateway = await start_gateway(full, other, models=catalogue)
    answer = await gateway.chat("qwen")
    assert (answer.status_code, answer.headers["x-served-model"]) == (200, "tiny")


async def test_a_failing_backend_does_not_take_over_from_a_full_one(
    start_backend: StartBackend, start_gateway: StartGateway
) -> None:
    """The client hears 429, not the error of a backend that is out anyway."""
    full, out = await start_backend("full"), await start_backend("out", key="secret")
    gateway = await start_gateway(full, out, poll_interval=60)
    async with asyncio.timeout(HANG_S):
        while str(gateway.backend("out").state) == "healthy":
            await gateway.chat("qwen")
    reject(full, 429)
    assert (await gateway.chat("qwen")).status_code == 429


@pytest.mark.parametrize("status", [401, 402, 407, 302, 307])
async def test_misconfigured_backend_is_taken_out(
    start_backend: StartBackend, start_gateway: StartGateway, status: int
) -> None:
    """Another one is asked; the reason names the gateway's setting. It is used again once it accepts the gateway."""
    wrong, right = await start_backend("wrong"), await start_backend("right")
    reject(wrong, status)
    gateway = await start_gateway(
        wrong, right, poll_interval=0.05, timing=SHORT_PAUSE, backend_keys="wrong=old,right=new"
    )
    backend = gateway.backend("wrong")
    answers = [await gateway.chat("qwen", user=str(number)) for number in range(16)]
    assert {answer.status_code for answer in answers} == {200}
    assert {answer.headers["x-served-by"] for answer in answers} == {"right"}
    shown = (await gateway.http.get("/services")).json()["services"]["wrong"]
    assert (shown["state"], shown["healthy"]) == ("unhealthy", False)
    assert ("SERVICES" if status < 400 else "BACKEND_KEYS") in shown["last_error"]
    metrics = (await gateway.http.get("/metrics")).text
    assert 'gateway_backend_ejections_total{backend="wrong",reason="misconfigured"} 1.0' in metrics
    # Canaries are rejected as well, with the same reason.
    await gateway.until(lambda: len(wrong.requests) > 2)
    assert str(status) in str(backend.last_error)
    wrong.switches.fail_status = 403
    await gateway.until(lambda: "403" in str(backend.last_error))
    assert backend.state == "unhealthy"
    wrong.switches.fail_rate = 0.0
    await gateway.until(lambda: str(backend.state) == "healthy")
    assert backend.last_error is None
    await gateway.until(lambda: settled(gateway))


async def test_403_of_one_request_does_not_take_out_the_replicas(
    start_backend: StartBackend, start_gateway: StartGateway
) -> None:
    """A filter refuses a prompt wherever it is sent, however often; the other prompts are still answered."""
    backends = [await start_backend(f"b{index}", ours=False) for index in range(3)]
    gateway = await start_gateway(*backends, poll_interval=60)
    for _ in range(4):
        for backend in backends:
            reject(backend, 403)
        answer = await gateway.chat("qwen")
        assert (answer.status_code, answer.headers["x-attempts"]) == (502, "3")
        assert "(status 403): check b" in answer.text
        for backend in backends:
            backend.switches.fail_rate = 0.0
        assert (await gateway.chat("qwen", user="other")).status_code == 200
    for name in ("b0", "b1", "b2"):
        assert gateway.backend(name).state == "healthy"
        assert not gateway.backend(name).health.ejections


async def test_backend_that_forbids_everything_gets_little(
    start_backend: StartBackend, start_gateway: StartGateway
) -> None:
    """Another one answers, and retries stay within their budget; a foreign one's /v1/models is asked at once."""
    wrong, right = await start_backend("wrong", ours=False), await start_backend("right")
    reject(wrong, 403)
    gateway = await start_gateway(wrong, right, poll_interval=60)
    for number in range(16):
        assert (await gateway.chat("qwen", user=str(number))).headers["x-served-by"] == "right"
    assert 0 < len(wrong.requests) < 8
    await gateway.until(lambda: not gateway.backend("wrong").offers_doubted)


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("status", [401, 403])
async def test_client_hears_of_the_gateways_key_not_of_its_own(
    start_backend: StartBackend, start_gateway: StartGateway, status: int, count: int
) -> None:
    """502 as RFC 9110, 15.6.3: OpenAI's client raises no AuthenticationError, and may retry."""
    backends = [await start_backend(f"b{index}") for index in range(count)]
    for backend in backends:
        reject(backend, status, message="Incorrect API key provided.")
    gateway = await start_gateway(*backends, poll_interval=60)
    http = openai.DefaultAsyncHttpxClient(trust_env=False, verify=False)
    base_url = f"{gateway.url}/v1"
    async with openai.AsyncOpenAI(base_url=base_url, api_key="mine", max_retries=0, http_client=http) as client:
        for _ in range(3):
            with pytest.raises(openai.InternalServerError) as caught:
                await client.chat.completions.create(model="qwen", messages=[{"role": "user", "content": "Hi"}])
            assert caught.value.status_code == 502
            assert "BACKEND_KEYS" in caught.value.message
            assert "Incorrect" not in caught.value.message
            assert "www-authenticate" not in caught.value.response.headers
    # A request alone cannot take the last backend from other clients: it is still tried.
    backends[0].switches.fail_rate = 0.0
    gateway.backend("b0").observe("healthy")
    answers = [await gateway.chat("qwen") for _ in range(count)]
    assert 200 in {answer.status_code for answer in answers}


@pytest.mark.parametrize("health", ["healthy", "absent"])
async def test_probe_finds_a_wrong_key(start_backend: StartBackend, start_gateway: StartGateway, health: str) -> None:
    """Of a foreign server whose /v1/models requires the key, as vLLM's does: no client's request is needed."""
    wrong = await start_backend("wrong", ours=False, key="new", health=health)
    gateway = await start_gateway(wrong, backend_keys="wrong=old", poll_interval=0.05)
    answer = await gateway.chat("qwen")
    assert (answer.status_code, error_code(answer)) == (503, "no_healthy_backend")
    assert "it rejects the gateway's key (status 401): correct wrong in BACKEND_KEYS" in answer.text
    assert not wrong.requests
    wrong.switches.key = "old"
    await gateway.until(lambda: gateway.backend("wrong").state == "healthy")
    assert (await gateway.chat("qwen")).status_code == 200


async def test_probe_that_is_refused_names_the_setting(
    start_backend: StartBackend, start_gateway: StartGateway
) -> None:
    gateway = await start_gateway(await start_backend("proxied", health="forbidden"))
    shown = (await gateway.http.get("/services")).json()["services"]["proxied"]
    assert "check proxied in BACKEND_KEYS" in shown["last_error"]


async def test_model_that_a_backend_no_longer_has(start_backend: StartBackend, start_gateway: StartGateway) -> None:
    """Another backend serves it, and the list of the first is read again at once."""
    gone, good = await start_backend("gone", ours=False), await start_backend("good", ours=False)
    gateway = await start_gateway(gone, good, poll_interval=60)
    gone.switches.model = "other"
    answers: list[httpx2.Response] = []
    async with asyncio.timeout(HANG_S):
        while not gone.requests:
            answers.append(await gateway.chat("qwen", user=str(len(answers))))
    assert {answer.status_code for answer in answers} == {200}
    await gateway.until(lambda: [offer.name for offer in gateway.backend("gone").offers] == ["other"])
    assert gateway.backend("gone").state == "healthy"
    assert gateway.backend("gone").traffic.failures == 0
    good.switches.model = "other"
    answer = await gateway.chat("qwen")
    assert answer.status_code == 404
    assert "does not exist" in answer.json()["error"]["message"]


@pytest.mark.parametrize("status", [408, 421, 502, 503, 504, 507, 522])
async def test_failed_backend_is_replaced(
    start_backend: StartBackend, start_gateway: StartGateway, status: int
) -> None:
    """Whatever its status says of it."""
    bad, good = await start_backend("bad"), await start_backend("good")
    reject(bad, status)
    gateway = await start_gateway(bad, good, poll_interval=60)
    for number in range(4):
        assert (await gateway.chat("qwen", user=str(number))).status_code == 200
    assert gateway.backend("bad").traffic.failures == len(bad.requests) > 0


@pytest.mark.parametrize("framing", ["length", "chunked", "close"])
async def test_death_of_an_engine_is_no_error_of_the_request(
    start_backend: StartBackend, start_gateway: StartGateway, framing: str
) -> None:
    """vLLM responds with 500 to all requests in flight when its engine dies; another 500 may be the request's fault."""
    dead, good = await start_backend("dead", framing=framing), await start_backend("good")
    reject(dead, 500, message="EngineCore encountered an issue. See stack trace (above) for the root cause.")
    gateway = await start_gateway(dead, good, poll_interval=60)
    gateway.backend("good").set_draining(True)
    assert (await gateway.chat("qwen")).status_code == 500
    gateway.backend("good").set_draining(False)
    for number in range(4):
        assert (await gateway.chat("qwen", user=str(number))).status_code == 200
    dead.switches.fail_message = "list index out of range"
    statuses = {(await gateway.chat("qwen", user=f"later {number}")).status_code for number in range(8)}
    assert 500 in statuses


@pytest.mark.parametrize("status", [400, 404, 409, 413, 422])
async def test_error_of_the_request_is_not_retried(
    start_backend: StartBackend, start_gateway: StartGateway, status: int
) -> None:
    backends = [await start_backend(name) for name in ("one", "two")]
    for backend in backends:
        reject(backend, status)
    gateway = await start_gateway(*backends)
    answer = await gateway.chat("qwen")
    assert (answer.status_code, answer.headers["x-attempts"]) == (status, "1")
    assert sum(len(backend.requests) for backend in backends) == 1


async def test_full_backend_does_not_fail_while_it_is_asked_to_continue_a_stream(
    start_backend: StartBackend, start_gateway: StartGateway
) -> None:
    """The stream continues on a third one."""
    broken = await start_backend("broken", reset_after=2)
    full, good = await start_backend("full"), await start_backend("good")
    reject(full, 429, retry_after="30")
    gateway = await start_gateway(broken, full, good, poll_interval=60)
    for name in ("full", "good"):
        gateway.backend(name).set_draining(True)
    request = asyncio.create_task(gateway.chat("qwen", stream=True))
    await broken.wait_for(1)
    for name in ("full", "good"):
        gateway.backend(name).set_draining(False)
    assert "token3" in (await request).text
    assert gateway.backend("full").traffic.failures == 0
