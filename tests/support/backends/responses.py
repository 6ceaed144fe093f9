"""The fake backend's responses: a fixed text per prompt, in OpenAI's formats. No I/O.

Token i of a response is a function of i, and with `marked` also of the prompt. A request that continues a response
(vLLM's `continue_final_message`, or a completion whose prompt ends in the generated text) starts with the next token,
so that a failover can be checked token by token.
"""

import base64
import itertools
import json
import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tests.support.backends.switches import Switches

# vLLM's last event when its engine has crashed.
ENGINE_DIED = (
    b'data: {"error": {"message": "EngineCore encountered an issue", "type": "InternalServerError", "param": null, '
    b'"code": 500}}\n\ndata: [DONE]\n\n'
)

_numbers = itertools.count(1)
_TOKEN = re.compile(r"token(\d+)(\.[0-9a-f]{8})? ")


class BadRequest(Exception):
    """A request that a real engine rejects with 400."""


@dataclass
class Generation:
    """One text to generate: tokens `first` to `last` - 1 of the prompt's text."""

    chat: bool
    model: str
    mark: str
    prompt_tokens: int
    first: int
    last: int
    finish_reason: str
    include_usage: bool
    usage_in_all: bool

    def __post_init__(self) -> None:
        """Assign a unique id."""
        self.id = f"{'chatcmpl' if self.chat else 'cmpl'}-{next(_numbers):06}"
        kind = "chat.completion.chunk" if self.chat else "text_completion"
        # Built by hand: benches send hundreds of thousands of these.
        self._open = f'data: {{"id": "{self.id}", "object": "{kind}", "created": 1700000000, "model": "{self.model}"'

    def token(self, index: int) -> str:
        """Return the text of token `index`."""
        return f"token{index}{self.mark} "

    @property
    def text(self) -> str:
        """The whole text."""
        return "".join(self.token(index) for index in range(self.first, self.last))

    def usage(self, said: int) -> dict[str, int]:
        """Return the usage after `said` tokens."""
        prompt = self.prompt_tokens + self.first
        return {"prompt_tokens": prompt, "completion_tokens": said, "total_tokens": prompt + said}

    def opening(self) -> bytes:
        """Return the event with the role; completions have none."""
        if not self.chat:
            return b""
        return self._event('{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": null}', 0)

    def event(self, index: int) -> bytes:
        """Return the event with token `index`."""
        said = index - self.first + 1
        if self.chat:
            choice = f'{{"index": 0, "delta": {{"content": "{self.token(index)}"}}, "finish_reason": null}}'
        else:
            choice = f'{{"index": 0, "text": "{self.token(index)}", "finish_reason": null}}'
        return self._event(choice, said)

    def ending(self) -> bytes:
        """Return the events after the last token."""
        piece = '"delta": {}' if self.chat else '"text": ""'
        said = self.last - self.first
        events = self._event(f'{{"index": 0, {piece}, "finish_reason": "{self.finish_reason}"}}', said)
        if self.include_usage:
            events += f'{self._open}, "choices": [], "usage": {json.dumps(self.usage(said))}}}\n\n'.encode()
        return events + b"data: [DONE]\n\n"

    def _event(self, choice: str, said: int) -> bytes:
        usage = f', "usage": {json.dumps(self.usage(said))}' if self.usage_in_all else ""
        return f'{self._open}, "choices": [{choice}]{usage}}}\n\n'.encode()


def generation(path: str, asked: dict[str, Any], now: Switches) -> Generation:
    """Return the text to generate for a request. Raises BadRequest as vLLM does."""
    chat = not path.endswith("/completions") or path.endswith("/chat/completions")
    prompt, said = _chat_prompt(asked, now) if chat else _plain_prompt(asked)
    mark = f".{zlib.crc32(prompt.encode()):08x}" if now.marked else ""
    first = _spoken(said, mark)
    most = asked.get("max_completion_tokens") or asked.get("max_tokens")
    last = max(now.tokens, first)
    finish = "stop"
    if isinstance(most, int) and first + most < last:
        last, finish = first + most, "length"
    options = asked.get("stream_options") or {}
    return Generation(
        chat, now.model, mark, len(prompt.split()), first, last, finish,
        bool(options.get("include_usage")), bool(options.get("continuous_usage_stats")),
    )  # fmt: skip


