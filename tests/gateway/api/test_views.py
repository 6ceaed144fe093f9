"""The gateway's own routes: health, services, models, GPUs, metrics, drain."""

import asyncio
import json
import shutil
import subprocess

import pytest

from tests.gateway.conftest import StartBackend, StartGateway
from tests.gateway.running import HANG_S, error_code


async def test_services_has_all_keys(start_backend: StartBackend, start_gateway: StartGateway) -> None:
    gateway = await start_gateway(await start_backend())
    await gateway.chat("qwen", stream=True)
    body = (await gateway.http.get("/services")).json()
    assert body["healthy"] == body["total"] == 1
    service = body["services"]["llm-primary"]
    assert service.keys() == {
        "url", "kind", "models", "state", "healthy", "response_time_ms", "ttft_ms", "in_flight", "queued", "requests",
        "failures", "last_check", "last_error", "since",
    }  # fmt: skip
    assert (service["kind"], service["models"], service["state"], service["healthy"]) == (
        "llm",
        ["qwen"],
        "healthy",
        True,
    )
    assert (service["requests"], service["failures"], service["in_flight"]) == (1, 0, 0)
    assert service["response_time_ms"] > 0
    assert service["ttft_ms"] > 0
    assert service["last_error"] is None


@pytest.mark.skipif(shutil.which("jq") is None, reason="jq is not installed")
async def test_jq_lines_of_the_quick_reference(start_backend: StartBackend, start_gateway: StartGateway) -> None:
    gateway = await start_gateway(await start_backend())
    line = ".services | to_entries | .[] | {name: .key, healthy: .value.healthy, response_ms: .value.response_time_ms}"
    services = (await gateway.http.get("/services")).content
    assert jq(line, services).startswith(b'{"name":"llm-primary","healthy":true,"response_ms":')
    gpus = (await gateway.http.get("/gpu-stats")).content
    assert b'"memory_used_mb":400' in jq(".services", gpus)


def jq(program: str, document: bytes) -> bytes:
    """What jq prints, one line a value."""
    return subprocess.run(["jq", "-c", program], input=document, capture_output=True, check=True).stdout


@pytest.mark.parametrize(
    ("switches", "state", "error"),
    [
        ({}, "healthy", None),
        ({"health": "loading", "progress": 0.25}, "loading", "fetching"),
        ({"health": "failed"}, "unhealthy", "no such file"),
        ({"health": "error"}, "unhealthy", "500"),
        ({"health": "silent"}, "unhealthy", "within 2 s"),
        ({"ours": False}, "healthy", None),
        ({"ours": False, "health": "absent"}, "healthy", None),
        ({"ours": False, "health": "loading"}, "loading", None),
    ],
    ids=str,
)
async def test_states_from_health_responses(
    start_backend: StartBackend, start_gateway: StartGateway, switches: dict[str, object], state: str, error: str | None
) -> None:
    """Of our own services and foreign servers, at the first probe."""
    gateway = await start_gateway(await start_backend(**switches))
    service = (await gateway.http.get("/services")).json()["services"]["llm-primary"]
    assert service["state"] == state
    assert service["healthy"] is (state == "healthy")
    assert (error is None and not service["last_error"]) or (error is not None and error in service["last_error"])
    if state == "loading" and switches.get("ours", True):
        assert service["progress"] == 0.25
        answer = await gateway.chat("qwen")
        assert answer.status_code == 503
        assert error_code(answer) == "model_loading"
        assert "25 %" in answer.json()["error"]["message"]
        assert int(answer.headers["retry-after"]) >= 1


async def test_missing_model_is_reported_to_clients(start_backend: StartBackend, start_gateway: StartGateway) -> None:
    """The 503 names the script that fetches the model."""
    waiting = "waiting: Qwen/Qwen at main is not in the registry. Mirror it with scripts/offline-setup.sh."
    gateway = await start_gateway(await start_backend(health="loading", progress=0.0, detail=waiting))
    for model in ("qwen", "cluster", None):
        answer = await gateway.chat(model)
        assert (answer.status_code, error_code(answer)) == (503, "model_loading")
        message = answer.json()["error"]["message"]
        assert message == f"qwen is loading on llm-primary (0 %): {waiting} Try again in a moment."
    assert (await gateway.http.get("/services")).json()["services"]["llm-primary"]["last_error"] == waiting


