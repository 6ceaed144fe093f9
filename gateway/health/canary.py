"""Canary requests: a minimal request that shows whether an idle backend works before it gets clients' requests."""

import asyncio
import io
import wave
from collections.abc import Mapping
from typing import Any

import httpx2

from gateway.backends.backend import Backend
from gateway.backends.offers import Offer
from gateway.backends.response_verdict import REJECTIONS, ResponseVerdict, verdict_of
from gateway.health.backend_client import query

# Timeout in seconds, for one token of an idle engine.
CANARY_S = 10.0
# The recording for speech models: silence at Whisper's sample rate.
RATE = 16_000
SILENCE_S = 0.1


async def send_canary(client: httpx2.AsyncClient, backend: Backend, timeout_s: float = CANARY_S) -> str | None:
    """Send a canary; return None if the backend works, else the error. An idle one that says it is full works."""
    if not backend.offers:
        return "its models are not known"
    path, post = canary_request(backend.offers[0])
    try:
        async with asyncio.timeout(timeout_s):
            response = await query(client, backend, path, post=post)
    except TimeoutError:
        return f"a canary request had no response within {timeout_s:g} s"
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:
        return f"a canary request failed: {error or type(error).__name__}"
    status = response.status_code
    verdict = verdict_of(status, response.content, names_pause="retry-after" in response.headers)
    if verdict in REJECTIONS:
        return backend.misconfiguration(status)
    is_failure = verdict in (ResponseVerdict.FAULT, ResponseVerdict.ELSEWHERE)
    return f"a canary request got status {status}" if is_failure else None


def canary_request(offer: Offer) -> tuple[str, Mapping[str, Any]]:
    """Return the path and httpx2's arguments of a canary for this kind of model."""
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
