"""One real request of each kind through the gateway, with a check of the response."""

import math
from collections.abc import Callable
from typing import Any

import httpx2

from tests.stack.stack import ROOT

GATEWAY = "http://127.0.0.1:8080/v1"
PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8BQDwAEhQGAhKmMIQAAAABJRU5ErkJggg=="


def post(path: str, **options: Any) -> Any:
    """POST to the gateway's /v1; return the JSON. Raises httpx2.HTTPStatusError."""
    with httpx2.Client(trust_env=False, timeout=180) as client:
        return client.post(GATEWAY + path, **options).raise_for_status().json()


def succeeds(request: Callable[[], object]) -> Callable[[], bool]:
    """Return a condition to wait for: one of the requests below succeeds."""

    def condition() -> bool:
        request()
        return True

    return condition


def chat(model: str = "qwen") -> str:
    """A chat completion with a fact that the small model gives right."""
    question = [{"role": "user", "content": "What is the capital of Japan?"}]
    body = {"model": model, "messages": question, "temperature": 0, "max_tokens": 30}
    text: str = post("/chat/completions", json=body)["choices"][0]["message"]["content"]
    assert "Tokyo" in text
    return text


def embedding() -> None:
    """An embedding of 384 dimensions and length 1."""
    vector = post("/embeddings", json={"input": "Hello world"})["data"][0]["embedding"]
    assert len(vector) == 384
    assert math.isclose(math.hypot(*vector), 1, abs_tol=1e-3)


def image_question() -> None:
    """An image request; the model's weights are random, so the text is not checked."""
    image = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG}"}}
    content = [{"type": "text", "text": "What is this?"}, image]
    response = post("/chat/completions", json={"messages": [{"role": "user", "content": content}], "max_tokens": 5})
    assert response["model"] == "llava"
    assert response["usage"]["completion_tokens"] > 0


def transcription() -> None:
    """A transcription that has the spoken words."""
    with (ROOT / "quickstart" / "sentence.wav").open("rb") as file:
        text = post("/audio/transcriptions", files={"file": file}, data={"model": "whisper"})["text"]
    assert "window" in text.lower()
