"""Smoke test: requests through the gateway, with responses and times printed."""

import json
import math
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import httpx2

from quickstart import QuickstartError
from quickstart.plan import Plan

AUDIO = Path(__file__).with_name("sentence.wav")
TRANSCRIPT = Path(__file__).with_name("sentence.txt")
TIMEOUT_S = 180.0

# Prompts and a word that a correct response contains. A model of 135 million parameters may fail one.
FACTS = (
    ("What is the capital of Japan?", "tokyo"),
    ("What is the capital of China?", "beijing"),
    ("Who wrote Romeo and Juliet?", "shakespeare"),
    ("What is the chemical formula of water?", "h2o"),
    ("What is the largest ocean on Earth?", "pacific"),
)
FACTS_NEEDED = 4
DIMENSIONS = 384
RELATED = ("A man is eating pasta.", "Someone has a plate of spaghetti.")
UNRELATED = "The stock market fell on Tuesday."
GENERATION: dict[str, Any] = {"temperature": 0, "max_tokens": 40}


def run(plan: Plan) -> None:
    """Send requests of each kind to the gateway. Raises QuickstartError if any response is wrong."""
    keys = [key for key in os.environ.get("GATEWAY_API_KEYS", "").split(",") if key]
    headers = {"Authorization": f"Bearer {keys[0]}"} if keys else {}
    problems: list[str] = []
    with httpx2.Client(base_url=plan.gateway.url, headers=headers, timeout=TIMEOUT_S, trust_env=False) as client:
        checks = [_facts, _streamed, _embeddings, _transcription]
        if any(program.name == "multimodal" for program in plan.services):
            checks.append(_image)
        for check in checks:
            try:
                problems += check(client)
            except httpx2.HTTPStatusError as error:
                problems.append(
                    f"{error.request.url}: status {error.response.status_code}: {_error_message(error.response)}"
                )
            except httpx2.HTTPError as error:
                problems.append(f"{check.__name__.strip('_')}: {type(error).__name__}: {error}")
    if problems:
        raise QuickstartError(
            "The cluster is running, but these requests failed:\n" + "\n".join(f"  - {problem}" for problem in problems)
        )
    print("\nAll responses are correct.")


def _facts(client: httpx2.Client) -> list[str]:
    correct = 0
    for prompt, fact in FACTS:
        took_s, response = _timed(partial(_post, client, "/v1/chat/completions", _chat(prompt)))
        text = response["choices"][0]["message"]["content"].strip()
        found = fact in text.lower()
        correct += found
        print(f"\n{'✓' if found else '✗'} {prompt}  ({took_s:.1f} s)\n  {_short(text)}", flush=True)
    if correct < FACTS_NEEDED:
        return [f"only {correct} of {len(FACTS)} chat responses contained the expected word"]
    return []


def _streamed(client: httpx2.Client) -> list[str]:
    prompt = FACTS[0][0]
    began = time.perf_counter()
    first = 0.0
    pieces: list[str] = []
    ended = False
    with client.stream("POST", "/v1/chat/completions", json=_chat(prompt) | {"stream": True}) as response:
        if response.is_error:
            response.read()
        response.raise_for_status()
        for line in response.iter_lines():
            if line == "data: [DONE]":
                ended = True
            elif line.startswith("data: "):
                pieces += [choice["delta"].get("content") or "" for choice in json.loads(line[6:])["choices"]]
                if not first and any(pieces):
                    first = time.perf_counter() - began
    took_s = time.perf_counter() - began
    chunks = sum(1 for piece in pieces if piece)
    text = "".join(pieces).strip()
    print(
        f"\n✓ {prompt}  (streamed: first {first:.2f} s, all {took_s:.1f} s, {chunks} chunks)\n  {_short(text)}",
        flush=True,
    )
    problems = [] if ended else ["the stream did not end with data: [DONE]"]
    return problems if chunks > 1 else [*problems, f"the stream had only {chunks} chunk(s)"]


def _embeddings(client: httpx2.Client) -> list[str]:
    took_s, response = _timed(lambda: _post(client, "/v1/embeddings", {"input": [*RELATED, UNRELATED]}))
    one, two, other = (item["embedding"] for item in response["data"])
    near, far = _dot(one, two), _dot(one, other)
    norm = math.sqrt(_dot(one, one))
    print(f"\n✓ 3 embeddings, {len(one)} dimensions, norm {norm:.4f}  ({took_s:.2f} s)")
    print(f"  {RELATED[0]!r} ~ {RELATED[1]!r}: {near:.2f}, ~ {UNRELATED!r}: {far:.2f}", flush=True)
    problems = []
    if len(one) != DIMENSIONS or abs(norm - 1) > 1e-3:
        problems.append(f"the embedding has {len(one)} dimensions and norm {norm:.4f}, not {DIMENSIONS} and 1")
    if near <= far:
        problems.append("related sentences are not closer than unrelated ones")
    return problems


def _transcription(client: httpx2.Client) -> list[str]:
    def transcribe() -> Any:
        files = {"file": (AUDIO.name, AUDIO.read_bytes(), "audio/wav")}
        response = client.post("/v1/audio/transcriptions", files=files, data={"model": "whisper", "language": "en"})
        return response.raise_for_status().json()

    took_s, response = _timed(transcribe)
    text = response["text"].strip()
    print(f"\n✓ {AUDIO.name}  ({took_s:.1f} s)\n  {text}", flush=True)
    missing = _words(TRANSCRIPT.read_text()) - _words(text)
    return [f"the transcription lacks the words {', '.join(sorted(missing))}"] if missing else []


def _image(client: httpx2.Client) -> list[str]:
    # One red pixel is enough: the model's weights are random.
    png = (
        "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJ"
        "AAAADUlEQVR42mP8z8BQDwAEhQGAhKmMIQAAAABJRU5ErkJggg=="
    )
    content = [{"type": "text", "text": "What is this?"}, {"type": "image_url", "image_url": {"url": png}}]
    body = {"messages": [{"role": "user", "content": content}], **GENERATION}
    took_s, response = _timed(lambda: _post(client, "/v1/chat/completions", body))
    text = response["choices"][0]["message"]["content"].strip()
    print(f"\n✓ an image question, model {response['model']}  ({took_s:.1f} s; random weights)\n  {_short(text)}")
    return [] if text else ["the image question got an empty response"]


def _chat(prompt: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": prompt}], **GENERATION}


def _post(client: httpx2.Client, path: str, body: dict[str, Any]) -> Any:
    return client.post(path, json=body).raise_for_status().json()


def _timed(call: Callable[[], Any]) -> tuple[float, Any]:
    began = time.perf_counter()
    result = call()
    return time.perf_counter() - began, result


def _dot(one: list[float], two: list[float]) -> float:
    return sum(a * b for a, b in zip(one, two, strict=True))


def _words(text: str) -> set[str]:
    return set("".join(letter if letter.isalnum() else " " for letter in text.lower()).split())


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 160 else line[:159] + "…"


def _error_message(response: httpx2.Response) -> str:
    try:
        return str(response.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return response.text[:200]
