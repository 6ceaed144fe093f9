"""Figures of the benches, and the programs they start."""

import json
import sys
from pathlib import Path

import psutil
import pytest

from bench.harness.programs import Program, free_port
from bench.harness.report import last_line, median_interval, median_ratio, quantile, table


def test_median_ratio_is_computed_per_round() -> None:
    assert median_ratio([10, 1, 12], [5, 0.5, 6]) == 2


def test_median_ratio_needs_three_rounds() -> None:
    with pytest.raises(ValueError, match="three rounds"):
        median_ratio([1, 2], [1, 2])


@pytest.mark.parametrize(("count", "first", "last"), [(6, 1, 6), (10, 2, 9), (20, 6, 15), (25, 8, 18)])
def test_median_interval_has_the_tabulated_ranks(count: int, first: int, last: int) -> None:
    assert median_interval([float(value) for value in range(count, 0, -1)]) == (first, last)


def test_median_interval_needs_six_values() -> None:
    with pytest.raises(ValueError, match="six values"):
        median_interval([1, 2, 3, 4, 5])


def test_quantile_is_the_nearest_rank() -> None:
    assert quantile(list(range(100, 0, -1)), 0.99) == 99
    assert quantile([3, 1, 2], 0.99) == 3
    assert quantile([3, 1, 2], 0.5) == 2
    assert quantile([7], 0) == 7
    with pytest.raises(ValueError, match="at least one"):
        quantile([], 0.5)


def test_last_line_is_json_with_null_for_missing_figures() -> None:
    line = json.loads(last_line("gateway", {"rps": 0.1234567, "errors": 0, "peer": None}))
    assert line == {"bench": "gateway", "figures": {"rps": 0.123457, "errors": 0, "peer": None}}


def test_table_aligns_numbers_right() -> None:
    assert table(["peer", "rps"], [["nginx", 20123.4], ["ours", 0.7912]]).splitlines() == [
        "peer      rps",
        "nginx  20,123",
        "ours    0.791",
    ]


def test_program_ends_with_its_context() -> None:
    port = free_port()
    with Program([sys.executable, "-m", "http.server", "--bind", "127.0.0.1", str(port)], port=port) as program:
        assert program.cpu_seconds() > 0
        assert program.rss_bytes() > 0
        child = psutil.Process(program.pid)
    assert not child.is_running()


def test_early_exit_raises_with_the_log(tmp_path: Path) -> None:
    with (
        pytest.raises(RuntimeError, match="no such thing"),
        Program([sys.executable, "-c", "raise SystemExit('no such thing')"], port=free_port(), log=tmp_path / "log"),
    ):
        pass
