"""Which texts share a batch."""

import random

import pytest

from services.embedding.batching.batch_selection import BatchLimits, choose

COST = 20


@pytest.mark.parametrize(
    ("lengths", "oldest", "size", "tokens", "chosen"),
    [
        ([5], 0, 8, 100, [5]),
        ([3, 4, 5, 6], 0, 8, 100, [3, 4, 5, 6]),  # little padding costs less than another batch
        ([100, 110, 120], 2, 8, 1000, [100, 110, 120]),  # apart they would save 20 tokens, which is what a batch costs
        ([100, 100, 110, 120], 3, 8, 1000, [110, 120]),  # these would save 40
        ([100, 110, 120], 1, 2, 1000, [100, 110]),  # shorter ones first: they pad to the oldest's width anyway
        ([100, 102, 104], 1, 8, 230, [100, 102]),  # 3 x 104 would be over the token limit
        ([5, 5, 5, 200], 3, 8, 1000, [200]),  # a long text does not make short ones wait for it
        ([5, 5, 5, 200], 0, 8, 1000, [5, 5, 5]),  # nor pad to it
        ([500], 0, 8, 100, [500]),  # one text always fits
        ([90, 100, 500], 2, 8, 100, [500]),
        ([10, 20, 30, 40], 1, 8, 1000, [10, 20, 30]),  # 30 brings 20 tokens of padding, 40 would bring 60
        ([10] * 9 + [40] * 9, 17, 99, 9999, [40] * 9),
        ([*range(50, 100)], 49, 99, 9999, [*range(93, 100)]),  # cut more than once
    ],
)
def test_batch(lengths: list[int], oldest: int, size: int, tokens: int, chosen: list[int]) -> None:
    """Neighbours in length join the oldest while they bring less padding than a batch of their own would cost."""
    assert lengths[choose(lengths, oldest, BatchLimits(size, tokens), COST)] == chosen


def test_padding_is_bounded() -> None:
    """Whatever waits, cutting the batch in two would save no more than the second batch costs."""
    rng = random.Random(3)
    for _ in range(200):
        lengths = sorted(rng.randint(1, 300) for _ in range(rng.randint(1, 80)))
        batch = lengths[choose(lengths, len(lengths) - 1, BatchLimits(64, 9999), COST)]
        assert all(cut * (batch[-1] - batch[cut - 1]) <= COST for cut in range(1, len(batch)))


def test_limits_hold_and_nobody_starves() -> None:
    """Whatever waits: every batch has the oldest text, keeps the limits, and in the end all are served."""
    rng = random.Random(7)
    for _ in range(200):
        limits = BatchLimits(rng.randint(1, 40), rng.randint(1, 4000))
        waiting = sorted((rng.choice((4, 8, 30, 256)) + rng.randint(0, 20), number) for number in range(60))
        while waiting:
            oldest = min(range(len(waiting)), key=lambda index: waiting[index][1])
            lengths = [length for length, _ in waiting]
            piece = choose(lengths, oldest, limits, COST)
            batch = lengths[piece]
            assert piece.start <= oldest < piece.stop
            assert len(batch) <= limits.size
            assert len(batch) == 1 or len(batch) * max(batch) <= limits.tokens
            del waiting[piece]
