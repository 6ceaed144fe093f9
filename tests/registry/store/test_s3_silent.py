"""An S3 server that accepts connections and never responds, like one whose disks hang."""

import socket
from collections.abc import Iterator

import pytest

from registry.store.interface import StoreError
from registry.store.s3_store import S3Store


@pytest.fixture
def silent_store() -> Iterator[S3Store]:
    """A store on a socket that accepts connections and never responds."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        store = S3Store("models", endpoint=url, access_key="a", secret_key="s")
        yield store
        store.close()


@pytest.mark.timeout(30)  # the timeouts of a transfer add up to four minutes
def test_check_fails_within_seconds_when_the_server_hangs(silent_store: S3Store) -> None:
    """/health must not block, nor keep one of the few threads that serve requests."""
    with pytest.raises(StoreError, match=r"is unreachable: .*Check S3_ENDPOINT"):
        silent_store.check()
