"""A stream whose backend fails is continued by another one, and its client sees one stream."""

import asyncio
import json
from typing import Any, cast

import httpx2
import pytest

from gateway.relay.client_protocol import GatewayProtocol
from gateway.relay.stream_passthrough import StreamPassthrough
from gateway.streams.continuation import Ending, NotResumable, continue_stream
from gateway.streams.sse import cut_at_error
from gateway.streams.transcript import MAX_PENDING, Transcript
from kit.errors import ApiError, InvalidRequest
from services.llm.transformers.routes import GenerationFailed, ServiceStopping
from tests.gateway.behaviour.test_faults import settled
from tests.gateway.conftest import StartBackend, StartGateway
from tests.gateway.running import HANG_S, RunningGateway
from tests.support.backends.openai_backend import FakeBackend
from tests.support.backends.responses import ENGINE_DIED, tokens_of

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
ASKED: dict[str, dict[str, Any]] = {
    CHAT: {"messages": [{"role": "user", "content": "Hi"}]},
    COMPLETIONS: {"prompt": "Once upon a time "},
}
TOKENS = 40


def chunks_of(answer: httpx2.Response) -> list[dict[str, Any]]:
    """The events of a complete stream."""
    *events, done, end = answer.text.split("\n\n")
    assert (done, end) == ("data: [DONE]", "")
    return [json.loads(event.removeprefix("data: ")) for event in events]


async def stream(gateway: RunningGateway, path: str = CHAT, **more: Any) -> httpx2.Response:
    """One streamed response."""
    return await gateway.http.post(path, json={"model": "qwen", "stream": True, **ASKED[path], **more})


async def pair(start_backend: StartBackend, **switches: Any) -> tuple[FakeBackend, FakeBackend]:
    """Two backends of one model; the first gets the first request and has the fault."""
    common = {"tokens": TOKENS, "marked": True} | {
        key: switches.pop(key) for key in ("engine", "continues", "framing", "ours") if key in switches
    }
    return await start_backend("first", **common, **switches), await start_backend("second", **common)


@pytest.mark.parametrize("cut", [0, 1, 2, MAX_PENDING - 2, MAX_PENDING, TOKENS - 1, TOKENS])
@pytest.mark.parametrize("path", ASKED)
async def test_every_token_arrives_once(
    start_backend: StartBackend, start_gateway: StartGateway, path: str, cut: int
) -> None:
    """Wherever it is cut, with one id, one role, one finish reason and one usage."""
    first, second = await pair(start_backend, reset_after=cut)
    gateway = await start_gateway(first, second)
    answer = await stream(gateway, path, stream_options={"include_usage": True}, max_tokens=TOKENS + 5)
    assert first.requests
    chunks = chunks_of(answer)
    assert list(tokens_of(answer.content)) == list(range(TOKENS))
    assert len({(chunk["id"], chunk["created"], chunk["model"], chunk["object"]) for chunk in chunks}) == 1
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    assert [choice["finish_reason"] for choice in choices if choice["finish_reason"]] == ["stop"]
    if path == CHAT:
        assert [choice["delta"]["role"] for choice in choices if "role" in choice["delta"]] == ["assistant"]
    direct = await _direct(second, path)
    assert chunks[-1]["usage"] == direct
    assert answer.headers["x-served-by"] == ("second" if cut == 0 else "first")
    if cut > 0:
        sent = second.requests[0].json
        assert sent["max_tokens"] == TOKENS + 5 - cut
        assert sent.get("continue_final_message") is (True if path == CHAT else None)
    await gateway.until(lambda: settled(gateway))


