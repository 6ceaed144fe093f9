"""`python -m bench.faults`: 20,000 requests while each of four backends is hurt in every way, in turn.

The same faults are shown to nginx in between, with a tenth of the requests, as the reference. Then clients leave their
streams, a request kills whatever serves it, and in the end it is counted what has been left behind.
"""

import argparse
import asyncio
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from bench.faults.after import cancel_p99_ms, killed_by_one_request, leaks
from bench.faults.cluster import FAULTS, Backend, Step, backends, gateway, nginx, states
from bench.faults.load import EXAMPLES, Load
from bench.programs import free_port
from bench.report import last_line, table
from tests.support.backend import FakeBackend

# For how long a backend is hurt, and the longest that its return is waited for, in seconds.
HURT_S, RETURN_S = 2.0, 3.0
# How many requests must be at a backend before it is hurt.
WORK = 2
# For how long all is well before the next fault.
CALM_S = 0.5
LOOK_S = 0.02


async def hurt(backend: Backend, fault: tuple[Step, Step], port: int | None) -> float:
    """Hurt a backend that is at work for a while and heal it.

    Returns the seconds until the gateway at `port` took it out, or sent it the last request.
    """
    wound, heal = fault
    await asyncio.sleep(CALM_S)
    if port is not None:
        await until(port, backend, lambda told: told["in_flight"] >= WORK)
    began = time.perf_counter()
    out, last, sent = None, 0.0, None
    wounding = asyncio.ensure_future(wound(backend))
    while time.perf_counter() - began < HURT_S:
        await asyncio.sleep(LOOK_S)
        if port is None:
            continue
        told, at = (await states(port))[backend.name], time.perf_counter() - began
        if out is None and not told["healthy"]:
            out = at
        if sent is not None and told["requests"] > sent:
            last = at
        sent = told["requests"]
    await wounding
    await heal(backend)
    if port is not None:
        await until(port, backend, lambda told: told["state"] == "healthy")
    return last if out is None else min(out, last)


async def until(port: int, backend: Backend, holds: Callable[[dict[str, Any]], bool]) -> None:
    """Wait until what the gateway tells of a backend is so, for RETURN_S at most."""
    for _ in range(int(RETURN_S / LOOK_S)):
        if holds((await states(port))[backend.name]):
            return
        await asyncio.sleep(LOOK_S)


async def run(folder: Path, requests: int, workers: int, cancels: int) -> int:
    """The whole bench. Returns 1 when a request was lost."""
    port, reference_port = free_port(), free_port()
    ejected: dict[str, list[float]] = {name: [] for name in FAULTS}
    watched = FakeBackend(name="watched", model="watched", tokens=10_000, rate=50.0)
    async with watched:
        with (
            backends(folder) as among,
            gateway(port, among, watched.port, folder) as ours,
            nginx(reference_port, among, folder),
        ):
            load, reference = Load(port, workers), Load(reference_port, workers)
            for index, backend in enumerate(among):
                async with load.running():
                    for name, fault in FAULTS.items():
                        ejected[name].append(await hurt(backend, fault, port))
                # The reference sees every fault once, at one backend after the other.
                async with reference.running():
                    for fault in list(FAULTS.values())[index :: len(among)]:
                        await hurt(backend, fault, None)
            async with load.running():
                await load.reached(requests)
            cancel_ms = await cancel_p99_ms(port, watched, cancels)
            in_flight, sockets = await leaks(port, psutil.Process(ours.pid), [*(b.port for b in among), watched.port])
            dead = await killed_by_one_request(port, among)
    tally, other = load.tally, reference.tally
    # A restart is no fault that lasts.
    times = sorted(seconds for name, found in ejected.items() if name != "restart" for seconds in found)
    rows: list[list[object]] = [
        ["requests", tally.requests, other.requests],
        ["failed", tally.failed, other.failed],
        ["wrong tokens", tally.wrong_tokens, other.wrong_tokens],
        ["cut in silence", tally.silent_cuts, other.silent_cuts],
        ["ended in an error event", tally.told_cuts, other.told_cuts],
        ["backends that one request killed", dead, "-"],
    ]
    print(table(["", "gateway", "nginx"], rows))
    print()
    taken_out = [[name, _seconds(found)] for name, found in ejected.items()]
    print(table(["fault", "taken out after s, backend by backend"], taken_out))
    for who, one in (("gateway", tally), ("nginx", other)):
        for reason, count in one.reasons.most_common(EXAMPLES):
            print(f"{who}: {count} x {reason!r}")
    figures = {
        "requests": tally.requests,
        "failed": tally.failed,
        "wrong_tokens": tally.wrong_tokens,
        "silent_cuts": tally.silent_cuts,
        "eject_p99_s": times[int(len(times) * 0.99)],
        "cancel_p99_ms": cancel_ms,
        "leaked_in_flight": in_flight,
        "leaked_sockets": sockets,
    }
    print(last_line("faults", figures))
    return int(bool(tally.failed or tally.wrong_tokens or tally.silent_cuts or dead > 2))


def _seconds(found: list[float]) -> str:
    return "  ".join(f"{seconds:.2f}" for seconds in found)


def main() -> None:
    """Parse the options and run."""
    parser = argparse.ArgumentParser(prog="python -m bench.faults", description=__doc__)
    parser.add_argument("--requests", type=int, default=20_000, help="the least number of requests to send")
    parser.add_argument("--workers", type=int, default=40, help="how many are under way at a time")
    parser.add_argument("--cancels", type=int, default=200, help="how many clients leave their streams")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-faults-") as folder:
        sys.exit(asyncio.run(run(Path(folder), options.requests, options.workers, options.cancels)))


if __name__ == "__main__":
    main()
