"""One backend's health polls: what is asked, and what an answer says of it.

Our own services tell kind, model and progress in /health. Of any other OpenAI-compatible server only the status code
counts, and its models come from /v1/models.
"""

import asyncio
import time
from typing import Any, TypeGuard

import httpx2

from gateway.backends.adaptive_timeouts import loop_lagged
from gateway.backends.backend import Backend
from gateway.backends.offers import Offer, offer_of_entry, offer_of_id
from gateway.health.backend_client import ask
from kit.config.catalogue import Catalogue

# A backend that works may miss this many polls in a row before it counts as down.
MISSES_WHILE_BUSY = 3
# A poll that finds no answer counts as "busy" when a byte came this recently, in seconds.
RECENT_S = 10.0
# How often the models of a foreign server are asked again, in polls.
MODELS_EVERY = 15
# A model's name is at most this long, in characters.
MAX_NAME = 256


class Polls:
    """The polls of one backend, with what they remember from one to the next."""

    def __init__(self, client: httpx2.AsyncClient, backend: Backend, catalogue: Catalogue, timeout_s: float) -> None:
        self._client = client
        self.backend = backend
        # Set once the backend has been asked.
        self.first = asyncio.Event()
        # How many polls in a row found nobody there, and how many found somebody that did not answer in time.
        self.absences = 0
        self.misses = 0
        self._catalogue = catalogue
        self._timeout_s = timeout_s
        self._count = 0
        self._healthy_before = False

    async def once(self, *, again: bool = False) -> None:
        """Probe once and record the result; `again` if our event loop lagged during the first try (`loop_lagged`)."""
        backend = self.backend
        if backend.target.is_nowhere:
            self.absences += 1
            self._down(backend.target.doubt or "it has no address")
            backend.last_probe.finished_at = backend.clock.iso()
            return
        began = time.monotonic()
        try:
            async with asyncio.timeout(self._timeout_s):
                response = await ask(self._client, backend, "/health")
                foreign = response.status_code in (404, 405, 501) or (response.is_success and not _is_ours(response))
                models = await self._models(response) if foreign else None
        except TimeoutError:
            if not again and loop_lagged(time.monotonic() - began, self._timeout_s):
                await self.once(again=True)
                return
            self._missed()
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            self.misses = 0
            self._gone(f"no answer: {error or type(error).__name__}")
        else:
            self.misses = self.absences = 0
            backend.last_probe.response_time_ms = round((time.monotonic() - began) * 1000, 1)
            if foreign:
                self._take_foreign(response, models)
            else:
                self._take_ours(response)
        backend.last_probe.finished_at = backend.clock.iso()
        self._healthy_before = backend.state == "healthy"
        self._count += 1

    async def _models(self, health: httpx2.Response) -> httpx2.Response | None:
        """The foreign server's list, where it is needed: at first, after a bad time, now and then, or as its health."""
        if health.is_success and self._healthy_before and self.backend.offers and self._count % MODELS_EVERY:
            return None
        return await ask(self._client, self.backend, "/v1/models")

    def _missed(self) -> None:
        """No answer in time. A backend that works is given some more polls: its loop may be busy with the work."""
        backend = self.backend
        self.misses += 1
        reason = f"no answer to /health within {self._timeout_s:g} s"
        recent = time.monotonic() - backend.last_sign_at < RECENT_S
        working = backend.traffic.in_flight > 0 and backend.state in ("healthy", "busy")
        if working and (recent or self.misses < MISSES_WHILE_BUSY):
            backend.observe("busy", reason)
        else:
            self._gone(reason)

    def _gone(self, reason: str) -> None:
        """It did not answer at all: what discovery doubts is the better reason."""
        self.absences += 1
        self._down(self.backend.target.doubt or reason)

    def _down(self, reason: str) -> None:
        self.backend.last_probe.response_time_ms = None
        self.backend.observe("unhealthy", reason)

    def _take_ours(self, response: httpx2.Response) -> None:
        """An answer in the contract's shape, or an error."""
        backend = self.backend
        body = _json_object(response)
        status = body.get("status")
        engine = body.get("engine")
        backend.engine = engine if _is_name(engine) else None
        offers = self._offers_of_ours(body)
        if offers:
            backend.set_offers(offers)
        if response.is_success and status in ("healthy", "ok", None):
            if backend.offers:
                backend.observe("healthy")
            else:
                self._down(f"the model in its /health is no name: printable, at most {MAX_NAME} characters")
        elif status == "loading" or _says_loading(body):
            progress = body.get("progress")
            backend.observe(
                "loading",
                str(body.get("detail") or "") or None,
                progress=float(progress) if isinstance(progress, int | float) else None,
            )
        else:
            detail = body.get("detail")
            backend.observe("unhealthy", f"/health answered {response.status_code}" + (f": {detail}" if detail else ""))

    def _offers_of_ours(self, body: dict[str, Any]) -> tuple[Offer, ...]:
        target = self.backend.target
        if target.models:
            return self._offers_of_ids(target.models)
        model = body.get("model")
        if not _is_name(model):
            return ()
        entry = self._catalogue.find(model)
        if entry is not None:
            return (offer_of_entry(entry, kind=target.kind),)
        # A service whose catalogue knows more than ours.
        return self._offers_of_ids((model,))

    def _offers_of_ids(self, ids: tuple[str, ...]) -> tuple[Offer, ...]:
        kind = self.backend.target.kind
        return tuple(offer_of_id(model, self._catalogue.find(model), kind) for model in ids)

    def _take_foreign(self, health: httpx2.Response, models: httpx2.Response | None) -> None:
        backend = self.backend
        if models is not None and not models.is_success and not health.is_success:
            self._down(f"/health answered {health.status_code} and /v1/models {models.status_code}")
            return
        backend.engine = _owner(models) or backend.engine
        ids = backend.target.models or _ids(models)
        if ids:
            backend.set_offers(self._offers_of_ids(ids))
        elif not backend.offers:
            self._down("it answers, but /v1/models lists no model; name them in SERVICES (models=...)")
            return
        backend.observe("healthy")


def _is_ours(response: httpx2.Response) -> bool:
    return isinstance(_json_object(response).get("model"), str)


def _says_loading(body: dict[str, Any]) -> bool:
    """llama.cpp answers 503 with {"error": {"message": "Loading model"}}."""
    error = body.get("error")
    return isinstance(error, dict) and "loading" in str(error.get("message", "")).lower()


def _json_object(response: httpx2.Response) -> dict[str, Any]:
    try:
        body = response.json()
    except ValueError:
        return {}
    return body if isinstance(body, dict) else {}


def _ids(response: httpx2.Response | None) -> tuple[str, ...]:
    return tuple(one["id"] for one in _entries(response) if _is_name(one.get("id")))


def _owner(response: httpx2.Response | None) -> str | None:
    """Engines call themselves the owners of their models: vllm, sglang, llamacpp."""
    return next((one["owned_by"] for one in _entries(response) if _is_name(one.get("owned_by"))), None)


def _entries(response: httpx2.Response | None) -> list[dict[str, Any]]:
    if response is None or not response.is_success:
        return []
    data = _json_object(response).get("data")
    return [one for one in data if isinstance(one, dict)] if isinstance(data, list) else []


def _is_name(value: object) -> TypeGuard[str]:
    """Whether a backend's word can be a model's name: it goes into headers, logs and errors."""
    return isinstance(value, str) and 0 < len(value) <= MAX_NAME and value.isprintable()
