"""Programs that tests start get default signal dispositions, whatever started the tests."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import INHERITED

PRINT_IGNORED = f"""
import signal
print([number for number in {[int(number) for number in INHERITED]} if signal.getsignal(number) == signal.SIG_IGN])
"""


def test_programs_ignore_no_signal() -> None:
    child = subprocess.run([sys.executable, "-c", PRINT_IGNORED], capture_output=True, text=True, check=True)
    assert child.stdout == "[]\n"


@pytest.mark.parametrize("options", [(), ("-n", "1")], ids=["alone", "xdist"])
def test_programs_ignore_no_signal_where_the_tests_do(options: tuple[str, ...]) -> None:
    def ignore() -> None:
        for number in INHERITED:
            signal.signal(number, signal.SIG_IGN)

    test = f"{Path(__file__)}::{test_programs_ignore_no_signal.__name__}"
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *options, test]
    run = subprocess.run(command, preexec_fn=ignore, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout
