"""What the benches print, and how they start what they measure."""

import json
import sys
from pathlib import Path

import psutil
import pytest

from bench.harness.programs import Program, free_port
from bench.harness.report import last_line, median_interval, median_ratio, quantile, table


def test_a_slow_round_does_not_count() -> None:
    """The ratio is taken round by round, so a moment in which both were slow says nothing."""
    assert median_ratio([10, 1, 12], [5, 0.5, 6]) == 2


def test_two_rounds_are_no_median() -> None:
    """Fewer than three rounds are refused."""
    with pytest.raises(ValueError, match="three rounds"):
        median_ratio([1, 2], [1, 2])


@pytest.mark.parametrize(("count", "first", "last"), [(6, 1, 6), (10, 2, 9), (20, 6, 15), (25, 8, 18)])
def test_the_interval_of_a_median_is_the_one_in_the_tables(count: int, first: int, last: int) -> None:
    """The ranks that statistics' tables give for these numbers of values."""
    assert median_interval([float(value) for value in range(count, 0, -1)]) == (first, last)


def test_five_values_have_no_interval() -> None:
    """The least and the greatest of five leave out the median more often than that."""
    with pytest.raises(ValueError, match="six values"):
        median_interval([1, 2, 3, 4, 5])


def test_a_quantile_is_one_of_the_values() -> None:
    """The nearest rank: of a hundred, the 99th is p99, of a few the greatest; their order is nothing."""
    assert quantile(list(range(100, 0, -1)), 0.99) == 99
    assert quantile([3, 1, 2], 0.99) == 3
    assert quantile([3, 1, 2], 0.5) == 2
    assert quantile([7], 0) == 7
    with pytest.raises(ValueError, match="at least one"):
        quantile([], 0.5)


def test_the_last_line_is_json() -> None:
    """A figure that could not be had is null."""
    line = json.loads(last_line("gateway", {"rps": 0.1234567, "errors": 0, "peer": None}))
    assert line == {"bench": "gateway", "figures": {"rps": 0.123457, "errors": 0, "peer": None}}


def test_numbers_stand_to_the_right() -> None:
    """A table has one line for each row and one for its head."""
    assert table(["peer", "rps"], [["nginx", 20123.4], ["ours", 0.7912]]).splitlines() == [
        "peer      rps",
        "nginx  20,123",
        "ours    0.791",
    ]


def test_a_program_ends_with_its_block() -> None:
    """It is up when its port is open, has used time and memory, and nothing of it is left."""
    port = free_port()
    with Program([sys.executable, "-m", "http.server", "--bind", "127.0.0.1", str(port)], port=port) as program:
        assert program.cpu_seconds() > 0
        assert program.rss_bytes() > 0
        child = psutil.Process(program.pid)
    assert not child.is_running()


def test_a_program_that_ends_at_once_is_told(tmp_path: Path) -> None:
    """The error holds what it said."""
    with (
        pytest.raises(RuntimeError, match="no such thing"),
        Program([sys.executable, "-c", "raise SystemExit('no such thing')"], port=free_port(), log=tmp_path / "log"),
    ):
        pass