async def test_loaded_service_is_used_after_the_next_probe(
    start_backend: StartBackend, start_gateway: StartGateway
) -> None:
    backend = await start_backend(health="loading")
    gateway = await start_gateway(backend, poll_interval=0.1)
    assert (await gateway.chat("qwen")).status_code == 503
    backend.switches.health = "healthy"
    await gateway.until(lambda: gateway.backend("llm-primary").state == "healthy")
    assert (await gateway.chat("qwen")).status_code == 200


async def test_failing_service_with_good_probes_is_ejected(
    start_backend: StartBackend, start_gateway: StartGateway
) -> None:
    """It costs retries, no failed responses, and soon not even retries."""
    liar, good = await start_backend("liar", reset=True), await start_backend("good")
    gateway = await start_gateway(liar, good)
    answers = await asyncio.gather(*(gateway.chat("qwen") for _ in range(10)))
    assert {answer.status_code for answer in answers} == {200}
    state = (await gateway.http.get("/services")).json()["services"]["liar"]
    assert state["state"] == "unhealthy"
    assert "passes health probes, but the last 5 requests failed: liar failed" in state["last_error"]
    assert (await gateway.chat("qwen")).headers["x-attempts"] == "1"


async def test_working_service_may_miss_probes(start_backend: StartBackend, start_gateway: StartGateway) -> None:
    """It is busy, still used, and healthy afterwards."""
    backend = await start_backend(gated=True)
    gateway = await start_gateway(backend, poll_interval=0.1, poll_timeout=0.1)
    backend.gate.release()
    body = {"model": "qwen", "stream": True}
    async with gateway.http.stream("POST", "/v1/chat/completions", json=body) as answer:
        backend.switches.health = "silent"
        await gateway.until(lambda: gateway.backend("llm-primary").state == "busy")
        assert (await gateway.http.get("/services")).json()["healthy"] == 1
        for _ in range(4):
            backend.gate.release()
        await answer.aread()
    backend.switches.health = "healthy"
    await gateway.until(lambda: gateway.backend("llm-primary").state == "healthy")


async def test_drain_and_resume(start_backend: StartBackend, start_gateway: StartGateway) -> None:
    one, two = await start_backend("one", gated=True), await start_backend("two")
    gateway = await start_gateway(one, two)
    one.gate.release()
    async with gateway.http.stream("POST", "/v1/chat/completions", json={"model": "qwen", "stream": True}) as answer:
        assert answer.headers["x-served-by"] == "one"
        drained = (await gateway.http.post("/services/one/drain")).json()
        assert (drained["state"], drained["healthy"], drained["in_flight"]) == ("draining", False, 1)
        for _ in range(5):
            assert (await gateway.chat("qwen")).headers["x-served-by"] == "two"
        for _ in range(4):
            one.gate.release()
        assert "[DONE]" in (await answer.aread()).decode()
    await gateway.http.post("/services/two/drain")
    down = await gateway.chat("qwen")
    assert down.status_code == 503
    assert "/services/two/resume" in down.json()["error"]["message"]
    assert (await gateway.http.post("/services/one/resume")).json()["state"] == "healthy"
    assert (await gateway.chat("qwen")).headers["x-served-by"] == "one"
    missing = await gateway.http.post("/services/three/drain")
    assert missing.status_code == 404
    assert "one, two" in missing.json()["error"]["message"]


async def test_equal_backends_share_the_load(start_backend: StartBackend, start_gateway: StartGateway) -> None:
    one, two = await start_backend("one", ttft=0.01), await start_backend("two", ttft=0.01)
    gateway = await start_gateway(one, two)
    await asyncio.gather(*(gateway.chat("cluster") for _ in range(40)))
    assert min(len(one.requests), len(two.requests)) >= 12


