"""One running quickstart, with vision, shared by the tests of this folder."""

from collections.abc import Iterator

import pytest

from tests.support.programs.cluster import ROOT, Quickstart, free_offset, home_with_packages


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "tests/cluster/" in str(item.path):
            item.add_marker("cluster")


@pytest.fixture(scope="session")
def cluster() -> Iterator[Quickstart]:
    home = home_with_packages(ROOT / ".cluster" / "tests")
    running = Quickstart("--models", "packages", "--with-vision", home=home, offset=free_offset())
    try:
        running.wait_ready()
        yield running
    finally:
        running.stop()