async def test_continues_after_passthrough(
    start_backend: StartBackend, start_gateway: StartGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Chunks that were forwarded unchanged are in the transcript too."""
    passed: list[bytes] = []
    try_forward = StreamPassthrough.try_forward

    def watched(self: StreamPassthrough, data: bytes) -> bool:
        if try_forward(self, data):
            passed.append(data)
            return True
        return False

    monkeypatch.setattr(StreamPassthrough, "try_forward", watched)
    first, second = await pair(start_backend)
    gateway = await start_gateway(first, second)
    gateway.backend("second").set_draining(True)
    for _ in range(2):
        assert list(tokens_of((await stream(gateway)).content)) == list(range(TOKENS))
    first.switches.gated, first.switches.reset_after = True, 7
    asked = asyncio.create_task(stream(gateway))
    await first.wait_for(3)
    gateway.backend("second").set_draining(False)
    # One by one: where several come at once they do not pass so. Nor do the first two.
    for _ in range(7):
        before = gateway.backend("first").traffic.last_byte_at
        first.gate.release()
        await gateway.until(lambda before=before: gateway.backend("first").traffic.last_byte_at > before)
    first.gate.release()
    assert len(passed) >= 4
    answer = await asked
    assert answer.headers["x-served-by"] == "first"
    assert second.requests
    assert list(tokens_of(answer.content)) == list(range(TOKENS))
    assert len({chunk["id"] for chunk in chunks_of(answer)}) == 1
    await gateway.until(lambda: settled(gateway))


async def _direct(backend: FakeBackend, path: str) -> dict[str, int]:
    """The usage of the same request without a fault."""
    async with httpx2.AsyncClient(trust_env=False, verify=False, timeout=HANG_S) as client:
        body = {"model": "qwen", "max_tokens": TOKENS + 5, **ASKED[path]}
        usage: dict[str, int] = (await client.post(backend.url + path, json=body)).json()["usage"]
        return usage


async def test_usage_in_every_event(start_backend: StartBackend, start_gateway: StartGateway) -> None:
    """With vLLM's continuous_usage_stats the count grows by one per event, also across the splice."""
    gateway = await start_gateway(*await pair(start_backend, reset_after=7))
    options = {"include_usage": True, "continuous_usage_stats": True}
    usages = [chunk["usage"] for chunk in chunks_of(await stream(gateway, stream_options=options))]
    assert [usage["completion_tokens"] for usage in usages] == [*range(TOKENS + 1), TOKENS, TOKENS]
    assert len({usage["prompt_tokens"] for usage in usages}) == 1
    assert all(one["total_tokens"] == one["prompt_tokens"] + one["completion_tokens"] for one in usages)


async def test_stream_ends_if_the_limit_was_reached(start_backend: StartBackend, start_gateway: StartGateway) -> None:
    """If max_tokens were sent when the backend failed, finish_reason is length and no other backend is used."""
    first, second = await pair(start_backend, reset_after=5)
    gateway = await start_gateway(first, second)
    answer = await stream(gateway, max_tokens=5)
    assert first.requests
    assert not second.requests
    assert list(tokens_of(answer.content)) == list(range(5))
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks_of(answer)][-1] == "length"


async def test_continues_twice(start_backend: StartBackend, start_gateway: StartGateway) -> None:
    """The second backend falls silent later in the stream."""
    faults: list[dict[str, int]] = [{"hang_after": 5}, {"reset_after": 11}, {"hang_after": 23}, {}]
    backends = [
        await start_backend(f"b{index}", tokens=TOKENS, marked=True, **fault) for index, fault in enumerate(faults)
    ]
    gateway = await start_gateway(*backends, stream_idle_timeout=0.5)
    answer = await stream(gateway)
    assert all(backend.requests for backend in backends)
    assert list(tokens_of(answer.content)) == list(range(TOKENS))
    assert len({chunk["id"] for chunk in chunks_of(answer)}) == 1
    await gateway.until(lambda: settled(gateway))


async def test_continues_after_silence(start_backend: StartBackend, start_gateway: StartGateway) -> None:
    """The silent backend's connection is closed."""
    first, second = await pair(start_backend, hang_after=3)
    gateway = await start_gateway(first, second, stream_idle_timeout=0.5)
    answer = await stream(gateway)
    assert list(tokens_of(answer.content)) == list(range(TOKENS))
    assert chunks_of(answer)
    await asyncio.wait_for(first.requests[0].gone.wait(), HANG_S)
    await gateway.until(lambda: settled(gateway))


@pytest.mark.parametrize("after", [0, 3])
async def test_continues_after_an_error_event_of_a_failed_engine(
    start_backend: StartBackend, start_gateway: StartGateway, after: int
) -> None:
    first, second = await pair(start_backend, tell_after=after)
    gateway = await start_gateway(first, second)
    answer = await stream(gateway)
    assert first.requests
    assert list(tokens_of(answer.content)) == list(range(TOKENS))
    assert chunks_of(answer)
    assert b"EngineCore" not in answer.content
    await gateway.until(lambda: settled(gateway))


