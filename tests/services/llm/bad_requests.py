"""Requests that are invalid for every engine: name, path, body."""

import json
from typing import Any

HELLO: list[Any] = [{"role": "user", "content": "hello"}]
CHAT, COMPLETION, RESPONSE = "/v1/chat/completions", "/v1/completions", "/v1/responses"


def chat(**fields: Any) -> dict[str, Any]:
    return {"messages": HELLO, **fields}


def says(content: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": content}]}


BAD_REQUESTS: list[tuple[str, str, Any]] = [
    ("nothing", CHAT, b""),
    ("half an object", CHAT, b"{"),
    ("a list", CHAT, b"[]"),
    ("a string", CHAT, b'"hello"'),
    ("no text at all", CHAT, b"\xff\xfe\x00"),
    ("nested too deep", CHAT, b'{"messages": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
    ("no messages", CHAT, {}),
    ("messages as text", CHAT, {"messages": "hello"}),
    ("an empty list of messages", CHAT, {"messages": []}),
    ("a number as a message", CHAT, {"messages": [3]}),
    ("an empty message", CHAT, {"messages": [{}]}),
    ("a role that is a number", CHAT, {"messages": [{"role": 7, "content": "hello"}]}),
    ("content that is an object", CHAT, says({"a": 1})),
    ("content that is a list of numbers", CHAT, says([3])),
    ("a part without a type", CHAT, says([{"text": "hello"}])),
    ("a part of an unknown type", CHAT, says([{"type": "smell", "smell": "roses"}])),
    ("an image for a text model", CHAT, says([{"type": "image_url", "image_url": {"url": "data:image/png;base64,"}}])),
    ("ten thousand messages", CHAT, {"messages": HELLO * 10_000}),
    ("a prompt beyond the context", CHAT, says("word " * 9_000)),
    ("a model that is not here", CHAT, chat(model="gpt-9")),
    ("a model that is a number", CHAT, chat(model=7)),
    ("max_tokens below one", CHAT, chat(max_tokens=-1)),
    ("max_tokens in words", CHAT, chat(max_tokens="many")),
    ("max_tokens in halves", CHAT, chat(max_tokens=1.5)),
    ("max_completion_tokens below one", CHAT, chat(max_completion_tokens=-5)),
    ("temperature below zero", CHAT, chat(temperature=-1)),
    ("temperature in words", CHAT, chat(temperature="hot")),
    ("temperature that is no number", CHAT, b'{"messages": [{"role": "user", "content": "a"}], "temperature": NaN}'),
    ("temperature without end", CHAT, b'{"messages": [{"role": "user", "content": "a"}], "temperature": 1e999}'),
    ("top_p above one", CHAT, chat(top_p=2)),
    ("top_p below zero", CHAT, chat(top_p=-0.5)),
    ("top_k below minus one", CHAT, chat(top_k=-7)),
    ("min_p above one", CHAT, chat(min_p=7)),
    ("n of zero", CHAT, chat(n=0)),
    ("negative n", CHAT, chat(n=-2)),
    ("presence_penalty out of range", CHAT, chat(presence_penalty=9)),
    ("frequency_penalty out of range", CHAT, chat(frequency_penalty=-9)),
    ("a seed in words", CHAT, chat(seed="lucky")),
    ("stop strings that are numbers", CHAT, chat(stop=[1])),
    ("stream in words", CHAT, chat(stream="perhaps")),
    ("stream_options without a stream", CHAT, chat(stream_options={"include_usage": True})),
    ("a bias for no token", CHAT, chat(logit_bias={"x": 1})),
    ("unknown response format", CHAT, chat(response_format={"type": "haiku"})),
    ("tools that are numbers", CHAT, chat(tools=[3])),
    ("a forced tool that is not there", CHAT, chat(tool_choice={"type": "function", "function": {"name": "f"}})),
    ("both endings of a prompt", CHAT, chat(continue_final_message=True, add_generation_prompt=True)),
    ("no prompt", COMPLETION, {}),
    ("a prompt that is an object", COMPLETION, {"prompt": {}}),
    ("a prompt beyond the context", COMPLETION, {"prompt": "word " * 9_000}),
    ("max_tokens below one", COMPLETION, {"prompt": "hello", "max_tokens": -1}),
    ("no input", RESPONSE, {}),
    ("input that is a number", RESPONSE, {"input": 7}),
    ("unknown previous response", RESPONSE, {"input": "hello", "previous_response_id": "resp_0"}),
    ("nothing to tokenize", "/tokenize", {}),
    ("tokens that are words", "/detokenize", {"tokens": ["a"]}),
]


def encoded(body: Any) -> bytes:
    return body if isinstance(body, bytes) else json.dumps(body).encode()


def wrong_envelope(status: int, body: Any) -> str | None:
    """Return why this is not a client error in OpenAI's envelope, or None."""
    if not 400 <= status < 500:
        return f"status {status}: {body}"
    error = body.get("error") if isinstance(body, dict) else None
    if not isinstance(error, dict) or not {"message", "type", "param", "code"} <= set(error):
        return f"no envelope: {body}"
    return None if isinstance(error["message"], str) and error["message"] else f"no message: {error}"
