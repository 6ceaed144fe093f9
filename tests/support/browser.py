"""Debian's Chromium under Playwright."""

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from playwright.sync_api import BrowserContext, sync_playwright

# No requests of its own to the outside, and no profile of the user.
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
# The microphone is a file, and no dialogue asks for it.
MICROPHONE = ("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream")


def executable() -> str | None:
    """Return the path of Chromium, None if it is not installed."""
    return shutil.which("chromium") or shutil.which("chromium-browser")


@contextlib.contextmanager
def chromium(profile: Path, recording: Path) -> Iterator[BrowserContext]:
    """Run Chromium with an empty `profile` and a microphone that plays `recording`, a WAV file, once."""
    with sync_playwright() as playwright:
        context = playwright.chromium.launch_persistent_context(
            profile,
            executable_path=executable(),
            args=[*FLAGS, *MICROPHONE, f"--use-file-for-fake-audio-capture={recording}%noloop"],
            permissions=["microphone"],
            viewport={"width": 1280, "height": 900},
        )
        yield context
        context.close()
