"""Real models, and a shared service with the transformers engine."""

from collections.abc import Iterator
from pathlib import Path

import httpx2
import openai
import pytest

from tests.services.llm.serving import service
from tests.support import models

TIMEOUT_S = 300


@pytest.fixture(scope="session")
def smollm2() -> Path:
    return models.folder("smollm2")


@pytest.fixture(scope="session")
def smollm2_url(tmp_path_factory: pytest.TempPathFactory, smollm2: Path) -> Iterator[str]:
    # In bfloat16 the batch size changes the last bits of scores, and so a sampled word.
    exact = {"dtype": "float32"}
    with service(tmp_path_factory.mktemp("smollm2"), smollm2, max_concurrent=4, max_queue=4, engine_args=exact) as url:
        yield url


@pytest.fixture(scope="session")
def client(smollm2_url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{smollm2_url}/v1", api_key="none", max_retries=0, timeout=TIMEOUT_S) as client:
        yield client


@pytest.fixture(scope="session")
def raw(smollm2_url: str) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=smollm2_url, timeout=TIMEOUT_S) as client:
        yield client
