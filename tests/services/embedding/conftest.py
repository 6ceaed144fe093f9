"""The embedding service with a fake engine."""

import functools
from typing import Any

import pytest

from services.embedding.app import create_app
from services.embedding.settings import EmbeddingSettings
from tests.services.embedding.fake_engine import FakeEngine
from tests.services.fake_service import serve_fake


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture(scope="session")
def serve_service() -> Any:
    return functools.partial(serve_fake, create_app, EmbeddingSettings, kind="embedding")
