"""The routing decision: of all candidates, the one with the least expected time to the first token."""

from collections import Counter
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from gateway.backends.backend import Backend
from gateway.backends.load import Ticket
from gateway.backends.prefix_index import KB, PREFIX_LENGTHS, prefix_hashes
from gateway.routing.affinity import rendezvous
from gateway.routing.candidates import available, candidates
from gateway.routing.cost import ScoredCandidate, score
from gateway.routing.request import Candidate, RoutingRequest
from kit.config.catalogue import Catalogue
from kit.errors import ApiError, ModelLoading, ModelNotFound, NoHealthyBackend

Affinity = Literal["prefix", "session", "none"]
# Why a backend was chosen: it is expected to respond soonest; or of several equal ones it is the home of the client's
# conversation, or of prompts with this prefix; or it has the fewest requests in flight, or its turn has come.
Reason = Literal["soonest", "session", "prefix", "turn"]

# Backends whose costs differ by less than this factor, and these seconds, count as equal.
TIE_FACTOR = 1.25
TIE_S = 0.001
# A conversation named by the client stays at its home while that costs at most this factor of the best. With prefix
# affinity the factor is smaller, because prompts show which backend has cached them, and one name may stand for a
# whole application.
STICKY_FACTOR: Mapping[Affinity, float] = {"session": 3.0, "prefix": 1.5, "none": 1.0}
# Of more candidates than this, two random ones are scored: scoring all costs more than it gains (Mitzenmacher, The
# Power of Two Choices in Randomized Load Balancing, 2001).
MAX_SCORED = 8
# Candidate lists that are cached, about one per model and route.
MAX_CACHED = 4096


@dataclass(slots=True, eq=False)
class Choice:
    """The candidate for one request, with what `admit` records of the prompt."""

    candidate: Candidate
    # What the backend has not read before, in KB.
    unread_kb: float
    # The backend's weight times its warmth.
    capacity: float
    # Hashes of the prompt's prefixes.
    hashes: Sequence[int] = ()


