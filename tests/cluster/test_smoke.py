"""The quickstart from start to end: correct responses, no remaining processes."""

from pathlib import Path

import psutil
import pytest

from tests.support.programs.cluster import Quickstart, free_offset, home_with_packages


def processes_of(quickstart: Quickstart) -> list[psutil.Process]:
    """Return supervisord and all programs."""
    supervisord = psutil.Process(int((quickstart.home / "supervisord.pid").read_text()))
    return [supervisord, *supervisord.children(recursive=True)]


def test_smoke_exits_0_and_leaves_nothing(tmp_path: Path) -> None:
    """No process and no used port remains."""
    running = Quickstart("--smoke", "--models", "packages", home=home_with_packages(tmp_path), offset=free_offset())
    try:
        running.wait_for("The cluster is ready after")
        processes = processes_of(running)
        assert running.finish() == 0, running.text
    finally:
        running.stop()
    assert "All responses are correct." in running.text
    assert not [process for process in processes if process.is_running()]


@pytest.mark.parametrize("moment", ["llm-primary: published", "The cluster is ready after"])
def test_ctrl_c_leaves_nothing(tmp_path: Path, moment: str) -> None:
    """During the load or later."""
    running = Quickstart("--models", "packages", home=home_with_packages(tmp_path), offset=free_offset())
    try:
        running.wait_for(moment)
        processes = processes_of(running)
        assert running.interrupt() == 130
    finally:
        running.stop()
    assert "All processes have ended" in running.text
    assert not [process for process in processes if process.is_running()]
