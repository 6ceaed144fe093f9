"""Why a request would go where it would go, in words and numbers. Pure, and by the very functions that choose."""

from collections.abc import Iterable, Mapping
from typing import Any

from gateway.backends.backend import Backend
from gateway.backends.health_state import USABLE
from gateway.backends.prefix_index import KB, PREFIX_LENGTHS
from gateway.routing.candidates import candidates
from gateway.routing.cost import BUSY_FACTOR, RUNNING, ScoredCandidate
from gateway.routing.request import RoutingRequest
from gateway.routing.router import TIE, Reason, Router
from kit.config.catalogue import Catalogue
from kit.errors import ApiError

_WON: Mapping[Reason, str] = {
    "soonest": "it is expected to answer soonest",
    "session": "the conversation that the request names belongs to it, and it is not much slower than the fastest",
    "prefix": "of those expected to answer about as soon, prompts with this beginning belong to it",
    "turn": "of those expected to answer about as soon, it has the fewest requests in flight, or its turn has come",
}


def explain(
    router: Router, request: RoutingRequest, backends: Iterable[Backend], catalogue: Catalogue, now: float
) -> tuple[dict[str, Any], ApiError | None]:
    """What would happen to a request, and the error that it would get. `now` is a monotonic time."""
    backends = tuple(backends)
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
    try:
        usable = router.ask(request)
    except ApiError as error:
        body |= {"why": error.message, "backends": [_told(one, request, backends, catalogue) for one in backends]}
        return body, error
    weighed = router.weigh(request, usable, hashes, key, now)
    if len(usable) == 1:
        best, why = weighed[0], "it is the only one that may answer"
    else:
        best, reason = router.best(weighed, key, sticky=bool(request.session))
        why = _WON[reason]
    if best.candidate.instead_of is not None:
        served, requested = best.candidate.offer.name, best.candidate.instead_of
        why += f"; {served} is a fallback of {requested}, which no backend can serve now"
    body |= {"chosen": best.candidate.backend.name, "served_model": best.candidate.offer.name, "why": why}
    scales = {one.candidate.backend: one for one in weighed}
    left_out = {candidate.backend for candidate in usable} - scales.keys()
    rows = []
    for backend in backends:
        if backend in scales:
            rows.append(_weighed(scales[backend], best, why, now))
        elif backend in left_out:
            rows.append(_row(backend, why="of many it was not drawn"))
        else:
            rows.append(_told(backend, request, backends, catalogue))
    # The best first, then those that could have been, then the others.
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


def _told(
    backend: Backend, request: RoutingRequest, backends: tuple[Backend, ...], catalogue: Catalogue
) -> dict[str, Any]:
    """A backend that may not answer, and why it may not."""
    try:
        fitting = any(candidate.backend is backend for candidate in candidates(request, backends, catalogue))
    except ApiError:
        fitting = False
    if not backend.offers:
        why = f"it has not told yet what it serves ({backend.last_error or 'it was not asked yet'})"
    elif not fitting:
        why = "it serves no model that the request could mean"
    elif backend.state not in USABLE:
        why = f"it is {backend.state}" + (f": {backend.last_error}" if backend.last_error else "")
    else:
        why = "another model answers"
    return _row(backend, why=why)


def _weighed(one: ScoredCandidate, best: ScoredCandidate, why: str, now: float) -> dict[str, Any]:
    """A backend that may answer, with what its expected time is made of."""
    backend, load = one.candidate.backend, one.candidate.backend.load
    waiting = load.pending(now)
    row = _row(backend, why=why if one is best else _lost(one, best))
    row["chosen"] = one is best
    row["model"] = one.candidate.offer.name
    known = one.pace is not None and one.pace.is_known
    row["expected_s"] = round(one.cost, 4) if known else None
    row["parts"] = {
        "pace": "unknown"
        if one.pace is None
        else "its own"
        if one.pace in (load.first_token, load.whole_response)
        else "borrowed",
        "base_s": round(one.pace.base_s, 4) if one.pace else None,
        "per_kb_s": round(one.pace.per_kb_s, 5) if one.pace else None,
        "unread_kb": round(one.kb, 2),
        "waiting_kb": round(waiting, 2),
        "slower_than_learnt": round(load.slowdown(now), 2),
        "in_flight": backend.traffic.in_flight,
        "in_flight_factor": round(1.0 + RUNNING * backend.traffic.in_flight / one.capacity, 2),
        "busy_factor": BUSY_FACTOR if one.candidate.busy else 1.0,
        "capacity": round(one.capacity, 2),
        "within_load_bound": one.within,
    }
    return row


def _lost(one: ScoredCandidate, best: ScoredCandidate) -> str:
    times = one.cost / best.cost if best.cost else 1.0
    if times > TIE:
        return f"it is expected to take {times:.1f} times as long"
    if not one.within:
        return "it has more requests in flight than affinity may draw to"
    return "about as soon, but not the one that this request belongs to or whose turn it is"
