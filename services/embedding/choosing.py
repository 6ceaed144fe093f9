"""Which of the waiting texts make the next batch. Pure: lengths in, a slice out."""

from collections.abc import Sequence
from dataclasses import dataclass

# A batch pads every text to its longest. A text joins only if at least this share of it would be text, not padding.
LEAST_FILL = 0.5
# Texts this short (in tokens) cost about the same; telling them apart would only make small batches.
SHORT = 16


@dataclass(frozen=True)
class BatchLimits:
    """How large a batch may grow; `tokens` counts padding, and one text alone may exceed it."""

    size: int
    tokens: int


def choose(lengths: Sequence[int], oldest: int, limits: BatchLimits) -> slice:
    """Choose the next batch from `lengths` (tokens, ascending, not empty): neighbours in length around index `oldest`.

    The oldest is always in it, so nothing starves; its neighbours pad little. Shorter ones are taken first, since they
    fit the oldest's width at no further cost, then longer ones while the limits hold.
    """
    width = lengths[oldest]
    room = min(limits.size, limits.tokens // max(width, 1))
    start, stop = oldest, oldest + 1
    while start > 0 and stop - start < room and _fills(lengths[start - 1], width):
        start -= 1
    while stop < len(lengths) and stop - start < limits.size and _fills(lengths[start], lengths[stop]):
        if (stop + 1 - start) * lengths[stop] > limits.tokens:
            break
        stop += 1
    return slice(start, stop)


def _fills(length: int, width: int) -> bool:
    return max(length, SHORT) >= width * LEAST_FILL
