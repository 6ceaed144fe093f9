"""Checks after the load: cancelled streams, leaks, and a request that crashes backends."""

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

# Everything in flight has ended within this time, in seconds.
SETTLE_S = 5.0
_IDLE = re.compile(r'^gateway_backend_connections\{backend="[^"]+",use="idle"\} (\S+)', re.MULTILINE)


async def cancel_p99_ms(port: int, watched: FakeBackend, count: int) -> float | None:
    """Time from the client's close to the backend's connection being closed, p99 in milliseconds."""
    took: list[float] = []
    for number in range(count):
        connection = await Connection.open(port)
        messages = [{"role": "user", "content": f"leaving {number}"}]
        # The connection is closed under the pending response, whose future fails.
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
    """Requests counted as in flight, and backend connections beyond the pool, after all requests have ended."""
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
    """Number of backends crashed by a query of death that is sent three times."""
    connection = await Connection.open(port)
    for _ in range(3):
        body = {"model": "fake", "messages": [{"role": "user", "content": BOOM}]}
        try:
            await connection.post(CHAT, body)
        except TransientError:
            connection = await Connection.open(port)
    connection.close()
    return sum(backend.is_dead for backend in among)