async def test_fast_backend_gets_most_requests(start_backend: StartBackend, start_gateway: StartGateway) -> None:
    slow, fast = await start_backend("slow", ttft=0.6), await start_backend("fast")
    gateway = await start_gateway(slow, fast)
    for _ in range(20):
        await gateway.chat("qwen")
    assert len(fast.requests) > len(slow.requests)


async def test_models_list(start_backend: StartBackend, start_gateway: StartGateway) -> None:
    """Each model once, foreign ids too, and `cluster`; other names only on request. All of them can be retrieved."""
    gateway = await start_gateway(
        await start_backend("llm-primary"),
        await start_backend("multimodal", model="llava", kind="multimodal"),
        await start_backend("embedding", model="minilm", kind="embedding"),
        await start_backend("foreign", model="org/other|second", ours=False),
    )
    body = (await gateway.http.get("/v1/models")).json()
    assert body["object"] == "list"
    assert [entry["id"] for entry in body["data"]] == ["cluster", "qwen", "llava", "minilm", "org/other", "second"]
    assert not any("root" in entry for entry in body["data"])
    assert [entry["kind"] for entry in body["data"]] == ["llm", "llm", "multimodal", "embedding", None, None]
    listed = {entry["id"]: entry for entry in (await gateway.http.get("/v1/models?aliases=true")).json()["data"]}
    assert listed.keys() == {
        "qwen", "fast", "Qwen/Qwen", "llava", "llava-hf/llava", "minilm", "embedding", "st/minilm", "org/other",
        "second", "cluster",
    }  # fmt: skip
    assert [listed[entry["id"]] for entry in body["data"]] == body["data"]
    for name, entry in listed.items():
        assert (await gateway.http.get(f"/v1/models/{name}")).json() == entry
    assert (await gateway.http.get("/v1/models?aliases=perhaps")).status_code == 400
    assert all(entry["object"] == "model" for entry in body["data"])
    qwen = listed["qwen"]
    assert (qwen["kind"], qwen["backends"], qwen["context_length"]) == ("llm", ["llm-primary"], 32768)
    assert qwen["providers"] == [{"supports_tools": True, "context_length": 32768}]
    assert listed["fast"]["root"] == "qwen"
    assert listed["llava"]["architecture"]["input_modalities"] == ["text", "image"]
    assert listed["cluster"]["architecture"]["input_modalities"] == ["text", "image"]
    assert listed["cluster"]["backends"] == ["llm-primary", "multimodal", "foreign"]
    missing = await gateway.http.get("/v1/models/nothing")
    assert missing.status_code == 404
    assert error_code(missing) == "model_not_found"
    assert "fast" not in missing.json()["error"]["message"]


NO_LENGTHS: tuple[object, ...] = (0, -1, "4096", 4096.5, True, [], 10**30)


@pytest.mark.parametrize(
    ("fields", "length"),
    [
        ({"max_model_len": 4096}, 4096),  # vLLM, SGLang
        ({"context_length": 4096}, 4096),  # OpenRouter, Together, this project
        ({"context_window": 4096}, 4096),  # Groq
        ({"max_context_length": 4096}, 4096),  # Mistral
        ({"meta": {"n_ctx": 4096, "n_ctx_train": 131072}}, 4096),  # llama.cpp
        ({"meta": {"n_ctx_train": 4096}}, 4096),  # llama.cpp, older
        ({"max_model_len": None, "meta": None}, None),
        ({}, None),
        *(({"max_model_len": bad}, None) for bad in NO_LENGTHS),
    ],
    ids=str,
)
@pytest.mark.parametrize("pinned", [False, True])
async def test_context_length_of_a_foreign_server(
    start_backend: StartBackend,
    start_gateway: StartGateway,
    fields: dict[str, object],
    length: int | None,
    pinned: bool,
) -> None:
    """As its /v1/models states it, in vLLM's field and in OpenRouter's; also where SERVICES names its models."""
    backend = await start_backend("foreign", model="org/other", ours=False, model_fields=json.dumps(fields))
    gateway = await start_gateway(services=f"foreign={backend.url}{';models=org/other' if pinned else ''}")
    for name in ("org/other", "cluster"):
        entry = (await gateway.http.get(f"/v1/models/{name}")).json()
        assert (entry["context_length"], entry["max_model_len"]) == (length, length)
        assert entry["providers"][0].get("context_length") == length


