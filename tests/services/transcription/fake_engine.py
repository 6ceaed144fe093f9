"""An engine that hears one word per second of sound, and a gate to hold it at."""

import threading
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from services.transcription.audio import RATE
from services.transcription.engine import Info, Options, Segment, Word

if TYPE_CHECKING:
    from services.transcription.engine import Samples

WAIT_S = 10


class FakeEngine:
    """Says "word 0", "word 1" and so on, and remembers what it was asked."""

    name = "fake"
    device = "cpu"
    most_together = 3

    def __init__(self, languages: Sequence[str] = ("en", "de", "fr")) -> None:
        self.languages = languages
        self.asked: list[Options] = []
        self.said: list[str] = []
        self.breaks_at: int | None = None
        self.batches: list[list[int]] = []
        """The seconds of the recordings of each batch."""
        self.batch_breaks = False
        self.not_in_batches: int | None = None
        """Recordings of so many seconds are not understood in a batch."""
        self.closed = False
        self.passes: threading.Semaphore | None = None
        """When set, each segment takes one pass."""
        self.gate = threading.Event()
        self.gate.set()
        self.hearing = threading.Event()

    def together(self, recordings: "Sequence[Samples]", options: Options) -> "list[list[Segment] | None]":
        lengths = [round(len(samples) / RATE) for samples in recordings]
        self.batches.append(lengths)
        if self.batch_breaks:
            raise RuntimeError("out of memory, says the fake")
        return [None if length == self.not_in_batches else list(self._segments(length)) for length in lengths]

    def transcribe(self, samples: "Samples", options: Options) -> tuple[Info, Iterator[Segment]]:
        self.asked.append(options)
        return Info(options.language or "en", len(samples) / RATE), self._segments(round(len(samples) / RATE))

    def _segments(self, seconds: int) -> Iterator[Segment]:
        for n in range(seconds):
            self.hearing.set()
            assert self.gate.wait(WAIT_S), "nobody opened the gate"
            assert self.passes is None or self.passes.acquire(timeout=WAIT_S), "nobody gave a pass"
            if n == self.breaks_at:
                raise RuntimeError("out of memory, says the fake")
            self.said.append(f"word {n}")
            words = [Word(" word", n, n + 0.5, 0.9), Word(f" {n}.", n + 0.5, n + 1.0, 0.8)]
            yield Segment(n, n * 100, n, n + 1.0, f" word {n}.", tokens=[n], words=words)

    async def aclose(self) -> None:
        self.closed = True

    def hold(self) -> None:
        """Let the next segment wait at the gate."""
        self.hearing.clear()
        self.gate.clear()

    def wait_until_hearing(self) -> None:
        """Return once a segment waits at the gate."""
        assert self.hearing.wait(WAIT_S), "no recording came"