def _chat_prompt(asked: dict[str, Any], now: Switches) -> tuple[str, str]:
    messages = asked.get("messages") or asked.get("input") or []
    said = ""
    if asked.get("continue_final_message"):
        # https://docs.vllm.ai: incompatible with add_generation_prompt, which defaults to true.
        if asked.get("add_generation_prompt", True):
            raise BadRequest("Cannot set both `continue_final_message` and `add_generation_prompt` to True.")
        if now.continues:
            *messages, final = messages
            if final["role"] != "assistant":
                raise BadRequest("the final message is not the assistant's")
            said = final["content"]
    return json.dumps(messages), said


def _plain_prompt(asked: dict[str, Any]) -> tuple[str, str]:
    prompt = asked.get("prompt")
    if not isinstance(prompt, str):
        return json.dumps(prompt), ""
    begun = _TOKEN.search(prompt)
    return (prompt[: begun.start()], prompt[begun.start() :]) if begun else (prompt, "")


def _spoken(said: str, mark: str) -> int:
    """Return the number of tokens in `said`. Raises BadRequest for a text that this backend would not generate."""
    count = said.count("token")
    if said != "".join(f"token{index}{mark} " for index in range(count)):
        raise BadRequest(f"not the beginning of this answer: {said!r}")
    return count


def whole_answer(target: str, body: bytes, asked: dict[str, Any], now: Switches) -> dict[str, Any]:
    """Return the body of a response that is not streamed."""
    path = target.partition("?")[0]
    if path.endswith("/embeddings"):
        return _embeddings(asked, now)
    if path.startswith("/v1/audio/"):
        return {"text": f"{len(body)} bytes of form, model {asked['model']}"}
    made = generation(path, asked, now)
    text = made.text + "x" * now.pad
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "message": message, "text": text, "finish_reason": made.finish_reason, "logprobs": None}
    answer = {"id": made.id, "object": "chat.completion", "created": 1, "model": now.model, "choices": [choice]}
    usage = made.usage(made.last - made.first)
    return answer | {"usage": usage, "asked": asked, "path": target}


def _embeddings(asked: dict[str, Any], now: Switches) -> dict[str, Any]:
    inputs = asked["input"] if isinstance(asked["input"], list) else [asked["input"]]
    vector: Any = [0.6, 0.8]
    if asked.get("encoding_format") == "base64":
        vector = base64.b64encode(struct.pack("<2f", *vector)).decode()
    data = [{"object": "embedding", "index": index, "embedding": vector} for index in range(len(inputs))]
    usage = {"prompt_tokens": len(inputs), "total_tokens": len(inputs)}
    return {"object": "list", "data": data, "model": now.model, "usage": usage}


def tokens_of(events: bytes) -> Iterator[int]:
    """Return the token numbers in a stream, in order."""
    return (int(found[1]) for found in re.finditer(rb"token(\d+)", events))


def gpu_stats(name: str) -> dict[str, Any]:
    """Statistics of one GPU with recognizable numbers."""
    gpu = {"index": 0, "uuid": f"GPU-{name}", "name": "Fake", "memory_total_mb": 1000, "memory_used_mb": 400}
    more = {"memory_free_mb": 600, "utilization_percent": 50, "temperature_c": 40, "power_watts": 100.5}
    return {"available": True, "gpus": [gpu | more]}


def form_field(body: bytes, name: bytes) -> str | None:
    """Return a plain form field by string search, which is enough for the forms that tests send."""
    mark = b'name="%b"\r\n\r\n' % name
    start = body.find(mark)
    return None if start < 0 else body[start + len(mark) : body.index(b"\r\n--", start)].decode()
