"""Comparison of a faster engine's results with those of PyTorch in float32."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from kit.config.catalogue import Kind
from services.embedding.engines.interface import Text, Tokens
from services.embedding.engines.text_model import TextModel

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Run = Callable[[Sequence[Tokens]], NDArray[np.float32]]

# For embeddings. Anything coarser than bfloat16 fails: dynamic int8 reaches 0.84 on MiniLM.
MIN_COSINE = 0.9995
# For cross-encoders: maximum error of a score, as a fraction of the spread of the probes' scores.
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
# Attention over longer texts takes seconds on a CPU.
MAX_PROBE_TOKENS = 512


def probes(model: TextModel) -> list[Tokens]:
    """Return texts of very different lengths, so that a batch is padded; one reaches the model's limit."""
    long = " ".join(_SENTENCES * 12)
    texts: list[Text] = [*_SENTENCES, " ".join(_SENTENCES), long]
    if model.kind == "reranker":
        texts = [(_SENTENCES[0], str(text)) for text in texts]
    return model.tokenize(texts, prompt=None, truncate_to=min(model.max_tokens, MAX_PROBE_TOKENS))


def find_mismatch(fast: "Run", reference: "Run", batch: Sequence[Tokens], kind: Kind) -> str | None:
    """Return how the rows of `fast` differ from those of `reference`, or None if they agree.

    Compares the whole batch and each text alone: neither padding nor the batch's size may change a row.
    """
    import numpy as np

    expected = reference(batch)
    for rows in (fast(batch), np.concatenate([fast([item]) for item in batch])):
        if rows.shape != expected.shape:
            return f"the result has shape {rows.shape} instead of {expected.shape}"
        found = _score_mismatch(rows, expected) if kind == "reranker" else _cosine_mismatch(rows, expected)
        if found:
            return found
    return None


def _cosine_mismatch(rows: "NDArray[np.float32]", expected: "NDArray[np.float32]") -> str | None:
    import numpy as np

    lengths = np.linalg.norm(rows, axis=1) * np.linalg.norm(expected, axis=1)
    least = float(((rows * expected).sum(1) / np.maximum(lengths, 1e-12)).min())
    # NaN must fail.
    return None if least >= MIN_COSINE else f"the cosine to PyTorch's embeddings is only {least:.4f}"


def _score_mismatch(rows: "NDArray[np.float32]", expected: "NDArray[np.float32]") -> str | None:
    import numpy as np

    error, spread = float(np.abs(rows - expected).max()), float(np.ptp(expected))
    return None if error <= MAX_SCORE_ERROR * spread + 1e-6 else f"a score differs by {error:.4g} from PyTorch's"
