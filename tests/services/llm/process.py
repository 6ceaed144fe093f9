"""`python -m services.llm` as a process, for tests of its start and stop."""

import json
import os
import signal
import subprocess
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx2

from bench.harness.programs import free_port

ROOT = Path(__file__).resolve().parents[3]
LOADED_WITHIN_S = 400
ENDED_WITHIN_S = 60
POLL_S = 0.05
# multiprocessing's resource tracker ends by itself after its parent.
TRACKER_EXIT_S = 2.0


class ServiceProcess:
    """A service in its own session, so that all its processes can be found."""

    def __init__(self, python: str, folder: Path, entry: Mapping[str, Any], **settings: str) -> None:
        """Start the service for the catalogue `entry`, named `tiny`; its files are in `folder`."""
        catalogue = folder / "models.yaml"
        catalogue.write_text(json.dumps({"tiny": dict(entry)}))
        self.port = free_port()
        given = {
            "CATALOGUE": str(catalogue),
            "MODEL": "tiny",
            "MODEL_CACHE": str(folder / "cache"),
            "PORT": str(self.port),
            "LOG_FORMAT": "json",
        }
        self.log = folder / "log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [python, "-m", "services.llm"],
                cwd=ROOT,
                env=os.environ | given | settings,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def health(self) -> dict[str, Any]:
        """Return the body of `/health`; status `starting` before it listens."""
        assert self.process.poll() is None, self.log.read_text()
        try:
            body: dict[str, Any] = httpx2.get(f"{self.url}/health", timeout=10).json()
        except httpx2.TransportError:
            return {"status": "starting"}
        return body

    def until(self, *states: str) -> dict[str, Any]:
        """Wait for one of `states` and return the body of `/health`."""
        pause = threading.Event()
        for _ in range(int(LOADED_WITHIN_S / POLL_S)):
            health = self.health()
            if health["status"] in states:
                return health
            # Both are final during the start.
            assert health["status"] not in ("failed", "healthy"), (health, self.log.read_text()[-4000:])
            pause.wait(POLL_S)
        raise AssertionError(f"not {states} in time: {self.log.read_text()[-4000:]}")

    def members(self) -> list[int]:
        """Return the running processes of the session."""
        found = []
        for entry in Path("/proc").iterdir():
            try:
                # The fields after the name: state, parent, group, session.
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except (OSError, NotADirectoryError):
                continue
            if fields[3] == str(self.process.pid) and fields[0] != "Z":
                found.append(int(entry.name))
        return found

    def stop(self) -> None:
        """Send SIGTERM and wait for the exit."""
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(ENDED_WITHIN_S)

    def left_behind(self) -> list[str]:
        """Return the command lines of processes that remain shortly after the main process has exited."""
        pause = threading.Event()
        for _ in range(int(TRACKER_EXIT_S / POLL_S)):
            if not self.members():
                return []
            pause.wait(POLL_S)
        return [Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ") for pid in self.members()]

    def kill(self) -> None:
        """Kill all remaining processes."""
        for member in self.members():
            os.kill(member, signal.SIGKILL)
        self.process.wait(ENDED_WITHIN_S)


def interrupted(service: ServiceProcess, path: str) -> tuple[dict[str, Any], str]:
    """Stop `service` during a long stream; return the stream's last JSON event and its last line."""
    body = {"messages": [{"role": "user", "content": "Count to one thousand."}], "stream": True, "ignore_eos": True}
    with httpx2.stream("POST", service.url + path, json={**body, "max_tokens": 1800}, timeout=120) as answer:
        lines = answer.iter_lines()
        assert next(lines).startswith("data: ")
        service.process.send_signal(signal.SIGTERM)
        rest = [line for line in lines if line]
    service.process.wait(ENDED_WITHIN_S)
    event: dict[str, Any] = json.loads([line for line in rest if line.startswith("data: {")][-1].removeprefix("data: "))
    return event, rest[-1]
