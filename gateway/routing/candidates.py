"""The backends that may serve a request, by route, model, kind and state, or the error if there are none.

The route determines the kind of model. A request that names a model goes only to backends that serve it. Without a
model, or with `cluster`, every model of the kind is a candidate.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace

from gateway.backends.backend import Backend
from gateway.backends.health_state import USABLE
from gateway.backends.offers import Offer
from gateway.routing.request import Candidate, RoutingRequest
from kit.config.catalogue import VIRTUAL_MODEL, Catalogue, Kind
from kit.errors import ApiError, InvalidRequest, ModelLoading, ModelNotFound, NoHealthyBackend

# Retry-After of requests that no backend can serve yet, in seconds.
RETRY_AFTER_S = 2


def candidates(request: RoutingRequest, backends: Iterable[Backend], catalogue: Catalogue) -> tuple[Candidate, ...]:
    """Return all backends that serve the request's model, in any state.

    Raises InvalidRequest for a model of the wrong kind and ModelNotFound for an unknown one; NoHealthyBackend if a
    backend whose models are not known yet may serve it.
    """
    offered = [Candidate(backend, offer) for backend in backends for offer in backend.offers]
    if request.is_any_model:
        return _any_model(request, offered, backends)
    named = [candidate for candidate in offered if request.model in candidate.offer.names]
    if not named:
        raise _unknown(request.model or "", offered, backends, catalogue)
    fitting = tuple(candidate for candidate in named if candidate.offer.kind in (None, *request.endpoint.kinds))
    if not fitting:
        raise _wrong_kind(request, named[0].offer, offered)
    return fitting


def available(among: Iterable[Candidate]) -> tuple[Candidate, ...]:
    """Return those that may be sent a request now: healthy and busy ones.

    Raises ModelLoading if one is loading, else NoHealthyBackend with the reason for each.
    """
    among = tuple(among)
    usable = tuple(
        replace(candidate, is_busy=True) if candidate.backend.state == "busy" else candidate
        for candidate in among
        if candidate.backend.state in USABLE
    )
    if usable:
        return usable
    for candidate in among:
        if candidate.backend.state == "loading":
            raise _loading(candidate)
    raise _down(among)


def _any_model(request: RoutingRequest, offered: list[Candidate], backends: Iterable[Backend]) -> tuple[Candidate, ...]:
    kinds: tuple[Kind, ...] = request.endpoint.kinds
    if request.images and "multimodal" in kinds:
        kinds = ("multimodal",)
    for kind in kinds:
        fitting = [candidate for candidate in offered if candidate.offer.kind == kind]
        # A foreign server of unknown kind is assumed to generate text, as most do.
        if kind in ("llm", "multimodal"):
            fitting += [candidate for candidate in offered if candidate.offer.kind is None]
        if fitting:
            first_of_each = {candidate.backend.name: candidate for candidate in reversed(fitting)}
            return tuple(reversed(first_of_each.values()))
        unknown = [backend for backend in backends if not backend.offers and backend.target.kind in (None, kind)]
        if unknown:
            raise _not_responding(f"No {kind} model is available yet", unknown)
    raise ApiError(
        f"This cluster has no {' or '.join(kinds)} model, which {request.endpoint.path} needs. "
        "GET /services lists its models; SERVICES of the gateway configures its backends.",
        status=404,
        type="invalid_request_error",
        code="model_not_found",
        param="model",
    )


def _unknown(model: str, offered: list[Candidate], backends: Iterable[Backend], catalogue: Catalogue) -> ApiError:
    """Return the error for a model that no backend serves: unknown, or its service has not started yet."""
    entry = catalogue.find(model)
    unknown = [
        backend
        for backend in backends
        if not backend.offers and (entry is None or backend.target.kind in (None, entry.kind))
    ]
    if unknown and (entry is not None or any(model in backend.target.models for backend in unknown)):
        return _not_responding(f"No service serves {model!r} now", unknown)
    names = {candidate.offer.name for candidate in offered} | ({VIRTUAL_MODEL} if offered else set())
    return ModelNotFound(model, names)


def _not_responding(problem: str, backends: Iterable[Backend]) -> NoHealthyBackend:
    reasons = "; ".join(f"{backend.name}: {_reason(backend)}" for backend in backends)
    return NoHealthyBackend(
        f"{problem}. Not responding: {reasons}. Start the service, or try again in a moment.",
        retry_after=RETRY_AFTER_S,
    )


def _wrong_kind(request: RoutingRequest, offer: Offer, offered: list[Candidate]) -> InvalidRequest:
    fitting = sorted({one.offer.name for one in offered if one.offer.kind in request.endpoint.kinds})
    instead = f"Use one of: {', '.join(fitting)}." if fitting else "No model of this cluster fits."
    needs = " or ".join(request.endpoint.kinds)
    return InvalidRequest(
        f"{request.model!r} is of kind {offer.kind}; {request.endpoint.path} needs {needs}. {instead}",
        param="model",
        code="wrong_model_kind",
    )


def _loading(candidate: Candidate) -> ModelLoading:
    backend = candidate.backend
    progress = backend.last_probe.progress
    done = "" if progress is None else f" ({int(progress * 100)} %)"
    detail = f": {backend.last_error.rstrip('.')}" if backend.last_error else ""
    return ModelLoading(
        f"{candidate.offer.name} is loading on {backend.name}{done}{detail}. Try again in a moment.",
        retry_after=RETRY_AFTER_S,
    )


def _down(down: Sequence[Candidate]) -> NoHealthyBackend:
    models = ", ".join(sorted({candidate.offer.name for candidate in down}))
    reasons = "; ".join(f"{one.backend.name} is {one.backend.state} ({_reason(one.backend)})" for one in down)
    return NoHealthyBackend(
        f"No healthy backend for {models}: {reasons}. Check GET /services and that service's log, then try again.",
        retry_after=RETRY_AFTER_S,
    )


def _reason(backend: Backend) -> str:
    if backend.state == "draining":
        return f"taken out of rotation by an operator, POST /services/{backend.name}/resume puts it back"
    return backend.last_error or "reason unknown"
