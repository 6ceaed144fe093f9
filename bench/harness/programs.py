"""What a bench measures runs as a program of its own, on cores of its own, and ends with the bench."""

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
    """A port of 127.0.0.1 that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Program:
    """A running program and its children. Used with `with`; at its end nothing of it is left."""

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
        """Start `command` on `cores` (all where none are named); `port` is the one whose opening says that it is up.

        `env` is added to the environment. What it prints goes to `log`, or nowhere.
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
        """Wait until somebody listens there. Raises RuntimeError when the program ends or takes too long."""
        self.wait_until(lambda: _listens(port), "listen")

    def wait_until(self, done: Callable[[], bool], what: str) -> None:
        """Wait until `done` says so. Raises RuntimeError when the program ends first, or does not `what` in time."""
        deadline = time.monotonic() + self._start_s
        while not done():
            if self._process.poll() is not None:
                raise RuntimeError(f"{self._process.args!r} ended with {self._process.returncode}{self._said()}")
            if time.monotonic() > deadline:
                raise RuntimeError(f"{self._process.args!r} did not {what} within {self._start_s:g} s{self._said()}")
            time.sleep(0.05)

    def cpu_seconds(self) -> float:
        """The CPU time that it and its living children have used, user and system, in seconds."""
        return sum((sum(one.cpu_times()[:2]) for one in self._family()), 0.0)

    def rss_bytes(self) -> int:
        """The memory that it and its children hold now (resident set; shared pages count in each)."""
        held: int = sum(one.memory_info().rss for one in self._family())
        return held

    def kill(self) -> None:
        """End it as `kill -9` does, and its children with it."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._process.wait()

    def stop(self) -> None:
        """Ask it to end, then make it."""
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

    def _said(self) -> str:
        return f":\n{self._log.read_text(errors='replace')[-2000:]}" if self._log else ""


def end_when_told() -> None:
    """Make SIGTERM, as `timeout` sends it, end this bench through its `with` blocks, and so its programs with it."""

    def end(_number: int, _frame: FrameType | None) -> None:
        raise SystemExit("told to end")

    signal.signal(signal.SIGTERM, end)


def is_healthy(port: int) -> bool:
    """Whether what listens there says at /health that it is well."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def _listens(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1):
            return True
    except OSError:
        return False
