"""What a bench starts ends with it, also when the bench itself is told to end."""

import subprocess
import sys

import psutil

STARTS_ONE = """
import sys
from bench.harness.programs import Program, end_when_told

end_when_told()
with Program([sys.executable, "-c", "import signal; signal.pause()"]) as program:
    print(program.pid, flush=True)
    program.wait_until(lambda: False, "come")
"""


def test_a_bench_that_is_told_to_end_ends_its_programs() -> None:
    """As `timeout` does: nothing stays behind and computes."""
    with subprocess.Popen([sys.executable, "-c", STARTS_ONE], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as bench:
        assert bench.stdout is not None
        pid = int(bench.stdout.readline())
        assert psutil.pid_exists(pid)
        bench.terminate()
        assert b"told to end" in bench.communicate(timeout=20)[1]
        assert not psutil.pid_exists(pid)
