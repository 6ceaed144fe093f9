"""The OpenAI client with the gateway of a running cluster and real engines."""

import base64
import math
import struct
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from openai import OpenAI

from tests.support.programs.cluster import ROOT, Quickstart

SPEECH = ROOT / "quickstart" / "sentence.wav"
JAPAN: list[Any] = [{"role": "user", "content": "What is the capital of Japan?"}]


@pytest.fixture(scope="module")
def client(cluster: Quickstart) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{cluster.url(8080)}/v1", api_key="none", max_retries=0, timeout=180) as client:
        yield client


def test_chat(client: OpenAI) -> None:
    answer = client.chat.completions.create(model="smollm2", messages=JAPAN, temperature=0, max_tokens=30)
    assert "Tokyo" in (answer.choices[0].message.content or "")
    assert answer.model == "smollm2"
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_virtual_model_selects_the_best_llm(client: OpenAI) -> None:
    """Response headers show which backend answered."""
    raw = client.chat.completions.with_raw_response.create(model="cluster", messages=JAPAN, max_tokens=5)
    assert raw.headers["x-served-by"] == "llm-primary"
    assert raw.headers["x-served-model"] == "smollm2"
    assert raw.headers["x-attempts"] == "1"
    assert raw.headers["x-request-id"]
    assert raw.parse().choices[0].finish_reason == "length"


def test_streaming_with_usage(client: OpenAI) -> None:
    """The last chunk has the requested usage."""
    stream = client.chat.completions.create(
        model="smollm2",
        messages=JAPAN,
        temperature=0,
        max_tokens=30,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert "Tokyo" in text
    assert len(chunks) > 3
    assert sum(1 for chunk in chunks if chunk.choices and chunk.choices[0].finish_reason) == 1
    assert not chunks[-1].choices
    assert chunks[-1].usage is not None


def test_completions(client: OpenAI) -> None:
    answer = client.completions.create(model="qwen", prompt="The capital of Japan is", max_tokens=8, temperature=0)
    assert answer.choices[0].text.strip()
    assert answer.usage is not None
    assert answer.usage.completion_tokens <= 8


def test_embeddings_float_and_base64_agree(client: OpenAI) -> None:
    """384 numbers, of length 1."""
    body = {"model": "minilm", "input": "Hello world"}
    floats = client.embeddings.create(**body, encoding_format="float").data[0].embedding  # type: ignore[arg-type]
    raw = client.embeddings.with_raw_response.create(**body, encoding_format="base64")  # type: ignore[arg-type]
    encoded = base64.b64decode(raw.http_response.json()["data"][0]["embedding"])
    decoded = struct.unpack(f"<{len(encoded) // 4}f", encoded)
    assert len(floats) == len(decoded) == 384
    assert math.isclose(math.sqrt(sum(x * x for x in floats)), 1, abs_tol=1e-3)
    assert max(abs(a - b) for a, b in zip(floats, decoded, strict=True)) < 1e-5


def test_embeddings_without_a_model(cluster: Quickstart, client: OpenAI) -> None:
    """The route selects the kind; alias and repository name select the same model."""
    import httpx2

    answer = httpx2.post(f"{cluster.url(8080)}/v1/embeddings", json={"input": "x"}, timeout=60).json()
    for name in ("embedding", "sentence-transformers/all-MiniLM-L6-v2", "cluster"):
        same = client.embeddings.create(model=name, input="x", encoding_format="float").data[0].embedding
        assert same == pytest.approx(answer["data"][0]["embedding"], abs=1e-5)


@pytest.mark.parametrize("response_format", ["json", "text", "srt", "vtt", "verbose_json"])
def test_transcription(client: OpenAI, response_format: Any) -> None:
    """Under the name that OpenAI's API has for its Whisper."""
    with SPEECH.open("rb") as file:
        answer = client.audio.transcriptions.create(
            model="whisper-1", file=file, language="en", response_format=response_format
        )
    text = answer if isinstance(answer, str) else answer.text
    spoken = (ROOT / "quickstart" / "sentence.txt").read_text().lower().split()
    assert sum(word.strip(".,") in text.lower() for word in spoken) >= len(spoken) - 1


# Deprecated in the client; our services keep the route.
@pytest.mark.filterwarnings("ignore:deprecated:DeprecationWarning")
def test_translation(client: OpenAI) -> None:
    """English stays English."""
    with SPEECH.open("rb") as file:
        assert client.audio.translations.create(model="whisper", file=file).text.strip()


def test_image_question(client: OpenAI) -> None:
    """Requests with images for the virtual model go to the multimodal service."""
    png = (
        "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJ"
        "AAAADUlEQVR42mP8z8BQDwAEhQGAhKmMIQAAAABJRU5ErkJggg=="
    )
    content: Any = [{"type": "text", "text": "What is this?"}, {"type": "image_url", "image_url": {"url": png}}]
    raw = client.chat.completions.with_raw_response.create(
        model="cluster", messages=[{"role": "user", "content": content}], max_tokens=5
    )
    assert raw.headers["x-served-by"] == "multimodal"
    assert raw.parse().model == "llava"


def test_models(client: OpenAI) -> None:
    """Each model once, and the virtual model, with the fields that Chat UI reads; aliases on request."""
    models = {model.id: model for model in client.models.list()}
    assert sorted(models) == ["cluster", "llava", "minilm", "smollm2", "whisper"]
    names = {model.id for model in client.models.list(extra_query={"aliases": True})}
    assert {"qwen", "embedding", "whisper-1"} <= names
    assert models["smollm2"].model_dump()["context_length"] == 8192
    assert client.models.retrieve("smollm2").id == "smollm2"


def test_tools(client: OpenAI) -> None:
    """The model has no tool calling: `auto` is answered without a call, a demanded call gets a clear error."""
    tool: Any = {
        "type": "function",
        "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}},
    }
    asked: dict[str, Any] = {"model": "smollm2", "messages": JAPAN, "tools": [tool], "max_tokens": 5}
    assert client.chat.completions.with_raw_response.create(**asked).headers["x-tools"] == "ignored"
    with pytest.raises(openai.BadRequestError, match="Model 'smollm2' does not support tool calling"):
        client.chat.completions.create(**asked, tool_choice="required")


@pytest.mark.parametrize(
    ("call", "expected", "code"),
    [
        ({"model": "no-such-model"}, openai.NotFoundError, "model_not_found"),
        ({"messages": []}, openai.BadRequestError, None),
        ({"messages": "hello"}, openai.BadRequestError, None),
        ({"max_tokens": -1}, openai.BadRequestError, None),
        ({"temperature": 9}, openai.BadRequestError, None),
        ({"n": 3}, openai.BadRequestError, None),
        (
            {"messages": [{"role": "user", "content": "word " * 20_000}]},
            openai.BadRequestError,
            "context_length_exceeded",
        ),
    ],
)
def test_errors_map_to_the_client_classes(
    client: OpenAI, call: dict[str, Any], expected: type[openai.APIStatusError], code: str | None
) -> None:
    with pytest.raises(expected) as caught:
        client.chat.completions.create(**({"model": "smollm2", "messages": JAPAN} | call))
    assert isinstance(caught.value.body, dict)
    assert caught.value.body["message"]
    if code:
        assert caught.value.code == code


def test_invalid_audio_is_a_bad_request(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError):
        client.audio.transcriptions.create(model="whisper", file=("noise.wav", b"garbage" * 100))
