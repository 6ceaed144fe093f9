"""Images through vLLM's own handlers, by the service's rules for what is fetched and how large an image may be."""

import base64
import io
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx2
import openai
import pytest
from PIL import Image

from tests.engines.vllm_service import VllmService

MODEL = "tiny"


def picture(colour: tuple[int, int, int] = (255, 0, 0), size: tuple[int, int] = (80, 60), format: str = "PNG") -> str:
    out = io.BytesIO()
    Image.new("RGB", size, colour).save(out, format)
    return uri(out.getvalue())


def uri(content: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(content).decode()


def bomb() -> str:
    """Some ten thousand bytes that claim two hundred million pixels, more than Pillow itself would open."""
    out = io.BytesIO()
    Image.new("1", (20_000, 10_000)).save(out, "PNG")
    return uri(out.getvalue())


def question(*urls: str) -> list[Any]:
    parts = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": "what is this"}]}]


def ask(client: openai.OpenAI, messages: list[Any]) -> str | None:
    answer = client.chat.completions.create(model=MODEL, messages=messages, temperature=0, max_tokens=8)
    return answer.choices[0].message.content


def test_an_image_is_looked_at(seeing: openai.OpenAI) -> None:
    """Another image gives other words, the same image the same."""
    red = ask(seeing, question(picture((255, 0, 0))))
    assert red == ask(seeing, question(picture((255, 0, 0))))
    assert red != ask(seeing, question(picture((0, 0, 255))))


@pytest.mark.parametrize("format", ["JPEG", "WEBP", "GIF", "BMP"])
def test_the_usual_formats_are_taken(seeing: openai.OpenAI, format: str) -> None:
    assert ask(seeing, question(picture(format=format)))


class Shelf(BaseHTTPRequestHandler):
    """Answers with a red picture, or sends on to a place that was not named."""

    def do_GET(self) -> None:
        if self.path == "/away":
            self.send_response(302)
            self.send_header("location", "http://169.254.169.254/latest/meta-data")
            self.end_headers()
            return
        self.send_response(200)
        self.end_headers()
        self.wfile.write(base64.b64decode(picture().partition(",")[2]))

    def log_message(self, *_: Any) -> None: ...


@pytest.fixture
def shelf() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Shelf) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://localhost:{server.server_port}"
        server.shutdown()
        thread.join()


def test_an_image_is_fetched_from_a_named_host_and_from_no_other(seeing: openai.OpenAI, shelf: str) -> None:
    assert ask(seeing, question(f"{shelf}/a.png")) == ask(seeing, question(picture()))
    with pytest.raises(openai.BadRequestError, match="IMAGE_HOSTS"):
        ask(seeing, question(f"{shelf}/away"))


def test_an_answer_about_an_image_streams(seeing: openai.OpenAI) -> None:
    messages = question(picture((0, 255, 0)))
    stream = seeing.chat.completions.create(model=MODEL, messages=messages, temperature=0, max_tokens=8, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == ask(seeing, messages)


def test_images_in_responses(seeing: openai.OpenAI) -> None:
    content: Any = [
        {"type": "input_text", "text": "what is this"},
        {"type": "input_image", "image_url": picture(), "detail": "auto"},
    ]
    answer = seeing.responses.create(model=MODEL, input=[{"role": "user", "content": content}], max_output_tokens=4)
    assert answer.usage is not None
    assert answer.usage.input_tokens > 16


@pytest.mark.parametrize(
    ("urls", "says"),
    [
        (["http://169.254.169.254/a.png"], "IMAGE_HOSTS"),
        (["https://example.org/a.png"], "IMAGE_HOSTS"),
        (["file:///etc/passwd"], "data URI"),
        (["a.png"], "data URI"),
        (["data:text/plain;base64,aGVsbG8="], "data:image/png"),
        (["data:image/png;base64,!"], "not base64"),
        (["data:image/png;base64,AAAA"], "none of"),
        ([picture()[:122]], "truncated"),
        ([picture(format="TIFF")], "none of"),
        ([bomb()], "MAX_IMAGE_MEGAPIXELS|cannot be read"),
        ([picture(size=(2000, 1000))], "MAX_IMAGE_MEGAPIXELS"),
        ([uri(b"x" * 1_200_000)], "MAX_IMAGE_MB"),
        ([picture()] * 3, "2 image"),
    ],
    ids=[
        "metadata",
        "https",
        "file",
        "path",
        "text",
        "base64",
        "bytes",
        "cut",
        "tiff",
        "bomb",
        "pixels",
        "mb",
        "count",
    ],
)
def test_bad_images_are_refused_with_the_reason(seeing: openai.OpenAI, urls: list[str], says: str) -> None:
    with pytest.raises(openai.BadRequestError, match=says):
        ask(seeing, question(*urls))


def test_nothing_of_that_made_the_engine_fail(vision: VllmService) -> None:
    log = vision.log.read_text()
    assert "EngineDeadError" not in log
    assert httpx2.get(f"{vision.url}/health").json()["status"] == "healthy"
