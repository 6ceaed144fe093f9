"""An engine that counts letters instead of running a model: same rows for same tokens, and a gate to hold it at."""

import threading
import zlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from services.embedding.engines.interface import Text, Tokens

WAIT_S = 10


class FakeEngine:
    """One token per word, between a first and a last token; rows of eight numbers of length 1."""

    name = "fake"
    device = "cpu"
    max_tokens = 16
    vocabulary = 1000
    batch_cost = 100

    def __init__(self, *, dimensions: int = 8, prompts: Sequence[str] = ("query",)) -> None:
        self.dimensions = dimensions
        self.prompts = prompts
        self.batches: list[list[int]] = []
        self.tokenized = 0
        self.calls: list[int] = []
        self.closed = False
        self.broken = False
        self.poison: Sequence[int] | None = None
        """When set, the tokens of a text that fails every batch it is in."""
        self.short = False
        """When set, a row is missing from each batch's answer."""
        self.gate = threading.Event()
        self.gate.set()
        self.computing = threading.Event()

    def tokenize(self, texts: Sequence[Text], *, prompt: str | None, cut: int | None) -> list[Tokens]:
        self.tokenized += len(texts)
        self.calls.append(len(texts))
        if "unspeakable" in texts:
            raise ValueError("no tokens for this, says the fake")
        return [self._tokens(text, prompt, cut) for text in texts]

    def _tokens(self, text: Text, prompt: str | None, cut: int | None) -> Tokens:
        words = [*([prompt] if prompt else []), *(" ".join(text) if isinstance(text, tuple) else text).split()]
        ids = [1, *(3 + zlib.crc32(word.encode()) % 900 for word in words), 2]
        return Tokens(ids if cut is None else ids[:cut])

    def run(self, batch: Sequence[Tokens]) -> NDArray[np.float32]:
        self.computing.set()
        assert self.gate.wait(WAIT_S), "nobody opened the gate"
        self.batches.append([len(item) for item in batch])
        if self.broken or any(item.ids == self.poison for item in batch):
            raise RuntimeError("out of memory, says the fake")
        rows = np.stack([self._row(item) for item in batch])
        return rows[1:] if self.short else rows

    def _row(self, item: Tokens) -> NDArray[np.float32]:
        row = np.random.default_rng(list(item.ids)).standard_normal(self.dimensions).astype(np.float32)
        return row if self.dimensions == 1 else row / np.linalg.norm(row)

    async def aclose(self) -> None:
        self.closed = True

    def hold(self) -> None:
        """Let the next batch wait at the gate."""
        self.computing.clear()
        self.gate.clear()

    def wait_until_computing(self) -> None:
        """Return once a batch waits at the gate."""
        assert self.computing.wait(WAIT_S), "no batch came"
