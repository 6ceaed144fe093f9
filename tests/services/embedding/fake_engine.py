"""Fake embedding engine: deterministic rows per text, and a gate that pauses it."""

import zlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from services.embedding.engines.interface import Text, Tokens
from tests.services.fake_service import Gate


class FakeEngine:
    """One token per word plus a first and a last token; rows of eight numbers, of length 1."""

    name = "fake"
    device = "cpu"
    max_tokens = 16
    vocabulary = 1000
    special_tokens: tuple[list[int], list[int]] = ([1], [2])
    batch_cost = 100

    def __init__(self, *, dimensions: int = 8, prompts: Sequence[str] = ("query",)) -> None:
        self.dimensions = dimensions
        self.prompts = prompts
        self.batches: list[list[int]] = []
        self.tokenized = 0
        self.calls: list[int] = []
        self.closed = False
        self.fails = False
        self.poison: Sequence[int] | None = None
        """Tokens of a text that fails every batch that contains it."""
        self.drops_row = False
        """True if each result lacks a row."""
        self.gate = Gate()

    def tokenize(
        self, texts: Sequence[Text], *, prompt: str | None, truncate_to: int | None, document_tokens: int | None = None
    ) -> list[Tokens]:
        if document_tokens is not None:
            pairs = [text for text in texts if isinstance(text, tuple)]
            texts = [(query, " ".join(document.split()[:document_tokens])) for query, document in pairs]
        self.tokenized += len(texts)
        self.calls.append(len(texts))
        if "unspeakable" in texts:
            raise ValueError("fake: cannot tokenize")
        return [self._tokens(text, prompt, truncate_to) for text in texts]

    def _tokens(self, text: Text, prompt: str | None, truncate_to: int | None) -> Tokens:
        words = [*([prompt] if prompt else []), *(" ".join(text) if isinstance(text, tuple) else text).split()]
        ids = [1, *(3 + zlib.crc32(word.encode()) % 900 for word in words), 2]
        return Tokens(ids if truncate_to is None else ids[:truncate_to])

    def run(self, batch: Sequence[Tokens]) -> NDArray[np.float32]:
        self.gate.pass_through()
        self.batches.append([len(item) for item in batch])
        if self.fails or any(item.ids == self.poison for item in batch):
            raise RuntimeError("fake: out of memory")
        rows = np.stack([self._row(item) for item in batch])
        return rows[1:] if self.drops_row else rows

    def _row(self, item: Tokens) -> NDArray[np.float32]:
        row = np.random.default_rng(list(item.ids)).standard_normal(self.dimensions).astype(np.float32)
        return row if self.dimensions == 1 else row / np.linalg.norm(row)

    async def aclose(self) -> None:
        self.closed = True
