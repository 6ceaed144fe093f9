"""The service on a port of its own, with the fake engine behind its real routes, frame, decoder and queue."""

import contextlib
import functools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import httpx2
import pytest

from kit.config.settings import load_settings
from services.transcription.app import OpenEngine, create_app
from services.transcription.engine import SpeechEngine
from services.transcription.settings import TranscriptionSettings
from tests.kit.served import serve, wait_healthy
from tests.services.transcription.fake_engine import FakeEngine

Start = Callable[..., contextlib.AbstractContextManager[httpx2.Client]]


@contextlib.contextmanager
def started(
    folder: Path,
    engine: FakeEngine | None,
    *,
    open_engine: OpenEngine | None = None,
    end: Callable[[], None] = lambda: None,
    **settings: Any,
) -> Iterator[httpx2.Client]:
    catalogue = folder / "models.yaml"
    entry = {"kind": "transcription", "hf_repo": "org/tiny-whisper", "aliases": ["small"]}
    catalogue.write_text(json.dumps({"tiny": entry, "chat": {"kind": "llm", "hf_repo": "org/chat"}}))
    given = {"catalogue": catalogue, "model": "tiny", "model_dir": folder, **settings}
    app = create_app(
        load_settings(TranscriptionSettings, **given), open_engine or (lambda *_: cast(SpeechEngine, engine)), end
    )
    with serve(app) as (host, port), httpx2.Client(base_url=f"http://{host}:{port}", timeout=60) as client:
        wait_healthy(client)
        yield client


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
def start(tmp_path: Path) -> Start:
    """Start a service with `start(engine, SETTING=...)`; gives a client of it."""
    return functools.partial(started, tmp_path)


@pytest.fixture(scope="module")
def module_start(tmp_path_factory: pytest.TempPathFactory) -> Start:
    """`start` for services that a whole module shares."""
    return lambda *args, **named: started(tmp_path_factory.mktemp("service"), *args, **named)


@pytest.fixture
def client(start: Start, engine: FakeEngine) -> Iterator[httpx2.Client]:
    with start(engine) as client:
        yield client
