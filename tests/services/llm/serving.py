"""The service with a real engine in this process, on its own port."""

import contextlib
import json
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import httpx2

from kit.config.settings import load_settings
from services.llm.app import create
from services.llm.settings import LlmSettings
from tests.kit.served import serve

LOADED_WITHIN_S = 300


@contextlib.contextmanager
def service(
    tmp: Path,
    model: Path,
    *,
    kind: str = "llm",
    context: int = 8192,
    entry: Mapping[str, Any] = MappingProxyType({}),
    **settings: Any,
) -> Iterator[str]:
    """Serve the model in the folder `model` as `tiny`, alias `small`; yields the URL once it is loaded.

    `entry` has more keys of its entry in the catalogue.
    """
    catalogue = tmp / "models.yaml"
    keys = {"kind": kind, "hf_repo": "org/tiny", "aliases": ["small"], "context_length": context, **entry}
    catalogue.write_text(json.dumps({"tiny": keys}))
    given = {"catalogue": catalogue, "model": "tiny", "model_dir": model, "engine": "transformers", **settings}
    with serve(create(load_settings(LlmSettings, **given))) as (host, port):
        url = f"http://{host}:{port}"
        wait_until_loaded(url)
        yield url


def wait_until_loaded(url: str) -> None:
    """Poll `/health` until the model is loaded."""
    pause = threading.Event()
    with httpx2.Client(base_url=url, timeout=httpx2.Timeout(10)) as client:
        for _ in range(LOADED_WITHIN_S * 20):
            try:
                health = client.get("/health").json()
            except httpx2.ConnectError:
                health = {"status": "starting"}
            assert health["status"] != "failed", health
            if health["status"] == "healthy":
                return
            pause.wait(0.05)
    raise AssertionError("the model did not load in time")
