"""Programs of the repository in processes of their own, ended with the test."""

import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

from tests.gateway.running import HANG_S

ROOT = Path(__file__).parents[2]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Programs:
    """Starts programs of the repository and ends those that are left."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.started: list[subprocess.Popen[str]] = []

    def start(self, *arguments: str, until: str, **environment: str) -> subprocess.Popen[str]:
        """Start `python -m arguments` and wait until a line of its output holds `until`."""
        program = subprocess.Popen(
            [sys.executable, "-m", *arguments],
            cwd=ROOT,
            env={**os.environ, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.started.append(program)
        assert program.stdout is not None
        seen = ""
        for line in program.stdout:
            seen += line
            if until in line:
                # Nobody reads on; a full pipe would stop the program.
                threading.Thread(target=program.stdout.read, daemon=True).start()
                return program
        raise AssertionError(f"{arguments} ended before it said {until!r}:\n{seen}")

    def stop(self) -> None:
        for program in self.started:
            if program.poll() is None:
                program.kill()
            program.wait(HANG_S)
            if program.stdout is not None:
                program.stdout.close()
