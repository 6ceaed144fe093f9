"""A real Docker engine, images of this checkout, a Hub in place of the internet, and a fresh clone."""

import subprocess
from collections.abc import Iterator

import pytest

from tests.stack import hub, images
from tests.stack.hub import Hub
from tests.stack.stack import ROOT, Stack


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "tests/stack/" in str(item.path):
            item.add_marker("stack")


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A fresh clone with its images built and nothing running; removed at the end."""
    clone = tmp_path_factory.mktemp("stack") / "gpu-cluster"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
    (clone / "docker-compose.override.yml").write_text(hub.OVERRIDE)
    stack = Stack(clone, images.environment(hub.URL))
    stack.remove()
    images.build(stack)
    try:
        yield stack
    finally:
        stack.remove()


@pytest.fixture(scope="session")
def internet(stack: Stack) -> Iterator[Hub]:
    """A Hub with the small models."""
    store = ROOT / ".cluster" / "stack-hub"
    hub.fill(store)
    with hub.serving(store) as serving:
        yield serving
        stack.remove()


@pytest.fixture(scope="module")
def clean(stack: Stack) -> Iterator[Stack]:
    """The stack with nothing running and no volumes, before and after a module."""
    stack.remove()
    yield stack
    stack.remove()
