"""Open WebUI with its default settings in a real browser, against a quickstart with real models."""

import re
import time
from pathlib import Path
from typing import Any

import httpx2
from playwright.sync_api import Page, expect

from tests.support.programs.cluster import ROOT, Quickstart

MS = 300_000


def service(cluster: Quickstart, name: str) -> dict[str, Any]:
    """The gateway's view of one backend."""
    found: dict[str, dict[str, dict[str, Any]]] = httpx2.get(f"{cluster.url(8080)}/services", timeout=10).json()
    return found["services"][name]


def send(page: Page, text: str) -> None:
    page.locator("#chat-input").click()
    page.keyboard.type(text)
    page.locator("#send-message-button").click()


def cancelled(cluster: Quickstart) -> int:
    """The number of chats that ended with 499, by the gateway's metrics."""
    metrics = httpx2.get(f"{cluster.url(8080)}/metrics", timeout=10).text
    pattern = r'^\w*requests_total\{[^}]*route="/v1/chat/completions"[^}]*status="499"[^}]*\} (\d+)'
    return sum(int(count) for count in re.findall(pattern, metrics, re.MULTILINE))


def test_each_model_is_listed_once(page: Page) -> None:
    page.locator("#model-selector-model-button").click()
    page.locator("#model-selector-list [data-value]").first.wait_for()
    listed = [item.get_attribute("data-value") for item in page.locator("#model-selector-list [data-value]").all()]
    assert listed == ["cluster", "smollm2", "minilm", "whisper"]


def test_chat_with_default_settings_streams(page: Page) -> None:
    """Open WebUI sends its tools with every chat; the model, which calls none, responds all the same."""
    send(page, "What is the capital of Japan?")
    response = page.locator(".chat-assistant").last
    expect(response).to_contain_text("Tokyo", timeout=MS)
    expect(page.get_by_role("button", name="Regenerate")).to_be_visible(timeout=MS)
    assert "tool" not in response.inner_text()


def test_stop_ends_the_generation(page: Page, cluster: Quickstart) -> None:
    before = cancelled(cluster)
    send(page, "Write a very long story about a lighthouse.")
    response = page.locator(".chat-assistant").last
    expect(response).to_contain_text(re.compile(r"\w+ \w+"), timeout=MS)
    page.get_by_role("button", name="Stop").click()
    expect(page.get_by_role("button", name="Stop")).to_be_hidden(timeout=MS)
    deadline = time.monotonic() + 60
    while cancelled(cluster) == before:
        assert time.monotonic() < deadline, "the gateway did not see that the browser stopped the response"
        time.sleep(0.05)


def test_file_is_embedded_and_cited(page: Page, cluster: Quickstart, tmp_path: Path) -> None:
    """The file passes through our embeddings, and the response is bounded though Open WebUI sets no bound."""
    before = service(cluster, "embedding")["requests"]
    note = tmp_path / "ward.txt"
    note.write_text("The code of the medicine cabinet on ward 7 is 4711.\n")
    page.locator("input[type=file]").first.set_input_files(note)
    expect(page.get_by_text("ward.txt")).to_be_visible(timeout=MS)
    send(page, "What is the code of the medicine cabinet on ward 7?")
    expect(page.locator(".chat-assistant").last).to_contain_text("4711", timeout=2 * MS)
    expect(page.get_by_role("button", name="Regenerate")).to_be_visible(timeout=2 * MS)
    assert service(cluster, "embedding")["requests"] > before


def test_dictation_is_transcribed(page: Page) -> None:
    """The microphone plays `quickstart/sentence.wav`; the words appear in the input."""
    spoken = set(re.findall(r"\w+", (ROOT / "quickstart/sentence.txt").read_text().lower()))
    page.locator("#voice-input-button").click()
    page.wait_for_timeout(5_000)  # the recording takes 3.3 s
    page.locator("#confirm-recording-button").click()
    expect(page.locator("#chat-input")).to_contain_text(re.compile(r"\w+ \w+"), timeout=MS)
    written = set(re.findall(r"\w+", page.locator("#chat-input").inner_text().lower()))
    assert len(written & spoken) >= 0.7 * len(spoken)
