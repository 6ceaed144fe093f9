"""Health probe of one backend.

Our own services report kind, model and progress in /health. For other OpenAI-compatible servers only its status code
counts, and the models come from /v1/models.
"""

import asyncio
from collections.abc import Iterable, Mapping
from typing import Any, TypeGuard

import httpx2

from gateway.backends.adaptive_timeouts import loop_lagged
from gateway.backends.backend import Backend
from gateway.backends.offers import Offer, offer_of_entry, offer_of_id
from gateway.backends.response_verdict import REJECTIONS, verdict_of
from gateway.health.backend_client import query
from kit.config.catalogue import Catalogue

# Probes in a row that a working backend may miss before it counts as down.
MISSES_WHILE_BUSY = 3
# A missed probe counts as "busy" if a byte came this recently, in seconds.
RECENT_S = 10.0
# How often the models of a foreign server are requested again, in probes.
MODELS_EVERY = 15
# The longest model name, in characters.
MAX_NAME = 256
# Where /v1/models states a context length: vLLM and SGLang; OpenRouter, Together and our own services; Groq; Mistral.
# llama.cpp has it in `meta`: the server's own, in older versions only what the model was trained for.
CONTEXT_FIELDS = ("max_model_len", "context_length", "context_window", "max_context_length")
META_CONTEXT_FIELDS = ("n_ctx", "n_ctx_train")
MAX_CONTEXT = 2**31


class HealthProbe:
    """The health probe of one backend, with its state between runs."""

    def __init__(self, client: httpx2.AsyncClient, backend: Backend, catalogue: Catalogue, timeout_s: float) -> None:
        self._client = client
        self.backend = backend
        # Set after the first run.
        self.first_done = asyncio.Event()
        # Probes in a row that failed, and those that timed out while the backend may still have been working.
        self.absences = 0
        self.misses = 0
        self._catalogue = catalogue
        self._timeout_s = timeout_s
        self._count = 0

    async def run(self, *, is_repeat: bool = False) -> None:
        """Probe the backend and record the result; `is_repeat` if our event loop lagged during the first try."""
        backend, monotonic = self.backend, self.backend.clock.monotonic
        if backend.target.has_no_address:
            self._absent("it has no address")
            backend.last_probe.finished_at = backend.clock.iso()
            return
        began = monotonic()
        try:
            async with asyncio.timeout(self._timeout_s):
                response = await query(self._client, backend, "/health")
                foreign = response.status_code in (404, 405, 501) or (response.is_success and not _is_own(response))
                models = await self._models(response) if foreign else None
        except TimeoutError:
            if not is_repeat and loop_lagged(monotonic() - began, self._timeout_s):
                await self.run(is_repeat=True)
                return
            self._missed()
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            self.misses = 0
            self._absent(f"no response: {error or type(error).__name__}")
        else:
            self.misses = self.absences = 0
            backend.last_probe.response_time_ms = round((monotonic() - began) * 1000, 1)
            if foreign:
                self._record_foreign(response, models)
            else:
                self._record_own(response)
        backend.last_probe.finished_at = backend.clock.iso()
        self._count += 1

    async def _models(self, health: httpx2.Response) -> httpx2.Response | None:
        """Request a foreign server's models: at first, in doubt, at intervals, or as its health check."""
        backend = self.backend
        is_known = backend.state == "healthy" and backend.offers and not backend.offers_doubted
        if health.is_success and is_known and self._count % MODELS_EVERY:
            return None
        backend.offers_doubted = False
        return await query(self._client, backend, "/v1/models")

    def _missed(self) -> None:
        """Record a timeout. A working backend may miss some probes: its event loop may be busy."""
        backend = self.backend
        self.misses += 1
        reason = f"no response to /health within {self._timeout_s:g} s"
        recent = backend.clock.monotonic() - backend.last_sign_at < RECENT_S
        working = backend.traffic.in_flight > 0 and backend.state in ("healthy", "busy")
        if working and (recent or self.misses < MISSES_WHILE_BUSY):
            backend.observe("busy", reason)
        else:
            self._absent(reason)

    def _absent(self, reason: str) -> None:
        """Record that there was no server. Discovery's doubt about its address is the better reason."""
        self.absences += 1
        self._down(self.backend.target.doubt or reason)

    def _down(self, reason: str) -> None:
        self.backend.last_probe.response_time_ms = None
        self.backend.observe("unhealthy", reason)

    def _record_own(self, response: httpx2.Response) -> None:
        """Record the response of one of our own services."""
        backend = self.backend
        body = _json_object(response)
        status = body.get("status")
        engine = body.get("engine")
        backend.engine = engine if _is_name(engine) else None
        offers = self._own_offers(body)
        if offers:
            backend.set_offers(offers)
        if response.is_success and status in ("healthy", "ok", None):
            if backend.offers:
                backend.observe("healthy")
            else:
                self._down(f"invalid model name in /health: use at most {MAX_NAME} printable characters")
        elif status == "loading" or _says_loading(body):
            progress = body.get("progress")
            backend.observe(
                "loading",
                str(body.get("detail") or "") or None,
                progress=float(progress) if isinstance(progress, int | float) else None,
            )
        else:
            detail = body.get("detail")
            reason = f"/health returned {response.status_code}" + (f": {detail}" if detail else "")
            backend.observe("unhealthy", self._misconfiguration(response) or reason)

    def _own_offers(self, body: dict[str, Any]) -> tuple[Offer, ...]:
        target = self.backend.target
        if target.models:
            return self._offers_of_ids(target.models, {})
        model = body.get("model")
        if not _is_name(model):
            return ()
        entry, length = self._catalogue.find(model), _context_length(body)
        if entry is not None:
            return (offer_of_entry(entry, kind=target.kind, context_length=length),)
        # A service with an entry that our catalogue lacks.
        return self._offers_of_ids((model,), {model: length})

    def _offers_of_ids(self, ids: Iterable[str], lengths: Mapping[str, int | None]) -> tuple[Offer, ...]:
        kind = self.backend.target.kind
        return tuple(offer_of_id(model, self._catalogue.find(model), kind, lengths.get(model)) for model in ids)

    def _misconfiguration(self, response: httpx2.Response) -> str | None:
        """Return the reason if the response rejects the gateway itself."""
        is_one = verdict_of(response.status_code) in REJECTIONS
        return self.backend.misconfiguration(response.status_code) if is_one else None

    def _record_foreign(self, health: httpx2.Response, models: httpx2.Response | None) -> None:
        backend = self.backend
        if models is not None and not models.is_success:
            reason = self._misconfiguration(models)
            if reason is not None and not backend.target.models:
                self._down(reason)
                return
            if not health.is_success:
                self._down(reason or f"/health returned {health.status_code} and /v1/models {models.status_code}")
                return
        backend.engine = _owner(models) or backend.engine
        lengths = _context_lengths(models)
        ids = backend.target.models or tuple(lengths)
        if ids and (models is not None or not backend.offers):
            backend.set_offers(self._offers_of_ids(ids, lengths))
        elif not backend.offers:
            self._down("it responds, but /v1/models lists no model; set models=... for it in SERVICES")
            return
        backend.observe("healthy")


