"""The service over HTTP with a fake engine: routes, names, loading, disconnects, metrics, keys."""

import contextlib
import json
import socket
import threading
from typing import Any

import httpx2
import numpy as np
import pytest
from openai import OpenAI
from pydantic import BaseModel

from kit.config.settings import SettingsError, load_settings
from services.embedding.input_validation import EmbeddingBody, RerankBody, ScoreBody
from services.embedding.settings import EmbeddingSettings
from tests.services.embedding.fake_engine import FakeEngine
from tests.services.fake_service import WAIT_S, Start, wait_for_metric


@pytest.mark.parametrize("model", [None, "tiny", "small", "org/tiny-model"])
def test_every_name_of_the_model_is_accepted(client: httpx2.Client, model: str | None) -> None:
    """Catalogue name, alias, repository, or none; the response has the catalogue name."""
    answer = client.post("/v1/embeddings", json={"input": "a"} | ({"model": model} if model else {}))
    assert answer.status_code == 200
    assert answer.json()["model"] == "tiny"


def test_models_lists_the_model_once(client: httpx2.Client) -> None:
    """With what the engine accepts as its context length."""
    (entry,) = client.get("/v1/models").json()["data"]
    assert (entry["id"], entry["max_model_len"]) == ("tiny", FakeEngine.max_tokens)


def test_openai_client_parses_both_encodings(client: httpx2.Client) -> None:
    with OpenAI(base_url=f"{client.base_url}/v1", api_key="none", max_retries=0) as openai:
        coded = openai.embeddings.create(model="tiny", input=["one two", "three"])
        plain = openai.embeddings.create(model="tiny", input=["one two", "three"], encoding_format="float")
    assert coded.usage.prompt_tokens == 7
    assert [item.index for item in coded.data] == [0, 1]
    for one, other in zip(coded.data, plain.data, strict=True):
        assert np.array_equal(np.array(one.embedding, np.float32), np.array(other.embedding, np.float32))


def test_token_ids_give_the_embedding_of_their_text(client: httpx2.Client, engine: FakeEngine) -> None:
    [tokens] = engine.tokenize(["one two"], prompt=None, truncate_to=None)
    by_text = client.post("/v1/embeddings", json={"input": "one two"}).json()
    by_ids = client.post("/v1/embeddings", json={"input": list(tokens.ids)}).json()
    assert by_text == by_ids


def test_rerank_and_score_agree(start: Start) -> None:
    with start(FakeEngine(dimensions=1), kind="reranker") as client:
        ranked = client.post("/v1/rerank", json={"query": "q", "documents": ["a", {"text": "b"}, "c"]}).json()
        scored = client.post("/v1/score", json={"text_1": "q", "text_2": ["a", "b", "c"]}).json()
    scores = {item["index"]: item["relevance_score"] for item in ranked["results"]}
    assert [scores[index] for index in range(3)] == [item["score"] for item in scored["data"]]
    assert [item["relevance_score"] for item in ranked["results"]] == sorted(scores.values(), reverse=True)
    assert {item["document"]["text"] for item in ranked["results"]} == {"a", "b", "c"}
    assert ranked["usage"] == scored["usage"] == {"prompt_tokens": 12, "total_tokens": 12}


@pytest.mark.parametrize(
    ("kind", "path", "body", "schema"),
    [
        ("embedding", "/v1/embeddings", {"input": "a b"}, EmbeddingBody),
        ("reranker", "/rerank", {"query": "q", "documents": ["a", "b"]}, RerankBody),
        ("reranker", "/v1/rerank", {"query": "q", "documents": ["a", "b"]}, RerankBody),
        ("reranker", "/v2/rerank", {"query": "q", "documents": ["a", "b"]}, RerankBody),
        ("reranker", "/v1/score", {"text_1": "a", "text_2": "b"}, ScoreBody),
    ],
)
def test_null_in_an_optional_field_is_absent(
    start: Start, kind: str, path: str, body: dict[str, Any], schema: type[BaseModel]
) -> None:
    """Every optional field, one by one and all together; LiteLLM and Dify send nulls by default."""
    optional = [name for name, field in schema.model_fields.items() if not field.is_required()]
    with start(FakeEngine(dimensions=1 if kind == "reranker" else 8), kind=kind) as client:
        without = client.post(path, json=body).json()
        for names in (*([name] for name in optional), optional):
            answer = client.post(path, json=body | dict.fromkeys(names))
            assert answer.status_code == 200, (names, answer.text)
            assert without == answer.json() | {name: without[name] for name in ("id", "created") if name in without}
    assert len(optional) >= 4


