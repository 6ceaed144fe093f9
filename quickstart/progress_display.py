"""Progress of the start: a bar per program on a terminal, a line per change elsewhere."""

import re
import sys

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

# Columns of name, bar, percentage, time and separators.
FIXED_COLUMNS = 51
_NUMBERS = re.compile(r"[\d.]+")


class ProgressDisplay:
    """Progress bars by name. Use as a context manager."""

    def __init__(self) -> None:
        self._console = Console(file=sys.stdout)
        self._live = self._console.is_terminal
        self._progress = Progress(
            TextColumn("{task.fields[name]:<13}"),
            BarColumn(20),
            TextColumn("{task.percentage:>3.0f} %"),
            TimeElapsedColumn(),
            TextColumn("{task.description}", markup=False),  # errors may contain square brackets
            console=self._console,
        )
        self._tasks: dict[str, TaskID] = {}
        self._printed: dict[str, str] = {}

    def __enter__(self) -> "ProgressDisplay":
        if self._live:
            self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._progress.stop()

    def show(self, name: str, fraction: float, detail: str, share: float = 1.0) -> None:
        """Set the bar `name` to `fraction` (0 to 1) of its first `share`, with the current activity."""
        if self._live:
            task = self._tasks.get(name)
            if task is None:
                task = self._tasks[name] = self._progress.add_task(detail, total=1.0, name=name)
            width = max(20, self._console.width - FIXED_COLUMNS)
            self._progress.update(task, completed=fraction * share, description=detail[:width])
            return
        # In a log file: a line per change of activity, not per percent.
        activity = _NUMBERS.sub("", detail)
        if self._printed.get(name) != activity:
            self._printed[name] = activity
            print(f"{name}: {detail}", flush=True)
