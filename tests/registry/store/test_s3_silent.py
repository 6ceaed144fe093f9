"""An S3 server that accepts connections and says nothing, as one does whose disks hang."""

import socket
from collections.abc import Iterator

import pytest

from registry.store.interface import StoreError
from registry.store.s3_store import S3Store


@pytest.fixture
def silent_store() -> Iterator[S3Store]:
    """A store on a socket that nobody reads."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        store = S3Store("models", endpoint=url, access_key="a", secret_key="s")
        yield store
        store.close()


@pytest.mark.timeout(30)  # with the patience of a transfer it would be four minutes
def test_check_says_within_seconds_that_nothing_answers(silent_store: S3Store) -> None:
    """/health of the registry must not hang with its store, nor hold one of the few threads that answer requests."""
    with pytest.raises(StoreError, match=r"does not answer: .*Check S3_ENDPOINT"):
        silent_store.check()
