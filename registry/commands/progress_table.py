"""Progress of several downloads on stderr: a live line per model on a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Iterable
from typing import Self, TextIO, TypeGuard

from rich.console import Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar as Bar
from rich.table import Column, Table
from rich.text import Text

from kit.units import human_bytes
from registry.commands.bulk_mirror import Outcome
from registry.commands.progress_bar import open_console
from registry.commands.registry_client import Model
from registry.download.jobs import ENDED
from registry.download.progress import progress_summary

_LINE_INTERVAL_S = 10.0
_BAR_WIDTH = 28
_MAX_NAME_WIDTH = 24


class ProgressTable:
    """The state of each of `names`. A context manager; the last state stays on the terminal.

    If the terminal has fewer lines than there are models, only the active ones are listed.
    """

    def __init__(self, names: Iterable[str], stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._models: dict[str, Model | None] = dict.fromkeys(names)
        self._notice = ""
        self._printed: dict[str, tuple[str, float]] = {}
        self._console = open_console(self._stream)
        self._live = Live(
            get_renderable=self._render, console=self._console, refresh_per_second=10, redirect_stdout=False
        )

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._live.start(refresh=True)
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def show(self, model: Model) -> None:
        """Show the new state of `model`."""
        self._models[str(model["name"])] = model
        self._notice = ""
        if not self._console.is_terminal:
            self._print_line(model)

    def notify(self, text: str) -> None:
        """Show a notice below the models until one of them changes; a notice that is already shown stays."""
        if self._notice:
            return
        self._notice = text
        if not self._console.is_terminal:
            self._write(text)

    def _print_line(self, model: Model) -> None:
        now, name = time.monotonic(), str(model["name"])
        status, printed_at = self._printed.get(name, ("", 0.0))
        if status != model["status"] or now - printed_at >= _LINE_INTERVAL_S:
            self._printed[name] = (model["status"], now)
            self._write(f"{name}: {_describe(model)}")

    def _write(self, line: str) -> None:
        self._stream.write(f"{line}\n")
        self._stream.flush()

    def _render(self) -> RenderableType:
        """Return the lines to draw. Called by the thread that refreshes the display."""
        models, room = dict(self._models), self._console.height - 2
        names = list(models)
        if len(names) > room:
            active = [name for name, model in models.items() if model and model["status"] not in (*ENDED, "queued")]
            names = active[: max(room - 1, 1)]
        rows = Table.grid(
            Column(no_wrap=True, max_width=_MAX_NAME_WIDTH), Column(no_wrap=True), "", padding=(0, 2, 0, 0)
        )
        for name in names:
            rows.add_row(Text(name), Text(_describe(models[name])), _bar(models[name]))
        hidden = [model for name, model in models.items() if name not in names]
        ready = sum(model is not None and model["status"] == "ready" for model in hidden)
        below = [f"and {len(hidden)} more, {ready} of them ready"] if hidden else []
        below += [self._notice] if self._notice else []
        return Group(rows, *(Text(line, no_wrap=True, overflow="ellipsis") for line in below))


def summary(outcomes: Iterable[Outcome]) -> str:
    """Return a table of the outcomes; the reason of a failure follows on a line of its own."""
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


def _has_progress(model: Model | None) -> TypeGuard[Model]:
    return (
        model is not None and model["status"] in ("downloading", "verifying") and bool(model["progress"]["bytes_total"])
    )


def _bar(model: Model | None) -> RenderableType:
    if not _has_progress(model):
        return ""
    return Bar(model["progress"]["bytes_total"], model["progress"]["bytes_done"], _BAR_WIDTH)


def _describe(model: Model | None) -> str:
    if model is None:
        return "waiting"
    status, progress = str(model["status"]), model["progress"]
    if status == "ready":
        return f"ready{', verified' if 'verified_at' in model else ''}, {human_bytes(model['size_bytes'])}"
    if not _has_progress(model):
        return " ".join(f"{status}{': ' + model['error'] if model.get('error') else ''}".splitlines())
    return f"{status:11} {progress_summary(progress)}, {progress['files_done']} of {progress['files_total']} files"
