"""The choice: of all that may answer, the one with the least expected time to the first token."""

from collections import Counter
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Literal

from gateway.backends.backend import Backend
from gateway.backends.load import Ticket
from gateway.backends.prefix_index import KB, PREFIX_LENGTHS, prefix_hashes
from gateway.routing.affinity import rendezvous, session_key
from gateway.routing.candidates import available, candidates
from gateway.routing.cost import ScoredCandidate, weigh
from gateway.routing.request import Candidate, RoutingRequest
from kit.config.catalogue import Catalogue
from kit.errors import ApiError, ModelLoading, ModelNotFound, NoHealthyBackend

Affinity = Literal["prefix", "session", "none"]
# Why a backend won: it answers soonest; of several that do, it is the one that the conversation that the client names,
# or that prompts with this beginning belong to; or it has the fewest requests in flight, or its turn has come.
Reason = Literal["soonest", "session", "prefix", "turn"]

# Backends whose costs differ by less than this factor, and these seconds, count as equal.
TIE = 1.25
TIE_S = 0.001
# A conversation that the client names stays at its backend for as long as that costs at most so many times the best.
# Where prompts tell who has read them the name need not say much: it may be one for a whole application.
STICK: Mapping[Affinity, float] = {"session": 3.0, "prefix": 1.5, "none": 1.0}
# Of more candidates than these, two are drawn and the better one is taken: asking all costs more than it gains
# (Mitzenmacher, The Power of Two Choices in Randomized Load Balancing, 2001).
MANY = 8
# How many questions are remembered. Only those with an answer are, so there are about as many as models times routes.
MAX_QUESTIONS = 4096


class Choice:
    """A backend for one request, with what was found out on the way to it."""

    __slots__ = ("candidate", "hashes", "kb")

    def __init__(self, candidate: Candidate, kb: float, hashes: Sequence[int] = ()) -> None:
        self.candidate = candidate
        # What the backend has not read before, in KB; how the prompt begins.
        self.kb = kb
        self.hashes = hashes


