"""Fixtures of the services with fake engines. `serve_service` and `engine` come from each service's conftest."""

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.services.fake_service import Start


@pytest.fixture
def start(tmp_path: Path, serve_service: Any) -> Start:
    """Start a service with `start(engine, SETTING=...)`; yields its client."""
    return functools.partial(serve_service, tmp_path)


@pytest.fixture(scope="module")
def module_start(tmp_path_factory: pytest.TempPathFactory, serve_service: Any) -> Start:
    """`start` for services shared by a module."""
    return lambda *args, **named: serve_service(tmp_path_factory.mktemp("service"), *args, **named)


@pytest.fixture
def client(start: Start, engine: Any) -> Iterator[httpx2.Client]:
    with start(engine) as client:
        yield client
