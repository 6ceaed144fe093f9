"""Splitting of long recordings."""

import itertools

import numpy as np
import pytest

from services.transcription.audio import RATE
from services.transcription.engine import Segment, Word
from services.transcription.segmentation import shift_segment, split_at_silence


@pytest.mark.parametrize("seconds", [0.1, 5, 9.9, 10])
def test_short_recordings_are_not_split(seconds: float) -> None:
    count = int(seconds * RATE)
    assert split_at_silence(np.ones(count, np.int16), 10, 2) == [(0, count)]


def test_parts_end_in_a_pause() -> None:
    samples = np.random.default_rng(1).integers(-16384, 16384, 25 * RATE, np.int16)
    samples[int(8.5 * RATE) : int(9.5 * RATE)] = 0
    samples[int(3.0 * RATE) : int(4.0 * RATE)] = 0  # too early
    (first, second, *_) = split_at_silence(samples, 10, 2)
    assert first[0] == 0
    assert 8.5 * RATE < first[1] == second[0] < 9.5 * RATE


def test_parts_cover_the_recording() -> None:
    """None is empty or too long."""
    samples = np.random.default_rng(2).integers(-32768, 32767, 123 * RATE + 7, np.int16)
    parts = split_at_silence(samples, 10, 2)
    assert parts[0][0] == 0
    assert parts[-1][1] == len(samples)
    assert all(one[1] == other[0] for one, other in itertools.pairwise(parts))
    assert all(0 < stop - start <= 10 * RATE for start, stop in parts)


def test_segments_get_times_of_the_recording() -> None:
    segment = Segment(0, 100, 1.0, 2.0, " word", words=[Word(" word", 1.25, 2.0, 0.5)])
    late = shift_segment(segment, 600.5, 7)
    assert (late.id, late.seek, late.start, late.end) == (7, 60150, 601.5, 602.5)
    assert (late.words[0].start, late.words[0].end, late.words[0].text) == (601.75, 602.5, " word")
