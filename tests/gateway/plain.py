"""Backends and routing requests as plain objects, for tests without sockets."""

import time
from dataclasses import replace
from typing import Any

from gateway.backends.backend import Backend, Clock
from gateway.backends.health_state import State
from gateway.backends.offers import Offer, offer_of_entry, offer_of_id
from gateway.discovery.target import make_target
from gateway.endpoints import BY_PATH
from gateway.routing import RoutingRequest
from gateway.upstream.pool import Pool
from kit.config.catalogue import Catalogue, Entry, Kind

KINDS: dict[str, Kind] = {
    "qwen": "llm",
    "tinyllama": "llm",
    "llava": "multimodal",
    "minilm": "embedding",
    "ranker": "reranker",
    "whisper": "transcription",
}
ENTRIES = [
    Entry(name=name, kind=kind, hf_repo=f"org/{name}", aliases=("fast",) if name == "qwen" else ())
    for name, kind in KINDS.items()
]
CATALOGUE = Catalogue(ENTRIES)
CLOCK = Clock(monotonic=time.monotonic, wall=time.time)


def make_backend(
    name: str, *models: str, state: State = "healthy", kind: Kind | None = None, weight: float = 1.0
) -> Backend:
    """A backend that serves catalogue models, or foreign ids where the catalogue has none."""
    target = replace(make_target(name, "http://127.0.0.1:1", kind=kind), weight=weight)
    backend = Backend(target, Pool(target), CLOCK)
    offers: list[Offer] = []
    for model in models:
        entry = CATALOGUE.find(model)
        offers.append(offer_of_entry(entry) if entry else offer_of_id(model, None, kind))
    backend.set_offers(tuple(offers))
    backend.observe(state, None if state == "healthy" else f"{state} for a test")
    return backend


def routing_request(path: str, model: str | None = None, **more: Any) -> RoutingRequest:
    """Return the routing request for `path`."""
    return RoutingRequest(BY_PATH[path.encode()], model, **more)


def full_cluster() -> list[Backend]:
    """One backend for each model."""
    return [make_backend(f"s-{name}", name) for name in KINDS]


CHAT = "/v1/chat/completions"
