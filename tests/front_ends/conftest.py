"""One quickstart, one Open WebUI and one browser, shared by the tests of this folder."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page

from quickstart.preflight import is_port_in_use
from tests.support.browser import chromium, executable
from tests.support.programs.cluster import ROOT, Quickstart, free_offset, home_with_packages
from tests.support.programs.open_webui import OpenWebUI

SENTENCE = ROOT / "quickstart" / "sentence.wav"
SCREENSHOTS = ROOT / ".cluster" / "front-ends"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    missing = [name for name, found in (("chromium", executable()), ("ffmpeg", shutil.which("ffmpeg"))) if not found]
    for item in items:
        if "tests/front_ends/" in str(item.path):
            item.add_marker("front_ends")
            if missing:
                item.add_marker(pytest.mark.skip(reason=f"not installed: {', '.join(missing)}"))


@pytest.fixture(scope="session")
def cluster() -> Iterator[Quickstart]:
    running = Quickstart("--models", "packages", home=home_with_packages(ROOT / ".cluster/tests"), offset=free_offset())
    try:
        running.wait_ready()
        yield running
    finally:
        running.stop()


@pytest.fixture(scope="session")
def open_webui(cluster: Quickstart, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenWebUI]:
    port = next(port for port in range(3300, 3400) if not is_port_in_use(port))
    running = OpenWebUI(tmp_path_factory.mktemp("open-webui"), cluster.url(8080), port)
    try:
        running.wait_ready()
        yield running
    finally:
        running.stop()


@pytest.fixture(scope="session")
def browser_page(open_webui: OpenWebUI, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """The browser's page, after the dialogue of the first visit."""
    with chromium(tmp_path_factory.mktemp("profile"), SENTENCE) as context:
        page = context.pages[0]
        page.set_default_timeout(300_000)
        page.goto(open_webui.url)
        page.get_by_role("button", name="Okay, Let's Go!").click()
        yield page


@pytest.fixture
def page(browser_page: Page, open_webui: OpenWebUI, request: pytest.FixtureRequest) -> Iterator[Page]:
    """A new chat; a screenshot of its end is kept in `.cluster/front-ends`."""
    browser_page.goto(open_webui.url)
    browser_page.locator("#chat-input").wait_for()
    yield browser_page
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    browser_page.screenshot(path=Path(SCREENSHOTS, f"{request.node.name}.png"))
