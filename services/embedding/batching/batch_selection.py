"""Which of the waiting texts make the next batch. Pure: lengths in, a slice out."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class BatchLimits:
    """How large a batch may grow; `tokens` counts padding, and one text alone may exceed it."""

    size: int
    tokens: int


def choose(lengths: Sequence[int], oldest: int, limits: BatchLimits, batch_cost: int) -> slice:
    """Choose the next batch from `lengths` (tokens, ascending, not empty): neighbours in length around index `oldest`.

    A batch pads every text to its longest, and the engine computes padding like text; but a batch of its own costs as
    much as `batch_cost` tokens, whatever is in it. So shorter texts are left to a later batch where that saves more
    padding than a batch costs, and longer ones join where the padding that they bring costs less. The oldest is always
    in it, so nothing starves.
    """
    width = lengths[oldest]
    room = min(limits.size, limits.tokens // max(width, 1))
    start = max(0, oldest + 1 - max(room, 1))
    while (better := _split(lengths, start, oldest)) is not None and better[1] > batch_cost:
        start = better[0]
    stop = oldest + 1
    while stop < len(lengths) and stop - start < limits.size:
        longer = lengths[stop]
        if (longer - width) * (stop - start) > batch_cost or (stop + 1 - start) * longer > limits.tokens:
            break
        stop += 1
    return slice(start, stop)


def _split(lengths: Sequence[int], start: int, last: int) -> tuple[int, int] | None:
    """Where to cut `lengths[start : last + 1]` in two so that it saves most padding, and how many tokens it saves."""
    width = lengths[last]
    saved = ((cut, (cut - start) * (width - lengths[cut - 1])) for cut in range(start + 1, last + 1))
    return max(saved, key=lambda one: one[1], default=None)
