"""A progress bar on stderr when that is a terminal, a line now and then otherwise; without any package."""

import sys
import time
from typing import Self, TextIO

from registry.units import human_bytes

_WIDTH = 28
_REDRAW_S = 0.1
_LINE_S = 15.0


class ProgressBar:
    """Bytes done of a total, with the file being worked on. A context manager: leaves a clean line at its end."""

    def __init__(self, title: str, total: int, stream: TextIO | None = None) -> None:
        self._title = title
        self._total = total
        self._done = 0
        self._stream = stream or sys.stderr
        self._shown = self._stream.isatty()
        self._began = time.monotonic()
        self._drawn = 0.0 if self._shown else self._began

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._shown:
            self._stream.write("\r\x1b[K")
            self._stream.flush()

    def advance(self, label: str, count: int) -> None:
        """Another `count` bytes are done, of the file `label`."""
        self.show(label, self._done + count, self._total)

    def show(self, label: str, done: int, total: int) -> None:
        """Draw `done` of `total` bytes, unless that was done a moment ago."""
        self._done, self._total = done, total
        now = time.monotonic()
        if now - self._drawn < (_REDRAW_S if self._shown else _LINE_S):
            return
        self._drawn = now
        share = min(done / total, 1.0) if total else 0.0
        rate = done / max(now - self._began, 0.001)
        far = f"{share:4.0%} of {human_bytes(total)}, {human_bytes(rate)}/s"
        if self._shown:
            self._stream.write(f"\r\x1b[K{self._title} {drawn_bar(share)} {far}  {label}")
        else:
            self._stream.write(f"{self._title} {far.strip()}  {label}\n")
        self._stream.flush()


def drawn_bar(share: float) -> str:
    """A bar that is filled up to `share` (0..1)."""
    full = int(share * _WIDTH)
    return "█" * full + "░" * (_WIDTH - full)
