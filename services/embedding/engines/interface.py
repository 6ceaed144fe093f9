"""Interface of the engines: texts to tokens, tokens to one row of numbers each."""

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
    """Token ids of one text, including special tokens."""

    ids: Sequence[int]
    types: Sequence[int] | None = None
    prompt_length: int = 0

    def __len__(self) -> int:
        return len(self.ids)


class TextEngine(Protocol):
    """A loaded embedding model or cross-encoder.

    `tokenize` and `run` block; only one thread calls them.
    """

    name: str
    device: str
    max_tokens: int
    vocabulary: int
    dimensions: int
    """Numbers per row: the embedding's length, or 1 for a cross-encoder's score."""
    batch_cost: int
    """Fixed cost of a batch, in tokens: a batch of n tokens with padding takes as long as n + batch_cost tokens of a
    large batch."""
    special_tokens: tuple[list[int], list[int]]
    """Ids that the model's tokenizer puts before and after the tokens of a text."""
    prompts: Sequence[str]
    """Names of the model's prompts (`query`, `document`), often none."""

    def tokenize(
        self, texts: Sequence[Text], *, prompt: str | None, truncate_to: int | None, document_tokens: int | None = None
    ) -> list[Tokens]:
        """Tokenize texts; truncate to `truncate_to` tokens unless it is None.

        The documents of pairs are truncated to `document_tokens` first.
        """
        ...

    def run(self, batch: Sequence[Tokens]) -> "NDArray[np.float32]":
        """Compute one row per item, in the batch's order, independent of the other items."""
        ...

    async def aclose(self) -> None:
        """Release the device."""
        ...
