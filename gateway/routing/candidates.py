"""Which backends may answer a request at all, and why none may: by route, model, kind and state.

The route fixes the kind of model. A named model goes only to backends that serve it. Without a name, or with `cluster`,
every model of the kind will do.
"""

from collections.abc import Iterable
from dataclasses import replace

from gateway.backends.backend import Backend, Offer
from gateway.backends.health_state import USABLE
from gateway.routing.request import Candidate, RoutingRequest
from kit.config.catalogue import VIRTUAL_MODEL, Catalogue, Kind
from kit.errors import ApiError, InvalidRequest, ModelLoading, ModelNotFound, NoHealthyBackend


def candidates(wants: RoutingRequest, backends: Iterable[Backend], catalogue: Catalogue) -> tuple[Candidate, ...]:
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
    usable = tuple(
        replace(pair, busy=True) if pair.backend.state == "busy" else pair
        for pair in among
        if pair.backend.state in USABLE
    )
    if usable:
        return usable
    for pair in among:
        if pair.backend.state == "loading":
            raise _loading(pair)
    raise _down(among)


def _any_model(wants: RoutingRequest, pairs: list[Candidate], backends: Iterable[Backend]) -> tuple[Candidate, ...]:
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


def _wrong_kind(wants: RoutingRequest, offer: Offer, pairs: list[Candidate]) -> InvalidRequest:
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
