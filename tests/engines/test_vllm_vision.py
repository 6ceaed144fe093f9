"""Images through vLLM's handlers, with the service's rules for sources and sizes."""

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
    """Return a small PNG of two hundred million pixels, over Pillow's limit."""
    out = io.BytesIO()
    Image.new("1", (20_000, 10_000)).save(out, "PNG")
    return uri(out.getvalue())


def question(*urls: str) -> list[Any]:
    parts = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": "what is this"}]}]


def ask(client: openai.OpenAI, messages: list[Any]) -> str | None:
    answer = client.chat.completions.create(model=MODEL, messages=messages, temperature=0, max_tokens=8)
    return answer.choices[0].message.content


def test_image_changes_the_response(vision_client: openai.OpenAI) -> None:
    """The same image gives the same response."""
    red = ask(vision_client, question(picture((255, 0, 0))))
    assert red == ask(vision_client, question(picture((255, 0, 0))))
    assert red != ask(vision_client, question(picture((0, 0, 255))))


@pytest.mark.parametrize("format", ["JPEG", "WEBP", "GIF", "BMP"])
def test_common_formats_are_accepted(vision_client: openai.OpenAI, format: str) -> None:
    assert ask(vision_client, question(picture(format=format)))


class ImageServer(BaseHTTPRequestHandler):
    """Serves a red image, or redirects to a host that is not allowed."""

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
def image_server() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), ImageServer) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://localhost:{server.server_port}"
        server.shutdown()
        thread.join()


def test_images_are_fetched_from_allowed_hosts_only(vision_client: openai.OpenAI, image_server: str) -> None:
    assert ask(vision_client, question(f"{image_server}/a.png")) == ask(vision_client, question(picture()))
    with pytest.raises(openai.BadRequestError, match="IMAGE_HOSTS"):
        ask(vision_client, question(f"{image_server}/away"))


def test_response_to_an_image_can_be_streamed(vision_client: openai.OpenAI) -> None:
    messages = question(picture((0, 255, 0)))
    stream = vision_client.chat.completions.create(
        model=MODEL, messages=messages, temperature=0, max_tokens=8, stream=True
    )
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == ask(vision_client, messages)


def test_responses_api_supports_images(vision_client: openai.OpenAI) -> None:
    content: Any = [
        {"type": "input_text", "text": "what is this"},
        {"type": "input_image", "image_url": picture(), "detail": "auto"},
    ]
    answer = vision_client.responses.create(
        model=MODEL, input=[{"role": "user", "content": content}], max_output_tokens=4
    )
    assert answer.usage is not None
    assert answer.usage.input_tokens > 16


@pytest.mark.parametrize(
    ("urls", "message"),
    [
        (["http://169.254.169.254/a.png"], "IMAGE_HOSTS"),
        (["https://example.org/a.png"], "IMAGE_HOSTS"),
        (["file:///etc/passwd"], "data URI"),
        (["a.png"], "data URI"),
        (["data:text/plain;base64,aGVsbG8="], "data:image/png"),
        (["data:image/png;base64,!"], "not base64"),
        (["data:image/png;base64,AAAA"], "not one of"),
        ([picture()[:122]], "truncated"),
        ([picture(format="TIFF")], "not one of"),
        ([bomb()], "MAX_IMAGE_MEGAPIXELS|could not be read"),
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
def test_invalid_images_are_rejected_with_the_reason(
    vision_client: openai.OpenAI, urls: list[str], message: str
) -> None:
    with pytest.raises(openai.BadRequestError, match=message):
        ask(vision_client, question(*urls))


def test_invalid_images_do_not_fail_the_engine(vision: VllmService) -> None:
    log = vision.log.read_text()
    assert "EngineDeadError" not in log
    assert httpx2.get(f"{vision.url}/health").json()["status"] == "healthy"
