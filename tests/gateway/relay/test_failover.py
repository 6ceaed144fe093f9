"""The failover policy on plain objects, without a socket."""

import json
from typing import Any

import pytest

from gateway.backends.backend import Backend, Clock
from gateway.backends.query_of_death import CrashedBackend
from gateway.backends.response_verdict import ResponseVerdict
from gateway.bodies.body import JsonBody
from gateway.endpoints import BY_PATH
from gateway.relay.failover import Continue, Decision, FailoverState, decide
from gateway.relay.retry_budget import RetryBudget
from gateway.routing import Choice, Router
from gateway.streams.continuation import Ending
from gateway.streams.transcript import Transcript
from gateway.telemetry.metrics import GatewayMetrics
from kit.errors import ApiError, BadGateway, Busy, NoHealthyBackend
from tests.gateway.plain import CATALOGUE, CHAT, make_backend

NOW = 100.0
BROKEN = BadGateway("a failed: it closed the connection.")
REQUEST = {"model": "qwen", "stream": True, "max_tokens": 9, "messages": [{"role": "user", "content": "Hi"}]}


def backends(count: int = 2) -> list[Backend]:
    """Healthy backends of one model whose engine can continue a message."""
    found = [make_backend(name, "qwen") for name in "abc"[:count]]
    for backend in found:
        backend.engine = "vllm"
    return found


def first_attempt_failed(*available: Backend, max_attempts: int = 3, **changes: Any) -> FailoverState:
    """The state of a request after its first attempt, at the first of the backends."""
    body = JsonBody.from_bytes(BY_PATH[CHAT.encode()], json.dumps(REQUEST | changes).encode(), b"")
    router = Router(available, CATALOGUE)
    state = FailoverState(router, RetryBudget(), GatewayMetrics(), max_attempts, CHAT, body, body.routing_request())
    state.model = "qwen"
    state.note_attempt(available[0], 1)
    return state


def sent(state: FailoverState, *events: object) -> None:
    """Let the client have received these events."""
    state.has_begun, state.transcript = True, Transcript()
    for event in events:
        state.transcript.record(b"data: %b\n\n" % (event if isinstance(event, bytes) else json.dumps(event).encode()))


def chunk(**choice: object) -> dict[str, object]:
    """A chat chunk with one choice."""
    return {"id": "x", "choices": [{"index": 0, **choice}]}


def error_of(decision: Decision) -> str:
    """The message with which the request fails."""
    assert isinstance(decision, ApiError)
    return decision.message


def test_retries_on_a_backend_not_tried_yet() -> None:
    a, b = backends()
    decision = decide(BROKEN, first_attempt_failed(a, b), NOW)
    assert isinstance(decision, Choice)
    assert decision.candidate.backend is b


def test_fails_with_its_own_error_if_all_were_tried() -> None:
    (a,) = backends(1)
    assert error_of(decide(BROKEN, first_attempt_failed(a), NOW)) == BROKEN.message


def test_fails_if_no_attempt_is_left() -> None:
    assert error_of(decide(BROKEN, first_attempt_failed(*backends(), max_attempts=1), NOW)) == BROKEN.message


def test_unreachable_backends_are_all_named() -> None:
    a, b = backends()
    for backend in (a, b):
        backend.observe("unhealthy", "connection refused")
    unreachable = NoHealthyBackend("a is unreachable.", retry_after=2)
    message = error_of(decide(unreachable, first_attempt_failed(a, b), NOW))
    assert "a is unhealthy" in message
    assert "b is unhealthy" in message


def test_retries_end_with_the_budget() -> None:
    state = first_attempt_failed(*backends())
    while state.budget.take(0, NOW):
        pass
    assert "retry budget exhausted" in error_of(decide(BROKEN, state, NOW))


def test_a_request_that_crashed_two_backends_is_not_retried() -> None:
    state = first_attempt_failed(*backends())
    state.is_convicted = True
    decision = decide(BROKEN, state, NOW)
    assert "the request has already crashed two backends" in error_of(decision)
    assert isinstance(decision, CrashedBackend)


def reject(backend: Backend, status: int, body: bytes = b"") -> ResponseVerdict:
    """Let the backend have sent an error response just before NOW."""
    backend.clock = Clock(monotonic=lambda: NOW, wall=lambda: NOW)
    return backend.record_error(status, b"", body)


