"""Fixtures: a gateway in front of fake backends, both in the test's event loop."""

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.gateway.programs import Programs
from tests.gateway.running import CATALOGUE, RunningGateway, running
from tests.support.backends.openai_backend import FakeBackend

StartBackend = Callable[..., Awaitable[FakeBackend]]
StartGateway = Callable[..., Awaitable[RunningGateway]]


@pytest.fixture
async def stack() -> AsyncIterator[contextlib.AsyncExitStack]:
    """Ends what a test has started, last first."""
    async with contextlib.AsyncExitStack() as entered:
        yield entered


@pytest.fixture
def start_backend(stack: contextlib.AsyncExitStack) -> StartBackend:
    """Start a fake backend: a name, then its switches."""

    async def start(name: str = "llm-primary", **switches: Any) -> FakeBackend:
        return await stack.enter_async_context(FakeBackend(name=name, **({"model": "qwen"} | switches)))

    return start


@pytest.fixture
def start_gateway(stack: contextlib.AsyncExitStack, tmp_path: Path) -> StartGateway:
    """Start a gateway in front of the given backends, with settings as keywords."""

    async def start(*backends: FakeBackend, **settings: Any) -> RunningGateway:
        return await stack.enter_async_context(running(tmp_path, *backends, **settings))

    return start


@pytest.fixture
def programs(tmp_path: Path) -> Iterator[Programs]:
    """Programs that end with the test."""
    (tmp_path / "models.yaml").write_text(CATALOGUE)
    started = Programs(tmp_path)
    yield started
    started.stop()
