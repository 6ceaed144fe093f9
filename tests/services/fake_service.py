"""Services over HTTP with a fake engine behind the real routes, middleware and queue; checks shared by their tests."""

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2

from kit.config.settings import load_settings
from kit.service.service import ServiceSettings
from tests.kit.served import serve, wait_healthy

WAIT_S = 10
Start = Callable[..., contextlib.AbstractContextManager[httpx2.Client]]


@contextlib.contextmanager
def serve_fake(
    create_app: Callable[..., Any],
    settings_class: type[ServiceSettings],
    folder: Path,
    engine: object,
    *,
    kind: str,
    open_engine: Callable[..., Any] | None = None,
    end: Callable[[], None] = lambda: None,
    ready: bool = True,
    **settings: Any,
) -> Iterator[httpx2.Client]:
    """Serve a model named tiny, of `kind`; yields a client, once the model is loaded if `ready`."""
    catalogue = folder / "models.yaml"
    entry = {"kind": kind, "hf_repo": "org/tiny-model", "aliases": ["small"]}
    catalogue.write_text(json.dumps({"tiny": entry, "chat": {"kind": "llm", "hf_repo": "org/chat"}}))
    values = {"catalogue": catalogue, "model": "tiny", "model_dir": folder, **settings}
    app = create_app(load_settings(settings_class, **values), open_engine or (lambda *_: engine), end)
    with serve(app) as (host, port), httpx2.Client(base_url=f"http://{host}:{port}", timeout=60) as client:
        if ready:
            wait_healthy(client)
        yield client


class Gate:
    """Pause point of a fake engine; open at first."""

    def __init__(self) -> None:
        self._opened = threading.Event()
        self._reached = threading.Event()
        self.open()

    def open(self) -> None:
        self._opened.set()

    def close(self) -> None:
        self._reached.clear()
        self._opened.clear()

    def pass_through(self) -> None:
        """Called by the engine: block while the gate is closed."""
        self._reached.set()
        assert self._opened.wait(WAIT_S), "gate not opened in time"

    def wait_until_reached(self) -> None:
        """Return once the engine has reached the gate since it was closed."""
        assert self._reached.wait(WAIT_S), "the engine did not reach the gate"


def check_error(response: httpx2.Response, status: int, message: str) -> None:
    """Assert an OpenAI error envelope of `status` whose message contains `message`."""
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert message in error["message"]


def wait_for_metric(client: httpx2.Client, name: str, value: float) -> None:
    """Poll /metrics until `name` has `value`."""
    deadline = time.monotonic() + WAIT_S
    while f"{name} {value:.1f}\n" not in client.get("/metrics").text:
        assert time.monotonic() < deadline, f"{name} did not become {value}"
