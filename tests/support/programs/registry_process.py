"""A registry process that a test may kill and restart on the same port and store."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import httpx2

from tests.support import plain_http
from tests.support.hub import wait_until

ROOT = Path(__file__).resolve().parents[3]
END_S = 20.0


class RegistryProcess:
    """One registry. A context manager: the process ends with it."""

    def __init__(self, store: Path, *, hf_endpoint: str, catalogue: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = int(free.getsockname()[1])
        self.url = f"http://127.0.0.1:{self.port}"
        self.environment = {
            **os.environ,
            "STORE": f"file:{store}",
            "PORT": str(self.port),
            "HF_ENDPOINT": hf_endpoint,
            "CATALOGUE": str(catalogue),
        }
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it responds."""
        self._process = subprocess.Popen(
            [sys.executable, "-m", "registry"], cwd=ROOT, env=self.environment, stderr=subprocess.DEVNULL
        )
        wait_until(self._answers)

    def kill(self) -> None:
        """Kill it with SIGKILL and wait."""
        assert self._process is not None
        self._process.kill()
        self._process.wait(END_S)

    def __enter__(self) -> "RegistryProcess":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def _answers(self) -> bool:
        try:
            return plain_http.get(f"{self.url}/health").status_code == 200
        except httpx2.TransportError:
            return False
