"""The C load generator (bench/native), pinned to one core while the program under test has another."""

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
# Peers and built programs; ignored by git.
FOLDER = ROOT / ".cluster" / "bench"
SOURCES = ROOT / "bench" / "native"

# The program under test runs on the first core, load generator and backend on the second.
MEASURED_CORE, LOAD_CORE = 0, 1
# Highest valid share of its core for the load generator: above it, the round would measure the load generator.
MAX_BUSY = 0.90


@dataclass(frozen=True, slots=True)
class Round:
    """Results of one round. Latencies and times in seconds; `cpu_s` is the CPU time of the program under test."""

    requests: int
    errors: int
    seconds: float
    events: int
    reads: int
    p50_s: float
    p99_s: float
    cpu_s: float
    # Core utilization of the load generator and of the program under test.
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
        """CPU time per stream event, in microseconds."""
        return self.cpu_s / max(self.events, 1) * 1e6

    @property
    def counts(self) -> bool:
        """Whether the load generator had CPU time to spare."""
        return self.load_busy <= MAX_BUSY


def driver() -> Path:
    """Return the path of the load generator, built if needed. Raises RuntimeError if gcc is missing or fails."""
    built = FOLDER / "native" / "driver"
    sources = sorted(SOURCES.glob("*.c"))
    if built.exists() and built.stat().st_mtime > max(one.stat().st_mtime for one in SOURCES.iterdir()):
        return built
    if shutil.which("gcc") is None:
        raise RuntimeError("gcc, which builds the load generator, is not installed: apt-get install gcc libc6-dev")
    built.parent.mkdir(parents=True, exist_ok=True)
    command = ["gcc", "-O2", "-Wall", "-Werror", "-o", str(built), *map(str, sources)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"the load generator cannot be built:\n{done.stderr}")
    return built


class Load:
    """Load generator and backend in one process. Use as a context manager; `backend_port` is open within it."""

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
        """Send requests one after the other on each connection, for `seconds`."""
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
        """Keep `connections` streams open, started over `ramp_s`, with an event every `interval_s`.

        A stream that ends before `seconds` have passed starts again; each is read to its end.
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
            raise RuntimeError(f"the load generator exited with status {self._process.wait()}")
        result = json.loads(line)
        cpu, load_cpu = (measured.cpu_seconds() if measured else 0.0) - cpu, self._cpu_seconds() - load_cpu
        return Round(
            requests=result["requests"],
            errors=result["errors"],
            seconds=result["seconds"],
            events=result["events"],
            reads=result["reads"],
            p50_s=result["p50_us"] / 1e6,
            p99_s=result["p99_us"] / 1e6,
            cpu_s=cpu,
            load_busy=load_cpu / result["seconds"],
            busy=cpu / result["seconds"],
            first_error=result["first_error"],
        )

    def _cpu_seconds(self) -> float:
        times = self._usage.cpu_times()
        used: float = times.user + times.system
        return used
