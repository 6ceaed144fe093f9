"""The request with which another backend continues a stream after its backend has failed. Pure.

A chat is sent again with the text so far as its last message, to be continued (vLLM's `continue_final_message` with
`add_generation_prompt` off, which SGLang has too); a completion with the text at the end of its prompt. That text is
prompt now, so the limits on new tokens are lowered by its length. If only the role was sent, the request is repeated
unchanged, to any backend.

This is faithful if the response is one plain text. It is not if the response has state that its text does not show, a
half-matched grammar or a half-written tool call, or if its events carry more than text: then `NotResumable` gives the
reason. A `seed` is sent unchanged: the samples after the splice differ from what they would have been, as they do on
any other machine. Repetition penalties do not cover the text before the splice.

Rules: `ChatCompletionRequest` and `CompletionRequest` in vLLM, `vllm/entrypoints/openai/*/protocol.py`.
"""

import contextlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from gateway.streams.transcript import Transcript

# The routes whose streams can be continued.
CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
RESUMABLE_ROUTES = frozenset({CHAT, COMPLETIONS})
# The default of `max_tokens` for completions, of OpenAI and vLLM.
DEFAULT_MAX_TOKENS = 16

# The largest request that is continued, its longest member that is decoded, and its longest list of messages whose last
# one is changed, in bytes: more would hold up the event loop.
MAX_REQUEST = 8 * 1024 * 1024
MAX_VALUE = 4096
MAX_MESSAGES = 256 * 1024

# Members stay bytes.
_Request = dict[str, msgspec.Raw]
_decode = msgspec.json.Decoder(_Request).decode
_decode_messages = msgspec.json.Decoder(list[msgspec.Raw]).decode
_EMPTY_LIST = re.compile(rb"\[\s*\]")
_decode_single = msgspec.json.Decoder(tuple[msgspec.Raw]).decode


class NotResumable(Exception):
    """The stream cannot be continued; the message is the reason, for a person."""


@dataclass(frozen=True, slots=True)
class Continuation:
    """The body to send to another backend."""

    body: bytes
    # Whether the text so far is part of its prompt; whether the backend must support continuing a message.
    includes_transcript: bool
    needs_prefill: bool


@dataclass(frozen=True, slots=True)
class Ending:
    """The events that end a stream of which everything else was sent."""

    events: bytes


def _more_than_one(value: Any) -> bool:
    return value is not None and value != 1


def _is_not_text(value: Any) -> bool:
    return bool(value) and not (isinstance(value, dict) and value.get("type") == "text")


# Members of a request that rule out a continuation, with the test of their values.
_OBSTACLES: Mapping[str, Callable[[Any], bool]] = {
    **dict.fromkeys(
        (
            "tools", "functions", "logprobs", "top_logprobs", "prompt_logprobs", "logprob_token_ids", "echo", "suffix",
            "structured_outputs", "guided_json", "guided_regex", "guided_choice", "guided_grammar", "grammar",
            "json_schema", "use_beam_search", "return_token_ids", "return_tokens_as_token_ids", "return_prompt_text",
            "truncate_prompt_tokens", "prompt_embeds", "audio", "prediction", "web_search_options",
            "kv_transfer_params", "thinking_token_budget",
        ),
        bool,
    ),
    "n": _more_than_one,
    "best_of": _more_than_one,
    "response_format": _is_not_text,
    "modalities": lambda value: value not in (None, ["text"]),
}  # fmt: skip


