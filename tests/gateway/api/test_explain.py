"""POST /explain shows the routing decision and sends nothing."""

import time
from typing import Any

import pytest

from gateway.backends.traffic import Traffic
from tests.gateway.conftest import StartBackend, StartGateway
from tests.gateway.running import RunningGateway, error_code

MESSAGES = [{"role": "user", "content": "Hi"}]


async def explained(gateway: RunningGateway, body: Any, **query: str) -> Any:
    answer = await gateway.http.post("/explain", json=body, params=query)
    assert answer.status_code == 200, answer.text
    return answer.json()


def row(explanation: Any, backend: str) -> Any:
    return next(one for one in explanation["backends"] if one["backend"] == backend)


async def test_explains_choice_and_alternatives(start_backend: StartBackend, start_gateway: StartGateway) -> None:
    fast, slow = await start_backend("fast"), await start_backend("slow", ttft=0.1)
    embedding = await start_backend("embedding", model="minilm", kind="embedding")
    gateway = await start_gateway(fast, slow, embedding)
    now = time.monotonic()
    for name, seconds in (("fast", 0.05), ("slow", 0.4)):
        load = gateway.backend(name).load
        load.admit(Traffic(), 1.0, now, shows_first_token=True).first_byte(now + seconds, ok=True)
    explanation = await explained(gateway, {"model": "qwen", "messages": MESSAGES, "stream": True})
    assert explanation["chosen"] == "fast"
    assert explanation["served_model"] == "qwen"
    assert explanation["backends"][0]["backend"] == "fast"
    assert explanation["backends"][0]["why"] == explanation["why"] == "it is expected to respond soonest"
    assert "times as long" in row(explanation, "slow")["why"]
    assert row(explanation, "slow")["expected_s"] > 3 * row(explanation, "fast")["expected_s"]
    assert row(explanation, "embedding")["why"] == "it serves no model that fits the request"
    assert fast.requests == slow.requests == []
    assert all(backend.traffic.in_flight == 0 for backend in gateway.context.backends)


async def test_explanation_matches_the_routing(start_backend: StartBackend, start_gateway: StartGateway) -> None:
    backends = [await start_backend(f"b{number}") for number in range(3)]
    gateway = await start_gateway(*backends)
    for number in range(6):
        body = {"messages": [{"role": "user", "content": f"{number} " * 600}], "model": "qwen", "stream": True}
        explanation = await explained(gateway, body)
        answer = await gateway.http.post("/v1/chat/completions", json=body)
        assert answer.headers["x-served-by"] == explanation["chosen"]
        assert explanation["affinity"]["compared_kb"] == 1.0
        again = await explained(gateway, body)
        assert row(again, explanation["chosen"])["parts"]["unread_kb"] < 1


async def test_session_header_is_explained(start_backend: StartBackend, start_gateway: StartGateway) -> None:
    gateway = await start_gateway(*[await start_backend(f"b{number}") for number in range(4)])
    body = {"model": "qwen", "messages": MESSAGES}
    headers = {"x-session-id": "conversation 7"}
    explanation = (await gateway.http.post("/explain", json=body, headers=headers)).json()
    assert explanation["affinity"]["session"] == "conversation 7"
    assert "conversation" in explanation["why"]
    for _ in range(3):
        answer = await gateway.http.post("/v1/chat/completions", json=body, headers=headers)
        assert answer.headers["x-served-by"] == explanation["chosen"]


async def test_refusal_has_error_and_reasons(start_backend: StartBackend, start_gateway: StartGateway) -> None:
    primary = await start_backend(health="loading")
    draining = await start_backend("llm-secondary")
    gateway = await start_gateway(primary, draining)
    gateway.backend("llm-secondary").set_draining(True)
    body = {"model": "qwen", "messages": MESSAGES}
    explanation = await gateway.http.post("/explain", json=body)
    real = await gateway.http.post("/v1/chat/completions", json=body)
    assert explanation.status_code == real.status_code == 503
    assert explanation.json()["error"] == real.json()["error"]
    assert explanation.headers["retry-after"] == real.headers["retry-after"]
    assert row(explanation.json(), "llm-primary")["why"] == "it is loading: fetching"
    assert row(explanation.json(), "llm-secondary")["why"].startswith("it is draining")


@pytest.mark.parametrize(
    ("body", "query", "status", "code"),
    [
        ({"model": "gpt-4o"}, {}, 404, "model_not_found"),
        ({"model": "qwen"}, {"path": "/v1/embeddings"}, 400, "wrong_model_kind"),
        ({"model": "qwen"}, {"path": "/v1/nothing"}, 404, "not_found"),
        ([], {}, 400, None),
    ],
)
async def test_invalid_requests_get_their_error(
    start_backend: StartBackend, start_gateway: StartGateway, body: Any, query: Any, status: int, code: str | None
) -> None:
    gateway = await start_gateway(await start_backend())
    answer = await gateway.http.post("/explain", json=body, params=query)
    assert answer.status_code == status
    assert error_code(answer) == code


async def test_form_fields_as_json(start_backend: StartBackend, start_gateway: StartGateway) -> None:
    gateway = await start_gateway(await start_backend("transcription", model="whisper", kind="transcription"))
    explanation = await explained(gateway, {"model": "whisper"}, path="/v1/audio/transcriptions")
    assert explanation["chosen"] == "transcription"
    assert explanation["why"] == "it is the only candidate"
    assert explanation["backends"][0]["expected_s"] is None


async def test_requires_the_keys_and_limits_of_v1(start_backend: StartBackend, start_gateway: StartGateway) -> None:
    gateway = await start_gateway(await start_backend(), gateway_api_keys="sesame", max_body_mb=1)
    assert (await gateway.http.post("/explain", json={})).status_code == 401
    bearer = {"authorization": "Bearer sesame"}
    assert (await gateway.http.post("/explain", json={}, headers=bearer)).status_code == 200
    large = {"prompt": "x" * 2**20}
    assert (await gateway.http.post("/explain", json=large, headers=bearer)).status_code == 413


async def test_documented_with_an_example(start_backend: StartBackend, start_gateway: StartGateway) -> None:
    gateway = await start_gateway(await start_backend())
    operation = (await gateway.http.get("/openapi.json")).json()["paths"]["/explain"]["post"]
    example = operation["requestBody"]["content"]["application/json"]["schema"]["example"]
    assert (await gateway.http.post("/explain", json=example)).status_code == 200
    assert operation["parameters"][0]["name"] == "path"
