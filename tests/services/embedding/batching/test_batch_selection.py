"""Selection of the texts of a batch."""

import random

import pytest

from services.embedding.batching.batch_selection import BatchLimits, select_batch

COST = 20


@pytest.mark.parametrize(
    ("lengths", "oldest", "size", "tokens", "chosen"),
    [
        ([5], 0, 8, 100, [5]),
        ([3, 4, 5, 6], 0, 8, 100, [3, 4, 5, 6]),  # padding costs less than another batch
        ([100, 110, 120], 2, 8, 1000, [100, 110, 120]),  # a split saves 20 tokens, the cost of a batch
        ([100, 100, 110, 120], 3, 8, 1000, [110, 120]),  # a split saves 40
        ([100, 110, 120], 1, 2, 1000, [100, 110]),  # shorter ones first: no extra width
        ([100, 102, 104], 1, 8, 230, [100, 102]),  # 3 x 104 exceeds the token limit
        ([5, 5, 5, 200], 3, 8, 1000, [200]),  # a long text does not delay short ones
        ([5, 5, 5, 200], 0, 8, 1000, [5, 5, 5]),  # nor widen their batch
        ([500], 0, 8, 100, [500]),  # a single text may exceed the limit
        ([90, 100, 500], 2, 8, 100, [500]),
        ([10, 20, 30, 40], 1, 8, 1000, [10, 20, 30]),  # 30 adds 20 tokens of padding, 40 would add 60
        ([10] * 9 + [40] * 9, 17, 99, 9999, [40] * 9),
        ([*range(50, 100)], 49, 99, 9999, [*range(93, 100)]),  # split more than once
    ],
)
def test_selected_lengths(lengths: list[int], oldest: int, size: int, tokens: int, chosen: list[int]) -> None:
    assert lengths[select_batch(lengths, oldest, BatchLimits(size, tokens), COST)] == chosen


def test_padding_is_bounded() -> None:
    """Splitting a selected batch never saves more than another batch costs."""
    rng = random.Random(3)
    for _ in range(200):
        lengths = sorted(rng.randint(1, 300) for _ in range(rng.randint(1, 80)))
        batch = lengths[select_batch(lengths, len(lengths) - 1, BatchLimits(64, 9999), COST)]
        assert all(cut * (batch[-1] - batch[cut - 1]) <= COST for cut in range(1, len(batch)))


def test_limits_hold_and_no_text_starves() -> None:
    """Every batch contains the oldest text and keeps the limits."""
    rng = random.Random(7)
    for _ in range(200):
        limits = BatchLimits(rng.randint(1, 40), rng.randint(1, 4000))
        waiting = sorted((rng.choice((4, 8, 30, 256)) + rng.randint(0, 20), number) for number in range(60))
        while waiting:
            oldest = min(range(len(waiting)), key=lambda index: waiting[index][1])
            lengths = [length for length, _ in waiting]
            selected = select_batch(lengths, oldest, limits, COST)
            batch = lengths[selected]
            assert selected.start <= oldest < selected.stop
            assert len(batch) <= limits.size
            assert len(batch) == 1 or len(batch) * max(batch) <= limits.tokens
            del waiting[selected]
