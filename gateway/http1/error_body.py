"""Error responses of backends that a client cannot use as they are, replaced by our own. Pure."""

import json
from typing import Any

from kit.errors import ANTHROPIC_TYPES, ApiError, NotFound, is_messages_api

# Statuses of a route that a server lacks, and the messages that say so: Starlette's (vLLM, SGLang) and llama.cpp's.
# Others send no JSON: Ollama's "404 page not found", the empty body of text-generation-inference.
_NO_ROUTE_STATUSES = frozenset({404, 405, 501})
_NO_ROUTE = frozenset({"Not Found", "Method Not Allowed", "File Not Found"})
_KNOWN_TYPES = frozenset({*ANTHROPIC_TYPES.values(), "invalid_request_error", "api_error"})
MAX_SHOWN = 500  # characters of a body that is not JSON


def replacement(path: str, status: int, body: bytes, backend: str) -> ApiError | None:
    """Return the error to send in place of a backend's error response, None to send that.

    `backend` is its name and engine. A route that it lacks is named. On the Messages API an error in another envelope,
    such as vLLM's about an invalid body, becomes Anthropic's.
    """
    document = _json_object(body)
    message = _message(document)
    if status in _NO_ROUTE_STATUSES and (not message or message in _NO_ROUTE or message.startswith("No route ")):
        return NotFound(
            f"{backend} does not support POST {path}. Use a model whose engine does, such as vLLM (GET /services lists "
            "the engines), or another route."
        )
    if not is_messages_api(path) or (document.get("type") == "error" and _type(document) in _KNOWN_TYPES):
        return None
    text = message or body[:MAX_SHOWN].decode(errors="replace").strip() or f"{backend} returned {status}."
    return ApiError(text, status=status)


def _json_object(body: bytes) -> dict[str, Any]:
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return document if isinstance(document, dict) else {}


def _message(document: dict[str, Any]) -> str:
    """Return the message of the usual envelopes: OpenAI's and Anthropic's, Ollama's, FastAPI's, Cohere's."""
    error = document.get("error")
    found = error.get("message") if isinstance(error, dict) else error
    found = found or document.get("detail") or document.get("message")
    return found if isinstance(found, str) else ""


def _type(document: dict[str, Any]) -> str:
    error = document.get("error")
    return str(error.get("type")) if isinstance(error, dict) else ""
