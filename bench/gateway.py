"""`python -m bench.gateway`: overhead of relaying a request, against nginx and other routers.

    python -m bench.gateway                        everything, about ten minutes
    python -m bench.gateway --quick                the same in short rounds, for a first look
    python -m bench.gateway --parts rates,chunks   only these parts; the figures of the others are null
    python -m bench.gateway --python PATH          the gateway on another interpreter that has requirements/gateway.txt

The proxy under test has one core; load generator and backend (bench/native) have the other. nginx, the gateway and the
peers take turns within every round. A round in which the load generator needed more than 90 % of its core is repeated;
the bench fails if none is valid.

The interpreter matters a little: those of the images and of Debian are built with profile-guided optimisation. Without
it (pyenv's default), Python code takes 50 % longer and a request 5 %, as most of its time is spent in the kernel.

    rates     1, 32, 256 connections: requests per second, CPU per request, added latency, against nginx
    routers   32 connections: the routers that bench/peers.sh has installed
    workers   two workers of the gateway against one, and how they share the requests
    chunks    64 and 128 streams of 50 events per second: CPU per event, events per read, added latency
    streams   2,000 streams of 2 events per second, for a minute: errors, memory
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psutil

from bench.harness.load import Load, Round
from bench.harness.programs import Program, free_port
from bench.harness.report import last_line, median_ratio, table
from bench.peers.proxies import KEY, PEERS, ROUTERS, Start, installed, nginx, ours, peer

PARTS = ("rates", "routers", "workers", "chunks", "streams")
FIGURES = (
    "rps_vs_nginx_c1", "rps_vs_nginx_c32", "rps_vs_nginx_c256", "cpu_vs_nginx_c32", "rps_vs_best_router_c32",
    "chunk_cpu_vs_nginx", "added_p50_vs_nginx", "two_workers_cpu_vs_one", "streams_2000_errors", "rss_growth_mb",
)  # fmt: skip
BODY: Mapping[str, Any] = {
    "model": "bench",
    "messages": [
        {"role": "system", "content": "You are a helpful assistant."},
        {"role": "user", "content": "What is AI? Explain it to a child in two sentences, then to an expert in four."},
    ],
    "temperature": 0.7,
    "max_tokens": 512,
}
# Attempts at a round with valid load.
TRIES = 3
# Connections and seconds of the warm-up.
WARM = (16, 0.5)
MB = 1024 * 1024

Figures = dict[str, float | int | None]


class Bench:
    """The bench's programs and options, and the figures so far."""

    def __init__(self, load: Load, folder: Path, *, rounds: int, seconds: float, python: str) -> None:
        self.load = load
        self.folder = folder
        self.rounds = rounds
        self.seconds = seconds
        self._python = python
        self.figures: Figures = dict.fromkeys(FIGURES)

    def ours(self, *, workers: int = 1) -> Start:
        """The gateway."""
        return ours(workers=workers, python=self._python)

    @contextmanager
    def running(self, contenders: Mapping[str, Start]) -> Iterator[dict[str, tuple[Program, int]]]:
        """Run every proxy in front of the backend, warmed up; yield each with its port. Report those that fail."""
        with ExitStack() as stack:
            started: dict[str, tuple[Program, int]] = {}
            for name, start in contenders.items():
                port = free_port()
                try:
                    program = stack.enter_context(start(port, self.load.backend_port, self.folder / name))
                except RuntimeError as error:
                    print(f"{name} is left out: {error}", file=sys.stderr)
                    continue
                warm = self.load.requests(port, program, BODY, connections=WARM[0], seconds=WARM[1])
                if warm.errors or not warm.requests:
                    print(f"{name} is left out: {warm.first_error or 'no response'}", file=sys.stderr)
                    continue
                started[name] = program, port
            yield started

    def requests(self, name: str, program: Program | None, port: int, connections: int) -> Round:
        """Run one round. Raises RuntimeError if a request failed, or the load generator was always too busy."""
        for _ in range(TRIES):
            found = self.load.requests(port, program, BODY, connections=connections, seconds=self.seconds)
            if found.errors:
                raise RuntimeError(f"{name}: {found.errors} of {found.requests} requests failed: {found.first_error}")
            if found.counts or program is None:
                return found
            print(f"{name} at {connections} connections: the load needed {found.load_busy:.0%} of its core, repeating")
        raise RuntimeError(f"{name} at {connections} connections: the load generator is too slow on this machine")


