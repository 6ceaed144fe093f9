"""Programs that a bench starts end with it, also on SIGTERM."""

import subprocess
import sys

import psutil

STARTS_ONE = """
import sys
from bench.harness.programs import Program, exit_on_sigterm

exit_on_sigterm()
with Program([sys.executable, "-c", "import signal; signal.pause()"]) as program:
    print(program.pid, flush=True)
    program.wait_until(lambda: False, "come")
"""


def test_sigterm_stops_the_programs_of_a_bench() -> None:
    with subprocess.Popen([sys.executable, "-c", STARTS_ONE], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as bench:
        assert bench.stdout is not None
        pid = int(bench.stdout.readline())
        assert psutil.pid_exists(pid)
        bench.terminate()
        assert b"stopped by SIGTERM" in bench.communicate(timeout=20)[1]
        assert not psutil.pid_exists(pid)
