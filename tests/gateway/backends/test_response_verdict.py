"""What an error response says of its backend: the table, Retry-After, and the reason for taking a backend out."""

import json

import pytest

from gateway.backends.response_verdict import (
    MAX_PAUSE_S,
    PAUSE_S,
    ResponseVerdict,
    misconfiguration,
    pause_s,
    retry_after,
    verdict_of,
)

WALL = 1_700_000_000.0
# Bodies as servers send them: vLLM 0.26, SGLang, Ollama, llama.cpp, and this project.
VLLM_BUSY = (
    "The engine is currently busy and cannot accept new requests. Please try again later or on a different instance."
)
VLLM_BACKLOG = (
    "The engine has reached its prefill token backlog limit. Please try again later or on a different instance."
)
VLLM_DEAD = "EngineCore encountered an issue. See stack trace (above) for the root cause."
OLLAMA_BUSY = "server busy, please try again.  maximum pending requests exceeded"


def error(message: str, **fields: object) -> bytes:
    """An error body in OpenAI's envelope."""
    return json.dumps({"error": {"message": message, **fields}}).encode()


@pytest.mark.parametrize(
    ("status", "body", "verdict"),
    [
        *(
            (status, b"", "PASS_ON")
            for status in (400, 405, 406, 409, 410, 411, 413, 414, 415, 416, 418, 422, 431, 451)
        ),
        *((status, b"", "MISCONFIGURED") for status in (301, 302, 303, 307, 308, 401, 402, 407)),
        (403, b"", "FORBIDDEN"),
        *((status, b"", "FULL") for status in (425, 429, 529)),
        *((status, b"", "ELSEWHERE") for status in (408, 421, 502, 503, 504, 507, 520, 522, 524, 530)),
        *((status, b"", "FAULT") for status in (424, 500, 505, 508, 599)),
        (501, error("This server does not support chat", type="not_supported_error"), "LACKING"),
        (503, error(VLLM_BUSY, type="Service Unavailable", code=503), "FULL"),
        (503, error(VLLM_BACKLOG, type="Service Unavailable", code=503), "FULL"),
        (503, b'{"error": "The model is currently scaling. Please try again later."}', "FULL"),
        (503, error("The request queue is full.", type="SERVICE_UNAVAILABLE"), "FULL"),
        (503, json.dumps({"error": OLLAMA_BUSY}).encode(), "FULL"),
        (503, error("Loading model", type="unavailable_error", code=503), "FULL"),
        (503, error("no slot available", type="unavailable_error", code=503), "FULL"),
        (503, error("The database is gone."), "ELSEWHERE"),
        (404, error("The model `m` does not exist.", type="NotFoundError", code=404), "LACKING"),
        (404, error('model "m" not found, try pulling it first', type="api_error"), "LACKING"),
        (404, error("The requested entity is unknown.", code="model_not_found"), "LACKING"),
        (404, b'{"detail": "Not Found"}', "PASS_ON"),
        (404, error("File Not Found", type="not_found_error", code=404), "PASS_ON"),
        (404, error("Response with id 'r' not found.", type="NotFoundError"), "PASS_ON"),
        (404, error("Model 'm' is of kind embedding; this route needs kind reranker.", code="not_found"), "PASS_ON"),
        (500, error(VLLM_DEAD, type="InternalServerError", code=500), "ELSEWHERE"),
        (500, error("list index out of range", type="InternalServerError", code=500), "FAULT"),
    ],
)
def test_verdicts(status: int, body: bytes, verdict: str) -> None:
    """By status, and by the body where one status means both; each with the source that the module names."""
    assert verdict_of(status, body) is ResponseVerdict[verdict]


def test_retry_after_makes_a_503_one_of_a_full_backend() -> None:
    assert verdict_of(503, names_pause=True) is ResponseVerdict.FULL
    assert verdict_of(502, names_pause=True) is ResponseVerdict.ELSEWHERE


def test_only_the_start_of_a_body_is_searched() -> None:
    assert verdict_of(503, b" " * 1_000_000 + b"busy") is ResponseVerdict.ELSEWHERE


@pytest.mark.parametrize(
    ("lines", "value"),
    [
        (b"content-type: a\r\nretry-after: 7\r\n", "7"),
        (b"Retry-After:  Wed, 21 Oct 2015 07:28:00 GMT \r\nx: y\r\n", "Wed, 21 Oct 2015 07:28:00 GMT"),
        (b"x-retry-after: 7\r\n", None),
        (b"", None),
    ],
)
def test_retry_after_among_header_lines(lines: bytes, value: str | None) -> None:
    assert retry_after(lines) == value


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, PAUSE_S),
        ("7", 7.0),
        ("0", PAUSE_S),
        ("-3", PAUSE_S),
        ("1.5", 1.5),
        ("86400", MAX_PAUSE_S),
        ("nan", PAUSE_S),
        ("soon", PAUSE_S),
        ("Tue, 14 Nov 2023 22:13:50 GMT", 30.0),
        ("Tue, 14 Nov 2000 22:13:50 GMT", PAUSE_S),
        ("Tue, 14 Nov 99999 22:13:50 GMT", PAUSE_S),
    ],
)
def test_pause(value: str | None, seconds: float) -> None:
    """Seconds or a date (RFC 9110, 10.2.3), within bounds: no backend is out for a day."""
    assert pause_s(value, WALL) == seconds


@pytest.mark.parametrize(
    ("status", "has_key", "says"),
    [
        (401, True, "correct b in BACKEND_KEYS"),
        (401, False, "set b=KEY in BACKEND_KEYS"),
        (403, True, "check b in BACKEND_KEYS of the gateway, or its ALLOWED_HOSTS"),
        (307, True, "correct the URL of b in SERVICES"),
    ],
)
def test_misconfiguration_names_the_setting(status: int, has_key: bool, says: str) -> None:
    reason = misconfiguration("b", status, has_key=has_key)
    assert says in reason
    assert f"status {status}" in reason