def rates(bench: Bench) -> None:
    """Requests per second, CPU per request, added latency."""
    rows: list[Sequence[object]] = []
    with bench.running({"nginx": nginx(), "gateway": bench.ours()}) as proxies:
        for connections in (1, 32, 256):
            rounds: dict[str, list[Round]] = {"direct": [], "nginx": [], "gateway": []}
            for _ in range(bench.rounds):
                rounds["direct"].append(bench.requests("direct", None, bench.load.backend_port, connections))
                for name, (program, port) in proxies.items():
                    rounds[name].append(bench.requests(name, program, port, connections))
            rows += [_row(name, connections, found) for name, found in rounds.items()]
            faster = median_ratio([one.rate for one in rounds["gateway"]], [one.rate for one in rounds["nginx"]])
            bench.figures[f"rps_vs_nginx_c{connections}"] = faster
            if connections == 32:
                cpu = median_ratio([one.cpu_us for one in rounds["gateway"]], [one.cpu_us for one in rounds["nginx"]])
                bench.figures["cpu_vs_nginx_c32"] = cpu
            if connections == 1:
                bench.figures["added_p50_vs_nginx"] = _added(rounds["gateway"], rounds["nginx"], rounds["direct"])
    print(table(("proxy", "connections", "requests/s", "CPU us/request", "p50 us", "p99 us", "load busy"), rows))


def routers(bench: Bench) -> None:
    """The gateway against other routers."""
    found = {name: peer(name) for name in PEERS if installed(name)}
    for name in PEERS:
        print(f"{name}: {installed(name) or 'not installed, left out (bench/peers.sh; why: .cluster/bench/NAME.log)'}")
    rounds: dict[str, list[Round]] = {}
    with bench.running({"gateway": bench.ours(), **found}) as proxies:
        for _ in range(bench.rounds):
            for name, (program, port) in proxies.items():
                rounds.setdefault(name, []).append(bench.requests(name, program, port, 32))
    rust = [rounds[name] for name in ROUTERS if name in rounds]
    if rust:
        best = [max(one.rate for one in together) for together in zip(*rust, strict=True)]
        bench.figures["rps_vs_best_router_c32"] = median_ratio([one.rate for one in rounds["gateway"]], best)
    rows = [_row(name, 32, found) for name, found in rounds.items()]
    print(table(("proxy", "connections", "requests/s", "CPU us/request", "p50 us", "p99 us", "load busy"), rows))


def workers(bench: Bench) -> None:
    """Two workers against one, on the same core: the overhead of sharing state."""
    rounds: dict[str, list[Round]] = {"1 worker": [], "2 workers": []}
    shares: list[float] = []
    with bench.running({"1 worker": bench.ours(), "2 workers": bench.ours(workers=2)}) as proxies:
        for _ in range(bench.rounds):
            for name, (program, port) in proxies.items():
                before = _cpu_of_children(program)
                rounds[name].append(bench.requests(name, program, port, 32))
                used = [after - before.get(pid, 0.0) for pid, after in _cpu_of_children(program).items()]
                if name == "2 workers":
                    shares.append(max(used) / sum(used))
    one, two = rounds["1 worker"], rounds["2 workers"]
    bench.figures["two_workers_cpu_vs_one"] = median_ratio([r.cpu_us for r in two], [r.cpu_us for r in one])
    rows = [_row(name, 32, found) for name, found in rounds.items()]
    print(table(("gateway", "connections", "requests/s", "CPU us/request", "p50 us", "p99 us", "load busy"), rows))
    print(f"the busier of two workers had {statistics.median(shares):.0%} of requests (median of {len(shares)} rounds)")


def chunks(bench: Bench) -> None:
    """Paced streams."""
    rows: list[Sequence[object]] = []
    worst: list[float] = []
    body = {**BODY, "stream": True, "max_tokens": 100}
    with bench.running({"nginx": nginx(streams=True), "gateway": bench.ours()}) as proxies:
        for connections in (64, 128):
            rounds: dict[str, list[Round]] = {"direct": [], "nginx": [], "gateway": []}
            for _ in range(bench.rounds):
                direct = (None, bench.load.backend_port)
                for name, (program, port) in {"direct": direct, **proxies}.items():
                    one = bench.load.streams(
                        port, program, body, connections=connections, seconds=bench.seconds, ramp_s=1, interval_s=0.02
                    )
                    if one.errors:
                        raise RuntimeError(f"{name}: {one.errors} streams failed: {one.first_error}")
                    rounds[name].append(one)
            worst.append(
                median_ratio([r.event_cpu_us for r in rounds["gateway"]], [r.event_cpu_us for r in rounds["nginx"]])
            )
            rows += [_stream_row(name, connections, found) for name, found in rounds.items()]
    bench.figures["chunk_cpu_vs_nginx"] = max(worst)
    print(table(("proxy", "streams", "events/s", "CPU us/event", "events/read", "p50 us", "p99 us"), rows))


