"""The stack as a user runs it: a fresh clone, no .env, and the commands of the quick reference.

What cannot be had on a machine without other registries is replaced through the variables that users have for the same
purpose (.env.example): MinIO's image by a stand-in, the CUDA images by the CPU ones.
"""

import json
import os
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import httpx2

from tests.stack.outside import Outside
from tests.support.programs.docker import docker

ROOT = Path(__file__).resolve().parents[2]
PROJECT = "gpu-cluster-test"
CLUSTER_FILE = "docker-compose.gpu-cluster.yml"
READY_S = 600.0
MINIO_STANDIN = "gpu-cluster-test/minio"


class Stack:
    """A clone of the project with what the tests set in its environment."""

    def __init__(self, clone: Path, environment: Mapping[str, str]) -> None:
        self.clone = clone
        self.environment = {**os.environ, **environment}
        # Set while somebody watches what leaves.
        self.outside: Outside | None = None

    def run(self, command: str, *, timeout: float = READY_S, check: bool = True) -> "subprocess.CompletedProcess[str]":
        """Run a shell command in the clone, as it stands. Raises AssertionError with its output when it fails."""
        done = subprocess.run(
            ["bash", "-o", "pipefail", "-c", command],
            cwd=self.clone,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        assert not check or done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        return done

    def compose(self, command: str, *, cluster: bool = False, **options: Any) -> str:
        """Run `docker compose ...` of one of the two files; returns what it printed."""
        file = f"-f {CLUSTER_FILE} " if cluster else ""
        return self.run(f"docker compose {file}{command}", **options).stdout

    def containers(self, *services: str) -> list[str]:
        """The ids of the project's containers, running or not; of `services` only, where some are named."""
        of = [f"--filter=label=com.docker.compose.service={service}" for service in services] or [""]
        found = [
            docker("ps", "-aq", f"--filter=label=com.docker.compose.project={PROJECT}", *filter(None, [one]))
            for one in of
        ]
        return [line for text in found for line in text.split()]

    def container(self, service: str) -> str:
        """The id of the one container of a service."""
        (found,) = self.containers(service)
        return found

    def inside(self, service: str, program: str) -> str:
        """Run a Python program in a service's container; returns what it printed."""
        return docker("exec", self.container(service), "python", "-c", program)

    def volumes(self) -> set[str]:
        """The names of the project's volumes."""
        return set(docker("volume", "ls", "-q", f"--filter=label=com.docker.compose.project={PROJECT}").split())

    def networks(self) -> set[str]:
        """The names of the project's networks."""
        names = docker("network", "ls", "--format={{.Name}}", f"--filter=label=com.docker.compose.project={PROJECT}")
        return set(names.split())

    def ask(self, port: int, path: str, body: Any = None) -> Any:
        """GET, or POST where there is a body; returns the JSON. Raises httpx2.HTTPStatusError."""
        url = f"http://127.0.0.1:{port}{path}"
        with httpx2.Client(trust_env=False, timeout=120) as client:
            answer = client.get(url) if body is None else client.post(url, json=body)
        return answer.raise_for_status().json()

    def services(self) -> dict[str, Any]:
        """What GET /services of the gateway lists."""
        services: dict[str, Any] = self.ask(8080, "/services")["services"]
        return services

    def until(self, condition: Callable[..., object], what: str, within: float = READY_S) -> None:
        """Wait until the condition holds; while the other side does not answer it does not hold."""
        deadline = time.monotonic() + within
        while True:
            try:
                if condition():
                    return
            except (httpx2.HTTPError, json.JSONDecodeError, KeyError):
                pass
            assert time.monotonic() < deadline, f"not within {within:g} s: {what}\n{self.compose('ps -a')}"
            time.sleep(0.05)

    def until_healthy(self, *services: str, within: float = READY_S) -> None:
        """Wait until the gateway calls these services healthy."""
        self.until(lambda: all(self.services()[one]["healthy"] for one in services), f"{services} healthy", within)

    def remove(self) -> None:
        """Remove all that the project left: containers, networks, volumes."""
        for container in self.containers():
            docker("rm", "-f", "-v", container)
        for network in self.networks():
            docker("network", "rm", network)
        for volume in self.volumes():
            docker("volume", "rm", volume)
