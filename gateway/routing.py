"""Which backend answers a request. Pure: state in, decision or error out; no socket, no clock of its own.

The route fixes the kind of model. A named model goes only to backends that serve it. Without a name, or with `cluster`,
the best backend of the kind answers. Best is the least expected time to the first token: what was measured, times what
is in flight there already.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from gateway.backends import USABLE, Backend, Offer
from gateway.endpoints import Endpoint
from kit.catalogue import VIRTUAL_MODEL, Catalogue, Kind
from kit.errors import ApiError, InvalidRequest, ModelLoading, ModelNotFound, NoHealthyBackend

# Backends whose expected times differ by less than this factor count as equal, and take turns.
TIE = 1.25
# What an unmeasured backend is taken for when nothing has been measured, in seconds.
UNKNOWN_S = 1.0
# How much dearer a backend is that answers no polls while it works.
BUSY_FACTOR = 4.0


@dataclass(frozen=True, slots=True)
class Wants:
    """What routing needs to know of a request. `model` is None where the request names none."""

    endpoint: Endpoint
    model: str | None = None
    images: bool = False
    stream: bool = False

    @property
    def any_model(self) -> bool:
        """Whether the choice of the model is ours."""
        return self.model is None or self.model == VIRTUAL_MODEL


@dataclass(frozen=True, slots=True)
class Candidate:
    """A backend with the model that it would answer with."""

    backend: Backend
    offer: Offer

    def upstream_model(self, requested: str | None) -> str | None:
        """The name that must be written into the request for this backend, or None to leave the body as it is."""
        return None if requested in self.offer.verbatim else self.offer.upstream


def candidates(wants: Wants, backends: Iterable[Backend], catalogue: Catalogue) -> tuple[Candidate, ...]:
    """Every backend that serves what is wanted, in whatever state.

    Raises InvalidRequest for a model of the wrong kind and ModelNotFound for one that nobody serves; where some
    backend has not told yet what it serves, NoHealthyBackend that names it.
    """
    pairs = [Candidate(backend, offer) for backend in backends for offer in backend.offers]
    if wants.any_model:
        return _any_model(wants, pairs, backends)
    named = [pair for pair in pairs if wants.model in pair.offer.names]
    if not named:
        raise _unknown(wants.model or "", pairs, backends, catalogue)
    fitting = tuple(pair for pair in named if pair.offer.kind in (None, *wants.endpoint.kinds))
    if not fitting:
        raise _wrong_kind(wants, named[0].offer, pairs)
    return fitting


def available(among: Iterable[Candidate]) -> tuple[Candidate, ...]:
    """Those that may be sent a request now: the healthy ones and those that are only busy.

    Raises ModelLoading when one is on its way, else NoHealthyBackend that says what is wrong with each.
    """
    among = tuple(among)
    usable = tuple(pair for pair in among if pair.backend.state in USABLE)
    if usable:
        return usable
    for pair in among:
        if pair.backend.state == "loading":
            raise _loading(pair)
    raise _down(among)


def choose(
    among: Sequence[Candidate], now: float, *, stream: bool, tried: Collection[Backend] = ()
) -> Candidate | None:
    """The best of `among` that is not in `tried`, or None when all are. `now` is a monotonic time."""
    if len(among) == 1:
        return None if among[0].backend in tried else among[0]
    left = [pair for pair in among if pair.backend not in tried]
    if len(left) < 2:
        return left[0] if left else None
    costs = _costs([pair.backend for pair in left], now, stream)
    limit = min(costs) * TIE
    tied = (pair for pair, cost in zip(left, costs, strict=True) if cost <= limit)
    return min(tied, key=lambda pair: pair.backend.picked)


def _costs(backends: list[Backend], now: float, stream: bool) -> list[float]:
    expected = [_expected(backend, now, stream) for backend in backends]
    known = [seconds for seconds in expected if seconds is not None]
    unknown = min(known) if known else UNKNOWN_S
    return [
        (unknown if seconds is None else seconds)
        * (backend.in_flight + 1)
        * (BUSY_FACTOR if backend.state == "busy" else 1.0)
        for backend, seconds in zip(backends, expected, strict=True)
    ]


def _expected(backend: Backend, now: float, stream: bool) -> float | None:
    first, second = (backend.ttft, backend.whole) if stream else (backend.whole, backend.ttft)
    seconds = first.expected(now)
    return second.expected(now) if seconds is None else seconds


def _any_model(wants: Wants, pairs: list[Candidate], backends: Iterable[Backend]) -> tuple[Candidate, ...]:
    kinds: tuple[Kind, ...] = wants.endpoint.kinds
    if wants.images and "multimodal" in kinds:
        kinds = ("multimodal",)
    for kind in kinds:
        fitting = [pair for pair in pairs if pair.offer.kind == kind]
        # A foreign server whose kind nobody told is taken for what most are.
        fitting += [pair for pair in pairs if pair.offer.kind is None and kind in ("llm", "multimodal")]
        if fitting:
            first_of_each = {pair.backend.name: pair for pair in reversed(fitting)}
            return tuple(reversed(first_of_each.values()))
        silent = [backend for backend in backends if not backend.offers and backend.target.kind in (None, kind)]
        if silent:
            raise _silent(f"No {kind} model answers yet", silent)
    raise ApiError(
        f"This cluster has no {' or '.join(kinds)} model, which {wants.endpoint.path} needs. "
        "GET /services shows what it has; SERVICES of the gateway says where backends are.",
        status=404,
        type="invalid_request_error",
        code="model_not_found",
        param="model",
    )


def _unknown(model: str, pairs: list[Candidate], backends: Iterable[Backend], catalogue: Catalogue) -> ApiError:
    """Nobody serves `model`: is it unknown, or is its service not up yet?"""
    entry = catalogue.find(model)
    silent = [
        backend
        for backend in backends
        if not backend.offers and (entry is None or backend.target.kind in (None, entry.kind))
    ]
    if silent and (entry is not None or any(model in backend.target.models for backend in silent)):
        return _silent(f"No service serves {model!r} now", silent)
    return ModelNotFound(model, {pair.offer.name for pair in pairs} | ({VIRTUAL_MODEL} if pairs else set()))


def _silent(what: str, silent: Iterable[Backend]) -> NoHealthyBackend:
    reasons = "; ".join(f"{backend.name}: {_reason(backend)}" for backend in silent)
    return NoHealthyBackend(
        f"{what}. Not answering: {reasons}. Start the service, or try again in a moment.", retry_after=2
    )


def _wrong_kind(wants: Wants, offer: Offer, pairs: list[Candidate]) -> InvalidRequest:
    fit = sorted({pair.offer.name for pair in pairs if pair.offer.kind in wants.endpoint.kinds})
    instead = f"Models that do: {', '.join(fit)}." if fit else "No model of this cluster does."
    needs = " or ".join(wants.endpoint.kinds)
    return InvalidRequest(
        f"{wants.model!r} is of kind {offer.kind}; {wants.endpoint.path} needs {needs}. {instead}",
        param="model",
        code="wrong_model_kind",
    )


def _loading(pair: Candidate) -> ModelLoading:
    backend = pair.backend
    done = "" if backend.progress is None else f" ({int(backend.progress * 100)} %)"
    detail = f": {backend.last_error.rstrip('.')}" if backend.last_error else ""
    return ModelLoading(
        f"{pair.offer.name} is loading on {backend.name}{done}{detail}. Try again in a moment.",
        retry_after=backend.retry_after_s,
    )


def _down(among: Iterable[Candidate]) -> NoHealthyBackend:
    pairs = list(among)
    models = ", ".join(sorted({pair.offer.name for pair in pairs}))
    reasons = "; ".join(f"{pair.backend.name} is {pair.backend.state} ({_reason(pair.backend)})" for pair in pairs)
    return NoHealthyBackend(
        f"No healthy backend for {models}: {reasons}. Check GET /services and that service's log, then try again.",
        retry_after=2,
    )


def _reason(backend: Backend) -> str:
    if backend.state == "draining":
        return "taken out by an operator, POST /services/{name}/resume puts it back".replace("{name}", backend.name)
    return backend.last_error or "no reason known"


class Router:
    """`candidates` and `available`, remembered per question until something about the backends changes."""

    # Only questions with an answer are remembered, so there are about as many as models times routes.
    MOST = 4096

    def __init__(self, backends: Iterable[Backend], catalogue: Catalogue) -> None:
        self._backends = backends
        self._catalogue = catalogue
        self._answers: dict[Wants, tuple[Candidate, ...]] = {}

    def forget(self) -> None:
        """Something about the backends has changed."""
        self._answers.clear()

    def ask(self, wants: Wants) -> tuple[Candidate, ...]:
        """The backends that may answer now. Raises what `candidates` and `available` raise."""
        found = self._answers.get(wants)
        if found is None:
            found = available(candidates(wants, self._backends, self._catalogue))
            if len(self._answers) >= self.MOST:
                self._answers.clear()
            self._answers[wants] = found
        return found
