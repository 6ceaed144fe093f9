"""The transformers engine over HTTP: disconnects, responsiveness, invalid requests, tokens, metrics."""

import concurrent.futures
import contextlib
import json
import threading
from typing import Any

import httpx2
import pytest

from gateway.health.engine_metrics import EngineReport, read_metrics
from tests.services.llm.bad_requests import BAD_REQUESTS, CHAT, COMPLETION, RESPONSE, chat, encoded, wrong_envelope

pytestmark = pytest.mark.engines

JAPAN = [{"role": "user", "content": "What is the capital of Japan?"}]
# Fills the context: only a disconnect ends it in time.
LONG: dict[str, Any] = {"messages": JAPAN, "ignore_eos": True, "max_tokens": 8000, "temperature": 1}
GIVE_UP_S = 60


def in_flight(raw: httpx2.Client) -> int:
    """Return the requests in flight, including the one to /metrics."""
    for line in raw.get("/metrics").text.splitlines():
        if line.startswith("http_requests_in_flight "):
            return int(float(line.split()[1]))
    raise AssertionError("no such metric")


def wait_until_idle(raw: httpx2.Client) -> None:
    pause = threading.Event()
    for _ in range(GIVE_UP_S * 20):
        if in_flight(raw) <= 1:
            return
        pause.wait(0.05)
    raise AssertionError("the generation continues after the disconnect")


def test_disconnect_from_a_stream_cancels_the_generation(raw: httpx2.Client) -> None:
    with raw.stream("POST", "/v1/chat/completions", json={**LONG, "stream": True}) as answer:
        lines = answer.iter_lines()
        assert next(lines).startswith("data: ")
    wait_until_idle(raw)


def test_disconnect_before_the_response_cancels_the_generation(raw: httpx2.Client) -> None:
    with pytest.raises(httpx2.ReadTimeout):
        raw.post("/v1/chat/completions", json=LONG, timeout=1.0)
    wait_until_idle(raw)


def test_disconnects_free_their_places(raw: httpx2.Client) -> None:
    """After ten disconnects, eight requests (the limit) succeed."""

    def leave(_: int) -> None:
        with pytest.raises(httpx2.ReadTimeout):
            raw.post("/v1/chat/completions", json=LONG, timeout=0.5)
        wait_until_idle(raw)

    for number in range(10):
        leave(number)

    def ask(_: int) -> int:
        return raw.post("/v1/chat/completions", json={"messages": JAPAN, "max_tokens": 2}).status_code

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert list(pool.map(ask, range(8))) == [200] * 8


def test_health_responds_during_generation(raw: httpx2.Client) -> None:
    with raw.stream("POST", "/v1/chat/completions", json={**LONG, "stream": True}) as answer:
        lines = answer.iter_lines()
        for _ in range(20):
            assert next(lines) is not None
            # The contract allows one second.
            assert raw.get("/health", timeout=1.0).status_code == 200
    wait_until_idle(raw)


def test_a_stream_ends_with_done(raw: httpx2.Client) -> None:
    body = {"messages": JAPAN, "stream": True, "max_tokens": 3}
    answer = raw.post("/v1/chat/completions", json=body)
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.text.endswith("data: [DONE]\n\n")
    for event in answer.text.split("\n\n")[:-2]:
        json.loads(event.removeprefix("data: "))


# Valid for vLLM only.
BAD_HERE: list[tuple[str, str, Any]] = [
    ("a template of the client's", CHAT, chat(chat_template_kwargs={"chat_template": "{{ 1 }}"})),
    ("a stream that is a number", CHAT, chat(stream=1)),
    ("log probabilities", COMPLETION, {"prompt": "hi", "logprobs": 2}),
    ("an empty prompt", COMPLETION, {"prompt": ""}),
    ("an empty input", RESPONSE, {"input": []}),
    ("a prompt that is a number", "/tokenize", {"prompt": 3}),
    ("a token beyond the vocabulary", "/detokenize", {"tokens": [10**9]}),
    ("a token that is true", "/detokenize", {"tokens": [True]}),
]


@pytest.mark.parametrize("stream", [False, True])
def test_invalid_requests_get_an_envelope_and_affect_no_others(raw: httpx2.Client, stream: bool) -> None:
    with raw.stream("POST", CHAT, json={**LONG, "stream": True, "max_tokens": 60}) as good:
        lines = good.iter_lines()
        next(lines)
        for name, path, body in BAD_REQUESTS + BAD_HERE:
            if stream and isinstance(body, dict) and path.startswith("/v1/") and "stream" not in name:
                body = {**body, "stream": True}
            answer = raw.post(path, content=encoded(body))
            assert wrong_envelope(answer.status_code, answer.json()) is None, (path, name)
        assert [line for line in lines if line][-1] == "data: [DONE]"


def test_unknown_routes_and_methods_get_an_envelope(raw: httpx2.Client) -> None:
    assert raw.post("/v1/embeddings", json={}).json()["error"]["code"] == "not_found"
    assert raw.get("/v1/chat/completions").status_code == 405


def test_body_over_the_limit_is_a_413(raw: httpx2.Client) -> None:
    answer = raw.post("/v1/chat/completions", content=b" " * (65 * 1024 * 1024))
    assert answer.status_code == 413


def test_tokenize_and_detokenize_round_trip(raw: httpx2.Client) -> None:
    answer = raw.post("/tokenize", json={"prompt": "Hello wörld 12", "return_token_strs": True}).json()
    assert answer["count"] == len(answer["tokens"]) == len(answer["token_strs"])
    assert answer["max_model_len"] == 8192
    assert raw.post("/detokenize", json={"tokens": answer["tokens"]}).json() == {"prompt": "Hello wörld 12"}


def test_tokenize_matches_the_prompt_tokens_of_a_chat(raw: httpx2.Client) -> None:
    count = raw.post("/tokenize", json={"messages": JAPAN}).json()["count"]
    answer = raw.post("/v1/chat/completions", json={"messages": JAPAN, "max_tokens": 1}).json()
    assert answer["usage"]["prompt_tokens"] == count


def test_requests_are_logged_and_counted_by_route(raw: httpx2.Client) -> None:
    answer = raw.post("/v1/chat/completions", json={"messages": JAPAN, "max_tokens": 1})
    assert answer.headers["x-request-id"]
    assert 'route="/v1/chat/completions"' in raw.get("/metrics").text


def engine_report(raw: httpx2.Client) -> EngineReport:
    """Return what the gateway reads from the service's metrics."""
    return read_metrics(raw.get("/metrics").text)


def test_long_prompt_shows_progress_before_the_first_token(raw: httpx2.Client) -> None:
    """Otherwise the gateway would consider the service stuck."""
    tokens = next(line for line in engine_report(raw).progress if line.startswith("vllm:prompt_tokens_total"))
    layers = next(line for line in engine_report(raw).progress if line.startswith("transformers_layers_total"))
    pause = threading.Event()
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        asked = pool.submit(raw.post, COMPLETION, json={"prompt": "word " * 6000, "max_tokens": 1})
        while layers in (work := engine_report(raw).progress):
            assert not asked.done()
            pause.wait(0.01)
        assert tokens in work
        assert asked.result().status_code == 200
    assert tokens not in engine_report(raw).progress


def test_waiting_requests_are_exported(raw: httpx2.Client) -> None:
    """The service processes four requests at once."""
    with contextlib.ExitStack() as stack:
        for _ in range(7):
            stack.enter_context(raw.stream("POST", CHAT, json={**LONG, "stream": True}))
        assert engine_report(raw).waiting == 3
    wait_until_idle(raw)
    assert engine_report(raw).waiting == 0