def _is_own(response: httpx2.Response) -> bool:
    return isinstance(_json_object(response).get("model"), str)


def _says_loading(body: dict[str, Any]) -> bool:
    """Whether it is llama.cpp's 503 while loading: {"error": {"message": "Loading model"}}."""
    error = body.get("error")
    return isinstance(error, dict) and "loading" in str(error.get("message", "")).lower()


def _json_object(response: httpx2.Response) -> dict[str, Any]:
    try:
        body = response.json()
    except (ValueError, RecursionError):
        return {}
    return body if isinstance(body, dict) else {}


def _context_lengths(response: httpx2.Response | None) -> dict[str, int | None]:
    """Return the ids of the listed models, with their context lengths where known."""
    return {one["id"]: _context_length(one) for one in _entries(response) if _is_name(one.get("id"))}


def _context_length(entry: dict[str, Any]) -> int | None:
    """Return the context length that an entry of /v1/models, or our /health, states."""
    meta = entry.get("meta")
    found = [entry.get(name) for name in CONTEXT_FIELDS]
    if isinstance(meta, dict):
        found += [meta.get(name) for name in META_CONTEXT_FIELDS]
    return next((one for one in found if type(one) is int and 0 < one <= MAX_CONTEXT), None)


def _owner(response: httpx2.Response | None) -> str | None:
    """Return the engine's name: engines list themselves as owners of their models (vllm, sglang, llamacpp)."""
    return next((one["owned_by"] for one in _entries(response) if _is_name(one.get("owned_by"))), None)


def _entries(response: httpx2.Response | None) -> list[dict[str, Any]]:
    if response is None or not response.is_success:
        return []
    data = _json_object(response).get("data")
    return [one for one in data if isinstance(one, dict)] if isinstance(data, list) else []


def _is_name(value: object) -> TypeGuard[str]:
    """Whether it is a valid model name, which goes into headers, logs and errors."""
    return isinstance(value, str) and 0 < len(value) <= MAX_NAME and value.isprintable()
