"""The cost of a request at each candidate: the expected time to its first token.

    cost = latency model(work pending there / capacity + unread part of this prompt)
           x slowdown, as shown by its oldest request without a byte
           x (1 + IN_FLIGHT_COST x requests in flight / capacity)
           x BUSY_FACTOR if it does not respond to probes
           x FULL_FACTOR if it has said that it is full

Capacity is the configured weight times the warmth after a start. Latency is learned (gateway.backends.latency_model)
separately for streams and whole responses; a backend without measurements is assumed to be as fast as the best one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

from gateway.backends.latency_model import LatencyModel
from gateway.backends.load import REQUEST_OVERHEAD_KB
from gateway.backends.prefix_index import KB
from gateway.routing.request import Candidate, RoutingRequest

# What each request in flight adds: generating takes a share of the capacity for reading prompts.
IN_FLIGHT_COST = 0.1
# Cost factor of a backend that is too busy to respond to probes.
BUSY_FACTOR = 4.0
# Cost factor of a full backend, for as long as its response said: only if all are full does one get requests.
FULL_FACTOR = 1e12
# Below this many requests in flight a backend is never over the load bound.
MIN_BOUND = 2


@dataclass(slots=True, eq=False)
class ScoredCandidate:
    """One candidate with its cost."""

    candidate: Candidate
    # The expected time to the first token; in seconds if any backend was measured.
    cost: float
    capacity: float
    # What the backend would have to read, in KB.
    unread_kb: float
    # Whether affinity may choose it.
    is_within_bound: bool
    # Its own model, that of the best other backend if it has none, None if no backend has one.
    latency: LatencyModel | None


def score(
    candidates: Sequence[Candidate],
    request: RoutingRequest,
    now: float,
    hashes: Sequence[int] = (),
    bound: float | None = None,
) -> list[ScoredCandidate]:
    """Return every candidate with its cost.

    `hashes` are those of the prompt's prefixes: backends that have read them have less to read. A backend that one more
    request would put over `bound`, in requests in flight per capacity, gets no credit for that, so that affinity does
    not overload it. None means no bound.
    """
    size_kb = request.size / KB
    scored: list[ScoredCandidate] = []
    for candidate, latency in zip(candidates, _latency_models(candidates, request), strict=True):
        backend = candidate.backend
        load = backend.load
        in_flight = backend.traffic.in_flight + backend.peers.in_flight
        capacity = backend.target.weight * backend.health.warmth(now)
        unread_kb = size_kb
        is_within_bound = bound is None or in_flight < max(ceil(bound * capacity), MIN_BOUND)
        if hashes and is_within_bound:
            unread_kb -= load.prefixes.cached_kb(hashes)
        cost = (load.pending(now) + backend.peers.waiting_kb) / capacity + unread_kb + REQUEST_OVERHEAD_KB
        if latency is not None:
            cost = load.slowdown(now) * latency.expected(cost, now)
        if in_flight:
            cost *= 1.0 + IN_FLIGHT_COST * in_flight / capacity
        if candidate.is_busy:
            cost *= BUSY_FACTOR
        if load.full_until > now or backend.peers.full_until > now:
            cost *= FULL_FACTOR
        scored.append(ScoredCandidate(candidate, cost, capacity, unread_kb, is_within_bound, latency))
    return scored


def _latency_models(candidates: Sequence[Candidate], request: RoutingRequest) -> Sequence[LatencyModel | None]:
    """Return the model for each: its own, else the best other one; for this sort of response, else the other sort."""
    shows = request.shows_first_token
    for first_token in (shows, not shows):
        loads = [candidate.backend.load for candidate in candidates]
        models = [load.first_token if first_token else load.whole_response for load in loads]
        known = [model for model in models if model.is_known]
        if len(known) == len(models):
            return models
        if known:
            kb = request.size / KB + REQUEST_OVERHEAD_KB
            best = min(known, key=lambda model: model.base_s + model.per_kb_s * kb)
            return [model if model.is_known else best for model in models]
    return [None] * len(candidates)
