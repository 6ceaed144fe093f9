"""A running registry, asked over HTTP: download, verify, follow. It may be restarted meanwhile: asking goes on."""

import asyncio
import json
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

import httpx2

Model = dict[str, Any]

ENDED = frozenset({"ready", "failed", "cancelled"})
TIMEOUT_S = 30.0
# The registry without its store, or what stands before the registry without the registry.
_MAY_PASS = frozenset({502, 503, 504})
PAUSE_FIRST_S = 0.2
PAUSE_MOST_S = 5.0


class RegistryClientError(Exception):
    """The registry refused what was asked; the message says why."""


class RegistryGone(RegistryClientError):
    """The registry does not answer, or has not for as long as one was willing to wait."""


class RegistryClient:
    """One registry. Once it has answered, it may be away for `patience_s` each time before RegistryGone is raised.

    `on_wait` is called with the reason each time that an answer was waited for in vain.
    """

    def __init__(self, url: str, token: str | None, *, patience_s: float = 0.0) -> None:
        self.url = url.rstrip("/")
        self.on_wait: Callable[[str], None] = lambda _reason: None
        self._patience_s = patience_s
        self._has_answered = False
        self._client = httpx2.AsyncClient(
            # An explicit transport: the registry is in our own network, whatever HTTP_PROXY says of the internet.
            transport=httpx2.AsyncHTTPTransport(),
            base_url=self.url,
            headers={"Authorization": f"Bearer {token}"} if token else {},
            timeout=TIMEOUT_S,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._client.aclose()

    async def model(self, name: str) -> Model | None:
        """What the registry says of a model, or None when it has none and is at none of that name."""
        answer = await self._ask("GET", f"/models/{name}")
        return None if answer.status_code == 404 else _body(answer)

    async def download(self, name: str, body: dict[str, str] | None = None) -> Model:
        """Have it mirror a model, or join the download that is under way. Raises RegistryClientError."""
        return _body(await self._ask("POST", f"/models/{name}/download", body))

    async def verify(self, name: str) -> Model:
        """Have it read every byte of a model again, or join what is at it. Raises RegistryClientError."""
        return _body(await self._ask("POST", f"/models/{name}/verify"))

    async def follow(self, model: Model, on_change: Callable[[Model], None]) -> Model:
        """Tell `on_change` of every change until the job on `model` has ended. Returns how it ended.

        When the registry went away meanwhile, what it says once it is back is returned, ended or not: what it was at
        may be under way again, or be lost.
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
            self.on_wait(_reason_of(error))
        if model["status"] in ENDED:
            return model
        return await self.model(name) or model | {"status": "lost"}

    async def _ask(self, method: str, path: str, body: dict[str, str] | None = None) -> httpx2.Response:
        """One request, again and again while the registry is away or cannot reach its store. Raises RegistryGone."""
        began, pause = time.monotonic(), PAUSE_FIRST_S
        while True:
            try:
                answer = await self._client.request(method, path, json=body)
            except (httpx2.InvalidURL, httpx2.UnsupportedProtocol) as error:
                raise RegistryGone(f"{self.url} is no address of a registry: {error}.") from error
            except httpx2.TransportError as error:
                reason = f"No registry answers at {self.url} ({_reason_of(error)}). Start it, or give --url."
            else:
                self._has_answered = True
                if answer.status_code not in _MAY_PASS:
                    return answer
                reason = _reason(answer)
            if not self._has_answered or time.monotonic() + pause > began + self._patience_s:
                raise RegistryGone(reason)
            self.on_wait(reason)
            await asyncio.sleep(pause)
            pause = min(pause * 2, PAUSE_MOST_S)


def _body(answer: httpx2.Response) -> Model:
    if answer.is_error:
        raise RegistryClientError(_reason(answer))
    try:
        document = answer.json()
    except ValueError:
        document = None
    if not isinstance(document, dict) or "status" not in document:
        raise RegistryClientError(f"{answer.url} did not answer as a registry does. Check --url.")
    return document


def _reason(answer: httpx2.Response) -> str:
    try:
        return str(answer.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return f"{answer.url} answered {answer.status_code}."


def _reason_of(error: Exception) -> str:
    return str(error) or type(error).__name__
