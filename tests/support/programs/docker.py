"""Docker through its command line: build, run, inspect, stop."""

import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[3]
BUILD_S = 1800.0
COMMAND_S = 120.0
POLL_S = 0.05


class DockerError(Exception):
    """A docker command failed; the message holds the command and the end of its output."""


def docker(*arguments: str, timeout: float = COMMAND_S, check: bool = True) -> str:
    """Run `docker ARGUMENTS`; return its output. Raises DockerError unless `check` is false."""
    done = subprocess.run(
        ["docker", *arguments], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout, check=False
    )
    if check and done.returncode != 0:
        raise DockerError(f"docker {' '.join(arguments)}\n{done.stdout[-2000:]}{done.stderr[-4000:]}")
    return done.stdout


def inspect(thing: str) -> dict[str, Any]:
    """Inspect a container or an image, by name or id."""
    found: list[dict[str, Any]] = json.loads(docker("inspect", thing))
    return found[0]


def pid_of(container: str) -> int:
    """Return the process id, on this machine, of a container's first process."""
    return int(inspect(container)["State"]["Pid"])


def wheels() -> Path | None:
    """Return the folder of wheels that pip is configured with on this machine, for torch; None for PyTorch's index."""
    folders = [Path(word) for word in os.environ.get("PIP_FIND_LINKS", "").split() if Path(word).is_dir()]
    return folders[0] if folders else None


def build(tag: str, target: str = "", dockerfile: str = "deploy/Dockerfile", **arguments: str) -> str:
    """Build `target` (default: the last stage) of a Dockerfile as image `tag`; return the tag."""
    options = [f"--build-arg={name}={value}" for name, value in arguments.items()]
    if folder := wheels():
        options.append(f"--build-context=wheels={folder}")
    where = (f"--file={ROOT / dockerfile}", f"--target={target}", f"--tag={tag}")
    docker("build", "--progress=plain", *where, *options, str(ROOT), timeout=BUILD_S)
    return tag


class Container:
    """A container, running or exited."""

    def __init__(self, container_id: str) -> None:
        self.id = container_id

    @property
    def state(self) -> dict[str, Any]:
        """Docker's `State`: Status, ExitCode, Health ..."""
        state: dict[str, Any] = inspect(self.id)["State"]
        return state

    @property
    def health(self) -> str:
        """The health status: starting, healthy or unhealthy."""
        return str(self.state["Health"]["Status"])

    @property
    def probes(self) -> list[str]:
        """Output of the latest health checks."""
        return [str(probe["Output"]).strip() for probe in self.state["Health"]["Log"] or []]

    def exec(self, *command: str) -> str:
        """Run a command inside; return its output. Raises DockerError."""
        return docker("exec", self.id, *command)

    def logs(self) -> str:
        """The log, both streams."""
        done = subprocess.run(
            ["docker", "logs", self.id], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=True
        )
        return done.stdout

    def stop(self, within: float) -> int:
        """Run `docker stop` with a grace period; return the exit code, 137 if the container was killed."""
        docker("stop", f"--time={int(within)}", self.id, timeout=within + COMMAND_S)
        return int(self.state["ExitCode"])

    def until(self, condition: Callable[..., object], what: str, within: float) -> None:
        """Wait until the condition holds. Raises AssertionError with the log on timeout or if the container exits."""
        deadline = time.monotonic() + within
        while not condition():
            assert time.monotonic() < deadline, f"not within {within:g} s: {what}\n{self.logs()[-4000:]}"
            assert self.state["Running"], f"ended before: {what}\n{self.logs()[-4000:]}"
            time.sleep(POLL_S)


@contextmanager
def running(image: str, *options: str, command: tuple[str, ...] = ()) -> Iterator[Container]:
    """Run a container in the background; it is removed at the end in any case."""
    container = Container(docker("run", "--detach", *options, image, *command).strip())
    try:
        yield container
    finally:
        docker("rm", "--force", "--volumes", container.id)
