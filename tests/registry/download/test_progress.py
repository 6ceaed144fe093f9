"""How far a download is, in numbers and in words."""

import io
import time

import pytest

from registry.commands.progress_bar import ProgressBar
from registry.download.progress import Progress
from registry.units import human_seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time that progress is measured by; set `clock[0]`."""
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_told_in_words(clock: list[float]) -> None:
    """As much as is known at the time: nothing, the size, the rate and what is left."""
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
def test_durations(seconds: float, words: str) -> None:
    """Rounded up: nobody is promised less."""
    assert human_seconds(seconds) == words


def test_where_there_is_no_terminal_a_line_now_and_then(clock: list[float]) -> None:
    """A long import in a log is seen to go on; a short one says nothing."""
    said = io.StringIO()
    with ProgressBar("importing", 400_000_000, said) as bar:
        for _ in range(4):
            clock[0] += 10
            bar.advance("volume-0001.tar", 100_000_000)
    assert said.getvalue().splitlines() == [
        "importing 50% of 400.0 MB, 10.0 MB/s  volume-0001.tar",
        "importing 100% of 400.0 MB, 10.0 MB/s  volume-0001.tar",
    ]