def streams(bench: Bench) -> None:
    """Two thousand slow streams: no error, and no memory growth after all have started."""
    seconds = bench.seconds * 20
    body = {**BODY, "stream": True, "max_tokens": max(2, round(seconds * 2))}
    with bench.running({"gateway": bench.ours()}) as proxies:
        program, port = proxies["gateway"]
        held: list[int] = []
        # The first streams are long enough to fill the bounded transcript (gateway.streams.transcript).
        for name, length in (("first", seconds / 3), ("second", seconds)):
            tokens = {**body, "max_tokens": max(2, round(length * 2))}
            # None ends before the round does, so none starts again; the load generator waits for the last ones.
            found = bench.load.streams(
                port, program, tokens, connections=2000, seconds=length * 0.9, ramp_s=length / 10, interval_s=0.5
            )
            held.append(program.rss_bytes())
            print(
                f"{name}: 2,000 streams, {found.events:,} events in {found.seconds:.0f} s, {found.errors} errors "
                f"{found.first_error}; CPU {found.busy:.0%}, p50 {found.p50_s * 1e3:.2f} ms, "
                f"p99 {found.p99_s * 1e3:.2f} ms, gateway's memory after it {held[-1] / MB:.0f} MB"
            )
            bench.figures["streams_2000_errors"] = (bench.figures["streams_2000_errors"] or 0) + found.errors
        bench.figures["rss_growth_mb"] = (held[1] - held[0]) / MB


def _row(name: str, connections: int, rounds: Sequence[Round]) -> Sequence[object]:
    middle = statistics.median
    return (
        name,
        connections,
        middle(one.rate for one in rounds),
        middle(one.cpu_us for one in rounds),
        middle(one.p50_s for one in rounds) * 1e6,
        middle(one.p99_s for one in rounds) * 1e6,
        middle(one.load_busy for one in rounds),
    )


def _stream_row(name: str, connections: int, rounds: Sequence[Round]) -> Sequence[object]:
    middle = statistics.median
    return (
        name,
        connections,
        middle(one.events / one.seconds for one in rounds),
        middle(one.event_cpu_us for one in rounds),
        # Each stream's header is a read of its own.
        middle(one.events / max(one.reads - one.requests, 1) for one in rounds),
        middle(one.p50_s for one in rounds) * 1e6,
        middle(one.p99_s for one in rounds) * 1e6,
    )


def _added(ours: Sequence[Round], theirs: Sequence[Round], direct: Sequence[Round]) -> float:
    """Median latency added by the gateway over that added by nginx."""
    added = [[one.p50_s - base.p50_s for one, base in zip(those, direct, strict=True)] for those in (ours, theirs)]
    return median_ratio(*added)


def _cpu_of_children(program: Program) -> dict[int, float]:
    """CPU seconds by process id: of the workers, or of the single process."""
    parent = psutil.Process(program.pid)
    return {one.pid: sum(one.cpu_times()[:2]) for one in parent.children(recursive=True) or [parent]}


def _build(python: str) -> str:
    """Describe the interpreter's build. Raises OSError or subprocess.CalledProcessError."""
    found = subprocess.run([python, "-VV"], check=True, capture_output=True, text=True)
    return f"{found.stdout.strip()}, {python}"


def main() -> None:
    """Run the parts, print tables and the line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="short rounds for a first look, not for figures")
    parser.add_argument("--parts", default=",".join(PARTS), help="parts to run, separated by commas (default: all)")
    parser.add_argument("--python", default=sys.executable, metavar="PATH", help="interpreter of the gateway")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each measurement, at least 3")
    options = parser.parse_args()
    parts = options.parts.split(",")
    if unknown := set(parts) - set(PARTS):
        parser.error(f"there is no part {', '.join(unknown)}; parts: {', '.join(PARTS)}")
    try:
        build = _build(options.python)
    except (OSError, subprocess.CalledProcessError) as error:
        parser.error(f"--python {options.python} is no interpreter: {error}")
    rounds, seconds = (3, 0.5) if options.quick else (options.rounds, 3.0)
    with tempfile.TemporaryDirectory() as folder, Load(headers={"Authorization": f"Bearer {KEY}"}) as load:
        bench = Bench(load, Path(folder), rounds=rounds, seconds=seconds, python=options.python)
        print(f"the gateway runs on {build}")
        for part in PARTS:
            if part in parts:
                print(f"\n== {part}")
                {"rates": rates, "routers": routers, "workers": workers, "chunks": chunks, "streams": streams}[part](
                    bench
                )
    print(last_line("gateway", bench.figures))


if __name__ == "__main__":
    main()