async def test_least_context_length_counts(start_backend: StartBackend, start_gateway: StartGateway) -> None:
    """Of the catalogue's and those of all replicas: any of them may get the request."""
    gateway = await start_gateway(
        await start_backend("own", model_fields='{"context_length": 8192}'),
        await start_backend("small", model="Qwen/Qwen", ours=False, model_fields='{"max_model_len": 4096}'),
        await start_backend("large", model="Tiny/Llama", ours=False, model_fields='{"max_model_len": 999999}'),
        await start_backend("embedding", model="minilm", kind="embedding", model_fields='{"context_length": 128}'),
    )
    listed = {entry["id"]: entry for entry in (await gateway.http.get("/v1/models")).json()["data"]}
    lengths = {name: entry["max_model_len"] for name, entry in listed.items()}
    assert lengths == {"cluster": 2048, "qwen": 4096, "tinyllama": 2048, "minilm": 128}


async def test_foreign_server_gets_its_own_model_name(start_backend: StartBackend, start_gateway: StartGateway) -> None:
    backend = await start_backend("vllm", model="Qwen/Qwen", ours=False)
    gateway = await start_gateway(backend)
    for name in ("qwen", "fast", "Qwen/Qwen", "cluster", None):
        answer = await gateway.chat(name, temperature=0.5)
        assert answer.status_code == 200
        assert answer.headers["x-served-model"] == "qwen"
        assert backend.requests[-1].json["model"] == "Qwen/Qwen"
        assert backend.requests[-1].json["temperature"] == 0.5


async def test_configured_kind_and_models_take_precedence(
    start_backend: StartBackend, start_gateway: StartGateway
) -> None:
    backend = await start_backend("tei", model="bge", ours=False)
    gateway = await start_gateway(services=f"tei={backend.url};kind=embedding;models=bge")
    assert (await gateway.http.post("/v1/embeddings", json={"input": "x"})).status_code == 200
    assert (await gateway.chat("bge")).status_code == 400


async def test_gpu_stats_report_unavailable_services(start_backend: StartBackend, start_gateway: StartGateway) -> None:
    alive = await start_backend("alive")
    dead = await start_backend("dead")
    other = await start_backend("other", model="tinyllama")
    gateway = await start_gateway(alive, dead, other)
    await dead.stop()
    body = (await gateway.http.get("/gpu-stats")).json()
    assert body["services"]["alive"]["available"] is True
    assert body["services"]["dead"]["available"] is False
    assert "dead" in body["services"]["dead"]["reason"]
    assert body["totals"]["gpus"] == 2
    assert body["totals"]["memory_total_mb"] == 2000
    assert body["totals"]["power_watts"] == 201.0


async def test_metrics(start_backend: StartBackend, start_gateway: StartGateway) -> None:
    gateway = await start_gateway(await start_backend())
    for _ in range(3):
        await gateway.chat("qwen")
    await gateway.chat("unknown")
    for _ in range(2):
        text = (await gateway.http.get("/metrics")).text
        assert 'http_requests_total{method="POST",route="/v1/chat/completions",status="200"} 3.0' in text
        assert 'http_requests_total{method="POST",route="/v1/chat/completions",status="404"} 1.0' in text
        assert 'http_request_seconds_count{route="/v1/chat/completions"} 4.0' in text
        assert 'gateway_backend_requests_total{backend="llm-primary"} 3.0' in text
        assert 'gateway_backend_outcomes_total{backend="llm-primary",outcome="http_200"} 3.0' in text
        assert 'gateway_backend_state{backend="llm-primary",state="healthy"} 1.0' in text
        assert 'gateway_backend_connections{backend="llm-primary",use="idle"} 1.0' in text
        assert "http_requests_in_flight 1.0" in text


