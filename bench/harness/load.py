"""Load on one core, what is measured on the other: the C program of bench/native, and one measured round of it."""

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

from bench.harness.programs import Program, free_port

ROOT = Path(__file__).resolve().parents[2]
# Peers and built programs, outside git.
FOLDER = ROOT / ".cluster" / "bench"
SOURCES = ROOT / "bench" / "native"

# What is measured runs on the first, load generator and backend on the second.
MEASURED_CORE, LOAD_CORE = 0, 1
# A round in which the load needed more of its core than this does not count: the load would be what is measured.
MAX_BUSY = 0.90


@dataclass(frozen=True, slots=True)
class Round:
    """What one round of load came to. Latencies and times in seconds; `cpu_s` is that of what was measured."""

    requests: int
    errors: int
    seconds: float
    events: int
    reads: int
    p50_s: float
    p99_s: float
    cpu_s: float
    # How much of their cores the load and what was measured used.
    load_busy: float
    busy: float
    first_error: str

    @property
    def rate(self) -> float:
        """Requests per second."""
        return self.requests / self.seconds

    @property
    def cpu_us(self) -> float:
        """CPU time per request, in microseconds."""
        return self.cpu_s / max(self.requests, 1) * 1e6

    @property
    def event_cpu_us(self) -> float:
        """CPU time per event of the streams, in microseconds."""
        return self.cpu_s / max(self.events, 1) * 1e6

    @property
    def counts(self) -> bool:
        """Whether the load's core had room left."""
        return self.load_busy <= MAX_BUSY


def driver() -> Path:
    """The built load generator with its backend. Raises RuntimeError when gcc is missing or refuses it."""
    built = FOLDER / "native" / "driver"
    sources = sorted(SOURCES.glob("*.c"))
    if built.exists() and built.stat().st_mtime > max(one.stat().st_mtime for one in SOURCES.iterdir()):
        return built
    if shutil.which("gcc") is None:
        raise RuntimeError("this bench builds its load generator: apt-get install gcc libc6-dev")
    built.parent.mkdir(parents=True, exist_ok=True)
    command = ["gcc", "-O2", "-Wall", "-Werror", "-o", str(built), *map(str, sources)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"the load generator does not build:\n{done.stderr}")
    return built


class Load:
    """The load generator and the backend, one process. Used with `with`; `backend_port` is open within it."""

    def __init__(self, *, answer_bytes: int = 420, headers: Mapping[str, str] | None = None) -> None:
        self.backend_port = free_port()
        self._folder = tempfile.TemporaryDirectory()
        more = "".join(f"{name}: {value}\r\n" for name, value in (headers or {}).items())
        self._process = subprocess.Popen(
            [str(driver()), str(self.backend_port), str(answer_bytes)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            text=True, env=os.environ | {"LOAD_HEADERS": more},
            preexec_fn=lambda: os.sched_setaffinity(0, [LOAD_CORE]),
        )  # fmt: skip
        self._usage = psutil.Process(self._process.pid)

    def __enter__(self) -> "Load":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        self._folder.cleanup()

    def requests(
        self, port: int, measured: Program | None, body: Mapping[str, object], *, connections: int, seconds: float
    ) -> Round:
        """Requests one after the other on each connection, for some time."""
        return self._round(f"rate {port} {connections} {seconds} {self._file(body)}", measured)

    def streams(
        self,
        port: int,
        measured: Program | None,
        body: Mapping[str, object],
        *,
        connections: int,
        seconds: float,
        ramp_s: float,
        interval_s: float,
    ) -> Round:
        """That many streams at a time, begun over `ramp_s`, with an event every `interval_s`.

        A stream that ends before `seconds` are over begins again; each is read to its end.
        """
        times = f"{ramp_s} {round(interval_s * 1e6)}"
        return self._round(f"streams {port} {connections} {seconds} {self._file(body)} {times}", measured)

    def _file(self, body: Mapping[str, object]) -> Path:
        path = Path(self._folder.name) / "body.json"
        path.write_text(json.dumps(body, separators=(",", ":")))
        return path

    def _round(self, command: str, measured: Program | None) -> Round:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        cpu, load_cpu = measured.cpu_seconds() if measured else 0.0, self._cpu_seconds()
        self._process.stdin.write(command + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the load generator ended with {self._process.wait()}")
        told = json.loads(line)
        cpu, load_cpu = (measured.cpu_seconds() if measured else 0.0) - cpu, self._cpu_seconds() - load_cpu
        return Round(
            requests=told["requests"],
            errors=told["errors"],
            seconds=told["seconds"],
            events=told["events"],
            reads=told["reads"],
            p50_s=told["p50_us"] / 1e6,
            p99_s=told["p99_us"] / 1e6,
            cpu_s=cpu,
            load_busy=load_cpu / told["seconds"],
            busy=cpu / told["seconds"],
            first_error=told["first_error"],
        )

    def _cpu_seconds(self) -> float:
        times = self._usage.cpu_times()
        used: float = times.user + times.system
        return used
