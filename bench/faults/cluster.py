"""Four fake backends of one model as programs, behind the gateway, or behind nginx as the reference."""

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import psutil

from bench.faults.load import TOKENS
from bench.faults.wire import TransientError, get, set_switches
from bench.harness.programs import Program, free_port

ROOT = Path(__file__).resolve().parents[2]
COUNT = 4
# Speed of the backends: seconds to the first token, tokens per second.
TTFT_S, RATE = 0.02, 120.0
# Short timeouts, so that a hung backend costs seconds: the gateway's floors and cap, nginx's timeouts.
FLOOR_S, CAP_S = 1.0, 5.0
# Text that crashes a backend.
BOOM = "query of death"

_NGINX = """
worker_processes 1; pid {folder}/nginx.pid; error_log {folder}/error.log crit; daemon off;
events {{ worker_connections 4096; }}
http {{
  access_log off;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
  upstream backends {{ least_conn; keepalive 64;
{servers}
  }}
  server {{
    listen 127.0.0.1:{port};
    location / {{
      proxy_pass http://backends; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_buffering off;
      proxy_connect_timeout 2s; proxy_read_timeout {patience}s;
      proxy_next_upstream error timeout http_502 http_503 http_504 non_idempotent; proxy_next_upstream_tries 3;
    }}
  }}
}}
"""


class Backend:
    """One fake backend with faults to inject and remove."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self.port = free_port()
        self._log = folder / f"{name}.log"
        self._program: Program | None = None

    def start(self) -> None:
        """Start it and wait until it listens."""
        options = {
            "port": self.port,
            "name": self.name,
            "model": "fake",
            "tokens": TOKENS,
            "ttft": TTFT_S,
            "rate": RATE,
        }
        command = [sys.executable, "-m", "bench.backend", "--marked", "--crash-on", BOOM]
        command += [part for name, value in options.items() for part in (f"--{name}", str(value))]
        self._program = Program(command, port=self.port, cwd=ROOT, log=self._log)
        self._program.wait_for_port(self.port)

    @property
    def pid(self) -> int:
        """Process id."""
        assert self._program is not None
        return self._program.pid

    @property
    def is_dead(self) -> bool:
        """Whether its process has ended."""
        return not psutil.pid_exists(self.pid) or psutil.Process(self.pid).status() == psutil.STATUS_ZOMBIE

    def kill(self) -> None:
        """Kill it with SIGKILL."""
        assert self._program is not None
        self._program.kill()

    def stop(self) -> None:
        """Stop it."""
        if self._program is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGCONT)
            self._program.kill()
            self._program = None


Step = Callable[[Backend], Awaitable[None]]


async def _kill(backend: Backend) -> None:
    backend.kill()


async def _start(backend: Backend) -> None:
    await asyncio.to_thread(backend.start)


async def _freeze(backend: Backend) -> None:
    os.kill(backend.pid, signal.SIGSTOP)


async def _thaw(backend: Backend) -> None:
    os.kill(backend.pid, signal.SIGCONT)


async def _restart(backend: Backend) -> None:
    backend.stop()
    await asyncio.to_thread(backend.start)


async def _nothing(_: Backend) -> None:
    return None


def _switch(**switches: Any) -> Step:
    async def step(backend: Backend) -> None:
        with contextlib.suppress(OSError, TransientError):
            await set_switches(backend.port, **switches)

    return step


# The faults and their removal. Under the last three, its health checks still succeed.
FAULTS: dict[str, tuple[Step, Step]] = {
    "kill -9": (_kill, _start),
    "restart": (_restart, _nothing),
    "SIGSTOP": (_freeze, _thaw),
    "hang": (_switch(hang=True, hang_after=3), _switch(hang=False, hang_after=None)),
    "reset": (_switch(reset=True, reset_after=5), _switch(reset=False, reset_after=None)),
    "lie": (_switch(fail_rate=1.0, fail_status=503), _switch(fail_rate=0.0)),
}


@contextlib.contextmanager
def backends(folder: Path) -> Iterator[list[Backend]]:
    """Run all backends."""
    made = [Backend(f"b{index}", folder) for index in range(COUNT)]
    try:
        for one in made:
            one.start()
        yield made
    finally:
        for one in made:
            one.stop()


def gateway(port: int, among: list[Backend], watched: int, folder: Path, processes: int) -> Program:
    """Run the gateway in front of the backends; one more backend, with a model of its own, is on port `watched`."""
    services = [f"{one.name}=http://127.0.0.1:{one.port}" for one in among]
    services.append(f"watched=http://127.0.0.1:{watched}")
    catalogue = folder / "models.yaml"
    catalogue.write_text(
        "fake: {kind: llm, hf_repo: test/fake, revision: main}\n"
        "watched: {kind: llm, hf_repo: test/watched, revision: main}\n"
    )
    env = {
        "PORT": str(port),
        "HOST": "127.0.0.1",
        "WORKERS": str(processes),
        "SERVICES": ",".join(services),
        "CATALOGUE": str(catalogue),
        # A backend that recovers gets work again before the next fault.
        "SLOW_START": "0",
        "FIRST_BYTE_FLOOR": str(FLOOR_S),
        "STREAM_IDLE_FLOOR": str(FLOOR_S),
        "STUCK_AFTER": str(FLOOR_S),
        "FIRST_BYTE_TIMEOUT": str(CAP_S),
        "STREAM_IDLE_TIMEOUT": str(CAP_S),
    }
    return Program([sys.executable, "-m", "gateway"], port=port, env=env, cwd=ROOT, log=folder / "gateway.log")


def nginx(port: int, among: list[Backend], folder: Path) -> Program:
    """Run nginx in front of the backends, with proxy_next_upstream."""
    servers = "\n".join(f"    server 127.0.0.1:{one.port} max_fails=1 fail_timeout=1s;" for one in among)
    config = folder / "nginx.conf"
    config.write_text(_NGINX.format(folder=folder, port=port, servers=servers, patience=int(CAP_S)))
    return Program(["nginx", "-c", str(config), "-p", str(folder)], port=port, log=folder / "nginx.log")


async def states(port: int) -> dict[str, dict[str, Any]]:
    """Return the state of each backend as the gateway reports it."""
    services: dict[str, dict[str, Any]] = json.loads(await get(port, "/services"))["services"]
    return services
