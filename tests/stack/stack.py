"""The stack as a user runs it: a fresh clone, no .env, and the commands of the quick reference.

Images that cannot be pulled here are replaced through variables of .env.example: MinIO's by a stand-in, the CUDA images
by the CPU images.
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
    """A clone of the project, with the environment of its commands."""

    def __init__(self, clone: Path, environment: Mapping[str, str]) -> None:
        self.clone = clone
        self.environment = {**os.environ, **environment}
        # Set while egress is recorded.
        self.outside: Outside | None = None

    def run(self, command: str, *, timeout: float = READY_S, check: bool = True) -> "subprocess.CompletedProcess[str]":
        """Run a shell command in the clone. Raises AssertionError with its output if it fails."""
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
        """Run `docker compose ...` with one of the two files; return its output."""
        file = f"-f {CLUSTER_FILE} " if cluster else ""
        return self.run(f"docker compose {file}{command}", **options).stdout

    def containers(self, *services: str) -> list[str]:
        """Return the ids of the project's containers, running or not; of `services` only, if given."""
        of = [f"--filter=label=com.docker.compose.service={service}" for service in services] or [""]
        found = [
            docker("ps", "-aq", f"--filter=label=com.docker.compose.project={PROJECT}", *filter(None, [one]))
            for one in of
        ]
        return [line for text in found for line in text.split()]

    def container(self, service: str) -> str:
        """Return the id of the only container of a service."""
        (found,) = self.containers(service)
        return found

    def inside(self, service: str, program: str) -> str:
        """Run a Python program in a service's container; return its output."""
        return docker("exec", self.container(service), "python", "-c", program)

    def volumes(self) -> set[str]:
        """Return the names of the project's volumes."""
        return set(docker("volume", "ls", "-q", f"--filter=label=com.docker.compose.project={PROJECT}").split())

    def networks(self) -> set[str]:
        """Return the names of the project's networks."""
        names = docker("network", "ls", "--format={{.Name}}", f"--filter=label=com.docker.compose.project={PROJECT}")
        return set(names.split())

    def request(self, port: int, path: str, body: Any = None) -> Any:
        """GET, or POST if there is a body; return the JSON. Raises httpx2.HTTPStatusError."""
        url = f"http://127.0.0.1:{port}{path}"
        with httpx2.Client(trust_env=False, timeout=120) as client:
            response = client.get(url) if body is None else client.post(url, json=body)
        return response.raise_for_status().json()

    def services(self) -> dict[str, Any]:
        """Return the services that the gateway lists."""
        services: dict[str, Any] = self.request(8080, "/services")["services"]
        return services

    def until(self, condition: Callable[..., object], what: str, within: float = READY_S) -> None:
        """Wait until the condition is true; a failed request counts as false."""
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
        """Wait until the gateway reports these services as healthy."""
        self.until(lambda: all(self.services()[one]["healthy"] for one in services), f"{services} healthy", within)

    def remove(self) -> None:
        """Remove all containers, networks and volumes of the project."""
        for container in self.containers():
            docker("rm", "-f", "-v", container)
        for network in self.networks():
            docker("network", "rm", network)
        for volume in self.volumes():
            docker("volume", "rm", volume)
