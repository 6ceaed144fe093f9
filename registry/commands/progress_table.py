"""What a person sees of several downloads: a line per model that moves on a terminal, plain lines elsewhere.

On a terminal the lines are drawn over the ones before; a screen with fewer lines than there are models shows those that
are at work. Nothing here waits: each change is drawn when it is told, a few times a second at most.
"""

import shutil
import sys
import time
from collections.abc import Iterable
from types import TracebackType
from typing import Self, TextIO

from registry.commands.bulk_mirror import Outcome
from registry.commands.progress_bar import drawn_bar
from registry.commands.registry_client import ENDED, Model
from registry.download.progress import told
from registry.units import human_bytes

_REDRAW_S = 0.1
_TELL_EVERY_S = 10.0
_NAME_MOST = 24


class Board:
    """The state of each of `names`. A context manager: the terminal is left with the lines as they were last."""

    def __init__(self, names: Iterable[str], stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._moving = self._stream.isatty()
        self._models: dict[str, Model | None] = dict.fromkeys(names)
        self._width = min(max(map(len, self._models), default=0), _NAME_MOST)
        self._drawn_lines = 0
        self._drawn_at = 0.0
        self._told: dict[str, tuple[str, float]] = {}
        self._said = ""

    def __enter__(self) -> Self:
        self._draw()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._draw()

    def show(self, model: Model) -> None:
        """A model has changed."""
        name = str(model["name"])
        self._models[name] = model
        self._said = ""
        if not self._moving:
            self._tell(name, model)
        elif time.monotonic() - self._drawn_at > _REDRAW_S or model["status"] in ENDED:
            self._draw()

    def say(self, text: str) -> None:
        """Something that concerns all of them; the first of it is told, until something moves on."""
        if self._said:
            return
        self._said = text
        if self._moving:
            self._draw()
        else:
            self._write(text + "\n")

    def _tell(self, name: str, model: Model) -> None:
        """A plain line, when the status is another, or a while after the last one."""
        now = time.monotonic()
        status, at = self._told.get(name, ("", 0.0))
        if status == model["status"] and now - at < _TELL_EVERY_S:
            return
        self._told[name] = (model["status"], now)
        self._write(f"{name}: {_words(model)}\n")

    def _draw(self) -> None:
        """All lines over those that were drawn before."""
        if not self._moving:
            return
        self._drawn_at = time.monotonic()
        size = shutil.get_terminal_size()
        lines = self._lines(size.lines - 2)
        up = f"\x1b[{self._drawn_lines}A" if self._drawn_lines else ""
        self._write(f"{up}\r" + "".join(f"\x1b[K{_fitted(line, size.columns)}\n" for line in lines) + "\x1b[J")
        self._drawn_lines = len(lines)

    def _lines(self, room: int) -> list[str]:
        names = list(self._models)
        if len(names) > room:
            names = [name for name in names if _is_at_work(self._models[name])][: max(room - 1, 1)]
        lines = [f"{name[:_NAME_MOST]:{self._width}}  {_words(self._models[name], bar=True)}" for name in names]
        hidden = [model for name, model in self._models.items() if name not in names]
        if hidden:
            ready = sum(model is not None and model["status"] == "ready" for model in hidden)
            lines.append(f"and {len(hidden)} more, {ready} of them ready")
        return [*lines, self._said] if self._said else lines

    def _write(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()


def table(outcomes: Iterable[Outcome]) -> str:
    """What became of each model, for the end; the reason of a failure stands below its line."""
    rows = [("NAME", "REPOSITORY", "COMMIT", "SIZE", "STATUS", "")]
    for outcome in outcomes:
        status = "FAILED" if outcome.error else "ready, every digest verified" if outcome.verified else "ready"
        size = "-" if outcome.size is None else human_bytes(outcome.size)
        rows.append((outcome.name, outcome.repo, (outcome.commit or "-")[:12], size, status, outcome.error or ""))
    name, repo, commit, size_width = (max(len(row[column]) for row in rows) for column in range(4))
    lines = []
    for row in rows:
        lines.append(f"{row[0]:{name}}  {row[1]:{repo}}  {row[2]:{commit}}  {row[3]:>{size_width}}  {row[4]}".rstrip())
        lines += [f"{'':{name}}  {row[5]}"] if row[5] else []
    return "\n".join(lines)


def _fitted(line: str, columns: int) -> str:
    """One that reaches the last column would wrap, and the next drawing would miss it."""
    return " ".join(line.splitlines())[: columns - 1]


def _is_at_work(model: Model | None) -> bool:
    return model is not None and model["status"] not in (*ENDED, "queued")


def _words(model: Model | None, *, bar: bool = False) -> str:
    if model is None:
        return "waiting"
    status, progress = str(model["status"]), model["progress"]
    if status == "ready":
        return f"ready{', verified' if 'verified_at' in model else ''}, {human_bytes(model['size_bytes'])}"
    if status not in ("downloading", "verifying") or not progress["bytes_total"]:
        return f"{status}{': ' + model['error'] if model.get('error') else ''}"
    drawn = f"{drawn_bar(min(progress['bytes_done'] / progress['bytes_total'], 1.0))} " if bar else ""
    return f"{status:11} {drawn}{told(progress)}, {progress['files_done']} of {progress['files_total']} files"
