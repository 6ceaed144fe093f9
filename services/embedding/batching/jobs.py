"""Data of a request in the batcher: its texts, its state, its result."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from kit.errors import InvalidRequest
from services.embedding.engines.interface import Text, Tokens

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Work:
    """Validated input of one request: texts to tokenize, or the client's own tokens."""

    texts: Sequence[Text] = ()
    tokens: Sequence[Tokens] = ()
    prompt: str | None = None
    truncate_to: int | None = None
    """Truncate texts to this many tokens; None rejects texts over the model's limit."""
    document_tokens: int | None = None
    """Truncate the documents of pairs to this many tokens first."""

    def __len__(self) -> int:
        return len(self.texts) or len(self.tokens)


@dataclass(frozen=True)
class Rows:
    """Result of a request: one row per text, in the request's order, and the number of prompt tokens."""

    rows: "Sequence[NDArray[np.float32]]"
    tokens: int


@dataclass(eq=False)
class Job:
    """State of one request. The worker thread fills `rows`; the event loop reads only `future`."""

    work: Work
    future: "asyncio.Future[Rows]"
    cancelled: bool = False
    tokens: int = 0
    remaining: int = 0
    rows: "list[NDArray[np.float32] | None]" = field(default_factory=list)


@dataclass(frozen=True, eq=False)
class Item:
    """One text of a job."""

    job: Job
    index: int
    tokens: Tokens
    sequence: int

    @property
    def sort_key(self) -> tuple[int, int]:
        """Length in tokens, then order of arrival."""
        return len(self.tokens), self.sequence


def text_too_long(index: int, size: str, limit: int) -> InvalidRequest:
    """Return the error for a text over the model's limit."""
    return InvalidRequest(
        f'Text {index} has {size}; this model accepts at most {limit} tokens. Shorten it, or send "truncate": true.',
        param="input",
        code="context_length_exceeded",
    )
