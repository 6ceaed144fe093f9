"""Interface of the engine: samples and options to a stream of segments."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Samples = NDArray[np.int16]

WINDOW_S = 30
"""Length of Whisper's window, in seconds. Windows of a longer recording can be computed in parallel."""

Task = Literal["transcribe", "translate"]


@dataclass(frozen=True)
class Options:
    """Options of one transcription."""

    task: Task = "transcribe"
    language: str | None = None
    """A code of `engine.languages`; None detects the language."""
    prompt: str | None = None
    temperature: float = 0.0
    words: bool = False
    """Report word timestamps."""
    vad: bool = True
    """Skip parts without speech."""
    text_only: bool = False
    """Times are not reported. Segments may be as long as Whisper's window, so that windows can be computed in parallel,
    unless `streamed`."""
    streamed: bool = False
    """Segments are reported one by one, as they are recognized."""


@dataclass(frozen=True)
class Word:
    """A word; times in seconds from the start of the recording."""

    text: str
    start: float
    end: float
    probability: float


@dataclass(frozen=True)
class Segment:
    """A segment of speech; times in seconds. `text` starts with a space in languages that separate words."""

    id: int
    seek: int
    start: float
    end: float
    text: str
    tokens: Sequence[int] = ()
    temperature: float = 0.0
    avg_logprob: float = 0.0
    compression_ratio: float = 1.0
    no_speech_prob: float = 0.0
    words: Sequence[Word] = ()


@dataclass(frozen=True)
class Info:
    """Properties of a recording, known before its first segment. Duration in seconds."""

    language: str
    duration: float


class SpeechEngine(Protocol):
    """A loaded speech model. `transcribe` and its iterator block; only one thread calls them."""

    name: str
    device: str
    languages: Sequence[str]
    """Supported codes; an English-only model has only `en` and cannot translate."""

    max_batch: int
    """Maximum recordings of `transcribe_batch`, which is not called if this is 1."""

    def transcribe_batch(self, recordings: "Sequence[Samples]", options: Options) -> "list[list[Segment] | None]":
        """Transcribe recordings of up to WINDOW_S seconds in one batch, with text-only options. Blocks.

        Returns each one's segments, without meaningful times; None if it must be transcribed by itself.
        """
        ...

    def transcribe(self, samples: "Samples", options: Options) -> tuple[Info, Iterator[Segment]]:
        """Transcribe mono samples at 16 kHz. Segments are computed as the iterator is read."""
        ...

    async def aclose(self) -> None:
        """Release the device."""
        ...
