"""What is looked at after the load: clients that leave, what is left behind, and the request that kills."""

import asyncio
import re
import time
from collections.abc import Collection

import psutil

from bench.faults.cluster import BOOM, Backend, states
from bench.faults.load import CHAT
from bench.faults.wire import Connection, TransientError, get
from bench.harness.report import quantile
from tests.support.backends.openai_backend import FakeBackend

# Within this, in seconds, everything that was under way has ended.
SETTLE_S = 5.0
_IDLE = re.compile(r'^gateway_backend_connections\{backend="[^"]+",use="idle"\} (\S+)', re.MULTILINE)


async def cancel_p99_ms(port: int, watched: FakeBackend, count: int) -> float | None:
    """How long it takes from a client's closing of its connection until the backend sees its own closed, p99 in ms."""
    took: list[float] = []
    for number in range(count):
        connection = await Connection.open(port)
        messages = [{"role": "user", "content": f"leaving {number}"}]
        # The connection is closed under it: whoever waits for the answer is told, and nobody does.
        connection.post(CHAT, {"model": "watched", "messages": messages, "stream": True}).add_done_callback(
            lambda answer: answer.exception()
        )
        await connection.some.wait()
        request = watched.requests[-1]
        began = time.perf_counter()
        connection.close()
        await asyncio.wait_for(request.gone.wait(), SETTLE_S)
        took.append((time.perf_counter() - began) * 1000)
    return quantile(took, 0.99) if took else None


async def leaks(port: int, gateway: psutil.Process, ports: Collection[int]) -> tuple[int, int]:
    """Requests that count as in flight, and connections to backends beyond those in the pool, once all has ended."""
    until = time.perf_counter() + SETTLE_S
    while True:
        in_flight = sum(one["in_flight"] for one in (await states(port)).values())
        open_now = sum(
            bool(one.raddr) and one.raddr.port in ports and one.status == psutil.CONN_ESTABLISHED
            for process in (gateway, *gateway.children())
            for one in process.net_connections("tcp")
        )
        leaked = open_now - await _pooled(port)
        if (not in_flight and not leaked) or time.perf_counter() > until:
            return in_flight, leaked
        await asyncio.sleep(0.1)


async def _pooled(port: int) -> int:
    text = (await get(port, "/metrics")).decode()
    return int(sum(float(count) for count in _IDLE.findall(text)))


async def killed_by_one_request(port: int, among: list[Backend]) -> int:
    """How many backends a request costs that kills whatever serves it, sent three times."""
    connection = await Connection.open(port)
    for _ in range(3):
        body = {"model": "fake", "messages": [{"role": "user", "content": BOOM}]}
        try:
            await connection.post(CHAT, body)
        except TransientError:
            connection = await Connection.open(port)
    connection.close()
    return sum(backend.is_dead for backend in among)
