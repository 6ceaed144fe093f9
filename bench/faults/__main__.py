"""`python -m bench.faults`: 20,000 requests while each of four backends is hurt in every way, in turn.

The same faults are shown to nginx in between, with a tenth of the requests, as the reference. Then clients leave their
streams, a request kills whatever serves it, and in the end it is counted what has been left behind.
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

# For how long a backend is hurt, and the longest that it is waited for to be at work before, in seconds.
HURT_S, RETURN_S = 2.0, 5.0
# How many requests must be at a backend before it is hurt.
WORK = 2
# For how long all is well before the next fault.
CALM_S = 0.5
LOOK_S = 0.02


async def hurt(backend: Backend, fault: tuple[Step, Step]) -> None:
    """Hurt a backend for a while and heal it."""
    wound, heal = fault
    await asyncio.sleep(CALM_S)
    wounding = asyncio.ensure_future(wound(backend))
    await asyncio.sleep(HURT_S)
    await wounding
    await heal(backend)


async def watch(port: int, backend: Backend, fault: tuple[Step, Step]) -> float | None:
    """The same with a backend of the gateway at `port`, once it is at work.

    Returns the seconds until the gateway took it out, or sent it the last request; None if it had no work in time.
    """
    worked = await at_work(port, backend)
    hurting = asyncio.ensure_future(hurt(backend, fault))
    await asyncio.sleep(CALM_S)
    began = time.perf_counter()
    out, last, sent = None, 0.0, None
    while not hurting.done():
        told, at = (await states(port))[backend.name], time.perf_counter() - began
        if out is None and not told["healthy"]:
            out = at
        if sent is not None and told["requests"] > sent:
            last = at
        sent = told["requests"]
        await asyncio.sleep(LOOK_S)
    await hurting
    if not worked:
        return None
    return last if out is None else min(out, last)


async def at_work(port: int, backend: Backend) -> bool:
    """Wait until a backend has requests, for RETURN_S at most; whether it has."""
    for _ in range(int(RETURN_S / LOOK_S)):
        told = (await states(port))[backend.name]
        if told["healthy"] and told["in_flight"] >= WORK:
            return True
        await asyncio.sleep(LOOK_S)
    return False


async def run(folder: Path, requests: int, workers: int, cancels: int, processes: int) -> int:
    """The whole bench. Returns 1 when a request was lost."""
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
                    # One backend after the other: who was hurt has time to come back.
                    for backend in among:
                        ejected[name].append(await watch(port, backend, fault))
                # The reference sees every fault at one backend.
                async with reference.running():
                    await hurt(among[index % len(among)], fault)
            async with load.running():
                await load.reached(requests)
            cancel_ms = await cancel_p99_ms(port, watched, cancels)
            in_flight, sockets = await leaks(port, psutil.Process(ours.pid), [*(b.port for b in among), watched.port])
            dead = await killed_by_one_request(port, among)
    tally, other = load.tally, reference.tally
    # A restart is no fault that lasts.
    lasting = [found for name, found in ejected.items() if name != "restart"]
    times = [seconds for found in lasting for seconds in found if seconds is not None]
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
    parser.add_argument("--requests", type=int, default=20_000, help="the least number of requests to send")
    parser.add_argument("--workers", type=int, default=40, help="how many are under way at a time")
    parser.add_argument("--cancels", type=int, default=200, help="how many clients leave their streams")
    parser.add_argument("--processes", type=int, default=1, help="the gateway's WORKERS")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-faults-") as folder:
        sys.exit(asyncio.run(run(Path(folder), options.requests, options.workers, options.cancels, options.processes)))


if __name__ == "__main__":
    main()
