"""Which backends may answer a request at all, and why none may: by route, model, kind and state.

The route fixes the kind of model. A named model goes only to backends that serve it. Without a name, or with `cluster`,
every model of the kind will do.
"""

from collections.abc import Iterable
from dataclasses import replace

from gateway.backends.backend import Backend
from gateway.backends.health_state import USABLE
from gateway.backends.offers import Offer
from gateway.routing.request import Candidate, RoutingRequest
from kit.config.catalogue import VIRTUAL_MODEL, Catalogue, Kind
from kit.errors import ApiError, InvalidRequest, ModelLoading, ModelNotFound, NoHealthyBackend


def candidates(request: RoutingRequest, backends: Iterable[Backend], catalogue: Catalogue) -> tuple[Candidate, ...]:
    """Every backend that serves what is wanted, in whatever state.

    Raises InvalidRequest for a model of the wrong kind and ModelNotFound for one that nobody serves; where some
    backend has not told yet what it serves, NoHealthyBackend that names it.
    """
    pairs = [Candidate(backend, offer) for backend in backends for offer in backend.offers]
    if request.any_model:
        return _any_model(request, pairs, backends)
    named = [candidate for candidate in pairs if request.model in candidate.offer.names]
    if not named:
        raise _unknown(request.model or "", pairs, backends, catalogue)
    fitting = tuple(candidate for candidate in named if candidate.offer.kind in (None, *request.endpoint.kinds))
    if not fitting:
        raise _wrong_kind(request, named[0].offer, pairs)
    return fitting


def available(among: Iterable[Candidate]) -> tuple[Candidate, ...]:
    """Those that may be sent a request now: the healthy ones and those that are only busy.

    Raises ModelLoading when one is on its way, else NoHealthyBackend that says what is wrong with each.
    """
    among = tuple(among)
    usable = tuple(
        replace(candidate, busy=True) if candidate.backend.state == "busy" else candidate
        for candidate in among
        if candidate.backend.state in USABLE
    )
    if usable:
        return usable
    for candidate in among:
        if candidate.backend.state == "loading":
            raise _loading(candidate)
    raise _down(among)


def _any_model(request: RoutingRequest, pairs: list[Candidate], backends: Iterable[Backend]) -> tuple[Candidate, ...]:
    kinds: tuple[Kind, ...] = request.endpoint.kinds
    if request.images and "multimodal" in kinds:
        kinds = ("multimodal",)
    for kind in kinds:
        fitting = [candidate for candidate in pairs if candidate.offer.kind == kind]
        # A foreign server whose kind nobody told is taken for what most are.
        fitting += [candidate for candidate in pairs if candidate.offer.kind is None and kind in ("llm", "multimodal")]
        if fitting:
            first_of_each = {candidate.backend.name: candidate for candidate in reversed(fitting)}
            return tuple(reversed(first_of_each.values()))
        silent = [backend for backend in backends if not backend.offers and backend.target.kind in (None, kind)]
        if silent:
            raise _silent(f"No {kind} model answers yet", silent)
    raise ApiError(
        f"This cluster has no {' or '.join(kinds)} model, which {request.endpoint.path} needs. "
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
    return ModelNotFound(model, {candidate.offer.name for candidate in pairs} | ({VIRTUAL_MODEL} if pairs else set()))


def _silent(what: str, silent: Iterable[Backend]) -> NoHealthyBackend:
    reasons = "; ".join(f"{backend.name}: {_reason(backend)}" for backend in silent)
    return NoHealthyBackend(
        f"{what}. Not answering: {reasons}. Start the service, or try again in a moment.", retry_after=2
    )


def _wrong_kind(request: RoutingRequest, offer: Offer, pairs: list[Candidate]) -> InvalidRequest:
    fit = sorted({candidate.offer.name for candidate in pairs if candidate.offer.kind in request.endpoint.kinds})
    instead = f"Models that do: {', '.join(fit)}." if fit else "No model of this cluster does."
    needs = " or ".join(request.endpoint.kinds)
    return InvalidRequest(
        f"{request.model!r} is of kind {offer.kind}; {request.endpoint.path} needs {needs}. {instead}",
        param="model",
        code="wrong_model_kind",
    )


def _loading(candidate: Candidate) -> ModelLoading:
    backend = candidate.backend
    done = "" if backend.last_probe.progress is None else f" ({int(backend.last_probe.progress * 100)} %)"
    detail = f": {backend.last_error.rstrip('.')}" if backend.last_error else ""
    return ModelLoading(
        f"{candidate.offer.name} is loading on {backend.name}{done}{detail}. Try again in a moment.",
        retry_after=2,
    )


def _down(among: Iterable[Candidate]) -> NoHealthyBackend:
    pairs = list(among)
    models = ", ".join(sorted({candidate.offer.name for candidate in pairs}))
    reasons = "; ".join(
        f"{candidate.backend.name} is {candidate.backend.state} ({_reason(candidate.backend)})" for candidate in pairs
    )
    return NoHealthyBackend(
        f"No healthy backend for {models}: {reasons}. Check GET /services and that service's log, then try again.",
        retry_after=2,
    )


def _reason(backend: Backend) -> str:
    if backend.state == "draining":
        return "taken out by an operator, POST /services/{name}/resume puts it back".replace("{name}", backend.name)
    return backend.last_error or "no reason known"
