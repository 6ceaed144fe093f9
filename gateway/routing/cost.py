"""What a request would cost at each backend: the expected time to its first token.

    cost = pace of the backend (work that waits there / capacity + what it has not read of this prompt)
           x slower than learnt, as its oldest unanswered request shows
           x (1 + RUNNING x requests in flight / capacity)
           x BUSY_FACTOR where it answers no polls

Capacity is the weight from the configuration times the warmth after a start. The pace is learnt (gateway.pace), for
streams and for whole answers apart; who has shown none yet is taken to be as fast as the best.
"""

from collections.abc import Mapping, Sequence
from math import ceil

from gateway.load import EACH_KB
from gateway.pace import Pace
from gateway.routing.affinity import KB
from gateway.routing.wants import Candidate, Wants

# How much each request in flight adds: generating takes a share of what reading prompts needs.
RUNNING = 0.05
# How much dearer a backend is that answers no polls while it works.
BUSY_FACTOR = 4.0
# One request in flight more than a mean of next to nothing is no overload.
IDLE = 2
# The least that is left of a capacity, so that nothing is divided by nothing.
LEAST_CAPACITY = 0.01


class Weighed:
    """One candidate on the scales. Durations in seconds, work in KB."""

    __slots__ = ("capacity", "cost", "kb", "pace", "pair", "saved_kb", "slowed", "waiting_kb", "within")

    def __init__(self, pair: Candidate, capacity: float, kb: float, saved_kb: float, now: float) -> None:
        self.pair = pair
        self.capacity = capacity
        # What it would have to read, and what it has read before.
        self.kb = kb
        self.saved_kb = saved_kb
        load = pair.backend.load
        self.waiting_kb = load.waiting(now)
        self.slowed = load.slowed(now)
        self.pace: Pace | None = None
        # Whether affinity may draw to it; see Router.
        self.within = True
        self.cost = 0.0


def weigh(
    pairs: Sequence[Candidate], wants: Wants, now: float, saved_kb: Mapping[int, float], bound: float | None
) -> list[Weighed]:
    """Put every candidate on the scales.

    `saved_kb` is what each cache has seen of the prompt. A backend that one more request would put over `bound`, in
    requests in flight per capacity, gets no credit for that: affinity must not pile up work. None is no bound, and
    with fewer than IDLE in flight none is over it.
    """
    size_kb = wants.size / KB
    weighed: list[Weighed] = []
    for pair in pairs:
        backend = pair.backend
        capacity = max(backend.target.weight * backend.warmth(now), LEAST_CAPACITY)
        saved = 0.0
        within = bound is None or backend.in_flight < max(ceil(bound * capacity), IDLE)
        if within and saved_kb:
            saved = min(saved_kb.get(backend.load.cache, 0.0), size_kb)
        one = Weighed(pair, capacity, size_kb - saved, saved, now)
        one.within = within
        weighed.append(one)
    _set_paces(weighed, wants)
    for one in weighed:
        backend = one.pair.backend
        work = one.waiting_kb / one.capacity + one.kb + EACH_KB
        expected = work if one.pace is None else one.pace.expected(work, now) * one.slowed
        one.cost = expected * (1.0 + RUNNING * backend.in_flight / one.capacity)
        if backend.state == "busy":
            one.cost *= BUSY_FACTOR
    return weighed


def _set_paces(weighed: list[Weighed], wants: Wants) -> None:
    """Give each the pace that it is judged by: its own, else the best of the others'; None where nobody has one."""
    shows = wants.shows_first_token
    for sort in (shows, not shows):
        known = False
        unknown = False
        for one in weighed:
            load = one.pair.backend.load
            pace = load.first if sort else load.whole
            if pace.known:
                one.pace = pace
                known = True
            else:
                unknown = True
        if not known:
            continue
        if unknown:
            paces = [one.pace for one in weighed if one.pace is not None]
            at = wants.size / KB + EACH_KB
            best = min(paces, key=lambda pace: pace.base_s + pace.per_kb_s * at)
            for one in weighed:
                one.pace = one.pace or best
        return
