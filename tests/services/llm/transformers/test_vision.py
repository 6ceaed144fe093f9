"""Vision with a tiny LLaVA model."""

import base64
import gc
import hashlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from prometheus_client import CollectorRegistry

from kit.config.catalogue import Entry
from quickstart.models.tiny_llava import make
from services.llm.images.decoding import ImageLimits
from services.llm.images.source import AllowedSources, ImageSource
from services.llm.transformers.engine import TokenizerTools, TransformersEngine
from services.llm.transformers.generation import Generations, Limits, Run
from services.llm.transformers.model import load
from services.llm.transformers.token_metrics import TokenMetrics
from services.llm.validation import requests
from tests.services.llm.serving import service

pytestmark = pytest.mark.engines


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("llava")
    make(path)
    return path


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory, folder: Path) -> Iterator[openai.OpenAI]:
    tmp = tmp_path_factory.mktemp("service")
    with (
        service(tmp, folder, kind="multimodal", context=2048, max_images=2) as url,
        openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=120) as client,
    ):
        yield client


def picture(colour: tuple[int, int, int]) -> str:
    from PIL import Image

    out = io.BytesIO()
    Image.new("RGB", (80, 60), colour).save(out, "PNG")
    return "data:image/png;base64," + base64.b64encode(out.getvalue()).decode()


def question(*urls: str) -> list[Any]:
    parts = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": "what is this"}]}]


def ask(client: openai.OpenAI, messages: list[Any]) -> str | None:
    answer = client.chat.completions.create(model="tiny", messages=messages, temperature=0, max_tokens=8)
    return answer.choices[0].message.content


def test_image_changes_the_response(client: openai.OpenAI) -> None:
    """The same image gives the same response."""
    red = ask(client, question(picture((255, 0, 0))))
    assert red == ask(client, question(picture((255, 0, 0))))
    assert red != ask(client, question(picture((0, 0, 255))))


def test_image_adds_prompt_tokens(client: openai.OpenAI) -> None:
    def prompt(messages: list[Any]) -> int:
        answer = client.chat.completions.create(model="tiny", messages=messages, max_tokens=1)
        assert answer.usage is not None
        return answer.usage.prompt_tokens

    assert prompt(question(picture((9, 9, 9)))) >= prompt(question()) + 16


def test_response_to_an_image_can_be_streamed(client: openai.OpenAI) -> None:
    messages = question(picture((0, 255, 0)))
    stream = client.chat.completions.create(model="tiny", messages=messages, temperature=0, max_tokens=8, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == ask(client, messages)


def test_response_to_an_image_can_be_continued(client: openai.OpenAI) -> None:
    """The text so far is part of the prompt."""

    def prompt(begun: str, **suffix: bool) -> int:
        messages = [*question(picture((9, 9, 9))), {"role": "assistant", "content": begun}]
        answer = client.chat.completions.create(model="tiny", messages=messages, max_tokens=1, extra_body=suffix)
        assert answer.usage is not None
        return answer.usage.prompt_tokens

    continued = prompt("a red square", continue_final_message=True, add_generation_prompt=False)
    assert continued < prompt("a red square")
    assert continued > prompt("a", continue_final_message=True, add_generation_prompt=False)


def test_vision_model_supports_text_only(client: openai.OpenAI) -> None:
    assert ask(client, [{"role": "user", "content": "what is this"}])


def test_responses_api_supports_images(client: openai.OpenAI) -> None:
    content: Any = [
        {"type": "input_text", "text": "what is this"},
        {"type": "input_image", "image_url": picture((255, 0, 0)), "detail": "auto"},
    ]
    answer = client.responses.create(model="tiny", input=[{"role": "user", "content": content}], max_output_tokens=4)
    assert answer.usage is not None
    assert answer.usage.input_tokens > 16


@pytest.mark.parametrize(
    ("urls", "message"),
    [
        (["http://169.254.169.254/a.png"], "does not fetch"),
        (["data:image/png;base64,AAAA"], "not one of"),
        (["data:image/png;base64,!"], "not base64"),
        (["file:///etc/passwd"], "data URI"),
        ([picture((0, 0, 0))] * 3, "MAX_IMAGES"),
    ],
)
def test_invalid_images_are_rejected_with_the_reason(client: openai.OpenAI, urls: list[str], message: str) -> None:
    with pytest.raises(openai.BadRequestError, match=message):
        ask(client, question(*urls))


class Idle:
    """A runner that computes nothing."""

    def start(self, run: Run) -> None: ...

    def cancel(self, run: Run) -> None: ...

    async def aclose(self) -> None: ...


async def test_decoded_images_are_released_while_a_request_waits(folder: Path) -> None:
    """A small file may be 120 MB when decoded, and many requests may wait."""
    from PIL import Image

    entry = Entry(name="tiny", kind="multimodal", hf_repo="org/tiny")
    loaded = load(folder, entry, {}, "cpu", 1, lambda *_: None)
    limits = Limits(context=2048, default_max_tokens=8, max_concurrent=1, max_queue=1)
    metrics = TokenMetrics(CollectorRegistry(), model="tiny")
    generations = Generations(Idle(), limits, ends=loaded.ends, tools=TokenizerTools(loaded), metrics=metrics)
    images = ImageSource(ImageLimits(2, 1, 1), AllowedSources())
    engine = TransformersEngine(loaded, "tiny", generations, images, batched=False)
    work = requests.chat({"messages": question(picture((1, 2, 3)))}, engine.capabilities)
    job = engine.admit("chat", work)
    try:
        await engine.start("chat", work, job)
        gc.collect()
        living = [thing for thing in gc.get_objects() if issubclass(type(thing), Image.Image)]
        assert (80, 60) not in [image.size for image in living]
        assert "base64" not in repr(work)
    finally:
        job.cancel()
        await engine.aclose()


def test_tiny_model_is_reproducible(folder: Path, tmp_path: Path) -> None:
    make(tmp_path)

    def digests(path: Path) -> dict[str, str]:
        return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in path.iterdir()}

    assert digests(tmp_path) == digests(folder)
