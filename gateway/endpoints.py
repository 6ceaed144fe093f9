"""The routes that are relayed: what kind of model each needs and how its request and errors look."""

from dataclasses import dataclass
from typing import Literal

from kit.catalogue import Kind

Takes = Literal["json", "form", "audio"]
Dialect = Literal["openai", "responses", "anthropic"]


@dataclass(frozen=True, slots=True, eq=False)
class Endpoint:
    """One relayed route, compared by identity.

    `kinds` are the kinds of model that may answer it, the one meant without a name first.
    """

    path: str
    kinds: tuple[Kind, ...]
    takes: Takes = "json"
    dialect: Dialect = "openai"
    summary: str = ""


_TEXT: tuple[Kind, ...] = ("llm", "multimodal")
_AUDIO: tuple[Kind, ...] = ("transcription",)

# The one route whose path names the model.
TRANSCRIBE_PREFIX = b"/transcribe/"
TRANSCRIBE = Endpoint("/transcribe/{model}", _AUDIO, takes="audio", summary="Speech to text, the body being the sound")

ENDPOINTS: tuple[Endpoint, ...] = (
    Endpoint("/v1/chat/completions", _TEXT, summary="A chat completion, whole or streamed"),
    Endpoint("/v1/completions", _TEXT, summary="A text completion, whole or streamed"),
    Endpoint("/v1/responses", _TEXT, dialect="responses", summary="OpenAI's Responses API"),
    Endpoint("/v1/messages", _TEXT, dialect="anthropic", summary="Anthropic's Messages API"),
    Endpoint("/v1/embeddings", ("embedding",), summary="Embeddings of texts"),
    Endpoint("/v1/rerank", ("reranker",), summary="Documents in order of relevance to a query"),
    Endpoint("/v1/score", ("reranker",), summary="Similarity of pairs of texts"),
    Endpoint("/v1/audio/transcriptions", _AUDIO, takes="form", summary="Speech to text"),
    Endpoint("/v1/audio/translations", _AUDIO, takes="form", summary="Speech to English text"),
    TRANSCRIBE,
    Endpoint("/tokenize", (*_TEXT, "embedding", "reranker"), summary="Text to tokens"),
    Endpoint("/detokenize", (*_TEXT, "embedding", "reranker"), summary="Tokens to text"),
)

BY_PATH: dict[bytes, Endpoint] = {endpoint.path.encode(): endpoint for endpoint in ENDPOINTS}