class Router:
    """Chooses backends. Does no I/O; keeps a cache of candidates and the turns of equal backends."""

    def __init__(
        self,
        backends: Iterable[Backend],
        catalogue: Catalogue,
        *,
        affinity: Affinity = "prefix",
        load_bound: float = 2.0,
        draw: Callable[[], float] = lambda: 0.0,
    ) -> None:
        """`draw` returns a random number of [0, 1); `load_bound` limits the load from affinity, relative to the mean.

        Call `clear_cache` whenever a backend changes.
        """
        self._backends = backends
        self._catalogue = catalogue
        self._affinity = affinity
        self._load_bound = load_bound
        self._draw = draw
        self._cache: dict[Hashable, tuple[Candidate, ...]] = {}
        # Virtual time of the last choice: start-time fair queueing (Goyal et al., 1996) among equals.
        self._turn = 0.0
        # Requests sent to a fallback, by requested and served model.
        self.fallbacks_used: Counter[tuple[str, str]] = Counter()

    def clear_cache(self) -> None:
        """Discard the cached candidates: a backend has changed."""
        self._cache.clear()

    def usable(self, request: RoutingRequest) -> tuple[Candidate, ...]:
        """Return the candidates that may be sent the request now. Raises what `candidates` and `available` raise."""
        # A tuple is hashed and compared by native code, a dataclass is not.
        key = (request.endpoint, request.model, request.images, request.stream)
        found = self._cache.get(key)
        if found is None:
            found = self._find_usable(request)
            if len(self._cache) >= MAX_CACHED:
                self._cache.clear()
            self._cache[key] = found
        return found

    def _find_usable(self, request: RoutingRequest) -> tuple[Candidate, ...]:
        fitting: tuple[Candidate, ...] = ()
        try:
            fitting = candidates(request, self._backends, self._catalogue)
            return available(fitting)
        except (ModelLoading, NoHealthyBackend, ModelNotFound) as error:
            found = self._fallback(request, ())
            found = found or tuple(candidate for candidate in fitting if candidate.backend.health.is_last_resort)
            if found:
                return found
            names = self._fallback_names(request)
            if names:
                error.message += f" Its fallbacks are not available either: {', '.join(names)}."
            raise

    def _fallback_names(self, request: RoutingRequest) -> tuple[str, ...]:
        entry = None if request.is_any_model else self._catalogue.find(request.model or "")
        return entry.fallbacks if entry else ()

    def _fallback(self, request: RoutingRequest, tried: Collection[Backend]) -> tuple[Candidate, ...]:
        """Return the untried candidates of the first fallback model that has any."""
        for name in self._fallback_names(request):
            try:
                found = available(candidates(replace(request, model=name), self._backends, self._catalogue))
            except ApiError:
                continue
            untried = [candidate for candidate in found if candidate.backend not in tried]
            if untried:
                return tuple(replace(candidate, fallback_for=request.model) for candidate in untried)
        return ()

    def _last_resort(self, request: RoutingRequest, tried: Collection[Backend]) -> Sequence[Candidate]:
        fitting = candidates(request, self._backends, self._catalogue)
        return [one for one in fitting if one.backend.health.is_last_resort and one.backend not in tried]

    def choose(
        self, request: RoutingRequest, now: float, *, tried: Collection[Backend] = (), last_resort: bool = False
    ) -> Choice | None:
        """Return the best candidate whose backend is not in `tried`, or None. `now` is a monotonic time.

        With `last_resort`, a backend that only failed requests made unhealthy is accepted rather than none.

        Raises what `candidates` and `available` raise.
        """
        found: Sequence[Candidate] = self.usable(request)
        if tried:
            found = [one for one in found if one.backend not in tried] or self._fallback(request, tried)
            if not found and last_resort:
                found = self._last_resort(request, tried)
        if len(found) < 2:
            if not found:
                return None
            backend = found[0].backend
            return Choice(found[0], request.size / KB, backend.target.weight * backend.health.warmth(now))
        hashes, key = self.affinity(request)
        best, _ = self.best(self.score(request, found, hashes, key, now), key, sticky=bool(request.session))
        return Choice(best.candidate, best.unread_kb, best.capacity, hashes)

    def admit(self, choice: Choice, request: RoutingRequest, now: float, *, is_suspect: bool = False) -> Ticket:
        """Record that the request is sent where `choice` says; end the ticket when it is no longer there.

        A suspect was in flight at another backend when that crashed.
        """
        candidate, backend = choice.candidate, choice.candidate.backend
        load = backend.load
        turn = self._turn
        if load.next_turn > turn:
            turn = self._turn = load.next_turn
        load.next_turn = turn + 1.0 / choice.capacity
        if candidate.fallback_for is not None:
            self.fallbacks_used[candidate.fallback_for, candidate.offer.name] += 1
        if choice.hashes:
            load.prefixes.add(choice.hashes, choice.unread_kb)
        shows_first_token = request.shows_first_token
        return load.admit(backend.traffic, choice.unread_kb, now, shows_first_token, is_suspect)

    def affinity(self, request: RoutingRequest) -> tuple[Sequence[int], bytes]:
        """Return the hashes of the prompt's prefixes and the key of the conversation; empty where not used."""
        if self._affinity == "none":
            return (), b""
        hashes: Sequence[int] = ()
        if self._affinity == "prefix" and request.size >= PREFIX_LENGTHS[0]:
            hashes = prefix_hashes(request.prompt)
        return hashes, request.session or (hashes[0].to_bytes(4) if hashes else b"")

    def score(
        self, request: RoutingRequest, found: Sequence[Candidate], hashes: Sequence[int], key: bytes, now: float
    ) -> list[ScoredCandidate]:
        """Return the candidates with their costs, or a sample of them if there are more than MAX_SCORED."""
        bound = self._bound(found, now) if key else None
        if len(found) > MAX_SCORED:
            sample = self._sample(found, hashes, key)
            if all(one.backend.full_until > now for one in sample):
                sample = [one for one in found if one.backend.full_until <= now][:MAX_SCORED] or sample
            found = sample
        return score(found, request, now, hashes, bound)

    def best(self, scored: Sequence[ScoredCandidate], key: bytes, *, sticky: bool) -> tuple[ScoredCandidate, Reason]:
        """Return the cheapest candidate; among equals the conversation's home, else the least loaded, in turns.

        A `sticky` conversation, named by the client, goes to its home even if that costs somewhat more.
        """
        least = min([one.cost for one in scored])
        if key:
            # Consistent hashing with bounded loads (Mirrokni, Thorup, Zadimoghaddam, 2016): the first within the bound.
            limit = least * (STICKY_FACTOR[self._affinity] if sticky else TIE_FACTOR) + TIE_S
            eligible = [one for one in scored if one.cost <= limit and one.is_within_bound]
            if eligible:
                home = max(eligible, key=lambda one: rendezvous(key, one.candidate.backend.name))
                return home, "session" if sticky else "prefix" if len(eligible) > 1 else "soonest"
        limit = least * TIE_FACTOR + TIE_S
        tied = [one for one in scored if one.cost <= limit]
        return (tied[0], "soonest") if len(tied) == 1 else (min(tied, key=self._order), "turn")

    def _order(self, one: ScoredCandidate) -> tuple[float, float]:
        backend = one.candidate.backend
        in_flight = backend.traffic.in_flight + backend.peers.in_flight
        return in_flight / one.capacity, max(backend.load.next_turn, self._turn)

    def _bound(self, found: Sequence[Candidate], now: float) -> float:
        """Return the requests in flight, per capacity, up to which affinity may choose a backend."""
        in_flight = 1
        capacity = 0.0
        for candidate in found:
            backend = candidate.backend
            in_flight += backend.traffic.in_flight + backend.peers.in_flight
            capacity += backend.target.weight * backend.health.warmth(now)
        return self._load_bound * in_flight / capacity

    def _sample(self, found: Sequence[Candidate], hashes: Sequence[int], key: bytes) -> Sequence[Candidate]:
        """Return two random candidates, the one with most of the prompt cached, and the conversation's home."""
        count = len(found)
        first = int(self._draw() * count)
        second = (first + 1 + int(self._draw() * (count - 1))) % count
        sample = [found[first], found[second]]
        if hashes:
            sample.append(max(found, key=lambda candidate: candidate.backend.load.prefixes.cached_kb(hashes)))
        if key:
            sample.append(max(found, key=lambda candidate: rendezvous(key, candidate.backend.name)))
        return list(dict.fromkeys(sample))