def test_auto_truncate_truncates_texts_by_default(start: Start) -> None:
    """TEI's auto_truncate: for clients that cannot send `truncate`, which decides where it is sent."""
    long = "word " * 2000
    bodies: dict[str, tuple[str, dict[str, Any]]] = {
        "/v1/embeddings": ("embedding", {"input": [long, "short"]}),
        "/v1/rerank": ("reranker", {"query": "q", "documents": [long, "short"]}),
        "/v1/score": ("reranker", {"text_1": "q", "text_2": [long, "short"]}),
    }
    for path, (kind, body) in bodies.items():
        for auto_truncate, default in ((False, 400), (True, 200)):
            engine = FakeEngine(dimensions=1)
            with start(engine, kind=kind, auto_truncate=auto_truncate) as client:
                assert client.post(path, json=body).status_code == default
                assert client.post(path, json=body | {"truncate": True}).status_code == 200
                refused = client.post(path, json=body | {"truncate": False})
                assert refused.json()["error"]["code"] == "context_length_exceeded"


@pytest.mark.parametrize("path", ["/rerank", "/v1/rerank", "/v2/rerank"])
def test_top_k_is_top_n(start: Start, path: str) -> None:
    """Voyage's and Together's name for it; both are accepted if they agree."""
    with start(FakeEngine(dimensions=1), kind="reranker") as client:
        body = {"query": "q", "documents": ["a", "b", "c"]}
        assert len(client.post(path, json=body).json()["results"]) == 3
        for count in ({"top_n": 2}, {"top_k": 2}, {"top_n": 2, "top_k": 2}, {"top_n": None, "top_k": 2}):
            assert len(client.post(path, json=body | count).json()["results"]) == 2


def test_document_comes_back_without_what_json_does_not_have(start: Start) -> None:
    """Python's json writes NaN, as of pandas' empty cells."""
    with start(FakeEngine(dimensions=1), kind="reranker") as client:
        body = b'{"query": "q", "documents": [{"text": "a", "price": NaN, "limits": [-Infinity, 1.5]}]}'
        answer = client.post("/v1/rerank", content=body).json()
    assert answer["results"][0]["document"] == {"text": "a", "price": None, "limits": [None, 1.5]}


@pytest.mark.parametrize("path", ["/rerank", "/v1/rerank", "/v2/rerank"])
def test_rerank_needs_a_key_under_every_path(start: Start, path: str) -> None:
    with start(FakeEngine(dimensions=1), kind="reranker", api_keys="secret") as client:
        body = {"query": "q", "documents": ["a"]}
        assert client.post(path, json=body).status_code == 401
        for headers in ({"authorization": "Bearer secret"}, {"x-api-key": "secret"}):
            assert client.post(path, json=body, headers=headers).status_code == 200


def test_service_responds_503_with_progress_while_loading(start: Start, engine: FakeEngine) -> None:
    go, reported = threading.Event(), threading.Event()

    def slowly(*arguments: Any) -> FakeEngine:
        arguments[-1](0.5, "half of it")
        reported.set()
        assert go.wait(WAIT_S)
        return engine

    with start(engine, open_engine=slowly, ready=False) as client:
        assert reported.wait(WAIT_S)
        health = client.get("/health")
        assert (health.status_code, health.json()["status"]) == (503, "loading")
        assert health.json()["progress"] == 0.75
        refused = client.post("/v1/embeddings", json={"input": "a"})
        assert refused.status_code == 503
        assert refused.json()["error"]["code"] == "model_loading"
        assert "half of it" in refused.json()["error"]["message"]
        assert int(refused.headers["retry-after"]) >= 1
        go.set()
        while client.get("/health").status_code != 200:
            pass
        assert client.get("/health").json()["engine"] == "fake"
    assert engine.closed


def test_failed_load_is_reported_by_health(start: Start, engine: FakeEngine) -> None:

    def fail(*_: Any) -> FakeEngine:
        raise RuntimeError("the weights are of another model")

    with start(engine, open_engine=fail, ready=False) as client:
        while (health := client.get("/health").json())["status"] == "loading":
            pass
        assert health["status"] == "failed"
        assert "another model" in health["detail"]
        assert "another model" in client.post("/v1/embeddings", json={"input": "a"}).json()["error"]["message"]


