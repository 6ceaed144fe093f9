"""The transcription service with a fake engine."""

import functools
from typing import Any

import pytest

from services.transcription.app import create_app
from services.transcription.settings import TranscriptionSettings
from tests.services.fake_service import serve_fake
from tests.services.transcription.fake_engine import FakeEngine


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture(scope="session")
def serve_service() -> Any:
    return functools.partial(serve_fake, create_app, TranscriptionSettings, kind="transcription")
