"""The input of routing, and the candidates that it chooses from."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from gateway.backends.backend import Backend
from gateway.backends.offers import Offer
from gateway.endpoints import Endpoint
from kit.config.catalogue import VIRTUAL_MODEL

if TYPE_CHECKING:
    from typing_extensions import Buffer


@dataclass(slots=True)
class RoutingRequest:
    """The properties of a request that routing uses. `model` is None if the request has no model.

    The first four fields decide which backends are candidates; the others, which are ignored in comparisons, rank them.
    Treat it as immutable: it is not frozen because creating a frozen one takes four times as long.
    """

    endpoint: Endpoint
    model: str | None = None
    images: bool = False
    stream: bool = False
    # The length of the body in bytes.
    size: int = field(default=0, compare=False)
    # The prompt as raw pieces of JSON, and the key of the conversation. Empty if there is none.
    prompt: tuple["Buffer", ...] = field(default=(), compare=False, repr=False)
    session: bytes = field(default=b"", compare=False)

    @property
    def is_any_model(self) -> bool:
        """Whether the gateway chooses the model."""
        return self.model is None or self.model == VIRTUAL_MODEL

    @property
    def shows_first_token(self) -> bool:
        """Whether the first byte of the response comes with the first token, not with the last."""
        return self.stream or not self.endpoint.generates


@dataclass(frozen=True, slots=True)
class Candidate:
    """A backend, with the model that it would use."""

    backend: Backend
    offer: Offer
    # The requested model, if this one is its fallback.
    fallback_for: str | None = None
    # Whether the backend is too busy to respond to health probes.
    is_busy: bool = False
    # The response headers that name backend and model.
    response_headers: bytes = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        lines = b"%bx-served-model: %b\r\n" % (self.backend.served_by, self.offer.name.encode())
        object.__setattr__(self, "response_headers", lines)  # frozen

    def upstream_model(self, requested: str | None) -> str | None:
        """Return the model name to write into the request for this backend, or None to leave the body unchanged."""
        return None if requested in self.offer.verbatim else self.offer.upstream
