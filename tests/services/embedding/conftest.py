"""The service on a port of its own, with the fake engine behind its real routes, frame and batcher."""

import contextlib
import functools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import httpx2
import pytest

from kit.config.settings import load_settings
from services.embedding.app import OpenEngine, create_app
from services.embedding.engines.interface import TextEngine
from services.embedding.settings import EmbeddingSettings
from tests.kit.served import serve, wait_healthy
from tests.services.embedding.fake_engine import FakeEngine

Start = Callable[..., contextlib.AbstractContextManager[httpx2.Client]]


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
def start(tmp_path: Path) -> Start:
    """Start a service with `start(engine, kind=..., SETTING=...)`; gives a client of it."""
    return functools.partial(started, tmp_path)


@pytest.fixture(scope="module")
def module_start(tmp_path_factory: pytest.TempPathFactory) -> Start:
    """`start` for services that a whole module shares."""
    return lambda *args, **named: started(tmp_path_factory.mktemp("service"), *args, **named)


@contextlib.contextmanager
def started(
    folder: Path,
    engine: FakeEngine | None,
    *,
    kind: str = "embedding",
    open_engine: OpenEngine | None = None,
    end: Callable[[], None] = lambda: None,
    ready: bool = True,
    **settings: Any,
) -> Iterator[httpx2.Client]:
    catalogue = folder / "models.yaml"
    catalogue.write_text(json.dumps({"tiny": {"kind": kind, "hf_repo": "org/tiny-model", "aliases": ["small"]}}))
    app = create_app(
        load_settings(EmbeddingSettings, **{"catalogue": catalogue, "model": "tiny", "model_dir": folder, **settings}),
        open_engine or (lambda *_: cast(TextEngine, engine)),
        end,
    )
    with serve(app) as (host, port), httpx2.Client(base_url=f"http://{host}:{port}", timeout=20) as client:
        if ready:
            wait_healthy(client)
        yield client


@pytest.fixture
def client(start: Start, engine: FakeEngine) -> Iterator[httpx2.Client]:
    with start(engine) as client:
        yield client
