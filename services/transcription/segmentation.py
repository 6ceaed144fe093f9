"""Long recordings in parts, so that memory does not grow with their length, and without their pauses. No I/O.

Whisper extends the first word after a pause, and the segments beside one, over the pause. So a word belongs to the
interval of speech in which it ends, and a segment ends where a pause was cut out.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from services.transcription.audio import RATE, as_float
from services.transcription.engine import Segment, Word

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from services.transcription.engine import Samples

# Spectrograms take about 45 MB per minute of a part (measured with faster-whisper 1.2).
MAX_PART_S = 600
# A part ends at the quietest point of its last seconds, where a cut is least likely to split a word.
CUT_SEARCH_S = 30
CUT_WINDOW_S = 0.25
# Whisper's `seek` counts frames of 10 ms.
FRAMES_PER_S = 100
# Pauses of this length are cut out, except for the padding at both ends; as in faster-whisper.
CUT_PAUSE_S = 2.0
PADDING_S = 0.4
# Times may be this far outside of an interval, because the detector misses quiet beginnings and ends.
MARGIN_S = 0.2
# A segment that overlaps an interval by less does not begin or end in it.
MIN_OVERLAP_S = 0.3


def split_at_silence(
    samples: "Samples", part_s: float = MAX_PART_S, search_s: float = CUT_SEARCH_S
) -> list[tuple[int, int]]:
    """Return consecutive (start, stop) sample indices of parts of at most `part_s` seconds."""
    parts = []
    start = 0
    while len(samples) - start > part_s * RATE:
        latest = start + int(part_s * RATE)
        stop = _quietest_point(samples, latest - int(search_s * RATE), latest)
        parts.append((start, stop))
        start = stop
    return [*parts, (start, len(samples))]


def shift_segment(segment: Segment, offset_s: float, id: int) -> Segment:
    """Convert a segment of a part to one of the whole recording, with times later by `offset_s` seconds."""
    return replace(
        segment,
        id=id,
        seek=segment.seek + round(offset_s * FRAMES_PER_S),
        start=segment.start + offset_s,
        end=segment.end + offset_s,
        words=[replace(word, start=word.start + offset_s, end=word.end + offset_s) for word in segment.words],
    )


def _quietest_point(samples: "Samples", start: int, stop: int) -> int:
    """Return the middle of the window with the least energy between `start` and `stop`."""
    window = int(CUT_WINDOW_S * RATE)
    count = (stop - start) // window
    energy = (as_float(samples[start : start + count * window]).reshape(count, window) ** 2).sum(axis=1)
    return start + int(energy.argmin()) * window + window // 2


@dataclass(frozen=True)
class Interval:
    """An interval of speech: its times in the recording, and what to add to times in the speech alone."""

    start: float
    end: float
    offset: float
    recording_end: float

    def clip(self, time: float) -> float:
        """Convert a time in the speech alone to one in the recording, within MARGIN_S of the interval."""
        return min(max(time + self.offset, self.start - MARGIN_S, 0.0), self.end + MARGIN_S, self.recording_end)


class SpeechTimes:
    """The speech of a recording without its pauses, and the times in it as times in the recording."""

    def __init__(self, spoken: Sequence[tuple[int, int]], length: int) -> None:
        """`spoken` are the intervals of speech and `length` the recording's length, all in samples."""
        groups: list[list[tuple[int, int]]] = []
        for start, end in spoken:
            if groups and start - groups[-1][-1][1] < CUT_PAUSE_S * RATE:
                groups[-1].append((start, end))
            else:
                groups.append([(start, end)])
        self._clips: list[tuple[int, int]] = []
        self._intervals: list[Interval] = []
        position = 0
        padding = int(PADDING_S * RATE)
        for group in groups:
            first, last = group[0][0], group[-1][1]
            begin, stop = max(first - padding, 0), last + padding if length - last >= CUT_PAUSE_S * RATE else length
            offset = (begin - position) / RATE
            self._clips.append((begin, stop))
            self._intervals += [Interval(start / RATE, end / RATE, offset, length / RATE) for start, end in group]
            position += stop - begin
        self._starts = [interval.start - interval.offset for interval in self._intervals]
        self._ends = [interval.end - interval.offset for interval in self._intervals]

    @property
    def has_cuts(self) -> bool:
        """True if a pause was cut out between words, so that only word times place the text."""
        return len(self._clips) > 1

    def speech(self, audio: "NDArray[np.float32]") -> "NDArray[np.float32]":
        """Return the speech in the recording, without its pauses."""
        import numpy as np

        clips = [audio[start:stop] for start, stop in self._clips]
        return np.concatenate(clips) if clips else audio[:0]

    def restore(self, segments: Iterable[Segment], tokenize: Callable[[str], Sequence[int]]) -> Iterator[Segment]:
        """Convert segments of the speech alone to segments of the recording, in order and without overlaps.

        A segment over a cut becomes several, if it has words; `tokenize` returns the tokens of their texts.
        """
        end = 0.0
        for segment in segments:
            runs = self._runs(segment.words)
            for run in runs:
                words = []
                for word in run:
                    start = max(word.start, end)
                    end = max(word.end, start)
                    words.append(replace(word, start=start, end=end))
                text = segment.text if len(runs) == 1 else "".join(word.text for word in words)
                tokens = segment.tokens if len(runs) == 1 else tokenize(text)
                yield replace(segment, start=words[0].start, end=end, text=text, tokens=tokens, words=words)
            if not runs:
                start, stop = self._clip(segment.start, segment.end)
                start = max(start, end)
                end = max(stop, start)
                yield replace(segment, start=start, end=end)

    def _runs(self, words: Sequence[Word]) -> list[list[Word]]:
        """Return the words with times in the recording, divided where a pause was cut out."""
        runs: list[list[Word]] = []
        last = 0
        for word in words:
            at = self._at(word.end)
            interval = self._intervals[at]
            if not runs or interval.offset != self._intervals[last].offset:
                runs.append([])
            runs[-1].append(replace(word, start=interval.clip(word.start), end=interval.clip(word.end)))
            last = at
        return runs

    def _at(self, time: float) -> int:
        """Return the index of the interval at a time in the speech alone, or of the nearest one."""
        at = min(bisect_left(self._ends, time), len(self._ends) - 1)
        is_before = at > 0 and time - self._ends[at - 1] < self._starts[at] - time
        return at - 1 if is_before else at

    def _clip(self, start: float, end: float) -> tuple[float, float]:
        """Return the times of a segment without words in the recording, without silence at its ends."""
        first = bisect_right(self._ends, start + MIN_OVERLAP_S)
        last = bisect_left(self._starts, end - MIN_OVERLAP_S) - 1
        if not first <= last < len(self._intervals):
            first = last = self._at(end)
        return self._intervals[first].clip(start), self._intervals[last].clip(end)
