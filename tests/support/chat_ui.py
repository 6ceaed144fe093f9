"""Chat UI 0.20's handling of our responses, ported from its source (commit c100c16), and its recorded requests.

The rules are those of `src/lib/server/models.ts`: one invalid entry makes it reject the whole list.
The requests were recorded from its own code (`models.ts`, `endpointOai.ts`, `api/transcribe`) under Node.
"""

import json
from dataclasses import dataclass
from typing import Any


class Refused(Exception):
    """Chat UI would not start with this list or these overrides."""


@dataclass(frozen=True)
class Model:
    """One model as Chat UI has it."""

    id: str
    display_name: str
    description: str | None = None
    multimodal: bool = False
    supports_tools: bool = False
    context_length: int | None = None
    unlisted: bool = False


def models_of(listed: Any, overrides: Any = ()) -> dict[str, Model]:
    """Return the models of a `/models` response with the MODELS setting applied, in order. Raises Refused."""
    by_name = {}
    for entry in overrides:
        for key in ("id", "name"):
            if entry.get(key, "").strip():
                by_name[entry[key].strip()] = entry
    return {model.id: _overridden(model, by_name.get(model.id, {})) for model in map(_model, _list(listed, "data"))}


def _model(entry: Any) -> Model:
    if not isinstance(entry, dict) or not isinstance(entry.get("id"), str):
        raise Refused(f"no id: {entry!r}")
    description = entry.get("description")
    if "description" in entry and not isinstance(description, str):
        raise Refused(f"{entry['id']}: description is {description!r}")
    providers = _list(entry, "providers") if "providers" in entry else []
    for provider in providers:
        length = provider.get("context_length", 1)
        if type(length) is not int or length < 1:
            raise Refused(f"{entry['id']}: context_length is {length!r}")
        if type(provider.get("supports_tools", False)) is not bool:
            raise Refused(f"{entry['id']}: supports_tools is {provider['supports_tools']!r}")
    modalities = _list(entry["architecture"], "input_modalities") if "architecture" in entry else []
    if not all(isinstance(one, str) for one in modalities):
        raise Refused(f"{entry['id']}: input_modalities are {modalities!r}")
    lengths = [provider["context_length"] for provider in providers if "context_length" in provider]
    return Model(
        entry["id"],
        entry["id"],
        description,
        multimodal=bool({"image", "vision"} & {one.lower() for one in modalities}),
        supports_tools=any(provider.get("supports_tools") for provider in providers),
        context_length=min(lengths, default=None),
    )


def _overridden(model: Model, override: dict[str, Any]) -> Model:
    names = {"displayName": "display_name", "supportsTools": "supports_tools", "contextLength": "context_length"}
    known = {names.get(key, key): value for key, value in override.items() if key not in ("id", "name")}
    fields = {key: value for key, value in known.items() if key in Model.__dataclass_fields__}
    return Model(**{**model.__dict__, **fields})


def _list(of: Any, key: str) -> list[Any]:
    value = of.get(key) if isinstance(of, dict) else None
    if not isinstance(value, list):
        raise Refused(f"{key} is {value!r}")
    return value


_GET_MODELS = """\
GET /v1/models HTTP/1.1
host: gateway:8080
connection: keep-alive
Authorization: Bearer {key}
accept: */*
accept-language: *
sec-fetch-mode: cors
user-agent: node
accept-encoding: gzip, deflate

"""
_CHAT = """\
POST /v1/chat/completions HTTP/1.1
host: gateway:8080
connection: keep-alive
accept: application/json
content-type: application/json
user-agent: OpenAI/JS 4.104.0
x-stainless-lang: js
x-stainless-package-version: 4.104.0
x-stainless-os: Linux
x-stainless-arch: x64
x-stainless-runtime: node
x-stainless-runtime-version: v20.20.2
authorization: Bearer {key}
chatui-conversation-id: 6745
x-use-cache: false
x-stainless-retry-count: 0
x-stainless-timeout: 600
accept-language: *
sec-fetch-mode: cors
accept-encoding: gzip, deflate
content-length: {length}

"""
_MICROPHONE = """\
POST /transcribe/{model} HTTP/1.1
host: gateway:8080
connection: keep-alive
Authorization: Bearer {key}
Content-Type: audio/webm;codecs=opus
accept: */*
accept-language: *
sec-fetch-mode: cors
user-agent: node
accept-encoding: gzip, deflate
content-length: {length}

"""
PNG = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAACXBIWXMAAAsTAAALEwEAmpwYAAAADUlEQVR4nGNg"
    "YPhfDwACggF/FjslngAAAABJRU5ErkJggg=="
)
QUESTION = {"model": "cluster", "messages": [{"role": "user", "content": "Hello"}], "stream": True}
TITLE = {
    "model": "qwen",
    "messages": [{"role": "user", "content": 'User message: "Hi"'}],
    "stream": True,
    "max_tokens": 24,
    "temperature": 0,
}
PICTURE = {
    "model": "cluster",
    "messages": [
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "What is it?"},
                {"type": "image_url", "image_url": {"url": PNG, "detail": "auto"}},
            ],
        }
    ],
    "stream": True,
}


def get_models(key: str = "none") -> bytes:
    """The request that lists the models."""
    return _bytes(_GET_MODELS, key=key)


def chat(body: dict[str, Any], key: str = "none") -> bytes:
    """A chat request; its client indents the body."""
    data = json.dumps(body, indent=2).encode()
    return _bytes(_CHAT, key=key, length=len(data)) + data


def microphone(model: str, sound: bytes, key: str = "none") -> bytes:
    """The request with a recording."""
    return _bytes(_MICROPHONE, model=model, key=key, length=len(sound)) + sound


def _bytes(head: str, **values: Any) -> bytes:
    return head.format(**values).replace("\n", "\r\n").encode()