class Router:
    """Chooses backends. Pure but for what it remembers: answers until something changes, prompts, whose turn it is."""

    def __init__(
        self,
        backends: Iterable[Backend],
        catalogue: Catalogue,
        *,
        affinity: Affinity = "prefix",
        load_bound: float = 2.0,
        draw: Callable[[], float] = lambda: 0.0,
    ) -> None:
        """`draw` gives a random number of [0, 1). `load_bound` is how far over the mean affinity may load a backend."""
        self._backends = backends
        self._catalogue = catalogue
        self._affinity = affinity
        self._load_bound = load_bound
        self._draw = draw
        self._answers: dict[Hashable, tuple[Candidate, ...]] = {}
        # The turn of the backend chosen last: start-time fair queueing (Goyal et al., 1996) among equals.
        self._turn = 0.0
        # How many requests went to a fallback, by the model that they named and the one that they were sent to.
        self.fallen_back: Counter[tuple[str, str]] = Counter()

    def forget(self) -> None:
        """Something about the backends has changed."""
        self._answers.clear()

    def ask(self, request: RoutingRequest) -> tuple[Candidate, ...]:
        """The backends that may answer now. Raises what `candidates` and `available` raise."""
        # A tuple is hashed and compared by native code, a dataclass is not.
        question = (request.endpoint, request.model, request.images, request.stream)
        found = self._answers.get(question)
        if found is None:
            found = self._usable(request)
            if len(self._answers) >= MAX_QUESTIONS:
                self._answers.clear()
            self._answers[question] = found
        return found

    def _usable(self, request: RoutingRequest) -> tuple[Candidate, ...]:
        fitting: tuple[Candidate, ...] = ()
        try:
            fitting = candidates(request, self._backends, self._catalogue)
            return available(fitting)
        except (ModelLoading, NoHealthyBackend, ModelNotFound) as error:
            found = self._fallback(request, ())
            # Where only failed requests speak against a backend, and there is nobody else, it is better than none.
            found = found or tuple(candidate for candidate in fitting if candidate.backend.health.is_last_resort)
            if found:
                return found
            names = self._fallbacks(request)
            if names:
                error.message += f" Nor can its fallbacks answer now: {', '.join(names)}."
            raise

    def _fallbacks(self, request: RoutingRequest) -> tuple[str, ...]:
        """The models that may answer in the place of the one that the request names, by the catalogue."""
        if request.any_model:
            return ()
        entry = self._catalogue.find(request.model or "")
        return entry.fallbacks if entry else ()

    def _fallback(self, request: RoutingRequest, tried: Collection[Backend]) -> tuple[Candidate, ...]:
        """The untried backends of the first of those models that has any which may answer now."""
        for name in self._fallbacks(request):
            try:
                found = available(candidates(replace(request.question(), model=name), self._backends, self._catalogue))
            except ApiError:
                continue
            left = tuple(
                replace(candidate, instead_of=request.model) for candidate in found if candidate.backend not in tried
            )
            if left:
                return left
        return ()

    def _doubtful(self, request: RoutingRequest, tried: Collection[Backend]) -> tuple[Candidate, ...]:
        """The untried backends that only failed requests speak against."""
        fitting = candidates(request, self._backends, self._catalogue)
        return tuple(
            candidate
            for candidate in fitting
            if candidate.backend.health.is_last_resort and candidate.backend not in tried
        )

    def choose(
        self, request: RoutingRequest, now: float, *, tried: Collection[Backend] = (), last_resort: bool = False
    ) -> Choice | None:
        """The best backend that is not in `tried`, or None when all are. `now` is a monotonic time.

        As the `last_resort` of a request that would fail, one that only failed requests speak against will do.

        Raises what `candidates` and `available` raise.
        """
        found: Sequence[Candidate] = self.ask(request)
        if tried:
            found = [candidate for candidate in found if candidate.backend not in tried] or self._fallback(
                request, tried
            )
            if not found and last_resort:
                found = self._doubtful(request, tried)
        if len(found) < 2:
            return Choice(found[0], request.size / KB) if found else None
        hashes, key = self.affinity(request)
        best, _ = self.best(self.weigh(request, found, hashes, key, now), key, sticky=bool(request.session))
        return Choice(best.candidate, best.kb, hashes)

    def sent(self, choice: Choice, request: RoutingRequest, now: float, *, is_suspect: bool = False) -> Ticket:
        """Record that the request is sent where `choice` says; end the ticket when it is no longer there.

        A suspect was at another backend when that crashed.
        """
        backend = choice.candidate.backend
        load = backend.load
        turn = self._turn
        if load.next_turn > turn:
            turn = self._turn = load.next_turn
        load.next_turn = turn + 1.0 / (backend.target.weight * backend.health.warmth(now))
        if choice.candidate.instead_of is not None:
            self.fallen_back[choice.candidate.instead_of, choice.candidate.offer.name] += 1
        if choice.hashes:
            load.prefixes.add(choice.hashes, choice.kb)
        return backend.admit(choice.kb, now, shows_first_token=request.shows_first_token, is_suspect=is_suspect)

    def affinity(self, request: RoutingRequest) -> tuple[Sequence[int], bytes]:
        """How the prompt begins, and what names the conversation, both as far as they count here."""
        if self._affinity == "none":
            return (), b""
        hashes = (
            prefix_hashes(request.prompt) if self._affinity == "prefix" and request.size >= PREFIX_LENGTHS[0] else ()
        )
        return hashes, session_key(request, hashes)

    def weigh(
        self, request: RoutingRequest, pairs: Sequence[Candidate], hashes: Sequence[int], key: bytes, now: float
    ) -> list[ScoredCandidate]:
        """What the request would cost at each of `pairs`, or at a few where they are many."""
        bound = self._bound(pairs, now) if key else None
        if len(pairs) > MANY:
            pairs = self._few(pairs, hashes, key)
        return weigh(pairs, request, now, hashes, bound)

    def best(self, weighed: Sequence[ScoredCandidate], key: bytes, *, sticky: bool) -> tuple[ScoredCandidate, Reason]:
        """The cheapest; of those that count as equal the conversation's own, else the least loaded in their turns.

        A `sticky` conversation, which the client has named, goes to its own even where that costs somewhat more.
        """
        least = min([one.cost for one in weighed])
        if key:
            # Consistent hashing with bounded loads (Mirrokni, Thorup, Zadimoghaddam, 2016): the first within the bound.
            limit = least * (STICK[self._affinity] if sticky else TIE) + TIE_S
            drawn = [one for one in weighed if one.cost <= limit and one.within]
            if drawn:
                own = max(drawn, key=lambda one: rendezvous(key, one.candidate.backend.name))
                return own, "session" if sticky else "prefix" if len(drawn) > 1 else "soonest"
        limit = least * TIE + TIE_S
        tied = [one for one in weighed if one.cost <= limit]
        return (tied[0], "soonest") if len(tied) == 1 else (min(tied, key=self._order), "turn")

    def _order(self, one: ScoredCandidate) -> tuple[float, float]:
        backend = one.candidate.backend
        return (backend.traffic.in_flight + backend.peers.in_flight) / one.capacity, max(
            backend.load.next_turn, self._turn
        )

    def _bound(self, pairs: Sequence[Candidate], now: float) -> float:
        """How many requests in flight, per capacity, a backend may have for affinity to draw to it."""
        in_flight = 1
        capacity = 0.0
        for candidate in pairs:
            in_flight += candidate.backend.traffic.in_flight + candidate.backend.peers.in_flight
            capacity += candidate.backend.target.weight * candidate.backend.health.warmth(now)
        return self._load_bound * in_flight / capacity

    def _few(self, pairs: Sequence[Candidate], hashes: Sequence[int], key: bytes) -> Sequence[Candidate]:
        """Two drawn ones, the one that has read most of the prompt before, and the one that the conversation is of."""
        count = len(pairs)
        first = int(self._draw() * count)
        second = (first + 1 + int(self._draw() * (count - 1))) % count
        few = [pairs[first], pairs[second]]
        if hashes:
            few.append(max(pairs, key=lambda candidate: candidate.backend.load.prefixes.cached_kb(hashes)))
        if key:
            few.append(max(pairs, key=lambda candidate: rendezvous(key, candidate.backend.name)))
        return list(dict.fromkeys(few))
