"""Invalid requests: each is a 4xx in the envelope with a clear message, and other requests are unaffected."""

import threading
from typing import Any

import httpx2
import pytest

from tests.services.embedding.fake_engine import FakeEngine
from tests.services.fake_service import Start, check_error

LONG = " ".join(["word"] * 50)

BAD: list[tuple[str, str, Any, int, str]] = [
    ("no input", "embeddings", {}, 400, "input"),
    ("null", "embeddings", {"input": None}, 400, "input: Field required"),
    ("number", "embeddings", {"input": 7}, 400, "input must be a string"),
    ("object", "embeddings", {"input": {"text": "a"}}, 400, "input must be a string"),
    ("empty string", "embeddings", {"input": ""}, 400, "input[0] is an empty string"),
    ("empty list", "embeddings", {"input": []}, 400, "input is empty"),
    ("empty string in a list", "embeddings", {"input": ["a", ""]}, 400, "input[1] is an empty string"),
    ("mixed types", "embeddings", {"input": ["a", 1]}, 400, "input must be a string, a list"),
    ("list of null", "embeddings", {"input": [None]}, 400, "input must be a string, a list"),
    ("floats", "embeddings", {"input": [1.5, 2]}, 400, "input must be a string, a list"),
    ("booleans", "embeddings", {"input": [True, False]}, 400, "input must be a string, a list"),
    ("empty token list", "embeddings", {"input": [[]]}, 400, "input[0] is an empty list of tokens"),
    ("negative token", "embeddings", {"input": [1, -2, 2]}, 400, "token ids of this model are 0 to 999"),
    ("token out of range", "embeddings", {"input": [[1, 99999, 2]]}, 400, "token ids of this model are 0 to 999"),
    ("huge token", "embeddings", {"input": [1, 10**30, 2]}, 400, "token ids of this model are 0 to 999"),
    ("text in a token list", "embeddings", {"input": [[1, "a", 2]]}, 400, "token ids of this model are 0 to 999"),
    ("ids of another tokenizer", "embeddings", {"input": [[15339, 1917]]}, 400, "check_embedding_ctx_length=False"),
    ("too many texts", "embeddings", {"input": ["a"] * 10_000}, 400, "the limit is 20"),
    ("too long", "embeddings", {"input": LONG}, 400, "has 52 tokens; this model accepts at most 16"),
    ("too many tokens", "embeddings", {"input": [[1] * 16 + [2]]}, 400, "has 17 tokens"),
    ("far too long", "embeddings", {"input": "a" * 900_000}, 400, "900000 characters"),
    ("format", "embeddings", {"input": "a", "encoding_format": "hex"}, 400, "encoding_format"),
    ("format of a wrong type", "embeddings", {"input": "a", "encoding_format": 1}, 400, "encoding_format"),
    ("negative dimensions", "embeddings", {"input": "a", "dimensions": -1}, 400, "dimensions"),
    ("zero dimensions", "embeddings", {"input": "a", "dimensions": 0}, 400, "dimensions"),
    ("too many dimensions", "embeddings", {"input": "a", "dimensions": 9}, 400, "this model has 8"),
    ("dimensions as text", "embeddings", {"input": "a", "dimensions": "4"}, 400, "dimensions"),
    ("fractional dimensions", "embeddings", {"input": "a", "dimensions": 1.5}, 400, "dimensions"),
    ("unknown model", "embeddings", {"input": "a", "model": "gpt-4"}, 404, "'gpt-4' does not exist"),
    ("model of a wrong type", "embeddings", {"input": "a", "model": ["tiny"]}, 400, "model"),
    ("unknown prompt", "embeddings", {"input": "a", "prompt_name": "x"}, 400, "Prompts of this model: query"),
    ("truncate as text", "embeddings", {"input": "a", "truncate": "yes"}, 400, "truncate"),
    ("truncate to nothing", "embeddings", {"input": "a", "truncate_prompt_tokens": 0}, 400, "1 to 16"),
    ("truncate to too much", "embeddings", {"input": "a", "truncate_prompt_tokens": 99}, 400, "1 to 16"),
    ("a list", "embeddings", ["a"], 400, "body"),
    ("rerank without a reranker", "rerank", {"query": "a", "documents": ["b"]}, 404, "kind reranker"),
    ("score without a reranker", "score", {"text_1": "a", "text_2": "b"}, 404, "kind reranker"),
]

RAW = [
    (b"", "not JSON"),
    (b"{", "not JSON"),
    (b'{"input": "a",}', "not JSON"),
    (b'{"input": NaN}', "input must be a string"),
    (b'{"input": "\\ud800"}', "not JSON"),
    (b'{"input": "\xff"}', "not JSON"),
    (b'{"input": "a", "dimensions": Infinity}', "dimensions"),
    (b"[" * 100_000, "not JSON"),
    (b"\x00\x01\x02", "not JSON"),
]

