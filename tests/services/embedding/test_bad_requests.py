"""What a client may get wrong: each a 4xx in the envelope that says what to change, and nobody else is disturbed."""

import threading
from typing import Any

import httpx2
import pytest

from tests.services.embedding.conftest import Start
from tests.services.embedding.fake_engine import FakeEngine

LONG = " ".join(["word"] * 50)

BAD: list[tuple[str, str, Any, int, str]] = [
    ("no input", "embeddings", {}, 400, "input"),
    ("null", "embeddings", {"input": None}, 400, "input must be a string"),
    ("number", "embeddings", {"input": 7}, 400, "input must be a string"),
    ("object", "embeddings", {"input": {"text": "a"}}, 400, "input must be a string"),
    ("empty string", "embeddings", {"input": ""}, 400, "input[0] is an empty string"),
    ("empty list", "embeddings", {"input": []}, 400, "input is empty"),
    ("empty string in a list", "embeddings", {"input": ["a", ""]}, 400, "input[1] is an empty string"),
    ("mixture", "embeddings", {"input": ["a", 1]}, 400, "not a mixture"),
    ("list of null", "embeddings", {"input": [None]}, 400, "not a mixture"),
    ("floats", "embeddings", {"input": [1.5, 2]}, 400, "not a mixture"),
    ("booleans", "embeddings", {"input": [True, False]}, 400, "not a mixture"),
    ("empty token list", "embeddings", {"input": [[]]}, 400, "input[0] has no tokens"),
    ("negative token", "embeddings", {"input": [1, -2]}, 400, "token ids run from 0 to 999"),
    ("foreign token", "embeddings", {"input": [[1, 99999]]}, 400, "token ids run from 0 to 999"),
    ("huge token", "embeddings", {"input": [10**30]}, 400, "token ids run from 0 to 999"),
    ("text in a token list", "embeddings", {"input": [[1, "a"]]}, 400, "token ids run from 0 to 999"),
    ("too many texts", "embeddings", {"input": ["a"] * 10_000}, 400, "at most 20 fit"),
    ("too long", "embeddings", {"input": LONG}, 400, "has 52 tokens; this model takes at most 16"),
    ("too many tokens", "embeddings", {"input": [[1] * 17]}, 400, "has 17 tokens"),
    ("too long by far", "embeddings", {"input": "a" * 900_000}, 400, "900000 characters"),
    ("format", "embeddings", {"input": "a", "encoding_format": "hex"}, 400, "encoding_format"),
    ("format of a wrong type", "embeddings", {"input": "a", "encoding_format": 1}, 400, "encoding_format"),
    ("negative dimensions", "embeddings", {"input": "a", "dimensions": -1}, 400, "dimensions"),
    ("no dimensions", "embeddings", {"input": "a", "dimensions": 0}, 400, "dimensions"),
    ("too many dimensions", "embeddings", {"input": "a", "dimensions": 9}, 400, "this model has 8"),
    ("dimensions as text", "embeddings", {"input": "a", "dimensions": "4"}, 400, "dimensions"),
    ("half a dimension", "embeddings", {"input": "a", "dimensions": 1.5}, 400, "dimensions"),
    ("unknown model", "embeddings", {"input": "a", "model": "gpt-4"}, 404, "'gpt-4' does not exist"),
    ("model of a wrong type", "embeddings", {"input": "a", "model": ["tiny"]}, 400, "model"),
    ("unknown prompt", "embeddings", {"input": "a", "prompt_name": "x"}, 400, "prompts of this model: query"),
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
    ("too many documents", "rerank", {"query": "a", "documents": ["b"] * 21}, 400, "at most 20 fit"),
    ("no top", "rerank", {"query": "a", "documents": ["b"], "top_n": 0}, 400, "top_n"),
    ("uneven lists", "score", {"text_1": ["a", "b"], "text_2": ["c"] * 3}, 400, "as many as text_2"),
    ("no text", "score", {"text_1": "a", "text_2": [None]}, 400, "text_2[0] must be a string"),
    ("too long pair", "score", {"text_1": LONG, "text_2": "b"}, 400, "at most 16 tokens"),
    ("embeddings of a reranker", "embeddings", {"input": "a"}, 404, "kind embedding"),
]


def check(answer: httpx2.Response, status: int, says: str) -> None:
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert says in error["message"]


@pytest.fixture(scope="module")
def started(module_start: Start) -> Any:
    engine = FakeEngine()
    with module_start(engine, max_inputs=20) as client:
        yield engine, client


@pytest.mark.parametrize(("case", "route", "body", "status", "says"), BAD, ids=[case[0] for case in BAD])
def test_bad_body(started: Any, case: str, route: str, body: Any, status: int, says: str) -> None:
    """Wrong bodies are told apart and named."""
    check(started[1].post(f"/v1/{route}", json=body), status, says)


@pytest.mark.parametrize(("body", "says"), RAW)
def test_bad_bytes(started: Any, body: bytes, says: str) -> None:
    """So are bodies that are no JSON, or JSON that Python's own parser would take."""
    check(started[1].post("/v1/embeddings", content=body), 400, says)


@pytest.mark.parametrize(("case", "route", "body", "status", "says"), BAD_PAIRS, ids=[case[0] for case in BAD_PAIRS])
def test_bad_pairs(rerankers: httpx2.Client, case: str, route: str, body: Any, status: int, says: str) -> None:
    """Rerank and score say what is wrong with their pairs."""
    check(rerankers.post(f"/v1/{route}", json=body), status, says)


@pytest.fixture(scope="module")
def rerankers(module_start: Start) -> Any:
    with module_start(FakeEngine(dimensions=1), kind="reranker", max_inputs=20) as client:
        yield client


def test_too_large(start: Start, engine: FakeEngine) -> None:
    """A body over MAX_BODY_MB is a 413, whether it announces its size or not."""
    with start(engine, max_body_mb=1) as client:
        large = b'{"input": "' + b"a" * 1_100_000 + b'"}'
        check(client.post("/v1/embeddings", content=large), 413, "raise MAX_BODY_MB")
        check(client.post("/v1/embeddings", content=iter([large[:600_000], large[600_000:]])), 413, "MAX_BODY_MB")


def test_a_good_request_in_flight_is_not_disturbed(started: Any) -> None:
    """While every bad request is refused, one that computes goes on and succeeds."""
    engine, client = started
    engine.hold()
    good: list[httpx2.Response] = []
    thread = threading.Thread(target=lambda: good.append(client.post("/v1/embeddings", json={"input": "good"})))
    thread.start()
    try:
        engine.wait_until_computing()
        # All but those that wait for their turn to be tokenized.
        for _case, route, body, status, says in (case for case in BAD if "tokens;" not in case[4]):
            if "has 17 tokens" not in says:
                check(client.post(f"/v1/{route}", json=body), status, says)
    finally:
        engine.gate.set()
        thread.join(20)
    assert good[0].status_code == 200
