"""What routing is asked, and what it may answer with."""

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from gateway.backends.backend import Backend
from gateway.backends.offers import Offer
from gateway.endpoints import Endpoint
from kit.config.catalogue import VIRTUAL_MODEL

if TYPE_CHECKING:
    from typing_extensions import Buffer


@dataclass(slots=True)
class RoutingRequest:
    """What routing needs to know of a request. `model` is None where the request names none.

    The first four fields decide which backends may answer; the others, which make no other question of it, decide which
    of those does best. Nobody changes one; it is not frozen because making a frozen one takes four times as long.
    """

    endpoint: Endpoint
    model: str | None = None
    images: bool = False
    stream: bool = False
    # The length of the body in bytes.
    size: int = field(default=0, compare=False)
    # What the model reads, in raw pieces of JSON; and what names the conversation. Empty where there is none.
    prompt: tuple["Buffer", ...] = field(default=(), compare=False, repr=False)
    session: bytes = field(default=b"", compare=False)

    @property
    def any_model(self) -> bool:
        """Whether the choice of the model is ours."""
        return self.model is None or self.model == VIRTUAL_MODEL

    @property
    def shows_first_token(self) -> bool:
        """Whether the first byte of the answer comes with the first token, not with the last."""
        return self.stream or not self.endpoint.generates

    def question(self) -> "RoutingRequest":
        """The part of it that decides which backends may answer."""
        return replace(self, size=0, prompt=(), session=b"")


@dataclass(frozen=True, slots=True)
class Candidate:
    """A backend with the model that it would answer with."""

    backend: Backend
    offer: Offer
    # The model that was asked for, where this is a fallback of it.
    instead_of: str | None = None
    # Whether it works and is too busy to answer polls.
    busy: bool = False
    # Our header lines that tell of it.
    served: bytes = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        lines = b"%bx-served-model: %b\r\n" % (self.backend.served_by, self.offer.name.encode())
        object.__setattr__(self, "served", lines)  # frozen

    def upstream_model(self, requested: str | None) -> str | None:
        """The name that must be written into the request for this backend, or None to leave the body as it is."""
        return None if requested in self.offer.verbatim else self.offer.upstream
