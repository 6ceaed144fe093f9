"""Validation of every response format with the OpenAI client's types; the client itself parses leniently."""

import json
from typing import Any

import httpx2
from openai.types import Completion, Model
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

JAPAN = [{"role": "user", "content": "What is the capital of Japan?"}]
USAGE = {"stream": True, "stream_options": {"include_usage": True}}


def check_every_format(client: httpx2.Client) -> None:
    """Call each route, with and without streaming. Raises ValidationError."""
    common: dict[str, Any] = {"max_tokens": 6, "temperature": 0}
    chat = {"messages": JAPAN, **common}
    completion = {"prompt": "The capital of Japan is", **common}
    response = {"input": "What is the capital of Japan?", "max_output_tokens": 6, "temperature": 0}
    assert ChatCompletion.model_validate(_whole(client, "/v1/chat/completions", chat)).choices[0].message.content
    chunks = [ChatCompletionChunk.model_validate(one) for one in _events(client, "/v1/chat/completions", chat | USAGE)]
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].usage is not None
    assert Completion.model_validate(_whole(client, "/v1/completions", completion)).choices[0].text
    parts = _events(client, "/v1/completions", completion | USAGE)
    for part in parts:
        for choice in part["choices"]:
            # The client has no type for these chunks; in OpenAI's API they have null here until the last one, too.
            choice["finish_reason"] = choice["finish_reason"] or "stop"
    assert [Completion.model_validate(part) for part in parts][-1].usage is not None
    assert Response.model_validate(_whole(client, "/v1/responses", response)).output_text
    adapter: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
    events = [adapter.validate_python(one) for one in _events(client, "/v1/responses", response | {"stream": True})]
    assert events[0].type == "response.created"
    listed = client.get("/v1/models").json()
    assert [Model.model_validate(one).object for one in listed["data"]]


def _whole(client: httpx2.Client, path: str, body: dict[str, Any]) -> Any:
    answer = client.post(path, json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def _events(client: httpx2.Client, path: str, body: dict[str, Any]) -> list[Any]:
    answer = client.post(path, json=body)
    assert answer.status_code == 200, answer.text
    lines = [line.removeprefix("data: ") for line in answer.text.splitlines() if line.startswith("data: ")]
    return [json.loads(line) for line in lines if line != "[DONE]"]
