"""A request on its way through the batcher, each of its texts, and the answer."""

import asyncio
import time
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
    """What one request asks for: texts still to be tokenized, or tokens as the client sent them."""

    texts: Sequence[Text] = ()
    tokens: Sequence[Tokens] = ()
    prompt: str | None = None
    cut: int | None = None
    """Cut texts to this many tokens; None refuses longer ones than the model takes."""

    def __len__(self) -> int:
        return len(self.texts) or len(self.tokens)


@dataclass(frozen=True)
class Rows:
    """The answer: one row per text, in the request's order, and how many tokens were read."""

    rows: "Sequence[NDArray[np.float32]]"
    tokens: int


@dataclass(eq=False)
class Job:
    """One request on its way. The worker thread fills `rows`; the event loop reads only `future`."""

    work: Work
    future: "asyncio.Future[Rows]"
    cancelled: bool = False
    tokens: int = 0
    left: int = 0
    rows: "list[NDArray[np.float32] | None]" = field(default_factory=list)
    arrived: float = field(default_factory=time.monotonic)


@dataclass(frozen=True, eq=False)
class Item:
    """One text of a job. Ordered by length, then arrival."""

    job: Job
    index: int
    tokens: Tokens
    number: int

    @property
    def key(self) -> tuple[int, int]:
        """What it is ordered by."""
        return len(self.tokens), self.number


def text_too_long(index: int, what: str, limit: int) -> InvalidRequest:
    """The refusal of a text that the model cannot read whole."""
    return InvalidRequest(
        f'Text {index} has {what}; this model takes at most {limit} tokens. Shorten it, or send "truncate": true to '
        "have the rest left out.",
        param="input",
        code="context_length_exceeded",
    )
