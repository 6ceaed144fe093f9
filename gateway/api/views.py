"""Response bodies of the gateway's own routes: /health, /services, /gpu-stats, /v1/models."""

import asyncio
import time
from collections.abc import Iterable
from typing import Any

import httpx2

from gateway.backends.backend import Backend
from gateway.backends.backend_table import Backends
from gateway.backends.health_state import USABLE
from gateway.backends.offers import Offer
from gateway.health.backend_client import query
from kit.config.catalogue import VIRTUAL_MODEL, Catalogue, Entry, Kind

# Timeout for a service's GPU statistics, in seconds.
GPU_TIMEOUT_S = 2.0
# Input modalities by kind of model; that of all others is text.
_MODALITIES: dict[Kind | None, list[str]] = {"multimodal": ["text", "image"], "transcription": ["audio"]}
_MEMORY = ("memory_total_mb", "memory_used_mb", "memory_free_mb")


def health(backends: Backends, started: float) -> dict[str, Any]:
    """Return the body of GET /health. `started` is a monotonic time."""
    return {
        "status": "healthy",
        "service": "gateway",
        "uptime_seconds": round(time.monotonic() - started, 1),
        "backends": _counts(backends),
    }


def services(backends: Backends) -> dict[str, Any]:
    """Return the body of GET /services."""
    return {"services": {backend.name: describe(backend) for backend in backends}, **_counts(backends)}


def describe(backend: Backend) -> dict[str, Any]:
    """Return a backend's entry of GET /services."""
    traffic, peers, probe, ttft_s = backend.traffic, backend.peers, backend.last_probe, backend.load.ttft_s
    return {
        "url": backend.target.url,
        **({"address": backend.target.address} if backend.target.by_dns else {}),
        "kind": backend.kind,
        "models": [offer.name for offer in backend.offers],
        "state": backend.state,
        "healthy": backend.state in USABLE,
        "response_time_ms": probe.response_time_ms,
        "ttft_ms": None if ttft_s is None else round(ttft_s * 1000, 1),
        "in_flight": traffic.in_flight + peers.in_flight,
        "queued": backend.queued,
        "requests": traffic.requests + peers.requests,
        "failures": traffic.failures + peers.failures,
        "last_check": probe.finished_at,
        "last_error": backend.last_error,
        "since": backend.since,
        **({} if probe.progress is None else {"progress": probe.progress}),
    }


def _counts(backends: Backends) -> dict[str, int]:
    return {"healthy": sum(backend.state in USABLE for backend in backends), "total": len(backends)}


async def gpu_stats(backends: Iterable[Backend], client: httpx2.AsyncClient) -> dict[str, Any]:
    """Query all services concurrently for the body of GET /gpu-stats. Takes at most GPU_TIMEOUT_S."""
    queried = list(backends)
    stats = await asyncio.gather(*(_gpus_of(backend, client) for backend in queried))
    by_name = {backend.name: one for backend, one in zip(queried, stats, strict=True)}
    return {"services": by_name, "totals": _totals(stats)}


async def _gpus_of(backend: Backend, client: httpx2.AsyncClient) -> dict[str, Any]:
    if backend.target.has_no_address:
        return _unavailable(backend.target.doubt or "it has no address")
    try:
        async with asyncio.timeout(GPU_TIMEOUT_S):
            response = await query(client, backend, "/gpu-stats")
        if not response.is_success:
            return _unavailable(f"{backend.name} returned status {response.status_code}")
        body = response.json()
    except TimeoutError:
        return _unavailable(f"{backend.name} did not respond within {GPU_TIMEOUT_S:g} s")
    except (httpx2.HTTPError, ValueError, RecursionError) as error:
        return _unavailable(f"{backend.name} did not respond: {error or type(error).__name__}")
    if not isinstance(body, dict) or not isinstance(body.get("gpus"), list):
        return _unavailable(f"{backend.name} returned an unexpected body")
    return body


def _unavailable(reason: str) -> dict[str, Any]:
    return {"available": False, "reason": reason, "gpus": []}


