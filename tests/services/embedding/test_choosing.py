"""Which texts share a batch."""

import random

import pytest

from services.embedding.choosing import BatchLimits, choose


@pytest.mark.parametrize(
    ("lengths", "oldest", "size", "tokens", "chosen"),
    [
        ([5], 0, 8, 100, [5]),
        ([3, 4, 5, 6], 0, 8, 100, [3, 4, 5, 6]),  # short texts are all alike
        ([100, 110, 120], 2, 8, 1000, [100, 110, 120]),
        ([100, 110, 120], 1, 2, 1000, [100, 110]),  # shorter ones first: they pad to the oldest's width anyway
        ([100, 110, 120], 1, 8, 230, [100, 110]),  # 3 x 120 would be over the token limit
        ([5, 5, 5, 200], 3, 8, 1000, [200]),  # a long text does not make short ones wait for it
        ([5, 5, 5, 200], 0, 8, 1000, [5, 5, 5]),  # nor pad to it
        ([500], 0, 8, 100, [500]),  # one text always fits
        ([90, 100, 500], 2, 8, 100, [500]),
        ([10, 20, 40, 80], 1, 8, 1000, [10, 20]),  # 40 would be more than half padding for 10
    ],
)
def test_batch(lengths: list[int], oldest: int, size: int, tokens: int, chosen: list[int]) -> None:
    """Neighbours in length join the oldest while the limits hold."""
    assert lengths[choose(lengths, oldest, BatchLimits(size, tokens))] == chosen


def test_limits_hold_and_nobody_starves() -> None:
    """Whatever waits: every batch has the oldest text, keeps the limits, and in the end all are served."""
    rng = random.Random(7)
    for _ in range(200):
        limits = BatchLimits(rng.randint(1, 40), rng.randint(1, 4000))
        waiting = sorted((rng.choice((4, 8, 30, 256)) + rng.randint(0, 20), number) for number in range(60))
        while waiting:
            oldest = min(range(len(waiting)), key=lambda index: waiting[index][1])
            lengths = [length for length, _ in waiting]
            piece = choose(lengths, oldest, limits)
            batch = lengths[piece]
            assert piece.start <= oldest < piece.stop
            assert len(batch) <= limits.size
            assert len(batch) == 1 or len(batch) * max(batch) <= limits.tokens
            del waiting[piece]
