"""The quickstart from start to end: right answers, and nothing left behind."""

from pathlib import Path

import psutil
import pytest

from tests.support.programs.cluster import Quickstart, free_offset, home_with_packages


def below(quickstart: Quickstart) -> list[psutil.Process]:
    """supervisord and every program, while they run."""
    supervisord = psutil.Process(int((quickstart.home / "supervisord.pid").read_text()))
    return [supervisord, *supervisord.children(recursive=True)]


def test_smoke_exits_0_and_leaves_nothing(tmp_path: Path) -> None:
    """--smoke ends by itself with right answers; no process and no taken port is left."""
    running = Quickstart("--smoke", "--models", "packages", home=home_with_packages(tmp_path), offset=free_offset())
    try:
        running.wait_for("The cluster answers after")
        processes = below(running)
        assert running.finish() == 0, running.text
    finally:
        running.stop()
    assert "All answers are right." in running.text
    assert not [process for process in processes if process.is_running()]


@pytest.mark.parametrize("moment", ["llm-primary: in the registry", "The cluster answers after"])
def test_ctrl_c_leaves_nothing(tmp_path: Path, moment: str) -> None:
    """Ctrl-C while models load, or later, ends every process and says so."""
    running = Quickstart("--models", "packages", home=home_with_packages(tmp_path), offset=free_offset())
    try:
        running.wait_for(moment)
        processes = below(running)
        assert running.interrupt() == 130
    finally:
        running.stop()
    assert "Everything has ended" in running.text
    assert not [process for process in processes if process.is_running()]
