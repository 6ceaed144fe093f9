"""`python -m bench.faults`: 20,000 requests while each of four backends fails in every way, in turn.

nginx is the reference: it gets the same faults, with a tenth of the requests. Then clients cancel their streams, one
request crashes every backend that serves it, and leaked requests and sockets are counted.
"""

import argparse
import asyncio
import sys
import tempfile
import time
from pathlib import Path

import psutil

from bench.faults.after import cancel_p99_ms, killed_by_one_request, leaks
from bench.faults.cluster import FAULTS, Backend, Step, backends, gateway, nginx, states
from bench.faults.load import EXAMPLES, Load
from bench.harness.programs import free_port
from bench.harness.report import last_line, quantile, table
from tests.support.backends.openai_backend import FakeBackend

# Duration of a fault, and the longest wait for the backend to have work before it, in seconds.
HURT_S, RETURN_S = 2.0, 5.0
# Requests in flight at a backend before its fault.
WORK = 2
# Time without faults before the next one, in seconds.
CALM_S = 0.5
LOOK_S = 0.02


async def inject(backend: Backend, fault: tuple[Step, Step]) -> None:
    """Inject a fault into a backend for a while, then remove it."""
    start, stop = fault
    await asyncio.sleep(CALM_S)
    starting = asyncio.ensure_future(start(backend))
    await asyncio.sleep(HURT_S)
    await starting
    await stop(backend)


async def watch(port: int, backend: Backend, fault: tuple[Step, Step]) -> float | None:
    """Inject a fault into a backend of the gateway at `port`, once it has work.

    Return the seconds until the gateway ejected it or sent its last request to it; None if it got no work in time.
    """
    worked = await wait_for_work(port, backend)
    injecting = asyncio.ensure_future(inject(backend, fault))
    await asyncio.sleep(CALM_S)
    began = time.perf_counter()
    out, last, sent = None, 0.0, None
    while not injecting.done():
        state, at = (await states(port))[backend.name], time.perf_counter() - began
        if out is None and not state["healthy"]:
            out = at
        if sent is not None and state["requests"] > sent:
            last = at
        sent = state["requests"]
        await asyncio.sleep(LOOK_S)
    await injecting
    if not worked:
        return None
    return last if out is None else min(out, last)


async def wait_for_work(port: int, backend: Backend) -> bool:
    """Wait until a backend has requests, for at most RETURN_S; return whether it has."""
    for _ in range(int(RETURN_S / LOOK_S)):
        state = (await states(port))[backend.name]
        if state["healthy"] and state["in_flight"] >= WORK:
            return True
        await asyncio.sleep(LOOK_S)
    return False


async def run(folder: Path, requests: int, workers: int, cancels: int, processes: int) -> int:
    """Run the bench. Return 1 if a request failed."""
    port, reference_port = free_port(), free_port()
    ejected: dict[str, list[float | None]] = {name: [] for name in FAULTS}
    watched = FakeBackend(name="watched", model="watched", tokens=10_000, rate=50.0)
    async with watched:
        with (
            backends(folder) as among,
            gateway(port, among, watched.port, folder, processes) as ours,
            nginx(reference_port, among, folder),
        ):
            load, reference = Load(port, workers), Load(reference_port, workers)
            for index, (name, fault) in enumerate(FAULTS.items()):
                async with load.running():
                    # One backend after the other, so that each has time to recover.
                    for backend in among:
                        ejected[name].append(await watch(port, backend, fault))
                # The reference gets every fault at one backend.
                async with reference.running():
                    await inject(among[index % len(among)], fault)
            async with load.running():
                await load.wait_until_sent(requests)
            cancel_ms = await cancel_p99_ms(port, watched, cancels)
            in_flight, sockets = await leaks(port, psutil.Process(ours.pid), [*(b.port for b in among), watched.port])
            dead = await killed_by_one_request(port, among)
    tally, other = load.tally, reference.tally
    # A restart is not a lasting fault.
    lasting = [found for name, found in ejected.items() if name != "restart"]
    times = [seconds for found in lasting for seconds in found if seconds is not None]
    rows: list[list[object]] = [
        ["requests", tally.requests, other.requests],
        ["failed", tally.failed, other.failed],
        ["wrong tokens", tally.wrong_tokens, other.wrong_tokens],
        ["cut in silence", tally.silent_cuts, other.silent_cuts],
        ["ended in an error event", tally.reported_cuts, other.reported_cuts],
        ["backends that one request killed", dead, "-"],
    ]
    print(table(["", "gateway", "nginx"], rows))
    print()
    taken_out = [[name, _seconds(found)] for name, found in ejected.items()]
    print(table(["fault", "ejected after s, by backend"], taken_out))
    for who, one in (("gateway", tally), ("nginx", other)):
        for reason, count in one.reasons.most_common(EXAMPLES):
            print(f"{who}: {count} x {reason!r}")
    figures = {
        "requests": tally.requests,
        "failed": tally.failed,
        "wrong_tokens": tally.wrong_tokens,
        "silent_cuts": tally.silent_cuts,
        "eject_p99_s": quantile(times, 0.99) if times else None,
        "cancel_p99_ms": cancel_ms,
        "leaked_in_flight": in_flight,
        "leaked_sockets": sockets,
    }
    print(last_line("faults", figures))
    return int(bool(tally.failed or tally.wrong_tokens or tally.silent_cuts or dead > 2))


def _seconds(found: list[float | None]) -> str:
    return "  ".join("idle" if seconds is None else f"{seconds:.2f}" for seconds in found)


def main() -> None:
    """Parse the options and run."""
    parser = argparse.ArgumentParser(prog="python -m bench.faults", description=__doc__)
    parser.add_argument("--requests", type=int, default=20_000, help="minimum number of requests")
    parser.add_argument("--workers", type=int, default=40, help="concurrent requests")
    parser.add_argument("--cancels", type=int, default=200, help="streams that clients cancel")
    parser.add_argument("--processes", type=int, default=1, help="WORKERS of the gateway")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-faults-") as folder:
        sys.exit(asyncio.run(run(Path(folder), options.requests, options.workers, options.cancels, options.processes)))


if __name__ == "__main__":
    main()
