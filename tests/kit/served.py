"""An application behind a real uvicorn on a port of the kernel's choice, in a thread of this process."""

import contextlib
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import httpx2
import uvicorn
from starlette.types import ASGIApp

from kit.config.settings import load_settings
from kit.web.app import HttpSettings, create_app
from kit.web.guard import KeyRing
from kit.web.metrics import HttpMetrics
from kit.web.server import server_config

READY_WITHIN_S = 20


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.ready = threading.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.ready.set()


@contextlib.contextmanager
def serve(app: ASGIApp, *, port: int = 0, **options: Any) -> Iterator[tuple[str, int]]:
    """Serve `app` as `kit.web.server` does, on a port of the kernel's choice unless one is given.

    Yields its (host, port).
    """
    listener = socket.create_server(("127.0.0.1", port))
    server = _Server(server_config(app, **options))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        assert server.ready.wait(READY_WITHIN_S), "the server did not start"
        yield listener.getsockname()
    finally:
        server.should_exit = True
        thread.join(READY_WITHIN_S)
        assert not thread.is_alive(), "the server did not stop"


def wait_healthy(client: httpx2.Client) -> None:
    """Return once `/health` is 200."""
    deadline = time.monotonic() + READY_WITHIN_S
    while (answer := client.get("/health")).status_code != 200:
        assert time.monotonic() < deadline, f"the service is not healthy: {answer.text}"


def bare_app(*, keys: Sequence[str] = (), metrics: HttpMetrics | None = None, **settings: Any) -> Any:
    """The frame's application without any routes of a service; `settings` as in HttpSettings."""
    return create_app(
        title="test",
        settings=load_settings(HttpSettings, **{"port": 1, **settings}),
        metrics=metrics or HttpMetrics("test"),
        keys=KeyRing(keys, variable="API_KEYS"),
    )
