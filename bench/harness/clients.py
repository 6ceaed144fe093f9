"""Clients that each send their next request when the last is answered, over connections that are kept.

Cheap enough (some 50 µs a request) to share cores with a model that is measured; bodies differ from request to request.
"""

import asyncio
import itertools
import statistics
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

# A request that takes longer than this is a failure of what is measured.
PATIENCE_S = 600.0


@dataclass(frozen=True, slots=True)
class Answers:
    """What one round came to. `latencies` in seconds, one per request that was begun and answered within it.

    `bodies` are those of the last answers, as many as there were clients, the newest at the end.
    """

    seconds: float
    latencies: Sequence[float]
    bodies: Sequence[bytes]

    @property
    def rate(self) -> float:
        """Requests per second."""
        return len(self.latencies) / self.seconds

    def quantile(self, share: float) -> float:
        """The latency in seconds that this share of the requests did not exceed."""
        ordered = sorted(self.latencies)
        return ordered[min(int(share * len(ordered)), len(ordered) - 1)]

    @property
    def median(self) -> float:
        """The median latency in seconds."""
        return statistics.median(self.latencies)


def request(path: str, body: bytes, content_type: str = "application/json") -> bytes:
    """A POST as it goes over the wire."""
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}\r\n"
    return f"{head}\r\n".encode() + body


def measure(port: int, requests: Sequence[bytes], *, clients: int, seconds: float | None = None) -> Answers:
    """Let `clients` send `requests` in turn, for `seconds` and over and over, or each once where no time is given.

    Raises RuntimeError at the first answer that is not a 200.
    """
    return asyncio.run(_measure(port, requests, clients=clients, seconds=seconds))


async def exchange(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, message: bytes) -> bytes:
    """Send one request and return the answer's body. Raises RuntimeError when it is not a 200."""
    writer.write(message)
    head = await reader.readuntil(b"\r\n\r\n")
    lines = head.lower().split(b"\r\n")
    lengths = [line.partition(b":")[2] for line in lines if line.startswith(b"content-length:")]
    body = await reader.readexactly(int(lengths[0])) if lengths else b""
    if b" 200 " not in lines[0]:
        raise RuntimeError(f"answered {head.splitlines()[0].decode()}: {body[:500].decode(errors='replace')}")
    return body


async def _measure(port: int, requests: Sequence[bytes], *, clients: int, seconds: float | None) -> Answers:
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
    return Answers(min(time.perf_counter(), ends) - began, latencies, tuple(bodies))
