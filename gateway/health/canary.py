"""A question that costs one token: whether an idle backend works, before clients' requests go there."""

import asyncio
import io
import wave
from collections.abc import Mapping
from typing import Any

import httpx2

from gateway.backends.backend import Backend
from gateway.backends.offers import Offer
from gateway.health.backend_client import ask

# How long the answer may take, in seconds: one token of an idle engine.
CANARY_S = 10.0
# A tenth of a second of silence, at the rate that Whisper hears.
RATE = 16_000
SILENCE_S = 0.1


async def ask_canary(client: httpx2.AsyncClient, backend: Backend) -> str | None:
    """Ask; None when the backend works, else what is wrong. Any answer but a 5xx shows that it does."""
    if not backend.offers:
        return "it has not told what it serves"
    path, post = question(backend.offers[0])
    try:
        async with asyncio.timeout(CANARY_S):
            answer = await ask(client, backend, path, post=post)
    except TimeoutError:
        return f"a request for one token had no answer within {CANARY_S:g} s"
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:
        return f"a request for one token failed: {error or type(error).__name__}"
    return f"a request for one token was answered {answer.status_code}" if answer.status_code >= 500 else None


def question(offer: Offer) -> tuple[str, Mapping[str, Any]]:
    """The path, and what httpx2 is given to POST there."""
    model = offer.upstream
    match offer.kind:
        case "embedding":
            return "/v1/embeddings", {"json": {"model": model, "input": "1"}}
        case "reranker":
            return "/v1/rerank", {"json": {"model": model, "query": "1", "documents": ["1"]}}
        case "transcription":
            return "/v1/audio/transcriptions", {
                "data": {"model": model},
                "files": {"file": ("silence.wav", _silence())},
            }
        case _:
            message = {"role": "user", "content": "1"}
            return "/v1/chat/completions", {"json": {"model": model, "messages": [message], "max_tokens": 1}}


def _silence() -> bytes:
    out = io.BytesIO()
    with wave.open(out, "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(RATE)
        sound.writeframes(bytes(int(2 * RATE * SILENCE_S)))
    return out.getvalue()