def test_full_queue_is_a_429_with_retry_after(start: Start, engine: FakeEngine) -> None:
    """/health stays 200, and later requests succeed."""
    with start(engine, max_queue=2, max_inputs=2) as client:
        engine.gate.close()
        thread = threading.Thread(target=client.post, args=("/v1/embeddings",), kwargs={"json": {"input": ["a", "b"]}})
        thread.start()
        engine.gate.wait_until_reached()
        answer = client.post("/v1/embeddings", json={"input": "c"})
        assert answer.status_code == 429
        assert answer.json()["error"]["code"] == "busy"
        assert int(answer.headers["retry-after"]) >= 1
        assert client.get("/health").status_code == 200
        engine.gate.open()
        thread.join(WAIT_S)
        assert client.post("/v1/embeddings", json={"input": "c"}).status_code == 200


def test_texts_of_disconnected_clients_are_dropped(client: httpx2.Client, engine: FakeEngine) -> None:
    engine.gate.close()
    thread = threading.Thread(target=client.post, args=("/v1/embeddings",), kwargs={"json": {"input": "first"}})
    thread.start()
    engine.gate.wait_until_reached()
    body = json.dumps({"input": ["left alone"] * 5}).encode()
    with contextlib.closing(socket.create_connection((client.base_url.host, client.base_url.port))) as leaving:
        head = f"POST /v1/embeddings HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
        leaving.sendall(head.encode() + body)
        wait_for_metric(client, "embedding_texts_in_flight", 6)
    wait_for_metric(client, "embedding_texts_in_flight", 1)
    engine.gate.open()
    thread.join(WAIT_S)
    assert client.post("/v1/embeddings", json={"input": "last one"}).status_code == 200
    assert engine.batches == [[3], [4]]
    assert 'status="499"' in client.get("/metrics").text


def test_batches_are_counted(client: httpx2.Client) -> None:
    client.post("/v1/embeddings", json={"input": ["a b", "c"]})
    text = client.get("/metrics").text
    assert "embedding_batch_texts_sum 2.0" in text
    assert "embedding_computed_tokens_total 8.0" in text
    assert "embedding_batch_seconds_count 1.0" in text
    assert "embedding_texts_in_flight 0.0" in text


def test_engine_failure_is_a_500_without_internals(client: httpx2.Client, engine: FakeEngine) -> None:
    """The engine's message stays in the log; the next request succeeds."""
    engine.fails = True
    answer = client.post("/v1/embeddings", json={"input": "a"})
    assert answer.status_code == 500
    assert "out of memory" not in answer.text
    engine.fails = False
    assert client.post("/v1/embeddings", json={"input": "a"}).status_code == 200


def test_permanently_failed_engine_ends_the_service(start: Start, engine: FakeEngine) -> None:
    """/health reports the reason, and the process is asked to stop."""
    ended = threading.Event()
    with start(engine, end=ended.set) as client:
        engine.fails = True
        for _ in range(3):
            client.post("/v1/embeddings", json={"input": "a"})
        assert ended.wait(WAIT_S)
        health = client.get("/health")
        assert (health.status_code, health.json()["status"]) == (503, "failed")
        assert "out of memory" in health.json()["detail"]
        assert client.post("/v1/embeddings", json={"input": "a"}).status_code == 503


def test_api_keys_guard_v1_only(start: Start, engine: FakeEngine) -> None:
    with start(engine, api_keys="secret") as client:
        assert client.post("/v1/embeddings", json={"input": "a"}).status_code == 401
        with_key = {"authorization": "Bearer secret"}
        assert client.post("/v1/embeddings", json={"input": "a"}, headers=with_key).status_code == 200


def test_model_of_another_kind_fails_at_start(start: Start, engine: FakeEngine) -> None:
    with pytest.raises(SettingsError, match="this service supports embedding and reranker"), start(engine, kind="llm"):
        pass


def test_max_queue_below_max_inputs_is_rejected() -> None:
    with pytest.raises(SettingsError, match="a full request would always be rejected"):
        load_settings(EmbeddingSettings, max_queue=10, max_inputs=20)


def test_openapi_describes_the_bodies(client: httpx2.Client) -> None:
    schema = client.get("/openapi.json").json()["paths"]["/v1/embeddings"]["post"]["requestBody"]
    assert "input" in schema["content"]["application/json"]["schema"]["properties"]