BAD_PAIRS: list[tuple[str, str, Any, int, str]] = [
    ("no query", "rerank", {"documents": ["a"]}, 400, "query"),
    ("empty query", "rerank", {"query": "", "documents": ["a"]}, 400, "query is an empty string"),
    ("no documents", "rerank", {"query": "a", "documents": []}, 400, "documents is empty"),
    ("documents as text", "rerank", {"query": "a", "documents": "b"}, 400, "documents"),
    ("object without text", "rerank", {"query": "a", "documents": [{"t": "b"}]}, 400, "documents[0] must be a string"),
    (
        "object of a wrong type",
        "rerank",
        {"query": "a", "documents": [{"text": 7}]},
        400,
        "documents[0] must be a string",
    ),
    (
        "object with no text",
        "rerank",
        {"query": "a", "documents": [{"text": ""}]},
        400,
        "documents[0] is an empty string",
    ),
    ("too many documents", "rerank", {"query": "a", "documents": ["b"] * 21}, 400, "the limit is 20"),
    ("top_n of zero", "rerank", {"query": "a", "documents": ["b"], "top_n": 0}, 400, "top_n"),
    ("top_k of zero", "rerank", {"query": "a", "documents": ["b"], "top_k": 0}, 400, "top_k"),
    ("top_n and top_k", "rerank", {"query": "a", "documents": ["b"], "top_n": 1, "top_k": 2}, 400, "send one of them"),
    ("no tokens", "rerank", {"query": "a", "documents": ["b"], "max_tokens_per_doc": 0}, 400, "max_tokens_per_doc"),
    ("no fields", "rerank", {"query": "a", "documents": [{"text": "b"}], "rank_fields": []}, 400, "rank_fields"),
    (
        "no such field",
        "rerank",
        {"query": "a", "documents": [{"text": "b"}], "rank_fields": ["c"]},
        400,
        "documents[0]",
    ),
    ("too long document", "rerank", {"query": "a", "documents": [LONG]}, 400, "at most 16 tokens"),
    ("uneven lists", "score", {"text_1": ["a", "b"], "text_2": ["c"] * 3}, 400, "as many as text_2"),
    ("no text", "score", {"text_1": "a", "text_2": [None]}, 400, "text_2[0] must be a string"),
    ("too long pair", "score", {"text_1": LONG, "text_2": "b"}, 400, "at most 16 tokens"),
    ("embeddings of a reranker", "embeddings", {"input": "a"}, 404, "kind embedding"),
]


@pytest.fixture(scope="module")
def started(module_start: Start) -> Any:
    engine = FakeEngine()
    with module_start(engine, max_inputs=20) as client:
        yield engine, client


@pytest.mark.parametrize(("case", "route", "body", "status", "message"), BAD, ids=[case[0] for case in BAD])
def test_invalid_bodies_are_rejected(started: Any, case: str, route: str, body: Any, status: int, message: str) -> None:
    check_error(started[1].post(f"/v1/{route}", json=body), status, message)


@pytest.mark.parametrize(("body", "message"), RAW)
def test_bodies_that_are_not_json_are_rejected(started: Any, body: bytes, message: str) -> None:
    """Also JSON that Python's own parser would accept."""
    check_error(started[1].post("/v1/embeddings", content=body), 400, message)


@pytest.mark.parametrize(("case", "route", "body", "status", "message"), BAD_PAIRS, ids=[case[0] for case in BAD_PAIRS])
def test_invalid_pairs_are_rejected(
    rerankers: httpx2.Client, case: str, route: str, body: Any, status: int, message: str
) -> None:
    check_error(rerankers.post(f"/v1/{route}", json=body), status, message)


@pytest.fixture(scope="module")
def rerankers(module_start: Start) -> Any:
    with module_start(FakeEngine(dimensions=1), kind="reranker", max_inputs=20) as client:
        yield client


def test_body_over_max_body_mb_is_a_413(start: Start, engine: FakeEngine) -> None:
    """With and without Content-Length."""
    with start(engine, max_body_mb=1) as client:
        large = b'{"input": "' + b"a" * 1_100_000 + b'"}'
        check_error(client.post("/v1/embeddings", content=large), 413, "raise MAX_BODY_MB")
        check_error(client.post("/v1/embeddings", content=iter([large[:600_000], large[600_000:]])), 413, "MAX_BODY_MB")


def test_valid_request_in_flight_is_unaffected(started: Any) -> None:
    engine, client = started
    engine.gate.close()
    good: list[httpx2.Response] = []
    thread = threading.Thread(target=lambda: good.append(client.post("/v1/embeddings", json={"input": "good"})))
    thread.start()
    try:
        engine.gate.wait_until_reached()
        # Except those that are rejected only when they are tokenized.
        for _case, route, body, status, message in (case for case in BAD if "tokens;" not in case[4]):
            if "has 17 tokens" not in message:
                check_error(client.post(f"/v1/{route}", json=body), status, message)
    finally:
        engine.gate.open()
        thread.join(20)
    assert good[0].status_code == 200