async def test_error_event_without_another_backend(start_backend: StartBackend, start_gateway: StartGateway) -> None:
    """A failure is reported once; an error of the request itself is forwarded unchanged."""
    gateway = await start_gateway(await start_backend(tell_after=2))
    answer = await stream(gateway)
    assert answer.content.count(b'"error"') == 1
    assert b"EngineCore" in answer.content
    own = ENGINE_DIED.replace(b"500", b"400")
    assert cut_at_error(own) == (own, None)
    assert cut_at_error(b"data: {}\n\n" + ENGINE_DIED) == (b"data: {}\n\n", "EngineCore encountered an issue")


@pytest.mark.parametrize(
    ("error", "is_the_requests"),
    [
        (ServiceStopping(), False),
        (GenerationFailed("out of memory"), False),
        (InvalidRequest("no such tool"), True),
        (InvalidRequest("no such tool", code="nothing"), True),
    ],
)
def test_errors_of_our_own_text_service(error: ApiError, is_the_requests: bool) -> None:
    """A stopped service or a failed engine counts as a failed backend, a client's error does not."""
    event_bytes = b"data: " + error.encoded() + b"\n\ndata: [DONE]\n\n"
    assert cut_at_error(event_bytes) == ((event_bytes, None) if is_the_requests else (b"", error.message))


@pytest.mark.parametrize("framing", ["chunked", "close"])
async def test_backend_killed_with_many_streams(
    start_backend: StartBackend, start_gateway: StartGateway, framing: str
) -> None:
    """None of them is lost, whatever their framing."""
    first, second = await pair(start_backend, framing=framing, gated=True)
    second.switches.gated = False
    gateway = await start_gateway(first, second)
    streams = [asyncio.create_task(stream(gateway)) for _ in range(12)]
    await first.wait_for(3)
    for _ in range(len(first.requests) * 4):
        first.gate.release()
    await gateway.until(lambda: any(backend.traffic.last_byte_at for backend in gateway.context.backends))
    await first.stop()
    for answer in await asyncio.gather(*streams):
        assert list(tokens_of(answer.content)) == list(range(TOKENS))
        assert chunks_of(answer)
    await gateway.until(lambda: settled(gateway))


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "sets tools"),
        ({"logprobs": True}, "sets logprobs"),
        ({"n": 2}, "sets n"),
        ({"response_format": {"type": "json_object"}}, "sets response_format"),
        ({"structured_outputs": {"regex": "a+"}}, "sets structured_outputs"),
        ({"guided_json": {"type": "object"}}, "sets guided_json"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
async def test_unfaithful_continuation_ends_in_an_error_event(
    start_backend: StartBackend, start_gateway: StartGateway, asked: dict[str, Any], reason: str
) -> None:
    """The event has the reason, and no other backend is used."""
    first, second = await pair(start_backend, reset_after=3)
    gateway = await start_gateway(first, second)
    answer = await stream(gateway, **asked)
    assert list(tokens_of(answer.content)) == [0, 1, 2]
    assert reason in json.loads(answer.text.split("data: ")[-1])["error"]["message"]
    assert not second.requests
    await gateway.until(lambda: settled(gateway))


def test_any_request_restarts_before_the_first_token() -> None:
    transcript = Transcript()
    transcript.record(event(index=0, delta={"role": "assistant", "content": ""}))
    step = continue_stream(CHAT, b'{"messages":[],"tools":[{}],"model":null}', "qwen", transcript)
    assert not isinstance(step, Ending)
    assert not step.needs_prefill
    assert json.loads(step.body) == {"messages": [], "tools": [{}], "model": "qwen"}


async def test_other_backend_cannot_prefill(start_backend: StartBackend, start_gateway: StartGateway) -> None:
    """It does not continue a chat, but it can continue a completion."""
    first, second = await pair(start_backend, reset_after=3, engine="ollama", continues=False)
    gateway = await start_gateway(first, second)
    answer = await stream(gateway)
    assert list(tokens_of(answer.content)) == [0, 1, 2]
    assert '"error"' in answer.text
    assert not second.requests
    completion = await stream(gateway, COMPLETIONS, max_tokens=TOKENS)
    assert list(tokens_of(completion.content)) == list(range(TOKENS))


async def test_foreign_vllm_continues_chats(start_backend: StartBackend, start_gateway: StartGateway) -> None:
    """It is recognized by `owned_by` in /v1/models."""
    first, second = await pair(start_backend, reset_after=3, ours=False)
    gateway = await start_gateway(first, second)
    assert list(tokens_of((await stream(gateway)).content)) == list(range(TOKENS))
    assert second.requests


def event(**choice: Any) -> bytes:
    """One chat event."""
    chunk = {"id": "a", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]}
    return b"data: " + json.dumps(chunk).encode() + b"\n\n"


