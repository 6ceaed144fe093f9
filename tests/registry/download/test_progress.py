"""The progress of a download in numbers and words."""

import io
import time

import pytest

from kit.units import human_seconds
from registry.commands.progress_bar import ProgressBar
from registry.download.progress import Progress


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The clock of the progress; set `clock[0]`."""
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_summary_contains_what_is_known(clock: list[float]) -> None:
    """Nothing, then the size, the speed and the time left."""
    progress = Progress()
    assert (progress.summary(), progress.share) == ("", 0.0)
    progress.expect(3, 600_000_000)
    assert progress.summary() == "0 % of 600.0 MB"
    clock[0] += 2
    progress.advance(30_000_000)
    assert progress.summary() == "5 % of 600.0 MB, 15.0 MB/s, 38 s left"
    assert progress.share == 0.05
    progress.advance(570_000_000, fetched=False)
    assert progress.summary() == "100 % of 600.0 MB, 15.0 MB/s"


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.2, "1 s"),
        (20, "20 s"),
        (99, "99 s"),
        (100, "2 min"),
        (300, "5 min"),
        (5999, "1 h 40 min"),
        (7260, "2 h 1 min"),
    ],
)
def test_durations_are_rounded_up(seconds: float, words: str) -> None:
    assert human_seconds(seconds) == words


def test_without_a_terminal_progress_is_logged_in_lines(clock: list[float]) -> None:
    """A short import prints nothing."""
    said = io.StringIO()
    with ProgressBar("importing", 400_000_000, said) as bar:
        for _ in range(4):
            clock[0] += 10
            bar.advance("volume-0001.tar", 100_000_000)
    assert said.getvalue().splitlines() == [
        "importing 50% of 400.0 MB, 10.0 MB/s  volume-0001.tar",
        "importing 100% of 400.0 MB, 10.0 MB/s  volume-0001.tar",
    ]
