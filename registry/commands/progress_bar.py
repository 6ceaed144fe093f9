"""Progress of one operation on stderr: a live bar on a terminal, a line every 15 s elsewhere."""

import sys
import time
from typing import Self, TextIO

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TaskProgressColumn, TextColumn, TransferSpeedColumn

from kit.units import human_bytes

_LINE_INTERVAL_S = 15.0


def open_console(stream: TextIO) -> Console:
    """Return a console that draws only if `stream` is a terminal, whatever FORCE_COLOR and the like say."""
    return Console(file=stream, force_terminal=stream.isatty(), highlight=False)


class ProgressBar:
    """Bytes done of `total`, with the current file. A context manager; the bar is erased at its end."""

    def __init__(self, title: str, total: int, stream: TextIO | None = None) -> None:
        self._title = title
        self._total = total
        self._done = 0
        self._stream = stream or sys.stderr
        self._is_live = self._stream.isatty()
        self._started = self._printed = time.monotonic()
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(28),
            TaskProgressColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TextColumn("{task.fields[file]}", markup=False),
            console=open_console(self._stream),
            transient=True,
            redirect_stdout=sys.stdout.isatty(),  # redirected to our console, so a piped stdout must stay as it is
            disable=not self._is_live,
        )
        self._task = self._progress.add_task(title, total=total, file="")

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def advance(self, file: str, count: int) -> None:
        """Add `count` bytes of `file`."""
        self._done += count
        if self._is_live:
            self._progress.update(self._task, advance=count, file=file)
        elif time.monotonic() - self._printed >= _LINE_INTERVAL_S:
            self._printed = time.monotonic()
            share = min(self._done / self._total, 1.0) if self._total else 0.0
            size, rate = human_bytes(self._total), human_bytes(self._done / max(self._printed - self._started, 0.001))
            self._stream.write(f"{self._title} {share:.0%} of {size}, {rate}/s  {file}\n")
            self._stream.flush()
