"""Listings of a hostile or broken Hub: bounded bytes and requests, and ended by a cancellation."""

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from kit.hub.listing import MAX_FILES
from kit.net.retry import RETRY_POLICY, Cancelled
from registry.hub.client import HubError, SourceHub
from tests.support.hub import wait_until

COMMIT = "0123456789abcdef0123456789abcdef01234567"
SIBLING = {"rfilename": "config.json", "size": 2, "blobId": "9e26dfeeb6e641a33dae4961196235bdb965b21b"}
LISTING = json.dumps({"id": "new-org/renamed", "sha": COMMIT, "siblings": [SIBLING]}).encode()
HANG_S = 20


class RawHub:
    """A server that answers each connection with `head`, and then `chunk` over and over until it is closed."""

    def __init__(self, listener: socket.socket, head: bytes, chunk: bytes, pause_s: float) -> None:
        self.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        self.requests = 0
        self.sent = 0
        self.closed = threading.Event()
        self._listener, self._head, self._chunk, self._pause_s = listener, head, chunk, pause_s

    def run(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection:
                connection.recv(65536)
                self.requests += 1
                try:
                    connection.sendall(self._head)
                    while self._chunk and not self.closed.wait(self._pause_s):
                        connection.sendall(self._chunk)
                        self.sent += len(self._chunk)
                except OSError:
                    continue  # the client has left


@contextmanager
def raw_hub(head: bytes, chunk: bytes = b"", *, pause_s: float = 0.0) -> Iterator[RawHub]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        hub = RawHub(listener, head, chunk, pause_s)
        thread = threading.Thread(target=hub.run)
        thread.start()
        yield hub
        hub.closed.set()
        listener.shutdown(socket.SHUT_RDWR)
    thread.join()


def source_hub(url: str) -> SourceHub:
    return SourceHub(url, None, file_retries=RETRY_POLICY, read_timeout_s=HANG_S)


def head(*lines: str) -> bytes:
    return "\r\n".join(["HTTP/1.1 200 OK", "Content-Type: application/json", *lines, "", ""]).encode()


def test_listing_has_the_id_of_a_renamed_repository() -> None:
    with raw_hub(head(f"Content-Length: {len(LISTING)}") + LISTING) as hub, source_hub(hub.url) as client:
        listing = client.listing("old-org/legacy", "main", threading.Event())
    assert (listing.repo, listing.commit, listing.size) == ("new-org/renamed", COMMIT, 2)


@pytest.mark.parametrize("id", [None, 7, "../x", "a/b/c"])
def test_unusable_id_is_ignored(id: object) -> None:
    """The mirrors of some companies send none, or their own."""
    body = json.dumps({"id": id, "sha": COMMIT, "siblings": [SIBLING]}).encode()
    with raw_hub(head(f"Content-Length: {len(body)}") + body) as hub, source_hub(hub.url) as client:
        assert client.listing("o/r", "main", threading.Event()).repo is None


def test_next_link_is_not_followed() -> None:
    """A page that names itself as the next one is asked for once: the listing is one response."""
    link = 'Link: </api/models/o/r/revision/main?blobs=true>; rel="next"'
    with raw_hub(head(link, f"Content-Length: {len(LISTING)}") + LISTING) as hub, source_hub(hub.url) as client:
        assert client.listing("o/r", "main", threading.Event()).commit == COMMIT
        assert hub.requests == 1


def test_endless_listing_is_cut_off() -> None:
    """Without a Content-Length, or with one of terabytes."""
    for lines in ([], ["Content-Length: 9999999999999"]):
        with raw_hub(head(*lines), b" " * 65536) as hub, source_hub(hub.url) as client:
            with pytest.raises(HubError, match=r"invalid listing of o/r \(more than \d+ bytes\)"):
                client.listing("o/r", "main", threading.Event())
            assert hub.requests == 1


@pytest.mark.parametrize("values", [b"[]," * 2_000_000, b"[[{}]]," * 500_000, b'"a",' * 2_000_000])
def test_listing_of_too_many_values_is_not_parsed(values: bytes) -> None:
    """Parsed, it would take thirty times its size in memory."""
    answer = head(f"Content-Length: {len(values) + 4}") + b"[" + values + b"0]\n"
    with raw_hub(answer) as hub, source_hub(hub.url) as client, pytest.raises(HubError, match="values"):
        client.listing("o/r", "main", threading.Event())


def test_largest_listing_is_within_the_limits() -> None:
    siblings = [
        {
            "rfilename": f"folder-{number}/model-{number}.safetensors",
            "size": 10**10,
            "blobId": COMMIT,
            "sha256": "a" * 64,
            "lfs": {"sha256": "a" * 64, "size": 10**10, "pointerSize": 135},
        }
        for number in range(MAX_FILES - 1)
    ]
    body = json.dumps({"id": "o/r", "sha": COMMIT, "siblings": siblings}).encode()
    with raw_hub(head(f"Content-Length: {len(body)}") + body) as hub, source_hub(hub.url) as client:
        assert len(client.listing("o/r", "main", threading.Event()).files) == MAX_FILES - 1


@pytest.mark.parametrize("body", [b"[" * 2_000_000, b'{"a":' * 400_000, b'{"sha": ' + b"9" * 100_000 + b"}"])
def test_listing_that_no_parser_accepts_is_reported(body: bytes) -> None:
    answer = head(f"Content-Length: {len(body)}") + body
    with raw_hub(answer) as hub, source_hub(hub.url) as client, pytest.raises(HubError, match="invalid listing"):
        client.listing("o/r", "main", threading.Event())


def test_cancellation_ends_a_listing_that_arrives_byte_by_byte() -> None:
    """Each byte comes long before the read timeout, so only the cancellation can end it."""
    stop, ended = threading.Event(), []
    with raw_hub(head(), b" ", pause_s=0.005) as hub, source_hub(hub.url) as client:

        def list_files() -> None:
            try:
                client.listing("o/r", "main", stop)
            except Cancelled:
                ended.append("cancelled")

        thread = threading.Thread(target=list_files, daemon=True)
        thread.start()
        wait_until(lambda: hub.sent > 3)
        stop.set()
        thread.join(HANG_S)
        assert ended == ["cancelled"]
        assert hub.requests == 1
