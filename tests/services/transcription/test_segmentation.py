"""Long recordings are cut where it is quiet, and put together again."""

import itertools

import numpy as np
import pytest

from services.transcription.audio import RATE
from services.transcription.engine import Segment, Word
from services.transcription.segmentation import moved, parts


@pytest.mark.parametrize("seconds", [0.1, 5, 9.9, 10])
def test_short_is_whole(seconds: float) -> None:
    """What fits into one part is not cut."""
    count = int(seconds * RATE)
    assert parts(np.ones(count, np.int16), 10, 2) == [(0, count)]


def test_cut_in_silence() -> None:
    """A pause among a part's last seconds is where the cut is made."""
    samples = np.random.default_rng(1).integers(-16384, 16384, 25 * RATE, np.int16)
    samples[int(8.5 * RATE) : int(9.5 * RATE)] = 0
    samples[int(3.0 * RATE) : int(4.0 * RATE)] = 0  # a pause too early
    (first, second, *_) = parts(samples, 10, 2)
    assert first[0] == 0
    assert 8.5 * RATE < first[1] == second[0] < 9.5 * RATE


def test_parts_are_the_whole() -> None:
    """Whatever the sound: parts follow one another, none is empty or too long, nothing is lost."""
    samples = np.random.default_rng(2).integers(-32768, 32767, 123 * RATE + 7, np.int16)
    cuts = parts(samples, 10, 2)
    assert cuts[0][0] == 0
    assert cuts[-1][1] == len(samples)
    assert all(one[1] == other[0] for one, other in itertools.pairwise(cuts))
    assert all(0 < stop - start <= 10 * RATE for start, stop in cuts)


def test_moved() -> None:
    """A part's segment gets the whole recording's times and number."""
    segment = Segment(0, 100, 1.0, 2.0, " word", words=[Word(" word", 1.25, 2.0, 0.5)])
    late = moved(segment, 600.5, 7)
    assert (late.id, late.seek, late.start, late.end) == (7, 60150, 601.5, 602.5)
    assert (late.words[0].start, late.words[0].end, late.words[0].text) == (601.75, 602.5, " word")
