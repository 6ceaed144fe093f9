"""Splitting of long recordings; times in speech without its pauses become times in the recording."""

import itertools

import numpy as np
import pytest

from services.transcription.audio import RATE
from services.transcription.engine import Segment, Word
from services.transcription.segmentation import (
    MARGIN_S,
    PADDING_S,
    SpeechTimes,
    shift_segment,
    split_at_silence,
)


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


def speech_times(*spoken: tuple[float, float], length: float) -> SpeechTimes:
    return SpeechTimes([(int(start * RATE), int(end * RATE)) for start, end in spoken], int(length * RATE))


def restore(times: SpeechTimes, *segments: Segment) -> list[Segment]:
    return list(times.restore(segments, lambda text: [len(text)]))


def spoken(*words: tuple[str, float, float]) -> Segment:
    """A segment of words with their times in the speech alone."""
    text = "".join(f" {word}" for word, _, _ in words)
    return Segment(
        0,
        0,
        words[0][1],
        words[-1][2],
        text,
        [7],
        words=[Word(f" {word}", start, end, 0.9) for word, start, end in words],
    )


def plain(start: float, end: float) -> Segment:
    return Segment(0, 0, start, end, " words")


# Two phrases 20 s apart: in the speech alone they are from 0.4 to 2.4 s and from 3.2 to 5.2 s.
TWO = speech_times((10, 12), (32, 34), length=50)


def test_long_pauses_are_cut_out_but_for_their_ends() -> None:
    audio = np.arange(50 * RATE, dtype=np.float32)
    speech = TWO.speech(audio)
    assert len(speech) == round((2 + 2 + 4 * PADDING_S) * RATE)
    assert speech[0] == (10 - PADDING_S) * RATE
    assert TWO.has_cuts


def test_short_pauses_and_the_ends_of_the_recording_are_kept() -> None:
    """As faster-whisper does; speech from the first to the last sample is one clip."""
    times = speech_times((0, 3), (4.9, 8), length=9.5)
    assert len(times.speech(np.zeros(int(9.5 * RATE), np.float32))) == int(9.5 * RATE)
    assert not times.has_cuts


def test_silence_has_no_speech() -> None:
    times = speech_times(length=30)
    assert len(times.speech(np.zeros(30 * RATE, np.float32))) == 0
    assert restore(times) == []


def test_a_segment_over_a_cut_becomes_two() -> None:
    """Each with its text, tokens and words."""
    [first, second] = restore(TWO, spoken(("close", 0.4, 1.0), ("it", 1.0, 2.4), ("open", 3.2, 4.0), ("up", 4.0, 5.2)))
    assert (first.start, first.end, first.text) == (10, 12, " close it")
    assert (second.start, second.end, second.text) == (32, 34, " open up")
    assert (first.tokens, second.tokens) == ([9], [8])
    assert [word.text for word in second.words] == [" open", " up"]


def test_a_word_over_a_cut_is_where_it_ends() -> None:
    """Whisper extends the first word after a pause over the pause, often into the word before it."""
    [first, second] = restore(TWO, spoken(("close", 0.1, 2.7), ("a", 2.2, 2.9), ("box", 2.9, 5.6)))
    assert (first.text, second.text) == (" close", " a box")
    assert (first.start, first.end) == (10 - MARGIN_S, 12 + MARGIN_S)
    assert (second.start, second.end) == (32 - MARGIN_S, 34 + MARGIN_S)


def test_a_segment_on_one_side_keeps_its_text_and_tokens() -> None:
    [only] = restore(TWO, spoken(("open", 3.2, 4.0), ("up", 4.0, 5.2)))
    assert (only.start, only.end, only.text, only.tokens) == (32, 34, " open up", [7])


def test_segments_without_words_lose_the_silence_at_their_ends() -> None:
    """A pause of 1.8 s, which Whisper leaves in the segment before or after it."""
    times = speech_times((1, 3), (4.8, 7), length=8)
    # In the speech alone: from 0.4 to 2.4 s and from 4.2 to 6.4 s.
    for end in (4.4, 2.2):
        [first, second] = restore(times, plain(0.0, end), plain(end, 6.9))
        assert (first.start, first.end) == (1 - MARGIN_S, min(end + 0.6, 3 + MARGIN_S))
        assert (second.start, second.end) == (max(end + 0.6, 4.8 - MARGIN_S), 7 + MARGIN_S)


def test_times_do_not_overlap_or_leave_the_recording() -> None:
    times = speech_times((0, 2), (2.6, 4), length=4)
    segments = restore(times, spoken(("a", 0.0, 1.5), ("b", 1.2, 2.4)), plain(1.9, 4.0), spoken(("c", 3.0, 9.0)))
    bounds = [time for segment in segments for time in (segment.start, segment.end)]
    assert bounds == sorted(bounds)
    assert (bounds[0], bounds[-1]) == (0, 4)
    for segment in segments:
        inside = [time for word in segment.words for time in (word.start, word.end)]
        assert inside == sorted(inside)
        assert not inside or (segment.start, segment.end) == (inside[0], inside[-1])
