"""`python -m services.llm` as a process that can be watched, and stopped, from outside."""

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
# multiprocessing's tracker of shared memory ends by itself when it sees that its parent has.
LEFT_ALONE_S = 2.0


class ServiceProcess:
    """One service in a session of its own, so that every process that it starts can be found."""

    def __init__(self, python: str, folder: Path, entry: Mapping[str, Any], **settings: str) -> None:
        """Start it on the catalogue's `entry`, named `tiny`, with more `settings`; `folder` takes its files."""
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
        """What `/health` says, or that it is starting."""
        assert self.process.poll() is None, self.log.read_text()
        try:
            said: dict[str, Any] = httpx2.get(f"{self.url}/health", timeout=10).json()
        except httpx2.TransportError:
            return {"status": "starting"}
        return said

    def until(self, *wanted: str) -> dict[str, Any]:
        """Wait for one of these states, and return what `/health` says then."""
        pause = threading.Event()
        for _ in range(int(LOADED_WITHIN_S / POLL_S)):
            health = self.health()
            if health["status"] in wanted:
                return health
            # Neither of the two becomes the other.
            assert health["status"] not in ("failed", "healthy"), (health, self.log.read_text()[-4000:])
            pause.wait(POLL_S)
        raise AssertionError(f"not {wanted} in time: {self.log.read_text()[-4000:]}")

    def members(self) -> list[int]:
        """Every living process of the session."""
        found = []
        for entry in Path("/proc").iterdir():
            try:
                # After the name in brackets: state, parent, group, session.
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except (OSError, NotADirectoryError):
                continue
            if fields[3] == str(self.process.pid) and fields[0] != "Z":
                found.append(int(entry.name))
        return found

    def stop(self) -> None:
        """Ask it to end, and wait until it has."""
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(ENDED_WITHIN_S)

    def left_behind(self) -> list[str]:
        """What still runs of the session some moments after its first process has ended, as command lines."""
        pause = threading.Event()
        for _ in range(int(LEFT_ALONE_S / POLL_S)):
            if not self.members():
                return []
            pause.wait(POLL_S)
        return [Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ") for pid in self.members()]

    def kill(self) -> None:
        """End what is left of it."""
        for member in self.members():
            os.kill(member, signal.SIGKILL)
        self.process.wait(ENDED_WITHIN_S)


def interrupted(service: ServiceProcess, path: str) -> tuple[dict[str, Any], str]:
    """Stop `service` in the middle of a long stream; returns the last event of it that is JSON, and the last line."""
    body = {"messages": [{"role": "user", "content": "Count to one thousand."}], "stream": True, "ignore_eos": True}
    with httpx2.stream("POST", service.url + path, json={**body, "max_tokens": 1800}, timeout=120) as answer:
        lines = answer.iter_lines()
        assert next(lines).startswith("data: ")
        service.process.send_signal(signal.SIGTERM)
        rest = [line for line in lines if line]
    service.process.wait(ENDED_WITHIN_S)
    event: dict[str, Any] = json.loads([line for line in rest if line.startswith("data: {")][-1].removeprefix("data: "))
    return event, rest[-1]
