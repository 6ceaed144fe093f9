"""Long recordings in parts, so that memory does not grow with their length. Pure."""

from dataclasses import replace
from typing import TYPE_CHECKING

from services.transcription.audio import RATE, as_float
from services.transcription.engine import Segment

if TYPE_CHECKING:
    from services.transcription.engine import Samples

# The engine's spectrogram of a part takes some 45 MB a minute while it is computed (measured with faster-whisper 1.2).
PART_S = 600
# The cut is made in the quietest moment among the part's last seconds, where it is least likely to hit a word.
SEARCH_S = 30
MOMENT_S = 0.25
# Whisper counts `seek` in frames of 10 ms.
FRAMES_PER_S = 100


def parts(samples: "Samples", part_s: float = PART_S, search_s: float = SEARCH_S) -> list[tuple[int, int]]:
    """Cut into (start, stop) sample indices that follow one another, each at most `part_s` seconds long."""
    found = []
    start = 0
    while len(samples) - start > part_s * RATE:
        latest = start + int(part_s * RATE)
        stop = _quietest(samples, latest - int(search_s * RATE), latest)
        found.append((start, stop))
        start = stop
    return [*found, (start, len(samples))]


def moved(segment: Segment, offset_s: float, id: int) -> Segment:
    """The segment of a part, as one of the whole recording: times later by `offset_s` seconds."""
    return replace(
        segment,
        id=id,
        seek=segment.seek + round(offset_s * FRAMES_PER_S),
        start=segment.start + offset_s,
        end=segment.end + offset_s,
        words=[replace(word, start=word.start + offset_s, end=word.end + offset_s) for word in segment.words],
    )


def _quietest(samples: "Samples", start: int, stop: int) -> int:
    """The middle of the moment between `start` and `stop` with the least energy."""
    moment = int(MOMENT_S * RATE)
    count = (stop - start) // moment
    energy = (as_float(samples[start : start + count * moment]).reshape(count, moment) ** 2).sum(axis=1)
    return start + int(energy.argmin()) * moment + moment // 2