async def test_home_dashboard_and_docs(start_gateway: StartGateway, start_backend: StartBackend) -> None:
    """The dashboard loads nothing from other hosts; /docs has every relayed route."""
    gateway = await start_gateway(await start_backend())
    assert "/v1/models" in (await gateway.http.get("/")).json()["try"]
    dashboard = await gateway.http.get("/dashboard")
    assert "default-src 'none'" in dashboard.headers["content-security-policy"]
    assert "http://" not in dashboard.text
    assert "https://" not in dashboard.text
    paths = (await gateway.http.get("/openapi.json")).json()["paths"]
    assert {"/v1/chat/completions", "/v1/audio/transcriptions", "/services/{name}/drain"} <= paths.keys()
    health = (await gateway.http.get("/health")).json()
    assert (health["status"], health["backends"]) == ("healthy", {"healthy": 1, "total": 1})


async def test_dead_service_is_unhealthy_after_one_probe(
    start_backend: StartBackend, start_gateway: StartGateway
) -> None:
    backend = await start_backend()
    gateway = await start_gateway(backend, poll_interval=0.2)
    await backend.stop()
    async with asyncio.timeout(HANG_S):
        await gateway.until(lambda: gateway.backend("llm-primary").state == "unhealthy")
    assert "no response" in (gateway.backend("llm-primary").last_error or "")


async def test_gpu_requests_do_not_starve_probes(start_backend: StartBackend, start_gateway: StartGateway) -> None:
    """Concurrent requests share one query to a service that does not respond."""
    backend = await start_backend(gpus="silent")
    gateway = await start_gateway(backend, poll_interval=0.1, poll_timeout=1.0)
    asking = [asyncio.create_task(gateway.http.get("/gpu-stats")) for _ in range(150)]
    polls = backend.polls
    while not all(one.done() for one in asking):
        await asyncio.sleep(0.01)
        assert gateway.backend("llm-primary").state == "healthy"
    assert backend.polls > polls
    assert backend.gpu_questions < 20
    assert {one.result().status_code for one in asking} == {200}
    backend.switches.gpus = "ok"
    assert (await gateway.http.get("/gpu-stats")).json()["services"]["llm-primary"]["available"]


async def test_every_probe_has_its_own_connection(start_backend: StartBackend, start_gateway: StartGateway) -> None:
    """On a kept one a probe could cross the backend's closing and look like a failure."""
    backend = await start_backend()
    gateway = await start_gateway(backend, poll_interval=0.1)
    await gateway.until(lambda: backend.polls >= 3)
    assert backend.opened >= backend.polls


async def test_head_wherever_get_works(start_backend: StartBackend, start_gateway: StartGateway) -> None:
    """`curl -I :8080/health`: GET's headers and no body (RFC 9110, 9.3.2), on a connection that is kept."""
    gateway = await start_gateway(await start_backend())
    paths = ("/", "/health", "/services", "/gpu-stats", "/v1/models", "/v1/models/qwen", "/metrics", "/docs")
    for path in (*paths, "/openapi.json", "/dashboard"):
        head, get = await gateway.http.head(path), await gateway.http.get(path)
        assert (head.status_code, head.content) == (200, b"")
        assert head.headers["content-type"] == get.headers["content-type"]
        assert int(head.headers["content-length"]) > 2
    for path, status in (("/v1/chat/completions", 405), ("/v1/models/unknown", 404), ("/services/x/drain", 405)):
        assert (await gateway.http.head(path)).status_code == status
    line = b"HEAD /health HTTP/1.1\r\nHost: localhost\r\n"
    answer = await gateway.send_raw(line + b"\r\n" + line + b"Connection: close\r\n\r\n")
    assert answer.count(b"HTTP/1.1 200 OK") == 2
    assert b"{" not in answer