@pytest.mark.parametrize(
    ("delta", "reason"),
    [
        ({"tool_calls": [{"index": 0}]}, "calls a tool"),
        ({"reasoning": "hm"}, "has reasoning"),
        ({"reasoning_content": "hm"}, "has reasoning"),
        ({"audio": {"id": "x"}}, "unknown form"),
    ],
)
def test_streams_with_more_than_text_cannot_be_resumed(delta: dict[str, object], reason: str) -> None:
    transcript = Transcript()
    transcript.record(event(index=0, delta={"role": "assistant", "content": ""}))
    transcript.record(event(index=0, delta=delta))
    transcript.record(event(index=0, delta={"content": "text"}))
    with pytest.raises(NotResumable, match=reason):
        continue_stream(CHAT, b'{"messages": [{}]}', "m", transcript)


def test_transcript_parses_any_event_format() -> None:
    """Comments, other line ends, other fields, several events in one piece."""
    plain, transcript = Transcript(), Transcript()
    words = [event(index=0, delta={"content": f" w{number}"}) for number in range(MAX_PENDING * 2 + 3)]
    for word in words:
        plain.record(word)
    transcript.record(b": ping\n\n" + b"".join(words[:5]))
    transcript.record(b"".join(words[5:9]).replace(b"\n", b"\r\n"))
    transcript.record(b"event: x\n" + words[9])
    for word in words[10:]:
        transcript.record(word)
    for each in (plain, transcript):
        each.read()
    assert plain.obstacle is transcript.obstacle is None
    assert plain.text == transcript.text == "".join(f" w{number}" for number in range(MAX_PENDING * 2 + 3))
    assert plain.tokens == transcript.tokens == MAX_PENDING * 2 + 3
    assert plain.names == transcript.names


def test_text_is_appended_to_the_message_being_continued() -> None:
    transcript = Transcript()
    transcript.record(event(index=0, delta={"content": " world"}))
    messages = [{"role": "user", "content": "Greet"}, {"role": "assistant", "content": "Hello"}]
    body = {"messages": messages, "continue_final_message": True, "add_generation_prompt": False}
    step = continue_stream(CHAT, json.dumps(body).encode(), "m", transcript)
    assert not isinstance(step, Ending)
    assert json.loads(step.body)["messages"][1:] == [{"role": "assistant", "content": "Hello world"}]


def test_limits_are_lowered() -> None:
    """All token limits are reduced by the tokens sent, min_tokens not below 0."""
    transcript = Transcript()
    for _ in range(4):
        transcript.record(event(index=0, delta={"content": "x"}))
    body = {"messages": [{}], "max_tokens": 9, "max_completion_tokens": 7, "min_tokens": 2}
    step = continue_stream(CHAT, json.dumps(body).encode(), "m", transcript)
    assert not isinstance(step, Ending)
    sent = json.loads(step.body)
    assert (sent["max_tokens"], sent["max_completion_tokens"], sent["min_tokens"]) == (5, 3, 0)


async def test_draining_client_keeps_the_deadline_of_the_resuming_backend(
    start_backend: StartBackend, start_gateway: StartGateway
) -> None:
    """Until the stream is resumed, the timeout is that for a first byte, not that of a stream that pauses."""
    first, second = await pair(start_backend, reset_after=5)
    second.switches.hang = True
    gateway = await start_gateway(first, second)
    response = asyncio.create_task(stream(gateway))
    await gateway.until(lambda: bool(second.requests))
    (connection,) = [one for one in gateway.context.connections if cast(GatewayProtocol, one).cycle is not None]
    deadline = connection.deadline.at
    cast(GatewayProtocol, connection).pause_writing()
    cast(GatewayProtocol, connection).resume_writing()
    assert connection.deadline.at == deadline
    response.cancel()
    await gateway.until(lambda: settled(gateway))