def test_a_full_backend_is_no_attempt() -> None:
    """The request goes on to every backend that is not known to be full."""
    a, b, c = backends(3)
    state = first_attempt_failed(a, b, c, max_attempts=1)
    verdict = reject(a, 429)
    error = state.rejection(verdict, 429, NOW)
    assert isinstance(error, Busy)
    b.load.full_until = NOW + 10
    decision = decide(error, state, NOW)
    assert isinstance(decision, Choice)
    assert decision.candidate.backend is c
    c.load.full_until = NOW + 20
    # Its own response has the least Retry-After.
    assert state.rejection(verdict, 429, NOW) is None
    a.load.full_until = NOW + 30
    last = state.rejection(verdict, 429, NOW)
    assert isinstance(last, Busy)
    assert last.headers["Retry-After"] == "10"
    assert decide(last, state, NOW) is last


@pytest.mark.parametrize(
    ("status", "body", "others", "is_passed_on"),
    [
        (500, b"", True, True),
        (503, b"", True, False),
        (503, b"", False, True),
        (503, b"busy", False, True),
        (404, b"The model does not exist.", True, False),
        (404, b"The model does not exist.", False, True),
        (401, b"", True, False),
        (401, b"", False, False),
    ],
)
def test_response_is_passed_on_if_it_is_the_best_that_there_is(
    status: int, body: bytes, others: bool, is_passed_on: bool
) -> None:
    """Except for one that rejects the gateway's key."""
    found = backends(2 if others else 1)
    state = first_attempt_failed(*found)
    error = state.rejection(reject(found[0], status, body), status, NOW)
    assert (error is None) is is_passed_on
    if status == 401:
        assert isinstance(error, BadGateway)
        assert "BACKEND_KEYS" in error.message
    if error is not None:
        decision = decide(error, state, NOW)
        assert decision.candidate.backend is found[1] if isinstance(decision, Choice) else decision is error


def test_continues_a_stream_with_its_text_so_far() -> None:
    a, b = backends()
    state = first_attempt_failed(a, b)
    sent(state, chunk(delta={"role": "assistant", "content": ""}), chunk(delta={"content": "Hello"}))
    decision = decide(BROKEN, state, NOW)
    assert isinstance(decision, Continue)
    assert decision.choice.candidate.backend is b
    body = json.loads(decision.body.data)
    assert body["messages"][-1] == {"role": "assistant", "content": "Hello"}
    assert body["max_tokens"] == REQUEST["max_tokens"] - decision.tokens  # type: ignore[operator]
    assert decision.includes_transcript


def test_a_stream_that_advances_may_use_every_backend_again() -> None:
    a, b = backends()
    state = first_attempt_failed(a, b)
    for number, (backend, other) in enumerate([(a, b), (b, a), (a, b)], 1):
        state.note_attempt(backend, number)
        sent(state, *[chunk(delta={"content": "word "})] * number)
        decision = decide(BROKEN, state, NOW)
        assert isinstance(decision, Continue)
        assert decision.choice.candidate.backend is other


def test_only_an_engine_that_can_continue_a_message_gets_the_stream() -> None:
    a, b = backends()
    b.engine = "other"
    state = first_attempt_failed(a, b)
    sent(state, chunk(delta={"content": "Hello"}))
    assert error_of(decide(BROKEN, state, NOW)) == BROKEN.message


@pytest.mark.parametrize(
    ("events", "end"),
    [
        ([chunk(delta={"content": "all"}, finish_reason="stop"), b"[DONE]"], b""),
        ([chunk(delta={"content": "all"}, finish_reason="stop")], b"data: [DONE]\n\n"),
    ],
)
def test_finishes_a_stream_that_lacks_only_its_end(events: list[object], end: bytes) -> None:
    state = first_attempt_failed(*backends())
    sent(state, *events)
    assert decide(BROKEN, state, NOW) == Ending(end)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [({"tools": [{}]}, "the request sets tools"), ({"messages": []}, "no list of messages")],
)
def test_a_stream_that_cannot_be_resumed_fails_with_the_reason(changes: dict[str, Any], reason: str) -> None:
    state = first_attempt_failed(*backends(), **changes)
    sent(state, chunk(delta={"content": "Hello"}))
    message = error_of(decide(BROKEN, state, NOW))
    assert "could not be resumed on another backend" in message
    assert reason in message


def test_a_response_without_transcript_cannot_be_resumed() -> None:
    state = first_attempt_failed(*backends())
    state.has_begun = True
    assert not state.can_continue()
    assert "only chat and completion streams" in error_of(decide(BROKEN, state, NOW))