def continue_stream(path: str, body: bytes, model: str, transcript: Transcript) -> Continuation | Ending:
    """Return how to continue the stream of the request `body` to `path`, which `model` (its name here) was serving.

    Raises NotResumable.
    """
    transcript.read()
    if transcript.done:
        return Ending(b"")
    if transcript.obstacle is not None:
        raise NotResumable(transcript.obstacle)
    if transcript.finished:
        return Ending(b"data: [DONE]\n\n")
    if len(body) > MAX_REQUEST:
        raise NotResumable(f"its request is larger than {MAX_REQUEST // 1024**2} MB")
    try:
        request = _decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise NotResumable("its request is not valid JSON") from error
    request["model"] = _raw(model)
    text = transcript.text
    # Templates trim blank text, and then find no place at which to continue.
    if not text.strip():
        return Continuation(msgspec.json.encode(request), includes_transcript=False, needs_prefill=False)
    for name, is_obstacle in _OBSTACLES.items():
        if is_obstacle(_value(request, name)):
            raise NotResumable(f"the request sets {name}")
    if _lower_limits(path, request, transcript.tokens):
        return Ending(_ended_by_length(path, transcript))
    if path == CHAT:
        _continue_chat(request, text)
    else:
        _continue_prompt(request, text)
    return Continuation(msgspec.json.encode(request), includes_transcript=True, needs_prefill=path == CHAT)


def _raw(value: Any) -> msgspec.Raw:
    return msgspec.Raw(msgspec.json.encode(value))


def _value(request: _Request, name: str) -> Any:
    """Return a member's value, None if it is absent; `...` stands for a longer one than any that allows continuing."""
    raw = request.get(name)
    if raw is None:
        return None
    return msgspec.json.decode(raw) if len(memoryview(raw)) <= MAX_VALUE else ...


def _continue_chat(request: _Request, text: str) -> None:
    messages = memoryview(request.get("messages", b""))
    if messages[:1].tobytes() != b"[" or _EMPTY_LIST.match(messages):
        raise NotResumable("its request has no list of messages")
    if _value(request, "continue_final_message"):
        # The client had the model continue a message of its own: append to that.
        if len(messages) > MAX_MESSAGES:
            raise NotResumable("the messages before the one that it continues are too long")
        *before, last = _decode_messages(messages)
        final = msgspec.json.decode(last)
        if not isinstance(final, dict) or not isinstance(final.get("content"), str):
            raise NotResumable("the message that it continues is not plain text")
        final["content"] += text
        request["messages"] = _raw([*before, final])
    else:
        answer = msgspec.json.encode({"role": "assistant", "content": text})
        request["messages"] = msgspec.Raw(b"".join((messages[:-1], b",", answer, b"]")))
    request["continue_final_message"] = _raw(True)
    request["add_generation_prompt"] = _raw(False)


def _continue_prompt(request: _Request, text: str) -> None:
    prompt = memoryview(request.get("prompt", b""))
    if prompt[:1].tobytes() == b"[":
        with contextlib.suppress(msgspec.ValidationError):  # several, refused below
            prompt = memoryview(_decode_single(prompt)[0])
    if prompt[:1].tobytes() != b'"':
        raise NotResumable("its prompt is not a single text")
    request["prompt"] = msgspec.Raw(b"".join((prompt[:-1], msgspec.json.encode(text)[1:])))


def _lower_limits(path: str, request: _Request, sent: int) -> bool:
    """Subtract the tokens sent so far from the limits; return True if nothing may follow."""
    if path == COMPLETIONS and _value(request, "max_tokens") is None and sent < DEFAULT_MAX_TOKENS:
        request["max_tokens"] = _raw(DEFAULT_MAX_TOKENS)
    for name in ("max_tokens", "max_completion_tokens"):
        limit = _value(request, name)
        if isinstance(limit, int):
            if limit <= sent:
                return True
            request[name] = _raw(limit - sent)
    minimum = _value(request, "min_tokens")
    if isinstance(minimum, int):
        request["min_tokens"] = _raw(max(minimum - sent, 0))
    return False


def _ended_by_length(path: str, transcript: Transcript) -> bytes:
    piece: dict[str, Any] = {"delta": {}} if path == CHAT else {"text": ""}
    choice = {"index": 0, **piece, "finish_reason": "length"}
    return b"data: %b\n\ndata: [DONE]\n\n" % msgspec.json.encode({**transcript.names, "choices": [choice]})
