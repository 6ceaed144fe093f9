"""The interface between the service and what computes: texts to tokens, tokens to one row of numbers each."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# A text to embed, or a pair (query, document) to score.
Text = str | tuple[str, str]


@dataclass(frozen=True, slots=True)
class Tokens:
    """One text as the model reads it, special tokens included."""

    ids: Sequence[int]
    types: Sequence[int] | None = None
    prompt_length: int = 0

    def __len__(self) -> int:
        return len(self.ids)


class TextEngine(Protocol):
    """What runs an embedding model or a cross-encoder.

    `tokenize` and `run` block, and are called by one thread only, one call at a time.
    """

    name: str
    device: str
    max_tokens: int
    vocabulary: int
    dimensions: int
    """Numbers per row: the embedding's length, or 1 for a cross-encoder's score."""
    batch_cost: int
    """What a batch costs beyond its tokens, in tokens: a batch of n tokens, padding included, takes as long as
    n + batch_cost of them in a large one."""
    prompts: Sequence[str]
    """The names of the prompts that this model knows (`query`, `document`), often none."""

    def tokenize(self, texts: Sequence[Text], *, prompt: str | None, cut: int | None) -> list[Tokens]:
        """Turn texts into tokens, cut to `cut` tokens the way the model's tokenizer cuts; None cuts nothing."""
        ...

    def run(self, batch: Sequence[Tokens]) -> "NDArray[np.float32]":
        """Compute one row per item, in the batch's order. A row does not depend on the rest of the batch."""
        ...

    async def aclose(self) -> None:
        """Free the device."""
        ...
