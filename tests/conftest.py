"""Signal dispositions of the programs that tests start."""

import signal

import pytest

INHERITED = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM)


def pytest_configure(config: pytest.Config) -> None:
    """Let programs start with default signals under `nohup` and in a shell's background, which ignore some.

    An ignored signal stays ignored across exec, a handler does not (POSIX execve). So a handler without effect keeps
    this process as it is and resets the programs. The controller of pytest-xdist starts its workers only; they keep
    what they inherit until they come here.
    """
    if not hasattr(config, "workerinput") and config.getoption("numprocesses", None):
        return
    for number in INHERITED:
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, lambda *_: None)
