"""Fake speech engine: one word per second, and a gate that pauses it."""

import threading
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from services.transcription.audio import RATE
from services.transcription.engine import Info, Options, Segment, Word
from tests.services.fake_service import WAIT_S, Gate

if TYPE_CHECKING:
    from services.transcription.engine import Samples


class FakeEngine:
    """Transcribes to "word 0", "word 1" and so on, and records the options."""

    name = "fake"
    device = "cpu"
    max_batch = 3

    def __init__(self, languages: Sequence[str] = ("en", "de", "fr")) -> None:
        self.languages = languages
        self.requests: list[Options] = []
        self.transcribed: list[str] = []
        self.fails_at: int | None = None
        self.batches: list[list[int]] = []
        """Seconds of the recordings of each batch."""
        self.batch_fails = False
        self.fails_in_batch: int | None = None
        """Recordings of this many seconds fail in a batch."""
        self.closed = False
        self.permits: threading.Semaphore | None = None
        """If set, each segment needs a permit."""
        self.gate = Gate()

    def transcribe_batch(self, recordings: "Sequence[Samples]", options: Options) -> "list[list[Segment] | None]":
        lengths = [round(len(samples) / RATE) for samples in recordings]
        self.batches.append(lengths)
        if self.batch_fails:
            raise RuntimeError("fake: out of memory")
        return [None if length == self.fails_in_batch else list(self._segments(length)) for length in lengths]

    def transcribe(self, samples: "Samples", options: Options) -> tuple[Info, Iterator[Segment]]:
        self.requests.append(options)
        return Info(options.language or "en", len(samples) / RATE), self._segments(round(len(samples) / RATE))

    def _segments(self, seconds: int) -> Iterator[Segment]:
        for n in range(seconds):
            self.gate.pass_through()
            assert self.permits is None or self.permits.acquire(timeout=WAIT_S), "no permit in time"
            if n == self.fails_at:
                raise RuntimeError("fake: out of memory")
            self.transcribed.append(f"word {n}")
            words = [Word(" word", n, n + 0.5, 0.9), Word(f" {n}.", n + 0.5, n + 1.0, 0.8)]
            yield Segment(n, n * 100, n, n + 1.0, f" word {n}.", tokens=[n], words=words)

    async def aclose(self) -> None:
        self.closed = True
