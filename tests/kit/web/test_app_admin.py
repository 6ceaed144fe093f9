"""Admin routes over real sockets: trusted addresses and the token."""

import socket
import struct
import threading
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
from fastapi import FastAPI, Request

from kit.config.settings import load_settings
from kit.web.app import HttpSettings, admin_only
from tests.kit.served import bare_app, serve

PAUSE_LIMIT_S = 20


class Changes:
    """An application with one route that changes something, and one that blocks the event loop until released."""

    def __init__(self) -> None:
        self.made: list[str] = []
        self.done = threading.Event()
        self.paused = threading.Event()
        self.go_on = threading.Event()
        self.app: FastAPI = bare_app()
        settings = load_settings(HttpSettings, port=1, admin_token="secret")
        self.app.add_api_route("/change", self._change, methods=["POST"], dependencies=[admin_only(settings)])
        self.app.add_api_route("/pause", self._pause)
        self.app.add_api_route("/last", self._last)

    async def _change(self, request: Request) -> dict[str, Any]:
        self.made.append(str(request.client))
        return {"client": request.client.host if request.client else None}

    async def _pause(self) -> None:
        self.paused.set()
        self.go_on.wait(PAUSE_LIMIT_S)

    async def _last(self) -> None:
        pass


@pytest.fixture
def changes() -> Iterator[tuple[Changes, str]]:
    changes = Changes()
    with serve(changes.app) as (host, port):
        yield changes, f"http://{host}:{port}"


def test_loopback_needs_no_token(changes: tuple[Changes, str]) -> None:
    """`curl -X DELETE` on the machine itself works as in the quick reference."""
    assert httpx2.post(changes[1] + "/change").status_code == 200


@pytest.mark.parametrize(
    "forwarded",
    [
        {"X-Forwarded-For": "203.0.113.9"},
        {"X-Forwarded-For": "127.0.0.1"},
        {"X-Forwarded-For": "203.0.113.9, 127.0.0.1"},
        {"X-Forwarded-For": ""},
        {"Forwarded": "for=127.0.0.1"},
        {"X-Real-IP": "127.0.0.1"},
        {"Via": "1.1 proxy"},
    ],
)
def test_forwarded_requests_need_the_token(changes: tuple[Changes, str], forwarded: dict[str, str]) -> None:
    """A local reverse proxy does not make its clients trusted."""
    site, url = changes
    refused = httpx2.post(url + "/change", headers=forwarded)
    assert refused.status_code == 401
    assert site.made == []
    passed = httpx2.post(url + "/change", headers={**forwarded, "Authorization": "Bearer secret"})
    assert passed.status_code == 200


def test_peer_without_address_is_not_trusted(changes: tuple[Changes, str]) -> None:
    """The address of a peer that resets its connection right after sending is unknown."""
    site, url = changes
    address = httpx2.URL(url)
    pause = threading.Thread(target=httpx2.get, args=[url + "/pause"], kwargs={"timeout": PAUSE_LIMIT_S})
    pause.start()
    assert site.paused.wait(PAUSE_LIMIT_S)
    for _ in range(3):
        with socket.create_connection((address.host, address.port)) as peer:
            peer.sendall(b"POST /change HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n")
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    site.go_on.set()
    pause.join()
    assert httpx2.get(url + "/last").status_code == 200  # accepted after the three, so they have been dealt with
    assert site.made == []
