"""The interface between the service and what listens: samples and options to segments, one after another."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Samples = NDArray[np.int16]

WINDOW_S = 30
"""Whisper hears windows of so many seconds; a longer recording has several, which can be computed side by side."""

Task = Literal["transcribe", "translate"]


@dataclass(frozen=True)
class Options:
    """How to listen."""

    task: Task = "transcribe"
    language: str | None = None
    """A code of `engine.languages`, or None to detect it."""
    prompt: str | None = None
    temperature: float = 0.0
    words: bool = False
    """Also tell when each word was said."""
    vad: bool = True
    coarse: bool = False
    """Segments may be as long as Whisper's window (30 s), so that several windows can be computed side by side."""


@dataclass(frozen=True)
class Word:
    """One word. Times in seconds from the start of the recording."""

    text: str
    start: float
    end: float
    probability: float


@dataclass(frozen=True)
class Segment:
    """A piece of speech, as Whisper cuts it. Times in seconds; `text` begins with a blank where words are spaced."""

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
    """What is known about a recording before its first segment. Duration in seconds."""

    language: str
    duration: float


class SpeechEngine(Protocol):
    """What runs a speech model. `transcribe` and the iterator it returns block; one thread calls them."""

    name: str
    device: str
    languages: Sequence[str]
    """The codes that `Options.language` may have; an English-only model has just `en` and cannot translate."""

    most_together: int
    """How many short recordings `together` takes; with 1 it is not called."""

    def together(self, recordings: "Sequence[Samples]", options: Options) -> "list[list[Segment] | None]":
        """Listen to recordings of up to WINDOW_S seconds at once, with coarse options. Blocks.

        Gives the segments of each, whose times mean nothing, and None for one that should be heard by itself.
        """
        ...

    def transcribe(self, samples: "Samples", options: Options) -> tuple[Info, Iterator[Segment]]:
        """Listen to mono samples at 16 kHz. Segments are computed as the iterator is read."""
        ...

    async def aclose(self) -> None:
        """Free the device."""
        ...
