"""Explanation of a routing decision in words and numbers, from the functions that make it. Pure."""

import contextlib
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from gateway.backends.backend import Backend
from gateway.backends.health_state import USABLE
from gateway.backends.prefix_index import KB, PREFIX_LENGTHS
from gateway.routing.candidates import candidates
from gateway.routing.cost import BUSY_FACTOR, FULL_FACTOR, IN_FLIGHT_COST, ScoredCandidate
from gateway.routing.request import RoutingRequest
from gateway.routing.router import TIE_FACTOR, Reason, Router
from kit.config.catalogue import Catalogue
from kit.errors import ApiError

_REASONS: Mapping[Reason, str] = {
    "soonest": "it is expected to respond soonest",
    "session": "it is the home of the conversation that the request names, and not much slower than the fastest",
    "prefix": "of those expected to respond about as soon, it is the home of prompts with this prefix",
    "turn": "of those expected to respond about as soon, it has the fewest requests in flight, or its turn has come",
}


def explain(
    router: Router, request: RoutingRequest, backends: Iterable[Backend], catalogue: Catalogue, now: float
) -> tuple[dict[str, Any], ApiError | None]:
    """Return what would happen to a request, and the error that it would get. `now` is a monotonic time."""
    backends, serving = tuple(backends), set[Backend]()
    hashes, key = router.affinity(request)
    body: dict[str, Any] = {
        "path": request.endpoint.path,
        "kinds": request.endpoint.kinds,
        "model": request.model,
        "images": request.images,
        "stream": request.stream,
        "size_kb": round(request.size / KB, 2),
        "affinity": {
            "session": request.session.decode("utf-8", "replace") or None,
            "compared_kb": PREFIX_LENGTHS[len(hashes) - 1] / KB if hashes else 0,
        },
        "chosen": None,
        "served_model": None,
    }
    with contextlib.suppress(ApiError):
        serving = {one.backend for one in candidates(request, backends, catalogue)}
    try:
        usable = router.usable(request)
    except ApiError as error:
        body |= {
            "why": error.message,
            "backends": [_unusable_row(one, serving) for one in backends],
        }
        return body, error
    scored = router.score(request, usable, hashes, key, now)
    if len(usable) == 1:
        best, why = scored[0], "it is the only candidate"
    else:
        best, reason = router.best(scored, key, sticky=bool(request.session))
        why = _REASONS[reason]
    candidate = best.candidate
    if candidate.fallback_for is not None:
        why += f"; {candidate.offer.name} is a fallback for {candidate.fallback_for}, which is not available now"
    body |= {"chosen": candidate.backend.name, "served_model": candidate.offer.name, "why": why}
    by_backend = {one.candidate.backend: one for one in scored}
    not_sampled = {one.backend for one in usable} - by_backend.keys()
    rows = []
    for backend in backends:
        if backend in by_backend:
            rows.append(_scored_row(by_backend[backend], best, why, now))
        elif backend in not_sampled:
            rows.append(_row(backend, why="it is not in the random sample of the many candidates"))
        else:
            rows.append(_unusable_row(backend, serving))
    # The chosen one first, then the other candidates, then the rest.
    rows.sort(key=lambda row: (not row["chosen"], row["expected_s"] is None, row["expected_s"] or 0.0))
    body["backends"] = rows
    return body, None


def _row(backend: Backend, *, why: str) -> dict[str, Any]:
    return {
        "backend": backend.name,
        "state": backend.state,
        "models": [offer.name for offer in backend.offers],
        "chosen": False,
        "why": why,
        "expected_s": None,
    }


def _unusable_row(backend: Backend, serving: Collection[Backend]) -> dict[str, Any]:
    """Return the row of a backend that may not serve the request, with the reason; `serving` have its model."""
    if not backend.offers:
        why = f"its models are not known yet ({backend.last_error or 'it was not probed yet'})"
    elif backend not in serving:
        why = "it serves no model that fits the request"
    elif backend.state not in USABLE:
        why = f"it is {backend.state}" + (f": {backend.last_error}" if backend.last_error else "")
    else:
        why = "another model is used"
    return _row(backend, why=why)


def _scored_row(one: ScoredCandidate, best: ScoredCandidate, why: str, now: float) -> dict[str, Any]:
    """Return the row of a candidate, with the parts of its expected time."""
    backend, load, latency = one.candidate.backend, one.candidate.backend.load, one.latency
    is_own = latency in (load.first_token, load.whole_response)
    pending_kb = load.pending(now)
    full_factor = FULL_FACTOR if backend.full_until > now else 1.0
    row = _row(backend, why=why if one is best else _why_not(one, best, now))
    row["chosen"] = one is best
    row["model"] = one.candidate.offer.name
    row["expected_s"] = round(one.cost / full_factor, 4) if latency is not None and latency.is_known else None
    row["parts"] = {
        "pace": "unknown" if latency is None else "its own" if is_own else "borrowed",
        "base_s": round(latency.base_s, 4) if latency else None,
        "per_kb_s": round(latency.per_kb_s, 5) if latency else None,
        "unread_kb": round(one.unread_kb, 2),
        "waiting_kb": round(pending_kb, 2),
        "slower_than_learnt": round(load.slowdown(now), 2),
        "in_flight": backend.traffic.in_flight,
        "in_flight_factor": round(1.0 + IN_FLIGHT_COST * backend.traffic.in_flight / one.capacity, 2),
        "busy_factor": BUSY_FACTOR if one.candidate.is_busy else 1.0,
        "full_factor": full_factor,
        "capacity": round(one.capacity, 2),
        "within_load_bound": one.is_within_bound,
    }
    return row


def _why_not(one: ScoredCandidate, best: ScoredCandidate, now: float) -> str:
    if one.candidate.backend.full_until > now:
        return f"it is {one.candidate.backend.last_error}"
    ratio = one.cost / best.cost if best.cost else 1.0
    if ratio > TIE_FACTOR:
        return f"it is expected to take {ratio:.1f} times as long"
    if not one.is_within_bound:
        return "it has more requests in flight than the load bound of affinity"
    return "about as soon, but not the home of this request, nor is it its turn"
