"""Registries and hubs for tests: a real registry on a free port, with optional faults."""

import asyncio
import contextlib
import hashlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import uvicorn
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from kit.net.retry import RetryPolicy
from kit.web.server import server_config
from registry.api.long_wait import HoldTimes
from registry.app import RETRY_POLICY, create_registry
from registry.settings import RegistrySettings
from registry.store.interface import Store
from tests.support import plain_http
from tests.support.weights import safetensors

START_S = 20.0
JOB_S = 30.0


@contextlib.contextmanager
def serving(app: ASGIApp) -> Iterator[str]:
    """Serve `app` in a thread of this process; yield its URL."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(server_config(app, timeout_graceful_shutdown=5))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, name="test-server")
    thread.start()
    deadline = time.monotonic() + START_S
    while not server.started and thread.is_alive() and time.monotonic() < deadline:
        time.sleep(0.005)
    try:
        assert server.started, "the test server did not start"
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(START_S)
        listener.close()


@contextlib.contextmanager
def serving_registry(
    store: str | Path,
    *,
    switches: "Switches | None" = None,
    retries: RetryPolicy = RETRY_POLICY,
    hold_times: HoldTimes | None = None,
    **settings: Any,
) -> Iterator[str]:
    """Serve a registry over `store` (a folder, or a value of STORE); yield its URL."""
    place = f"file:{store}" if isinstance(store, Path) else store
    loaded = RegistrySettings(**{"store": place, "catalogue": None, **settings})
    app: ASGIApp = create_registry(loaded, retries=retries, hold_times=hold_times)
    if switches is not None:
        switches.app, app = app, switches
    with serving(app) as url:
        yield url


class Switches:
    """Faults on request: wraps the application and changes responses for paths that end in a key.

    `seen` collects (method, path, headers) of every request.
    """

    def __init__(self) -> None:
        self.app: ASGIApp
        self.corrupt: set[str] = set()
        self.corrupt_times: dict[str, int] = {}
        self.cut_after: dict[str, int] = {}
        self.cuts_left: dict[str, int] = {}
        self.status: dict[str, tuple[int, dict[str, str]]] = {}
        self.dead = False
        self.gate: dict[str, threading.Event] = {}
        self.gate_from: dict[str, int] = {}
        """Where in the file what `gate` holds back begins, in bytes; 0 where nothing is said."""
        self.seen: list[tuple[str, str, dict[str, str]]] = []

    def requests(self, ending: str) -> list[dict[str, str]]:
        """Return the headers of the requests whose path ends in `ending`."""
        return [headers for _, path, headers in self.seen if path.endswith(ending)]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path = scope["path"]
        headers = {key.decode(): value.decode("latin-1") for key, value in scope["headers"]}
        self.seen.append((scope["method"], path, headers))
        status = (503, {}) if self.dead else _by_ending(self.status, path)
        if status is not None:
            raw = [(key.encode(), value.encode()) for key, value in status[1].items()]
            await send(
                {"type": "http.response.start", "status": status[0], "headers": [*raw, (b"content-length", b"0")]}
            )
            await send({"type": "http.response.body", "body": b""})
            return
        await self.app(scope, receive, self._sender(path, headers.get("range", ""), send))

    def _sender(self, path: str, asked: str, send: Send) -> Send:
        left = [_by_ending(self.cut_after, path)]
        if left[0] is not None and self.cuts_left.get(path.rpartition("/")[2], 0) <= 0:
            left[0] = None
        corrupt = any(path.endswith(ending) for ending in self.corrupt)
        for ending, times in self.corrupt_times.items():
            if path.endswith(ending) and times > 0:
                self.corrupt_times[ending] -= 1
                corrupt = True
        gate = _by_ending(self.gate, path)
        at = int(asked.removeprefix("bytes=").partition("-")[0] or 0)
        gate_from = _by_ending(self.gate_from, path) or 0

        cut = False

        async def forward(message: Message) -> None:
            nonlocal cut, at
            if cut:
                return  # the response ends early: the server closes the connection
            if message["type"] == "http.response.body":
                body = message.get("body", b"")
                if gate is not None and at >= gate_from:
                    while not gate.is_set() and not self.dead:
                        await _tick()
                if self.dead:
                    cut = True
                    return
                at += len(body)
                if corrupt and body:
                    message = {**message, "body": bytes([body[0] ^ 1]) + body[1:]}
                if left[0] is not None:
                    body = message["body"][: left[0]]
                    left[0] -= len(body)
                    message = {**message, "body": body, "more_body": True}
                    if left[0] <= 0:
                        await send(message)
                        self.cuts_left[path.rpartition("/")[2]] -= 1
                        cut = True
                        return
            await send(message)

        return forward


async def _tick() -> None:
    await asyncio.sleep(0.005)


def _by_ending(table: dict[str, Any], path: str) -> Any:
    return next((value for ending, value in table.items() if path.endswith(ending)), None)


def wait_for_job(url: str, name: str) -> dict[str, Any]:
    """Return the model when its job has ended."""
    model: dict[str, Any] = wait_until(lambda: _ended(plain_http.get(f"{url}/models/{name}").json()))
    return model


def wait_until(check: Callable[..., Any], seconds: float = JOB_S) -> Any:
    """Poll `check` until it is true and return its value. Raises AssertionError after `seconds`."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        value = check()
        if value:
            return value
        time.sleep(0.01)
    raise AssertionError(f"{check} was not true within {seconds} s")


def set_when(event: threading.Event, check: Callable[[], Any]) -> threading.Thread:
    """Return a thread, not started, that sets `event` when `check` is true."""

    def run() -> None:
        wait_until(check)
        event.set()

    return threading.Thread(target=run)


def _ended(model: dict[str, Any]) -> dict[str, Any] | None:
    return model if model["status"] in ("ready", "failed", "cancelled") else None


def small_repo(folder: Path, *, seed: str = "a", weights: int = 3_000_000) -> Path:
    """Create a folder like a small model's: a config, a tokenizer, a file in a subfolder, and weights (an LFS file)."""
    (folder / "1_Pooling").mkdir(parents=True)
    (folder / "config.json").write_text(f'{{"model_type": "bert", "seed": "{seed}"}}')
    (folder / "tokenizer.json").write_text('{"version": "1.0"}')
    (folder / "1_Pooling" / "config.json").write_text('{"pooling": "mean"}')
    (folder / "README.md").write_text("# ä small model\n", encoding="utf-8")
    (folder / "empty.txt").write_bytes(b"")
    (folder / "model.safetensors").write_bytes(safetensors(seed, weights))
    return folder


def random_bytes(seed: str, size: int) -> bytes:
    """Return `size` pseudo-random bytes that follow from `seed`."""
    return hashlib.shake_128(seed.encode()).digest(size)


def digests(store: Store) -> set[str]:
    """Return the digests of the blobs in a store."""
    return {blob.digest for blob in store.blobs()}


def contents(folder: Path) -> dict[str, bytes]:
    """Return every file below `folder`."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
