"""A real quickstart as a process, with real models, for tests of the whole cluster."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx2

from quickstart.preflight import is_port_in_use

ROOT = Path(__file__).resolve().parents[3]
PORTS = (8000, 8002, 8003, 8004, 8080, 8090)
START_S = 600
END_S = 60
# The last line that quickstart prints before it follows the logs.
READY = "Ctrl-C stops everything."


def free_offset() -> int:
    """Return 0 if the documented ports are free, else a port offset with free ports."""
    for offset in (0, 10_000, 11_000, 12_000):
        if not any(is_port_in_use(port + offset) for port in PORTS):
            return offset
    raise AssertionError("no free set of ports was found")


def home_with_packages(path: Path) -> Path:
    """Create a home for a quickstart that shares the unpacked models of the default one."""
    path.mkdir(parents=True, exist_ok=True)
    packages = ROOT / ".cluster" / "packages"
    packages.mkdir(parents=True, exist_ok=True)
    link = path / "packages"
    if not link.exists():
        link.symlink_to(packages)
    return path


class Quickstart:
    """One run of `python -m quickstart`. `output` grows while it runs."""

    def __init__(self, *arguments: str, home: Path, offset: int, environment: dict[str, str] | None = None) -> None:
        command = [sys.executable, "-m", "quickstart", "--home", str(home), "--port-offset", str(offset), *arguments]
        self.home = home
        self.offset = offset
        self.output: list[str] = []
        self._ready = threading.Event()
        self.process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=os.environ | (environment or {}),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def url(self, port: int) -> str:
        """Return the URL of the program on `port` of the quick reference."""
        return f"http://127.0.0.1:{port + self.offset}"

    def wait_ready(self) -> None:
        """Wait until it reports that the cluster is ready. Raises AssertionError with its output."""
        self._wait_for(READY)

    def wait_for(self, text: str) -> None:
        """Wait until its output contains `text`."""
        self._wait_for(text)

    def _wait_for(self, text: str) -> None:
        deadline = time.monotonic() + START_S
        while not any(text in line for line in self.output):
            assert self.process.poll() is None, f"the quickstart ended early:\n{self.text}"
            assert time.monotonic() < deadline, f"no {text!r} after {START_S} s:\n{self.text}"
            time.sleep(0.05)

    def finish(self, timeout: float = START_S) -> int:
        """Wait until it exits; return the exit code."""
        code = self.process.wait(timeout)
        self._reader.join(5)
        return code

    def interrupt(self) -> int:
        """Send SIGINT, as Ctrl-C does; return the exit code."""
        self.process.send_signal(signal.SIGINT)
        return self.finish(END_S)

    def stop(self) -> None:
        """End it in any state; for fixtures."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            try:
                self.process.wait(END_S)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self._reader.join(5)

    @property
    def text(self) -> str:
        """The whole output, without colours."""
        return re.sub(r"\x1b\[[0-9;]*m", "", "".join(self.output))

    def pids(self) -> dict[str, int]:
        """Return the pids of the programs by name, from the command lines of supervisord's children."""
        listing = subprocess.run(
            ["ps", "-axo", "pid=,ppid=,command="], capture_output=True, text=True, check=True
        ).stdout
        supervisord = int((self.home / "supervisord.pid").read_text())
        found = {}
        for line in listing.splitlines():
            pid, parent, command = line.split(None, 2)
            if int(parent) == supervisord:
                found[f"{command.split('-m ')[1].strip()}:{_port_of(int(pid))}"] = int(pid)
        return found

    def pid_on(self, port: int) -> int:
        """Return the pid of the program on `port` of the quick reference."""
        return next(pid for key, pid in self.pids().items() if key.endswith(f":{port + self.offset}"))

    def health(self, port: int) -> int:
        """Return the status of `/health` on a port; 0 without a response."""
        try:
            return httpx2.get(f"{self.url(port)}/health", timeout=5).status_code
        except httpx2.HTTPError:
            return 0

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as stream:
            for line in stream:
                self.output.append(line)


def _port_of(pid: int) -> str:
    environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    return next((entry[5:].decode() for entry in environment if entry.startswith(b"PORT=")), "")
