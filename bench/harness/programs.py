"""Programs under test: processes pinned to cores, stopped when the bench ends."""

import contextlib
import os
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType, TracebackType

import psutil

START_S = 60.0
STOP_S = 10.0


def free_port() -> int:
    """Return a free port of 127.0.0.1."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Program:
    """A running program and its children. Use as a context manager; no process of it is left at the end."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        port: int | None = None,
        cores: Sequence[int] = (),
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        log: Path | None = None,
        start_s: float = START_S,
    ) -> None:
        """Start `command` on `cores` (default: all). It is ready when it listens on `port`.

        `env` is added to the environment. Output is appended to `log`, or discarded.
        """
        self._port = port
        self._start_s = start_s
        self._log = log
        with contextlib.ExitStack() as stack:
            out = stack.enter_context(log.open("ab")) if log else subprocess.DEVNULL
            self._process = subprocess.Popen(
                list(command), cwd=cwd, env={**os.environ, **(env or {})}, stdin=subprocess.DEVNULL,
                stdout=out, stderr=subprocess.STDOUT, start_new_session=True,
                preexec_fn=(lambda: os.sched_setaffinity(0, cores)) if cores else None,
            )  # fmt: skip
        self.pid = self._process.pid

    def __enter__(self) -> "Program":
        if self._port is not None:
            self.wait_for_port(self._port)
        return self

    def __exit__(self, _type: type[BaseException] | None, _value: object, _trace: TracebackType | None) -> None:
        self.stop()

    def wait_for_port(self, port: int) -> None:
        """Wait until something listens on `port`. Raises RuntimeError if the program exits first or times out."""
        self.wait_until(lambda: _listens(port), "listen")

    def wait_until(self, done: Callable[[], bool], what: str) -> None:
        """Wait until `done()`. Raises RuntimeError if the program exits first or times out; `what` names the goal."""
        deadline = time.monotonic() + self._start_s
        while not done():
            if self._process.poll() is not None:
                raise RuntimeError(
                    f"{self._process.args!r} exited with status {self._process.returncode}{self._log_tail()}"
                )
            if time.monotonic() > deadline:
                raise RuntimeError(
                    f"{self._process.args!r} did not {what} within {self._start_s:g} s{self._log_tail()}"
                )
            time.sleep(0.05)

    def cpu_seconds(self) -> float:
        """CPU time of the program and its live children, user and system, in seconds."""
        return sum((sum(one.cpu_times()[:2]) for one in self._family()), 0.0)

    def rss_bytes(self) -> int:
        """Resident memory of the program and its children; shared pages count in each."""
        held: int = sum(one.memory_info().rss for one in self._family())
        return held

    def kill(self) -> None:
        """Kill it and its children with SIGKILL."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._process.wait()

    def stop(self) -> None:
        """Send SIGTERM, then SIGKILL after STOP_S."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(STOP_S)
        self.kill()

    def _family(self) -> Iterator[psutil.Process]:
        me = psutil.Process(self.pid)
        yield me
        for child in me.children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                yield child

    def _log_tail(self) -> str:
        return f":\n{self._log.read_text(errors='replace')[-2000:]}" if self._log else ""


def exit_on_sigterm() -> None:
    """Exit on SIGTERM (as `timeout` sends it) through the `with` blocks, so that the started programs end too."""

    def end(_number: int, _frame: FrameType | None) -> None:
        raise SystemExit("stopped by SIGTERM")

    signal.signal(signal.SIGTERM, end)


def is_healthy(port: int) -> bool:
    """Whether /health on this port responds with 200."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as response:
            return bool(response.status == 200)
    except OSError:
        return False


def _listens(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1):
            return True
    except OSError:
        return False
