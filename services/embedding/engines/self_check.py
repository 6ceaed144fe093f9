"""Whether a faster engine computes the same numbers as PyTorch in float32, found by asking both."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from kit.config.catalogue import Kind
from services.embedding.engines.interface import Text, Tokens

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# Embeddings: the least cosine. What rounds more coarsely than bfloat16 fails (dynamic int8 has 0.84 on MiniLM).
MIN_COSINE = 0.9995
# Cross-encoders: how far a score may be off, as a share of how far apart the scores of the probes lie.
MAX_SCORE_ERROR = 0.002

_SENTENCES = (
    "The cat sits on the mat.",
    "Interest rates rose by half a percent in the third quarter, which surprised most of those who forecast them.",
    "def area(radius): return 3.14159 * radius ** 2",
    "x",
    "Ünïcödé, 日本語 and 🎉 in one line",
    "How do I restart one service of the cluster without touching the others?",
    "In 1687 Newton published the laws of motion and of gravitation.",
    "Zwei Dinge sind unendlich, das Universum und die menschliche Dummheit.",
)
# The longest probe in tokens, as far as the model reads so many: attention over long texts takes seconds on a CPU.
LONGEST = 512


class Computes(Protocol):
    """The part of an engine that is compared."""

    def run(self, batch: Sequence[Tokens]) -> "NDArray[np.float32]":
        """See `TextEngine.run`."""
        ...


class Tokenizes(Protocol):
    """The part of a model that makes the probes."""

    max_tokens: int

    def tokenize(self, texts: Sequence[Text], *, prompt: str | None, cut: int | None) -> list[Tokens]:
        """See `TextEngine.tokenize`."""
        ...


def probes(model: Tokenizes, kind: Kind) -> list[Tokens]:
    """Texts of very different lengths, so that a batch of them is padded; one of them as long as the model reads."""
    long = " ".join(_SENTENCES * 12)
    texts: list[Text] = [*_SENTENCES, " ".join(_SENTENCES), long]
    if kind == "reranker":
        texts = [(_SENTENCES[0], str(text)) for text in texts]
    return model.tokenize(texts, prompt=None, cut=min(model.max_tokens, LONGEST))


def complaint(fast: Computes, reference: Computes, batch: Sequence[Tokens], kind: Kind) -> str | None:
    """What is wrong with `fast`, in words for a log; None when it computes what `reference` does.

    Asked for the whole batch and for each text alone: neither padding nor the batch's size may change a row.
    """
    import numpy as np

    expected = reference.run(batch)
    for rows in (fast.run(batch), np.concatenate([fast.run([item]) for item in batch])):
        if rows.shape != expected.shape:
            return f"its rows have the shape {rows.shape}, not {expected.shape}"
        found = _score_complaint(rows, expected) if kind == "reranker" else _cosine_complaint(rows, expected)
        if found:
            return found
    return None


def _cosine_complaint(rows: "NDArray[np.float32]", expected: "NDArray[np.float32]") -> str | None:
    import numpy as np

    lengths = np.linalg.norm(rows, axis=1) * np.linalg.norm(expected, axis=1)
    least = float(((rows * expected).sum(1) / np.maximum(lengths, 1e-12)).min())
    # Written so that a NaN fails.
    return None if least >= MIN_COSINE else f"the cosine to PyTorch's embeddings falls to {least:.4f}"


def _score_complaint(rows: "NDArray[np.float32]", expected: "NDArray[np.float32]") -> str | None:
    import numpy as np

    error, spread = float(np.abs(rows - expected).max()), float(np.ptp(expected))
    return None if error <= MAX_SCORE_ERROR * spread + 1e-6 else f"a score is {error:.4g} off PyTorch's"
