"""What a request would cost at each backend: the expected time to its first token.

    cost = pace of the backend (work that waits there / capacity + what it has not read of this prompt)
           x slower than learnt, as its oldest unanswered request shows
           x (1 + RUNNING x requests in flight / capacity)
           x BUSY_FACTOR where it answers no polls

Capacity is the weight from the configuration times the warmth after a start. The pace is learnt (gateway.pace), for
streams and for whole answers apart; who has shown none yet is taken to be as fast as the best.
"""

from collections.abc import Sequence
from math import ceil

from gateway.backends.latency_model import LatencyModel
from gateway.backends.load import REQUEST_OVERHEAD_KB
from gateway.backends.prefix_index import KB
from gateway.routing.request import Candidate, RoutingRequest

# How much each request in flight adds: generating takes a share of what reading prompts needs.
RUNNING = 0.1
# How much dearer a backend is that answers no polls while it works.
BUSY_FACTOR = 4.0
# One request in flight more than a mean of next to nothing is no overload.
IDLE = 2


class ScoredCandidate:
    """One candidate on the scales."""

    __slots__ = ("candidate", "capacity", "cost", "kb", "pace", "within")

    def __init__(
        self, candidate: Candidate, cost: float, capacity: float, kb: float, within: bool, pace: LatencyModel | None
    ) -> None:
        self.candidate = candidate
        # The expected time to the first token, in seconds where anybody's pace is known.
        self.cost = cost
        self.capacity = capacity
        # What it would have to read, in KB.
        self.kb = kb
        # Whether affinity may draw to it.
        self.within = within
        # What it is judged by: its own pace, another's where it has none, None where nobody has one.
        self.pace = pace


def weigh(
    pairs: Sequence[Candidate],
    request: RoutingRequest,
    now: float,
    hashes: Sequence[int] = (),
    bound: float | None = None,
) -> list[ScoredCandidate]:
    """Put every candidate on the scales.

    `hashes` tell how the prompt begins: who has read that before has less to read. A backend that one more request
    would put over `bound`, in requests in flight per capacity, gets no credit for it: affinity must not pile up work.
    None is no bound, and with fewer than IDLE in flight none is over it.
    """
    size_kb = request.size / KB
    weighed: list[ScoredCandidate] = []
    for candidate, pace in zip(pairs, _paces(pairs, request), strict=True):
        backend = candidate.backend
        load = backend.load
        in_flight = backend.traffic.in_flight + backend.peers.in_flight
        capacity = backend.target.weight * backend.health.warmth(now)
        kb = size_kb
        within = bound is None or in_flight < max(ceil(bound * capacity), IDLE)
        if hashes and within:
            kb -= load.prefixes.cached_kb(hashes)
        cost = (load.pending(now) + backend.peers.waiting_kb) / capacity + kb + REQUEST_OVERHEAD_KB
        if pace is not None:
            cost = pace.expected(cost, now) * load.slowdown(now)
        if in_flight:
            cost *= 1.0 + RUNNING * in_flight / capacity
        if candidate.busy:
            cost *= BUSY_FACTOR
        weighed.append(ScoredCandidate(candidate, cost, capacity, kb, within, pace))
    return weighed


def _paces(pairs: Sequence[Candidate], request: RoutingRequest) -> Sequence[LatencyModel | None]:
    """What each is judged by: its own pace, else the best of the others', for this sort of answer, else the other."""
    shows = request.shows_first_token
    for sort in (shows, not shows):
        paces = [
            candidate.backend.load.first_token if sort else candidate.backend.load.whole_response for candidate in pairs
        ]
        known = [pace for pace in paces if pace.is_known]
        if len(known) == len(paces):
            return paces
        if known:
            kb = request.size / KB + REQUEST_OVERHEAD_KB
            best = min(known, key=lambda pace: pace.base_s + pace.per_kb_s * kb)
            return [pace if pace.is_known else best for pace in paces]
    return [None] * len(pairs)
