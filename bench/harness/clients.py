"""Closed-loop load: each client sends its next request when the previous response is complete, over a kept connection.

Cheap enough (about 50 µs per request) to share cores with the model under test.
"""

import asyncio
import itertools
import statistics
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

# A request that takes longer than this fails the bench.
PATIENCE_S = 600.0


@dataclass(frozen=True, slots=True)
class LoadResult:
    """Results of one round. `latencies`: seconds, one per request that started and completed within the round.

    `bodies` are the last responses, one per client, the newest at the end.
    """

    seconds: float
    latencies: Sequence[float]
    bodies: Sequence[bytes]

    @property
    def rate(self) -> float:
        """Requests per second."""
        return len(self.latencies) / self.seconds

    def quantile(self, share: float) -> float:
        """Return the latency quantile in seconds (0.99 is p99)."""
        ordered = sorted(self.latencies)
        return ordered[min(int(share * len(ordered)), len(ordered) - 1)]

    @property
    def median(self) -> float:
        """Median latency in seconds."""
        return statistics.median(self.latencies)


def request(path: str, body: bytes, content_type: str = "application/json") -> bytes:
    """Return the bytes of a POST request."""
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}\r\n"
    return f"{head}\r\n".encode() + body


def measure(port: int, requests: Sequence[bytes], *, clients: int, seconds: float | None = None) -> LoadResult:
    """Send `requests` with `clients` in turn: repeatedly for `seconds`, or each once if no time is given.

    Raises RuntimeError at the first response that is not a 200.
    """
    return asyncio.run(_measure(port, requests, clients=clients, seconds=seconds))


async def exchange(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, message: bytes) -> bytes:
    """Send one request and return the response body. Raises RuntimeError if the status is not 200."""
    writer.write(message)
    head = await reader.readuntil(b"\r\n\r\n")
    lines = head.lower().split(b"\r\n")
    lengths = [line.partition(b":")[2] for line in lines if line.startswith(b"content-length:")]
    body = await reader.readexactly(int(lengths[0])) if lengths else b""
    if b" 200 " not in lines[0]:
        raise RuntimeError(f"response: {head.splitlines()[0].decode()}: {body[:500].decode(errors='replace')}")
    return body


async def _measure(port: int, requests: Sequence[bytes], *, clients: int, seconds: float | None) -> LoadResult:
    messages: Iterator[bytes] = iter(requests) if seconds is None else itertools.cycle(requests)
    latencies: list[float] = []
    bodies: deque[bytes] = deque(maxlen=clients)
    began = time.perf_counter()
    ends = began + seconds if seconds is not None else float("inf")

    async def client() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 26)
        try:
            while (sent := time.perf_counter()) < ends and (message := next(messages, None)) is not None:
                async with asyncio.timeout(PATIENCE_S):
                    bodies.append(await exchange(reader, writer, message))
                now = time.perf_counter()
                if now <= ends:
                    latencies.append(now - sent)
        finally:
            writer.close()

    async with asyncio.TaskGroup() as group:
        for _ in range(clients):
            group.create_task(client())
    return LoadResult(min(time.perf_counter(), ends) - began, latencies, tuple(bodies))
