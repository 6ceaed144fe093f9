"""Client of a running registry's HTTP API; retries while the registry restarts."""

import asyncio
import json
import time
from collections.abc import Callable
from typing import Any, Self

import httpx2

from registry.download.jobs import ENDED

Model = dict[str, Any]

TIMEOUT_S = 30.0
# The registry cannot reach its store, or a proxy cannot reach the registry.
_RETRIABLE_STATUS = frozenset({502, 503, 504})
MIN_BACKOFF_S = 0.2
MAX_BACKOFF_S = 5.0


class RegistryClientError(Exception):
    """The registry rejected the request; the message says why."""


class RegistryGone(RegistryClientError):
    """The registry cannot be reached, or has not responded for `retry_for_s`."""


class RegistryClient:
    """One registry. After its first response, requests are retried for up to `retry_for_s`, then raise RegistryGone.

    `on_wait` is called with the reason before each retry.
    """

    def __init__(self, url: str, token: str | None, *, retry_for_s: float = 0.0) -> None:
        self.url = url.rstrip("/")
        self.on_wait: Callable[[str], None] = lambda _reason: None
        self._retry_for_s = retry_for_s
        self._has_responded = False
        self._client = httpx2.AsyncClient(
            # An explicit transport ignores HTTP_PROXY: the registry is in our own network.
            transport=httpx2.AsyncHTTPTransport(),
            base_url=self.url,
            headers={"Authorization": f"Bearer {token}"} if token else {},
            timeout=TIMEOUT_S,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.aclose()

    async def model(self, name: str) -> Model | None:
        """Return a model's state; None if it is neither stored nor being downloaded."""
        response = await self._request("GET", f"/models/{name}")
        return None if response.status_code == 404 else _body(response)

    async def download(self, name: str, body: dict[str, str] | None = None) -> Model:
        """Start or join the download of a model. Raises RegistryClientError."""
        return _body(await self._request("POST", f"/models/{name}/download", body))

    async def verify(self, name: str) -> Model:
        """Start or join the verification of a model. Raises RegistryClientError."""
        return _body(await self._request("POST", f"/models/{name}/verify"))

    async def follow(self, model: Model, on_change: Callable[[Model], None]) -> Model:
        """Call `on_change` for each change until the job on `model` has ended; return the final state.

        If the registry restarts meanwhile, return the state that it reports afterwards: the job may be running again,
        or be lost.
        """
        name = str(model["name"])
        on_change(model)
        try:
            async with self._client.stream("GET", f"/models/{name}/events") as events:
                async for line in events.aiter_lines():
                    if line.startswith("data: "):
                        model = json.loads(line.removeprefix("data: "))
                        on_change(model)
        except httpx2.TransportError as error:
            self.on_wait(_describe(error))
        if model["status"] in ENDED:
            return model
        return await self.model(name) or model | {"status": "lost"}

    async def _request(self, method: str, path: str, body: dict[str, str] | None = None) -> httpx2.Response:
        """Send a request, with retries while the registry or its store is unreachable. Raises RegistryGone."""
        started, backoff = time.monotonic(), MIN_BACKOFF_S
        while True:
            try:
                response = await self._client.request(method, path, json=body)
            except (httpx2.InvalidURL, httpx2.UnsupportedProtocol) as error:
                raise RegistryGone(f"Invalid registry URL {self.url}: {error}. Check --url.") from error
            except httpx2.TransportError as error:
                reason = f"No registry at {self.url} ({_describe(error)}). Start it, or give --url."
            else:
                self._has_responded = True
                if response.status_code not in _RETRIABLE_STATUS:
                    return response
                reason = _error_message(response)
            if not self._has_responded or time.monotonic() + backoff > started + self._retry_for_s:
                raise RegistryGone(reason)
            self.on_wait(reason)
            await asyncio.sleep(backoff)
            backoff = min(backoff * 2, MAX_BACKOFF_S)


def _body(response: httpx2.Response) -> Model:
    if response.is_error:
        raise RegistryClientError(_error_message(response))
    try:
        document = response.json()
    except ValueError:
        document = None
    if not isinstance(document, dict) or "status" not in document:
        raise RegistryClientError(f"The response of {response.url} is not from a registry. Check --url.")
    return document


def _error_message(response: httpx2.Response) -> str:
    try:
        return str(response.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return f"{response.url} responded with status {response.status_code}."


def _describe(error: Exception) -> str:
    return str(error) or type(error).__name__
