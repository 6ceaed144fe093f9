"""The programs' logs in one stream, each line labelled with its program."""

import re
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TextIO

POLL_S = 0.25
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
COLOURS = ("36", "32", "33", "35", "34", "96")


def follow_logs(logs: Path, names: Iterable[str], out: TextIO = sys.stdout) -> Iterable[None]:
    """Print lines appended to `logs/NAME.log` from now on. Yields after each poll, for the caller's checks."""
    tails = [_Tail(logs / f"{name}.log", _label(name, index, out)) for index, name in enumerate(names)]
    while True:
        for tail in tails:
            for line in tail.new_lines():
                out.write(line if out.isatty() else _COLOUR.sub("", line))
        out.flush()
        yield
        time.sleep(POLL_S)


def _label(name: str, index: int, out: TextIO) -> str:
    padded = f"{name:<13} │ "
    return f"\033[{COLOURS[index % len(COLOURS)]}m{padded}\033[0m" if out.isatty() else padded


class _Tail:
    """The end of a log file, which may be rotated."""

    def __init__(self, path: Path, label: str) -> None:
        self._path = path
        self._label = label
        self._offset = path.stat().st_size if path.exists() else 0
        self._rest = ""

    def new_lines(self) -> list[str]:
        if not self._path.exists():
            return []
        if self._path.stat().st_size < self._offset:  # rotated
            self._offset = 0
        with self._path.open(errors="replace") as file:
            file.seek(self._offset)
            text = self._rest + file.read()
            self._offset = file.tell()
        *lines, self._rest = text.split("\n")
        return [f"{self._label}{line}\n" for line in lines]
