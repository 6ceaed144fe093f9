"""The relayed routes: the kind of model that each needs, and the format of its request body and errors."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from kit.config.catalogue import Kind

BodyKind = Literal["json", "form", "audio"]
Dialect = Literal["openai", "responses", "anthropic"]


@dataclass(frozen=True, slots=True, eq=False)
class Endpoint:
    """One relayed route, compared by identity.

    `kinds` are the kinds of model that can serve it, the default first. `generates` is True if the response is
    generated token by token. `summary` and `example`, a JSON body, are for /docs.
    """

    path: str
    kinds: tuple[Kind, ...]
    body_kind: BodyKind = "json"
    dialect: Dialect = "openai"
    generates: bool = False
    summary: str = ""
    example: Mapping[str, Any] | None = None


_CHAT = {"messages": [{"role": "user", "content": "What is AI?"}], "max_tokens": 512}
_TEXT: tuple[Kind, ...] = ("llm", "multimodal")
_AUDIO: tuple[Kind, ...] = ("transcription",)

# The only route with the model in its path.
TRANSCRIBE_PREFIX = b"/transcribe/"
TRANSCRIBE = Endpoint(
    "/transcribe/{model}", _AUDIO, body_kind="audio", summary="Speech to text, with the recording as the body"
)

ENDPOINTS: tuple[Endpoint, ...] = (
    Endpoint(
        "/v1/chat/completions",
        _TEXT,
        generates=True,
        summary="A chat completion, whole or streamed",
        example=_CHAT,
    ),
    Endpoint(
        "/v1/completions",
        _TEXT,
        generates=True,
        summary="A text completion, whole or streamed",
        example={"prompt": "Once upon a time"},
    ),
    Endpoint(
        "/v1/responses",
        _TEXT,
        dialect="responses",
        generates=True,
        summary="OpenAI's Responses API",
        example={"model": "cluster", "input": "What is AI?"},
    ),
    Endpoint(
        "/v1/messages",
        _TEXT,
        dialect="anthropic",
        generates=True,
        summary="Anthropic's Messages API",
        example={"model": "cluster", **_CHAT},
    ),
    Endpoint(
        "/v1/messages/count_tokens",
        _TEXT,
        dialect="anthropic",
        summary="The number of tokens of a message to Anthropic's Messages API",
        example={"model": "cluster", "messages": _CHAT["messages"]},
    ),
    Endpoint("/v1/embeddings", ("embedding",), summary="Embeddings of texts", example={"input": "Hello world"}),
    # The paths of Jina, of Cohere's API v1 and of its v2, as in vLLM.
    *(
        Endpoint(
            path,
            ("reranker",),
            summary="Documents in order of relevance to a query",
            example={"query": "What is AI?", "documents": ["A field of computing", "A river"]},
        )
        for path in ("/rerank", "/v1/rerank", "/v2/rerank")
    ),
    Endpoint(
        "/v1/score",
        ("reranker",),
        summary="Similarity of pairs of texts",
        example={"text_1": "a cat", "text_2": ["a kitten", "a stone"]},
    ),
    Endpoint("/v1/audio/transcriptions", _AUDIO, body_kind="form", summary="Speech to text"),
    Endpoint("/v1/audio/translations", _AUDIO, body_kind="form", summary="Speech to English text"),
    TRANSCRIBE,
    Endpoint("/tokenize", (*_TEXT, "embedding", "reranker"), summary="Text to tokens", example={"prompt": "Hello"}),
    Endpoint("/detokenize", (*_TEXT, "embedding", "reranker"), summary="Tokens to text", example={"tokens": [1]}),
)

BY_PATH: dict[bytes, Endpoint] = {endpoint.path.encode(): endpoint for endpoint in ENDPOINTS}