def _totals(stats: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Return sums over all GPUs, each counted once even if several services report it."""
    gpus: dict[str, dict[str, Any]] = {}
    services = 0
    for one in stats:
        services += bool(one.get("available"))
        for gpu in one["gpus"]:
            if isinstance(gpu, dict):
                gpus[str(gpu.get("uuid") or id(gpu))] = gpu
    sums = {key: sum(_number(gpu.get(key)) for gpu in gpus.values()) for key in _MEMORY}
    loads = [_number(gpu["utilization_percent"]) for gpu in gpus.values() if gpu.get("utilization_percent") is not None]
    return {
        "services_with_gpus": services,
        "gpus": len(gpus),
        **sums,
        "utilization_percent": round(sum(loads) / len(loads), 1) if loads else None,
        "power_watts": round(sum(_number(gpu.get("power_watts")) for gpu in gpus.values()), 1),
    }


def _number(value: object) -> float:
    return value if isinstance(value, int | float) else 0


def models(backends: Backends, catalogue: Catalogue, *, aliases: bool) -> list[dict[str, Any]]:
    """Return the entries of GET /v1/models: `cluster` and every served model, with `aliases` also its other names.

    `cluster` comes first, because Chat UI and others use the first model by default.
    """
    serving: dict[str, list[tuple[Backend, Offer]]] = {}
    for backend in backends:
        for offer in backend.offers:
            serving.setdefault(offer.name, []).append((backend, offer))
    listed: dict[str, dict[str, Any]] = {}
    for name, pairs in serving.items():
        entry = catalogue.find(name)
        names = set().union(*(offer.names for _, offer in pairs)) if aliases else {name}
        others = [other for other in (entry.names if entry else ()) if other in names and other != name]
        others += sorted(names - {name, *others})
        for one in (name, *others):
            listed.setdefault(one, _model(one, name, entry, pairs))
    return [_virtual(backends, serving, catalogue), *listed.values()] if listed else []


def _model(name: str, root: str, entry: Entry | None, pairs: list[tuple[Backend, Offer]]) -> dict[str, Any]:
    kind = next((offer.kind for _, offer in pairs if offer.kind), None)
    context = _context_length(entry, pairs)
    body: dict[str, Any] = {
        "id": name,
        "object": "model",
        "created": 0,
        "owned_by": entry.hf_repo.partition("/")[0] if entry else "gpu-cluster",
        "kind": kind,
        "description": (entry.description if entry else "") or name,
        "context_length": context,
        "max_model_len": context,
        "architecture": {"input_modalities": _MODALITIES.get(kind, ["text"])},
        "providers": [_provider(context, tools=bool(entry and entry.supports_tools))],
        "backends": [backend.name for backend, _ in pairs],
    }
    return body if name == root else body | {"root": root}


def _context_length(entry: Entry | None, pairs: list[tuple[Backend, Offer]]) -> int | None:
    """Return the least context length that the catalogue or a backend states: any of them may get the request."""
    stated = [entry.context_length if entry else None, *(offer.context_length for _, offer in pairs)]
    return min((length for length in stated if length), default=None)


def _virtual(
    backends: Backends, serving: dict[str, list[tuple[Backend, Offer]]], catalogue: Catalogue
) -> dict[str, Any]:
    """Return the entry of `cluster`: with images if any model accepts them, else with what all models support."""
    chat = {
        name for name, pairs in serving.items() if any(offer.kind in ("llm", "multimodal", None) for _, offer in pairs)
    }
    entries = [entry for entry in catalogue if entry.name in chat]
    images = any(offer.kind == "multimodal" for pairs in serving.values() for _, offer in pairs)
    lengths = [
        _context_length(catalogue.find(name), pairs)
        for name, pairs in serving.items()
        if name in chat and all(offer.kind != "multimodal" for _, offer in pairs)
    ]
    context = min((length for length in lengths if length), default=None)
    return {
        "id": VIRTUAL_MODEL,
        "object": "model",
        "created": 0,
        "owned_by": "gpu-cluster",
        "kind": "llm",
        "description": "The fastest suitable model of the cluster at the moment",
        "context_length": context,
        "max_model_len": context,
        "architecture": {"input_modalities": ["text", "image"] if images else ["text"]},
        "providers": [_provider(context, tools=bool(entries) and all(entry.supports_tools for entry in entries))],
        "backends": [backend.name for backend in backends if any(offer.name in chat for offer in backend.offers)],
    }


def _provider(context: int | None, *, tools: bool) -> dict[str, Any]:
    """Return a model's provider entry. An unknown context length is omitted: Chat UI rejects a list with a null."""
    return {"supports_tools": tools} | ({} if context is None else {"context_length": context})
