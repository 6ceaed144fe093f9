"""Selection of the pending texts that form the next batch, by length. No I/O."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class BatchLimits:
    """Maximum texts (`size`) and tokens with padding of a batch. A single text may exceed `tokens`."""

    size: int
    tokens: int


def select_batch(lengths: Sequence[int], oldest: int, limits: BatchLimits, batch_cost: int) -> slice:
    """Select the next batch from `lengths` (tokens, ascending, not empty): neighbours in length of index `oldest`.

    Every text is padded to the longest of its batch, and padding costs as much as text; each batch adds a fixed cost of
    `batch_cost` tokens. So shorter texts are left for a later batch if that saves more padding than a batch costs, and
    longer ones are added while the padding they cause costs less. The oldest text is always included: none starves.
    """
    width = lengths[oldest]
    max_texts = min(limits.size, limits.tokens // max(width, 1))
    start = max(0, oldest + 1 - max(max_texts, 1))
    while (split := _best_split(lengths, start, oldest)) is not None and split[1] > batch_cost:
        start = split[0]
    stop = oldest + 1
    while stop < len(lengths) and stop - start < limits.size:
        longer = lengths[stop]
        if (longer - width) * (stop - start) > batch_cost or (stop + 1 - start) * longer > limits.tokens:
            break
        stop += 1
    return slice(start, stop)


def _best_split(lengths: Sequence[int], start: int, last: int) -> tuple[int, int] | None:
    """Return the split of `lengths[start : last + 1]` that saves the most padding, and how many tokens it saves."""
    width = lengths[last]
    savings = ((split, (split - start) * (width - lengths[split - 1])) for split in range(start + 1, last + 1))
    return max(savings, key=lambda saving: saving[1], default=None)
