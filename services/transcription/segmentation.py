"""Long recordings in parts, so that memory does not grow with their length. No I/O."""

from dataclasses import replace
from typing import TYPE_CHECKING

from services.transcription.audio import RATE, as_float
from services.transcription.engine import Segment

if TYPE_CHECKING:
    from services.transcription.engine import Samples

# Spectrograms take about 45 MB per minute of a part (measured with faster-whisper 1.2).
MAX_PART_S = 600
# A part ends at the quietest point of its last seconds, where a cut is least likely to split a word.
CUT_SEARCH_S = 30
CUT_WINDOW_S = 0.25
# Whisper's `seek` counts frames of 10 ms.
FRAMES_PER_S = 100


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
