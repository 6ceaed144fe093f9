"""What the person sees while the cluster comes up: a bar per part on a terminal, a line per change elsewhere."""

import re
import sys

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

# Characters of a line that name, bar, percentage, time and the blanks between them take.
BESIDE_DETAIL = 51
_NUMBERS = re.compile(r"[\d.]+")


class Board:
    """Bars by name. Use as a context manager; `show` may be called as often as one likes."""

    def __init__(self) -> None:
        self._console = Console(file=sys.stdout)
        self._live = self._console.is_terminal
        self._progress = Progress(
            TextColumn("{task.fields[name]:<13}"),
            BarColumn(20),
            TextColumn("{task.percentage:>3.0f} %"),
            TimeElapsedColumn(),
            TextColumn("{task.description}", markup=False),  # it may hold square brackets, of an error say
            console=self._console,
        )
        self._tasks: dict[str, TaskID] = {}
        self._said: dict[str, str] = {}

    def __enter__(self) -> "Board":
        if self._live:
            self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._progress.stop()

    def show(self, name: str, fraction: float, detail: str) -> None:
        """Set the bar `name` to `fraction` (0 to 1) and say what happens."""
        if self._live:
            task = self._tasks.get(name)
            if task is None:
                task = self._tasks[name] = self._progress.add_task(detail, total=1.0, name=name)
            room = max(20, self._console.width - BESIDE_DETAIL)
            self._progress.update(task, completed=fraction, description=detail[:room])
            return
        # In a log file, a line for each change of what happens, not for each percent.
        essence = _NUMBERS.sub("", detail)
        if self._said.get(name) != essence:
            self._said[name] = essence
            print(f"{name}: {detail}", flush=True)
