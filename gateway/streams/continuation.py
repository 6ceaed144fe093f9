"""How a stream whose backend has died goes on at another one: the request to send there. Pure.

A chat is sent again with what was said as its last message, to be continued (vLLM's `continue_final_message` with
`add_generation_prompt` off, which SGLang has too); a completion with what was said at the end of its prompt. What was
said counts as prompt there, so the limits on new tokens are lowered by it. Where nothing but the role had been sent,
the request is sent again as it was, to any backend.

This is faithful where the answer is one plain text. It is not where the answer has an inner state that its text does
not show, a grammar half matched or a tool call half written, or where its events carry more than text: then the reason
is told instead. A `seed` is sent again as it is: the draws after the seam are others than they would have been, as they
are on any other machine. Penalties on what an answer repeats no longer see what stands before the seam.

Rules: `ChatCompletionRequest` and `CompletionRequest` in vLLM, `vllm/entrypoints/openai/*/protocol.py`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from gateway.streams.transcript import Transcript

# The routes whose streams can be gone on with.
CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
ROUTES = frozenset({CHAT, COMPLETIONS})
# What a completion may have at most where its request does not say: OpenAI's default, and vLLM's.
COMPLETION_TOKENS = 16

_decode = msgspec.json.Decoder(dict[str, Any]).decode


class NotFaithful(Exception):
    """This stream cannot be gone on with; the reason, for a person."""


@dataclass(frozen=True, slots=True)
class Continuation:
    """What to send to another backend."""

    body: bytes
    # Whether what was said stands in it, as part of the prompt; whether the backend must know how to go on with it.
    carries: bool
    prefills: bool


@dataclass(frozen=True, slots=True)
class Ending:
    """Everything was said: the events with which the stream ends."""

    events: bytes


def _is_set(value: Any) -> bool:
    return bool(value)


def _more_than_one(value: Any) -> bool:
    return value is not None and value != 1


def _no_plain_text(value: Any) -> bool:
    return bool(value) and not (isinstance(value, dict) and value.get("type") == "text")


# What a request must not ask for, by the members of its body.
_OBSTACLES: Mapping[str, Callable[[Any], bool]] = {
    **dict.fromkeys(
        (
            "tools", "functions", "logprobs", "top_logprobs", "prompt_logprobs", "logprob_token_ids", "echo", "suffix",
            "structured_outputs", "guided_json", "guided_regex", "guided_choice", "guided_grammar", "grammar",
            "json_schema", "use_beam_search", "return_token_ids", "return_tokens_as_token_ids", "return_prompt_text",
            "truncate_prompt_tokens", "prompt_embeds", "audio", "prediction", "web_search_options",
            "kv_transfer_params", "thinking_token_budget",
        ),
        _is_set,
    ),
    "n": _more_than_one,
    "best_of": _more_than_one,
    "response_format": _no_plain_text,
    "modalities": lambda value: value not in (None, ["text"]),
}  # fmt: skip


def go_on(path: str, body: bytes, model: str, said: Transcript) -> Continuation | Ending:
    """What to do for a stream whose backend has died. `model` is the one that was answering, by its name here.

    Raises NotFaithful.
    """
    said.read()
    if said.done:
        return Ending(b"")
    if said.reason is not None:
        raise NotFaithful(said.reason)
    if said.finished:
        return Ending(b"data: [DONE]\n\n")
    try:
        request = _decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise NotFaithful("its request cannot be read") from error
    request["model"] = model
    text = said.text
    # Templates trim what is blank, and then find no place at which to go on.
    if not text.strip():
        return Continuation(msgspec.json.encode(request), carries=False, prefills=False)
    for name, stands_in_the_way in _OBSTACLES.items():
        if stands_in_the_way(request.get(name)):
            raise NotFaithful(f"the request sets {name}")
    if _lower_limits(path, request, said.tokens):
        return Ending(_ended_by_length(path, said))
    if path == CHAT:
        _continue_chat(request, text)
    else:
        _continue_prompt(request, text)
    return Continuation(msgspec.json.encode(request), carries=True, prefills=path == CHAT)


def _continue_chat(request: dict[str, Any], text: str) -> None:
    messages = request.get("messages")
    if not isinstance(messages, list) or not messages:
        raise NotFaithful("its request has no list of messages")
    if request.get("continue_final_message"):
        # The client had a message of its own continued: it is longer by now.
        final = messages[-1]
        if not isinstance(final, dict) or not isinstance(final.get("content"), str):
            raise NotFaithful("the message that it continues is no plain text")
        final["content"] += text
    else:
        messages.append({"role": "assistant", "content": text})
    request["continue_final_message"] = True
    request["add_generation_prompt"] = False


def _continue_prompt(request: dict[str, Any], text: str) -> None:
    prompt = request.get("prompt")
    if isinstance(prompt, list) and len(prompt) == 1:
        prompt = prompt[0]
    if not isinstance(prompt, str):
        raise NotFaithful("its prompt is not one text")
    request["prompt"] = prompt + text


def _lower_limits(path: str, request: dict[str, Any], said: int) -> bool:
    """Take what was said off the limits on tokens; True when nothing may follow."""
    if path == COMPLETIONS and request.get("max_tokens") is None and said < COMPLETION_TOKENS:
        request["max_tokens"] = COMPLETION_TOKENS
    for name in ("max_tokens", "max_completion_tokens"):
        limit = request.get(name)
        if isinstance(limit, int):
            if limit <= said:
                return True
            request[name] = limit - said
    least = request.get("min_tokens")
    if isinstance(least, int):
        request["min_tokens"] = max(least - said, 0)
    return False


def _ended_by_length(path: str, said: Transcript) -> bytes:
    piece: dict[str, Any] = {"delta": {}} if path == CHAT else {"text": ""}
    choice = {"index": 0, **piece, "finish_reason": "length"}
    return b"data: %b\n\ndata: [DONE]\n\n" % msgspec.json.encode({**said.names, "choices": [choice]})
